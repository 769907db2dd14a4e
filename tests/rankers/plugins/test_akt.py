"""The one-way loss against a slow loop; nothing of it reaches a head."""

import math

import pytest
import torch
from elsewhere import elsewhere, moved
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from placerank.data.batches.activity import find_heads
from placerank.kernels.row_adagrad import row_adagrad_
from placerank.rankers.plugins import akt
from placerank.rankers.plugins.akt import AktConfig, akt_ladder, one_way_loss

D, TAU = 6, 0.2


def unit(x: Tensor) -> Tensor:
    return x / x.norm().clamp(min=1e-12)


def loss_by_hand(rows: Tensor, cluster: list[int], is_head: list[bool]) -> tuple[float, float]:
    """A tail row at a time, a cluster at a time."""
    heads: dict[int, Tensor] = {}
    for c in sorted({c for c, h in zip(cluster, is_head, strict=True) if h and c}):
        mine = [unit(rows[i]) for i in range(len(rows)) if is_head[i] and cluster[i] == c]
        heads[c] = unit(sum(mine) / len(mine))
    losses, tails = [], 0
    for i in range(len(rows)):
        tails += not is_head[i]
        if is_head[i] or cluster[i] not in heads:
            continue
        score = {c: math.exp(float(unit(rows[i]) @ h) / TAU) for c, h in heads.items()}
        losses.append(-math.log(score[cluster[i]] / sum(score.values())))
    return sum(losses) / max(1, len(losses)), len(losses) / max(1, tails)


