"""Opening hours of items: text such as "Mo-Fr 09:00-17:30; Sa 10:00-02:00", or intervals of minutes of a week.

The text is the plain part of OpenStreetMap's `opening_hours`: rules between ";", each with days (all without any) and
times, or "off". Days are Mo Tu We Th Fr Sa Su, alone, as ranges (which may go over the week's end), or several between
",". Times are HH:MM-HH:MM, several between ","; one that ends at or before its begin ends the next day. A later rule
takes the place of what earlier ones said of its days. "24/7" is always open, "off" closed all week.

The intervals are what the catalog has, ``HOURS``: minutes since Monday 00:00 where the item is, open from ``open`` up
to and without ``close``; a close at or before its open is in the next week. An empty list is closed all week, null is
not known.
"""

import re

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

HOURS = pa.list_(pa.struct([("open", pa.int16()), ("close", pa.int16())]))
OPENING_HOURS = "opening_hours"
"""The column of items, and of the catalog."""
_DAY = 24 * 60
WEEK = 7 * _DAY
"""Minutes."""
EXPECTED = (
    'opening hours such as "Mo-Fr 09:00-17:30; Sa 10:00-02:00", "24/7" or "off", or a list of intervals whose open and '
    f"close are minutes since Monday 00:00, 0 to {WEEK}"
)
_DAYS = ("mo", "tu", "we", "th", "fr", "sa", "su")
_RULE = re.compile(r"\s*(?:([a-z][a-z ,-]*?)\s+)?(off|\d.*?)\s*")
_TIMES = re.compile(r"\s*(\d\d?):(\d\d)\s*-\s*(\d\d?):(\d\d)\s*")


def _mask(array: pa.Array) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = array.to_numpy(zero_copy_only=False)
    return found


def is_hours(t: pa.DataType) -> bool:
    """Whether a type is that of intervals: lists of structs of two whole numbers, open and close."""
    lists = pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t)
    if not lists or not pa.types.is_struct(t.value_type) or {f.name for f in t.value_type} != {"open", "close"}:
        return False
    return all(pa.types.is_integer(f.type) for f in t.value_type)


def opening_hours(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, NDArray[np.bool_]]:
    """A column of text or intervals as ``HOURS``.

    Returns:
        The intervals, null where nothing is said, or where what is said can't be read; and which rows those are, [N].
    """
    if pa.types.is_null(column.type):
        return pa.chunked_array([pa.nulls(len(column), HOURS)]), np.zeros(len(column), bool)
    if is_hours(column.type):
        return _checked(column)
    codes = pa.concat_arrays(column.cast(pa.string()).chunks or [pa.array([], pa.string())]).dictionary_encode()
    text = codes.dictionary.to_pylist()
    known = [_week(t) if t.strip() else None for t in text]
    bad = np.array([k is None and bool(t.strip()) for k, t in zip(known, text, strict=True)] + [False])
    intervals = [None if k is None else [{"open": a, "close": b} for a, b in k] for k in known]
    values = pa.array(intervals, HOURS)
    which = codes.indices.fill_null(len(text)).to_numpy()
    return pa.chunked_array([values.take(codes.indices)], HOURS), bad[which]


def _checked(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, NDArray[np.bool_]]:
    """Of a column of intervals those with minutes that a week has."""
    chunks = [chunk.cast(pa.list_(chunk.type.value_type)) for chunk in column.chunks]
    lists = pa.concat_arrays(chunks or [pa.array([], pa.list_(column.type.value_type))])
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    rows = lists.flatten()  # without what lies under nulls
    minutes = [rows.field(n).cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False) for n in ("open", "close")]
    odd = np.logical_or.reduce([(m < 0) | (m > WEEK) for m in minutes]) | _mask(rows.is_null())
    bad = np.zeros(len(lists), bool)
    bad[np.repeat(np.arange(len(lists)), lengths)[odd]] = True
    intervals = pa.StructArray.from_arrays([pa.array(m.astype(np.int16)) for m in minutes], ["open", "close"])
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    made = pa.ListArray.from_arrays(offsets, intervals, type=HOURS, mask=pa.array(_mask(lists.is_null()) | bad))
    return pa.chunked_array([made], HOURS), bad


def _week(text: str) -> list[tuple[int, int]] | None:
    """Intervals of a week, by day; None where the text is none of these."""
    text = text.lower().strip()
    if text == "24/7":
        return [(0, WEEK)]
    of_day: list[list[tuple[int, int]]] = [[] for _ in _DAYS]
    for rule in text.rstrip("; ").split(";"):
        parts = _RULE.fullmatch(rule)
        days = range(7) if parts is None or parts[1] is None else _days(parts[1])
        times = None if parts is None else _times(parts[2])
        if days is None or times is None:
            return None
        for day in days:
            of_day[day] = [_interval(day, *t) for t in times]
    return [interval for intervals in of_day for interval in intervals]


def _days(text: str) -> list[int] | None:
    found = []
    for part in text.split(","):
        ends = [end.strip() for end in part.split("-")]
        if len(ends) > 2 or not all(end in _DAYS for end in ends):
            return None
        first, last = _DAYS.index(ends[0]), _DAYS.index(ends[-1])
        found += [(first + i) % 7 for i in range((last - first) % 7 + 1)]
    return found


def _times(text: str) -> list[tuple[int, int]] | None:
    """Opening and closing minutes of a day."""
    if text == "off":
        return []
    found = []
    for part in text.split(","):
        at = _TIMES.fullmatch(part)
        if at is None:
            return None
        (h, m), (to_h, to_m) = ((int(at[i]), int(at[i + 1])) for i in (1, 3))
        begin, end = 60 * h + m, 60 * to_h + to_m
        if begin >= _DAY or end > _DAY or m > 59 or to_m > 59:
            return None
        found.append((begin, end))
    return found


def _interval(day: int, begin: int, end: int) -> tuple[int, int]:
    close = day * _DAY + end + (_DAY if end <= begin else 0)
    return day * _DAY + begin, close if close <= WEEK else close - WEEK
