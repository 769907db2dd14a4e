"""Metrics of lists against sorting and counting; ties by all their orders; the four ways; sums over ranks."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from raw_tables import ITEMS, START, run, visits, with_late_users, write
from torch import Tensor

from placerank.data.batches.sequences import SequenceBatch, SequenceLoader
from placerank.data.ranks import Ranks
from placerank.evaluation import lists as module
from placerank.evaluation.breakdown import ItemFacts
from placerank.evaluation.lists import (
    HIT_AT,
    METRICS,
    ListMetrics,
    Standing,
    Ways,
    by_code,
    chosen,
    code_numbers,
    lists_by_code,
    standing,
    standing_in_lists,
)
from placerank.kernels.haversine import haversine_km


def slow_gains(place: int | None) -> list[float]:
    """Metrics of a target at a place of a list, counted from 1; None: it is not in it."""
    if place is None:
        return [0.0] * len(METRICS)
    hits = [float(place <= k) for k in HIT_AT]
    return [*hits, *(hit / math.log2(place + 1) for hit in hits), 1 / place]


def slow_place(scores: list[float], target: int, among: list[int]) -> int | None:
    """Of a target among some items without ties, counted from 1."""
    order = sorted(among, key=lambda i: -scores[i])
    return order.index(target) + 1 if target in order else None


def slow_expected(scores: list[float], target: int) -> list[float]:
    """The mean over all orders of what is equal in score."""
    listed = [i for i, s in enumerate(scores) if s > -math.inf]
    if target not in listed:
        return slow_gains(None)
    tie = [i for i in listed if scores[i] == scores[target]]
    above = sum(scores[i] > scores[target] for i in listed)
    orders = itertools.permutations(tie)
    return np.mean([slow_gains(above + 1 + order.index(target)) for order in orders], axis=0).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_scores_against_all_orders_of_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (20, 9)).astype(np.float64)
    scores[rng.random(scores.shape) < 0.2] = -np.inf
    target = rng.integers(0, 9, 20)
    expected = [slow_expected(s, t) for s, t in zip(scores.tolist(), target.tolist(), strict=True)]
    got = standing(torch.from_numpy(scores), torch.from_numpy(target)).gains()
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_many_items_against_sorting() -> None:
    """Places far below the last K, without ties."""
    rng = np.random.default_rng(0)
    scores, target = rng.permuted(np.tile(np.arange(3000.0), (200, 1)), axis=1), rng.integers(0, 3000, 200)
    place = [int(np.flatnonzero(np.argsort(-s) == t)[0]) + 1 for s, t in zip(scores, target, strict=True)]
    got = standing(torch.from_numpy(scores), torch.from_numpy(target)).gains()
    torch.testing.assert_close(got, torch.tensor([slow_gains(p) for p in place], dtype=torch.float64))
    assert min(place) <= 50 < max(place)


def test_equal_scores_are_chance() -> None:
    got = standing(torch.zeros(1, 200), torch.tensor([7])).gains()[0]
    assert got[METRICS.index("hit@10")] == pytest.approx(10 / 200)
    assert got[METRICS.index("mrr")] == pytest.approx(sum(1 / i for i in range(1, 201)) / 200)


def test_what_is_not_allowed_is_not_in_the_list() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0]]).repeat(3, 1)
    allowed = torch.tensor([[False, True, True], [True, False, True], [False, False, False]])
    got = standing(scores, torch.tensor([2, 1, 0]), allowed).gains()
    torch.testing.assert_close(got.tolist(), [slow_gains(2), slow_gains(None), slow_gains(None)])
    scores[0, 1] = torch.nan
    with pytest.raises(ValueError, match="1 of 9 scores are NaN, expected numbers or -inf for what is not listed"):
        standing(scores, torch.tensor([0, 0, 0]))


def test_lists_short_empty_and_without_the_target() -> None:
    lists = torch.tensor([[4, 7, 2], [4, -1, -1], [-1, -1, -1], [2, 4, 7]])
    got = standing_in_lists(lists, torch.tensor([7, 7, 7, 7])).gains()
    torch.testing.assert_close(got.tolist(), [slow_gains(2), slow_gains(None), slow_gains(None), slow_gains(3)])
    none = standing_in_lists(torch.zeros(2, 0, dtype=torch.int64), torch.tensor([1, 2])).gains()
    assert none.tolist() == [slow_gains(None)] * 2
    with pytest.raises(ValueError, match="list 1 has 4 twice, expected each entry once"):
        standing_in_lists(torch.tensor([[1, 2, 3], [4, 5, 4]]), torch.tensor([1, 1]))


def test_lists_and_scores_agree() -> None:
    scores = torch.rand(50, 60)
    target = torch.randint(60, (50,))
    full = standing_in_lists(scores.argsort(1, descending=True), target).gains()
    torch.testing.assert_close(full, standing(scores, target).gains())
    short = standing_in_lists(scores.topk(10).indices, target).gains()
    inside = full[:, METRICS.index("hit@10")] > 0
    torch.testing.assert_close(short, full.where(inside[:, None], 0.0))


# --- codes ------------------------------------------------------------------------------------------------------


def test_codes_against_loops() -> None:
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(rng.integers(0, 2, (30, 3)))
    codes[[4, 9]] = -1  # no semantic ID
    numbers = code_numbers(codes)
    name = [f"alone {i}" if i in (4, 9) else str(c) for i, c in enumerate(codes.tolist())]
    assert all((numbers[i] == numbers[j]) == (name[i] == name[j]) for i in range(30) for j in range(30))
    scores = torch.from_numpy(rng.permuted(np.tile(np.arange(30.0), (8, 1)), axis=1))
    got = by_code(scores, numbers)
    lists = scores.argsort(1, descending=True)[:, :12]
    short = torch.cat([lists[:, :7], lists.new_full((8, 5), -1)], 1)
    for row in range(8):
        best = {name[i]: max(float(scores[row, j]) for j in range(30) if name[j] == name[i]) for i in range(30)}
        assert all(got[row, numbers[i]] == best[name[i]] for i in range(30))
        for some in (lists, short):
            order = list(dict.fromkeys(int(numbers[i]) for i in some[row] if i >= 0))
            assert lists_by_code(some, numbers)[row].tolist() == order + [-1] * (12 - len(order))


# --- the four ways ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users of one visit and of a moment, users of the test alone, an item that nobody visits, unknown places."""
    late = START + 7200 * 210
    source = with_late_users(visits(rows=250), late)
    folder = tmp_path_factory.mktemp("lists")
    return run(write(folder / "raw", source), reach_km=4.0)


