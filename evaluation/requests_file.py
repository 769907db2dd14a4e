"""What a user asks ``placerank generate``: files of requests, and of places that opened since."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..data.raw.checks import is_text
from ..data.raw.columns import MOST_OFFSET
from ..data.raw.hours import EXPECTED, HOURS, OPENING_HOURS, is_hours, opening_hours
from ..data.raw.parts import open_parquet
from ..data.urls import fetched


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
        file: has user_id, time (unix seconds, or a timestamp), and lat and lon, and utc_offset (minutes), where known.
        users: raw ids by user row.

    Raises:
        ValueError: columns that are missing or of another type.
    """
    with open_parquet(fetched(file)) as parquet:
        table = parquet.read()
    if lacking := sorted({"user_id", "time"} - set(table.column_names)):
        raise ValueError(f"{file}: no column {lacking[0]}; expected user_id and time, and lat and lon where known")
    ids, time = table["user_id"], table["time"]
    if ids.type != users.type:
        raise ValueError(f"{file}: user_id is {ids.type}, expected {users.type} as in the prepared data")
    if pa.types.is_timestamp(time.type):
        time = pc.cast(pc.cast(time, pa.timestamp("s", time.type.tz), safe=False), pa.int64())
    if not pa.types.is_integer(time.type) or time.null_count:
        raise ValueError(
            f"{file}: time is {time.type} with {time.null_count:,} nulls, expected unix seconds or a timestamp"
        )
    row = pc.fill_null(pc.index_in(ids, value_set=users, skip_nulls=True), 0).to_numpy()
    if ("lat" in table.column_names) != ("lon" in table.column_names):
        raise ValueError(f"{file}: has lat or lon alone; expected both or none")
    unknown = pa.chunked_array([pa.nulls(len(table), pa.float32())])
    found = []
    for name, unit, most in (("lat", "degrees", 90), ("lon", "degrees", 180), ("utc_offset", "minutes", MOST_OFFSET)):
        values = table[name] if name in table.column_names else unknown
        kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal, pa.types.is_null)
        if not any(is_kind(values.type) for is_kind in kinds):
            raise ValueError(f"{file}: {name} is {values.type}, expected a number of {unit}")
        numbers = pc.cast(values, pa.float32(), safe=False).to_numpy().copy()
        if (np.abs(numbers) > most).any():
            raise ValueError(f"{file}: {name} of {np.nanmax(np.abs(numbers)):g}, expected {unit} of at most {most}")
        found.append(numbers)
    return Asked(ids, row.astype(np.int64), time.to_numpy().astype(np.int64), *found)


def read_places(file: Path, items: pa.Table) -> pa.Table:
    """Places that opened since, of a Parquet file with item_id, lat and lon, and opening_hours where known.

    Args:
        file: the file.
        items: those of the catalog, with the same columns.

    Returns:
        The columns of ``items``, and ``opening_hours`` as the catalog has them.

    Raises:
        ValueError: a column is missing, ids are of another type, there twice, or in the catalog already; opening hours
            that are none.
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
    table = table.select(["item_id", "lat", "lon"])
    ids = table["item_id"]
    if ids.type != items["item_id"].type:
        raise ValueError(f"{file}: item_id is {ids.type}, expected {items['item_id'].type} as in the prepared data")
    if ids.null_count or len(pc.unique(ids)) < len(ids):
        raise ValueError(f"{file}: an item_id is missing or there twice; expected each place once")
    if (there := pc.sum(pc.is_in(ids, value_set=items["item_id"])).as_py() or 0) > 0:
        raise ValueError(f"{file}: {there:,} of {len(ids):,} places are in the prepared data already; leave them out")
    return table.cast(items.schema).append_column(OPENING_HOURS, known)
