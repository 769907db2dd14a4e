"""What a user asks ``placerank generate``: files of requests, and of places that opened since."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..data.raw.checks import is_text
from ..data.raw.hours import EXPECTED, HOURS, OPENING_HOURS, is_hours, opening_hours
from ..data.raw.parts import open_parquet
from ..data.urls import fetched
from ..rankers.rank_requests import checked, numbers_of

_KNOWN = ("user_id", "time", "lat", "lon", "utc_offset")


@dataclass(frozen=True)
class Asked:
    """Requests, B of them.

    Attributes:
        user_id: raw ids, [B].
        user_row: in the vocabulary, 0 for users whom training did not know, int64 [B].
        time: unix seconds, int64 [B].
        lat, lon: degrees, NaN where unknown, float32 [B].
        utc_offset: minutes east of UTC, NaN where unknown, float32 [B].
    """

    user_id: pa.ChunkedArray
    user_row: NDArray[np.int64]
    time: NDArray[np.int64]
    lat: NDArray[np.float32]
    lon: NDArray[np.float32]
    utc_offset: NDArray[np.float32]


def read_requests(file: Path, users: pa.ChunkedArray) -> Asked:
    """Requests of a Parquet file.

    Args:
        file: has user_id, time (unix seconds, or a timestamp, UTC without a zone), and lat and lon, and utc_offset
            (minutes), where known.
        users: raw ids by user row.

    Raises:
        ValueError: columns that are missing, not known or of another type, or hold what can't be.
    """
    with open_parquet(fetched(file)) as parquet:
        table = parquet.read()
    for name in table.column_names:
        if name not in _KNOWN:
            raise ValueError(f"{file}: got a column {name!r}, expected some of {', '.join(_KNOWN)}; leave it out")
    if "time" in table.column_names and pa.types.is_timestamp(kind := table["time"].type) and kind.tz is None:
        at = table.column_names.index("time")
        table = table.set_column(at, "time", table["time"].cast(pa.timestamp(kind.unit, "UTC")))
    try:
        asked = checked(table, ())
        found = [numbers_of(asked, name, np.float32) for name in ("lat", "lon", "utc_offset")]
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    ids = _ids(asked["user_id"], users.type, f"{file}: user_id")
    row = pc.fill_null(pc.index_in(ids, value_set=users, skip_nulls=True), 0).to_numpy()
    return Asked(ids, row.astype(np.int64), asked["time"].to_numpy(), *found)


def _ids(ids: pa.ChunkedArray, kind: pa.DataType, name: str) -> pa.ChunkedArray:
    """Raw ids in the type that they have in the prepared data: whole numbers or text, of whatever Arrow type.

    Raises:
        ValueError: text where those are numbers, or numbers where they are text.
    """
    text = pa.types.is_string(kind)
    if not pa.types.is_null(ids.type) and not (is_text(ids.type) if text else pa.types.is_integer(ids.type)):
        raise ValueError(f"{name} is {ids.type}, expected {kind} as in the prepared data")
    return ids.cast(kind)


def read_places(file: Path, items: pa.Table) -> pa.Table:
    """Places that opened since, of a Parquet file with item_id, lat and lon, and opening_hours where known.

    Args:
        file: the file.
        items: those of the catalog, with the same columns.

    Returns:
        The columns of ``items``, and ``opening_hours`` as the catalog has them.

    Raises:
        ValueError: a column is missing, ids are of another type, there twice, or in the catalog already; degrees or
            opening hours that are none.
    """
    with open_parquet(fetched(file)) as parquet:
        table = parquet.read()
    if lacking := [c for c in ("item_id", "lat", "lon") if c not in table.column_names]:
        raise ValueError(f"{file}: no column {lacking[0]}; expected item_id, lat and lon")
    hours = table[OPENING_HOURS] if OPENING_HOURS in table.column_names else pa.chunked_array([pa.nulls(len(table))])
    if not (pa.types.is_null(hours.type) or is_text(hours.type) or is_hours(hours.type)):
        raise ValueError(f"{file}: {OPENING_HOURS} is {hours.type}, expected string, or {HOURS}")
    known, bad = opening_hours(hours)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"{file}: row {row}, {OPENING_HOURS}: got {hours[row].as_py()!r}, expected {EXPECTED}")
    ids = _ids(table["item_id"], items["item_id"].type, f"{file}: item_id")
    degrees = {}
    for name, most in (("lat", 90), ("lon", 180)):
        try:
            degrees[name] = numbers_of(table, name, np.float64)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        wrong = ~(np.abs(degrees[name]) <= most)  # NaN too: a place that is nowhere is never listed
        if wrong.any():
            row = int(wrong.argmax())
            got = table[name][row].as_py()
            raise ValueError(f"{file}: row {row}, {name}: got {got}, expected degrees from -{most} to {most}")
    if ids.null_count or len(pc.unique(ids)) < len(ids):
        raise ValueError(f"{file}: an item_id is missing or there twice; expected each place once")
    if (there := pc.sum(pc.is_in(ids, value_set=items["item_id"])).as_py() or 0) > 0:
        raise ValueError(f"{file}: {there:,} of {len(ids):,} places are in the prepared data already; leave them out")
    found = pa.table({"item_id": ids, **degrees}).select(items.column_names)
    return found.cast(items.schema).append_column(OPENING_HOURS, known)
