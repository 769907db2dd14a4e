"""Every rule of the schema, with the exact text of its message, and rows set aside instead."""

import datetime
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placerank.data.raw.checks import Block
from placerank.data.raw.own import OwnColumn, own_columns
from placerank.data.raw.schema import (
    INTERACTIONS,
    ITEMS,
    BadRows,
    DataError,
    has_column,
    iter_interactions,
    read_items,
    read_users,
)

MEND = "correct the row, or set bad rows aside with --on-bad-rows skip"
UTC = datetime.UTC


def items(**changes: Any) -> pa.Table:
    columns = {
        "item_id": ["a", "b", "c"],
        "name": ["A", None, "C"],
        "category": pa.array([["Food", "Pizza"], None, ["Shop"]]),
        "lat": [52.0, -90.0, 0.0],
        "lon": [4.0, 180.0, -180.0],
        **changes,
    }
    return pa.table({k: v for k, v in columns.items() if v is not None})


def visits(**changes: Any) -> pa.Table:
    columns = {
        "user_id": [1, 1, 2],
        "item_id": ["a", "b", "a"],
        "timestamp": pa.array([1_600_000_000, 1_600_000_100, 0]),
        "label": [1, 0, 1],
        **changes,
    }
    return pa.table({k: v for k, v in columns.items() if v is not None})


