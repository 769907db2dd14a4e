"""Foursquare OS Places and Overture Maps beside one's own interactions: small tables of the published columns."""

import struct
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from placerank.data.manifest import read_manifest
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.data.raw.checks import BadRows
from placerank.data.raw.columns import DataError
from placerank.data.raw.readers import convert
from placerank.data.raw.schema import iter_interactions, read_items

TEXT = pa.string()
BBOX = pa.struct([("xmin", pa.float32()), ("xmax", pa.float32()), ("ymin", pa.float32()), ("ymax", pa.float32())])
FSQ = pa.schema(
    [
        *((n, TEXT) for n in ("fsq_place_id", "name")), ("latitude", pa.float64()), ("longitude", pa.float64()),
        *((n, TEXT) for n in ("address", "locality", "region", "postcode", "admin_region", "post_town", "po_box",
                              "country", "date_created", "date_refreshed", "date_closed", "tel", "website", "email")),
        ("facebook_id", pa.int64()), ("instagram", TEXT), ("twitter", TEXT), ("fsq_category_ids", pa.list_(TEXT)),
        ("fsq_category_labels", pa.list_(TEXT)), ("placemaker_url", TEXT), ("unresolved_flags", pa.list_(TEXT)),
        ("geom", pa.binary()), ("bbox", BBOX),
    ]
)  # fmt: skip
NAMES = pa.struct(
    [("primary", TEXT), ("common", pa.map_(TEXT, TEXT)), ("rules", pa.list_(pa.struct([("variant", TEXT)])))]
)
ADDRESS = pa.struct([(n, TEXT) for n in ("freeform", "locality", "postcode", "region", "country")])
OVERTURE = pa.schema(
    [
        ("id", TEXT), ("geometry", pa.binary()), ("bbox", BBOX), ("version", pa.int32()),
        ("sources", pa.list_(pa.struct([("property", TEXT), ("dataset", TEXT)]))), ("names", NAMES),
        ("categories", pa.struct([("primary", TEXT), ("alternate", pa.list_(TEXT))])), ("basic_category", TEXT),
        ("taxonomy", pa.struct([("primary", TEXT), ("hierarchy", pa.list_(TEXT)), ("alternates", pa.list_(TEXT))])),
        ("confidence", pa.float64()), ("websites", pa.list_(TEXT)),
        ("brand", pa.struct([("wikidata", TEXT), ("names", NAMES)])), ("addresses", pa.list_(ADDRESS)),
        ("operating_status", TEXT), ("theme", TEXT), ("type", TEXT),
    ]
)  # fmt: skip


def wkb(lon: float, lat: float, order: str = "<") -> bytes:
    return struct.pack(f"{order}BIdd", int(order == "<"), 1, lon, lat)


