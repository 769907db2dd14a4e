"""TIGER: log p code by code as a loop over items has it, the same by teacher forcing and over the tree."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from placerank.rankers.generative import tiger
from placerank.rankers.generative.config import TigerConfig
from placerank.rankers.generative.index import Index
from placerank.rankers.generative.model import PlaceFacts, Questions
from placerank.rankers.generative.reach import Allowed
from placerank.rankers.generative.tiger import Tiger, user_tokens

ITEMS, CODES, LEVELS, COLUMNS = 40, 4, 3, 5
SIZES = {"columns": 8, "heads": 2, "head_columns": 3, "hidden": 16, "layers": 2, "visits": 3, "dropout": 0.0}


def facts() -> PlaceFacts:
    """Row 0 is none, row 7 has no codes; the last code tells items of the same others apart, up to 4 of them."""
    every = np.stack(np.meshgrid(range(4), range(3), range(4), indexing="ij"), axis=-1).reshape(-1, LEVELS)
    codes = np.random.default_rng(0).permutation(every)[:ITEMS]
    codes[[0, 7]] = -1
    return facts_of(codes)


def facts_of(codes: np.ndarray) -> PlaceFacts:
    nothing = torch.zeros(len(codes))
    return PlaceFacts(torch.from_numpy(codes), torch.zeros(len(codes), 3), nothing, nothing.long())


def index_of(known: PlaceFacts, codes: int = CODES) -> Index:
    return Index(np.arange(1, len(known.codes)), known.codes[1:].numpy(), codes)


def make(known: PlaceFacts | None = None, **config: float) -> tuple[Tiger, Index]:
    torch.manual_seed(0)
    known = facts() if known is None else known
    index = index_of(known)
    model = Tiger(TigerConfig(**(SIZES | config)), known, index, 0, COLUMNS)  # type: ignore[arg-type]
    with torch.no_grad():  # relative biases start at 0, which would hide where a token stands
        for part in (model.encoder, model.decoder):
            part.bias.weight.normal_()
    return model.eval(), index


def questions() -> Questions:
    """Three users: one of six visits and three targets, one of none, one of a single visit; one visit has no codes."""
    items, visits = torch.tensor([3, 7, 3, 9, 12, 30, 5]).unique(return_inverse=True)
    return Questions(
        items=items,
        visits=visits,
        offsets=torch.tensor([0, 6, 6, 7]),
        time=torch.arange(7),
        stretch=torch.tensor([0, 0, 0, 1, 2]),
        seen=torch.tensor([1, 4, 6, 0, 1]),
        asked=torch.arange(5) + 10,
        place=torch.zeros(5, 3),
        target=torch.tensor([8, 12, 3, 20, 5]),
    )


def rows(q: Questions) -> tuple[Tensor, Tensor]:
    users = torch.randn(3, COLUMNS, generator=torch.Generator().manual_seed(1))
    return torch.zeros(len(q.items), 0), users[q.stretch]


@torch.no_grad()
def by_hand(model: Tiger, visited: list[int], user: Tensor, item: int) -> float:
    """Log p of one item after a list of visits, oldest first: a loop over codes, everything a sequence of one."""
    codes, table, K = model.facts.codes.tolist(), model.code.weight, CODES + 1
    x = [model.of_user(user)]
    for visit in visited[-model.config.visits :]:
        x += [table[level * K + 1 + code] for level, code in enumerate(codes[visit])]
    memory = model.encoder(torch.stack(x)[None])
    total, written = 0.0, [model.begin]
    for level, code in enumerate(codes[item]):
        hidden = model.decoder(torch.stack(written)[None], memory=memory)[0, -1]
        logits = (model.head[level].weight @ hidden).double()
        total += float(logits[code] - logits.exp().sum().log())
        written.append(table[level * K + 1 + code])
    return total


@pytest.mark.parametrize(
    ("tokens", "padding", "passes"), [(tiger.TOKENS, tiger.PADDING, 1), (tiger.TOKENS, 0, 3), (20, 4, 2), (1, 0, 5)]
)
def test_log_p_is_that_of_a_loop_over_codes(
    tokens: int, padding: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is taken together; by teacher forcing, over the tree and in beams."""
    monkeypatch.setattr(tiger, "TOKENS", tokens)
    monkeypatch.setattr(tiger, "PADDING", padding)
    (model, index), q = make(), questions()
    assert len(list(model._memories(q, rows(q)[1]))) == passes
    seen = [[3], [3, 7, 3, 9], [3, 7, 3, 9, 12, 30], [], [5]]
    asking = [*zip(seen, rows(q)[1], strict=True)]
    want = torch.tensor([[by_hand(model, *about, item) for item in index.items.tolist()] for about in asking])
    with torch.no_grad():
        scores = model.score(q, *rows(q), index)
        torch.testing.assert_close(scores, want, atol=1e-5, rtol=0)
        for column, item in enumerate(index.items.tolist()):
            asked = replace(q, target=torch.full((5,), item))
            torch.testing.assert_close(model(asked, *rows(q)), want[:, column], atol=1e-5, rtol=0)
        lists = model.beam(q, *rows(q), index, beams=len(index), k=len(index))
    best = want.sort(dim=1, descending=True)
    torch.testing.assert_close(lists.log_p.view(5, -1), best.values, atol=1e-5, rtol=0)
    assert lists.items.view(5, -1).tolist() == torch.from_numpy(index.items)[best.indices].tolist()