def raw(folder: Path, items_: pa.Table | None = None, visits_: pa.Table | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(items() if items_ is None else items_, folder / "items.parquet")
    pq.write_table(visits() if visits_ is None else visits_, folder / "interactions.parquet")
    return folder


def read(folder: Path, bad_rows: BadRows | None = None) -> pa.Table:
    return pa.concat_tables(iter_interactions(folder, read_items(folder)["item_id"], bad_rows))


def test_items_are_whole_and_normal(tmp_path: Path) -> None:
    table = read_items(raw(tmp_path, items(price=[1, None, 3], lat=pa.array([1, 2, 3], pa.int16()), extra=[1, 2, 3])))
    assert table.column_names == [c.name for c in ITEMS]
    assert [f.type for f in table.schema][1:] == [c.type for c in ITEMS][1:] and table["item_id"].type == pa.string()
    assert table["price"].to_pylist() == [1, None, 3] and table["brand"].null_count == 3
    assert table["category"].to_pylist() == [["Food", "Pizza"], None, ["Shop"]]


@pytest.mark.parametrize(
    "category",
    [
        pa.array([["F", "P"], None, []], pa.large_list(pa.large_string())),
        pa.array([["F", "P"], None, []], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        pa.chunked_array([pa.array([["X"], ["F", "P"]])[1:], pa.array([None, ["Y"]], pa.list_(pa.string()))[:1], [[]]]),
    ],
)
def test_category_types(tmp_path: Path, category: Any) -> None:
    table = read_items(raw(tmp_path, items(category=category)))
    assert table["category"].to_pylist() == [["F", "P"], None, None]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_text_types(tmp_path: Path, kind: pa.DataType) -> None:
    text = pa.array(["x", None, "z"]).cast(kind)
    ids = pa.array(["a", "b", "c"]).cast(kind)
    table = read_items(raw(tmp_path, items(item_id=ids, category=text, brand=text)))
    assert table["brand"].to_pylist() == ["x", None, "z"] and table["category"].to_pylist() == [["x"], None, ["z"]]
    assert table["item_id"].type == pa.string()


@pytest.mark.parametrize(
    "stamps",
    [
        pa.array([1, 2, 3], pa.int32()),
        pa.array([1000, 2000, 3999], pa.timestamp("ms", "UTC")),
        pa.array([10**9, 2 * 10**9, 3 * 10**9 + 1], pa.timestamp("ns")),
        pa.array([1, 2, 3], pa.timestamp("s", "Europe/Amsterdam")),  # an instant: the zone only says how it is shown
    ],
)
def test_timestamps(tmp_path: Path, stamps: pa.Array) -> None:
    table = read(raw(tmp_path, visits_=visits(timestamp=stamps)))
    assert table["timestamp"].to_pylist() == [1, 2, 3]
    assert table.column_names == [*(c.name for c in INTERACTIONS), "item_index"]
    assert table["item_index"].to_pylist() == [0, 1, 0] and table["label"].type == pa.int8()


def test_dates(tmp_path: Path) -> None:
    days = pa.array([datetime.date(1970, 1, 2)] * 3)
    assert read(raw(tmp_path, visits_=visits(timestamp=days)))["timestamp"].to_pylist() == [86400] * 3


def test_large_ids_keep_every_digit(tmp_path: Path) -> None:
    big = np.array([2**63 - 1, 2**63 - 2, 2**53 + 1])
    folder = raw(tmp_path, items(item_id=big), visits(item_id=big.astype(np.uint64)))
    assert read(folder)["item_id"].to_pylist() == big.tolist()
    with pytest.raises(DataError, match="column 'user_id': got type uint64, expected values that fit int64"):
        read(raw(tmp_path, items(item_id=big), visits(item_id=big, user_id=np.array([2**64 - 1, 1, 2], np.uint64))))


NAN = float("nan")
BAD_ITEMS = [
    ({"lat": [52.0, 91.0, 0.0]}, "row 1, column 'lat': got 91.0, expected a latitude in [-90, 90] degrees"),
    ({"lat": [52.0, NAN, 0.0]}, "row 1, column 'lat': got nan, expected a latitude in [-90, 90] degrees"),
    ({"lon": [0.0, float("-inf"), 0.0]}, "row 1, column 'lon': got -inf, expected a longitude in [-180, 180] degrees"),
    ({"lon": [0.0, 180.001, 0.0]}, "row 1, column 'lon': got 180.001, expected a longitude in [-180, 180] degrees"),
    ({"lat": [0.0, None, 0.0]}, "row 1, column 'lat': got None, expected a latitude in [-90, 90] degrees, not null"),
    ({"item_id": ["a", None, "c"]}, "row 1, column 'item_id': got None, expected an id, not null"),
    ({"item_id": ["a", "a", "c"]}, "row 1, column 'item_id': got 'a', which row 0 has too, expected an id that no"),
    ({"price": [1.0, -0.5, 2.0]}, "row 1, column 'price': got -0.5, expected a price in [0, 1e12]"),
    ({"price": [1.0, NAN, 2.0]}, "row 1, column 'price': got nan, expected a price in [0, 1e12]"),
    ({"category": [["a"], ["b", ""], None]}, "row 1, column 'category': got ['b', ''], expected a list of category"),
    ({"opening_hours": ["off", "9 to 5", None]}, "row 1, column 'opening_hours': got '9 to 5', expected opening hours"),
    (
        {"opening_hours": [[], [{"open": 0, "close": 10_081}], None]},
        "row 1, column 'opening_hours': got [{'open': 0, 'close': 10081}], expected opening hours such as",
    ),
    ({"category": [["a"], [None], None]}, "row 1, column 'category': got [None], expected a list of category names"),
]
BAD_VISITS = [
    ({"label": [1, 2, 0]}, "row 1, column 'label': got 2, expected 0 or 1"),
    ({"label": [1.0, 0.5, 0.0]}, "row 1, column 'label': got 0.5, expected 0 or 1"),
    ({"label": [1, None, 0]}, "row 1, column 'label': got None, expected 0 or 1, not null"),
    ({"item_id": ["a", "z", "b"]}, "row 1, column 'item_id': got 'z', expected an item_id that is in the items table"),
    ({"user_id": [1, None, 2]}, "row 1, column 'user_id': got None, expected an id, not null"),
    ({"timestamp": [1, -5, 2]}, "row 1, column 'timestamp': got -5, expected a time between 1970 and 2200 (integers"),
    ({"timestamp": [1, 1_600_000_000_000, 2]}, "column 'timestamp': got 1600000000000, expected a time between 1970"),
    (
        {"timestamp": pa.array([datetime.datetime(2020, 1, 1, tzinfo=UTC), datetime.datetime(1969, 12, 31, tzinfo=UTC),
                                datetime.datetime(2020, 1, 1, tzinfo=UTC)])},
        "row 1, column 'timestamp': got datetime.datetime(1969, 12, 31, 0, 0",
    ),
    ({"timestamp": [1, None, 2]}, "row 1, column 'timestamp': got None, expected a time between 1970 and 2200"),
    ({"user_lat": [1.0, 2.0, None], "user_lon": [1.0, None, None]}, "row 1, column 'user_lon': got None, expected a"),
    ({"user_lat": [1.0, -99.0, 1.0], "user_lon": [1.0, 1.0, 1.0]}, "row 1, column 'user_lat': got -99.0, expected a"),
    ({"probability": [0.1, 1.5, 0.2]}, "row 1, column 'probability': got 1.5, expected a probability in [0, 1]"),
]  # fmt: skip


def _case(bad: list[tuple[dict[str, Any], str]], file: str) -> list[tuple[str, dict[str, Any], str]]:
    return [(file, changes, message) for changes, message in bad]


CASES = _case(BAD_ITEMS, "items.parquet") + _case(BAD_VISITS, "interactions.parquet")


@pytest.mark.parametrize(("file", "changes", "message"), CASES, ids=[f"{f[:5]}-{m[:40]}" for f, _, m in CASES])
def test_bad_rows(tmp_path: Path, file: str, changes: dict[str, Any], message: str) -> None:
    if file == "items.parquet":
        folder = raw(tmp_path / "raw", items(**changes), visits(item_id=["a", "c", "a"]))
        run: Callable[[BadRows], pa.Table] = lambda bad: read_items(folder, bad)  # noqa: E731
    else:
        folder = raw(tmp_path / "raw", visits_=visits(**changes))
        run = lambda bad: read(folder, bad)  # noqa: E731
    with pytest.raises(DataError) as error:
        run(BadRows())
    assert f"{folder / file}: " in str(error.value) and message in str(error.value) and MEND in str(error.value)

    with BadRows("skip", tmp_path / "rejected") as bad_rows:
        table = run(bad_rows)
    assert len(table) == 2 and bad_rows.total == 1
    (counted,) = bad_rows.summary()
    aside = pq.read_table(tmp_path / "rejected" / file)
    assert aside.column_names[:3] == ["row", "column", "reason"] and aside["row"].to_pylist() == [1]
    assert aside["column"].to_pylist() == [counted["column"]] and aside["reason"].to_pylist() == [counted["reason"]]
    source = pq.read_table(folder / file)
    assert (
        aside.select(source.column_names).slice(0, 1).to_pylist().__repr__()
        == source.slice(1, 1).to_pylist().__repr__()
    )


WRONG_TYPES = [
    ("items", {"lat": ["1", "2", "3"]}, "column 'lat': got type string, expected floating point or integer; cast the"),
    (
        "items",
        {"item_id": [1.0, 2.0, 3.0]},
        "column 'item_id': got type double, expected integer or string; cast the col",
    ),
    ("items", {"name": [1, 2, 3]}, "column 'name': got type int64, expected string; cast the column to string"),
    (
        "items",
        {"category": [1, 2, 3]},
        "column 'category': got type int64, expected list of string, or string; cast the",
    ),
    ("items", {"opening_hours": [9, 9, 9]}, "column 'opening_hours': got type int64, expected string, or list<"),
    ("items", {"opening_hours": [["off"]] * 3}, "column 'opening_hours': got type list<"),
    ("items", {"price": ["1", "2", "3"]}, "column 'price': got type string, expected floating point or integer"),
    (
        "visits",
        {"timestamp": ["2020", "2021", "2022"]},
        "got type string, expected timestamp, date, or integer seconds",
    ),
    (
        "visits",
        {"timestamp": [1.0, 2.0, 3.0]},
        "got type double, expected timestamp, date, or integer seconds since 1970",
    ),
    ("visits", {"label": ["1", "0", "1"]}, "column 'label': got type string, expected integer or boolean; cast the"),
    ("visits", {"item_id": [1, 2, 3]}, "column 'item_id': got type int64, expected string as in the items table"),
    ("visits", {"user_id": pa.nulls(3)}, "column 'user_id': got type null, expected integer or string"),
]


@pytest.mark.parametrize(("table", "changes", "message"), WRONG_TYPES, ids=[m[:40] for _, _, m in WRONG_TYPES])
def test_wrong_types(tmp_path: Path, table: str, changes: dict[str, Any], message: str) -> None:
    folder = raw(
        tmp_path,
        items(**changes) if table == "items" else None,
        visits(**changes) if table == "visits" else None,
    )
    with pytest.raises(DataError, match=re.escape(message)):
        read(folder)


def test_missing_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read(raw(tmp_path, items(lat=None, latt=[1.0, 2.0, 3.0])))
    assert str(error.value) == (
        f"{tmp_path / 'items.parquet'}: column 'lat' is missing; found ['item_id', 'name', 'category', 'lon', 'latt']; "
        "did you mean 'latt'? Rename it to 'lat'"
    )
    with pytest.raises(DataError, match=r"column 'label' is missing; found .*; add 'label'"):
        read(raw(tmp_path, visits_=visits(label=None)))
    with pytest.raises(DataError, match="column 'user_lon' is missing, but 'user_lat' is there; add it, or drop both"):
        read(raw(tmp_path, visits_=visits(user_lat=[1.0, 2.0, 3.0])))
    with pytest.warns(UserWarning, match="column 'brands' is not the schema's; did you mean 'brand'?"):
        read(raw(tmp_path, items(brands=["x", "y", "z"])))


def test_unreadable_files(tmp_path: Path) -> None:
    folder = raw(tmp_path / "raw")
    file = folder / "items.parquet"
    whole = file.read_bytes()
    file.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"items.parquet: the file is empty \(0 bytes\), expected Parquet; write it again"
    ):
        read(folder)
    file.write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"items.parquet: not a whole Parquet file \(.* truncated or of another format"):
        read(folder)
    file.write_text("item_id,lat\n1,2\n")
    with pytest.raises(DataError, match="not a whole Parquet file"):
        read(folder)
    pq.write_table(items().slice(0, 0), file)
    with pytest.raises(DataError, match=r"items.parquet: the file has no rows, expected at least one"):
        read(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"items.parquet not found; .* holds \['interactions.parquet'\]"):
        read(folder)
    pq.write_table(items(), file)
    pq.write_table(visits().slice(0, 0), folder / "interactions.parquet")
    with pytest.raises(DataError, match="the interactions have no rows, expected at least one"):
        read(folder)
    (folder / "interactions.parquet").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"got no interactions, expected interactions.parquet or interactions/\*.parquet$"
    ):
        read(folder)
    (folder / "interactions.csv").write_text("")
    with pytest.raises(FileNotFoundError, match=r"; interactions.csv is read with --format csv$"):
        read(folder)


