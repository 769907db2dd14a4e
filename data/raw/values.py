"""Columns of text made numbers, times and paths; text that stands for a missing value made null."""

from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .columns import Column
from .paths import category_paths

Numbers = TypeVar("Numbers", pa.Array, pa.ChunkedArray)

# What MySQL and Hive (\N, NULL), JSON (null), NumPy (nan), Excel (#N/A) and pandas (<NA>, NaN) write for nothing.
_MISSING = pa.array(["\\N", "NULL", "null", "NaN", "nan", "N/A", "n/a", "#N/A", "<NA>", "NaT"])
# In names and regions these may be real (NA is Naples), in ids, numbers and times not. R writes NA, Python None.
MISSING_IDS = pa.array([*_MISSING.to_pylist(), "NA", "None"])
_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
_ISO = (
    r"^\s*(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?:[ Tt](?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,]\d+)?)?"
    r"\s*(?:[Zz]|UTC|GMT|(?P<sign>[-+])(?P<hours>\d\d)(?::?(?P<minutes>\d\d))?)?)?\s*$"
)
_MONTHS = pa.array(["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"])
# As Foursquare and Twitter write it: Tue Apr 03 18:00:09 +0000 2012
_CTIME = (
    r"^\s*[A-Z][a-z]{2} (?P<month>[A-Z][a-z]{2}) (?P<day>\d\d?) (?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d) "
    r"(?P<sign>[-+])(?P<hours>\d\d)(?P<minutes>\d\d) (?P<year>\d{4})\s*$"
)


def numbers(text: Numbers) -> Numbers:
    """Float64; null where the text is no number. "nan" and "inf" are numbers here, so that the checks name them."""
    try:
        return _cast(text)
    except pa.ArrowInvalid:
        odd = pc.is_in(pc.utf8_lower(text), value_set=pa.array(["nan", "inf", "-inf"]))
        number = pc.or_(pc.match_substring_regex(text, _NUMBER), odd).fill_null(False)
        return pc.if_else(number, pc.utf8_trim_whitespace(text), pa.scalar(None, pa.string())).cast(pa.float64())


def _cast(text: Numbers) -> Numbers:
    text[:1].cast(pa.float64())  # a cast that fails words a message for every row, and takes its time
    return text.cast(pa.float64())


