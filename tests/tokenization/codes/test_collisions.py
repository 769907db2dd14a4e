"""Suffixes against a loop, and that adding items changes nobody's ID."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placerank.tokenization.codes.collisions import assign_suffixes, collisions, id_numbers

rows = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=40)


def array(rows: list) -> np.ndarray:
    return np.array(rows, np.int64).reshape(-1, 2)


@settings(deadline=None)
@given(rows)
def test_suffixes_count_who_came_before(codes: list) -> None:
    seen: Counter = Counter()
    want = []
    for code in codes:
        want.append(seen[code])
        seen[code] += 1
    assert assign_suffixes(array(codes)).tolist() == want


@settings(deadline=None)
@given(rows, rows, rows)
def test_adding_in_steps_is_adding_at_once(a: list, b: list, c: list) -> None:
    whole = assign_suffixes(array(a + b + c))
    first = assign_suffixes(array(a))
    second = assign_suffixes(array(b), array(a), first)
    third = assign_suffixes(array(c), array(a + b), np.concatenate([first, second]))
    assert np.concatenate([first, second, third]).tolist() == whole.tolist()


@settings(deadline=None)
@given(rows, rows, st.data())
def test_ids_are_unique_also_when_items_have_left(a: list, b: list, data: st.DataObject) -> None:
    suffix = assign_suffixes(array(a))
    stay = np.array([data.draw(st.booleans()) for _ in a], bool)
    left, kept = array(a)[stay], suffix[stay]
    new = assign_suffixes(array(b), left, kept)
    ids = np.column_stack([np.concatenate([left, array(b)]), np.concatenate([kept, new])])
    assert collisions(ids)["collision_rate"] == 0
    assert len(np.unique(ids, axis=0)) == len(ids)


@settings(deadline=None)
@given(rows)
def test_numbers_are_equal_where_rows_are(codes: list) -> None:
    _, want = np.unique(array(codes), axis=0, return_inverse=True)
    assert id_numbers(array(codes)).tolist() == want.reshape(-1).tolist()


def test_numbers_hold_beyond_64_bits() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 65_536, (300, 8))
    codes[100:200] = codes[:100]
    codes[250, 7] = codes[249, 7] + 1
    assert len(np.unique(id_numbers(codes))) == 200


def test_collisions_by_hand() -> None:
    found = collisions(array([(0, 1), (0, 1), (0, 1), (2, 2), (1, 0), (2, 2), (1, 1)]))
    assert found == {
        "items": 7,
        "ids": 4,
        "collision_rate": pytest.approx(5 / 7),
        "repeat_rate": pytest.approx(3 / 7),
        "largest": 3,
    }


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match=r"got known codes \(3, 1\) and 3 suffixes for codes \(2, 2\)"):
        assign_suffixes(array([(0, 0), (1, 1)]), np.zeros((3, 1), int), np.zeros(3, int))
