"""Exact scores and beams: item by item, by brute force on random trees, against transformers' T5."""

from typing import Any

import numpy as np
import pytest
import torch
from generative import SmallModel, memories
from torch import Tensor
from torch.nn import functional as F

from placerank.benchmarks.t5 import T5Tokens, small_t5
from placerank.rankers.generative import decoding
from placerank.rankers.generative.decoding import Softmax, beam, best, score
from placerank.rankers.generative.index import Index
from placerank.rankers.generative.layers import Memory
from placerank.rankers.generative.reach import Allowed, everything

SOFTMAX: tuple[Softmax, ...] = ("own", "existing", "allowed")


def sets(rng: np.random.Generator, items: int, requests: int) -> Allowed:
    """Of none, of one, of all and of some items, among them such that are not there."""
    kinds = [0, 1, items, *rng.integers(0, items + 1, requests)]
    lists = [rng.permutation(items + 3)[: rng.choice(kinds)] for _ in range(requests)]
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in lists])])
    return Allowed(torch.from_numpy(offsets), torch.from_numpy(np.concatenate([np.empty(0, np.int64), *lists])))


def mile(requests: Tensor, items: Tensor) -> Tensor:
    """Some logits of items, other ones for each request."""
    return torch.sin(requests * 7.0 + items * 3.0)


@torch.no_grad()
def by_hand(
    model: SmallModel, memory: Memory, index: Index, allowed: Allowed, last_mile: Any = None
) -> list[dict[int, float]]:
    """Log p of every allowed item with codes, each prefix as a sequence of its own, in float64 from the logits on."""
    codes_of = dict(zip(index.items.tolist(), map(tuple, index.codes.tolist()), strict=True))
    every: list[dict[int, float]] = []
    for b in range(len(memory.first)):
        items = [i for i in allowed.items[allowed.offsets[b] : allowed.offsets[b + 1]].tolist() if i in codes_of]
        among = {i: codes_of[i] for i in items} if model.softmax == "allowed" else codes_of
        found = {}
        for item in items:
            codes, total = codes_of[item], 0.0
            for level in range(index.levels):
                x = [memory.first[b]]
                x += [model.embed(j + 1, torch.tensor(codes[j])) for j in range(level)]
                rows = memory.some(b, b + 1).rows[None]
                hidden = model.decoder(torch.stack(x)[None], memory=rows)[0, -1]
                logits = model.logits(level + 1, hidden, torch.zeros(0), None).double()
                if model.softmax == "own":
                    total += float(logits[codes[level]])
                else:
                    exists = sorted({c[level] for c in among.values() if c[:level] == codes[:level]})
                    total += float(logits[codes[level]] - logits[exists].logsumexp(0))
            same = torch.tensor([i for i, c in among.items() if c == codes])
            logits = torch.zeros(len(same)) if last_mile is None else last_mile(torch.tensor(b), same)
            found[item] = total + float(logits[same == item] - logits.logsumexp(0))
        every.append(found)
    return every


def table(model: SmallModel, index: Index, allowed: Allowed, memory: Memory) -> list[dict[int, float]]:
    """What ``score`` gives, by request and item; items that are not in the index have -inf."""
    log_p = score(model, memory, index, allowed)
    found = []
    for a, b in zip(allowed.offsets[:-1].tolist(), allowed.offsets[1:].tolist(), strict=True):
        items = allowed.items[a:b]
        there = torch.from_numpy(index.has(items.numpy()))
        assert bool((log_p[a:b][~there] == -torch.inf).all())
        found.append(dict(zip(items[there].tolist(), log_p[a:b][there].tolist(), strict=True)))
    return found