def times(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Unix seconds, int64, from seconds since 1970 (fractions are dropped) or ISO 8601 dates and times; else null.

    Times are UTC unless they name an offset: +02, +0200, +02:00. 24:00 ends a day; the 60th second of a UTC day's last
    minute, a leap second, counts as the next one. A date or an hour that does not exist is null.
    """
    try:
        return _whole(_cast(text))
    except pa.ArrowInvalid:
        chunks = []
        for chunk in text.chunks:
            moment = _moments(chunk, _ISO)
            if moment.null_count > chunk.null_count:
                moment = pc.coalesce(moment, _whole(numbers(pc.if_else(moment.is_valid(), None, chunk))))
            chunks.append(moment)
        return pa.chunked_array(chunks, pa.int64())


def _whole(seconds: Numbers) -> Numbers:
    """Float64 rounded down, int64; null where there is none."""
    return pc.if_else(pc.less(pc.abs(seconds), 1e18), pc.floor(seconds), None).cast(pa.int64())


def ctimes(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Unix seconds, int64, of times such as "Tue Apr 03 18:00:09 +0000 2012"; null where that is none."""
    return pa.chunked_array([_moments(chunk, _CTIME) for chunk in text.chunks], pa.int64())


def _moments(text: pa.Array, form: str) -> pa.Array:
    """Unix seconds from the named groups of a regular expression; null where it does not fit."""
    if form is _ISO and (fields := _plain(text)) is not None:
        return _seconds(fields)
    parts = pc.extract_regex(text, form)

    def part(name: str) -> np.ndarray:
        digits = pc.struct_field(parts, name)
        if name == "month" and form is _CTIME:
            return pc.add(pc.index_in(digits, value_set=_MONTHS), 1).fill_null(0).to_numpy().astype(np.int64)
        return pc.if_else(pc.equal(digits, ""), "0", digits).cast(pa.int64()).fill_null(0).to_numpy()

    hours, minutes = part("hours"), part("minutes")
    behind = pc.equal(pc.struct_field(parts, "sign"), "-").fill_null(False).to_numpy(zero_copy_only=False)
    ahead = np.where(behind, -1, 1) * (3600 * hours + 60 * minutes)
    fits = parts.is_valid().to_numpy(zero_copy_only=False) & (hours < 16) & (minutes < 60)
    return _seconds([part(name) for name in ("year", "month", "day", "hour", "minute", "second")], ahead, fits)


def _plain(text: pa.Array) -> list[np.ndarray] | None:
    """Year to second where all are "2020-01-01 00:00:00", or all with a Z: what most files have, many times faster."""
    lengths = pc.binary_length(text)
    width = pc.max(lengths).as_py()
    if text.null_count or width not in (19, 20) or pc.min(lengths).as_py() != width:
        return None
    start = np.frombuffer(text.buffers()[1], np.int32)[text.offset]
    cells = np.frombuffer(text.buffers()[2], np.uint8, len(text) * width, start).reshape(-1, width).T.copy()
    marks = {4: b"-", 7: b"-", 10: b"T ", 13: b":", 16: b":", 19: b"Z"}
    if any(not np.isin(cells[at], list(mark)).all() for at, mark in marks.items() if at < width):
        return None
    digits = cells[[0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18]] - ord("0")
    if (digits > 9).any():
        return None
    pairs = 10 * digits[::2].astype(np.int64) + digits[1::2]
    return [100 * pairs[0] + pairs[1], *pairs[2:]]


def _seconds(fields: list[np.ndarray], ahead: np.ndarray | int = 0, fits: np.ndarray | bool = True) -> pa.Array:
    """Unix seconds of year, month, day, hour, minute and second, so many seconds ahead of UTC; null where none is.

    Arrow's strptime and its error_is_null take 2023-02-29 for the first of March.
    """
    year, month, day, hour, minute, second = fields
    months = (year - 1970) * 12 + month - 1
    first, following = (
        m.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64) for m in (months, months + 1)
    )
    seconds = 86_400 * (first + day - 1) + 3600 * hour + 60 * minute + second - ahead
    good = fits & (month >= 1) & (month <= 12) & (day >= 1) & (day <= following - first)
    good &= ((hour < 24) & (minute < 60)) | ((hour == 24) & (minute == 0) & (second == 0))
    good &= (second < 60) | ((second == 60) & (seconds % 86_400 == 0))
    return pa.array(seconds, mask=~good)


def parsed(raw: pa.Table, columns: tuple[Column, ...]) -> tuple[pa.Table, pa.Table]:
    """Columns of text as values of their kind; null where the text does not fit, or says that nothing is there.

    Returns:
        ``raw``, in which such text is null where the column may be, and the values.
    """
    known = {c.name: c for c in columns}
    values = {}
    for i, name in enumerate(raw.column_names):
        text, column = raw[name], known.get(name)
        kind = column.kind if column else "text"
        if not pa.types.is_string(text.type):
            values[name] = text
            continue
        missing = pc.is_in(text, value_set=_MISSING if kind in ("text", "path") else MISSING_IDS)
        if pc.any(missing).as_py():
            text = pc.if_else(missing, pa.scalar(None, pa.string()), text)
            if column is None or column.nullable:
                raw = raw.set_column(i, name, text)
        if kind in ("number", "label"):
            text = numbers(text)
        elif kind == "time":
            text = times(text)
        elif kind == "path":
            text = category_paths(text)
        values[name] = text
    return raw, pa.table(values)
