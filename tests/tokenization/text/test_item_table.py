"""Items as a mapped file: the same rows in any order, block by block."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placerank.data.raw.schema import read_items
from placerank.tokenization.text import item_table
from placerank.tokenization.text.item_table import (
    in_order,
    item_blocks,
    read_mapped,
    rows_in,
    same_order,
    take_rows,
    with_column,
    write_mapped,
)  # fmt: skip

RNG = np.random.default_rng(0)
ITEMS = pa.table(
    {
        "item_id": [f"i{i}" for i in range(100)],
        "category": [None if i % 7 == 0 else ["a"] * (i % 3) for i in range(100)],
        "lat": [None if i % 11 == 0 else float(i) for i in range(100)],
    }
)


def blocks(table: pa.Table, cuts: list[int]) -> list[pa.Table]:
    edges = sorted({0, len(table), *cuts})
    return [table.slice(a, b - a) for a, b in pairwise(edges)]


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, 100), max_size=5), rows=st.lists(st.integers(0, 99), max_size=30))
def test_taken_rows_are_those_of_arrow(cuts: list[int], rows: list[int]) -> None:
    table = pa.concat_tables(blocks(ITEMS, cuts))
    assert take_rows(table, np.array(rows, np.int64)).equals(ITEMS.take(pa.array(rows, pa.int64())).combine_chunks())


@settings(max_examples=50, deadline=None)
@given(
    a=st.lists(st.integers(0, 100), max_size=4), b=st.lists(st.integers(0, 100), max_size=4), other=st.integers(0, 99)
)
def test_the_same_order_however_it_is_cut(a: list[int], b: list[int], other: int) -> None:
    ids = lambda table, cuts: (x["item_id"].combine_chunks() for x in blocks(table, cuts))  # noqa: E731
    assert same_order(ids(ITEMS, a), ids(ITEMS, b))
    assert not same_order(ids(ITEMS, a), ids(ITEMS.slice(0, other), b))
    turned = ITEMS.take(pa.array([*range(other), *range(99, other - 1, -1)]))
    assert same_order(ids(ITEMS, a), ids(turned, b)) == (other == 99)
    numbers = pa.table({"item_id": range(100)})
    assert not same_order(ids(ITEMS, a), ids(numbers, b)) and same_order(iter([]), iter([]))


@pytest.mark.parametrize("block", [7, 100, 1000])
def test_files_hold_the_rows_in_order(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_table, "BLOCK_ROWS", block)
    rows = RNG.permutation(100)[:80]
    some = in_order(tmp_path / "a", iter(blocks(ITEMS, [30, 31])), rows)
    assert some.equals(ITEMS.take(pa.array(rows))) and read_mapped(tmp_path / "a").equals(some)
    assert in_order(tmp_path / "b", iter(blocks(ITEMS, [30, 31])), None).equals(ITEMS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    doubled = with_column(ITEMS, "lat", tmp_path / "lat", lambda x: pa.compute.multiply(x["lat"], 2).combine_chunks())
    assert doubled["lat"].to_pylist() == [None if x is None else 2 * x for x in ITEMS["lat"].to_pylist()]
    assert with_column(ITEMS, "new", tmp_path / "new", lambda x: x["lat"].combine_chunks()).column_names[-1] == "new"


def test_mapped_files_take_no_memory(tmp_path: Path) -> None:
    before = pa.total_allocated_bytes()
    table = write_mapped(tmp_path / "x", iter(ITEMS for _ in range(200)))
    assert len(table) == 20_000 and pa.total_allocated_bytes() - before < 100_000


def test_items_of_prepared_and_raw_folders(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_table, "BLOCK_ROWS", 64)
    columns = ("item_id", "lat", "never")
    catalog = pq.read_table(prepared / "catalog.parquet")
    found = list(item_blocks(prepared, columns))
    assert len(found) > 1 and pa.concat_tables(found).equals(catalog.slice(1).select(["item_id", "lat"]))
    raw = prepared.parent / "raw"
    assert pa.concat_tables(item_blocks(raw, columns[:2])).equals(read_items(raw).select(["item_id", "lat"]))
    ids = catalog["item_id"].slice(1).combine_chunks()
    rows, count = rows_in(item_blocks(prepared, ("item_id",)), pa.concat_arrays([ids[5:7], pa.array([-9], ids.type)]))
    assert rows.tolist() == [5, 6, -1] and count == len(ids)
    assert rows_in(item_blocks(prepared, ("item_id",)), pa.array(["x"]))[0].tolist() == [-1]