FSQ_ROWS: list[dict[str, Any]] = [
    {"fsq_place_id": "a1", "name": "Ramen Ya", "latitude": 40.7, "longitude": -74.0, "locality": "New York",
     "region": "NY", "country": "US", "fsq_category_ids": ["x", "y", "z"],
     "fsq_category_labels": ["Dining and Drinking > Restaurant > Ramen", "Retail", "Event > Concert"]},
    {"fsq_place_id": "a2", "name": "Gone", "latitude": 40.71, "longitude": -74.0, "date_closed": "2023-05-01"},
    {"fsq_place_id": "a3", "name": None, "latitude": 40.72, "longitude": -74.01, "date_closed": "", "country": "FR",
     "fsq_category_labels": [], "unresolved_flags": ["duplicate"]},
    {"fsq_place_id": "a4", "name": "Where", "latitude": None, "longitude": -74.0},
    {"fsq_place_id": "a5", "name": "Two plain", "latitude": 40.73, "longitude": -74.02, "region": "GB-SCT",
     "country": "GB", "fsq_category_labels": [None, "Retail", "Event"], "unresolved_flags": []},
    {"fsq_place_id": "a6", "name": " ", "latitude": 40.74, "longitude": -74.03, "region": "Bavaria"},
]  # fmt: skip
OVERTURE_ROWS: list[dict[str, Any]] = [
    {"id": "o1", "geometry": wkb(-97.7431, 30.2672), "names": {"primary": "Sushi & Gas"}, "confidence": 0.85,
     "basic_category": "casual_eatery", "categories": {"primary": "gas_station_sushi", "alternate": ["ignored"]},
     "taxonomy": {"primary": "gas_station_sushi", "alternates": ["gas_station", "sushi_restaurant"],
                  "hierarchy": ["food_and_drink", "restaurant", "casual_eatery", "gas_station_sushi"]},
     "brand": {"names": {"primary": "Bucky's"}}, "operating_status": "open",
     "addresses": [{"locality": "Austin", "region": "US-TX", "country": "US"}, {"locality": "Elsewhere"}]},
    {"id": "o2", "geometry": wkb(2.0, 48.0, ">"), "names": None, "confidence": None, "addresses": [],
     "categories": {"primary": "cafe", "alternate": ["bar"]}, "operating_status": "temporarily_closed"},
    {"id": "o3", "geometry": wkb(2.0, 48.0), "confidence": 0.0, "operating_status": "permanently_closed"},
    {"id": "o4", "geometry": wkb(2.0, 48.0), "confidence": 0.49},
    {"id": "o5", "geometry": None, "confidence": 0.9},
    {"id": "o6", "geometry": b"\x01\x03\x00\x00\x00", "confidence": 0.5, "basic_category": "bar",
     "categories": {"primary": "wine_bar"}, "bbox": {"xmin": 1.0, "xmax": 3.0, "ymin": 10.0, "ymax": 12.0},
     "addresses": [{"locality": " ", "region": "TX", "country": "US"}]},
    {"id": "o7", "geometry": wkb(float("nan"), float("nan")), "confidence": 1.0},
    {"id": "o8", "geometry": wkb(3.0, 4.0), "basic_category": "bar", "categories": {"primary": "bar"}},
]  # fmt: skip


def folder(path: Path, rows: list[dict[str, Any]], schema: pa.Schema, visited: list[str], parts: int = 1) -> Path:
    (path / "places").mkdir(parents=True)
    for number, some in enumerate(np.array_split(np.arange(len(rows)), parts)):
        table = pa.Table.from_pylist([rows[i] for i in some], schema)
        pq.write_table(table, path / "places" / f"places_{number:03}.parquet", row_group_size=2)
    n = len(visited)
    mine = {"user_id": [i % 3 for i in range(n)], "item_id": visited, "timestamp": [10**9 + i for i in range(n)]}
    pq.write_table(pa.table({**mine, "label": [1] * n, "page": [0] * n}), path / "interactions.parquet")
    pq.write_table(pa.table({"user_id": [0, 1], "age": ["30", None]}), path / "users.parquet")
    return path


def visits(out: Path) -> list[str]:
    ids = read_items(out)["item_id"]
    return [i for table in iter_interactions(out, ids) for i in table["item_id"].to_pylist()]


