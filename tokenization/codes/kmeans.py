"""k-means with statistics summed over ranks: Lloyd's on a sample, mini-batch on a stream, dead centres re-seeded.

Every rank holds its own rows and the same ``seeds``, a few rows of the whole sample from which centres start. Random
choices are made from the seeds with the same generator everywhere, so all ranks have the same centres at every step.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.codebook import residual_encode, residual_lookup
from ..ranks import Ranks

SEEDS_PER_CENTRE = 16  # k-means++ on so many rows a centre is as good a start as on all of them, and its cost is K^2 D


def nearest(x: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest of centres [K, D] for each row of x [N, D], int64 [N]; ties to the lowest."""
    return residual_encode(x, centres[None])[:, 0]


def sum_by_code(x: Tensor, codes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sum of the rows of each code, float32 [K, D], and how many there are, float32 [K].

    The sum is the transpose of the lookup, whose backward adds in a fixed order on every device.
    """
    table = x.new_zeros(1, count, x.shape[1], requires_grad=True)
    with torch.enable_grad():
        rows = residual_lookup(codes[:, None], table, deterministic=True)
    (sums,) = torch.autograd.grad(rows, table, x)
    return sums[0], torch.bincount(codes, minlength=count).to(x.dtype)


def seed_centres(seeds: Tensor, count: int, generator: torch.Generator, centres: Tensor | None = None) -> Tensor:
    """k-means++: ``count`` rows of seeds [M, D], each drawn by its squared distance to the nearest centre so far.

    Args:
        generator: on the CPU, in the same state on all ranks.
        centres: centres that are there already, [K, D]: then these come first in what counts as "so far".

    Returns:
        [count, D]. Where the seeds have fewer different rows, the rest are copies, which nothing will choose.
    """
    if centres is None or not len(centres):
        distance = torch.full((len(seeds),), math.inf, dtype=seeds.dtype, device=seeds.device)
    else:
        left = seeds - centres[nearest(seeds, centres)]
        distance = left.square().sum(1)
    draws = torch.rand(count, dtype=torch.float64, generator=generator)
    chosen = []
    for draw in draws.tolist():
        # From the second on a row that is a centre has distance 0; rounding must not make it look like a new place.
        weight = torch.where(distance.isinf(), 1.0, distance).double()
        total = weight.cumsum(0)
        row = int(torch.searchsorted(total, draw * total[-1], right=True).clamp(max=len(seeds) - 1))
        chosen.append(row)
        distance = torch.minimum(distance, (seeds - seeds[row]).square().sum(1))
    return seeds[chosen].clone()


def _reseed(centres: Tensor, counts: Tensor, seeds: Tensor, generator: torch.Generator) -> int:
    """Move centres without rows to where the error is; how many."""
    dead = (counts == 0).nonzero().flatten()
    if len(dead):
        centres[dead] = seed_centres(seeds, len(dead), generator, centres[counts > 0])
    return len(dead)


def kmeans(x: Tensor, seeds: Tensor, count: int, iterations: int, generator: torch.Generator, ranks: Ranks) -> Tensor:
    """Centres [count, D] by Lloyd's iterations over this rank's rows x [N, D] and those of the other ranks.

    A centre that loses all its rows starts again from the seeds (k-means++); the last iteration re-seeds nothing, so
    what comes out has been fitted.
    """
    centres = seed_centres(seeds, count, generator)
    for step in range(iterations):
        sums, counts = sum_by_code(x, nearest(x, centres), count)
        ranks.sum_(sums, counts)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
        if step < iterations - 1:
            _reseed(centres, counts, seeds, generator)
    return centres


def minibatch_kmeans(
    batch: Callable[[Tensor], Tensor],
    rows: int,
    seeds: Tensor,
    count: int,
    *,
    epochs: int,
    batch_rows: int,
    generator: torch.Generator,
    ranks: Ranks,
) -> Tensor:
    """Centres [count, D] by mini-batch k-means (Sculley 2010) over rows that are made batch by batch.

    Each centre moves to the mean of all rows it has been given, so its step shrinks as 1 / (rows so far).

    Args:
        batch: row numbers int64 [n] to features float32 [n, D].
        rows: how many there are; every epoch goes through all of them in a new random order.
        batch_rows: of all ranks together; each takes its share.
    """
    centres = seed_centres(seeds, count, generator)
    given = torch.zeros(count, dtype=torch.float32, device=seeds.device)
    for _ in range(epochs):
        order = torch.randperm(rows, generator=generator)
        given.mul_(0.5)  # what was learned while centres were still far off fades
        for some in order.split(batch_rows):
            x = batch(some[ranks.rank :: ranks.world])
            sums, counts = sum_by_code(x, nearest(x, centres), count)
            ranks.sum_(sums, counts)
            given += counts
            centres += (sums - counts[:, None] * centres) / given.clamp(min=1)[:, None]
        _reseed(centres, given, seeds, generator)
    return centres


def add_level(
    books: Tensor | None,
    x: Tensor,
    seeds: Tensor,
    count: int,
    iterations: int,
    generator: torch.Generator,
    ranks: Ranks,
) -> Tensor:
    """Codebooks with one level more, [L + 1, K, D]: k-means on what the levels so far [L, K, D] leave over of x."""
    if books is None:
        return kmeans(x, seeds, count, iterations, generator, ranks)[None]
    left, seeds_left = (rows - residual_lookup(residual_encode(rows, books), books) for rows in (x, seeds))
    return torch.cat([books, kmeans(left, seeds_left, count, iterations, generator, ranks)[None]])
