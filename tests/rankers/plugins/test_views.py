"""Hierarchical views: any tower, what each view sees, and how they are fused."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from placerank.rankers.plugins.views import HierarchicalViews
from placerank.rankers.towers.tower import TOWERS, Context, History, InterestTower, Samples, find_tower

DIMS, G, A, U = (8, 8, 16), 2, 6, 7
LENGTHS = [3, 0, 9, 1]


class Reader(InterestTower):
    """Sums keys by the visit's category, and has a loss: all that it was given can be seen."""

    uses_context = True

    def __init__(self, dim: int, gaps: int) -> None:
        super().__init__(dim, gaps)
        self.output_dim = dim + gaps

    def forward(self, query: Tensor, history: History, context: Context | None = None) -> Tensor:
        assert context is not None
        columns = torch.cat([history.keys * context.visit_category[:, None], history.gaps], dim=1)
        return torch.stack([part.sum(0) for part in columns.split(history.offsets.diff().tolist())])

    def forward_with_loss(
        self, query: Tensor, history: History, context: Context | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return self(query, history, context), query.mean()


def make_inputs(lengths: list[int], seed: int = 0) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    batch, total = len(lengths), sum(lengths)
    rows = lambda n: torch.randint(0, 9, (n,), generator=g)  # noqa: E731
    places = lambda n: torch.nn.functional.normalize(torch.randn(n, 3, generator=g))  # noqa: E731
    context = Context(rows(batch), rows(batch), places(batch), places(batch), rows(total), rows(total), places(total))
    met = [torch.randint(0, U, (n,), generator=g) for n in (batch, total)]
    gaps = torch.rand(total, G, generator=g)
    return {
        "views": [torch.randn(U, d, generator=g).requires_grad_() for d in DIMS],
        "samples": Samples(*met, torch.tensor([0, *lengths]).cumsum(0), gaps, context),
        "activity": torch.rand(batch, A, generator=g),
    }


def cut(samples: Samples, recent: int) -> Samples:
    """The same samples with histories that have the latest visits alone."""
    kept = [t for a, b in pairwise(samples.offsets.tolist()) for t in range(max(a, b - recent), b)]
    lengths = [min(n, recent) for n in samples.offsets.diff().tolist()]
    context = samples.context
    assert context is not None
    return Samples(
        samples.target,
        samples.visits[kept],
        torch.tensor([0, *lengths]).cumsum(0),
        samples.gaps[kept],
        Context(*context[:4], *(x[kept] for x in context[4:])),
    )


@pytest.mark.parametrize("name", sorted(TOWERS))
@pytest.mark.parametrize("recent", [0, 2])
def test_any_tower_starts_as_its_views_side_by_side(name: str, recent: int) -> None:
    torch.manual_seed(0)
    views = HierarchicalViews(find_tower(name), DIMS, G, A, recent=recent).eval()
    inputs = make_inputs(LENGTHS)
    interest, weights = views(**inputs)
    samples = inputs["samples"]
    coarse = cut(samples, recent) if recent else samples
    want = []
    for tower, view, seen in zip(views.towers, inputs["views"], (samples, coarse, coarse), strict=True):
        want.append(tower(view[seen.target], History(view[seen.visits], seen.offsets, seen.gaps), seen.context))
    torch.testing.assert_close(interest, torch.cat(want, dim=1))
    upstream = torch.randn_like(interest)
    got, by_hand = (torch.autograd.grad((x * upstream).sum(), inputs["views"]) for x in (interest, torch.cat(want, 1)))
    for a, b in zip(got, by_hand, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(weights, torch.full((4, 3), 1 / 3))
    assert interest.shape == (4, views.output_dim)


@pytest.mark.parametrize("name", sorted(TOWERS))
def test_everything_learns(name: str) -> None:
    torch.manual_seed(0)
    views = HierarchicalViews(find_tower(name), DIMS, G, A, recent=2).train()
    torch.nn.init.normal_(views.gate[2].weight)
    inputs = make_inputs(LENGTHS)
    interest, _, loss = views.forward_with_loss(**inputs)
    (interest.square().sum() + (0 if loss is None else loss)).backward()
    for parameter in [*inputs["views"], *views.parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all()


def test_what_each_view_sees_and_the_mean_of_losses() -> None:
    views = HierarchicalViews(Reader, DIMS, G, A, recent=2)
    inputs = make_inputs(LENGTHS)
    interest, _, loss = views.forward_with_loss(**inputs)
    samples = inputs["samples"]
    queries = [view[samples.target] for view in inputs["views"]]
    torch.testing.assert_close(loss, torch.stack([q.mean() for q in queries]).mean())
    parts = interest.split([d + G for d in DIMS], dim=1)
    category = samples.context.visit_category
    for part, view, seen in zip(parts, inputs["views"], (slice(3, 12), slice(10, 12), slice(10, 12)), strict=True):
        keys = view[samples.visits[seen]]
        want = torch.cat([keys * category[seen, None], samples.gaps[seen]], dim=1).sum(0)
        torch.testing.assert_close(part[2], want)


def test_the_gate_weighs_by_activity() -> None:
    torch.manual_seed(0)
    views = HierarchicalViews(find_tower("din"), DIMS, G, A, recent=0).eval()
    inputs = make_inputs(LENGTHS)
    flat, _ = views(**inputs)
    for p in views.gate.parameters():
        torch.nn.init.normal_(p)
    interest, weights = views(**inputs)
    by_hand = torch.softmax(views.gate[2](views.gate[0](inputs["activity"]).relu()), dim=1)
    torch.testing.assert_close(weights, by_hand)
    assert weights.std(dim=0).min() > 0
    widths = [tower.output_dim for tower in views.towers]
    for v, (part, was) in enumerate(zip(interest.split(widths, 1), flat.split(widths, 1), strict=True)):
        torch.testing.assert_close(part, 3 * weights[:, v : v + 1] * was)


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(0, 7), max_size=8), recent=st.integers(1, 9))
def test_latest_visits_are_the_ends_of_the_histories(lengths: list[int], recent: int) -> None:
    samples = make_inputs(lengths)["samples"]
    got, want = samples.latest(recent), cut(samples, recent)
    for a, b in zip((*got[:4], *got.context), (*want[:4], *want.context), strict=True):
        assert torch.equal(a, b)


def flat(inputs: dict[str, Any]) -> tuple[Any, ...]:
    """As arguments, without a context."""
    return inputs["views"], inputs["samples"]._replace(context=None), inputs["activity"]


def test_exported_for_any_number_of_samples_and_visits() -> None:
    torch.manual_seed(0)
    views = HierarchicalViews(find_tower("din"), DIMS, G, A, recent=2).eval()
    batch, total = torch.export.Dim("batch", min=0), torch.export.Dim("total", min=0)
    samples = Samples({0: batch}, {0: total}, {0: batch + 1}, {0: total}, None)  # type: ignore[arg-type]
    with torch.no_grad():
        program = torch.export.export(
            views,
            flat(make_inputs([2, 0, 3])),
            dynamic_shapes=([{}] * 3, samples, {0: batch}),
            prefer_deferred_runtime_asserts_over_guards=True,
        ).module()
        for lengths in (LENGTHS, [3], [0], [0, 0]):
            inputs = flat(make_inputs(lengths))
            torch.testing.assert_close(program(*inputs), views(*inputs))


def test_what_can_not_be_is_told() -> None:
    with pytest.raises(ValueError, match=r"views: got none"):
        HierarchicalViews(find_tower("din"), [], G, A)
    with pytest.raises(ValueError, match=r"got recent=-1"):
        HierarchicalViews(find_tower("din"), DIMS, G, A, recent=-1)


@pytest.mark.parametrize("name", sorted(TOWERS))
@pytest.mark.parametrize("on_host", [True, False])
def test_visits_once_a_request_give_what_visits_of_each_candidate_give(name: str, on_host: bool) -> None:
    lengths, candidates = [5, 0, 1, 9], [3, 2, 1, 4]
    of = [r for r, n in enumerate(candidates) for _ in range(n)]
    begin = [sum(lengths[:r]) for r in of]
    rows = torch.tensor([b + i for b, r in zip(begin, of, strict=True) for i in range(lengths[r])])
    views = HierarchicalViews(find_tower(name), DIMS, G, A, recent=3).eval()
    inputs = make_inputs([lengths[r] for r in of])
    visits = torch.randint(0, U, (sum(lengths),))
    own = inputs["samples"]._replace(
        visits=visits[rows], lengths=torch.tensor([lengths[r] for r in of]) if on_host else None
    )
    want = views(inputs["views"], own, inputs["activity"])[0]
    shared = own._replace(visits=visits, starts=torch.tensor(begin))
    torch.testing.assert_close(views(inputs["views"], shared, inputs["activity"])[0], want)