def test_damage_inside_a_file_is_told(tmp_path: Path) -> None:
    many = pa.table({"user_id": np.arange(50_000) * 7919 % 50_021, "item_id": ["a"] * 50_000,
                     "timestamp": np.arange(50_000), "label": np.ones(50_000, np.int8)})  # fmt: skip
    folder = raw(tmp_path, visits_=many)
    file = folder / "interactions.parquet"
    data = bytearray(file.read_bytes())
    data[20:4000] = b"\xff" * 3980
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"interactions.parquet: not a whole Parquet file"):
        read(folder)


def test_everything_set_aside_is_an_error(tmp_path: Path) -> None:
    folder = raw(tmp_path / "raw", visits_=visits(label=[2, 2, 2]))
    with BadRows("skip", tmp_path / "r") as bad, pytest.raises(DataError, match="no row is left, all were set aside"):
        read(folder, bad)
    with pytest.raises(ValueError, match="on_bad_rows 'skip' needs a folder"):
        BadRows("skip")
    with pytest.raises(ValueError, match="on_bad_rows: got 'drop', expected 'error' or 'skip'"):
        BadRows("drop")  # type: ignore[arg-type]


def test_folder_of_parts(tmp_path: Path) -> None:
    folder = raw(tmp_path / "raw")
    (folder / "interactions").mkdir()
    with pytest.raises(DataError, match=r"got both interactions.parquet and interactions/, expected one of them"):
        read(folder)
    (folder / "interactions.parquet").unlink()
    for number in range(3):
        table = visits(label=[1, 0, 2 if number == 1 else 1]).slice(0, 0 if number == 0 else 3)
        pq.write_table(table, folder / "interactions" / f"part-{number:05d}.parquet")
    with pytest.raises(DataError, match=r"part-00001.parquet: row 2, column 'label': got 2, expected 0 or 1"):
        read(folder)
    with BadRows("skip", tmp_path / "rejected") as bad_rows:
        assert len(read(folder, bad_rows)) == 5
    assert (tmp_path / "rejected" / "interactions-part-00001.parquet").is_file()
    assert not has_column(folder, "probability")
    pq.write_table(visits(user_id=["x", "y", "z"]), folder / "interactions" / "part-00003.parquet")
    with pytest.raises(DataError, match="column 'user_id': got type string, expected int64 as in the first file"):
        read(folder, BadRows("skip", tmp_path / "again"))


