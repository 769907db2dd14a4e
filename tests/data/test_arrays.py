"""Ranges and runs against loops; hashes that depend on the id alone."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placerank.data.arrays import (
    add_counts,
    first_of_run,
    hash_ids,
    id_order,
    ranges,
    reordered,
    sort_order,
    starts_run,
)


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


@pytest.mark.parametrize("bits", [3, 40, 50, 53, 64])
@pytest.mark.parametrize("rows", [0, 1, 2, 5000])
def test_sort_order_with_random_bits_below(bits: int, rows: int) -> None:
    """5,000 rows take 13 bits, requests 11: of 40 or more random ones some don't fit beside them, of 53 most do not."""
    rng = np.random.default_rng(bits)
    request = rng.integers(0, 2000, rows)
    draws = rng.integers(0, 1 << (bits - 1), rows) >> 3 << 3 | rng.integers(0, 2, rows)  # some differ in that bit alone
    draws[: rows // 2] = draws[rows // 2 : rows // 2 * 2] ^ 1
    request[: rows // 2] = request[rows // 2 : rows // 2 * 2]
    order = sort_order(request, draws, last_is_random=True)
    assert sorted(order.tolist()) == list(range(rows))
    found = np.stack([request[order], draws[order]])
    assert (found == np.stack([request, draws])[:, np.lexsort((draws, request))]).all()


def test_reordered() -> None:
    order = np.array([2, 0, 1])
    for values in (np.array([1, 2, 3]), np.array([1, 2, 1], np.int8), np.array([np.nan, 1, np.nan], np.float32)):
        np.testing.assert_array_equal(reordered(values, order), values[order])
    same = np.full(3, np.nan, np.float32)
    out = reordered(same, order)
    out[:] = 0  # its own memory
    assert np.isnan(same).all() and len(reordered(same[:0], order[:0])) == 0


@pytest.mark.parametrize("ids", [["ab", "cd", "\0x"], ["a", "bcd"], ["é", "ab"], ["", "x"], [""], ["x" * 400]])
def test_hashes_are_sums_over_bytes(ids: list[str]) -> None:
    """Of texts that are all as long, too, which go another way; prepared folders depend on them."""
    prime, size = 0x100000001B3, 1 << 64

    def mixed(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % size
        x = (x ^ x >> 27) * 0x94D049BB133111EB % size
        return x ^ x >> 31

    sums = [sum((byte + 1) * pow(prime, i + 1, size) for i, byte in enumerate(x.encode())) % size for x in ids]
    expected = [mixed((total + len(x.encode())) % size) for total, x in zip(sums, ids, strict=True)]
    assert hash_ids(pa.array(ids)).tolist() == expected


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


@given(st.lists(st.text("ab\0é", max_size=20)), st.text("abé", max_size=12))
def test_id_order_of_texts(texts: list[str], before: str) -> None:
    texts = [before + text for text in texts]
    ids = pa.chunked_array([pa.array(texts[:3], pa.string()), pa.array(texts[3:], pa.string())])
    assert [texts[i] for i in id_order(ids)] == sorted(texts, key=str.encode)


def test_id_order_of_numbers() -> None:
    assert id_order(pa.array([3, -(2**63), 2**63 - 1, -1])).tolist() == [1, 3, 0, 2]
