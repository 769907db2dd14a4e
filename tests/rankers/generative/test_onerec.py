"""OneRec: a list by teacher forcing is the list item by item; lists don't repeat."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from placerank.kernels.haversine import unit_vectors
from placerank.rankers.generative.config import OneRecConfig
from placerank.rankers.generative.decoding import beam
from placerank.rankers.generative.index import Index
from placerank.rankers.generative.model import Generator, GeneratorConfig, PlaceFacts, Questions
from placerank.rankers.generative.onerec import OneRec
from placerank.rankers.generative.reach import Allowed

ITEMS, CODES, LEVELS, COLUMNS = 40, 4, 3, 5
NOW = 1_700_000_000
SIZES = {"columns": 8, "heads": 2, "hidden": 16, "layers": 2, "memory": 3, "copied": 4, "dropout": 0.0}


def make(**config: float) -> tuple[OneRec, Index]:
    """Of 39 items, many of one ID; row 7 has no codes, row 9 no place."""
    torch.manual_seed(0)
    codes = torch.randint(0, CODES, (ITEMS, LEVELS))
    codes[:, 1:] %= 2
    codes[[0, 7]] = -1
    lat, lon = 52 + torch.rand(2, ITEMS, dtype=torch.float64)
    lat[[0, 9]] = torch.nan
    popularity = torch.randint(2, 50, (ITEMS,)).float().log1p()
    facts = PlaceFacts(codes, unit_vectors(lat, lon).float(), popularity, torch.zeros(ITEMS).long())
    index = Index(torch.arange(1, ITEMS).numpy(), codes[1:].numpy(), CODES)
    model = OneRec(OneRecConfig(**(SIZES | {"experts": 4} | config)), facts, index, COLUMNS, COLUMNS)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval(), index


def questions() -> Questions:
    """A user of six visits and five targets, one without visits and with a target, one of a visit and two targets."""
    visited = torch.tensor([3, 7, 3, 9, 12, 30, 5])
    items, visits = visited.unique(return_inverse=True)
    place = unit_vectors(52.5 + torch.zeros(8).double(), 52.1 + 0.1 * torch.arange(8).double()).float()
    place[1] = place[5] = torch.nan
    return Questions(
        items=items,
        visits=visits,
        offsets=torch.tensor([0, 6, 6, 7]),
        time=NOW + 3600 * torch.tensor([0, 5, 5, 30, 31, 90, 7]),
        stretch=torch.tensor([0, 0, 0, 0, 0, 1, 2, 2]),
        seen=torch.tensor([1, 4, 5, 5, 6, 0, 1, 1]),
        asked=NOW + 3600 * torch.tensor([5, 31, 32, 33, 100, 50, 9, 10]),
        place=place,
        target=torch.tensor([9, 12, 3, 9, 7, 20, 5, 14]),
    )


def rows(q: Questions) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    every = torch.randn(ITEMS, COLUMNS, generator=g)
    return every[q.items], torch.randn(3, COLUMNS, generator=g)[q.stretch]


def only(q: Questions, target: int) -> Questions:
    return q.some(torch.arange(len(q.seen)) == target)


LISTS = torch.tensor([0, 1, 1, 1, 2, 3, 4, 4])  # targets 1 to 3, and 6 and 7


@torch.no_grad()
@pytest.mark.parametrize("lazy", [0, 1, 2])
def test_a_list_by_teacher_forcing_is_its_items_one_after_the_other(lazy: int) -> None:
    model, index = make(lazy=lazy)
    q = questions()
    found = model(q, *rows(q), LISTS)
    assert q.target is not None
    columns = {int(item): column for column, item in enumerate(index.items)}
    for target in range(8):
        first = int((LISTS[target] == LISTS).nonzero()[0])
        asked = only(q, first)
        before = q.target[None, first:target]
        scores = model.score(asked, rows(q)[0], rows(q)[1][first : first + 1], index, None, before)
        item = int(q.target[target])
        if item in columns:
            torch.testing.assert_close(found[target], scores[0, columns[item]], atol=1e-5, rtol=1e-5)
        # what is copied and has no codes is not in the index
        without = model(replace(asked, target=torch.tensor([7])), rows(q)[0], rows(q)[1][first : first + 1])
        if target == first:
            torch.testing.assert_close(scores.exp().sum() + without.exp()[0], torch.tensor(1.0), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("lazy", [0, 1])
def test_in_evaluation_each_target_has_a_list_of_its_own(lazy: int) -> None:
    model, index = make(lazy=lazy)
    q = questions()
    torch.testing.assert_close(model(q, *rows(q)), model(q, *rows(q), torch.arange(8)))
    scores = model.score(q, *rows(q), index)
    for column, item in enumerate(index.items.tolist()):
        own = model(replace(q, target=torch.full((8,), item)), *rows(q))
        torch.testing.assert_close(own, scores[:, column], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_was_listed_counts_and_what_comes_later_does_not() -> None:
    model, _ = make()
    q = questions()
    assert q.target is not None
    found = model(q, *rows(q), LISTS)
    other = replace(q, target=q.target.clone())
    other.target[2] = 25  # type: ignore[index]
    changed = (model(other, *rows(q), LISTS) - found).abs() > 1e-4
    assert changed.tolist() == [False, False, True, True, False, False, False, False]
    # nor does anything of the later request itself
    other = replace(q, asked=q.asked.clone(), place=q.place.clone(), seen=q.seen.clone())
    other.asked[2:4] += 9999
    other.place[2:4] = other.place[0]
    other.seen[3] = 6
    torch.testing.assert_close(model(other, *rows(q), LISTS), found)


def test_in_training_sessions_are_lists() -> None:
    model, _ = make(joined=1.0, session_hours=1.5, experts=1, active=1)  # more of them move in training
    q = questions()
    drawn = model._drawn(q)
    assert drawn.tolist() == LISTS.tolist()
    assert (make(joined=0.0)[0]._drawn(q) == torch.arange(8)).all()
    torch.testing.assert_close(model.train()(q, *rows(q)), model.eval()(q, *rows(q), LISTS))
    half = make(joined=0.5, session_hours=1.5)[0]
    starts = torch.stack([half._drawn(q).diff() for _ in range(500)]).float().mean(0)
    torch.testing.assert_close(starts, torch.tensor([1.0, 0.5, 0.5, 1, 1, 1, 0.5]), atol=0.1, rtol=0)


@torch.no_grad()
def test_lists_are_greedy_and_repeat_nothing() -> None:
    model, index = make()
    q = questions()
    allowed = Allowed(
        torch.tensor([0, 4, 4, 5, 8, 10, 13, 16, 20]),
        torch.tensor([5, 3, 20, 9, 7, 1, 2, 39, 3, 7, 5, 6, 8, 30, 31, 32, 11, 12, 13, 14]),
    )
    found = model.lists(q, *rows(q), allowed, k=3)
    for b in range(8):
        own = found.items[found.offsets[b] : found.offsets[b + 1]].tolist()
        log_p = found.log_p[found.offsets[b] : found.offsets[b + 1]]
        choice = allowed.items[allowed.offsets[b] : allowed.offsets[b + 1]].tolist()
        before: list[int] = []
        for item, got in zip(own, log_p, strict=True):
            left = torch.tensor([x for x in choice if x not in before])
            some = Allowed(torch.tensor([0, len(left)]), left)
            listed = torch.tensor([before], dtype=torch.int64).view(1, -1)
            scores = model.score(only(q, b), rows(q)[0], rows(q)[1][b : b + 1], index, some, listed)
            assert item == int(left[scores.argmax()])
            torch.testing.assert_close(got, scores.max(), atol=1e-5, rtol=1e-5)
            before.append(item)
        can = [x for x in choice if x != 7]
        assert len(own) >= min(3, len(can)) and len(set(own)) == len(own)
    nothing = Allowed(torch.zeros(9, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert model.lists(q, *rows(q), nothing, k=2).offsets.tolist() == [0] * 9
    with_beams = model.lists(q, *rows(q), allowed, k=3, beams=ITEMS)
    assert with_beams.items.tolist() == found.items.tolist() and with_beams.offsets.tolist() == found.offsets.tolist()
    torch.testing.assert_close(with_beams.log_p, found.log_p, atol=1e-5, rtol=1e-5)
    every = model.lists(q, *rows(q), k=2)
    assert every.offsets.diff().tolist() == [2] * 8


@torch.no_grad()
def test_beams_of_all_are_the_generated_scores() -> None:
    model, index = make()
    q = questions()
    e = model.encode(q, rows(q)[0], torch.cat([rows(q)[1], torch.zeros(8, 16)], dim=1))
    lists = beam(model, model.memory(e, q), index, beams=ITEMS, k=ITEMS, last_mile=lambda of, items: model._last_mile(
        of, items, e.state, e.place))  # fmt: skip
    for b in range(8):
        own = slice(int(lists.offsets[b]), int(lists.offsets[b + 1]))
        for item, got in list(zip(lists.items[own].tolist(), lists.log_p[own], strict=True))[::7]:
            want = model.generated(e, q, torch.full((8,), item))[b]
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lazy", [0, 1])
def test_gradients_are_finite_and_reach_all(lazy: int) -> None:
    model, _ = make(dropout=0.1, item_dropout=0.5, joined=1.0, lazy=lazy)
    model.train()
    q = questions()
    own, users = (x.clone().requires_grad_() for x in rows(q))
    log_p = model(q, own, users)
    (-log_p[log_p.isfinite()].mean()).backward()
    for name, parameter in [("rows", own), ("users", users), *model.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    experts = [block.feed_forward for block in model.decoder.blocks]
    assert all(bool((layer.bias != 0).any()) for layer in experts)  # type: ignore[union-attr, operator]


@torch.no_grad()
def test_lazily_a_visit_tells_nothing_of_those_before_it() -> None:
    """So the last of many is enough for all that follows from it, which `history` counts on."""
    model, _ = make(lazy=1)
    q = questions()
    e = model.encode(q, rows(q)[0], torch.cat([rows(q)[1], torch.zeros(8, 16)], dim=1))
    other = replace(q, visits=q.visits.clone(), time=q.time - 3600 * (torch.arange(7) < 1).long())
    other.visits[0] = q.visits[4]
    moved = model.encode(other, rows(q)[0], torch.cat([rows(q)[1], torch.zeros(8, 16)], dim=1))
    assert (e.visits != moved.visits).any(2)[0].tolist() == [False, True, True, False, False, False, False]
    assert model.config.history == 5 and make(lazy=0)[0].config.history == 4 + 2 * 31 + 1


@torch.no_grad()
def test_one_expert_and_no_lists_are_the_default_model() -> None:
    model, index = make(experts=1, active=1)
    plain = Generator(GeneratorConfig(**SIZES), model.facts, index, COLUMNS, COLUMNS).eval()  # type: ignore[arg-type]
    state = model.state_dict()
    first = state["request.0.weight"]
    listed = slice(2 * 8 + COLUMNS, 4 * 8 + COLUMNS)  # what comes after the user
    state["request.0.weight"] = torch.cat([first[:, : listed.start], first[:, listed.stop :]], dim=1)
    for name in [name for name in state if "feed_forward" in name]:
        value = state.pop(name)
        kind = name.rsplit(".", 1)[1]
        if kind in ("hidden", "out"):
            state[name.replace(f"feed_forward.{kind}", f"{kind}.weight")] = value[0]
    plain.load_state_dict(state)
    q = questions()
    torch.testing.assert_close(model(q, *rows(q)), plain(q, *rows(q)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"active": 9},
        {"active": 3},
        {"experts": 0},
        {"session_hours": 0.0},
        {"joined": 1.5},
        {"hidden": 0},
        {"lazy": 3},
        {"lazy": -1},
    ],
)
def test_sizes_that_cannot_be_are_told(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"ranker\.\w+\.{next(iter(wrong))}="):
        OneRecConfig(**wrong)  # type: ignore[arg-type]
