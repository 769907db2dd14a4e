"""Public formats become our schema; broken lines are told by file and line, or set aside."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placerank.data.manifest import read_manifest
from placerank.data.raw.hours import opening_hours
from placerank.data.raw.readers import convert, yelp_category, yelp_hours
from placerank.data.raw.schema import BadRows, DataError, iter_interactions, read_items

NYC = (
    "470\t49bbd6c0f964a520f4531fe3\t4bf58dd8d48988d127951735\tArts & Crafts Store\t40.719\t-74.002\t-240\t"
    "Tue Apr 03 18:00:09 +0000 2012\n"
    "979\t4a43c0aef964a520c6a61fe3\t4bf58dd8d48988d1df941735\tCaf\u00e9\t40.606\t-74.044\t-240\t"
    "Tue Apr 03 18:00:25 +0000 2012\n"
    "470\t4a43c0aef964a520c6a61fe3\t4bf58dd8d48988d1df941735\tCaf\u00e9\t40.607\t-74.045\t-240\t"
    "Wed Apr 04 01:02:03 +0000 2012\n"
)
SNAP = (
    "0\t2010-10-19T23:55:27Z\t30.2359091167\t-97.7951395833\t22847\n"
    "0\t2010-10-18T22:17:43Z\t30.2691029532\t-97.7493953705\t420315\n"
    "1\t2010-10-17T23:42:03Z\t30.2359091167\t-97.7951395833\t22847\n"
)


def interactions(folder: Path) -> pa.Table:
    return pa.concat_tables(iter_interactions(folder, read_items(folder)["item_id"]))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_foursquare(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "dataset_TSMC2014_NYC.txt").write_bytes(NYC.encode(encoding))
    out = convert(tmp_path, "foursquare", {}, tmp_path / "raw")
    items = read_items(out).to_pylist()
    assert [i["item_id"] for i in items] == ["49bbd6c0f964a520f4531fe3", "4a43c0aef964a520c6a61fe3"]
    assert items[1]["category"] == ["Caf\u00e9"] and items[1]["lat"] == 40.606 and items[1]["name"] is None
    visits = interactions(out)
    assert visits["user_id"].to_pylist() == ["470", "979", "470"]
    assert visits["timestamp"].to_pylist() == [1333476009, 1333476025, 1333501323]
    assert visits["label"].to_pylist() == [1, 1, 1]
    assert read_manifest(out, "raw", verify=True)["interactions"] == 3


def test_gowalla_plain_and_gzip(tmp_path: Path) -> None:
    plain, packed = tmp_path / "loc-gowalla_totalCheckins.txt", tmp_path / "again.txt.gz"
    plain.write_text(SNAP)
    packed.write_bytes(gzip.compress(SNAP.encode()))
    a, b = (convert(f, "gowalla", {}, tmp_path / f.name[:5]) for f in (plain, packed))
    assert interactions(a).equals(interactions(b)) and len(read_items(a)) == 2
    assert interactions(a)["timestamp"].to_pylist() == [1287532527, 1287440263, 1287358923]


def test_brightkite_without_locations(tmp_path: Path) -> None:
    source = tmp_path / "loc-brightkite_totalCheckins.txt"
    source.write_text(
        SNAP
        + "5\t2008-01-01T00:00:00Z\t0.0\t0.0\t00000000000000000000000000000000\n"
        + "5\t2008-01-01T00:00:00Z\t\t\t\n"
        + "\n"
        + "5\t2008-01-02T00:00:00Z\t1.5\t-2\tabc"  # no newline at the end
    )
    out = convert(source, "gowalla", {}, tmp_path / "raw")
    assert read_manifest(out, "raw")["left_out"] == {"check-ins without a location": 2}
    assert interactions(out)["item_id"].to_pylist() == ["22847", "420315", "22847", "abc"]


BUSINESS: list[dict[str, Any]] = [
    {"business_id": "b1", "name": "Ramen Ya", "categories": "Sushi Bars, Restaurants, Japanese", "latitude": 36.1,
     "longitude": -115.1, "city": "Las Vegas", "state": "NV", "attributes": {"RestaurantsPriceRange2": "u'2'", "X": 1}},
    {"business_id": "b2", "name": "Nowhere", "categories": None, "latitude": 36.2, "longitude": -115.2, "city": None,
     "state": "NV", "attributes": None, "hours": {"Monday": "9:0-17:0"}},
]  # fmt: skip
REVIEW: list[dict[str, Any]] = [
    {
        "review_id": "r1",
        "user_id": "u1",
        "business_id": "b2",
        "stars": 4.0,
        "date": "2018-07-07 22:09:11",
        "text": "a\tb",
    },
    {
        "review_id": "r2",
        "user_id": "u2",
        "business_id": "b1",
        "stars": 1.0,
        "date": "2012-01-03 15:28:18",
        "text": "\n",
    },
]


def yelp(folder: Path, business: str, review: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "yelp_academic_dataset_business.json").write_text(business)
    (folder / "yelp_academic_dataset_review.json").write_text(review)
    return folder


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(r) + "\n" for r in rows)


def test_yelp(tmp_path: Path) -> None:
    out = convert(yelp(tmp_path / "yelp", lines(BUSINESS), lines(REVIEW)), "yelp", {}, tmp_path / "raw")
    first, second = read_items(out).to_pylist()
    assert first["category"] == ["Restaurants", "Sushi Bars"] and first["price"] == 2 and first["province"] == "NV"
    assert second["category"] is None and second["price"] is None
    assert first["opening_hours"] is None and second["opening_hours"] == [{"open": 540, "close": 1020}]
    assert interactions(out).select(["user_id", "item_id", "timestamp", "label"]).to_pylist() == [
        {"user_id": "u1", "item_id": "b2", "timestamp": 1531001351, "label": 1},
        {"user_id": "u2", "item_id": "b1", "timestamp": 1325604498, "label": 1},
    ]


def test_yelp_hours(tmp_path: Path) -> None:
    """Midnight, always, a day that is closed beside others, no day at all; what is no time is told."""
    given = [
        {"Monday": "8:0-18:30", "Saturday": "17:5-2:0", "Sunday": "11:0-0:0"},
        dict.fromkeys(["Monday", "Tuesday"], "0:0-0:0"),
        {"Monday": "0:0-0:0", "Tuesday": "8:0-18:30"},
        {},
        None,
    ]
    found, bad = opening_hours(pa.chunked_array([yelp_hours(pa.chunked_array([pa.array(given)]))]))
    assert not bad.any() and [x and [tuple(i.values()) for i in x] for x in found.to_pylist()] == [
        [(480, 1110), (8225, 8760), (9300, 10080)],
        [(0, 1440), (1440, 2880)],
        [(1920, 2550)],
        None,
        None,
    ]
    odd = [{**BUSINESS[0], "hours": {"Monday": "morning"}}, BUSINESS[1]]
    with pytest.raises(
        DataError, match=r"line 1, column 'opening_hours': got 'Mo morning', expected opening hours such"
    ):
        convert(yelp(tmp_path / "yelp", lines(odd), lines(REVIEW)), "yelp", {}, tmp_path / "raw")


def test_yelp_category_without_a_top_level() -> None:
    got = yelp_category(pa.chunked_array([["Sushi Bars, Japanese", "Food", "", None, "Pets,  Dogs "]]))
    assert got.to_pylist() == [["Sushi Bars"], ["Food"], [], [], ["Pets", "Dogs"]]


def test_yelp_broken_line(tmp_path: Path) -> None:
    broken = '{"user_id": "u1", "business_id": "b1", "date": "2018-07-0\n'
    source = yelp(tmp_path / "yelp", lines(BUSINESS), lines(REVIEW) + broken + lines(REVIEW[:1]))
    with pytest.raises(DataError, match=r"review.json: line 3: got '\{\"user_id.*expected a JSON object with user_id"):
        convert(source, "yelp", {}, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
    with BadRows("skip", tmp_path / "rejected") as bad_rows:
        out = convert(source, "yelp", {}, tmp_path / "raw", bad_rows)
    assert len(interactions(out)) == 3 and bad_rows.total == 1
    aside = pq.read_table(tmp_path / "rejected" / "yelp_academic_dataset_review.json-lines.parquet").to_pylist()
    assert aside[0]["row"] == 3 and aside[0]["text"] == broken.strip()


def csv(folder: Path, items: str, visits: str, users: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "items.csv").write_text(items)
    (folder / "interactions.csv").write_text(visits)
    if users:
        (folder / "users.csv").write_text(users)
    return folder


ITEMS_CSV = 'venue,title,category,lat,lon,price\n007,"Joe\'s, ""the"" place",Food > Pizza,1.5,2,9.50\n8,,,-3,4e0,\n'
VISITS_CSV = "who,venue,timestamp,label\nx,007,2020-01-01T00:00:00Z,1\ny,8,1577836801,0\n"
COLUMNS = {"item_id": "venue", "name": "title", "user_id": "who"}


def test_csv(tmp_path: Path) -> None:
    out = convert(csv(tmp_path / "c", ITEMS_CSV, VISITS_CSV, "who,age\nx,30\ny,\n"), "csv", COLUMNS, tmp_path / "raw")
    first, second = read_items(out).to_pylist()
    assert first["item_id"] == "007" and first["name"] == 'Joe\'s, "the" place' and first["price"] == 9.5
    assert first["category"] == ["Food", "Pizza"] and second["category"] is None and second["name"] is None
    assert interactions(out)["timestamp"].to_pylist() == [1577836800, 1577836801]
    assert interactions(out)["label"].to_pylist() == [1, 0]
    assert "request_id" not in pq.read_schema(out / "interactions.parquet").names
    assert pq.read_table(out / "users.parquet").to_pylist() == [
        {"user_id": "x", "age": 30},
        {"user_id": "y", "age": None},
    ]


BAD_CSV = [
    (ITEMS_CSV + "9,n,c,91,0,1\n", VISITS_CSV, "items.csv: line 4, column 'lat': got '91', expected a latitude in"),
    (ITEMS_CSV + "9,n,c,north,0,1\n", VISITS_CSV, "items.csv: line 4, column 'lat': got 'north', expected a latitude"),
    (ITEMS_CSV + "9,n,c,nan,0,1\n", VISITS_CSV, "items.csv: line 4, column 'lat': got 'nan', expected a latitude"),
    (ITEMS_CSV + "9,n,c,1,0,cheap\n", VISITS_CSV, "items.csv: line 4, column 'price': got 'cheap', expected a price"),
    (
        ITEMS_CSV.replace("price", "opening_hours").replace("9.50", '"Mo 9:00-12:00,13:00-17:00"') + "9,n,c,1,0,noon\n",
        VISITS_CSV,
        "items.csv: line 4, column 'opening_hours': got 'noon', expected opening hours such as",
    ),
    (ITEMS_CSV + "8,n,c,1,0,1\n", VISITS_CSV, "line 4, column 'item_id': got '8', which line 3 has too, expected"),
    (ITEMS_CSV + "9,n,c,1\n", VISITS_CSV, "items.csv: line 4: got 4 fields in '9,n,c,1', expected 6 fields as in the"),
    (ITEMS_CSV, VISITS_CSV + "x,9,1577836801,1\n", "line 4, column 'item_id': got '9', expected an item_id that is in"),
    (
        ITEMS_CSV,
        VISITS_CSV + "x,8,yesterday,1\n",
        "line 4, column 'timestamp': got 'yesterday', expected a time between",
    ),
    (ITEMS_CSV, VISITS_CSV + "x,8,1577836801000,1\n", "got '1577836801000', expected a time between 1970 and 2200"),
    (ITEMS_CSV, VISITS_CSV + "x,8,1577836801,2\n", "line 4, column 'label': got '2', expected 0 or 1"),
    (ITEMS_CSV, VISITS_CSV + ",8,1577836801,1\n", "line 4, column 'user_id': got None, expected an id, not null"),
]


@pytest.mark.parametrize(("items", "visits", "message"), BAD_CSV, ids=range(len(BAD_CSV)))
def test_csv_bad_rows(tmp_path: Path, items: str, visits: str, message: str) -> None:
    source = csv(tmp_path / "c", items, visits)
    with pytest.raises(DataError) as error:
        convert(source, "csv", COLUMNS, tmp_path / "raw")
    assert message in str(error.value) and "--on-bad-rows skip" in str(error.value)
    with BadRows("skip", tmp_path / "rejected") as bad_rows:
        out = convert(source, "csv", COLUMNS, tmp_path / "raw", bad_rows)
    assert bad_rows.total == 1 and len(read_items(out)) == 2 and len(interactions(out)) == 2


def test_csv_columns(tmp_path: Path) -> None:
    source = csv(tmp_path / "c", ITEMS_CSV, VISITS_CSV)
    with pytest.raises(DataError, match=r"items.csv: column 'item_id' is missing; found \['venue', 'title'.*--columns"):
        convert(source, "csv", {}, tmp_path / "raw")
    with pytest.raises(
        ValueError, match="columns: got 'itemid', which is not a column of the schema; did you mean 'item_id'"
    ):
        convert(source, "csv", {"itemid": "venue"}, tmp_path / "raw")
    with pytest.raises(DataError, match="columns brand=chain name no column of the files"):
        convert(source, "csv", {**COLUMNS, "brand": "chain"}, tmp_path / "raw")
    with pytest.raises(FileNotFoundError, match=r"expected items.csv and interactions.csv .* got \['dataset"):
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "dataset.csv").write_text("")
        convert(tmp_path / "empty", "csv", {}, tmp_path / "raw")


def test_foursquare_bad_lines(tmp_path: Path) -> None:
    source = tmp_path / "f.txt"
    source.write_text(NYC + "1\t2\t3\n" + NYC.replace("40.719", "140.719").replace("03 18:00:09", "33 18:00:09"))
    with pytest.raises(DataError, match=r"f.txt: line 4: got 3 fields, expected 8 fields separated by tabs \(user_id"):
        convert(source, "foursquare", {}, tmp_path / "raw")
    source.write_text(NYC.replace("40.719", "140.719"))
    with pytest.raises(DataError, match=r"f.txt: line 1, column 'lat': got '140.719', expected a latitude"):
        convert(source, "foursquare", {}, tmp_path / "raw")
    source.write_text(NYC + NYC.replace("40.719", "140.719") + NYC[:-30] + "Tue Apr 33 2012\n")
    with BadRows("skip", tmp_path / "rejected") as bad_rows:
        out = convert(source, "foursquare", {}, tmp_path / "raw", bad_rows)
    assert len(interactions(out)) == 7
    assert [(c["column"], c["rows"]) for c in bad_rows.summary()] == [("lat", 1), ("timestamp", 1)]
    aside = pq.read_table(tmp_path / "rejected" / "f.txt-places.parquet").to_pylist()
    assert aside[0]["row"] == 4 and aside[0]["lat"] == "140.719"


def test_unusable_sources(tmp_path: Path) -> None:
    source = tmp_path / "loc-gowalla_totalCheckins.txt"
    source.write_text("")
    with pytest.raises(DataError, match=r"totalCheckins.txt: the file is empty \(0 bytes\)"):
        convert(source, "gowalla", {}, tmp_path / "raw")
    packed = tmp_path / "loc.txt.gz"
    packed.write_bytes(gzip.compress((SNAP * 1000).encode())[:-20])
    with pytest.raises(DataError, match=r"loc.txt.gz: cannot be read to its end"):
        convert(packed, "gowalla", {}, tmp_path / "raw")
    with pytest.raises(FileNotFoundError, match=r"expected one file \*TSMC2014\*.txt\* or \*TSMC2014\*.csv\*, got \["):
        convert(tmp_path, "foursquare", {}, tmp_path / "raw")
    with pytest.raises(ValueError, match="format: got 'xml', expected one of csv, foursquare, gowalla, yelp, places"):
        convert(tmp_path, "xml", {}, tmp_path / "raw")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="with format 'yelp', expected them with 'csv' alone"):
        convert(tmp_path, "yelp", {"item_id": "id"}, tmp_path / "raw")
    source.write_text("5\t2008-01-01T00:00:00Z\t0.0\t0.0\t00000000000000000000000000000000\n")
    with pytest.raises(DataError, match="got no interactions that can be used"):
        convert(source, "gowalla", {}, tmp_path / "raw")


def test_many_blocks_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "g.txt"
    source.write_text(
        "".join(f"{i % 7}\t2010-10-19T23:55:{i % 60:02}Z\t{i % 50}\t{-i}\t{i % 50}\n" for i in range(150))
    )
    whole = convert(source, "gowalla", {}, tmp_path / "whole")
    monkeypatch.setattr("placerank.data.raw.lines.BLOCK_BYTES", 64)
    parts = convert(source, "gowalla", {}, tmp_path / "parts")
    assert interactions(whole).equals(interactions(parts)) and read_items(whole).equals(read_items(parts))


def told(out: Path, bad_rows: BadRows | None = None) -> dict[str, Any]:
    """The manifest; in it every row of a file is kept, set aside or left out."""
    manifest = read_manifest(out, "raw")
    bad_rows = bad_rows or BadRows()
    aside = {file: sum(n for (f, _, _), n in bad_rows.counts.items() if f == file) for file in manifest["rows"]}
    left = {file: manifest["left_out"].get(f"lines of {file} that repeat the header", 0) for file in manifest["rows"]}
    kept = {file: manifest["rows"][file] - aside[file] - left[file] for file in manifest["rows"]}
    tables = {"items": "items.csv", "interactions": "interactions.csv", "users": "users.csv"}
    for table, file in tables.items():
        if file in kept:
            assert kept[file] == pq.read_metadata(out / f"{table}.parquet").num_rows
    if len(kept) == 1:
        left_out = sum(n for reason, n in manifest["left_out"].items())
        assert kept[next(iter(kept))] - left_out == manifest["interactions"]
    return manifest


def test_what_came_of_every_row(tmp_path: Path) -> None:
    header = ITEMS_CSV.split("\n")[0]
    items = ITEMS_CSV.replace("price\n", "price,stars\n").replace("9.50\n", "9.50,5\n").replace("4e0,\n", "4e0,,\n")
    items += '9,"open,c,1,2,3,4\n10,n,c,1,2,3\n11,n,c,91,2,3,4\n' + f"{header},stars\n" + "12,n,c,1,2,3,4\n"
    visits = VISITS_CSV + "x,12,1577836801,1\nx,99,1577836801,1\nx,12,1577836801\n"
    source = csv(tmp_path / "c", items, visits, "who,age\nx,30\nwho,age\ny,31\nx,32\n")
    with BadRows("skip", tmp_path / "rejected") as bad_rows:
        out = convert(source, "csv", COLUMNS, tmp_path / "raw", bad_rows)
    manifest = told(out, bad_rows)
    assert manifest["rows"] == {"items.csv": 7, "interactions.csv": 5, "users.csv": 4}
    assert manifest["left_out"] == {
        "lines of items.csv that repeat the header": 1, "lines of users.csv that repeat the header": 1,
    }  # fmt: skip
    assert manifest["unused_columns"] == {} and "stars" in pq.read_schema(out / "items.parquet").names
    assert [(c["file"], c["column"], c["rows"]) for c in bad_rows.summary()] == [
        ("items.csv", "line", 1), ("items.csv", "line", 1), ("items.csv", "lat", 1), ("interactions.csv", "line", 1),
        ("interactions.csv", "item_id", 1), ("users.csv", "user_id", 1),
    ]  # fmt: skip
    aside = pq.read_table(tmp_path / "rejected" / "users.csv.parquet").to_pylist()
    assert aside[0]["row"] == 5 and aside[0]["age"] == "32"  # the line of users.csv


def test_header_that_is_none_or_names_a_column_twice(tmp_path: Path) -> None:
    rows = ITEMS_CSV.split("\n", 1)[1]
    with pytest.raises(
        DataError, match=r"items.csv: column 'item_id' is missing; found \['007',.*in the header, the first"
    ):
        convert(csv(tmp_path / "a", rows, VISITS_CSV), "csv", COLUMNS, tmp_path / "raw")
    twice = ITEMS_CSV.replace("category,", "lat,", 1)
    with pytest.raises(DataError, match=r"items.csv: the header has 'lat' more than once \(columns 3 and 4\); rename"):
        convert(csv(tmp_path / "b", twice, VISITS_CSV), "csv", {**COLUMNS, "category": "lat"}, tmp_path / "raw")
    users = "who,user_id\nx,1\ny,2\n"
    with pytest.raises(DataError, match=r"users.csv: the header has 'user_id' more than once \(columns 1 and 2\)"):
        convert(csv(tmp_path / "c", ITEMS_CSV, VISITS_CSV, users), "csv", COLUMNS, tmp_path / "raw")
    unused = ITEMS_CSV.replace("price\n", "x,x\n").replace("9.50\n", "9.50,1\n").replace("4e0,\n", "4e0,,\n")
    out = convert(csv(tmp_path / "d", unused, VISITS_CSV), "csv", COLUMNS, tmp_path / "raw")
    assert told(out)["unused_columns"] == {"items.csv": ["x", "x"]}  # twice, but nobody asks for it


def test_files_of_which_nothing_is_left(tmp_path: Path) -> None:
    header, bad = ITEMS_CSV.split("\n")[0], "1,n,c,91,0,1\n2,n,c,92,0,1\n3,n\n"
    for number, (items, visits, message) in enumerate([
        (f"{header}\n", VISITS_CSV, "items.csv: the file has a header and no rows"),
        (f"{header}\n{bad}", VISITS_CSV, r"items.csv: no row of it can be used; 2 were set aside because of 'lat'"),
        (f"{header}\n3,n\n", VISITS_CSV, "items.csv: no row of it can be used; 1 were set aside because of 'line'"),
        (ITEMS_CSV, "who,venue,timestamp,label\n", "interactions.csv: the file has a header and no rows"),
        (ITEMS_CSV, "who,venue,timestamp,label\nx,1,2,1\n", "that can be used; 1 .* because of 'item_id'"),
    ]):  # fmt: skip
        source = csv(tmp_path / str(number), items, visits)
        with BadRows("skip", tmp_path / f"rejected{number}") as bad_rows, pytest.raises(DataError, match=message):
            convert(source, "csv", COLUMNS, tmp_path / "raw", bad_rows)


def test_markers_of_missing_values(tmp_path: Path) -> None:
    header = "item_id,name,category,brand,price,lat,lon,city"
    markers = ["", "\\N", "NULL", "null", "NaN", "nan", "N/A", "n/a", "#N/A", "<NA>"]
    rows = [f"{i},{m},{m},{m},{m},1,2,{m}" for i, m in enumerate(markers)]
    kept = ["a,Null,None,NA,NA,1,2,Nan", 'b,NULLs,nan > x,"NULL",None,1,2,Nantes']
    visits = "user_id,item_id,timestamp,label,user_lat,user_lon\nu,1,5,1,NULL,NA\n"
    source = csv(tmp_path / "c", "\n".join([header, *rows, *kept, ""]), visits, "user_id,sex\nu,NULL\n")
    out = convert(source, "csv", {}, tmp_path / "raw")
    items = read_items(out).to_pylist()
    for item in items[: len(markers)]:
        assert [item[c] for c in ("name", "category", "brand", "price", "city")] == [None] * 5
    assert [items[-2][c] for c in ("name", "category", "brand", "price", "city")] == [
        "Null",
        ["None"],
        "NA",
        None,
        "Nan",
    ]
    assert [items[-1][c] for c in ("name", "category", "brand", "price")] == ["NULLs", ["nan", "x"], None, None]
    assert interactions(out)["user_lat"].to_pylist() == [None]
    assert pq.read_table(out / "users.parquet")["sex"].to_pylist() == [None]
    for marker in [*markers[1:], "NA", "None"]:  # nobody is called so, and no moment and no place
        for i, name in ((0, "user_id"), (2, "timestamp"), (3, "label")):
            fields = ["u", "1", "5", "1"]
            fields[i] = marker
            source = csv(
                tmp_path / "v", f"{header}\n1,n,,,,1,2,\n", f"user_id,item_id,timestamp,label\n{','.join(fields)}\n"
            )
            with pytest.raises(DataError) as error:
                convert(source, "csv", {}, tmp_path / "raw2")
            assert f"line 2, column '{name}': got {marker!r}, expected" in str(error.value)


def test_gowalla_times_and_zeros(tmp_path: Path) -> None:
    source = tmp_path / "g_totalCheckins.txt"
    zeros = [("0", "0"), ("0.0000", "-0.0"), ("-0", "0e0"), ("0.", ".0"), ("+0.0", " 0 ")]
    source.write_text(
        SNAP.replace("27Z", "27.000Z").replace("43Z", "43+00:00")
        + "".join(f"0\t2010-10-17T01:48:53Z\t{lat}\t{lon}\t9{i}\n" for i, (lat, lon) in enumerate(zeros))
        + "3\t2010-10-17T01:48:53Z\t0.0\t9.5\t99\n"
    )
    out = convert(source, "gowalla", {}, tmp_path / "raw")
    assert told(out)["left_out"] == {"check-ins without a location": len(zeros)}
    assert interactions(out)["timestamp"].to_pylist() == [1287532527, 1287440263, 1287358923, 1287280133]


@pytest.mark.parametrize(
    "moment", ["Sun Apr 31 18:00:09 +0000 2012", "Tue Apr 03 24:00:09 +0000 2012", "Tue Apr 03 18:60:09 +0000 2012"]
)
def test_foursquare_times_that_do_not_exist(tmp_path: Path, moment: str) -> None:
    source = tmp_path / "f.txt"
    source.write_text(NYC.replace("Wed Apr 04 01:02:03 +0000 2012", moment))
    with pytest.raises(DataError, match=r"f.txt: line 3, column 'timestamp': got '.*2012', expected a time"):
        convert(source, "foursquare", {}, tmp_path / "raw")


def test_yelp_categories_with_commas() -> None:
    given = [
        "Beer, Wine & Spirits, Food", "Shopping, Books, Mags, Music & Video", "Lawyers, Wills, Trusts, & Probates",
        "Used, Vintage & Consignment", "Books, Mags, Music & Video, Used, Vintage & Consignment, Shopping",
        "Craft Beer, Wine & Spirits",
    ]  # fmt: skip
    got = yelp_category(pa.chunked_array([given])).to_pylist()
    assert got == [
        ["Food", "Beer, Wine & Spirits"], ["Shopping", "Books, Mags, Music & Video"], ["Lawyers"],
        ["Used, Vintage & Consignment"], ["Shopping", "Books, Mags, Music & Video"], ["Craft Beer"],
    ]  # fmt: skip


def test_yelp_lines(tmp_path: Path) -> None:
    """A byte order mark, odd bytes, blank lines, two objects on a line, an impossible date."""
    good = [json.dumps(r) for r in REVIEW]
    business = "\ufeff" + lines(BUSINESS).replace("Ramen Ya", "Caf\ue000")
    review = "\n".join(
        [good[0], "", good[0] + good[1], good[1], good[0].replace("2018-07-07", "2018-02-30"), "null", "null"]
    )
    source = yelp(tmp_path / "yelp", "", review)
    (source / "yelp_academic_dataset_business.json").write_bytes(business.encode().replace("\ue000".encode(), b"\xe9"))
    with BadRows("skip", tmp_path / "rejected") as bad_rows:
        out = convert(source, "yelp", {}, tmp_path / "raw", bad_rows)
    assert read_items(out)["name"].to_pylist() == ["Caf\u00e9", "Nowhere"] and len(interactions(out)) == 2
    assert told(out, bad_rows)["rows"] == {
        "yelp_academic_dataset_business.json": 2,
        "yelp_academic_dataset_review.json": 6,
    }
    assert [(c["column"], c["rows"]) for c in bad_rows.summary()] == [("line", 3), ("timestamp", 1)]


@st.composite
def damaged(draw: st.DrawFn, text: str, marks: list[str]) -> bytes:
    """A file with pieces put in and taken out, and perhaps once more after itself."""
    text *= draw(st.integers(1, 2))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from(marks)) + text[at + draw(st.integers(0, 3)) :]
    data = text.encode()
    if draw(st.booleans()):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + bytes([draw(st.integers(128, 255))]) + data[at:]
    return data


MANY = "\n".join(f"{i},n {i},c > d,{i}.5,{i},{i}" for i in range(9, 16)) + "\n"
QUICK = settings(max_examples=50, deadline=None)


@QUICK
@given(
    items=damaged(ITEMS_CSV + MANY, ['"', ",", "\n", "\r", "\0", "nan", '"",', "\ufeff"]),
    visits=damaged(VISITS_CSV + "y,10,1577836801,0\n" * 5, ['"', ",", "\n", "\\N", "-31", "\t"]),
)
def test_rows_in_are_rows_out_of_damaged_csv(
    tmp_path_factory: pytest.TempPathFactory, items: bytes, visits: bytes
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    (folder / "items.csv").write_bytes(items)
    (folder / "interactions.csv").write_bytes(visits)
    with BadRows("skip", folder / "rejected") as bad_rows:
        try:
            out = convert(folder, "csv", COLUMNS, folder / "raw", bad_rows)
        except DataError:
            return
    told(out, bad_rows)


@QUICK
@given(
    source=damaged(NYC, ["\t", "\n", "\r\n", "\0", "x", " 31 ", "\ufeff"]),
    snap=damaged(SNAP * 2, ["\t", "\n", "0", "Z", "+02"]),
)
def test_rows_in_are_rows_out_of_damaged_tsv(
    tmp_path_factory: pytest.TempPathFactory, source: bytes, snap: bytes
) -> None:
    folder = tmp_path_factory.mktemp("tsv")
    for format, data in (("foursquare", source), ("gowalla", snap)):
        (folder / f"{format}.txt").write_bytes(data)
        with BadRows("skip", folder / f"{format}-rejected") as bad_rows:
            try:
                out = convert(folder / f"{format}.txt", format, {}, folder / format, bad_rows)  # type: ignore[arg-type]
            except DataError:
                continue
        manifest = told(out, bad_rows)
        text = data.decode(errors="replace").replace("\ufeff", "").replace("\r", "\n")
        assert manifest["rows"] == {f"{format}.txt": len([line for line in text.split("\n") if line])}
