"""IDs on disk, and the hash by which a ranker knows them."""

import numpy as np
import pyarrow as pa
import pytest

from placerank.tokenization.codes.semantic_ids import SemanticIds

CODES = np.array([[0, 1], [0, 1], [2, 0]])


def ids(values: list, codes: np.ndarray = CODES, tokenizer: str = "t") -> SemanticIds:
    return SemanticIds.first(pa.array(values), codes, 4, tokenizer)


def test_hash_is_the_same_in_every_version() -> None:
    """Rankers keep it: written down once."""
    assert ids([5, 6, 7]).hash == "0c4cc37e243ad4e6d45bf462a747563b363ca8203c8e7ff6abfef434b428398e"
    assert ids(["a", "bc", ""]).hash == "44ed41dc5bfedfc1732762909a7117144aa18dfbe3bc4776c96326e30a7af08c"


def test_hash_is_of_everything() -> None:
    base = ids(["a", "bc", "d"])
    others = [
        ids(["ab", "c", "d"]),
        ids(["a", "bc", "e"]),
        ids(["a", "bc", "d"], CODES[[0, 1, 1]]),
        ids(["bc", "a", "d"]),
        ids(["a", "bc", "d"], tokenizer="u"),
        SemanticIds.first(pa.array(["a", "bc", "d"]), np.pad(CODES, ((0, 0), (0, 1))), 4, "t"),
    ]
    assert len({base.hash, *(o.hash for o in others)}) == 7
    assert ids(["a", "bc", "d"]).hash == base.hash
    sliced = SemanticIds.first(pa.array(["x", "a", "bc", "d"])[1:], CODES, 4, "t")
    assert sliced.hash == base.hash, "a slice is what it holds"


def test_items_are_added_after_and_nobodys_id_changes() -> None:
    base = ids([1, 2, 3])
    more = base.added(pa.array([9, 8]), np.array([[2, 0], [0, 1]]))
    assert more.ids.to_pylist() == [1, 2, 3, 9, 8]
    assert more.suffixes.tolist() == [0, 1, 0, 1, 2] and more.suffix_count == 3
    assert np.array_equal(more.codes[:3], base.codes)
    assert more.lineage[:-1] == base.lineage and more.hash != base.hash
    assert base.added(pa.array([], pa.int64()), np.zeros((0, 2), int)) is base
    fork = base.added(pa.array([8, 9]), np.array([[0, 1], [2, 0]]))
    assert fork.hash != more.hash, "another order of arrival"


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match=r"got ids of type string, expected int64 as before"):
        ids([1, 2, 3]).added(pa.array(["a"]), CODES[:1])
    with pytest.raises(ValueError, match=r"some have an ID already, or come twice"):
        ids([1, 2, 3]).added(pa.array([3]), CODES[:1])
    with pytest.raises(ValueError, match=r"some have an ID already, or come twice"):
        ids([1, 2, 3]).added(pa.array([7, 7]), CODES[:2])