@pytest.mark.parametrize("parts", [1, 3])
def test_foursquare_os_places(tmp_path: Path, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("placerank.data.raw.places._BLOCK_ROWS", 2)
    source = folder(tmp_path / "in", FSQ_ROWS, FSQ, ["a1", "a2", "a3", "a4", "a1", "a5", "a6"], parts)
    out = convert(source, "places", {}, tmp_path / "raw")
    items = {i["item_id"]: i for i in read_items(out).to_pylist()}
    assert list(items) == ["a1", "a3", "a5", "a6"]
    assert items["a1"]["category"] == ["Dining and Drinking", "Restaurant", "Ramen"]
    assert (items["a1"]["province"], items["a1"]["city"], items["a1"]["lat"]) == ("US-NY", "New York", 40.7)
    assert items["a3"]["category"] is None and items["a3"]["province"] == "FR" and items["a3"]["name"] is None
    assert items["a5"]["category"] == ["Retail"] and items["a5"]["province"] == "GB-SCT"
    assert items["a6"]["province"] == "Bavaria" and items["a6"]["name"] is None and items["a6"]["category"] is None
    assert visits(out) == ["a1", "a3", "a1", "a5", "a6"]
    assert pq.read_table(out / "users.parquet")["age"].to_pylist() == ["30", None]
    manifest = read_manifest(out, "raw", verify=True)
    assert manifest["rows"] == {"places.parquet": 6, "interactions.parquet": 7, "users.parquet": 2}
    assert manifest["left_out"] == {
        "places that have closed": 1, "places without coordinates": 1, "interactions with places that were left out": 2,
    }  # fmt: skip
    assert manifest["noted"] == {
        "further categories of places (the first is taken)": 3, "places with unresolved flags": 1,
    }  # fmt: skip
    assert manifest["unused_columns"] == {} and "page" in pq.read_schema(out / "interactions.parquet").names


@pytest.mark.parametrize("date", [pa.date32(), pa.timestamp("us"), pa.null()])
def test_foursquare_dates_of_any_type(tmp_path: Path, date: pa.DataType) -> None:
    closed = {} if date == pa.null() else {"date_closed": datetime(2023, 5, 1)}
    rows = [FSQ_ROWS[0] | {"date_closed": None}, FSQ_ROWS[1] | {"date_closed": None} | closed]
    at = FSQ.get_field_index("date_closed")
    source = folder(tmp_path / "in", rows, FSQ.set(at, pa.field("date_closed", date)), ["a1"])
    out = convert(source, "places", {}, tmp_path / "raw")
    assert read_items(out)["item_id"].to_pylist() == (["a1", "a2"] if date == pa.null() else ["a1"])


@pytest.mark.parametrize("parts", [1, 4])
def test_overture(tmp_path: Path, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("placerank.data.raw.places._BLOCK_ROWS", 3)
    source = folder(tmp_path / "in", OVERTURE_ROWS, OVERTURE, [f"o{i}" for i in range(1, 9)], parts)
    out = convert(source, "places", {}, tmp_path / "raw")
    items = {i["item_id"]: i for i in read_items(out).to_pylist()}
    assert list(items) == ["o1", "o2", "o6", "o8"]
    assert items["o1"]["category"] == ["food_and_drink", "restaurant", "casual_eatery", "gas_station_sushi"]
    assert [items["o1"][n] for n in ("name", "brand", "province", "city", "lat", "lon")] == [
        "Sushi & Gas", "Bucky's", "US-TX", "Austin", 30.2672, -97.7431,
    ]  # fmt: skip
    assert [items["o2"][n] for n in ("name", "category", "brand", "province", "lat", "lon")] == [
        None, ["cafe"], None, None, 48.0, 2.0,
    ]  # fmt: skip
    assert [items["o6"][n] for n in ("category", "province", "city", "lat", "lon")] == [
        ["bar", "wine_bar"], "US-TX", None, 11.0, 2.0,
    ]  # fmt: skip
    assert items["o8"]["category"] == ["bar"]
    manifest = read_manifest(out, "raw")
    assert manifest["left_out"] == {
        "places that have closed": 1, "places of a confidence below 0.5": 1, "places without coordinates": 2,
        "interactions with places that were left out": 4,
    }  # fmt: skip
    assert manifest["noted"] == {"further categories of places (the first is taken)": 3}
    assert visits(out) == ["o1", "o2", "o6", "o8"]


def test_overture_without_what_came_later(tmp_path: Path) -> None:
    """A release before taxonomy, basic_category and operating_status; and one after categories."""
    old = pa.schema([f for f in OVERTURE if f.name not in ("taxonomy", "basic_category", "operating_status", "bbox")])
    new = pa.schema([f for f in OVERTURE if f.name not in ("categories", "geometry")])
    box = {"bbox": {"xmin": 2.0, "xmax": 2.0, "ymin": 48.0, "ymax": 48.0}}
    for name, schema, category in (("old", old, ["gas_station_sushi"]), ("new", new, ["food_and_drink", "restaurant"])):
        rows = [{k: v for k, v in (row | box).items() if k in schema.names} for row in OVERTURE_ROWS[:2]]
        out = convert(folder(tmp_path / name, rows, schema, ["o1"]), "places", {}, tmp_path / f"{name}-raw")
        first, second = read_items(out).to_pylist()
        assert first["category"][: len(category)] == category and second["lat"] == 48.0


def test_bad_places(tmp_path: Path) -> None:
    rows = [*FSQ_ROWS[:1], FSQ_ROWS[0] | {"fsq_place_id": "b", "latitude": 91.0}, FSQ_ROWS[0], FSQ_ROWS[4]]
    source = folder(tmp_path / "in", rows, FSQ, ["a1", "a5", "b"])
    with pytest.raises(DataError, match=r"places_000.parquet: row 1, column 'lat': got 91.0, expected a latitude"):
        convert(source, "places", {}, tmp_path / "raw")
    source = folder(tmp_path / "in2", rows[::2], FSQ, ["a1"], 2)
    with pytest.raises(DataError, match=r"places_001.parquet: row 0, column 'item_id': got 'a1', expected an id that"):
        convert(source, "places", {}, tmp_path / "raw")
    source = folder(tmp_path / "in3", rows, FSQ, ["a1", "a5", "b", "never"], 2)
    with BadRows("skip", tmp_path / "rejected") as bad_rows:
        out = convert(source, "places", {}, tmp_path / "raw", bad_rows)
    assert read_items(out)["item_id"].to_pylist() == ["a1", "a5"] and visits(out) == ["a1", "a5"]
    assert [(c["file"], c["column"], c["rows"]) for c in bad_rows.summary()] == [
        ("places_000.parquet", "lat", 1), ("places_001.parquet", "item_id", 1), ("interactions.parquet", "item_id", 2),
    ]  # fmt: skip
    aside = pq.read_table(tmp_path / "rejected" / "places-places_001-repeated.parquet").to_pylist()
    assert (aside[0]["row"], aside[0]["item_id"]) == (0, "a1")


def test_unusable_places(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", FSQ_ROWS, FSQ, ["a1"])
    with pytest.raises(FileNotFoundError, match=r"expected a folder with places.parquet .* interactions.parquet"):
        convert(source / "places", "places", {}, tmp_path / "raw")
    none = folder(tmp_path / "none", FSQ_ROWS[1:2], FSQ, ["a2"])
    with pytest.raises(DataError, match=r"no place of it can be used; left out: 1 places that have closed"):
        convert(none, "places", {}, tmp_path / "raw")
    other = folder(tmp_path / "other", [{"venue": "1"}], pa.schema([("venue", TEXT)]), ["1"])
    with pytest.raises(DataError, match=r"got columns \['venue'\], expected those of Foursquare OS Places .* Overture"):
        convert(other, "places", {}, tmp_path / "raw")
    labels = FSQ.set(FSQ.get_field_index("fsq_category_labels"), pa.field("fsq_category_labels", TEXT))
    flat = folder(tmp_path / "flat", [FSQ_ROWS[0] | {"fsq_category_labels": "x"}], labels, ["a1"])
    with pytest.raises(DataError, match=r"'fsq_category_labels': got type string, expected list of string"):
        convert(flat, "places", {}, tmp_path / "raw")


def test_prepare_from_places(tmp_path: Path) -> None:
    """All the way: places with one's own visits become samples."""
    rng = np.random.default_rng(0)
    rows = [
        FSQ_ROWS[0]
        | {"fsq_place_id": f"p{i}", "latitude": 40 + rng.random() / 50, "date_closed": "2020-01-01" * (i < 3)}
        for i in range(30)
    ]
    source = folder(tmp_path / "in", rows, FSQ, [f"p{i}" for i in rng.integers(0, 30, 400)])
    out = prepare(PrepareConfig(input=source, out=tmp_path / "prepared", format="places"))
    catalog = pq.read_table(out / "catalog.parquet")
    assert len(catalog) == 1 + 27 and catalog["province"][1].as_py() == "US-NY"
    left = read_manifest(out, "prepared")["left_out"]
    assert left["places that have closed"] == 3 and left["interactions with places that were left out"] > 0