def test_users(tmp_path: Path) -> None:
    folder = raw(tmp_path)
    assert read_users(folder) is None
    file = folder / "users.parquet"
    age = pa.array(["x", None, "y"]).dictionary_encode()
    pq.write_table(pa.table({"age": age, "user_id": [3, 1, 2], "vip": [True, False, None], "n": [1, 2, 3]}), file)
    own, left = own_columns(folder, {})
    users = read_users(folder, own=own)
    assert users is not None and users.to_pylist()[0] == {"user_id": 3, "own.age": "x", "own.vip": "true", "own.n": "1"}
    assert left == {} and {c.kind for c in own} == {"category"}
    pq.write_table(pa.table({"user_id": [3, 1, 3]}), file)
    with pytest.raises(DataError, match="row 2, column 'user_id': got 3, which row 0 has too"):
        read_users(folder)
    pq.write_table(pa.table({"user_id": [3, 1], "height": [1.7, 1.8]}), file)
    assert [(c.column, c.kind) for c in own_columns(folder, {})[0]] == [("height", "buckets")]
    pq.write_table(pa.table({"user_id": [3, 1], "home": [{"lat": 1}, None]}), file)
    assert own_columns(folder, {}) == ([], {"users": {"home": "struct<lat: int64>, which makes no feature"}})