@settings(deadline=None, max_examples=100)
@given(
    kinds=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=25),
    seed=st.integers(0, 1000),
)
def test_loss_equals_a_slow_loop_and_no_head_gets_a_gradient(kinds: list[tuple[int, bool]], seed: int) -> None:
    rows = torch.randn(len(kinds), D, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    cluster, is_head = [c for c, _ in kinds], [h for _, h in kinds]
    heads = torch.tensor(is_head, dtype=torch.bool)
    loss, share = one_way_loss(rows, torch.tensor(cluster, dtype=torch.int64), heads, TAU, 9)
    want, want_share = loss_by_hand(rows.detach(), cluster, is_head)
    torch.testing.assert_close(loss, torch.tensor(want), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(share, torch.tensor(want_share))
    loss.backward()
    assert rows.grad is not None and rows.grad.isfinite().all()
    assert torch.equal(rows.grad[heads], torch.zeros(int(heads.sum()), D)), "exactly zero"


@pytest.mark.parametrize("clusters", [5, 2000])
@pytest.mark.parametrize("logits", [1, 40, 1 << 22])
def test_what_a_gpu_computes_is_what_the_cpu_does(clusters: int, logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(akt, "_LOGITS", logits)
    for count in (0, 1, 30):
        g = torch.Generator().manual_seed(count)
        rows = torch.randn(count, D, generator=g).requires_grad_()
        cluster = torch.randint(0, 5, (count,), generator=g) * (clusters // 5)
        heads = torch.rand(count, generator=g) < 0.3
        loss, share = one_way_loss(rows, cluster, heads, TAU, clusters)
        loss.backward()
        there = moved(rows)
        with elsewhere():
            other, other_share = one_way_loss(there, moved(cluster), moved(heads), TAU, clusters)
            other.backward()
        torch.testing.assert_close(other.here, loss)
        torch.testing.assert_close(other_share.here, share)
        torch.testing.assert_close(there.grad.here, rows.grad)
        assert not there.grad.here[heads].any()
    assert loss > 0


def town() -> tuple[Tensor, Tensor, Tensor]:
    """Ids of a batch, some twice, with cluster and head of each: ids 0-9 are heads."""
    g = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 40, (60,), generator=g)
    return ids, 1 + ids % 4, ids < 10


@pytest.mark.parametrize("sparse", [False, True])
def test_heads_of_a_table_do_not_move_and_tails_do(sparse: bool) -> None:
    torch.manual_seed(0)
    table = torch.nn.Embedding(50, D, sparse=sparse)
    ids, cluster, is_head = town()
    one_way_loss(table(ids), cluster, is_head, TAU, 9)[0].backward()
    grad = table.weight.grad.to_dense()
    assert not grad[:10].any(), "exactly zero for heads"
    assert not grad[40:].any()
    tails = ids[~is_head].unique()
    assert (grad[tails].abs().sum(1) > 0).all()


def test_the_fused_optimizer_leaves_heads_bit_for_bit() -> None:
    torch.manual_seed(0)
    weights, states = torch.randn(50, D), torch.rand(50)
    before, before_states = weights.clone(), states.clone()
    ids, cluster, is_head = town()
    rows = weights[ids].requires_grad_()
    one_way_loss(rows, cluster, is_head, TAU, 9)[0].backward()
    row_adagrad_(weights, states, ids, rows.grad, 0.1, 1e-8)
    assert torch.equal(weights[:10], before[:10]) and torch.equal(states[:10], before_states[:10])
    assert not torch.equal(weights[10:40], before[10:40])


def test_tails_come_to_the_heads_of_their_cluster() -> None:
    torch.manual_seed(0)
    ids, cluster, is_head = torch.arange(40), 1 + torch.arange(40) % 4, torch.arange(40) < 12
    rows = torch.randn(40, D).requires_grad_()
    heads = rows.detach()[is_head].clone()
    optimizer = torch.optim.Adam([rows], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        one_way_loss(rows, cluster, is_head, TAU, 9)[0].backward()
        optimizer.step()
    assert torch.equal(rows.detach()[is_head], heads)
    means = torch.stack([torch.nn.functional.normalize(heads[ids[:12] % 4 == c]).mean(0) for c in range(4)])
    nearest = (rows[~is_head] @ torch.nn.functional.normalize(means).T).argmax(1)
    assert (nearest == ids[12:] % 4).all()


def test_nothing_to_learn_gives_zero() -> None:
    rows = torch.randn(4, D).requires_grad_()
    one, none = torch.ones(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    tail, head = torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
    mixed = torch.tensor([True, False, False, False])
    for cluster, is_head, why in (
        (one, tail, "no head"),
        (one, head, "no tail"),
        (none, mixed, "no cluster"),
        (one, mixed, "no other cluster"),
    ):
        loss, _ = one_way_loss(rows, cluster, is_head, TAU, 9)
        (grad,) = torch.autograd.grad(loss, rows)
        assert loss == 0 and not grad.any(), why
    zeros = torch.zeros(4, D, requires_grad=True)
    loss, _ = one_way_loss(zeros, torch.tensor([1, 2, 1, 2]), torch.tensor([True, True, False, False]), TAU, 9)
    loss.backward()
    assert zeros.grad.isfinite().all(), "a row of zeros has no direction"


def test_heads_are_the_most_active_share() -> None:
    count = torch.tensor([0, 5, 1, 9, 0, 3, 5, 2, 0, 1])  # seven active
    assert find_heads(count, 0.1).nonzero().flatten().tolist() == [3]
    assert find_heads(count, 0.3).nonzero().flatten().tolist() == [1, 3, 6], "as active as the last one"
    assert not find_heads(torch.zeros(3), 0.5).any() and find_heads(torch.zeros(0), 0.5).shape == (0,)


def test_configs() -> None:
    ladder = akt_ladder()
    parts = [(c.enabled, c.one_way_weight > 0, c.gate, bool(c.users), c.views) for c in ladder.values()]
    rungs = [sum(p) for p in parts]
    assert list(ladder) == ["none", "cluster", "one_way", "gate", "users", "views"]
    assert rungs[1:] == [1, 2, 3, 4, 5] and not parts[0][0], "each adds one part"
    assert ladder["gate"] == AktConfig(enabled=True)
    for bad, told in (
        ({"prefix": 0}, "akt.prefix=0: expected at least 1"),
        ({"temperature": 0.0}, "akt.temperature=0.0: expected more than 0"),
        ({"one_way_weight": float("nan")}, "akt.one_way_weight=nan: expected a finite number"),
        ({"view_visits": -1}, "akt.view_visits=-1: expected 0"),
    ):
        with pytest.raises(ValueError, match=told):
            AktConfig(**bad)
