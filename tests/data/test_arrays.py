"""Ranges and runs against loops; hashes that depend on the id alone."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placerank.data.arrays import add_counts, first_of_run, hash_ids, ranges, sort_order, starts_run


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 7))))
def test_ranges(pairs: list[tuple[int, int]]) -> None:
    start, length = np.array(pairs, np.int64).reshape(-1, 2).T
    expected = [i for s, n in pairs for i in range(s, s + n)]
    assert ranges(start, length).tolist() == expected


@pytest.mark.parametrize("size", [0, 3, 9, 10, 100])
def test_counts(size: int) -> None:
    rows, counts = np.random.default_rng(size).integers(0, 10, size).astype(np.int32), np.arange(10)
    add_counts(counts, rows)
    assert counts.tolist() == [i + rows.tolist().count(i) for i in range(10)]


def test_runs() -> None:
    new = starts_run(np.array([1, 1, 1, 2, 2]), np.array([5, 6, 6, 6, 6]))
    assert new.tolist() == [True, True, False, True, False]
    assert first_of_run(new).tolist() == [0, 1, 1, 3, 3]
    assert starts_run(np.array([], int)).tolist() == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1)),
            st.sampled_from([0, 1, 2**31 - 1, -(2**31)]),
            st.integers(0, 3),
            st.one_of(st.integers(5, 6), st.integers(-(2**62), 2**62)),
        ),
        max_size=40,
    )
)
def test_sort_order(rows: list[tuple[int, int, int, int]]) -> None:
    keys = [np.array([row[i] for row in rows], t) for i, t in enumerate((np.int64, np.int32, np.int8, np.int64))]
    order = sort_order(*keys)
    assert sorted(order.tolist()) == list(range(len(rows)))
    assert [rows[i] for i in order] == sorted(rows)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=6), min_size=1, max_size=20))
def test_hashes_depend_on_the_id_alone(ids: list[str]) -> None:
    whole = hash_ids(pa.array(ids))
    assert [hash_ids(pa.array([x]))[0] for x in ids] == whole.tolist()
    assert hash_ids(pa.array(["x", *ids]).slice(1)).tolist() == whole.tolist()
    assert len(set(whole.tolist())) == len(set(ids))


def test_hashes_spread() -> None:
    for ids in (pa.array(range(100_000)), pa.array([f"user-{i}" for i in range(100_000)])):
        count = np.bincount((hash_ids(ids) % np.uint64(50)).astype(int), minlength=50)
        assert abs(count - 2000).max() < 6 * np.sqrt(2000)