@settings(max_examples=30, deadline=None)
@given(bad=st.sets(st.integers(0, 199), max_size=199), block=st.integers(1, 300))
def test_good_and_bad_rows_partition_the_file(
    tmp_path_factory: pytest.TempPathFactory, bad: set[int], block: int
) -> None:
    """Whatever rows are bad and however they are blocked: good rows stay in order, bad ones are set aside."""
    folder = tmp_path_factory.mktemp("raw")
    label = np.ones(200, np.int8)
    label[list(bad)] = 7
    table = pa.table({"user_id": np.arange(200), "item_id": ["a"] * 200, "timestamp": np.arange(200), "label": label})
    pq.write_table(table, folder / "interactions.parquet", row_group_size=64)
    with BadRows("skip", folder / "rejected") as bad_rows:
        parts = list(iter_interactions(folder, pa.array(["b", "a"]), bad_rows, block_rows=block))
    got = [row for part in parts for row in part["user_id"].to_pylist()]
    assert got == [i for i in range(200) if i not in bad] and bad_rows.total == len(bad)
    if bad:
        assert pq.read_table(folder / "rejected" / "interactions.parquet")["row"].to_pylist() == sorted(bad)


BLANKS = ["", " ", "\t\n", "\u3000"]


@pytest.mark.parametrize("blank", BLANKS)
def test_blank_text_is_missing(tmp_path: Path, blank: str) -> None:
    """In text, categories and users' columns it is null; as an id it makes a bad row."""
    table = read_items(
        raw(tmp_path, items(name=[blank, "B", "C"], brand=[blank, " b ", None], category=[blank, "F", "G"]))
    )
    assert table["name"].to_pylist() == [None, "B", "C"] and table["brand"].to_pylist() == [None, " b ", None]
    assert table["category"].to_pylist() == [None, ["F"], ["G"]]
    pq.write_table(pa.table({"user_id": ["u", "v"], "age": [blank, "old"]}), tmp_path / "users.parquet")
    users = read_users(tmp_path, own=[OwnColumn(of="users", column="age", kind="category", why="")])
    assert users is not None and users["own.age"].to_pylist() == [None, "old"]
    folder = raw(tmp_path, visits_=visits(user_id=["u", blank, "v"], request_id=["r", "r", blank]))
    with pytest.raises(DataError) as error:
        read(folder)
    assert f"row 1, column 'user_id': got {blank!r}, expected an id, not null or blank" in str(error.value)
    assert "is it somebody who is not signed in?" in str(error.value)
    with BadRows("skip", tmp_path / "rejected") as bad_rows:
        table = read(folder, bad_rows)
    assert table["user_id"].to_pylist() == ["u", "v"] and table["request_id"].to_pylist() == ["r", None]
    with pytest.raises(DataError, match=r"column 'item_id': got .*, expected an id, not null or blank"):
        read_items(raw(tmp_path, items(item_id=["a", blank, "c"])))


