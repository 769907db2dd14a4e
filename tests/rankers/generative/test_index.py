"""Items by their codes: trees by hand, items that come and go, what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from placerank.data.batches.semantic_features import SemanticFeatures
from placerank.rankers.generative.index import Index, Tries
from placerank.rankers.generative.reach import Allowed, everything

Prefix = tuple[int, ...]


def allowed(*lists: list[int]) -> Allowed:
    offsets = torch.tensor([0, *map(len, lists)]).cumsum(0)
    return Allowed(offsets, torch.tensor([item for row in lists for item in row], dtype=torch.int64))


def paths(tries: Tries) -> list[dict[Prefix, list[int]]]:
    """Items by semantic ID, walked from each request's root down."""
    found = []
    for b in range(len(tries.levels[0].offsets) - 1):
        by_id: dict[Prefix, list[int]] = {}

        def walk(level: int, start: int, stop: int, prefix: Prefix, into: dict[Prefix, list[int]]) -> None:
            if level == len(tries.levels):
                into[prefix] = tries.items[start:stop].tolist()
                return
            codes, children, _ = tries.levels[level]
            for node in range(start, stop):
                walk(level + 1, int(children[node]), int(children[node + 1]), (*prefix, int(codes[node])), into)

        offsets = tries.levels[0].offsets
        walk(0, int(offsets[b]), int(offsets[b + 1]), (), by_id)
        found.append(by_id)
    return found


def by_hand(codes: dict[int, Prefix], items: list[int]) -> dict[Prefix, list[int]]:
    grouped: dict[Prefix, list[int]] = {}
    for item in sorted(items):
        if item in codes and min(codes[item]) >= 0:
            grouped.setdefault(codes[item], []).append(item)
    return dict(sorted(grouped.items()))


SETS = st.lists(st.lists(st.integers(0, 40), unique=True, max_size=30), max_size=5)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 4), SETS)
def test_trees_of_any_sets(data: st.DataObject, levels: int, K: int, sets: list[list[int]]) -> None:
    """Of items with and without codes, after some have come and gone."""
    code = st.tuples(*[st.integers(0, K - 1)] * levels) | st.just((-1,) * levels)
    held = data.draw(st.dictionaries(st.integers(0, 40), code, max_size=25))
    index = Index(np.array([*held], np.int64), np.array([*held.values()], np.int64).reshape(-1, levels), K)
    for _ in range(data.draw(st.integers(0, 3))):
        if held and data.draw(st.booleans()):
            gone = data.draw(st.lists(st.sampled_from(sorted(held)), unique=True))
            index.remove(np.array(gone, np.int64))
            held = {item: c for item, c in held.items() if item not in gone}
        else:
            others = [i for i in range(80) if i not in held]  # at most 55 are held
            come = data.draw(st.dictionaries(st.sampled_from(others), code, max_size=10))
            index.add(np.array([*come], np.int64), np.array([*come.values()], np.int64).reshape(-1, levels))
            held |= come
    tries = index.tries(allowed(*sets))
    assert [list(x.items()) for x in paths(tries)] == [list(by_hand(held, items).items()) for items in sets]
    every = torch.tensor([item for items in sets for item in items], dtype=torch.int64)
    assert torch.equal(every[tries.rows], tries.items.long())
    (whole,) = paths(index.whole())
    assert whole == by_hand(held, [*held])
    assert index.without_codes.tolist() == sorted(item for item, c in held.items() if min(c) < 0)
    assert len(index) + len(index.without_codes) == len(held)
    for item, codes in zip(index.items.tolist(), index.codes.tolist(), strict=True):
        assert held[item] == tuple(codes)
    # the same nodes in the whole tree, and how many IDs lie below them
    for level, numbers in enumerate(index.in_whole(tries)[1:]):
        assert torch.equal(index.whole().levels[level].codes[numbers], tries.levels[level].codes)
    for b, by_id in enumerate(paths(tries)):
        assert int(tries.below(0, torch.tensor([b]))) == len(by_id)
        start, stop = tries.levels[0].offsets[b : b + 2].tolist()
        for node in range(start, stop):
            below = sum(prefix[0] == int(tries.levels[0].codes[node]) for prefix in by_id)
            assert int(tries.below(1, torch.tensor([node]))) == below