def batches(prepared: Path, size: int = 20, **options: Any) -> list[SequenceBatch]:
    return list(SequenceLoader(prepared, "test", size, history=1000, **options))


@pytest.fixture(scope="module")
def items(prepared: Path) -> ItemFacts:
    return ItemFacts.load(prepared)


def test_ways_against_loops(prepared: Path, items: ItemFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLED", 4)
    codes = torch.tensor([[0, 0], *([i % 3, i % 2] for i in range(12))])
    ways = Ways(items, 2.5, codes)
    name = [str(c) for c in codes.tolist()]
    rng = np.random.default_rng(1)
    asked = 0
    for batch in batches(prepared):
        scores = torch.from_numpy(rng.random((len(batch), 13)))
        scores[:, 0] = 9.0  # row 0 is no item, whatever its score
        found = {way: s.gains() for way, s in ways.standings(scores, batch).items()}
        drawn = ways.drawn(batch)
        for t in range(len(batch)):
            target, s = int(batch.target[t]), scores[t].tolist()
            here = [x.double() for x in (batch.lat[t], batch.lon[t])]
            km = [float(haversine_km(*here, *map(torch.tensor, xy))) for xy in zip(items.lat, items.lon, strict=True)]
            assert found["all"][t].tolist() == pytest.approx(slow_gains(slow_place(s, target, [*range(1, 13)])))
            if here[0].isnan():
                assert found["reach"][t].isnan().all()
            else:
                asked += 1
                inside = [i for i in range(1, 13) if km[i] <= 2.5]
                assert found["reach"][t].tolist() == pytest.approx(slow_gains(slow_place(s, target, inside)))
            among = drawn[t].tolist()
            assert len({*among}) == 5 and among[0] == target and 0 not in among and max(among) < 13
            assert found["sampled"][t].tolist() == pytest.approx(slow_gains(slow_place(s, target, among)))
            best: dict[str, float] = {}
            for i in range(1, 13):
                best[name[i]] = max(best.get(name[i], -1.0), s[i])
            above = sum(value > best[name[target]] for value in best.values())
            assert found["codes"][t].tolist() == pytest.approx(slow_gains(above + 1))
    assert asked > 5


def test_drawn_items_follow_from_the_target_alone(prepared: Path, items: ItemFacts) -> None:
    ways, other = Ways(items, 10.0), Ways(items, 10.0, seed=1)
    one, two = batches(prepared, 1000)[0], batches(prepared, 7, together=1)
    assert ways.drawn(one).tolist() == [row for b in two for row in ways.drawn(b)[: b.valid].tolist()]
    assert ways.drawn(one).shape[1] == 12, "all there are, as there are fewer than 99 others"
    assert (ways.drawn(one).sort(1).values == torch.arange(1, 13)).all()
    assert other.drawn(one).tolist() != ways.drawn(one).tolist()


def test_drawn_items_are_uniform(prepared: Path, items: ItemFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLED", 3)
    batch = batches(prepared, 1)[0]
    counts = np.zeros(13)
    for seed in range(1100):
        np.add.at(counts, Ways(items, 10.0, seed=seed).drawn(batch)[0, 1:].numpy(), 1)
    target = int(batch.target[0])
    assert counts[[0, target]].sum() == 0
    rest = np.delete(counts, [0, target])  # 300 each, standard deviation 15
    assert (abs(rest - 300) < 75).all()


def test_empty_reach(prepared: Path, items: ItemFacts) -> None:
    """Nothing within some metres: nobody is found, and only those with a place were asked."""
    ways = Ways(items, 1e-9)
    batch = batches(prepared, 1000)[0]
    batch.lat = batch.lat.where(batch.lat.isnan(), 10.0)
    gains = ways.standings(torch.rand(len(batch), 13), batch)["reach"].gains()
    known = ~batch.lat.isnan()
    assert (gains[known] == 0).all() and gains[~known].isnan().all() and known.any() and not known.all()


def test_what_ways_refuse(prepared: Path, items: ItemFacts) -> None:
    with pytest.raises(ValueError, match="reach_km=0: expected more than 0 km"):
        Ways(items, 0)
    with pytest.raises(ValueError, match="codes: got 5 rows, the catalog has 13; give those of the same items"):
        Ways(items, 1.0, torch.zeros(5, 2, dtype=torch.int64))
    batch = batches(prepared)[0]
    with pytest.raises(ValueError, match=r"got scores \(20, 12\), expected \(20, 13\): of each item row"):
        Ways(items, 1.0).standings(torch.zeros(20, 12), batch)
    assert Ways(items, 1.0).names == ("all", "reach", "sampled") and len(ITEMS) == 12


# --- sums -------------------------------------------------------------------------------------------------------


def gains_of(batch: SequenceBatch) -> Tensor:
    """Made up, from the target alone; some were not asked."""
    start = (batch.target * 7 + batch.target_time // 60) % 11
    return Standing(start, torch.ones_like(start), start != 3).gains()


def add_all(found: list[SequenceBatch], items: ItemFacts) -> ListMetrics:
    metrics = ListMetrics(items)
    for batch in found:
        metrics.add(gains_of(batch), batch)
    return metrics


def test_sums_against_means(prepared: Path, items: ItemFacts) -> None:
    found = batches(prepared, 7)
    got = add_all(found, items).result()
    gains = torch.cat([gains_of(b)[: b.valid] for b in found])
    again = torch.cat([b.visits[: b.valid] for b in found]) > 0
    known = torch.cat([b.user[b.stretch][: b.valid] for b in found]) > 0
    masks = {"all": again | True, "visit: repeat": again, "visit: first visit": ~again, "user: new": ~known}
    for part, mask in masks.items():
        some = gains[mask]
        asked = some[~some[:, 0].isnan()]
        assert got[part]["targets"] == len(some) >= len(asked) == got[part]["asked"] > 1
        for j, metric in enumerate(METRICS):
            assert got[part][metric] == pytest.approx(float(asked[:, j].mean()))
            error = float(asked[:, j].std()) / math.sqrt(len(asked))
            assert got[part][f"{metric}_standard_error"] == pytest.approx(error)
    kinds = {part.split(":")[0] for part in got}
    assert kinds == {
        "all",
        "popularity",
        "appearances",
        "place",
        "user",
        "visit",
        "category",
        "distance",
        "period",
        "city",
        "tile",
    }


def test_ranks_and_batches_do_not_matter(prepared: Path, items: ItemFacts) -> None:
    """Padding of the ranks' last batches counts nothing; sums of all are those of one."""
    whole = add_all(batches(prepared, 1000), items)
    parts = [add_all(batches(prepared, 5, rank=r, world_size=3), items) for r in range(3)]

    class Together(Ranks):
        def sum_(self, *tensors: Tensor) -> None:
            names = ("sums", "squares", "counts", "targets")
            for name, tensor in zip(names, tensors, strict=True):
                tensor.copy_(torch.stack([getattr(p, name) for p in parts]).sum(0))

    parts.append(ListMetrics(items))  # a rank without targets
    joined = ListMetrics(items)
    joined.sum_(Together())
    assert joined.result().keys() == whole.result().keys()
    for part, row in whole.result().items():
        assert joined.result()[part] == pytest.approx(row)
    assert ListMetrics(items).result() == {}


def test_chosen_targets() -> None:
    assert chosen(5, 10).all() and chosen(0, 3).shape == (0,)
    some = chosen(1000, 300)
    assert some.sum() == 300 and (some == chosen(1000, 300)).all() and (some != chosen(1000, 300, seed=1)).any()
