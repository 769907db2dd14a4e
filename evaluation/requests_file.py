"""What a user asks ``placerank generate``: files of requests, and of places that opened since."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..data.urls import fetched


@dataclass(frozen=True)
class Asked:
    """Requests, B of them.

    Attributes:
        user_id: raw ids, [B].
        user_row: in the vocabulary, 0 for users whom training did not know, int64 [B].
        time: unix seconds, int64 [B].
        lat, lon: degrees, NaN where unknown, float32 [B].
    """

    user_id: pa.ChunkedArray
    user_row: NDArray[np.int64]
    time: NDArray[np.int64]
    lat: NDArray[np.float32]
    lon: NDArray[np.float32]


def read_requests(file: Path, users: pa.ChunkedArray) -> Asked:
    """Requests of a Parquet file.

    Args:
        file: has user_id, time (unix seconds, or a timestamp), and lat and lon where known.
        users: raw ids by user row.

    Raises:
        ValueError: columns that are missing or of another type.
    """
    table = pq.read_table(fetched(file))
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
    nowhere = pa.chunked_array([pa.nulls(len(table), pa.float32())])
    lat, lon = (
        pc.cast(table[c] if c in table.column_names else nowhere, pa.float32()).to_numpy() for c in ("lat", "lon")
    )
    for name, degrees, most in (("lat", lat, 90), ("lon", lon, 180)):
        if (np.abs(degrees) > most).any():
            raise ValueError(f"{file}: {name} of {np.nanmax(np.abs(degrees)):g}, expected degrees of at most {most}")
    return Asked(ids, row.astype(np.int64), time.to_numpy().astype(np.int64), lat.copy(), lon.copy())


def read_places(file: Path, items: pa.Table) -> pa.Table:
    """Places that opened since, of a Parquet file with item_id, lat and lon.

    Args:
        file: the file.
        items: those of the catalog, with the same columns.

    Raises:
        ValueError: a column is missing, ids are of another type, there twice, or in the catalog already.
    """
    table = pq.read_table(fetched(file))
    if lacking := [c for c in ("item_id", "lat", "lon") if c not in table.column_names]:
        raise ValueError(f"{file}: no column {lacking[0]}; expected item_id, lat and lon")
    table = table.select(["item_id", "lat", "lon"])
    ids = table["item_id"]
    if ids.type != items["item_id"].type:
        raise ValueError(f"{file}: item_id is {ids.type}, expected {items['item_id'].type} as in the prepared data")
    if ids.null_count or len(pc.unique(ids)) < len(ids):
        raise ValueError(f"{file}: an item_id is missing or there twice; expected each place once")
    if (there := pc.sum(pc.is_in(ids, value_set=items["item_id"])).as_py() or 0) > 0:
        raise ValueError(f"{file}: {there:,} of {len(ids):,} places are in the prepared data already; leave them out")
    return table.cast(items.schema)
