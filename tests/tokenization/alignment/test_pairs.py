"""Preference pairs: the same content, and a rejected place that is neither the own nor the partner's."""

import numpy as np
import pyarrow as pa

from placerank.tokenization.alignment.locations import Locations
from placerank.tokenization.alignment.pairs import (
    COLLABORATIVE,
    GEOGRAPHIC,
    PreferencePairs,
    collaborative_pairs,
    geographic_pairs,
)
from placerank.tokenization.text.prompts import PromptConfig, build_prompts


def places(n: int = 60, per: int = 10) -> Locations:
    districts = [None if i == 7 else f"d{i // per}" for i in range(n)]
    table = pa.table({"name": ["x"] * n, "district": pa.array(districts, pa.string())})
    return Locations(build_prompts(table, PromptConfig()), np.zeros(n), np.arange(n) * 0.1)


def test_geographic_pairs_use_each_item_in_turn() -> None:
    where = places()
    pairs = geographic_pairs(where, 150, np.random.default_rng(0))
    assert (pairs.content == pairs.preferred).all() and (pairs.kind == GEOGRAPHIC).all()
    assert (where.code[pairs.rejected] != where.code[pairs.content]).all()
    times = np.bincount(pairs.content, minlength=60)
    assert times[7] == 0 and set(times[where.known]) == {2, 3}
    assert len(set(pairs.rejected)) > 40


def test_collaborative_pairs_carry_content_to_the_partners_place() -> None:
    where = places()
    a, b = np.arange(0, 59), np.arange(1, 60)
    pairs = collaborative_pairs(a, b, where, 1000, np.random.default_rng(0))
    assert len(pairs) == 57 and (pairs.kind == COLLABORATIVE).all()  # not those with item 7
    assert (np.abs(pairs.content - pairs.preferred) == 1).all()
    assert 15 < (pairs.content < pairs.preferred).sum() < 42
    for other in (pairs.content, pairs.preferred):
        assert (where.code[pairs.rejected] != where.code[other]).all()
    assert len(collaborative_pairs(a, b, where, 5, np.random.default_rng(0))) == 5


def test_pairs_without_anywhere_else_are_left_out() -> None:
    two = places(20, 10)
    assert len(collaborative_pairs(np.array([0]), np.array([15]), two, 9, np.random.default_rng(0))) == 0
    both = PreferencePairs.join(
        geographic_pairs(two, 3, np.random.default_rng(0)),
        collaborative_pairs(np.array([0]), np.array([1]), two, 9, np.random.default_rng(0)),
    )
    assert len(both) == 4 and both.kind.tolist() == [0, 0, 0, 1] and len(both.take(np.array([3]))) == 1
