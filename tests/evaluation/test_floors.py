"""Floors against loops over the sequences: what they know, their ties, users and items without a past."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_tables import START, run, visits, with_late_users, write

from placerank.data.batches.sequences import SequenceBatch, SequenceLoader
from placerank.evaluation.breakdown import ItemFacts
from placerank.evaluation.floors import LAST, MARKOV, Floors, transitions
from placerank.kernels.haversine import haversine_km

ITEMS = 13
Targets = list[tuple[SequenceBatch, int, list[int]]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As in the lists' tests; one user has more visits than the counter counts, i7 is never visited in training."""
    late = START + 7200 * 420
    source = with_late_users(visits(rows=400, users=3, moments=400), late, ("late", "i7", late + 900))
    folder = tmp_path_factory.mktemp("floors")
    return run(write(folder / "raw", source), reach_km=4.0)


@pytest.fixture(scope="module")
def items(prepared: Path) -> ItemFacts:
    return ItemFacts.load(prepared)


@pytest.fixture(scope="module")
def floors(prepared: Path, items: ItemFacts) -> Floors:
    made = Floors(items, transitions(prepared, len(items), batch_size=37))
    made.fit(prepared, batch_size=13)
    return made


def targets(prepared: Path, split: str) -> Targets:
    """Each target of a split: its batch, its row there, and the items seen before it."""
    found: Targets = []
    for b in SequenceLoader(prepared, split, 16, history=10_000):
        for t in range(b.valid):
            low = int(b.offsets[b.stretch[t]])
            found.append((b, t, b.item[low : low + int(b.seen[t])].tolist()))
    return found


def slow_transitions(prepared: Path) -> dict[int, Counter[int]]:
    found: dict[int, Counter[int]] = {}
    for b, t, seen in targets(prepared, "train"):
        if seen:
            found.setdefault(seen[-1], Counter())[int(b.target[t])] += 1
    return found


def test_transitions_against_loops(prepared: Path, floors: Floors) -> None:
    expected = slow_transitions(prepared)
    got = floors.followed.toarray()
    assert got.sum() == sum(map(Counter.total, expected.values())) > 200
    assert all(got[i, j] == expected.get(i, Counter())[j] for i in range(ITEMS) for j in range(ITEMS))


def order(score: list[float]) -> list[set[int]]:
    """Groups of equal items, best first; row 0 is left out."""
    return [{i for i in range(1, ITEMS) if score[i] == value} for value in sorted(set(score[1:]), reverse=True)]


def test_floors_against_loops(prepared: Path, floors: Floors, items: ItemFacts) -> None:
    followed = slow_transitions(prepared)
    popular = items.positives.astype(float)
    for b, t, seen in targets(prepared, "test"):
        got = {name: scores[t].tolist() for name, scores in floors.scores(b)}
        assert tuple(got) == Floors.NAMES
        count, after = Counter(seen[-LAST:]), followed.get(seen[-1], Counter()) if seen else Counter()
        place = (float(b.lat[t]), float(b.lon[t]))
        if np.isnan(place[0]) and seen:
            place = (items.lat[seen[-1]], items.lon[seen[-1]])
        km = [float(haversine_km(*(torch.tensor(x, dtype=torch.float64) for x in (*place, *xy))))
              for xy in zip(items.lat, items.lon, strict=True)]  # fmt: skip
        km = [20_037.6 if x != x else x for x in km]
        share = [count[i] / max(len(seen[-LAST:]), 1) for i in range(ITEMS)]
        next_ = [after[i] / max(after.total(), 1) for i in range(ITEMS)]
        for name, first in {
            "popularity": [0.0] * ITEMS,
            "nearest": [-round(x, 6) for x in km],
            "popular near": [round(p / (1 + x) / 1e3, 12) for p, x in zip(popular, km, strict=True)],
            "counter": share,
            "counter + Markov": [round((1 - MARKOV) * s + MARKOV * n, 12) for s, n in zip(share, next_, strict=True)],
        }.items():
            pairs = list(zip(first, popular, strict=True))
            ranks = {pair: i for i, pair in enumerate(sorted(set(pairs)))}
            assert order(got[name]) == order([float(ranks[p]) for p in pairs]), name


def test_mix_is_the_likeliest_on_validation(prepared: Path, floors: Floors) -> None:
    """Shares of a distribution; no other mixture of the same parts makes the validation split likelier."""
    weights = floors.weights
    assert len(weights) == 6 and weights.min() >= 0 and float(weights.sum()) == pytest.approx(1)
    own = []
    for b in SequenceLoader(prepared, "valid", 16, history=10_000):
        parts = floors.parts(b, floors.km(b))
        for part in parts:
            total = part.sum(1)
            assert ((total - 1).abs() < 1e-9).logical_or(total == 0).all()
        own.append(torch.stack([p.gather(1, b.target[:, None])[:, 0] for p in parts], 1)[: b.valid])
    p = torch.cat(own)
    assert (p.sum(1) > 0).all()
    best = (p @ weights).log().mean()
    for seed in range(50):
        other = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(6)))
        mixed = 0.9 * weights + 0.1 * other
        assert (p @ mixed).log().mean() <= best + 1e-4


def test_who_has_no_past_gets_popularity(prepared: Path, floors: Floors) -> None:
    met = 0
    for b, t, seen in targets(prepared, "test"):
        if not seen and b.lat[t].isnan():
            met += 1
            for name, scores in floors.scores(b):
                assert order(scores[t].tolist()) == order(floors.popularity.tolist()), name
    assert met >= 2


def test_the_test_split_changes_no_floor(prepared: Path, items: ItemFacts, floors: Floors) -> None:
    """Popularity, transitions and shares are of training and validation: nothing of i7's first visit is in them."""
    row = items.name.tolist().index("place 7")
    assert floors.popularity[row] == 0 and floors.followed[:, row].sum() == 0
    for b in SequenceLoader(prepared, "test", 16):
        assert all(torch.isfinite(scores).all() for _, scores in floors.scores(b))