def test_codes_of_each_prefix_add_up_to_one() -> None:
    """Over all codes, those too that no item has: with every code taken, so do the items."""
    every = np.stack(np.meshgrid(*[range(CODES)] * LEVELS, indexing="ij"), axis=-1).reshape(-1, LEVELS)
    (model, index), q = make(facts_of(np.concatenate([[[-1] * LEVELS] * 40, every]))), questions()
    torch.testing.assert_close(model.score(q, *rows(q), index).exp().sum(1), torch.ones(5), atol=1e-5, rtol=0)
    model, index = make()
    assert bool((model.score(q, *rows(q), index).exp().sum(1) < 0.95).all())


def test_allowed_items_have_the_same_scores() -> None:
    (model, index), q = make(), questions()
    allowed = Allowed(torch.tensor([0, 3, 3, 4, 7, 8]), torch.tensor([5, 3, 20, 9, 7, 1, 2, 39]))
    every = torch.full((5, ITEMS), -torch.inf)
    every[:, torch.from_numpy(index.items).long()] = model.score(q, *rows(q), index)
    some = model.score(q, *rows(q), index, allowed)
    torch.testing.assert_close(some, every[allowed.requests, allowed.items], atol=1e-5, rtol=0)
    assert some.isinf().tolist() == [False] * 4 + [True] + [False] * 3  # row 7 has no codes


def test_targets_see_their_last_visits_and_nothing_later() -> None:
    (model, _), q = make(), questions()
    with torch.no_grad():
        before = model(q, *rows(q))
        later = replace(q, visits=q.visits.clone(), time=q.time + 1000)
        later.visits[4:6] = later.visits[0]
        after = model(later, *rows(q))
        torch.testing.assert_close(after[[0, 1, 3, 4]], before[[0, 1, 3, 4]], atol=0, rtol=0)
        assert abs(float(after[2] - before[2])) > 1e-3
        older = replace(q, visits=q.visits.clone())
        older.visits[:1] = older.visits[5]  # of the second target's four visits, three are seen
        after = model(older, *rows(q))
    torch.testing.assert_close(after[1:], before[1:], atol=0, rtol=0)
    assert abs(float(after[0] - before[0])) > 1e-3


def test_users_and_the_order_of_visits_count() -> None:
    (model, _), q = make(), questions()
    with torch.no_grad():
        before = model(q, *rows(q))
        assert bool(((model(q, rows(q)[0], rows(q)[1] + 1) - before).abs() > 1e-3).all())
        turned = replace(q, visits=q.visits[[0, 2, 3, 1, 4, 5, 6]])
        assert abs(float((model(turned, *rows(q)) - before)[1])) > 1e-3


