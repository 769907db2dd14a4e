"""Metrics of ranked lists: Hit@K, NDCG@K and MRR of the one item that was visited.

A list is over what may be visited, and a hit is one of four things, which are never the same and are named:

    all      the item, among all items
    reach    the item, among those within some km of the request's place; requests without a place are not asked
    sampled  the item, among itself and 99 others that are drawn uniformly from all
    codes    an item with the same semantic ID, among the semantic IDs of all items, each where its best item stands

**Ties** count as in ``training/metrics.py``: the value expected over random orders of what is equal in score. Lists, as
generators give them, have an order and no ties. **Short lists**: who is not listed, or has a score of -inf, is no hit
at any K and adds 0 to MRR. What is not asked is NaN, and is left out of the means and counted.
"""

import math
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.batches.sequences import SequenceBatch
from ..data.ranks import Ranks
from ..kernels.haversine import EARTH_RADIUS_KM, unit_vectors
from ..training.metrics import nan_to_none
from ..training.predictions import Predictions
from .breakdown import ItemFacts, slicings

HIT_AT = (1, 5, 10, 20, 50)
WAYS = ("all", "reach", "sampled", "codes")
SAMPLED = 99
METRICS = (*(f"hit@{k}" for k in HIT_AT), *(f"ndcg@{k}" for k in HIT_AT), "mrr")
_DISCOUNTS = [0.0, *accumulate(1 / math.log2(place + 2) for place in range(max(HIT_AT)))]  # of the first so many places


@dataclass(frozen=True)
class Standing:
    """Where the target of each list stands.

    Attributes:
        above: entries before it, int64 [B].
        tied: entries that share its score, itself among them; 0 = it is not in the list, int64 [B].
        asked: whether there was something to be asked, bool [B].
    """

    above: Tensor
    tied: Tensor
    asked: Tensor

    def gains(self) -> Tensor:
        """``METRICS`` of each list, NaN where nothing was asked: float64 [B, M], on the host."""
        above, tied, asked = (x.cpu() for x in (self.above, self.tied, self.asked))
        among = tied.clamp(min=1).double()
        discounts = torch.tensor(_DISCOUNTS, dtype=torch.float64)
        hits, discounted = [], []
        for k in HIT_AT:
            first, last = above.clamp(max=k), (above + tied).clamp(max=k)
            hits.append((last - first) / among)
            discounted.append((discounts[last] - discounts[first]) / among)
        # the sum of 1 / place over the places of the tie
        reciprocal = (torch.digamma((above + tied).double() + 1) - torch.digamma(above.double() + 1)) / among
        gains = torch.stack([*hits, *discounted, reciprocal], dim=1)
        return gains.masked_fill(~asked[:, None], torch.nan)


def standing(scores: Tensor, target: Tensor, allowed: Tensor | None = None) -> Standing:
    """Where targets stand by scores.

    Args:
        scores: float [B, C], higher = better; -inf = not in the list.
        target: entries, int64 [B].
        allowed: of which entries each list is, bool [B, C]; None: all.

    Raises:
        ValueError: a score is NaN.
    """
    if bad := int(scores.isnan().sum()):
        raise ValueError(
            f"{bad:,} of {scores.numel():,} scores are NaN, expected numbers or -inf for what is not listed"
        )
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    own = scores.gather(1, target[:, None])
    listed = own.squeeze(1) > -torch.inf
    above, tied = (scores > own).sum(1), (scores == own).sum(1)
    return Standing(above, tied.where(listed, 0), torch.ones_like(listed))


def standing_in_lists(lists: Tensor, target: Tensor) -> Standing:
    """Where targets stand in lists that have an order.

    Args:
        lists: entries, best first, -1 after the end of short ones: int64 [B, K].
        target: int64 [B].

    Raises:
        ValueError: a list has an entry twice.
    """
    entries = lists.sort(dim=1).values
    twice = (entries[:, 1:] == entries[:, :-1]) & (entries[:, 1:] >= 0)
    if twice.any():
        row = int(twice.any(1).nonzero()[0])
        raise ValueError(f"list {row} has {int(entries[row, 1:][twice[row]][0])} twice, expected each entry once")
    found = (lists == target[:, None]) & (target[:, None] >= 0)
    tied = found.any(1).long()
    at = found.int().argmax(1) if lists.shape[1] else torch.zeros_like(target)
    return Standing(at, tied, torch.ones_like(target, dtype=torch.bool))


