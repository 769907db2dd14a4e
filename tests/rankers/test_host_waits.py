"""What the dense part of a ranker waits for on a GPU: nothing, whatever the tower and the plug-ins.

Each ranker takes a training step twice, on the CPU and on a device that isn't there (``support/elsewhere.py``): the
same losses and gradients, and no wait.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from elsewhere import Elsewhere, elsewhere, move, moved
from torch import Tensor

from placerank.data.batches.activity import ACTIVITY_DIM
from placerank.data.batches.dense_batch import Context, DenseBatch, LossInputs, Traits
from placerank.data.batches.features import HISTORY_GAPS, FeatureConfig, Features, build_features
from placerank.kernels import search_attention, target_attention
from placerank.kernels.haversine import unit_vectors
from placerank.rankers.dense import DensePart, RankerConfig, Scores
from placerank.rankers.plugins.akt import AktConfig
from placerank.rankers.plugins.rest import RestConfig, rest_preset
from placerank.rankers.towers.tower import TOWERS

ITEMS, CLUSTERS = 30, 5
WAITS_OF_REQUESTS = {"hstu": 1}
"""Waits of a step whose candidates share keys: how many candidates a request has makes HSTU's blocks."""
LENGTHS = [4, 0, 1, 150, 12, 0, 3, 2, 5, 1, 1, 0]
WHOLE = replace(rest_preset("rest"), attribute_dropout=0.3, density_adaptive=True, positive_km=5.0)
PLUGINS: dict[str, dict[str, Any]] = {
    "plain": {},
    "semantic_ids": {},
    "rest": {"rest": WHOLE},
    "rest_alone": {"rest": RestConfig(enabled=True)},
    "akt": {"akt": AktConfig(enabled=True, users=True)},
    "views": {"akt": AktConfig(enabled=True, users=True, views=True, view_visits=3)},
    "all": {"rest": WHOLE, "akt": AktConfig(enabled=True, users=True, views=True, view_visits=3)},
}


def make(tower: str, plugins: str) -> tuple[Features, DensePart]:
    config = RankerConfig(tower=tower, mlp=[8], **PLUGINS[plugins])
    tables = {"item": ITEMS, "user": 50, "category": 6, "brand": 4}
    semantic = {} if plugins in ("plain", "rest", "rest_alone") else {"semantic_1": CLUSTERS, "semantic_2": 9}
    semantic |= {"cluster": CLUSTERS, "user_cluster": CLUSTERS} if config.akt.enabled else {}
    features = build_features(FeatureConfig(), tables, [], config.uses_context, config.uses_traits, semantic)
    torch.manual_seed(1)
    part = DensePart(features, config)
    if part.contrast is not None:
        part.contrast.centres.centres.normal_()
    return features, part


def places(rows: int) -> Tensor:
    lat = 48 + 0.05 * torch.randn(rows)
    lat[torch.rand(rows) < 0.1] = torch.nan
    return unit_vectors(lat, 10 + 0.05 * torch.randn(rows))


def make_inputs(features: Features) -> tuple[list[Tensor], Tensor, DenseBatch]:
    torch.manual_seed(2)
    rows = lambda high, n: torch.randint(0, high, (n,))  # noqa: E731
    lengths = torch.tensor(LENGTHS)
    B, T = len(lengths), int(lengths.sum())
    target = rows(ITEMS, B)
    of_visits = rows(6, T), rows(168, T), places(T)
    head = torch.rand(ITEMS) < 0.4
    batch = DenseBatch(
        target=target,
        visits=rows(ITEMS, T),
        offsets=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
        lengths=lengths,
        features=torch.rand(B, features.dense_dim),
        history_gaps=torch.rand(T, HISTORY_GAPS),
        context=Context(rows(6, B), rows(168, B), places(B), places(B), *of_visits),
    )
    if features.traits:
        attributes = torch.stack([rows(3, ITEMS), rows(3, ITEMS)], dim=1)
        batch.traits = Traits(attributes, torch.rand(ITEMS, ACTIVITY_DIM), torch.rand(B, ACTIVITY_DIM))
        first = torch.stack([(target == item).nonzero()[0, 0] for item in target.unique()])
        batch.loss_inputs = LossInputs(
            rows(CLUSTERS, ITEMS), head, torch.rand(B) < 0.4, places(ITEMS), torch.rand(ITEMS) + 1, first,
            rows(CLUSTERS, B), torch.randperm(ITEMS),
        )  # fmt: skip
    items = [torch.randn(ITEMS, t.dim, requires_grad=True) for t in features.sequence]
    return items, torch.randn(B, features.pooled_dim, requires_grad=True), batch


