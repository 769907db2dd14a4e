"""Preference alignment: losses against loops and by hand, gradients, and a model that learns what is rewarded."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from placerank.data.batches.sequences import SequenceBatch
from placerank.rankers.generative.config import PreferenceConfig
from placerank.rankers.generative.decoding import Lists
from placerank.rankers.generative.preference import (
    advantages,
    best_and_worst,
    dpo_loss,
    gbpo_loss,
    preference_loss,
    reward_of,
    samples,
)

OFFSETS = torch.tensor([0, 3, 3, 4, 6, 10])
REWARDS = torch.tensor([1.0, 3.0, 2.0, 5.0, 4.0, 4.0, 0.0, 7.0, 0.0, 7.0])


def test_best_and_worst() -> None:
    """Ties go to what is listed first; nobody, one candidate and all alike make no pair."""
    pairs = best_and_worst(OFFSETS, REWARDS)
    assert [x.tolist() for x in pairs] == [[0, 4], [1, 7], [0, 6]]
    none = best_and_worst(torch.zeros(3, dtype=torch.int64), torch.zeros(0))
    assert [len(x) for x in none] == [0, 0, 0]


def test_advantages_are_a_loops() -> None:
    found = advantages(OFFSETS, REWARDS).tolist()
    for start, stop in zip(OFFSETS[:-1].tolist(), OFFSETS[1:].tolist(), strict=True):
        own = REWARDS[start:stop].tolist()
        mean = sum(own) / max(len(own), 1)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in own) / max(len(own), 1))
        for x, got in zip(own, found[start:stop], strict=True):
            assert got == pytest.approx((x - mean) / deviation if deviation else 0.0, abs=1e-6)
    assert (advantages(torch.tensor([0, 3]), torch.full((3,), 0.1)) == 0).all()  # their mean is not 0.1 exactly
    assert len(advantages(torch.zeros(2, dtype=torch.int64), torch.zeros(0))) == 0


@pytest.mark.parametrize("function", [best_and_worst, advantages])
def test_rewards_that_cannot_be(function) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="got NaN for candidate 1"):
        function(torch.tensor([0, 2]), torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match=r"got \[3\], expected \[2\]"):
        function(torch.tensor([0, 2]), torch.zeros(3))


def test_dpo_is_its_equation() -> None:
    best_, worst, ref_best, ref_worst = torch.randn(4, 7, dtype=torch.float64).unbind()
    want = 0.0
    for b, w, rb, rw in zip(*(x.tolist() for x in (best_, worst, ref_best, ref_worst)), strict=True):
        ratio = (math.exp(b) / math.exp(rb)) ** 0.3 / (math.exp(w) / math.exp(rw)) ** 0.3
        want -= math.log(1 / (1 + 1 / ratio)) / 7
    assert dpo_loss(best_, worst, ref_best, ref_worst, 0.3).item() == pytest.approx(want)
    none = torch.zeros(0)
    assert dpo_loss(none, none, none, none, 0.3) == 0
    inputs = [x.requires_grad_() for x in (best_, worst)]
    assert torch.autograd.gradcheck(lambda b, w: dpo_loss(b, w, ref_best, ref_worst, 0.3), inputs)


def test_gbpo_and_its_gradient_by_hand() -> None:
    """Four cases: good or bad, the policy above the old one or below; by log p the gradient is -A p / p'."""
    p = torch.tensor([0.2, 0.6, 0.05, 0.7], dtype=torch.float64)
    old = torch.tensor([0.4, 0.3, 0.1, 0.5], dtype=torch.float64)
    advantage = torch.tensor([1.0, 2.0, -1.0, -3.0], dtype=torch.float64)
    bound = [0.4, 0.6, 0.95, 0.5]  # max(old, p), max(old, p), max(old, 1 - p), max(old, 1 - p)
    log_p = p.log().requires_grad_()
    loss = gbpo_loss(log_p, old.log(), advantage)
    each = [-a * x / b for a, x, b in zip(advantage.tolist(), p.tolist(), bound, strict=True)]
    assert loss.item() == pytest.approx(sum(each) / 4)
    loss.backward()
    assert log_p.grad is not None
    torch.testing.assert_close(log_p.grad, torch.tensor(each, dtype=torch.float64) / 4)
    assert gbpo_loss(torch.zeros(0), torch.zeros(0), torch.zeros(0)) == 0


@pytest.mark.parametrize("old", [1e-30, 0.3, 1.0])
def test_gbpo_is_bounded_by_the_logit(old: float) -> None:
    logit = torch.linspace(-60, 60, 241, dtype=torch.float64).repeat(2).requires_grad_()
    advantage = torch.ones(482, dtype=torch.float64)
    advantage[241:] = -1
    (gbpo_loss(torch.nn.functional.logsigmoid(logit), torch.full_like(logit, old).log(), advantage) * 482).backward()
    assert logit.grad is not None
    assert (logit.grad.abs() <= 1 + 1e-9).all()
    assert (logit.grad[:241] <= 0).all() and (logit.grad[241:] >= 0).all()
    assert logit.grad[241] < 1e-20
    ratio = logit.detach().sigmoid() * (1 - logit.detach().sigmoid()) / old
    assert old > 0.1 or ratio.max() > 1e20


TARGET = torch.tensor([2, 0, 4])