def code_numbers(codes: Tensor) -> Tensor:
    """Numbers semantic IDs: items with all codes equal share one.

    Args:
        codes: by item row, int64 [I, L]; a negative code anywhere: the item has no semantic ID, and stands alone.

    Returns:
        int64 [I], from 0.
    """
    alone = (codes < 0).any(1)
    own = torch.arange(len(codes)).where(alone, -1)[:, None]
    return torch.cat([own, codes.masked_fill(alone[:, None], -1)], dim=1).unique(dim=0, return_inverse=True)[1]


def by_code(scores: Tensor, numbers: Tensor) -> Tensor:
    """Scores [B, I] of items as scores [B, C] of semantic IDs: each has that of its best item."""
    best = scores.new_full((len(scores), int(numbers.max()) + 1), -torch.inf)
    return best.scatter_reduce_(1, numbers.expand_as(scores), scores, "amax")


def lists_by_code(lists: Tensor, numbers: Tensor) -> Tensor:
    """Lists [B, K] of items, as ``standing_in_lists`` takes them, as lists of semantic IDs, each where it is first."""
    found = torch.where(lists >= 0, numbers[lists.clamp(min=0)], -1)
    order = found.sort(dim=1, stable=True)
    again = torch.zeros_like(found, dtype=torch.bool)
    again.scatter_(1, order.indices[:, 1:], order.values[:, 1:] == order.values[:, :-1])
    kept = found.masked_fill(again, -1)
    places = (kept < 0).int().argsort(dim=1, stable=True)  # what is left moves up
    return kept.gather(1, places)


class Ways:
    """What lists are asked about, the same for every model: see the top of this file.

    Args:
        items: the catalog's.
        reach_km: how far reach goes.
        codes: semantic IDs by item row, int64 [I, L]; None: that way is left out.
        seed: of the items that are drawn.
    """

    def __init__(self, items: ItemFacts, reach_km: float, codes: Tensor | None = None, seed: int = 0) -> None:
        if not reach_km > 0:
            raise ValueError(f"reach_km={reach_km}: expected more than 0 km")
        if codes is not None and len(codes) != len(items):
            raise ValueError(
                f"codes: got {len(codes):,} rows, the catalog has {len(items):,}; give those of the same items"
            )
        self.items, self.reach_km, self.seed = len(items), reach_km, seed
        self.places = unit_vectors(torch.from_numpy(items.lat), torch.from_numpy(items.lon))
        self.numbers = None if codes is None else code_numbers(codes)

    @property
    def names(self) -> tuple[str, ...]:
        return WAYS if self.numbers is not None else WAYS[:-1]

    def within(self, batch: SequenceBatch) -> Tensor:
        """Which items lie within reach of each request, none where its place is unknown: bool [B, I]."""
        here = unit_vectors(batch.lat.double(), batch.lon.double())
        chord = 2 * math.sin(min(self.reach_km / (2 * EARTH_RADIUS_KM), math.pi / 2))
        # |u - v|² = 2 - 2 u·v, in float64: exact to some cm
        near = 2 - 2 * here @ self.places.T <= chord * chord
        near[:, 0] = False
        return near

    def drawn(self, batch: SequenceBatch) -> Tensor:
        """The target and then the items that it is compared with, int64 [B, 100], or all where there are fewer."""
        count = min(SAMPLED, self.items - 2)
        found = np.empty((len(batch), count + 1), np.int64)
        user = batch.user_index[batch.stretch]
        for row, about in enumerate(torch.stack([user, batch.target_time, batch.target], 1).tolist()):
            rng = np.random.default_rng([self.seed, *about])  # whatever the batch and the rank
            others = rng.choice(self.items - 2, count, replace=False) + 1
            found[row, 0] = about[-1]
            found[row, 1:] = others + (others >= about[-1])
        return torch.from_numpy(found)

    def standings(self, scores: Tensor, batch: SequenceBatch) -> dict[str, Standing]:
        """Of a scorer, in each way.

        Args:
            scores: of all item rows for each target, float [B, I], on the host; row 0 is no item.
            batch: the targets.
        """
        if scores.shape != (len(batch), self.items):
            raise ValueError(f"got scores {tuple(scores.shape)}, expected {(len(batch), self.items)}: of each item row")
        scores = scores.clone()
        scores[:, 0] = -torch.inf
        near = self.within(batch)
        in_reach = standing(scores, batch.target, near)
        found = {
            "all": standing(scores, batch.target),
            "reach": Standing(in_reach.above, in_reach.tied, ~(batch.lat.isnan() | batch.lon.isnan())),
            "sampled": standing(scores.gather(1, self.drawn(batch)), torch.zeros_like(batch.target)),
        }
        if self.numbers is not None:
            found["codes"] = standing(by_code(scores, self.numbers), self.numbers[batch.target])
        return found


