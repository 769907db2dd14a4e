"""Files of requests and of places that opened: read, and what they can't hold told by file, column and row."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from placerank.evaluation.requests_file import read_places, read_requests

T = 1_700_000_000
NUMBERS, TEXTS = pa.chunked_array([pa.array([None, 7, 9])]), pa.chunked_array([pa.array([None, "7", "b"])])
ITEMS = pa.table({"item_id": pa.array([None, 1, 2]), "lat": [math.nan, 50.0, 51.0], "lon": [math.nan, 4.0, 5.0]})


def written(tmp_path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), file := tmp_path / "asked.parquet")
    return file


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint8(), pa.int64(), pa.string(), pa.large_string()])
def test_requests(tmp_path: Path, kind: pa.DataType) -> None:
    """Ids of whatever type of whole numbers or text; moments with and without a zone; what is unknown is NaN."""
    users = NUMBERS if pa.types.is_integer(kind) else TEXTS
    ids = pa.array([7, None, 8]).cast(kind)
    for time in (pa.array([T] * 3), *(pa.array([T * 1000 + 9] * 3, pa.timestamp("ms", tz)) for tz in (None, "UTC"))):
        place = {"lat": [50, None, None], "lon": pa.array([4.5, math.nan, None]), "utc_offset": pa.array([60, None, 0])}
        got = read_requests(written(tmp_path, {"user_id": ids, "time": time, **place}), users)
        assert got.user_row.tolist() == [1, 0, 0] and got.time.tolist() == [T] * 3
        assert got.user_id.type == users.type and got.user_id.to_pylist() == ids.cast(users.type).to_pylist()
        np.testing.assert_array_equal(got.lat, np.float32([50, np.nan, np.nan]))
        np.testing.assert_array_equal(got.lon, np.float32([4.5, np.nan, np.nan]))
        np.testing.assert_array_equal(got.utc_offset, np.float32([60, np.nan, 0]))


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"time": None}, "no column time; expected user_id and time"),
        ({"user_id": ["a"]}, "user_id is string, expected int64 as in the prepared data"),
        ({"user_id": [1.0]}, "user_id is double, expected int64"),
        ({"time": [1.5]}, "time: got double with 0 nulls, expected whole seconds"),
        ({"time": pa.array([None], pa.int64())}, "time: got int64 with 1 nulls"),
        ({"time": [T * 1000]}, "milliseconds since 1970: divide them by 1,000"),
        ({"time": [0]}, "time: got 0, expected whole seconds since 1970 UTC, of the years 1990 to 2099"),
        ({"lat": [1.0]}, "got one of lat and lon alone; expected both or none"),
        ({"lat": [1.0], "lon": pa.array([None], pa.float64())}, "request 0: got lat or lon alone"),
        ({"lat": [91.0], "lon": [0.0]}, "request 0: got lat 91, expected degrees from -90 to 90"),
        ({"lat": ["x"], "lon": [0.0]}, "lat: got a column of string, expected numbers"),
        ({"utc_offset": [1500]}, "request 0: got utc_offset 1500, expected minutes east of UTC"),
        ({"utc_offset": ["+02:00"]}, "utc_offset: got a column of string, expected numbers"),
        ({"utc": [60]}, "got a column 'utc', expected some of user_id, time, lat, lon, utc_offset; leave it out"),
        ({"history": [[1]]}, "got a column 'history'"),
    ],
)
def test_requests_that_can_not_be(tmp_path: Path, columns: dict[str, Any], told: str) -> None:
    all_ = {"user_id": [7], "time": [T]} | columns
    file = written(tmp_path, {name: values for name, values in all_.items() if values is not None})
    with pytest.raises(ValueError, match=told) as error:
        read_requests(file, NUMBERS)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


def test_places(tmp_path: Path) -> None:
    columns = {"lon": [3], "name": ["x"], "item_id": pa.array([5], pa.int16()), "lat": pa.array([50.5], pa.float32())}
    got = read_places(written(tmp_path, columns | {"opening_hours": ["24/7"]}), ITEMS)
    assert got.column_names == ["item_id", "lat", "lon", "opening_hours"]
    assert got.drop_columns("opening_hours").to_pylist() == [{"item_id": 5, "lat": 50.5, "lon": 3.0}]
    none = {"item_id": pa.array([], pa.int64()), "lat": pa.array([], pa.float64()), "lon": pa.array([], pa.float64())}
    assert len(read_places(written(tmp_path, none), ITEMS)) == 0


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"lat": None}, "no column lat; expected item_id, lat and lon"),
        ({"item_id": [1, 5]}, "1 of 2 places are in the prepared data already"),
        ({"item_id": [5, 5]}, "an item_id is missing or there twice"),
        ({"item_id": ["5", "6"]}, "item_id is string, expected int64 as in the prepared data"),
        ({"lat": [50.0, 95.0]}, "row 1, lat: got 95.0, expected degrees from -90 to 90"),
        ({"lon": [4.0, None]}, "row 1, lon: got None, expected degrees from -180 to 180"),
        ({"lon": [math.nan, 4.0]}, "row 0, lon: got nan, expected degrees"),
        ({"lat": ["50", "x"]}, "lat: got a column of string, expected numbers"),
        ({"opening_hours": [None, "late"]}, "row 1, opening_hours: got 'late', expected opening hours such as"),
        ({"opening_hours": [1, 2]}, "opening_hours is int64, expected string"),
    ],
)
def test_places_that_can_not_be(tmp_path: Path, columns: dict[str, Any], told: str) -> None:
    all_ = {"item_id": [5, 6], "lat": [50.0, 51.0], "lon": [4.0, 5.0]} | columns
    file = written(tmp_path, {name: values for name, values in all_.items() if values is not None})
    with pytest.raises(ValueError, match=told) as error:
        read_places(file, ITEMS)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)