def test_categories_of_lists_and_text_read_alike(tmp_path: Path) -> None:
    """ " > " separates levels in both; of several whole paths the first counts."""
    text = ["Food > Sushi", "Shop", None]
    lists: list[Any] = [["Food > Sushi", "Shop > Toys"], ["Shop"], None]
    for category in (text, lists, [["Food", "Sushi"], ["Shop"], []]):
        table = read_items(raw(tmp_path, items(category=category)))
        assert table["category"].to_pylist() == [["Food", "Sushi"], ["Shop"], None]


def test_values_under_a_null_list_are_not_looked_at(tmp_path: Path) -> None:
    offsets, words = pa.array([0, 2, 3, 4], pa.int32()), pa.array(["x", "", "Food", "Bar"])
    category = pa.ListArray.from_arrays(offsets, words, mask=pa.array([True, False, False]))
    block = Block(Path("x"), items(category=category), np.arange(3), ITEMS)
    assert block.fault.tolist() == [0, 0, 0]
    empty = pa.ListArray.from_arrays(offsets, pa.array(["x", "y", "", "Bar"]), mask=pa.array([True, False, False]))
    block = Block(Path("x"), items(category=empty), np.arange(3), ITEMS)
    assert block.fault.tolist() == [0, 1, 0]


HINTS = [
    ({"timestamp": [1, 1_600_000_000_000, 2]}, "it looks like milliseconds since 1970: divide them by 1,000; correct"),
    ({"timestamp": [1, 202204211030, 2]}, "it looks like dates written as numbers, such as 202204211030: write dates"),
    ({"user_lat": [1.0, 121.5, 1.0], "user_lon": [1.0, 31.2, 1.0]}, "user_lon is 31.2, so the two may be swapped; "),
]


@pytest.mark.parametrize(("changes", "hint"), HINTS)
def test_bad_values_say_what_they_look_like(tmp_path: Path, changes: dict[str, Any], hint: str) -> None:
    with pytest.raises(DataError) as error:
        read(raw(tmp_path, visits_=visits(**changes)))
    assert hint in str(error.value) and MEND in str(error.value)


@pytest.mark.parametrize("dictionary", [True, False])
def test_encoded_ids_are_the_same(tmp_path: Path, dictionary: bool) -> None:
    """Blocks over several row groups, each with a dictionary of its own, or none."""
    folder = raw(tmp_path)
    users = pa.array([f"u{i * 7 % 13}" for i in range(40)])
    table = visits(user_id=users, item_id=["a", "b", "a", "c"] * 10, timestamp=np.arange(40), label=[1] * 40)
    pq.write_table(table, folder / "interactions.parquet", row_group_size=9, use_dictionary=dictionary)
    ids = read_items(folder)["item_id"]
    plain = pa.concat_tables(iter_interactions(folder, ids, block_rows=16))
    blocks = list(iter_interactions(folder, ids, block_rows=16, encoded=True))
    assert all(pa.types.is_dictionary(b.schema.field(n).type) for b in blocks for n in ("user_id", "item_id"))
    for name in plain.column_names:
        got = pa.chunked_array([b[name].combine_chunks().cast(plain[name].type) for b in blocks])
        assert got.to_pylist() == plain[name].to_pylist()


@pytest.mark.parametrize("bad", [None, "", "  "])
@pytest.mark.parametrize("name", ["user_id", "item_id"])
def test_encoded_ids_that_are_blank_are_told(tmp_path: Path, name: str, bad: str | None) -> None:
    folder = raw(tmp_path, visits_=visits(user_id=["x", "y", "z"]))
    table = pq.read_table(folder / "interactions.parquet")
    at = table.column_names.index(name)
    pq.write_table(table.set_column(at, name, pa.array(["a", bad, "b"])), folder / "interactions.parquet")
    told = []
    for encoded in (False, True):
        with pytest.raises(DataError, match=rf"row 1, column '{name}': got {bad!r}") as error:
            list(iter_interactions(folder, read_items(folder)["item_id"], encoded=encoded))
        told.append(str(error.value))
    assert told[0] == told[1]