def step(part: DensePart, items: list[Tensor], pooled: Tensor, batch: DenseBatch) -> Scores:
    torch.manual_seed(3)  # dropout, and what DIEN draws
    scores = part(items, pooled, batch)
    sum(scores.losses.values(), scores.logits.square().mean()).backward()
    return scores


def here(x: Tensor) -> Tensor:
    return (x.here if isinstance(x, Elsewhere) else x).detach()


@pytest.mark.parametrize("plugins", PLUGINS)
@pytest.mark.parametrize("tower", sorted(TOWERS))
def test_a_step_waits_for_nothing_and_is_the_cpus(tower: str, plugins: str) -> None:
    features, part = make(tower, plugins)
    items, pooled, batch = make_inputs(features)
    same = copy.deepcopy(part)
    move(same)
    inputs = [moved(x) for x in items], moved(pooled), batch.map(moved)
    want = step(part, items, pooled, batch)
    with (
        patch.object(target_attention, "_compiled", lambda *_: True),  # one operation each, as on a GPU
        patch.object(search_attention, "_compiled", lambda *_: True),
        elsewhere() as waits,
    ):
        got = step(same, *inputs)
    assert not len(waits), f"{len(waits)} waits:\n{waits}"
    assert want.losses.keys() == got.losses.keys() and want.logged.keys() == got.logged.keys()
    assert all(x > 0 for x in want.losses.values())
    for name in ("losses", "logged"):
        for key, value in getattr(want, name).items():
            torch.testing.assert_close(here(getattr(got, name)[key]), value.detach(), msg=lambda m, k=key: f"{k}: {m}")
    torch.testing.assert_close(here(got.logits), want.logits.detach(), rtol=1e-4, atol=1e-5)
    pairs = [*zip([*items, pooled], [*inputs[0], inputs[1]], strict=True)]
    pairs += zip(part.parameters(), same.parameters(), strict=True)
    for a, b in pairs:
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(here(b.grad), a.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("tower", sorted(TOWERS))
def test_visits_of_requests_wait_for_nothing(tower: str) -> None:
    """Two candidates of each of two requests, whose visits are there once; the same with a request each."""
    features, part = make(tower, "plain")
    items, pooled, batch = make_inputs(features)
    lengths, starts = torch.tensor([5, 5, 9, 9]), torch.tensor([0, 0, 5, 5])
    rows = torch.cat([torch.arange(s, s + n) for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)])
    assert batch.context is not None
    gaps = torch.rand(28, HISTORY_GAPS)
    gaps[:, 0] = torch.rand(14)[rows]  # hours are the request's
    alone = replace(
        batch,
        target=batch.target[:4],
        visits=batch.visits[rows],
        offsets=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
        lengths=lengths,
        features=batch.features[:4],
        history_gaps=gaps,
        context=Context(*(x[:4] for x in batch.context[:4]), *(x[:28] for x in batch.context[4:])),
        traits=None,
        loss_inputs=None,
    )
    shared = replace(alone, visits=batch.visits[:14], starts=starts)
    same, pooled = copy.deepcopy(part), pooled.detach()[:4].requires_grad_()
    move(same)
    inputs = [moved(x) for x in items], moved(pooled), shared.map(moved)
    want = step(part, items, pooled, alone)
    with elsewhere() as waits:
        got = step(same, *inputs)
    assert len(waits) == WAITS_OF_REQUESTS.get(tower, 0), f"{len(waits)} waits:\n{waits}"
    torch.testing.assert_close(here(got.logits), want.logits.detach(), rtol=1e-4, atol=1e-5)
    for a, b in zip([*items, pooled], [*inputs[0], inputs[1]], strict=True):
        torch.testing.assert_close(here(b.grad), a.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "waits"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool((x > 0).any()), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: torch.repeat_interleave(x, (x > 0).long()), 1),
        (lambda x: torch.repeat_interleave(x, (x > -9).long(), output_size=len(x)), 0),
        (lambda x: x.cpu(), 1),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), 1),
        (lambda x: torch.zeros(2).to(x.device, non_blocking=True), 0),
        (lambda x: torch.zeros(len(x), device=x.device)[1:] + x[1:] * 2, 0),
        (lambda x: x.sort().values.cumsum(0).index_select(0, torch.arange(len(x), device=x.device)), 0),
    ],
)
def test_what_waits_is_seen(call: Callable[[Tensor], Any], waits: int) -> None:
    x = torch.randn(7)
    with elsewhere() as found:
        out = call(moved(x))
    assert len(found) == waits, str(found)
    want = call(x)
    assert torch.equal(here(out), want) if isinstance(want, Tensor) else out == want


def test_tensors_of_both_are_told() -> None:
    with elsewhere(), pytest.raises(RuntimeError, match="add: tensors of the host and of the device"):
        moved(torch.ones(3)) + torch.ones(3)