def test_what_has_no_codes_cannot_be_and_gradients_are_finite() -> None:
    model, _ = make(dropout=0.1)
    model.train()
    q = replace(questions(), target=torch.tensor([7, 7, 9, 7, 5]))
    users = rows(q)[1].requires_grad_()
    log_p = model(q, rows(q)[0], users)
    assert log_p.isinf().tolist() == [True, True, False, True, False]
    (-log_p[log_p.isfinite()].mean()).backward()
    for name, parameter in [("users", users), *model.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_nobody_nothing_and_one() -> None:
    """No targets; users without visits; one item."""
    none = torch.zeros(0, dtype=torch.int64)
    model, index = make()
    nobody = Questions(none, none, torch.zeros(1).long(), none, none, none, none, torch.zeros(0, 3), none)
    assert model(nobody, torch.zeros(0, 0), torch.zeros(0, COLUMNS)).shape == (0,)
    assert model.score(nobody, torch.zeros(0, 0), torch.zeros(0, COLUMNS), index).shape == (0, len(index))
    one = Questions(none, none, torch.zeros(2).long(), none, torch.tensor([0]), torch.tensor([0]), torch.tensor([9]),
                    torch.zeros(1, 3), torch.tensor([1]))  # fmt: skip
    model, index = make(facts_of(np.array([[-1] * LEVELS, [3, 0, 0]])))
    got = model(one, torch.zeros(0, 0), torch.zeros(1, COLUMNS))
    torch.testing.assert_close(model.score(one, torch.zeros(0, 0), torch.zeros(1, COLUMNS), index), got[None])
    assert got.item() == pytest.approx(by_hand(model, [], torch.zeros(COLUMNS), 1), abs=1e-5)


def test_the_same_seed_gives_the_same_steps() -> None:
    def steps() -> list[float]:
        model, _ = make(dropout=0.2)
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        found = []
        for _ in range(20):
            loss = -model(questions(), *rows(questions())).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    first = steps()
    assert steps() == first and first[-1] < first[0]


def test_new_items_are_generated_without_training() -> None:
    (model, index), q = make(), questions()
    free = next(
        c for c in ([a, b, s] for a in range(4) for b in range(4) for s in range(4)) if c not in index.codes.tolist()
    )
    known = facts_of(np.concatenate([model.facts.codes.numpy(), [free]]))
    before = model.score(q, *rows(q), index)
    index.add(np.array([ITEMS]), np.array([free]))
    model.set_items(known, index)
    after = model.score(q, *rows(q), index)
    column = index.items.tolist().index(ITEMS)
    torch.testing.assert_close(after[:, torch.arange(len(index)) != column], before)
    with torch.no_grad():
        asked = replace(q, target=torch.full((5,), ITEMS))
        torch.testing.assert_close(model(asked, *rows(q)), after[:, column], atol=1e-5, rtol=0)


def test_items_that_cannot_be_told_apart_are_told() -> None:
    model, _ = make()
    codes = np.array([[-1] * LEVELS, [0, 1, 2], [0, 1, 2], [3, 0, 0]])
    with pytest.raises(ValueError, match=r"got 1 items with the codes of another.*suffix=True"):
        model.set_items(facts_of(codes), index_of(facts_of(codes)))
    codes = np.array([[-1] * LEVELS, [0, 1, 2], [0, 1, 7]])
    with pytest.raises(ValueError, match=r"an index of 3 of 8 codes, expected 3 of 4.*train again"):
        model.set_items(facts_of(codes), index_of(facts_of(codes), 8))


def test_users_are_dealt_to_tokens_in_turn() -> None:
    assert user_tokens(torch.arange(8), 3).tolist() == [0, 1, 2, 3, 1, 2, 3, 1]


@pytest.mark.parametrize("wrong", [{"columns": 0}, {"dropout": 1.0}, {"visits": 0}, {"user_tokens": 0}])
def test_sizes_that_cannot_be_are_told(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"ranker\.tiger\.{next(iter(wrong))}=0|ranker\.tiger\.dropout=1"):
        TigerConfig(**wrong)  # type: ignore[arg-type]


def test_defaults_are_the_published_sizes() -> None:
    config = TigerConfig()
    assert (config.columns, config.heads, config.head_columns, config.layers, config.hidden) == (128, 6, 64, 4, 1024)
    assert (config.dropout, config.history, config.user_tokens) == (0.1, 20, 2000)
