"""Foursquare's check-ins in their three forms: small files of the published columns, and ugly ones."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from placerank.data.manifest import read_manifest
from placerank.data.raw.checks import BadRows
from placerank.data.raw.columns import DataError
from placerank.data.raw.readers import convert
from placerank.data.raw.schema import iter_interactions, read_items

KAGGLE = (
    "userId,venueId,venueCategoryId,venueCategory,latitude,longitude,timezoneOffset,utcTimestamp\n"
    "470,49bbd6c0f964a520f4531fe3,4bf58dd8d48988d127951735,Arts & Crafts Store,40.719,-74.002,-240,"
    "Tue Apr 03 18:00:09 +0000 2012\n"
    '979,4a43c0aef964a520c6a61fe3,4bf58dd8d48988d1df941735,"Caf\u00e9, small",40.606,-74.044,-240,'
    "Tue Apr 03 18:00:25 +0000 2012\n"
    "470,4a43c0aef964a520c6a61fe3,4bf58dd8d48988d1df941735,,40.607,-74.045,not a number,"
    "Wed Apr 04 01:02:03 +0000 2012\n"
)
PLACES = (
    "3fd66200f964a52000e71ee3\t40.733596\t-74.003139\tJazz Club\tUS\n"
    "3fd66200f964a52000e81ee3\t40.758102\t-73.975734\tGym\tUS\n"
    "4b0a\t-22.56\t17.08\tCaf\u00e9\tNA\n"  # Namibia, not a missing value
    "4b0b\t-23.56\t17.08\t\t\n"
)
CHECK_INS = (
    "50756\t3fd66200f964a52000e71ee3\tTue Apr 03 18:00:06 +0000 2012\t-240\n"
    "190571\t4b0a\tTue Apr 03 18:00:07 +0000 2012\t120\n"
    "50756\t3fd66200f964a52000e81ee3\tWed Apr 04 18:00:08 +0000 2012\t-240\n"
)
CITIES = (
    "New York\t40.75\t-73.99\tUS\tUnited States\tOther\n"
    "Windhoek\t-22.57\t17.083\tNA\tNamibia\tNational and provincial capital\n"
    "Nowhere\tnorth\t17.083\tNA\tNamibia\tOther\n"
)


def visits(folder: Path) -> pa.Table:
    return pa.concat_tables(iter_interactions(folder, read_items(folder)["item_id"]))


def tist(folder: Path, places: str = PLACES, check_ins: str = CHECK_INS, cities: str | None = CITIES) -> Path:
    folder.mkdir()
    (folder / "dataset_TIST2015_POIs.txt").write_bytes(places.encode("latin-1"))
    (folder / "dataset_TIST2015_Checkins.txt").write_text(check_ins)
    if cities is not None:
        (folder / "dataset_TIST2015_Cities.txt").write_text(cities)
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_tsmc_as_csv(tmp_path: Path, packed: bool) -> None:
    data = KAGGLE.encode()
    name = "dataset_TSMC2014_NYC.csv" + ".gz" * packed
    (tmp_path / name).write_bytes(gzip.compress(data) if packed else data)
    out = convert(tmp_path, "foursquare", {}, tmp_path / "raw")
    items = read_items(out).to_pylist()
    assert [i["item_id"] for i in items] == ["49bbd6c0f964a520f4531fe3", "4a43c0aef964a520c6a61fe3"]
    assert items[1]["category"] == ["Caf\u00e9, small"] and (items[1]["lat"], items[1]["lon"]) == (40.606, -74.044)
    got = visits(out)
    assert got["user_id"].to_pylist() == ["470", "979", "470"] and got["label"].to_pylist() == [1, 1, 1]
    assert got["timestamp"].to_pylist() == [1333476009, 1333476025, 1333501323]  # UTC: the offset is not added
    assert got["utc_offset"].to_pylist() == [-240, -240, None]
    assert read_manifest(out, "raw")["rows"] == {name: 3}


def test_csv_and_text_are_the_same_check_ins(tmp_path: Path) -> None:
    rows = [line.replace('"', "").split(",") for line in KAGGLE.replace("\u00e9, small", "\u00e9").splitlines()[1:]]
    (tmp_path / "a.txt").write_text("".join("\t".join(row) + "\n" for row in rows))
    (tmp_path / "b.csv").write_text(KAGGLE.replace("\u00e9, small", "\u00e9"))
    text, table = (convert(tmp_path / n, "foursquare", {}, tmp_path / n[0]) for n in ("a.txt", "b.csv"))
    assert visits(text).equals(visits(table)) and read_items(text).equals(read_items(table))


def test_tsmc_csv_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "dataset_TSMC2014_TKY.csv"
    file.write_text(KAGGLE.replace("venueId,", "venue,"))
    with pytest.raises(DataError, match=r"TKY.csv: column 'venueId' is missing; found \['userId', 'venue',.*--format"):
        convert(tmp_path, "foursquare", {}, tmp_path / "raw")
    file.write_text(KAGGLE.replace("-74.044", "-274.044"))
    with pytest.raises(DataError, match=r"TKY.csv: line 3, column 'lon': got '-274.044', expected a longitude"):
        convert(tmp_path, "foursquare", {}, tmp_path / "raw")
    (tmp_path / "dataset_TSMC2014_NYC.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"got \['dataset_TSMC2014_NYC.txt', 'dataset_TSMC2014_TKY.csv'\]"):
        convert(tmp_path, "foursquare", {}, tmp_path / "raw")


@pytest.mark.parametrize("by_file", [False, True])
def test_tist2015(tmp_path: Path, by_file: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("placerank.data.raw.lines.BLOCK_BYTES", 80)
    source = tist(tmp_path / "tist")
    out = convert(source / "dataset_TIST2015_Checkins.txt" if by_file else source, "foursquare", {}, tmp_path / "raw")
    items = read_items(out).to_pylist()
    assert [i["category"] for i in items] == [["Jazz Club"], ["Gym"], ["Caf\u00e9"], None]
    assert [i["province"] for i in items] == ["US", "US", "NA", None]
    assert [i["city"] for i in items] == ["New York", "New York", "Windhoek", None]  # the last is 110 km off
    got = visits(out)
    assert got["user_id"].to_pylist() == ["50756", "190571", "50756"]
    assert got["item_id"].to_pylist() == ["3fd66200f964a52000e71ee3", "4b0a", "3fd66200f964a52000e81ee3"]
    assert got["timestamp"].to_pylist() == [1333476006, 1333476007, 1333562408]
    manifest = read_manifest(out, "raw", verify=True)
    assert sorted(manifest["rows"].values()) == [3, 3, 4]
    assert manifest["left_out"] == {"cities without coordinates": 1}


def test_tist2015_without_cities_and_with_bad_rows(tmp_path: Path) -> None:
    places = PLACES + "4b0c\t91\t17\tGym\tUS\n" + "4b0a\t1\t2\tGym\tUS\n" + "4b0d\t1\t2\n"
    check_ins = (
        CHECK_INS + "1\t4b0a\tTue Apr 33 18:00:07 +0000 2012\t120\n" + "1\tunheard\tTue Apr 03 18:00:07 +0000 2012\t0\n"
        "1\t4b0a\tTue Apr 03 18:00:07 +0000 2012\n" + "1\t4b0b\tTue Apr 03 18:00:09 +0000 2012\tnoon\n"
    )
    source = tist(tmp_path / "tist", places, check_ins, None)
    with pytest.raises(DataError, match=r"POIs.txt: line 7: got 3 fields, expected 5 fields separated by tabs"):
        convert(source, "foursquare", {}, tmp_path / "raw")
    with BadRows("skip", tmp_path / "rejected") as bad_rows:
        out = convert(source, "foursquare", {}, tmp_path / "raw", bad_rows)
    assert len(read_items(out)) == 4 and "city" in pq.read_schema(out / "items.parquet").names
    assert read_items(out)["city"].null_count == 4
    assert visits(out)["utc_offset"].to_pylist() == [-240, 120, -240, None]  # one that is none harms nobody
    assert [(c["file"].split("_")[-1], c["column"], c["rows"]) for c in bad_rows.summary()] == [
        ("POIs.txt", "line", 1), ("POIs.txt", "lat", 1), ("POIs.txt", "item_id", 1), ("Checkins.txt", "line", 1),
        ("Checkins.txt", "timestamp", 1), ("Checkins.txt", "item_id", 1),
    ]  # fmt: skip


def test_tist2015_without_places(tmp_path: Path) -> None:
    source = tist(tmp_path / "tist")
    (source / "dataset_TIST2015_POIs.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected one dataset_TIST2015_Checkins.txt and one .*_POIs.txt, got"):
        convert(source, "foursquare", {}, tmp_path / "raw")
