"""Rows by id, against a dictionary."""

import numpy as np
import pyarrow as pa
import pytest

from placerank.data import arrays
from placerank.data.raw import lookup
from placerank.data.raw.lookup import IdIndex

IDS = {
    "text": pa.array([f"place-{i}" for i in range(1000)] + ["", "é", "a\0b", "x" * 300]),
    "integers": pa.array([*range(-500, 500), 2**63 - 1, -(2**63)]),
    "one": pa.array(["a"]),
    "none": pa.array([], pa.string()),
}


@pytest.mark.parametrize("name", IDS)
def test_against_a_dictionary(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_BLOCK", 64)
    ids = IDS[name].take(pa.array(np.random.default_rng(0).permutation(len(IDS[name]))))
    index = IdIndex(pa.chunked_array([ids.slice(0, 300), ids.slice(300)]))
    strange = [None, "place-", "a", "\0"] if pa.types.is_string(ids.type) else [None, 777_777, -501]
    asked = pa.chunked_array([pa.array(strange, ids.type), ids.slice(7), pa.nulls(2, ids.type), ids, ids.slice(3)])
    row_of = {x: i for i, x in enumerate(ids.to_pylist())}
    assert index.find(asked).tolist() == [row_of.get(x, -1) for x in asked.to_pylist()]
    assert index.find(asked.slice(0, 0)).tolist() == []
    for start in range(0, len(asked), 50):  # too few for ids to repeat
        some = asked.slice(start, 50)
        assert index.find(some).tolist() == [row_of.get(x, -1) for x in some.to_pylist()]
        assert index.find(some.drop_null()).tolist() == [row_of.get(x, -1) for x in some.drop_null().to_pylist()]


@pytest.mark.parametrize("hashed", [0, 5, 2**64 - 1])
def test_ids_of_one_hash_are_told_apart(hashed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As good as never with 64 bits, so all get one."""
    monkeypatch.setattr(lookup, "hash_ids", lambda ids: np.full(len(ids), hashed, np.uint64))
    index = IdIndex(pa.array([*"bcdefg"]))
    assert index.find(pa.array([*"zabcdefgg"])).tolist() == [-1, -1, 0, 1, 2, 3, 4, 5, 5]


def test_ids_of_another_type_are_not_there() -> None:
    assert IdIndex(pa.array([1, 2])).find(pa.array(["1", "2"])).tolist() == [-1, -1]
