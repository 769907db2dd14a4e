"""Requests by raw ids, as columns: made of what ``rank`` is given, checked, and read as numbers.

Shapes: R requests.
"""

import math
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..data.arrays import one_array
from ..data.raw.columns import MOST_OFFSET
from ..data.raw.times import YEAR_1990, looks_like
from ..data.urls import fetched, place

_YEAR_2100 = 4_102_444_800
REQUESTS = 1_024
"""Requests of a table that are ranked at a time."""
COLUMNS = ("user_id", "time", "lat", "lon", "utc_offset", "history", "history_time", "candidates")
"""What a request may have, beside own columns of interactions."""


def as_table(
    user: Any,
    place: Any,
    time: Any,
    history: Any,
    candidates: Any,
    utc_offset: Any,
    own: Mapping[str, Any],
    user_type: pa.DataType,
    item_type: pa.DataType,
) -> pa.Table:
    """What ``Ranker.rank`` was given, one request or a list of them, as the columns that ``Ranker.predict`` takes.

    Raises:
        ValueError, TypeError: as ``Ranker.rank``.
    """
    many = isinstance(user, Sequence | np.ndarray | pa.Array | pa.ChunkedArray) and not isinstance(user, str | bytes)
    if isinstance(user, Iterable) and not many and not isinstance(user, str | bytes):
        raise TypeError(f"user: got {type(user).__name__}, expected a raw id, or a list of them")
    if not isinstance(own, Mapping):
        raise TypeError(f"own: got {own!r}, expected own columns of interactions by name, as {{'device': 'ios'}}")
    if not many:
        user, place, time, utc_offset = [user], [place], [time], [utc_offset]
        history, candidates = (None if x is None else [x] for x in (history, candidates))
        own = {name: [value] for name, value in own.items()}
    given = {"place": place, "time": time, "history": history, "candidates": candidates, **own}
    if utc_offset is not None:
        given["utc_offset"] = utc_offset
    for name, values in given.items():
        if values is None and name not in ("place", "time"):
            continue
        if isinstance(values, str | bytes) or not isinstance(values, Sized | None):
            raise TypeError(f"{name}: got {values!r}, expected a list, one a request, as there is a list of users")
        got = 0 if values is None else len(values)
        if got != len(user):
            raise ValueError(f"{name}: got {got}, expected {len(user)}, one a request")
    columns: dict[str, Any] = {
        "user_id": _array(user, "user", "ids", user_type if not len(user) else None),
        "time": pa.array([seconds(t) for t in time], pa.int64()),
    }
    at = [(math.nan, math.nan) if p is None else _place(p) for p in place]
    columns |= {name: pa.array([p[i] for p in at], pa.float64()) for i, name in enumerate(("lat", "lon"))}
    if utc_offset is not None:
        columns["utc_offset"] = _array(utc_offset, "utc_offset", "minutes east of UTC", pa.float32())
    if history is not None:
        visits = [_visits(h) for h in history]
        columns["history"] = lists_of_ids([v[0] for v in visits], item_type, "history")
        columns["history_time"] = lists_of_ids([v[1] for v in visits], pa.int64(), "history")
    if candidates is not None:
        columns["candidates"] = lists_of_ids(candidates, item_type, "candidates")
    clash = [name for name in own if name in COLUMNS]
    if clash:
        raise ValueError(f"own: got {clash[0]!r}, expected own columns of interactions")
    columns |= {name: _array(values, name, "values of one type") for name, values in own.items()}
    return pa.table(columns)


def _array(values: Any, name: str, expected: str, kind: pa.DataType | None = None) -> pa.Array:
    """Arrow's array; an error of it says of what."""
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise TypeError(f"{name}: expected {expected}, got others: {error}") from error


def checked(asked: pa.Table, own: Sequence[str]) -> pa.Table:
    """Requests with whole seconds for times.

    Args:
        asked: columns of ``Ranker.predict``.
        own: own columns of interactions that the ranker knows.

    Raises:
        ValueError: a column is missing, unknown, or holds what it can't.
    """
    for name in ("user_id", "time"):
        if name not in asked.column_names:
            raise ValueError(f"requests: no column {name}; expected user_id and time, and what else is known")
    for name in asked.column_names:
        if name not in COLUMNS and name not in own:
            known = ", ".join((*COLUMNS, *own))
            raise ValueError(f"requests: got a column {name!r}, expected some of {known}; leave it out")
    for one, other in (("lat", "lon"), ("history", "history_time")):
        if (one in asked.column_names) != (other in asked.column_names):
            raise ValueError(f"requests: got one of {one} and {other} alone; expected both or none")
    asked = asked.set_column(asked.column_names.index("time"), "time", seconds_of(asked["time"], "time"))
    offset = np.abs(numbers_of(asked, "utc_offset", np.float32))
    if (offset > MOST_OFFSET).any():
        at = int((offset > MOST_OFFSET).argmax())
        got = asked["utc_offset"][at].as_py()
        raise ValueError(f"request {at}: got utc_offset {got:g}, expected minutes east of UTC, at most {MOST_OFFSET}")
    if "lat" not in asked.column_names:
        return asked
    lat, lon = (numbers_of(asked, name, np.float64) for name in ("lat", "lon"))
    for name, degrees, most in (("lat", lat, 90), ("lon", lon, 180)):
        wrong = np.isinf(degrees) | (np.abs(degrees) > most)
        if wrong.any():
            at = int(wrong.argmax())
            raise ValueError(f"request {at}: got {name} {degrees[at]:g}, expected degrees from -{most} to {most}")
    half = np.isnan(lat) != np.isnan(lon)
    if half.any():
        raise ValueError(f"request {int(half.argmax())}: got lat or lon alone; expected both or none")
    return asked


