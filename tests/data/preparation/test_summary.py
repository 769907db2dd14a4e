"""The summary says what came in and went where, and each thing that looks wrong, with what to do."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from placerank.data.manifest import read_manifest
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.data.preparation.summary import lines
from placerank.data.raw.columns import DataError

START, ITEMS, USERS, ROWS = 1_600_000_000, 100, 40, 2000
Columns = dict[str, Any]


def town(visits: bool = False) -> tuple[Columns, Columns]:
    r = np.random.default_rng(0)
    items = {
        "item_id": [f"p{i}" for i in range(ITEMS)],
        "name": [f"Place {i}" for i in range(ITEMS)],
        "category": [["Food", ("Bar", "Cafe")[i % 2]] for i in range(ITEMS)],
        "brand": [f"Chain {i % 6}" if i % 4 else None for i in range(ITEMS)],
        "city": ["Rotterdam"] * ITEMS,
        "lat": (51.9 + 0.02 * r.standard_normal(ITEMS)).tolist(),
        "lon": (4.5 + 0.02 * r.standard_normal(ITEMS)).tolist(),
    }
    rows = {
        "user_id": [f"u{i}" for i in r.integers(0, USERS, ROWS)],
        "item_id": [f"p{i}" for i in r.integers(0, ITEMS, ROWS)],
        "timestamp": (START + 1000 * r.permutation(ROWS)).tolist(),
        "label": [1] * ROWS if visits else (r.random(ROWS) < 0.4).astype(int).tolist(),
    }
    return items, rows


def summary(folder: Path, items: Columns, rows: Columns, users: Columns | None = None, **options: Any) -> Columns:
    folder.mkdir(exist_ok=True)
    for name, table in (("items", items), ("interactions", rows), ("users", users)):
        if table is not None:
            pq.write_table(pa.table(table), folder / f"{name}.parquet")
    out = prepare(PrepareConfig(input=folder, out=folder.parent / "out", overwrite=True, **options))
    found: Columns = read_manifest(out, "prepared")["summary"]
    return found


def test_nothing_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items, rows = town()
    items["rating"], rows["device"], rows["page"] = [3] * ITEMS, ["x"] * ROWS, [1] * ROWS
    rows["label"][7] = 2
    rows["item_id"][8:10] = ["nowhere", "elsewhere"]
    users = {
        "user_id": [f"u{i}" for i in range(USERS)],
        "type": ["a", "b"] * (USERS // 2),
        "age": ["x", None] * (USERS // 2),
    }
    with caplog.at_level(logging.INFO, "placerank"):
        found = summary(tmp_path / "raw", items, rows, users, on_bad_rows="skip")
    assert found["warnings"] == []
    assert found["rows_in"] == {"items.parquet": ITEMS, "interactions.parquet": ROWS, "users.parquet": USERS}
    kept = ROWS - 3
    assert found["kept"]["interactions"] == kept and sum(r["rows"] for r in found["set_aside"]) == 3
    assert (found["kept"]["items"], found["kept"]["users"]) == (ITEMS, USERS)
    assert found["source"] == "impressions" and f"of {kept:,} rows have label 0" in found["because"]
    assert found["times"] == ["2020-09-13 12:26", "2020-10-06 15:43"]
    assert found["box"]["lat"] == [min(items["lat"]), max(items["lat"])]
    assert found["items_missing"] == {"name": 0, "category": 0, "brand": 0.25, "price": 1, "city": 0}
    assert found["unused_columns"] == {
        "items": ["rating (the same in all rows)"],
        "interactions": ["device (the same in all training rows)", "page (the same in all training rows)"],
    }
    assert found["users_known"] == [USERS, USERS] and found["user_tables"] == {"type": "users_type", "age": "age"}
    shown = "\n".join(lines(found))
    assert shown in caplog.text and len(shown.splitlines()) <= 14 and all(len(line) < 250 for line in lines(found))
    for text in (
        "  rows in   items.parquet 100, interactions.parquet 2,000, users.parquet 40",
        "  set aside 1 of interactions.parquet, 'label': expected 0 or 1; 2 of interactions.parquet, 'item_id': ",
        f"  kept      {kept:,} interactions of 40 users and 100 items",
        "  taken for impressions, because ",
        "  times     2020-09-13 12:26 to 2020-10-06 15:43 UTC, valid from 2020-1",
        "  items     without brand 25 %, price 100 %; never chosen in training 0 %",
        "  users     40 of 40 are in the users table, type as users_type",
        "  feature   users.type as users_type (string): category of 2 values, joins the user",
        "  not used  items: rating (the same in all rows); interactions: device (the same in all training rows), page",
    ):
        assert text in shown


def test_check_ins_are_named_so(tmp_path: Path) -> None:
    found = summary(tmp_path / "raw", *town(visits=True))
    assert (found["source"], found["because"]) == ("check-ins", "no row has label 0") and found["warnings"] == []


def _at(items: Columns, lat: float, lon: float, n: int) -> None:
    items["lat"][:n], items["lon"][:n] = [lat] * n, [lon] * n


def _swapped(items: Columns, rows: Columns) -> None:
    rows["user_lat"], rows["user_lon"] = [4.5] * ROWS, [51.9] * ROWS


def _boston(items: Columns, rows: Columns) -> None:
    items["lat"], items["lon"] = [-71.06 + 0.001 * i for i in range(ITEMS)], [42.36] * ITEMS


def _some(rows: Columns, column: str, value: Any, n: int) -> None:
    rows[column][:n] = [value] * n


WRONG: list[tuple[Callable[[Columns, Columns], object], str]] = [
    (lambda i, r: _at(i, 0.0, -0.0, 1), "1 of 100 items (1 %) lie at exactly the same place, (0, 0)"),
    (lambda i, r: _at(i, -1, -1, 30), "30 of 100 items (30 %) lie at exactly the same place, (-1, -1)"),
    (lambda i, r: _at(i, 51.9, 4.5, 20), "20 of 100 items (20 %) lie at exactly the same place, (51.9, 4.5)"),
    (_boston, "100 of 100 items (100 %) lie in Antarctica or the Arctic: lat and lon look swapped"),
    (_swapped, "users are around (4.5, 51.9), items around (51.9, 4.5): lat and lon look swapped"),
    (lambda i, r: r.update(user_lat=[0.0] * 50 + [51.9] * 1950, user_lon=[0.0] * 50 + [4.5] * 1950),
     "50 of 2,000 places of users (2.5 %) are (0, 0) or (-1, -1): write null"),
    (lambda i, r: _some(r, "timestamp", 0, 3), "3 of 2,000 times (0.15 %) lie before 1990, the first at 1970-01-01"),
    (lambda i, r: _some(r, "timestamp", 4_000_000_000, 5),
     "5 of 2,000 times (0.25 %) lie in the future, the last at 2096-"),
    (lambda i, r: _some(r, "user_id", "bot", 900), "user 'bot' has 900 of 2,000 interactions (45 %): if that is"),
    (lambda i, r: _some(r, "user_id", "NULL", 900), "user 'NULL' has 900 of 2,000 interactions (45 %), and counts"),
    (lambda i, r: _some(r, "item_id", "p3", ROWS), "99 of 100 items (99 %) have no positive in the training split"),
    (lambda i, r: i.update(category=[None] * 60 + ["Food"] * 40), "60 of 100 items (60 %) have no category: check"),
    *((lambda i, r, m=m: _some(i, "brand", m, 50), f"brand is {m!r} in 50 of 100 items (50 %), which is a value like")
      for m in ("\\N", "NULL", "nan", "None")),
    (lambda i, r: _some(i, "category", ["None"], 50), "category is 'None' in 50 of 100 items (50 %)"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "told"), WRONG, ids=[t[:50] for _, t in WRONG])
def test_what_looks_wrong(tmp_path: Path, change: Callable[[Columns, Columns], object], told: str) -> None:
    items, rows = town()
    change(items, rows)
    (warning,) = summary(tmp_path / "raw", items, rows)["warnings"]
    assert told in warning


def test_users_that_nobody_knows(tmp_path: Path) -> None:
    users = {"user_id": [f" u{i} " for i in range(USERS)], "sex": ["f", "m"] * (USERS // 2)}
    (warning,) = summary(tmp_path / "raw", *town(), users)["warnings"]
    assert "knows 0 of 40 users (0 %) of the vocabulary; ids there look like ' u0 ', here like 'u0'" in warning
    users = {"user_id": [f"u{i}" for i in range(USERS)], "sex": ["\\N", "m"] * (USERS // 2)}
    (warning,) = summary(tmp_path / "raw", *town(), users)["warnings"]
    assert "users' sex is '\\\\N' in 20 of 40 users (50 %)" in warning


def test_many_rows_set_aside(tmp_path: Path) -> None:
    items, rows = town()
    rows["user_id"] = ["" if i % 2 else u for i, u in enumerate(rows["user_id"])]
    found = summary(tmp_path / "raw", items, rows, on_bad_rows="skip")
    assert found["warnings"] == ["1,000 of 2,100 rows (48 %) are set aside as bad: look into rejected/"]
    assert "1,000 of interactions.parquet, 'user_id': expected an id, not null or blank" in "\n".join(lines(found))


@pytest.mark.parametrize(
    ("of", "told"),
    [
        (86_400, "they look like days since 1970: multiply them by 86,400"),
        (3600, "they look like hours since 1970: multiply them by 3,600"),
        (60, "they look like minutes since 1970: multiply them by 60"),
        (START, "if they count from another moment, add it"),
    ],
)
def test_times_of_1970_are_refused(tmp_path: Path, of: int, told: str) -> None:
    items, rows = town()
    rows["timestamp"] = [t // of if of < START else t - START for t in rows["timestamp"]]
    with pytest.raises(DataError, match=r"all 2,000 times lie between 1970-") as error:
        summary(tmp_path / "raw", items, rows)
    assert told in str(error.value) and not (tmp_path / "out").exists()


def test_dates_as_numbers_are_refused(tmp_path: Path) -> None:
    items, rows = town()
    rows["timestamp"] = [20220401 + t % 28 for t in rows["timestamp"]]
    with pytest.raises(DataError, match=r"they look like dates written as numbers, such as 20220401: write dates"):
        summary(tmp_path / "raw", items, rows)


def test_other_formats_tell_their_own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the reader's manifest says comes before what stands in the tables that it wrote."""
    source = tmp_path / "loc-gowalla_totalCheckins.txt"
    visits = [(u, d, d % 5) for u in "ab" for d in range(1, 29)]
    source.write_text("".join(f"{u}\t2010-10-{d:02}T10:00:00Z\t{50 + p / 100}\t4.0\tp{p}\n" for u, d, p in visits))
    config = PrepareConfig(input=source, out=tmp_path / "out", format="gowalla")
    found = read_manifest(prepare(config), "prepared")["summary"]
    assert sum(found["rows_in"].values()) in (56, 61) and found["kept"]["interactions"] == 56
    read = read_manifest

    def told(folder: Path, kind: str) -> dict[str, Any]:
        return read(folder, kind) | {
            "rows": {source.name: 60},
            "unused_columns": {source.name: ["x"]},
            "left_out": {"y": 4},
        }

    monkeypatch.setattr("placerank.data.preparation.inputs.read_manifest", told)
    config = PrepareConfig(input=source, out=tmp_path / "again", format="gowalla")
    found = json.loads((prepare(config) / "manifest.json").read_text())["summary"]
    assert found["rows_in"] == {source.name: 60} and found["unused_columns"] == {source.name: ["x"]}
    assert found["left_out"]["y"] == 4 and "4 y" in "\n".join(lines(found))