def test_items_of_one_code_lie_side_by_side() -> None:
    index = Index(np.array([7, 3, 5, 9]), np.array([[1, 2], [0, 3], [1, 2], [-1, -1]]), 4)
    assert index.items.tolist() == [3, 5, 7] and index.codes.tolist() == [[0, 3], [1, 2], [1, 2]]
    assert index.without_codes.tolist() == [9]
    assert index.has(np.array([3, 9, 4, -1, 10**9])).tolist() == [True, False, False, False, False]
    assert paths(index.tries(everything([7, 9, 3, 100], 2))) == [{(0, 3): [3], (1, 2): [7]}] * 2


def test_without_items(caplog: pytest.LogCaptureFixture) -> None:
    index = Index(np.array([4]), np.array([[-1]]), 4)
    assert "1 of 1 items have no semantic ID" in caplog.text
    assert len(index) == 0 and paths(index.whole()) == [{}]
    index.add(np.array([2]), np.array([[3]]))
    assert paths(index.whole()) == [{(3,): [2]}]
    index.remove(np.array([4, 2]))
    assert paths(index.tries(allowed([2, 4], []))) == [{}, {}]


def test_what_is_refused_changes_nothing() -> None:
    index = Index(np.array([1, 2]), np.array([[0, 1], [3, 3]]), 4)
    for call, message in (
        (lambda: index.add(np.array([5, 1]), np.array([[0, 0], [0, 0]])), "got 1, which is here already"),
        (lambda: index.add(np.array([5, 5]), np.array([[0, 0], [0, 0]])), "got 5 twice"),
        (lambda: index.add(np.array([5]), np.array([[0, 4]])), "codes: got 0 to 4, expected 0 to 3"),
        (lambda: index.add(np.array([-1]), np.array([[0, 0]])), "items: got -1 to -1"),
        (lambda: index.add(np.array([5]), np.array([[0]])), r"codes: got \[1, 1\] for items \[1\], expected \[n, 2\]"),
        (lambda: index.add(np.array([5]), np.array([[0.5, 1]])), "expected integers"),
        (lambda: index.remove(np.array([1, 7])), "got 7, which is not here"),
        (lambda: index.tries(allowed([1], [2, 2])), "an item twice in one request"),
        (lambda: Index(np.array([1]), np.array([1]), 4), r"expected \[N\] and \[N, L\]"),
        (lambda: Index(np.array([1]), np.zeros((1, 8), int), 256), "fit 63 bits together"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert index.items.tolist() == [1, 2] and paths(index.whole()) == [{(0, 1): [1], (3, 3): [2]}]


def tokens(codes: list[list[int]], *lineage: str) -> SemanticFeatures:
    return SemanticFeatures(np.array([[-1] * len(codes[0]), *codes]), 4, lineage, "codes")


def test_tokens_and_what_is_added_to_them() -> None:
    index = Index.of_tokens(tokens([[0, 1], [-1, -1], [2, 2]], "a"))
    assert index.items.tolist() == [1, 3] and index.without_codes.tolist() == [2]
    index.check_lineage("a")
    index.update(tokens([[0, 1], [-1, -1], [2, 2], [2, 1]], "a", "b"))
    assert index.items.tolist() == [1, 4, 3] and index.lineage == ("a", "b")
    index.update(tokens([[0, 1], [-1, -1], [2, 2], [2, 1], [-1, 0], [0, 0]], "a", "b", "c"))
    assert index.items.tolist() == [6, 1, 4, 3] and index.without_codes.tolist() == [2, 5]
    for hash in ("a", "b", "c"):
        index.check_lineage(hash)
    with pytest.raises(ValueError, match="IDs c, the model was trained with x"):
        index.check_lineage("x")
    with pytest.raises(ValueError, match="expected one that goes on from"):
        index.update(tokens([[0, 1]], "a", "z"))
    with pytest.raises(ValueError, match="other codes for items that are here"):
        index.update(tokens([[0, 1], [-1, -1], [2, 3]], "a", "b", "c", "d"))


def test_a_new_code_for_an_item_that_had_none() -> None:
    index = Index.of_tokens(tokens([[0, 1], [-1, -1]], "a"))
    index.update(tokens([[0, 1], [3, 0]], "a", "b"))
    assert index.items.tolist() == [1, 2] and len(index.without_codes) == 0
