"""Heads of several objectives against loops over samples, ESMM's chain and losses in float64, and what is refused."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from toy_ranker import FEATURES, make_batch

from placerank.rankers.dense import DensePart, RankerConfig, Scorer
from placerank.rankers.objectives import (
    PLE,
    Heads,
    MMoE,
    ObjectivesConfig,
    SharedBottom,
    chained,
    weighted_mean,
)

X, B, K = 6, 9, 3


def of(*names: str, amount: str | None = None) -> Any:
    return replace(FEATURES, objectives=names, amount=amount)


def softmax(x: list[float]) -> list[float]:
    e = [math.exp(v) for v in x]
    return [v / sum(e) for v in e]


def mix(gate: nn.Module, of_gate: Tensor, experts: list[Tensor]) -> Tensor:
    """One sample: sum_i softmax(W x)_i e_i."""
    share = softmax(gate(of_gate).tolist())
    assert len(share) == len(experts)
    return sum((s * e for s, e in zip(share, experts, strict=True)), torch.zeros_like(experts[0]))


def one(module: nn.Module, x: Tensor) -> Tensor:
    """A module on a single row."""
    out: Tensor = module(x[None])[0]
    return out


@pytest.mark.parametrize("experts", [1, 3])
@torch.no_grad()
def test_mmoe_is_the_papers_equation(experts: int) -> None:
    module, x = MMoE(X, [5, 4], K, experts).double().eval(), torch.randn(B, X, dtype=torch.float64)
    for k, found in enumerate(module(x)):
        assert found.shape == (B, 4)
        for b in range(B):
            want = mix(module.gates[k], x[b], [one(expert, x[b]) for expert in module.experts])
            torch.testing.assert_close(found[b], want)


@pytest.mark.parametrize("widths", [[5], [5, 4], [5, 4, 3]])
@torch.no_grad()
def test_ple_is_the_papers_equation(widths: list[int]) -> None:
    module, x = PLE(X, widths, K, 2).double().eval(), torch.randn(B, X, dtype=torch.float64)
    found = module(x)
    assert len(found) == K
    for b in range(B):
        g: Any = [x[b]] * (K + 1)
        for j, level in enumerate(module.levels):
            own = [[one(e, g[k]) for e in group.experts] for k, group in enumerate(level.experts)]
            new = [mix(level.gates[k], g[k], own[k] + own[K]) for k in range(K)]
            if j + 1 < len(widths):
                new.append(mix(level.gates[K], g[K], [e for group in own for e in group]))
            g = new
        for k in range(K):
            torch.testing.assert_close(found[k][b], g[k])


@pytest.mark.parametrize("heads", ["shared", "mmoe", "ple"])
def test_every_parameter_of_heads_learns_and_an_empty_batch_passes(heads: str) -> None:
    config = ObjectivesConfig(labels=["label", "order"], heads=heads, experts=2)
    module = Heads(X, [8, 7, 5], of("label", "order"), config)
    outputs = module(torch.randn(B, X))
    assert outputs.shape == (B, 2) and outputs.dtype == torch.float32
    sum(module.losses(outputs, (torch.rand(B, 2) < 0.5).float()).values()).backward()  # type: ignore[union-attr]
    still = [n for n, p in module.named_parameters() if "alpha" not in n and (p.grad is None or not p.grad.any())]
    assert still == []
    assert module(torch.zeros(0, X)).shape == (0, 2)


def test_with_ple_and_mmoe_one_label_does_not_move_the_others_own_layers() -> None:
    for heads, frozen in (
        ("mmoe", ("gates.1", "towers.1")),
        ("ple", ("levels.0.experts.1", "levels.0.gates.1", "towers.1")),
    ):
        module = Heads(X, [8, 5], of("label", "order"), ObjectivesConfig(labels=["label", "order"], heads=heads))
        module(torch.randn(B, X))[:, 0].sum().backward()
        moved = {n for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}
        assert not [n for n in moved if n.removeprefix("shared.").startswith(frozen)] and moved


def test_a_single_width_is_all_shared() -> None:
    module = Heads(X, [8], of("label", "order"), ObjectivesConfig(labels=["label", "order"]))
    assert [tuple(p.shape) for p in module.towers.parameters()] == [(1, 8), (1,)] * 2
    assert isinstance(module.shared, SharedBottom)


def test_chained_logits_are_those_of_the_products() -> None:
    z = torch.cat([torch.randn(50, K) * 4, torch.tensor([[0.0, -30.0, 30.0], [-80.0, 5.0, 80.0]])])
    p = z.double().sigmoid().cumprod(dim=1)
    torch.testing.assert_close(chained(z), torch.log(p / (1 - p)).float(), rtol=1e-4, atol=1e-4)
    extreme = torch.tensor([[200.0, 200.0], [-200.0, 200.0], [200.0, -200.0]], requires_grad=True)
    out = chained(extreme)
    out.sum().backward()
    assert extreme.grad is not None and out.isfinite().all() and extreme.grad.isfinite().all()
    assert (chained(z).diff(dim=1) <= 0).all(), "what follows is never likelier than what it follows"


def test_chained_passes_gradcheck() -> None:
    assert torch.autograd.gradcheck(chained, torch.randn(4, 3, dtype=torch.float64, requires_grad=True))


def test_esmms_loss_is_the_papers() -> None:
    """Cross-entropy of clicks with p(click), and of conversions with p(click) p(conversion | click), over all."""
    config = ObjectivesConfig(labels=["label", "order"], esmm=True)
    module, x = Heads(X, [8, 5], of("label", "order"), config), torch.randn(B, X)
    module.train(False)
    click = (torch.rand(B) < 0.6).float()
    order = click * (torch.rand(B) < 0.5)
    z = [tower(f).detach().double().squeeze(1) for tower, f in zip(module.towers, module.shared(x), strict=True)]
    ctr, cvr = (v.sigmoid() for v in z)
    want = [
        sum(-math.log(float(q)) if y else -math.log(1 - float(q)) for q, y in zip(p, label, strict=True)) / B
        for p, label in ((ctr, click), (ctr * cvr, order))
    ]
    found = module.losses(module(x), torch.stack([click, order], dim=1))
    assert [v.item() for v in found.values()] == pytest.approx(want, rel=1e-4) and [*found] == ["label", "order"]


def test_amounts_loss_is_least_at_what_is_expected() -> None:
    """exp(z) = E[a]: found by descent on a constant, whatever the unit."""
    module = Heads(1, [2], of("label", "gmv", amount="gmv"), ObjectivesConfig(labels=["label", "gmv"]))
    amount = torch.tensor([0.0, 0, 0, 0, 12, 60, 0, 5])
    targets = torch.stack([(amount > 0).float(), amount], dim=1)
    for unit in (1.0, 25.0):
        module.unit.fill_(unit)
        z = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.LBFGS([z], max_iter=100)

        def closure(z: Tensor = z, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = module.losses(torch.stack([torch.zeros(8), z.expand(8)], dim=1), targets)["gmv"]
            loss.backward()
            return loss

        optimizer.step(closure)
        assert float(z.exp()) == pytest.approx(float(amount.mean()), rel=1e-3)


def test_the_unit_shifts_the_amount_alone() -> None:
    module = Heads(X, [4], of("label", "gmv", amount="gmv"), ObjectivesConfig(labels=["label", "gmv"])).eval()
    x = torch.randn(B, X)
    before = module(x)
    module.unit.fill_(20.0)
    torch.testing.assert_close(module(x) - before, torch.tensor([0.0, math.log(20)]).expand(B, 2))
    assert "unit" in module.state_dict(), "a checkpoint knows what its amounts are in"


def test_weights_of_samples_and_of_losses() -> None:
    config = ObjectivesConfig(labels=["label", "order"], weights={"order": 3.0})
    module = Heads(X, [4], of("label", "order"), config)
    outputs, targets = torch.randn(B, 2), (torch.rand(B, 2) < 0.5).float()
    weight = torch.tensor([0.0, 2, 1, 0.5, 0, 0, 1, 1, 3])
    found = module.losses(outputs, targets, weight)
    for k, (name, of_loss) in enumerate({"label": 1.0, "order": 3.0}.items()):
        each = [
            float(w) * math.log(1 + math.exp(float(z) * (1 - 2 * float(y))))
            for w, z, y in zip(weight, outputs[:, k], targets[:, k], strict=True)
        ]
        assert float(found[name]) == pytest.approx(of_loss * sum(each) / float(weight.sum()), rel=1e-5)
    assert float(weighted_mean(torch.ones(3), torch.zeros(3))) == 0.0
    assert float(weighted_mean(torch.tensor([2.0, 4.0]), torch.full((2,), 7.0))) == 3.0


def test_one_label_is_what_it_was() -> None:
    """The same parameters, numbers and loss as before there were objectives."""
    torch.manual_seed(1)
    part = DensePart(FEATURES, RankerConfig(tower="din", mlp=[8, 4]))
    mlp = {n: tuple(p.shape) for n, p in part.scorer.mlp.named_parameters()}
    width = part.scorer.mlp[0].in_features  # type: ignore[index]
    assert mlp == {
        **{"0.weight": (8, width), "0.bias": (8,), "1.alpha": (8,)},
        **{"2.weight": (4, 8), "2.bias": (4,), "3.alpha": (4,), "4.weight": (1, 4), "4.bias": (1,)},
    }
    batch = make_batch(0)
    items = [torch.randn(101, t.dim) for t in FEATURES.sequence]
    scores = part(items, torch.randn(7, FEATURES.pooled_dim), batch.dense)
    loss, logged = scores.loss(batch.label)
    assert scores.logits.shape == (7,) and part.scorer.heads is None
    assert torch.equal(loss, binary_cross_entropy_with_logits(scores.logits, batch.label))
    assert [*logged] == ["loss"] and torch.equal(logged["loss"], loss)
    weighted, _ = scores.loss(batch.label, torch.full((7,), 2.5))
    torch.testing.assert_close(weighted, loss)


def test_a_dense_part_of_several_objectives() -> None:
    features = of("label", "order", "gmv", amount="gmv")
    config = ObjectivesConfig(labels=["label", "order", "gmv"], heads="ple", experts=2, esmm=True)
    part = DensePart(features, RankerConfig(tower="din", mlp=[8, 4], objectives=config))
    batch = make_batch(0)
    items = [torch.randn(101, t.dim) for t in FEATURES.sequence]
    scores = part(items, torch.randn(7, FEATURES.pooled_dim), batch.dense)
    order = batch.label * torch.tensor([1.0, 0, 1, 0, 1, 0, 1])
    loss, logged = scores.loss(torch.stack([batch.label, order, 9 * order], dim=1), heads=part.scorer.heads)
    assert scores.logits.shape == (7, 3) and [*logged] == ["loss", "loss/label", "loss/order", "loss/gmv"]
    assert float(loss) == pytest.approx(sum(float(x) for n, x in logged.items() if n != "loss"), rel=1e-6)
    assert (scores.logits[:, 1] <= scores.logits[:, 0]).all(), "the amount is no part of the chain"
    loss.backward()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": []}, r"labels=\[\]: expected one or more names, each once"),
        ({"labels": ["a", "a"]}, "expected one or more names, each once"),
        ({"heads": "moe"}, "heads='moe': expected one of shared, mmoe, ple"),
        ({"experts": 0}, r"ranker.objectives.experts"),
        ({"esmm": True}, "expected two or more, each of which happens only where the one before it did"),
        ({"weights": {"order": 1.0}}, "weights: got 'order', expected some of the labels label"),
        ({"weights": {"label": 0.0}}, "weights label=0.0: expected more than 0"),
    ],
)
def test_bad_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectivesConfig(**settings)


def test_generative_rankers_have_no_objectives() -> None:
    with pytest.raises(ValueError, match="objectives are those of towers"):
        RankerConfig(kind="generative", objectives=ObjectivesConfig(labels=["label", "order"]))


def test_scores_of_a_scorer_follow_the_features() -> None:
    assert Scorer(FEATURES, RankerConfig()).heads is None
    heads = Scorer(of("label", "order"), RankerConfig()).heads
    assert heads is not None and heads.names == ("label", "order")
    assert len(heads.towers) == 2
