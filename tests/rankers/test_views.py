"""Hierarchical views: any tower, what each view sees, and how they are fused."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from placerank.rankers.tower import TOWERS, Context, History, InterestTower, find_tower
from placerank.rankers.views import HierarchicalViews, latest_visits

DIMS, G, A = (8, 8, 16), 2, 6
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


def make_inputs(lengths: list[int], seed: int = 0) -> dict[str, object]:
    g = torch.Generator().manual_seed(seed)
    batch, total = len(lengths), sum(lengths)
    rows = lambda n: torch.randint(0, 9, (n,), generator=g)  # noqa: E731
    places = lambda n: torch.nn.functional.normalize(torch.randn(n, 3, generator=g))  # noqa: E731
    return {
        "queries": [torch.randn(batch, d, generator=g) for d in DIMS],
        "keys": [torch.randn(total, d, generator=g).requires_grad_() for d in DIMS],
        "offsets": torch.tensor([0, *lengths]).cumsum(0),
        "gaps": torch.rand(total, G, generator=g),
        "activity": torch.rand(batch, A, generator=g),
        "context": Context(
            rows(batch), rows(batch), places(batch), places(batch), rows(total), rows(total), places(total)
        ),
    }


def cut(inputs: dict, lengths: list[int], recent: int) -> dict:
    """The same inputs with histories that have the latest visits alone."""
    kept = [t for a, b in pairwise(inputs["offsets"].tolist()) for t in range(max(a, b - recent), b)]
    context = inputs["context"]
    return inputs | {
        "keys": [k[kept] for k in inputs["keys"]],
        "gaps": inputs["gaps"][kept],
        "offsets": torch.tensor([0, *(min(n, recent) for n in lengths)]).cumsum(0),
        "context": Context(*context[:4], *(x[kept] for x in context[4:])),
    }


@pytest.mark.parametrize("name", sorted(TOWERS))
@pytest.mark.parametrize("recent", [0, 2])
def test_any_tower_starts_as_its_views_side_by_side(name: str, recent: int) -> None:
    torch.manual_seed(0)
    views = HierarchicalViews(find_tower(name), DIMS, G, A, recent=recent).eval()
    inputs = make_inputs(LENGTHS)
    interest, weights = views(**inputs)
    coarse = cut(inputs, LENGTHS, recent) if recent else inputs
    want = []
    for v, tower in enumerate(views.towers):
        seen = coarse if v else inputs
        history = History(seen["keys"][v], seen["offsets"], seen["gaps"])
        want.append(tower(inputs["queries"][v], history, seen["context"]))
    torch.testing.assert_close(interest, torch.cat(want, dim=1))
    upstream = torch.randn_like(interest)
    got, by_hand = (torch.autograd.grad((x * upstream).sum(), inputs["keys"]) for x in (interest, torch.cat(want, 1)))
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
    for parameter in [*inputs["keys"], *views.parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    left_out = torch.ones(13, dtype=torch.bool)
    left_out[[1, 2, 10, 11, 12]] = False  # the latest two of three, of none, of nine; and the one of one
    assert not inputs["keys"][1].grad[left_out].any()


def test_what_each_view_sees_and_the_mean_of_losses() -> None:
    views = HierarchicalViews(Reader, DIMS, G, A, recent=2)
    inputs = make_inputs(LENGTHS)
    interest, _, loss = views.forward_with_loss(**inputs)
    torch.testing.assert_close(loss, torch.stack([q.mean() for q in inputs["queries"]]).mean())
    parts = interest.split([d + G for d in DIMS], dim=1)
    category = inputs["context"].visit_category
    for part, key, seen in zip(parts, inputs["keys"], (slice(3, 12), slice(10, 12), slice(10, 12)), strict=True):
        want = torch.cat([key[seen] * category[seen, None], inputs["gaps"][seen]], dim=1).sum(0)
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
    for v, (part, was) in enumerate(zip(interest.split(DIMS, 1), flat.split(DIMS, 1), strict=True)):
        torch.testing.assert_close(part, 3 * weights[:, v : v + 1] * was)


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(0, 7), max_size=8), recent=st.integers(1, 9))
def test_latest_visits_are_the_ends_of_the_histories(lengths: list[int], recent: int) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    rows, ends = latest_visits(offsets, sum(lengths), recent)
    parts = [list(range(a, b))[-recent:] for a, b in pairwise(offsets.tolist())]
    assert rows.tolist() == [t for part in parts for t in part]
    assert ends.tolist() == torch.tensor([0, *map(len, parts)]).cumsum(0).tolist()


def test_exported_for_any_number_of_samples_and_visits() -> None:
    torch.manual_seed(0)
    views = HierarchicalViews(find_tower("din"), DIMS, G, A, recent=2).eval()
    names = ("queries", "keys", "offsets", "gaps", "activity")
    batch, total = torch.export.Dim("batch", min=0), torch.export.Dim("total", min=0)
    shapes = ([{0: batch}] * 3, [{0: total}] * 3, {0: batch + 1}, {0: total}, {0: batch})
    with torch.no_grad():
        example = tuple(make_inputs([2, 0, 3])[name] for name in names)
        program = torch.export.export(
            views, example, dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True
        ).module()
        for lengths in (LENGTHS, [3], [0], [0, 0]):
            inputs = tuple(make_inputs(lengths)[name] for name in names)
            torch.testing.assert_close(program(*inputs), views(*inputs))


def test_what_can_not_be_is_told() -> None:
    with pytest.raises(ValueError, match=r"views: got none"):
        HierarchicalViews(find_tower("din"), [], G, A)
    with pytest.raises(ValueError, match=r"got recent=-1"):
        HierarchicalViews(find_tower("din"), DIMS, G, A, recent=-1)


@pytest.mark.parametrize("recent", [0, 2])
def test_an_inner_view_is_that_of_the_first_ones_columns(recent: int) -> None:
    first, _, _ = DIMS
    torch.manual_seed(0)
    given = HierarchicalViews(find_tower("din"), [first, DIMS[1], first - 2], G, A, recent=recent)
    inner = HierarchicalViews(find_tower("din"), DIMS[:2], G, A, recent=recent, inner=2)
    inner.load_state_dict(given.state_dict())
    grads = []
    for views in (given, inner):
        inputs = make_inputs(LENGTHS)
        leaves = [inputs[name][0].requires_grad_() for name in ("queries", "keys")]
        for name in ("queries", "keys"):
            last = [inputs[name][0][:, 2:]] if views is given else []
            inputs[name] = [*inputs[name][:2], *last]
        interest, _ = views(**inputs)
        grads.append([interest, *torch.autograd.grad(interest.square().sum(), leaves)])
    torch.testing.assert_close(grads[0], grads[1])