class ListMetrics:
    """Means of ``METRICS`` over targets, all and by the slices of the report; sums, so they add up over ranks.

    Args:
        items: the catalog's.
    """

    def __init__(self, items: ItemFacts) -> None:
        self.items = items
        self.parts = ["all", *(f"{s.name}: {label}" for s in slicings(_nobody(), items) for label in s.labels)]
        size = (len(self.parts), len(METRICS))
        self.sums, self.squares, self.counts = (torch.zeros(size, dtype=torch.float64) for _ in range(3))
        self.targets = torch.zeros(len(self.parts), dtype=torch.float64)

    def add(self, gains: Tensor, batch: SequenceBatch) -> None:
        """Of the targets of a batch that count.

        Args:
            gains: of ``Standing.gains``, float64 [B, M].
            batch: the targets.
        """
        gains = gains[: batch.valid]
        known = gains.nan_to_num(0.0)
        there = (~gains.isnan()).double()
        codes = [np.zeros(batch.valid, np.int64)]
        first = 1
        for s in slicings(_predictions(batch), self.items):
            codes.append(np.where(s.code >= 0, s.code + first, -1))
            first += len(s.labels)
        for code in map(torch.from_numpy, codes):
            inside = code >= 0
            part = code[inside]
            self.sums.index_add_(0, part, known[inside])
            self.squares.index_add_(0, part, known[inside].square())
            self.counts.index_add_(0, part, there[inside])
            self.targets.index_add_(0, part, torch.ones(len(part), dtype=torch.float64))

    def sum_(self, ranks: Ranks) -> None:
        """Join what all ranks added, on all of them."""
        ranks.sum_(self.sums, self.squares, self.counts, self.targets)

    def result(self) -> dict[str, dict[str, float | None]]:
        """For each part that has targets: ``targets``, ``asked``, each metric and its standard error; JSON-ready."""
        found = {}
        for i, part in enumerate(self.parts):
            if not self.targets[i]:
                continue
            row: dict[str, float | None] = {"targets": int(self.targets[i]), "asked": int(self.counts[i, 0])}
            for j, metric in enumerate(METRICS):
                n, total, square = (float(x[i, j]) for x in (self.counts, self.sums, self.squares))
                mean = total / n if n else math.nan
                spread = math.sqrt(max(square / n - mean * mean, 0.0) / (n - 1)) if n > 1 else math.nan
                row[metric] = nan_to_none(mean)
                row[f"{metric}_standard_error"] = nan_to_none(spread)
            found[part] = row
        return found


def chosen(rows: int, count: int, seed: int = 0) -> NDArray[np.bool_]:
    """Which targets a table is of, in the order of an unshuffled loader: bool [rows]; all where there are fewer."""
    found = np.zeros(rows, bool)
    found[np.random.default_rng(seed).permutation(rows)[:count]] = True
    return found


def _nobody() -> Predictions:
    whole, number, real = np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32)
    return Predictions(
        request=whole, user_index=whole, user_row=number, item_row=number, label=real, logit=real, time=whole,
        visits=number, lat=real, lon=real,
    )  # fmt: skip


def _predictions(batch: SequenceBatch) -> Predictions:
    """The targets of a batch as the slices of a report see them."""
    of, rows = batch.stretch[: batch.valid], batch.valid
    return Predictions(
        request=np.arange(rows),
        user_index=batch.user_index[of].numpy(),
        user_row=batch.user[of].int().numpy(),
        item_row=batch.target[:rows].int().numpy(),
        label=np.ones(rows, np.float32),
        logit=np.zeros(rows, np.float32),
        time=batch.target_time[:rows].numpy(),
        visits=batch.visits[:rows].numpy(),
        lat=batch.lat[:rows].numpy(),
        lon=batch.lon[:rows].numpy(),
    )
