"""Generative rankers on another device than the index: the CPU's losses, gradients, scores and lists."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from elsewhere import Elsewhere, elsewhere, move, moved
from torch import Tensor

from placerank.kernels.haversine import unit_vectors
from placerank.rankers.generative.config import GeneratorConfig, OneRecConfig, PreferenceConfig, TigerConfig
from placerank.rankers.generative.decoding import Lists, best
from placerank.rankers.generative.index import Index
from placerank.rankers.generative.kinds import AnyGenerator, lists_of, make
from placerank.rankers.generative.model import PlaceFacts, Questions
from placerank.rankers.generative.preference import preference_loss
from placerank.rankers.generative.reach import Allowed

ITEMS, CODES, COLUMNS, NOW = 40, 4, 5, 1_700_000_000
SIZES: dict[str, Any] = {"columns": 8, "heads": 2, "hidden": 16, "layers": 2, "dropout": 0.0}
CONFIGS = {
    "generative": GeneratorConfig(**SIZES, window=2, memory=3, copied=4),
    "tiger": TigerConfig(**SIZES, head_columns=3, visits=3),
    "onerec": OneRecConfig(**SIZES, experts=4, memory=3, copied=4, joined=0.0),
}


def small(kind: str) -> tuple[AnyGenerator, PlaceFacts]:
    """Of items with three codes each, no two the same; row 7 has no codes, row 9 no place."""
    torch.manual_seed(0)
    every = np.stack(np.meshgrid(range(4), range(3), range(4), indexing="ij"), axis=-1).reshape(-1, 3)
    codes = np.random.default_rng(0).permutation(every)[:ITEMS]
    codes[[0, 7]] = -1
    lat, lon = 52 + torch.rand(2, ITEMS, dtype=torch.float64)
    lat[[0, 9]] = torch.nan
    popularity = torch.randint(2, 50, (ITEMS,)).float().log1p()
    facts = PlaceFacts(torch.from_numpy(codes), unit_vectors(lat, lon).float(), popularity, torch.zeros(ITEMS).long())
    index = Index(np.arange(1, ITEMS), codes[1:], CODES)
    model = make(kind, CONFIGS[kind], facts, index, COLUMNS, COLUMNS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model, facts


def questions() -> Questions:
    """Three users: one of six visits and three targets, one of none, one of a single visit; two places are unknown."""
    items, visits = torch.tensor([3, 7, 3, 9, 12, 30, 5]).unique(return_inverse=True)
    place = unit_vectors(52.5 + torch.zeros(5).double(), 52.1 + 0.1 * torch.arange(5).double()).float()
    place[[1, 3]] = torch.nan
    return Questions(
        items=items,
        visits=visits,
        offsets=torch.tensor([0, 6, 6, 7]),
        time=NOW + 3600 * torch.tensor([0, 5, 5, 30, 31, 90, 7]),
        stretch=torch.tensor([0, 0, 0, 1, 2]),
        seen=torch.tensor([1, 4, 6, 0, 1]),
        asked=NOW + 3600 * torch.tensor([4, 31, 100, 50, 9]),
        place=place,
        target=torch.tensor([7, 12, 3, 20, 5]),
    )


class Device(NamedTuple):
    """How to bring things to a device, and from it."""

    there: Callable[[], AbstractContextManager[Any]]
    model: Callable[[AnyGenerator], object]
    tensor: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


DEVICES = [
    pytest.param(Device(elsewhere, move, moved, lambda x: x.here if isinstance(x, Elsewhere) else x), id="elsewhere"),
    pytest.param(
        Device(nullcontext, lambda model: model.to("cuda"), lambda x: x.to("cuda"), lambda x: x.cpu()),
        id="cuda",
        marks=pytest.mark.gpu,
    ),
]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("device", DEVICES)
def test_the_same_as_on_the_cpu(device: Device, kind: str) -> None:
    q = questions()
    torch.manual_seed(1)
    rows, users = torch.randn(len(q.items), COLUMNS), torch.randn(3, COLUMNS)[q.stretch]
    some = [1 + torch.randperm(ITEMS - 1)[:20] for _ in q.seen]
    allowed = Allowed(torch.arange(len(some) + 1) * 20, torch.cat(some))

    def outcome(model: AnyGenerator, q: Questions, rows: Tensor, users: Tensor) -> list[Tensor]:
        log_p = model(q, rows, users)
        can = log_p.isfinite()
        log_p.where(can, 0.0).sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        lists = lists_of(model, q, rows, users, allowed, 5)
        hosts = [model.score(q, rows, users), model.score(q, rows, users, allowed=allowed), *lists]
        assert not any(isinstance(x, Elsewhere) or x.is_cuda for x in hosts)
        return [log_p.detach(), *hosts, *grads]

    model, _ = small(kind)
    want = outcome(model, q, rows, users)
    model, _ = small(kind)
    with device.there():
        device.model(model)
        got = outcome(model, q.map(device.tensor), *map(device.tensor, (rows, users)))
    assert len(got) == len(want) > 10
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(device.back(a), b, rtol=1e-4, atol=1e-5)


def test_new_items_come_to_where_the_model_is() -> None:
    model, facts = small("generative")
    with elsewhere():
        move(model)
        model.set_items(facts, model.index)
        assert isinstance(model.facts.codes, Elsewhere)


@pytest.mark.parametrize("how", ["policy", "dpo"])
@pytest.mark.parametrize("device", DEVICES)
def test_alignment_is_the_cpus(device: Device, how: Literal["policy", "dpo"]) -> None:
    """Candidates are ranked on the host, what they are worth lies where the model does; one request has none."""
    q, config = questions(), PreferenceConfig(how=how)
    torch.manual_seed(1)
    rows, users = torch.randn(len(q.items), COLUMNS), torch.randn(3, COLUMNS)[q.stretch]
    allowed = Allowed(torch.tensor([0, 6, 6, 12, 18, 24]), torch.cat([torch.randperm(30)[:6] + 1 for _ in range(4)]))
    rewards = torch.randn(24)

    def outcome(model: AnyGenerator, q: Questions, rows: Tensor, users: Tensor, rewards: Tensor) -> list[Tensor]:
        found = best(model.score(q, rows, users, allowed=allowed), allowed, 6)
        lists = Lists(*(x.to(rows.device) for x in found))
        assert q.target is not None

        def log_p(requests: Tensor, items: Tensor) -> Tensor:
            asked: Tensor = model(replace(q.some(requests), target=items), rows, users[requests])
            return asked

        loss = preference_loss(config, q.target, lists, rewards[: len(found.items)], log_p)
        loss.backward()
        return [loss.detach(), *[p.grad for p in model.parameters() if p.grad is not None]]

    model, _ = small("generative")
    want = outcome(model, q, rows, users, rewards)
    model, _ = small("generative")
    with device.there():
        device.model(model)
        got = outcome(model, q.map(device.tensor), *map(device.tensor, (rows, users, rewards)))
    assert len(got) == len(want) > 10
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(device.back(a), b, rtol=1e-3, atol=1e-4)