def is_whole(number: object) -> bool:
    return isinstance(number, numbers.Integral) and not isinstance(number, bool)


def seconds(time: Any, name: str = "time") -> int:
    """A moment as whole seconds since 1970 UTC.

    Raises:
        ValueError, TypeError: a datetime without a time zone, or neither a datetime nor a whole number.
    """
    if isinstance(time, datetime):
        if time.tzinfo is None:
            raise ValueError(f"{name}: got {time} without a time zone; say which, as with replace(tzinfo=UTC)")
        return math.floor(time.timestamp())
    if not is_whole(time):
        raise TypeError(f"{name}: got {time!r}, expected a datetime with a time zone, or whole seconds since 1970 UTC")
    if abs(int(time)) >= 1 << 63:
        raise ValueError(f"{name}: got {time}, expected whole seconds since 1970 UTC, of the years 1990 to 2099")
    return int(time)


def seconds_of(column: pa.Array | pa.ChunkedArray, name: str) -> pa.Array:
    """Whole seconds of a column of times, int64 without nulls.

    Raises:
        ValueError: another type, a null, or numbers that are no seconds of 1990 to 2100.
    """
    column = one_array(column)
    if pa.types.is_timestamp(column.type):
        if column.type.tz is None:
            raise ValueError(f"{name}: got {column.type} without a time zone; say which, as with tz='UTC'")
        column = pc.floor_temporal(column, unit="second").cast(pa.timestamp("s", column.type.tz)).cast(pa.int64())
    if not pa.types.is_integer(column.type) or column.null_count:
        raise ValueError(
            f"{name}: got {column.type} with {column.null_count:,} nulls, expected whole seconds since 1970 UTC, or "
            "timestamps with a time zone"
        )
    column = column.cast(pa.int64())
    check_years(column.to_numpy(), name)
    return column


def check_years(moments: NDArray[np.int64], name: str) -> None:
    """Raises ValueError where whole seconds are not of 1990 to 2099; says what they look like."""
    wrong = (moments < YEAR_1990) | (moments >= _YEAR_2100)
    if wrong.any():
        number = int(moments[wrong.argmax()])
        raise ValueError(
            f"{name}: got {number}, expected whole seconds since 1970 UTC, of the years 1990 to 2099; "
            f"it may be {looks_like(number) or 'of another unit'}"
        )


def _place(value: Any) -> tuple[float, float]:
    try:
        lat, lon = (float(x) for x in value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"place: got {value!r}, expected (latitude, longitude) in degrees, or None") from error
    if math.isnan(lat) or math.isnan(lon):
        raise ValueError(f"place: got {value!r}, expected degrees; None where it is unknown")
    return lat, lon


def _visits(history: Any) -> tuple[list[Any], list[int]]:
    """Items and times of (item, time) pairs."""
    if not isinstance(history, Iterable | None):
        raise ValueError(f"history: got {history!r}, expected (item id, time) pairs")
    pairs = [] if history is None else list(history)
    try:
        if any(isinstance(pair, str | bytes) for pair in pairs):
            raise TypeError
        items, times = [item for item, _ in pairs], [time for _, time in pairs]
    except (TypeError, ValueError) as error:
        raise ValueError(f"history: got {pairs[:1]}, expected (item id, time) pairs") from error
    return items, [seconds(time, "history") for time in times]


def lists_of_ids(values: Sequence[Any], kind: pa.DataType, name: str) -> pa.Array:
    """Lists of ids, one a request.

    Raises:
        TypeError: what is no list, or ids of several types.
    """
    lists: list[Any] = []
    for x in values:
        if isinstance(x, str | bytes) or not isinstance(x, Iterable):
            raise TypeError(f"{name}: got {x!r}, expected a list")
        lists.append(x if isinstance(x, Sequence | np.ndarray | pa.Array | pa.ChunkedArray) else list(x))
    arrays = [one_array(_array(x, name, f"ids of one type, {kind}", None if len(x) else kind)) for x in lists]
    filled = [x for x in arrays if len(x)]
    if len({x.type for x in filled}) > 1:  # of one request integers, of another one text
        filled = [x if pa.types.is_floating(x.type) else x.cast(kind) for x in filled]
    if len({x.type for x in filled}) > 1:
        raise TypeError(f"{name}: got {', '.join(sorted({str(x.type) for x in filled}))}, expected ids of type {kind}")
    flat = pa.concat_arrays(filled) if filled else pa.array([], kind)
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *map(len, arrays)]), pa.int32()), flat)


def flat(column: pa.Array | pa.ChunkedArray, name: str) -> tuple[NDArray[np.int64], pa.Array]:
    """Where each request's entries are, [R+1], and the entries; a null list is an empty one."""
    column = one_array(column)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise ValueError(f"{name}: got a column of {column.type}, expected a list a request")
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), column.flatten()


def numbers_of(asked: pa.Table, name: str, kind: type) -> NDArray[Any]:
    """A column of numbers, NaN for null or where there is no such column."""
    if name not in asked.column_names:
        return np.full(len(asked), np.nan, kind)
    column = one_array(asked[name])
    try:
        column = column.cast(pa.from_numpy_dtype(kind))
    except pa.ArrowException as error:
        raise ValueError(f"{name}: got a column of {column.type}, expected numbers ({error})") from error
    return np.array(column.fill_null(float("nan")).to_numpy())


def pieces(requests: pa.Table | Path | str) -> Iterator[pa.Table]:
    if isinstance(requests, pa.Table):
        yield from (requests.slice(start, REQUESTS) for start in range(0, len(requests), REQUESTS))
        return
    with pq.ParquetFile(fetched(place(Path(requests)))) as file:
        for batch in file.iter_batches(REQUESTS):
            yield pa.Table.from_batches([batch])