@pytest.mark.parametrize("softmax", SOFTMAX)
@pytest.mark.parametrize("levels", [1, 3])
def test_scores_are_those_of_each_item_alone(softmax: Softmax, levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is taken together: chunks of 3 nodes, batches of 2 requests."""
    rng = np.random.default_rng(levels)
    codes = rng.integers(0, 4, (30, levels))
    codes[:2] = -1
    index, model = Index(np.arange(30), codes, 4), SmallModel(levels, 4, softmax)
    memory, allowed = memories([4, 1, 7, 2, 3]), sets(rng, 30, 5)
    want = by_hand(model, memory, index, allowed)
    with_mile = by_hand(model, memory, index, allowed, mile)
    for chunk, requests, tokens in ((1024, 64, 4096), (3, 2, 4096), (1, 64, 5)):
        monkeypatch.setattr(decoding, "CHUNK", chunk)
        monkeypatch.setattr(decoding, "REQUESTS", requests)
        monkeypatch.setattr(decoding, "TOKENS", tokens)
        for got, exact in zip(table(model, index, allowed, memory), want, strict=True):
            assert got == pytest.approx(exact, abs=1e-5)
        flat = [with_mile[int(b)].get(int(i), -torch.inf) for b, i in zip(allowed.requests, allowed.items, strict=True)]
        torch.testing.assert_close(score(model, memory, index, allowed, mile), torch.tensor(flat), rtol=1e-5, atol=1e-5)
        lists = beam(model, memory, index, allowed, beams=40, k=40, last_mile=mile)
        for b, exact in enumerate(with_mile):
            best = sorted(exact.values(), reverse=True)
            torch.testing.assert_close(
                lists.log_p[lists.offsets[b] : lists.offsets[b + 1]], torch.tensor(best), rtol=1e-5, atol=1e-5
            )


class Coarse(SmallModel):
    """Log-probabilities of halves, so that many totals are equal, whichever way they are added."""

    def logits(self, level: int, hidden: Tensor, nodes: Tensor, about: Tensor | None) -> Tensor:
        return (hidden[:, : self.heads[0].out_features] * 2).round().clamp(-3, 3) / 2


def test_a_thousand_trees_by_brute_force() -> None:
    """Beams for all: the lists of the sorted scores, ties by code and item; fewer beams: nothing from outside."""
    rng = np.random.default_rng(0)
    models = [Coarse(3, 5, "own"), SmallModel(3, 5, "existing"), SmallModel(3, 5, "allowed")]
    for trial in range(250):  # of four requests each
        model = models[trial % 3]
        items, K = int(rng.integers(0, 40)), int(rng.integers(1, 6))
        codes = rng.integers(0, K, (items, 3))
        codes[rng.random(items) < 0.1] = -1
        index = Index(np.arange(items), codes, 5)
        index.remove(rng.permutation(items)[: items // 10])
        new = np.arange(items, items + 2)
        index.add(new, rng.integers(0, K, (2, 3)))
        allowed, memory = sets(rng, items, 4), memories([2, 3, 1, 2], seed=trial)
        scores = table(model, index, allowed, memory)
        place = {item: at for at, item in enumerate(index.items.tolist())}
        k = int(rng.integers(1, 45))
        lists = beam(model, memory, index, allowed, beams=max(len(index), k, 1), k=k)
        few = beam(model, memory, index, allowed, beams=3, k=3)
        for b, exact in enumerate(scores):
            a, stop = lists.offsets[b : b + 2].tolist()
            got = dict(zip(lists.items[a:stop].tolist(), lists.log_p[a:stop].tolist(), strict=True))
            assert len(got) == stop - a == min(k, len(exact))
            assert got == pytest.approx({item: exact[item] for item in got}, abs=1e-5)
            order = sorted(exact, key=lambda item: (-exact[item], place[item]))[:k]
            if trial % 3 == 0:  # no rounding: the order to the letter
                assert [*got] == order
            assert [*got.values()] == sorted(got.values(), reverse=True)
            assert [*got.values()] == pytest.approx([exact[item] for item in order], abs=1e-5)
            a, stop = few.offsets[b : b + 2].tolist()
            assert stop - a == min(3, len(exact))
            for item, log_p in zip(few.items[a:stop].tolist(), few.log_p[a:stop].tolist(), strict=True):
                assert log_p == pytest.approx(exact[item], abs=1e-5)


def test_probabilities_add_up() -> None:
    """Over all items where the softmax is over what exists, over the reachable where it is over that."""
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 8, (400, 3))
    index, memory = Index(np.arange(400), codes, 8), memories([5, 9, 1])
    all_items = score(SmallModel(3, 8, "existing"), memory, index).exp().sum(1)
    torch.testing.assert_close(all_items, torch.ones(3), rtol=0, atol=1e-5)
    allowed = everything(rng.permutation(400)[:37], 3)
    reachable = score(SmallModel(3, 8, "allowed"), memory, index, allowed).exp().view(3, -1).sum(1)
    torch.testing.assert_close(reachable, torch.ones(3), rtol=0, atol=1e-5)
    existing = score(SmallModel(3, 8, "existing"), memory, index, allowed).exp().view(3, -1).sum(1)
    assert bool((existing < 0.5).all())
    assert bool((score(SmallModel(3, 8, "own"), memory, index).exp().sum(1) < 1).all())


@pytest.mark.parametrize("softmax", SOFTMAX)
def test_no_set_is_the_set_of_all(softmax: Softmax) -> None:
    rng = np.random.default_rng(6)
    index, memory = Index(np.arange(90), rng.integers(0, 5, (90, 3)), 5), memories([5, 2, 1])
    model, allowed = SmallModel(3, 5, softmax), everything(index.items, 3)
    torch.testing.assert_close(score(model, memory, index), score(model, memory, index, allowed).view(3, -1))
    torch.testing.assert_close(
        score(model, memory, index, last_mile=mile), score(model, memory, index, allowed, mile).view(3, -1)
    )
    for one, other in zip(
        beam(model, memory, index, beams=7, k=5), beam(model, memory, index, allowed, beams=7, k=5), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_new_items_are_generated_at_once() -> None:
    model, memory = SmallModel(2, 4), memories([3])
    index = Index(np.array([0]), np.array([[1, 1]]), 4)
    assert beam(model, memory, index, beams=5, k=5).items.tolist() == [0]
    index.add(np.array([7]), np.array([[1, 1]]))
    lists = beam(model, memory, index, beams=5, k=5)
    assert lists.items.tolist() == [0, 7]
    torch.testing.assert_close(lists.log_p.exp(), torch.tensor([0.5, 0.5]))


def test_what_does_not_fit_is_told() -> None:
    index, memory, model = Index(np.array([0]), np.array([[1, 1]]), 4), memories([3]), SmallModel(2, 4)
    with pytest.raises(ValueError, match="k: got 3, expected at most beams = 2"):
        beam(model, memory, index, beams=2, k=3)
    with pytest.raises(ValueError, match="allowed: got 2 requests, expected 1"):
        score(model, memory, index, everything([0], 2))
    with pytest.raises(ValueError, match="softmax: got 'all'"):
        score(SmallModel(2, 4, "all"), memory, index)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="in training"):
        score(SmallModel(2, 4, dropout=0.1).train(), memory, index)


@pytest.fixture(scope="module")
def t5() -> T5Tokens:
    """A T5 over three levels of 16 codes with random weights."""
    model = small_t5(vocabulary=1 + 3 * 16, columns=32, heads=4, head_columns=8, hidden=64, layers=2, seed=3)
    return T5Tokens(model, levels=3, codes=16)


def test_beams_are_those_of_transformers(t5: T5Tokens) -> None:
    """Same lists in the same order as generate with a prefix function, and exact scores are teacher forcing's."""
    rng = np.random.default_rng(8)
    codes = np.unique(rng.integers(0, 16, (300, 3)), axis=0)
    index = Index(np.arange(len(codes)), codes, 16)
    for trial in range(4):
        tokens = torch.from_numpy(rng.integers(1, 49, (1, 20)))
        subset = None if trial % 2 else rng.permutation(len(codes))[:60]
        allowed = None if subset is None else everything(subset, 1)
        want = t5.generate(tokens, codes if subset is None else codes[subset], beams=12)
        got = beam(t5, t5.memory(tokens), index, allowed, beams=12, k=12)
        assert [tuple(codes[item]) for item in got.items] == [c for c, _ in want]
        torch.testing.assert_close(got.log_p, torch.tensor([p for _, p in want]), rtol=0, atol=1e-5)
        items = np.arange(len(codes)) if subset is None else subset
        log_p = score(t5, t5.memory(tokens), index, everything(items, 1))
        torch.testing.assert_close(log_p, t5.teacher_forced(tokens, codes[items]), rtol=0, atol=1e-5)


@torch.no_grad()
def test_memory_does_not_grow_with_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest level that a decoder is given is a chunk."""
    monkeypatch.setattr(decoding, "CHUNK", 50)
    rng = np.random.default_rng(9)
    index, model = Index(np.arange(5000), rng.integers(0, 32, (5000, 3)), 32), SmallModel(3, 32, "own")
    taken, step = [], model.decoder.step
    monkeypatch.setattr(model.decoder, "step", lambda x, *rest: (taken.append(len(x)), step(x, *rest))[1])
    score(model, memories([5]), index)
    pairs = index.whole().levels[1]
    assert max(taken) == 50 and sum(taken) == 1 + 32 + len(pairs.codes)
    taken.clear()
    model.softmax = "existing"  # what has one ID below needs no model
    score(model, memories([5]), index)
    assert sum(taken) == 1 + 32 + int((pairs.children.diff() > 1).sum())


@pytest.mark.parametrize("softmax", SOFTMAX)
def test_nobody_and_nothing(softmax: Softmax) -> None:
    """No requests, no items, requests whose memory is empty."""
    index, model = Index(np.arange(3), np.array([[0, 1], [0, 1], [3, 2]]), 4), SmallModel(2, 4, softmax)
    nobody, none = memories([]), Index(np.empty(0, np.int64), np.empty((0, 2), np.int64), 4)
    assert score(model, nobody, index).shape == (0, 3)
    assert score(model, nobody, index, everything([1], 0)).shape == (0,)
    assert beam(model, nobody, index, beams=2, k=2).offsets.tolist() == [0]
    memory = memories([0, 2, 0])
    assert score(model, memory, none).shape == (3, 0)
    assert beam(model, memory, none, beams=2, k=2).offsets.tolist() == [0, 0, 0, 0]
    assert score(model, memory, index, everything([7, 8], 3)).tolist() == [-torch.inf] * 6
    lists = beam(model, memory, index, beams=3, k=3)
    assert lists.offsets.tolist() == [0, 3, 6, 9] and bool(lists.log_p.isfinite().all())
    exact = by_hand_without_memory(model, memory, index)
    torch.testing.assert_close(score(model, memory, index)[0], exact, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def by_hand_without_memory(model: SmallModel, memory: Memory, index: Index) -> Tensor:
    """Request 0 with a memory of one row whose values are 0, which is what none gives."""
    keep = [p.clone() for b in model.decoder.blocks for p in [b.memory_attention.out.weight]]  # type: ignore[union-attr]
    for block in model.decoder.blocks:
        block.memory_attention.out.weight.zero_()  # type: ignore[union-attr,operator]
    found = by_hand(model, memories([1])._replace(first=memory.first[:1]), index, everything(index.items, 1))[0]
    for block, weight in zip(model.decoder.blocks, keep, strict=True):
        block.memory_attention.out.weight.copy_(weight)  # type: ignore[union-attr,operator]
    return torch.tensor([found[item] for item in index.items.tolist()])


@pytest.mark.parametrize("new", [0, 1, 3, 5])
def test_best_against_a_loop(new: int) -> None:
    """Lists of five of random sets, none, few and many, with ties and with what can't be; ``new`` of them unseen."""
    g = torch.Generator().manual_seed(new)
    sizes = torch.tensor([0, 1, 4, 30, 0, 12])
    offsets = F.pad(sizes.cumsum(0), (1, 0))
    items = torch.cat([torch.randperm(40, generator=g)[:n] for n in sizes.tolist()])
    log_p = -torch.randint(0, 9, (len(items),), generator=g).float()
    log_p[log_p == -8] = -torch.inf
    seen = torch.rand(len(items), generator=g) < 0.7
    lists = best(log_p, Allowed(offsets, items), 5, seen, new)
    for b in range(len(sizes)):
        mine = range(int(offsets[b]), int(offsets[b + 1]))
        order = sorted((t for t in mine if log_p[t] > -torch.inf), key=lambda t: (-float(log_p[t]), int(items[t])))
        want = order[:5]
        unseen = [t for t in order if not seen[t]]
        while len([t for t in want if not seen[t]]) < min(new, len(unseen)):
            out = [t for t in want if seen[t]][-1] if len(want) == 5 else None
            want = sorted({*want, next(t for t in unseen if t not in want)} - {out}, key=order.index)
        a, z = lists.offsets[b : b + 2].tolist()
        assert lists.items[a:z].tolist() == [int(items[t]) for t in want]
    with pytest.raises(ValueError, match="new: got 6, expected at most k = 5"):
        best(log_p, Allowed(offsets, items), 5, seen, 6)