@pytest.mark.parametrize("how", ["dpo", "policy"])
def test_the_loss_is_its_parts(how: str) -> None:
    config = PreferenceConfig(how=how, weight=0.7, beta=0.3)  # type: ignore[arg-type]
    table = torch.randn(3, 5).log_softmax(1)
    table[1, 0] = -torch.inf  # what can't be is no visit to learn from
    seen: list[Tensor] = []

    def log_p(requests: Tensor, items: Tensor) -> Tensor:
        seen.append(requests)
        return table[requests, items]

    offsets, items = torch.tensor([0, 2, 2, 5]), torch.tensor([1, 3, 4, 0, 2])
    lists = Lists(offsets, items, torch.tensor([-1.0, -2.0, -1.5, -2.5, -3.5]))
    rewards = torch.tensor([0.0, 1.0, 0.5, 0.2, 0.9])
    nats = -(table[0, 2] + table[2, 4]) / 2
    if how == "dpo":
        pairs = dpo_loss(table[[0, 2], [3, 2]], table[[0, 2], [1, 0]], lists.log_p[[1, 4]], lists.log_p[[0, 3]], 0.3)
        want = nats + 0.7 * pairs
    else:
        want = nats + 0.7 * gbpo_loss(table[[0, 0, 2, 2, 2], items], lists.log_p, advantages(offsets, rewards))
    torch.testing.assert_close(preference_loss(config, TARGET, lists, rewards, log_p), want)
    assert len(seen) == 1 and (seen[0].diff() >= 0).all()


@pytest.mark.parametrize("how", ["dpo", "policy"])
def test_what_is_rewarded_becomes_probable(how: str) -> None:
    """A table of logits, two rounds: the rewarded item of the candidates rises, the worst falls."""
    config = PreferenceConfig(how=how, weight=10.0)  # type: ignore[arg-type]
    torch.manual_seed(0)
    policy = torch.nn.Embedding(3, 5)
    rewards = torch.tensor([0.0, 1.0, 0.5, 0.25, 0.5]).repeat(3)
    before = policy.weight.log_softmax(1)
    for _ in range(2):
        old = policy.weight.detach().log_softmax(1).flatten()
        lists = Lists(torch.tensor([0, 5, 10, 15]), torch.arange(5).repeat(3), old)
        optimizer = torch.optim.Adam(policy.parameters(), 0.05)
        for _ in range(20):
            loss = preference_loss(
                config, TARGET, lists, rewards, lambda requests, items: policy.weight.log_softmax(1)[requests, items]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    after = policy.weight.log_softmax(1)
    gap = (after[:, 1] - after[:, 0]) - (before[:, 1] - before[:, 0])
    assert (gap[[0, 2]] > 0.2).all()  # request 1 was answered with item 0, which its visit pulls up


def batch() -> SequenceBatch:
    return SequenceBatch(
        offsets=torch.tensor([0, 3, 3]), item=torch.tensor([4, 6, 4]), time=torch.tensor([0, 3600, 7200]),
        utc_offset=torch.tensor([60.0, torch.nan, 60.0]), target_offset=torch.tensor([60.0, 120.0, torch.nan]),
        user=torch.tensor([5, 0]), user_index=torch.tensor([8, 9]), stretch=torch.tensor([0, 0, 1]),
        seen=torch.tensor([1, 3, 0]), target=torch.tensor([6, 2, 3]), target_time=torch.tensor([3600, 10800, 50]),
        lat=torch.tensor([1.0, 2.0, 3.0]), lon=torch.tensor([4.0, 5.0, 6.0]), visits=torch.zeros(3).int(),
        request=torch.tensor([-1, -1, -1]), valid=3,
    )  # fmt: skip


def test_candidates_as_a_ranker_takes_them() -> None:
    lists = Lists(torch.tensor([0, 0, 3, 4]), torch.tensor([6, 4, 9, 4]), torch.zeros(4))
    found = samples(batch(), lists, history=2)
    assert found.request.tolist() == [0, 0, 0, 1] and found.item.tolist() == [6, 4, 9, 4]
    assert found.user.tolist() == [5, 0] and found.lat.tolist() == [2.0, 3.0] and found.time.tolist() == [10800, 50]
    assert found.offsets.tolist() == [0, 2, 2] and found.history.tolist() == [6, 4]
    assert found.history_hours.tolist() == [2.0, 1.0]
    assert found.utc_offset is not None and found.utc_offset.nan_to_num(-1).tolist() == [120.0, -1]
    assert found.visits.tolist() == [1, 2, 0, 0]
    assert len(samples(batch(), Lists(torch.zeros(4).long(), torch.zeros(0).long(), torch.zeros(0)), 2)) == 0
    nobody = replace(batch(), offsets=torch.zeros(3).long(), item=torch.zeros(0).long(), time=torch.zeros(0).long(),
                     utc_offset=torch.zeros(0), seen=torch.zeros(3).long())  # fmt: skip
    assert samples(nobody, lists, 2).visits.tolist() == [0, 0, 0, 0]
    assert reward_of(lambda x: x.item.double(), 2)(batch(), lists).tolist() == [6, 4, 9, 4]


@pytest.mark.parametrize("wrong", [{"how": "ppo"}, {"weight": 0.0}, {"beta": math.inf}, {"candidates": 1}])
def test_settings_that_cannot_be_are_told(wrong: dict) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"preference\.{next(iter(wrong))}(=|: got)"):
        PreferenceConfig(**wrong)
