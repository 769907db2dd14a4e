"""The default generative ranker: a distribution over all items, the same by teacher forcing and over the tree."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from placerank.data.batches.item_columns import local_shift
from placerank.kernels.haversine import unit_vectors
from placerank.rankers.generative.decoding import best
from placerank.rankers.generative.index import Index
from placerank.rankers.generative.model import (
    FEATURES,
    HOUR_KNOTS,
    KM_KNOTS,
    Generator,
    GeneratorConfig,
    PlaceFacts,
    Questions,
    curve,
    hats,
    worth,
)
from placerank.rankers.generative.reach import Allowed, everything

ITEMS, CODES, LEVELS, COLUMNS = 40, 4, 3, 5
NOW = 1_700_000_000


def facts(seed: int = 0) -> PlaceFacts:
    """Row 0 is none; row 7 has no codes, row 9 no place; many items share their codes."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, CODES, (ITEMS, LEVELS), generator=g)
    codes[:, 1:] %= 2
    codes[[0, 7]] = -1
    lat, lon = 52 + torch.rand(2, ITEMS, generator=g, dtype=torch.float64)
    lat[[0, 9]] = torch.nan
    positives = torch.randint(2, 50, (ITEMS,), generator=g)
    return PlaceFacts(codes, unit_vectors(lat, lon).float(), positives.float().log1p(), torch.zeros(ITEMS).long())


def index_of(known: PlaceFacts) -> Index:
    return Index(np.arange(1, ITEMS), known.codes[1:].numpy(), CODES)


def make(**config: float) -> tuple[Generator, Index]:
    torch.manual_seed(0)
    known = facts()
    index = index_of(known)
    sizes = {
        "columns": 8,
        "heads": 2,
        "hidden": 16,
        "layers": 2,
        "window": 2,
        "memory": 3,
        "copied": 4,
        "dropout": 0.0,
    } | config
    model = Generator(GeneratorConfig(**sizes), known, index, COLUMNS, COLUMNS)  # type: ignore[arg-type]
    with torch.no_grad():  # a start so near to the floor would hide what is wrong with the rest
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval(), index


def questions() -> Questions:
    """Three users: one of six visits and three targets, one of none, one of a single visit; a place that is unknown."""
    visited = torch.tensor([3, 7, 3, 9, 12, 30, 5])
    items, visits = visited.unique(return_inverse=True)
    time = NOW + 3600 * torch.tensor([0, 5, 5, 30, 31, 90, 7])
    place = unit_vectors(52.5 + torch.zeros(5).double(), 52.1 + 0.1 * torch.arange(5).double()).float()
    place[1] = torch.nan
    place[3] = torch.nan
    return Questions(
        items=items,
        visits=visits,
        offsets=torch.tensor([0, 6, 6, 7]),
        time=time,
        stretch=torch.tensor([0, 0, 0, 1, 2]),
        seen=torch.tensor([1, 4, 6, 0, 1]),
        asked=NOW + 3600 * torch.tensor([4, 31, 100, 50, 9]),
        place=place,
        target=torch.tensor([7, 12, 3, 20, 5]),
    )


def rows(q: Questions) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    every = torch.randn(ITEMS, COLUMNS, generator=g)
    return every[q.items], torch.randn(3, COLUMNS, generator=g)[q.stretch]


def test_scores_are_the_log_p_of_teacher_forcing_and_add_up_to_one() -> None:
    model, index = make()
    q = questions()
    with torch.no_grad():
        scores = model.score(q, *rows(q), index)
        for column, item in enumerate(index.items.tolist()):
            asked = replace(q, target=torch.full((5,), item))
            torch.testing.assert_close(model(asked, *rows(q)), scores[:, column], atol=1e-4, rtol=1e-5)
        # row 7 has no codes: it can be copied, nothing else, by the one whose last four visits it is among
        without = model(replace(q, target=torch.full((5,), 7)), *rows(q))
        assert without.isinf().tolist() == [True, False, True, True, True]
        torch.testing.assert_close(scores.exp().sum(1) + without.exp(), torch.ones(5), atol=1e-5, rtol=0)


