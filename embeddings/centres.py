"""Centres of items' attributes: ReST's "semantic cluster space", against which ids are found weak or strong.

Shapes: M distinct attribute vectors, K centres, D columns.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..kernels.codebook import residual_encode

ITERATIONS = 20
_SEED = 0


def attribute_mean(attributes: Tensor, known: Tensor | None = None) -> Tensor:
    """Mean of the known attributes of each item: [N, F, D], known bool [N, F] or None for all, to [N, D]; 0 if none."""
    if known is None:
        return attributes.mean(dim=1)
    count = known.sum(dim=1, keepdim=True).clamp(min=1)
    return attributes.masked_fill(~known[:, :, None], 0).sum(dim=1) / count


class Centres(nn.Module):
    """K k-means centres of attribute vectors, refreshed now and then while those are trained.

    A refresh starts from the centres before it, so a centre keeps its place in the buffer and ``drift`` says how far
    the attributes have moved, not how differently k-means fell. The first one starts by k-means++ from a fixed seed.
    A centre that loses all its items starts again in the same way. Centres and drift are buffers: they are saved with
    the rest.

    Args:
        count: K.
        dim: D.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("centres", torch.zeros(count, dim))
        self.register_buffer("drift", torch.zeros(()))
        self.register_buffer("refreshes", torch.zeros((), dtype=torch.int64))
        self.centres: Tensor
        self.drift: Tensor
        self.refreshes: Tensor

    @torch.no_grad()
    def refresh(self, vectors: Tensor, counts: Tensor | None = None) -> None:
        """Fit the centres to attribute vectors.

        Under torch.distributed all ranks call it; the first one fits and the others take what it found, bit by bit.

        Args:
            vectors: float [M, D], distinct ones are enough; rows that are not finite are left out.
            counts: how many items each vector stands for, [M]; None: one. Those of 0 are left out.

        ``drift`` becomes the mean distance between centres before and after, weighted by their items, over the mean
        length of the centres after; 0 after the first fit.
        """
        vectors = vectors.detach().float()
        weights = torch.ones_like(vectors[:, 0]) if counts is None else counts.to(vectors)
        used = vectors.isfinite().all(dim=1) & (weights > 0)
        if not dist.is_initialized() or dist.get_rank() == 0:
            self._fit(vectors[used], weights[used])
        if dist.is_initialized():
            for buffer in (self.centres, self.drift, self.refreshes):
                dist.broadcast(buffer, src=0)

    def _fit(self, x: Tensor, weights: Tensor) -> None:
        if not len(x):
            return
        first = int(self.refreshes) == 0
        before = _seed(x, weights, len(self.centres)) if first else self.centres.clone()
        centres, load = _kmeans(x, weights, before)
        moved, length = (centres - before).norm(dim=1), centres.norm(dim=1)
        self.drift.copy_(torch.zeros(()) if first else (load @ moved) / (load @ length).clamp(min=1e-12))
        self.centres.copy_(centres)
        self.refreshes += 1

    def nearest(self, x: Tensor) -> Tensor:
        """The centre nearest to each row of x [N, D] by Euclidean distance, ties to the lowest: float32 [N, D]."""
        return self.centres.index_select(0, _codes(x.detach(), self.centres).clamp(min=0))


def _codes(x: Tensor, centres: Tensor) -> Tensor:
    return residual_encode(x, centres[None])[:, 0]


def _kmeans(x: Tensor, weights: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Lloyd's iterations on weighted rows x [M, D]: centres [K, D] and the weight that each serves [K]."""
    for _ in range(ITERATIONS):
        codes = _codes(x, centres)
        load = torch.zeros_like(centres[:, 0]).index_add_(0, codes, weights)
        sums = torch.zeros_like(centres).index_add_(0, codes, x * weights[:, None])
        fitted = torch.where(load[:, None] > 0, sums / load.clamp(min=1e-12)[:, None], centres)
        dead = (load == 0).nonzero().flatten()
        if len(dead):
            fitted[dead] = _seed(x, weights, len(dead), (x - fitted[codes]).square().sum(dim=1))
        if torch.equal(fitted, centres):
            break
        centres = fitted
    return centres, load


def _seed(x: Tensor, weights: Tensor, count: int, distance: Tensor | None = None) -> Tensor:
    """k-means++ on weighted rows: each next centre is drawn by weight times squared distance to those so far [M]."""
    generator = torch.Generator().manual_seed(_SEED)
    rows: list[Tensor] = []
    for draw in torch.rand(count, dtype=torch.float64, generator=generator).tolist():
        total = (weights if distance is None else weights * distance).double().cumsum(0)
        rows.append(torch.searchsorted(total, draw * total[-1:], right=True).clamp(max=len(x) - 1)[0])
        apart = (x - x[rows[-1]]).square().sum(dim=1)
        distance = apart if distance is None else torch.minimum(distance, apart)
    return x[torch.stack(rows)]
