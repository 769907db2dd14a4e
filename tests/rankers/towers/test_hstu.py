"""HSTU against its equations, a row and a visit at a time."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from tower_cases import D, G, make_history

from placerank.rankers.towers.hstu import HSTU, PointwiseLayer
from placerank.rankers.towers.tower import History

LENGTHS = [3, 0, 9, 1, 5]


def make(visits: int = 6, layers: int = 2, heads: int = 3) -> HSTU:
    torch.manual_seed(0)
    tower = HSTU(D, G, layers=layers, heads=heads, visits=visits)
    for layer in tower.layers:
        assert isinstance(layer, PointwiseLayer)
        torch.nn.init.normal_(layer.by_place)
        torch.nn.init.normal_(layer.by_gap)
    return tower


def at_gap(gap: float, knots: Tensor) -> Tensor:
    low = min(int(gap), len(knots) - 2)
    return knots[low] + (min(gap, len(knots) - 1) - low) * (knots[low + 1] - knots[low])


def layer_by_hand(layer: PointwiseLayer, rows: list[Tensor], ago: list[float], km: list[float]) -> list[Tensor]:
    """Rows oldest first, the target last; hours ago of each (the target: 0), log km of each visit to the target."""
    width = layer.f2.in_features // layer.heads
    parts = [[p.view(layer.heads, width) for p in F.silu(layer.f1(layer.norm_in(x))).chunk(4)] for x in rows]
    new = []
    for s, (u, _, q, _) in enumerate(parts):
        pooled = torch.zeros(layer.heads, width)
        for t in range(s + 1):
            _, v, _, k = parts[t]
            bias = layer.by_place[:, s - t] + at_gap(math.log1p(ago[t] - ago[s]), layer.by_gap[0])
            if s == len(rows) - 1 and t < s:
                bias = bias + at_gap(km[t], layer.by_gap[1])
            pooled += (F.silu((q * k).sum(1) + bias) / layer.visits)[:, None] * v
        new.append(rows[s] + layer.f2(layer.norm_out(pooled.flatten()) * u.flatten()))
    return new


def by_hand(tower: HSTU, query: Tensor, history: History) -> Tensor:
    out = []
    for b, q in enumerate(query):
        low, high = int(history.offsets[b]), int(history.offsets[b + 1])
        low = max(low, high - tower.visits)
        rows = [*history.keys[low:high], q]
        ago = [*torch.expm1(history.gaps[low:high, 0].double()).tolist(), 0.0]
        for layer in tower.layers:
            assert isinstance(layer, PointwiseLayer)
            rows = layer_by_hand(layer, rows, ago, history.gaps[low:high, 1].tolist())
        out.append(torch.cat([rows[-1], rows[-1] * q]))
    return torch.stack(out)


def older_first(history: History) -> History:
    """Gaps of up to years, descending in hours within a history, as they are."""
    gaps = history.gaps * 13
    for low, high in zip(history.offsets[:-1].tolist(), history.offsets[1:].tolist(), strict=True):
        gaps[low:high, 0] = gaps[low:high, 0].sort(descending=True).values
    return history._replace(gaps=gaps)


@pytest.mark.parametrize("visits", [1, 6, 50])
def test_its_equations(visits: int) -> None:
    tower = make(visits)
    query, history = make_history(LENGTHS)
    history = older_first(history)
    torch.testing.assert_close(tower(query, history), by_hand(tower, query, history), rtol=1e-4, atol=1e-4)


def test_what_is_before_the_last_visits_does_not_matter() -> None:
    tower = make(visits=4)
    query, history = make_history([9])
    changed = history.keys.clone()
    changed[:5] = changed[:5].flip(1)
    assert torch.equal(tower(query, history), tower(query, history._replace(keys=changed)))
    changed[5] = changed[5].flip(0)
    assert not torch.allclose(tower(query, history), tower(query, history._replace(keys=changed)), atol=1e-4)


def test_requests_without_visits_beside_each_other_stay_apart() -> None:
    """They have the same start and length: candidates of several requests become one block."""
    tower = make()
    query, history = make_history([0, 0, 2, 2, 0, 3])
    gaps = history.gaps.clone()
    gaps[2:4, 0] = gaps[0:2, 0]  # two candidates of one request
    rows = torch.tensor([0, 1, 0, 1, 2, 3, 4])
    keys = torch.randn(5, D)
    starts = torch.tensor([0, 0, 0, 0, 2, 2])
    shared = history._replace(keys=keys, gaps=gaps, starts=starts)
    torch.testing.assert_close(tower(query, shared), tower(query, history._replace(keys=keys[rows], gaps=gaps)))


def test_many_alike_visits_weigh_more_than_few() -> None:
    """What a softmax would lose: the paper's reason against it."""
    layer = PointwiseLayer(D, G, 2, 8)
    seen = {}
    layer.norm_out.register_forward_pre_hook(lambda _, args: seen.setdefault("pooled", []).append(args[0].norm()))
    for visits in (1, 4):
        x = torch.ones(1, visits + 1, D).cumsum(2)
        there = torch.ones(1, visits + 1, visits, dtype=torch.bool)
        layer(x, there, torch.zeros(1, visits + 1, visits), torch.zeros(1, 1, visits, G - 1))
    assert seen["pooled"][1] > 1.5 * seen["pooled"][0]


def test_an_unknown_gap_is_its_own_samples_alone() -> None:
    tower = make()
    query, history = make_history([2, 3])
    gaps = history.gaps.clone()
    gaps[0, 1] = torch.nan
    out = tower(query, history._replace(gaps=gaps))
    assert out[0].isnan().all() and torch.equal(out[1], tower(query, history)[1])
