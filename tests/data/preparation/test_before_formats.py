"""``prepare --after`` in every format that has tables of places: what is new comes after, what is known is found, and a
day on which no place opened goes on."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_tables import column, run

from placerank.data.manifest import read_manifest
from placerank.data.raw.columns import DataError

DAYS = (1_600_000_000, 1_600_100_000, 1_600_200_000)
OLD, NEW = [f"p{i}" for i in range(6)], ["p6", "q"]

Write = Callable[[Path, list[str] | None, list[tuple[int, str, int]]], None]
"""Writes a raw folder: the places listed that day (None: no such table), and visits (user, place, time)."""


def place(name: str) -> dict[str, Any]:
    number = int(name[1:] or 9)
    return {"name": f"at {name}", "lat": 50 + number / 100, "lon": 4.0, "category": "bar" if number % 2 else "food"}


def write_parquet(raw: Path, places: list[str] | None, rows: list[tuple[int, str, int]]) -> None:
    if places is not None:
        about = [{"item_id": p, **place(p), "stars": float(len(p)), "tags": [p[0], "x"]} for p in places]
        kinds = {"item_id": pa.string(), "name": pa.string(), "lat": pa.float64(), "lon": pa.float64()}
        kinds |= {"category": pa.string(), "stars": pa.float64(), "tags": pa.list_(pa.string())}
        pq.write_table(pa.Table.from_pylist(about, pa.schema(kinds)), raw / "items.parquet")
        pq.write_table(
            pa.table({"user_id": [f"u{i}" for i in range(3) if places], "age": ["a", "b", "a"][: 3 * bool(places)]}),
            raw / "users.parquet",
        )
    visits = [{"user_id": f"u{u}", "item_id": i, "timestamp": t, "label": 1} for u, i, t in rows]
    pq.write_table(pa.Table.from_pylist(visits), raw / "interactions.parquet")


def write_csv(raw: Path, places: list[str] | None, rows: list[tuple[int, str, int]]) -> None:
    if places is not None:
        lines = [f"{p},at {p},{place(p)['category']},{place(p)['lat']},4.0,{len(p)}.5,{p[0]}|x" for p in places]
        (raw / "items.csv").write_text("\n".join(["item_id,name,kind,lat,lon,stars,tags", *lines]))
        users = [f"u{i},{'aba'[i]}" for i in range(3) if places]
        (raw / "users.csv").write_text("\n".join(["user_id,age", *users]))
    lines = [f"u{u},{i},{t},1" for u, i, t in rows]
    (raw / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp,label", *lines]))


def write_yelp(raw: Path, places: list[str] | None, rows: list[tuple[int, str, int]]) -> None:
    def line(p: str) -> str:
        known = {"business_id": p, "name": f"at {p}", "categories": f"{place(p)['category']}, Food"}
        where = {"latitude": place(p)["lat"], "longitude": 4.0, "city": "x", "state": "y"}
        return json.dumps({**known, **where, "attributes": None, "hours": {"Monday": "8:0-18:0"}})

    if places is not None:
        (raw / "yelp_academic_dataset_business.json").write_text("\n".join(map(line, places)))
    date = pa.array([t for *_, t in rows], pa.timestamp("s")).cast(pa.string()).to_pylist()
    reviews = [{"user_id": f"u{u}", "business_id": i, "date": d} for (u, i, _), d in zip(rows, date, strict=True)]
    (raw / "yelp_academic_dataset_review.json").write_text("\n".join(map(json.dumps, reviews)))


def write_visits(raw: Path, rows: list[tuple[int, str, int]]) -> None:
    """Of one's own, beside open places."""
    visits = [{"user_id": f"u{u}", "item_id": i, "timestamp": t, "label": 1} for u, i, t in rows]
    pq.write_table(pa.Table.from_pylist(visits), raw / "interactions.parquet")


def write_foursquare(raw: Path, places: list[str] | None, rows: list[tuple[int, str, int]]) -> None:
    if places is not None:
        about = [
            {"fsq_place_id": p, "name": f"at {p}", "latitude": place(p)["lat"], "longitude": 4.0}
            | {"fsq_category_labels": [f"Dining > {place(p)['category']}"], "date_closed": None}
            for p in places
        ]
        text = {name: pa.string() for name in ("fsq_place_id", "name", "date_closed")}
        kinds = text | {"latitude": pa.float64(), "longitude": pa.float64()}
        kinds |= {"fsq_category_labels": pa.list_(pa.string())}
        (raw / "places").mkdir()
        pq.write_table(pa.Table.from_pylist(about, pa.schema(kinds)), raw / "places" / "0.parquet")
    write_visits(raw, rows)


def write_overture(raw: Path, places: list[str] | None, rows: list[tuple[int, str, int]]) -> None:
    if places is not None:
        box = [dict.fromkeys(("xmin", "xmax"), 4.0) | dict.fromkeys(("ymin", "ymax"), place(p)["lat"]) for p in places]
        numbers = pa.struct([(n, pa.float64()) for n in ("xmin", "xmax", "ymin", "ymax")])
        names = pa.array([{"primary": f"at {p}"} for p in places], pa.struct([("primary", pa.string())]))
        basic = pa.array([place(p)["category"] for p in places], pa.string())
        about = {"id": pa.array(places, pa.string()), "names": names, "bbox": pa.array(box, numbers)}
        pq.write_table(pa.table(about | {"basic_category": basic}), raw / "places.parquet")
    write_visits(raw, rows)


