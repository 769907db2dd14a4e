"""Tables as folders of parts: partitions, files that are nobody's data, empty parts, parts that differ."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from placerank.data.raw.own import own_columns
from placerank.data.raw.schema import (
    BadRows,
    DataError,
    has_column,
    inventory,
    iter_interactions,
    read_items,
    read_users,
)

ITEMS = pa.table(
    {
        "item_id": ["a", "b", "c", "d"],
        "name": ["A", "B", "C", "D"],
        "category": ["Food"] * 4,
        "lat": [1.0, 2.0, 3.0, 4.0],
        "lon": [5.0, 6.0, 7.0, 8.0],
    }
)
VISITS = pa.table(
    {
        "user_id": [f"u{i}" for i in range(12)],
        "item_id": list("abcd") * 3,
        "timestamp": range(1_600_000_000, 1_600_000_012),
        "label": [1, 0] * 6,
    }
)


def put(table: pa.Table, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def visits(folder: Path, bad_rows: BadRows | None = None) -> pa.Table:
    return pa.concat_tables(iter_interactions(folder, ITEMS["item_id"], bad_rows))


@pytest.mark.parametrize("name", ["interactions", "interactions.parquet"])
def test_partitions_are_read_in_the_order_of_their_names(tmp_path: Path, name: str) -> None:
    put(ITEMS, tmp_path / "items.parquet")
    for i in range(4):
        put(VISITS.slice(3 * i, 3), tmp_path / name / f"day={i // 2}" / f"hour={i % 2}" / "part-0.parquet")
    assert visits(tmp_path)["user_id"].to_pylist() == VISITS["user_id"].to_pylist()
    rows, told = inventory(tmp_path)
    assert rows == {"items.parquet": 4, "interactions.parquet": 12} and not told
    folder_names = dict.fromkeys(("day", "hour"), "the name of a folder")
    assert own_columns(tmp_path, {}) == ([], {"interactions": folder_names})


def test_folders_without_keys_are_read_too(tmp_path: Path) -> None:
    put(VISITS.slice(0, 6), tmp_path / "interactions" / "2024" / "01" / "x.parquet")
    put(VISITS.slice(6), tmp_path / "interactions" / "2024" / "02" / "x.parquet")
    assert len(visits(tmp_path)) == 12


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (("part-0.parquet", "day=1/part-0.parquet"), r"got part-0.parquet, day=1/ side by side"),
        (("day=1/part-0.parquet", "backup/part-0.parquet"), r"got backup/, day=1/ side by side"),
        (("day=1/part-0.parquet", "hour=1/part-0.parquet"), r"got day=1/, hour=1/ side by side"),
        (("day=1/part-0.parquet", "day=1/old/part-0.parquet"), r"day=1: got part-0.parquet, old/ side by side"),
    ],
)
def test_what_may_be_there_twice_is_refused(tmp_path: Path, files: tuple[str, ...], told: str) -> None:
    for file in files:
        put(VISITS, tmp_path / "interactions" / file)
    with pytest.raises(DataError, match=f"{told}, expected Parquet files, or folders KEY=VALUE of one key"):
        visits(tmp_path)


def test_partitions_give_the_columns_that_files_lack(tmp_path: Path) -> None:
    for city, row in (("New%20York", 0), ("__HIVE_DEFAULT_PARTITION__", 1), ("7", 2)):
        put(ITEMS.slice(row, 1), tmp_path / "items.parquet" / f"city={city}" / "part-0.parquet")
    assert dict(zip(*(read_items(tmp_path)[c].to_pylist() for c in ("item_id", "city")), strict=True)) == {
        "a": "New York",
        "b": None,
        "c": "7",
    }
    for label in (0, 1):
        some = VISITS.filter(pa.compute.equal(VISITS["label"], label)).drop_columns("label")
        put(some, tmp_path / "interactions" / f"label={label}" / "part-0.parquet")
    assert visits(tmp_path)["label"].to_pylist() == [0] * 6 + [1] * 6
    for sex in "fm":
        put(pa.table({"user_id": [f"u{sex}"]}), tmp_path / "users" / f"sex={sex}" / "part-0.parquet")
    own, _ = own_columns(tmp_path, {})
    users = read_users(tmp_path, own=[c for c in own if c.of == "users"])
    assert users is not None and users.to_pydict() == {"user_id": ["uf", "um"], "own.sex": ["f", "m"]}


def test_a_files_own_column_wins_over_its_folder(tmp_path: Path) -> None:
    put(VISITS, tmp_path / "interactions" / "label=7" / "part-0.parquet")
    assert visits(tmp_path)["label"].to_pylist() == VISITS["label"].to_pylist()


def test_folders_as_spark_and_macos_leave_them(tmp_path: Path) -> None:
    """Each table a folder; _SUCCESS, checksums and ._ files; parts of no rows whose columns have no type."""
    nothing = pa.table({c: pa.nulls(0) for c in VISITS.column_names})
    for name, table in (("items", ITEMS), ("interactions", VISITS), ("users", pa.table({"user_id": ["u1"]}))):
        folder = tmp_path / f"{name}.parquet"
        put(nothing, folder / "part-00000.snappy.parquet")
        put(table.slice(0, 1), folder / "part-00001.snappy.parquet")
        put(table.slice(1), folder / "part-00002.snappy.parquet")
        for junk in ("_SUCCESS", "_metadata", "._part-00001.snappy.parquet", ".part-00001.snappy.parquet.crc"):
            (folder / junk).write_bytes(b"junk")
        (folder / "_temporary").mkdir()
        put(table, folder / "_temporary" / "part-0.parquet")
    assert read_items(tmp_path)["item_id"].to_pylist() == list("abcd") and len(visits(tmp_path)) == 12
    users = read_users(tmp_path)
    assert users is not None and users["user_id"].to_pylist() == ["u1"]


def test_no_parts_at_all(tmp_path: Path) -> None:
    (tmp_path / "items.parquet").mkdir()
    (tmp_path / "items.parquet" / "000000_0").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"is a folder without Parquet files .* it holds \['000000_0'"):
        read_items(tmp_path)
    put(ITEMS.slice(0, 0), tmp_path / "items.parquet" / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet: the file has no rows, expected at least one"):
        read_items(tmp_path)
    put(ITEMS, tmp_path / "items" / "x.parquet")
    with pytest.raises(DataError, match=r"got both items.parquet and items/, expected one of them"):
        read_items(tmp_path)


def test_a_column_twice_is_named(tmp_path: Path) -> None:
    columns = [*ITEMS.columns, ITEMS["name"]]
    put(pa.Table.from_arrays(columns, [*ITEMS.column_names, "name"]), tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"items.parquet: got the column 'name' twice, expected each name once"):
        read_items(tmp_path)


def test_parts_that_differ(tmp_path: Path) -> None:
    """Optional columns of some parts are null in the others, and told; ids of two types are refused."""
    folder = tmp_path / "items.parquet"
    put(ITEMS.slice(0, 2).append_column("brand", pa.array(["x", "y"])), folder / "0.parquet")
    put(ITEMS.slice(2, 1).append_column("brand", pa.nulls(1)), folder / "1.parquet")
    put(ITEMS.slice(3).append_column("rating", pa.array([5])), folder / "2.parquet")
    assert read_items(tmp_path)["brand"].to_pylist() == ["x", "y", None, None]
    put(VISITS.append_column("probability", pa.array([0.5] * 12)), tmp_path / "interactions" / "1.parquet")
    put(VISITS, tmp_path / "interactions" / "0.parquet")
    assert has_column(tmp_path, "probability") and not has_column(tmp_path, "request_id")
    _, told = inventory(tmp_path)
    assert [c.column for c in own_columns(tmp_path, {})[0]] == ["rating"]
    assert [t.partition(";")[0] for t in told] == [
        "items.parquet: column 'brand' is in 2 of 3 parts and null in the others",
        "items.parquet: column 'rating' is in 1 of 3 parts and null in the others",
        "interactions.parquet: column 'probability' is in 1 of 2 parts and null in the others",
    ]
    put(ITEMS.slice(3).set_column(0, "item_id", pa.array([4])), folder / "2.parquet")
    with pytest.raises(DataError, match=r"2.parquet: column 'item_id': got type int64, expected string as in"):
        read_items(tmp_path)
    put(ITEMS.slice(3).drop_columns("lat"), folder / "2.parquet")
    with pytest.raises(DataError, match=r"2.parquet: column 'lat' is missing"):
        read_items(tmp_path)


def test_user_columns_of_some_parts(tmp_path: Path) -> None:
    put(pa.table({"user_id": [1], "age": ["old"]}), tmp_path / "users" / "0.parquet")
    put(pa.table({"user_id": [2], "sex": [1]}), tmp_path / "users" / "1.parquet")
    put(ITEMS, tmp_path / "items.parquet")
    put(VISITS, tmp_path / "interactions.parquet")
    users = read_users(tmp_path, own=own_columns(tmp_path, {})[0])
    assert users is not None
    assert users.to_pydict() == {"user_id": [1, 2], "own.age": ["old", None], "own.sex": [None, "1"]}
    put(pa.table({"user_id": [3], "sex": [0.5]}), tmp_path / "users" / "2.parquet")
    with pytest.raises(DataError, match=r"2.parquet: column 'sex': got type double, expected one that fits 'category'"):
        read_users(tmp_path, own=own_columns(tmp_path, {})[0])


def test_bad_rows_of_parts(tmp_path: Path) -> None:
    """Named by their part; an id of two parts too; parts of one name in two folders have a rejected file each."""
    folder = tmp_path / "items.parquet"
    put(ITEMS.slice(0, 2), folder / "x=0" / "part.parquet")
    put(ITEMS.slice(1), folder / "x=1" / "part.parquet")
    with pytest.raises(DataError, match=r"x=1/part.parquet: row 0, column 'item_id': got 'b', which row 1 of part.par"):
        read_items(tmp_path)
    labels: dict[str, Any] = {"x=0": [1, 7] * 6, "x=1": [7, 1] * 6}
    for name, label in labels.items():
        put(VISITS.set_column(3, "label", pa.array(label)), tmp_path / "interactions" / name / "part.parquet")
    with BadRows("skip", tmp_path / "rejected") as bad_rows:
        assert read_items(tmp_path, bad_rows)["item_id"].to_pylist() == list("abcd")
        assert len(visits(tmp_path, bad_rows)) == 12
    rejected = {p.name: pq.read_table(p)["row"].to_pylist() for p in (tmp_path / "rejected").iterdir()}
    assert rejected == {
        "items-x=1-part.parquet": [0],
        "interactions-x=0-part.parquet": [1, 3, 5, 7, 9, 11],
        "interactions-x=1-part.parquet": [0, 2, 4, 6, 8, 10],
    }


def test_many_parts_do_not_stay_open(tmp_path: Path) -> None:
    for i in range(12):
        put(
            VISITS.slice(i, 1).set_column(3, "label", pa.array([7 * (i % 2)])),
            tmp_path / f"interactions/{i:02}.parquet",
        )
    before = len(os.listdir("/proc/self/fd"))
    most = 0
    with BadRows("skip", tmp_path / "rejected") as bad_rows:
        for _ in iter_interactions(tmp_path, ITEMS["item_id"], bad_rows):
            most = max(most, len(os.listdir("/proc/self/fd")) - before)
    assert bad_rows.total == 6 and most <= 2


def test_one_part_in_a_folder_is_called_after_the_table(tmp_path: Path) -> None:
    put(VISITS.set_column(3, "label", pa.array([1, 7] * 6)), tmp_path / "interactions" / "day=1" / "part-0.parquet")
    with BadRows("skip", tmp_path / "rejected") as bad_rows:
        assert len(visits(tmp_path, bad_rows)) == 6
    assert [p.name for p in (tmp_path / "rejected").iterdir()] == ["interactions.parquet"]
