"""Lists without a model: what a ranker of all items has to beat. Each is a score of every item for each target.

They know what a model knows: the user's visits strictly before, the place of the request, and of other users the
training split. Where a floor says the same of two items, the more popular one is first, and then they tie.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ..data.batches.sequences import ALL, SequenceBatch, SequenceLoader
from ..kernels.haversine import unit_vectors, unit_vectors_km
from .baselines import FARTHEST_KM
from .breakdown import ItemFacts

LAST = 50  # visits that the counter counts: an old habit is none
MARKOV = 0.1  # share of the transitions, beside the counter's
HABIT = 0.8  # share of the user's last visits in the likelihood of a visit, beside popularity's
_TIE = 1e-9  # of popularity: below any difference between shares of at most a million visits
_STEPS = 200  # of the fit of ``mix``


def transitions(prepared: Path, items: int, batch_size: int = 65_536) -> sparse.csr_matrix:
    """How often each item followed another as a user's next visit in training: float64 [I, I], by the one before."""
    found = sparse.csr_matrix((items, items))
    for b in SequenceLoader(prepared, "train", batch_size, history=1):
        offsets, at = b.last(1)
        there = offsets.diff() > 0
        pair = (b.item[at].numpy(), b.target[there].numpy())
        found += sparse.csr_matrix((np.ones(len(at)), pair), shape=(items, items))
    return found


class Floors:
    """All floors on the same targets.

    Args:
        items: the catalog's.
        followed: of ``transitions``.
    """

    NAMES = ("popularity", "nearest", "popular near", "counter", "counter + Markov", "mix")

    def __init__(self, items: ItemFacts, followed: sparse.csr_matrix) -> None:
        self.followed = followed
        self.places = unit_vectors(torch.from_numpy(items.lat), torch.from_numpy(items.lon))
        positives = torch.from_numpy(items.positives).double()
        positives[0] = 0.0
        self.popularity = positives / positives.sum().clamp(min=1)
        self.weights = torch.tensor([])

    def scores(self, batch: SequenceBatch) -> Iterator[tuple[str, Tensor]]:
        """Each floor's name and its scores, higher = better, float64 [B, I] by item row; row 0 is no item."""
        km = self.km(batch)
        parts = self.parts(batch, km)
        _, recent, _, next_, near, popular = parts
        yield "popularity", popular
        yield "nearest", -km + _TIE * popular
        yield "popular near", near + _TIE * popular
        yield "counter", recent + _TIE * popular
        yield "counter + Markov", (1 - MARKOV) * recent + MARKOV * next_ + _TIE * popular
        if len(self.weights):
            yield "mix", self._mix(parts)

    def likelihood(self, batch: SequenceBatch) -> Tensor:
        """p of each target as 0.8 of the user's last 50 visits and 0.2 of popularity give it, float64 [B]."""
        offsets, at = batch.last(LAST)
        counts = offsets.diff()
        hits = batch.item[at] == batch.target.repeat_interleave(counts)
        of = torch.arange(len(batch)).repeat_interleave(counts)
        share = torch.zeros(len(batch), dtype=torch.float64).index_add(0, of, hits.double()) / counts.clamp(min=1)
        habit = HABIT * (counts > 0)
        return habit * share + (1 - habit) * self.popularity[batch.target]

    def km(self, batch: SequenceBatch) -> Tensor:
        """From the request's place to each item, or else from the last visit's; the farthest where neither is known."""
        here = unit_vectors(batch.lat.double(), batch.lon.double())
        offsets, at = batch.last(1)
        last = torch.full_like(here, torch.nan)
        last[offsets.diff() > 0] = self.places[batch.item[at]]
        here = here.where(~here.isnan(), last)
        return unit_vectors_km(here[:, None], self.places[None]).nan_to_num(nan=FARTHEST_KM)

    def parts(self, batch: SequenceBatch, km: Tensor) -> list[Tensor]:
        """What ``mix`` is made of, each a share of all items or zeros: float64 [B, I].

        The user's last 5 visits, the last 50, all; what followed the last one; popularity / (1 + km); popularity.
        """
        near = self.popularity / (1 + km)
        return [
            *(self._counted(batch, longest) for longest in (5, LAST, len(batch.item))),
            self._next(batch),
            near / near.sum(1, keepdim=True).clamp(min=1e-300),
            self.popularity.expand_as(km),
        ]

    def _counted(self, batch: SequenceBatch, longest: int) -> Tensor:
        """Shares of the user's last visits."""
        offsets, at = batch.last(longest)
        of = torch.arange(len(batch)).repeat_interleave(offsets.diff())
        counts = torch.zeros(len(batch), len(self.popularity), dtype=torch.float64)
        counts.index_put_((of, batch.item[at]), torch.ones(len(at), dtype=torch.float64), accumulate=True)
        return counts / offsets.diff().clamp(min=1)[:, None]

    def _next(self, batch: SequenceBatch) -> Tensor:
        """Shares of what followed the last visit."""
        offsets, at = batch.last(1)
        found = torch.zeros(len(batch), len(self.popularity), dtype=torch.float64)
        found[offsets.diff() > 0] = torch.from_numpy(self.followed[batch.item[at].numpy()].toarray())
        return found / found.sum(1, keepdim=True).clamp(min=1)

    def _mix(self, parts: list[Tensor]) -> Tensor:
        found = torch.zeros_like(parts[0])
        for weight, part in zip(self.weights, parts, strict=True):
            found.add_(part, alpha=float(weight))
        return found

    def fit(self, prepared: Path, batch_size: int = 256) -> None:
        """Find the shares in ``mix`` that make the visits of the validation split likeliest (EM)."""
        own = []
        for b in SequenceLoader(prepared, "valid", batch_size, history=ALL):
            parts = self.parts(b, self.km(b))
            own.append(torch.stack([p.gather(1, b.target[:, None]).squeeze(1) for p in parts], 1)[: b.valid])
        p = torch.cat(own)
        p = p[p.sum(1) > 0]  # of an item that nobody visited in training no share makes anything
        weights = torch.full((p.shape[1],), 1 / p.shape[1], dtype=torch.float64)
        for _ in range(_STEPS if len(p) else 0):
            share = p * weights
            weights = (share / share.sum(1, keepdim=True)).mean(0)
        self.weights = weights