FORMATS: dict[str, tuple[Write, dict[str, Any]]] = {
    "parquet": (write_parquet, {}),
    "csv": (write_csv, {"format": "csv", "columns": {"category": "kind"}}),
    "yelp": (write_yelp, {"format": "yelp"}),
    "foursquare": (write_foursquare, {"format": "places"}),
    "overture": (write_overture, {"format": "places"}),
}


def visits(places: list[str], start: int) -> list[tuple[int, str, int]]:
    return [(i % 5, places[(i * i + i // 7) % len(places)], start + 60 * i) for i in range(100)]


COUNTED = ("positives", "impressions", "last_positive", "popularity_bucket")


class Days:
    """Prepares days of one format; ``first`` is prepared."""

    def __init__(self, name: str, folder: Path) -> None:
        self.write, self.options = FORMATS[name]
        self.folder, self.made = folder, 0
        self.first = self.day(0, OLD, OLD, None)

    def day(self, number: int, places: list[str] | None, visited: list[str], after: Path | None) -> Path:
        """A day: its number, places listed (None: no such table), places visited, the day before."""
        self.made += 1
        (raw := self.folder / str(self.made) / "raw").mkdir(parents=True)
        self.write(raw, places, visits(visited, DAYS[number]))
        return run(raw, after=after, reach_km=20.0, **self.options)


@pytest.fixture(scope="module", params=FORMATS)
def days(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Days:
    return Days(request.param, tmp_path_factory.mktemp(request.param))


def test_new_places_and_known_ones(days: Days) -> None:
    """Today lists one place that is new; visits are of known ones, too."""
    second = days.day(1, NEW[:1], [*OLD, NEW[0]], days.first)
    then, now = (pq.read_table(f / "catalog.parquet") for f in (days.first, second))
    assert now["item_id"].to_pylist() == [None, *OLD, NEW[0]]
    for name in [n for n in then.column_names if n not in COUNTED]:
        assert now[name].slice(1, 6).to_pylist() == then[name].slice(1).to_pylist(), name  # row 0 has NaN
    assert now["name"].to_pylist()[7] == "at p6" and now["lat"].to_pylist()[7] == pytest.approx(50.06)
    manifest = read_manifest(second, "prepared", verify=True)
    assert manifest["summary"]["kept"]["interactions"] == 100 and not manifest["rejected"]
    every = Counter(i for _, i, _ in [*visits(OLD, DAYS[0]), *visits([*OLD, NEW[0]], DAYS[1])])
    assert column(second, "next/items.parquet", "positives") == [every[i] for i in [*OLD, NEW[0]]]


@pytest.mark.parametrize("places", [[], None], ids=["empty", "missing"])
def test_a_day_on_which_no_place_opened(days: Days, places: list[str] | None) -> None:
    """Items, attributes, own columns and vocabularies stay; the day after goes on from there."""
    first, second = days.first, days.day(1, places, OLD, days.first)
    then, now = (pq.read_table(f / "catalog.parquet") for f in (first, second))
    shared = [n for n in then.column_names if n not in COUNTED]
    assert now.select(shared).slice(1).equals(then.select(shared).slice(1)) and now.column_names == then.column_names
    assert sum(now["positives"].to_pylist()) > sum(then["positives"].to_pylist())
    vocabularies = [{p.name: pq.read_table(p) for p in (f / "vocab").iterdir()} for f in (first, second)]
    assert vocabularies[0] == vocabularies[1]
    manifests = [read_manifest(f, "prepared", verify=True) for f in (first, second)]
    assert manifests[0]["own"] == manifests[1]["own"] and manifests[0]["tables"] == manifests[1]["tables"]
    users = [pq.read_table(f / "users.parquet") for f in (first, second)]
    assert users[0].column_names == users[1].column_names
    if places is None:
        return
    third = days.day(2, NEW[:1], [*OLD, NEW[0]], second)
    assert column(third, "catalog.parquet", "item_id") == [None, *OLD, NEW[0]]


def test_a_place_that_nobody_knows_is_told(days: Days) -> None:
    with pytest.raises(DataError, match=r"got 'q', expected an item_id that is in the items table"):
        days.day(1, [], [*OLD, "q"], days.first)
    with pytest.raises((DataError, FileNotFoundError), match=r"no rows|no place|0 bytes|no row of it"):
        days.day(1, [], OLD, None)  # on a first day there must be places


def test_a_day_that_lists_closed_places_alone(tmp_path: Path) -> None:
    """Their rows stay, visits of others are as they were; one with a bad row is told, as ever."""
    days = Days("foursquare", tmp_path)
    place_ = {"name": "x", "latitude": 50.0, "longitude": 4.0, "fsq_category_labels": ["Dining"]}

    def day(closed: str | None, lat: float) -> Path:
        (raw := tmp_path / f"{closed}" / "raw").mkdir(parents=True)
        row = place_ | {"fsq_place_id": "p0", "latitude": lat, "date_closed": closed}
        pq.write_table(pa.Table.from_pylist([row]), raw / "places.parquet")
        write_visits(raw, visits(OLD[1:], DAYS[1]))
        return run(raw, after=days.first, reach_km=20.0, format="places", on_bad_rows="skip")

    second = day("2020-09-14", 50.0)
    assert column(second, "catalog.parquet", "item_id") == [None, *OLD]
    with pytest.raises(DataError, match="no place of it can be used"):
        day(None, 95.0)
