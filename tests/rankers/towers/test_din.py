"""DIN against the paper's equations, written as a loop over samples and visits."""

import copy

import pytest
import torch
from torch import Tensor
from tower_cases import D, G, make_history, make_tower

from placerank.rankers.towers.din import DIN, Dice
from placerank.rankers.towers.tower import History


def din_by_hand(tower: DIN, query: Tensor, history: History) -> Tensor:
    """Equation 2 of the paper, a visit at a time, with the unit on the concatenation [q, k, q - k, q * k, gaps]; then
    the product with the target beside it."""
    q_weight, bias = tower.from_query.weight, tower.from_query.bias
    k_weight, product_weight, gap_weight = tower.from_visit.weight.split([D, D, G], dim=1)
    # any split of the difference's part between q and k gives the same unit: here half of k's weight goes to it
    full = torch.cat([q_weight + k_weight / 2, k_weight / 2, -k_weight / 2, product_weight, gap_weight], dim=1)
    rows = []
    for b in range(query.shape[0]):
        interest = torch.zeros(D)
        for t in range(int(history.offsets[b]), int(history.offsets[b + 1])):
            q, k = query[b], history.keys[t]
            unit = full @ torch.cat([q, k, q - k, q * k, history.gaps[t]]) + bias
            weight = tower.rest(tower.first_activation(unit[None]))[0, 0]
            interest = interest + weight * k
        rows.append(torch.cat([interest, interest * query[b]]))
    return torch.stack(rows) if rows else torch.zeros(0, 2 * D)


@pytest.mark.parametrize("lengths", [[3, 1, 4], [0, 2, 0], [0], [0, 0], [1], [17, 0, 0, 5, 1], []])
def test_din_equals_the_paper_by_hand(lengths: list[int]) -> None:
    tower = make_tower().eval()
    query, history = make_history(lengths)
    torch.testing.assert_close(tower(query, history), din_by_hand(tower, query, history), rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_hand_written_sum() -> None:
    tower = make_tower().eval()
    query, history = make_history([3, 0, 2])
    inputs = [query.requires_grad_(), history.keys.requires_grad_(), *tower.parameters()]
    fast = torch.autograd.grad(tower(query, history).square().sum(), inputs)
    slow = torch.autograd.grad(din_by_hand(tower, query, history).square().sum(), inputs)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_din_in_training_equals_its_layers_one_by_one() -> None:
    tower = make_tower("din").train()
    plain = copy.deepcopy(tower)
    query, history = make_history([3, 0, 9, 1])
    got = tower(query, history)
    q, k = query[torch.tensor([0] * 3 + [2] * 9 + [3])], history.keys
    z = plain.from_query(q) + plain.from_visit(torch.cat([k, q * k, history.gaps], dim=1))
    weights = plain.rest(plain.first_activation(z))
    want = torch.stack([part.sum(0) for part in (weights * k).split([3, 0, 9, 1])])
    torch.testing.assert_close(got, torch.cat([want, want * query], dim=1))
    for a, b in zip(tower.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_dice_equals_its_equation_and_its_limits() -> None:
    dice = Dice(3)
    with torch.no_grad():
        dice.alpha.copy_(torch.tensor([0.0, 0.25, 1.0]))
    s = torch.randn(50, 3) * 3 + 1
    p = torch.sigmoid((s - s.mean(0)) / (s.var(0, unbiased=False) + 1e-8).sqrt())
    torch.testing.assert_close(dice(s), p * s + (1 - p) * dice.alpha * s)
    torch.testing.assert_close(dice(s)[:, 2], s[:, 2])  # alpha = 1 is the identity
    before = dice.running_mean.clone()
    assert dice(s[:1]).isfinite().all() and dice(s[:0]).shape == (0, 3)
    torch.testing.assert_close(dice.running_mean, before)  # one row says nothing of a variance