def test_allowed_items_have_the_same_scores() -> None:
    model, index = make()
    q = questions()
    allowed = Allowed(torch.tensor([0, 3, 3, 4, 7, 8]), torch.tensor([5, 3, 20, 9, 7, 1, 2, 39]))
    every = torch.full((5, ITEMS), -torch.inf)
    every[:, torch.from_numpy(index.items).long()] = model.score(q, *rows(q), index)
    some = model.score(q, *rows(q), index, allowed)
    want = every[allowed.requests, allowed.items]
    torch.testing.assert_close(some, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_beams_and_copies_are_brute_force(seed: int) -> None:
    """With beams for all, on random sets: none, one, all, items without codes, without place; ties too."""
    model, index = make()
    torch.manual_seed(seed)
    with torch.no_grad():
        model.gate[-1].bias.fill_([-20.0, -2.0, 0.0, 1.0, 3.0, 20.0][seed])
    q = questions()
    counts = torch.randint(0, ITEMS, (5,)).tolist()
    counts[seed % 5] = [0, 1, ITEMS - 1][seed % 3]
    allowed = Allowed(
        torch.tensor([0, *counts]).cumsum(0), torch.cat([1 + torch.randperm(ITEMS - 1)[:n] for n in counts])
    )
    for given in (allowed, None):
        of = everything(index.items, 5) if given is None else given
        want = best(model.score(q, *rows(q), index, given).flatten(), of, 8)
        got = model.beam(q, *rows(q), index, given, beams=ITEMS, k=8)
        assert got.offsets.tolist() == want.offsets.tolist() and got.items.tolist() == want.items.tolist()
        torch.testing.assert_close(got.log_p, want.log_p, atol=1e-5, rtol=1e-5)
        few = model.beam(q, *rows(q), index, given, beams=2, k=2)  # never short, exact, nothing from outside
        assert few.offsets.diff().tolist() == torch.minimum(want.offsets.diff(), torch.tensor(2)).tolist()
        every = model.score(q, *rows(q), index, given).flatten()
        request = torch.repeat_interleave(few.offsets.diff())
        for b, item, log_p in zip(request.tolist(), few.items.tolist(), few.log_p, strict=True):
            (at,) = ((of.requests == b) & (of.items == item)).nonzero()[:, 0].tolist()
            torch.testing.assert_close(log_p, every[at], atol=1e-5, rtol=1e-5)


def test_one_beam_still_finds_what_is_copied() -> None:
    """Habit is in the list however improbable its code is: without codes too, if it is allowed."""
    model, index = make()
    with torch.no_grad():
        model.gate[-1].bias.fill_(30.0)
    q = questions()
    allowed = everything(torch.arange(1, ITEMS), 5)
    want = best(model.score(q, *rows(q), index, allowed), allowed, 1)
    got = model.beam(q, *rows(q), index, allowed, beams=1, k=1)
    been = [{3}, {3, 7, 9}, {3, 9, 12, 30}, set(), {5}]
    assert [i in some for i, some in zip(got.items.tolist(), been, strict=True)] == [True, True, True, False, True]
    assert [got.items[i].item() == want.items[i].item() for i in (0, 1, 2, 4)] == [True] * 4
    torch.testing.assert_close(got.log_p[[0, 1, 2, 4]], want.log_p[[0, 1, 2, 4]], atol=1e-5, rtol=1e-5)


def test_hours_are_local_where_offsets_are_known() -> None:
    """An offset counts like places that lie so far east; where it is unknown the sun does."""
    model, index = make()
    q = questions()
    score = lambda q: model.score(q, *rows(q), index)  # noqa: E731
    solar, minutes = score(q), torch.full_like(q.time, 330).float()
    unknown = replace(q, offset=minutes * torch.nan, asked_offset=torch.full((5,), torch.nan))
    assert torch.equal(score(unknown), solar)
    known = replace(q, offset=minutes, asked_offset=torch.full((5,), 330.0))
    east, _ = make()
    east.set_items(model.facts._replace(shift=local_shift(torch.full((ITEMS,), 330.0))), index)
    assert torch.equal(score(known), east.score(q, *rows(q), index))
    asked = score(replace(unknown, asked_offset=torch.tensor([torch.nan, torch.nan, 330.0, torch.nan, torch.nan])))
    same = (asked == solar).all(1)
    assert same.tolist() == [True, True, False, True, True]
    some = replace(known, asked_offset=torch.arange(5) * 100.0).some(torch.tensor([False, True, False, False, True]))
    assert some.asked_offset is not None and some.asked_offset.tolist() == [100.0, 400.0]


def test_targets_see_nothing_of_what_comes_later() -> None:
    model, _ = make()
    q = questions()
    with torch.no_grad():
        before = model(q, *rows(q))
        later = replace(q, visits=q.visits.clone(), time=q.time.clone())
        later.visits[4:6], later.time[4:6] = later.visits[0], NOW + 10**6
        after = model(later, *rows(q))
    torch.testing.assert_close(after[[0, 1, 3, 4]], before[[0, 1, 3, 4]])
    assert abs(float(after[2] - before[2])) > 1e-3


def test_targets_of_one_stretch_are_those_of_stretches_of_their_own() -> None:
    model, _ = make()
    q = questions()
    parts = [range(1), range(4), range(6), range(0), range(6, 7)]
    alone = replace(
        q,
        visits=torch.cat([q.visits[list(p)] for p in parts]),
        time=torch.cat([q.time[list(p)] for p in parts]),
        offsets=torch.tensor([0, *np.cumsum([len(p) for p in parts])]),
        stretch=torch.arange(5),
    )
    with torch.no_grad():
        together = model(q, *rows(q))
        torch.testing.assert_close(model(alone, rows(q)[0], rows(q)[1]), together, atol=1e-5, rtol=1e-5)


def test_where_a_stretch_begins_is_not_seen() -> None:
    """A target of many visits is told the same when its stretch has as many as ``history`` says, and not with fewer."""
    model, _ = make(window=2, memory=2, copied=3)
    visited = torch.arange(1, 31)
    q = replace(
        questions(),
        items=visited,
        visits=torch.arange(30),
        offsets=torch.tensor([0, 30]),
        time=NOW + 3600 * torch.arange(30),
        stretch=torch.tensor([0]),
        seen=torch.tensor([30]),
        asked=torch.tensor([NOW + 3600 * 40]),
        place=questions().place[:1],
        target=torch.tensor([30]),
    )

    def last(count: int) -> Tensor:
        cut = replace(
            q,
            visits=q.visits[-count:],
            time=q.time[-count:],
            offsets=torch.tensor([0, count]),
            seen=torch.tensor([count]),
        )
        return model.score(cut, *rows(cut))

    whole = model.score(q, *rows(q))
    torch.testing.assert_close(last(model.config.history), whole, atol=1e-5, rtol=0)
    assert (last(model.config.history - 2) - whole).abs().max() > 1e-4


def test_gradients_are_finite_whatever_is_unknown() -> None:
    model, _ = make(dropout=0.1, item_dropout=0.5)
    model.train()
    q = replace(questions(), target=torch.tensor([7, 7, 9, 7, 5]))  # row 7 can't be generated, and copied by one alone
    own, users = (x.clone().requires_grad_() for x in rows(q))
    log_p = model(q, own, users)
    assert log_p.isinf().tolist() == [True, False, False, True, False]
    (-log_p[log_p.isfinite()].mean()).backward()
    for name, parameter in [("rows", own), ("users", users), *model.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_nobody_has_visited_anything() -> None:
    model, index = make()
    none = torch.zeros(0, dtype=torch.int64)
    q = Questions(none, none, torch.zeros(3).long(), none, torch.tensor([0, 1]), torch.zeros(2).long(),
                  torch.full((2,), NOW), torch.full((2, 3), torch.nan), torch.tensor([1, 2]))  # fmt: skip
    scores = model.score(q, torch.zeros(0, COLUMNS), torch.zeros(2, COLUMNS), index)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(2), atol=1e-5, rtol=0)
    got = model(q, torch.zeros(0, COLUMNS), torch.zeros(2, COLUMNS))
    columns = [index.items.tolist().index(item) for item in (1, 2)]
    torch.testing.assert_close(got, scores[[0, 1], columns], atol=1e-5, rtol=1e-5)


def test_new_items_are_generated_without_training() -> None:
    model, index = make()
    known = model.facts
    index.add(np.array([ITEMS]), np.array([[1, 1, 0]]))
    model.set_items(
        PlaceFacts(
            torch.cat([known.codes, torch.tensor([[1, 1, 0]])]),
            torch.cat([known.place, known.place[3:4]]),
            torch.cat([known.popularity, torch.tensor([3.0]).log()]),
            torch.cat([known.shift, known.shift[:1]]),
        ),
        index,
    )
    q = questions()
    scores = model.score(q, *rows(q), index)
    column = index.items.tolist().index(ITEMS)
    assert (scores[:, column] > -20).all()
    torch.testing.assert_close(scores.exp().sum(1)[3:], torch.ones(2), atol=1e-5, rtol=0)


def test_an_untrained_model_knows_popularity_and_distance() -> None:
    """Before training it is the floor popularity / (1 + km) among items that share their codes."""
    torch.manual_seed(0)
    known = facts()
    model = Generator(GeneratorConfig(), known, index_of(known), COLUMNS, COLUMNS)
    place = known.place[1:2]
    weights = model.worth.bias.view(LEVELS + 1, FEATURES)[-1:]
    items = torch.tensor([1, 2, 3, 9])
    found = worth(place, weights, torch.zeros(4).long(), model.tree.facts[-1][items])
    km = 6371.0088 * torch.acos((place * known.place[items]).sum(1).clamp(max=1))
    want = known.popularity[items] - (1 + km).log().where(items != 9, 0)
    torch.testing.assert_close(found, want, atol=0.02, rtol=0)


def test_curves_are_hats() -> None:
    x = torch.tensor([0.0, 0.1, 0.5, 3.3, 9.99, 10.0, 50.0, torch.nan])
    heights = torch.randn(3, KM_KNOTS)
    of = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    torch.testing.assert_close(curve(x, heights, of), (hats(x, KM_KNOTS) * heights[of]).sum(1))
    assert (hats(x[:-1], HOUR_KNOTS).sum(1) == 1).all() and (hats(x[-1:], HOUR_KNOTS) == 0).all()


@pytest.mark.parametrize("wrong", [{"columns": 10, "heads": 4}, {"dropout": 1.0}, {"memory": 0}])
def test_sizes_that_cannot_be_are_told(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"ranker\."):
        GeneratorConfig(**wrong)  # type: ignore[arg-type]
