"""Districts: near items share one, names are stable, new items find theirs."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pygeohash import decode_exactly

from placerank.tokenization.text.districts import DistrictConfig, Districts, with_districts

RNG = np.random.default_rng(0)
TOWNS = np.array([[52.0, 5.0], [52.1, 5.3], [51.5, 4.2], [-17.8, 179.999]])  # the last one lies on both sides of 180°
TOWN = RNG.integers(0, 4, 400)
LAT = TOWNS[TOWN, 0] + RNG.normal(0, 0.004, 400)
LON = (TOWNS[TOWN, 1] + RNG.normal(0, 0.004, 400) + 180) % 360 - 180


def test_towns_become_districts() -> None:
    districts = Districts.fit(LAT, LON, DistrictConfig(items_per_district=100))
    names = np.array(districts.of(LAT, LON).to_pylist())
    assert len(districts.names) == 4
    assert [len(set(names[t == TOWN])) for t in range(4)] == [1, 1, 1, 1]
    assert len(set(names)) == 4
    moved = np.abs(districts.lat[:, None] - TOWNS[:, 0]).min(1)
    assert moved.max() < 0.01


def test_sizes_are_near_what_was_asked_for() -> None:
    lat, lon = 52 + RNG.normal(0, 0.1, 3000), 5 + RNG.normal(0, 0.1, 3000)
    names = Districts.fit(lat, lon, DistrictConfig(items_per_district=100)).of(lat, lon).to_pylist()
    _, counts = np.unique(names, return_counts=True)
    assert len(counts) == 30 and np.median(counts) > 50 and counts.max() < 400


def test_saved_districts_place_new_items_alike(tmp_path: Path) -> None:
    districts = Districts.fit(LAT, LON, DistrictConfig(items_per_district=30))
    districts.save(tmp_path / "districts.parquet")
    again = Districts.load(tmp_path / "districts.parquet")
    assert again.of(LAT, LON).equals(districts.of(LAT, LON))
    assert again.of(np.array([np.nan, LAT[0]]), np.array([1.0, LON[0]])).null_count == 1


def test_near_districts_have_names_that_start_alike() -> None:
    districts = Districts.fit(LAT, LON, DistrictConfig(items_per_district=20))
    of_first = np.array(districts.of(LAT[TOWN == 0], LON[TOWN == 0]).to_pylist())
    assert len(set(of_first)) > 1 and len({name[:4] for name in of_first}) == 1
    assert len(set(districts.names)) == len(districts.names)
    for name, lat, lon in zip(districts.names.tolist(), districts.lat, districts.lon, strict=True):
        cell = decode_exactly(name)
        assert abs(cell.latitude - lat) <= cell.latitude_error and abs(cell.longitude - lon) <= cell.longitude_error
    alone = Districts.fit(np.array([57.64911]), np.array([10.40744]), DistrictConfig())
    assert alone.names.tolist() == ["u4pru"]  # as Wikipedia's example begins


def table(districts: list[str | None]) -> pa.Table:
    return pa.table({"district": pa.array(districts, pa.string()), "lat": LAT[:4], "lon": LON[:4]})


def test_derived_only_where_asked_for_or_missing() -> None:
    given = table(["a", "b", None, None])
    assert with_districts(given, DistrictConfig())[0] is given
    few = table(["a", None, None, None])
    filled, districts = with_districts(few, DistrictConfig())
    assert districts is not None and filled["district"].null_count == 0
    assert filled.column_names == few.column_names
    assert with_districts(few, DistrictConfig(derive="never"))[0] is few
    assert "a" not in with_districts(given, DistrictConfig(derive="always"))[0]["district"].to_pylist()
    assert with_districts(few.drop_columns("district"), DistrictConfig())[0]["district"].equals(filled["district"])


def test_one_point_is_one_district_and_no_point_is_told() -> None:
    same = np.full(500, 52.0), np.full(500, 5.0)
    assert len(Districts.fit(*same, DistrictConfig(items_per_district=10)).names) == 1
    with pytest.raises(ValueError, match="none of the 3 items has coordinates"):
        Districts.fit(np.full(3, np.nan), np.zeros(3), DistrictConfig())
    with pytest.raises(TypeError, match=r"districts.derive: got 'yes', expected one of auto, always, never"):
        DistrictConfig(derive="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"items_per_district=0: expected at least 1"):
        DistrictConfig(items_per_district=0)


def test_of_many_items_some_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third, in whatever blocks: about the same districts, and as many."""
    rows = RNG.integers(0, 400, 3000)
    items = pa.table({"lat": LAT[rows], "lon": LON[rows]})
    every, _ = with_districts(items, DistrictConfig(items_per_district=750))
    monkeypatch.setattr("placerank.tokenization.text.districts._MOST_ITEMS", 1_000)
    cut = pa.concat_tables([items.slice(0, 700), items.slice(700, 1), items.slice(701)])
    some, districts = with_districts(cut, DistrictConfig(items_per_district=750))
    assert districts is not None and len(districts.names) == 4
    again, _ = with_districts(items, DistrictConfig(items_per_district=750))
    assert some["district"].to_pylist() == again["district"].to_pylist()
    pairs = zip(some["district"].to_pylist(), every["district"].to_pylist(), strict=True)
    assert np.mean([a[:5] == b[:5] for a, b in pairs]) > 0.9
