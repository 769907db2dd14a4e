"""k-means against scikit-learn, over ranks, and where centres die."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from placerank.tokenization.codes.kmeans import kmeans, minibatch_kmeans, nearest, seed_centres, sum_by_code
from placerank.tokenization.ranks import Ranks, joined


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(rows: int = 600, clusters: int = 12, dim: int = 8) -> Tensor:
    g = rng(1)
    centres = torch.randn(clusters, dim, generator=g) * 3
    return centres[torch.randint(clusters, (rows,), generator=g)] + 0.3 * torch.randn(rows, dim, generator=g)


def inertia(x: Tensor, centres: Tensor) -> float:
    return float(torch.cdist(x, centres).min(1).values.square().sum())


def test_sums_by_code_are_those_of_a_loop() -> None:
    x, codes = torch.randn(50, 3, generator=rng()), torch.randint(7, (50,), generator=rng(2))
    codes[codes == 4] = 5
    sums, counts = sum_by_code(x, codes, 7)
    for k in range(7):
        torch.testing.assert_close(sums[k], x[codes == k].sum(0))
        assert counts[k] == (codes == k).sum()


def test_nearest_is_the_smallest_distance() -> None:
    x, centres = torch.randn(100, 5, generator=rng()), torch.randn(9, 5, generator=rng(3))
    assert torch.equal(nearest(x, centres), torch.cdist(x, centres).argmin(1))


def test_centres_are_the_means_of_their_rows_and_as_good_as_scikit_learns() -> None:
    x = blobs()
    centres = kmeans(x, x, 12, 50, rng(), Ranks())
    sums, counts = sum_by_code(x, nearest(x, centres), 12)
    torch.testing.assert_close(centres, sums / counts[:, None])
    theirs = KMeans(12, n_init=5, random_state=0).fit(x.numpy())
    assert inertia(x, centres) <= 1.05 * theirs.inertia_


def test_seeds_are_different_rows_while_there_are_any() -> None:
    distinct = torch.randn(5, 4, generator=rng())
    seeds = distinct[torch.randint(5, (200,), generator=rng(1))]
    chosen = seed_centres(seeds, 5, rng())
    assert len(chosen.unique(dim=0)) == 5
    assert seed_centres(seeds, 8, rng()).shape == (8, 4), "copies where there are no more"


def test_reseeding_goes_on_from_the_centres_that_are_there() -> None:
    seeds = torch.tensor([[0.0], [1.0], [10.0]])
    assert seed_centres(seeds, 1, rng(), torch.tensor([[0.0], [1.0]])).item() == 10


def test_dead_centres_come_back() -> None:
    """From a start where all centres but one are far away."""
    x = blobs(clusters=4)
    start = torch.cat([x[:1], torch.full((3, 8), 1e3)])
    counts = sum_by_code(x, nearest(x, start), 4)[1]
    assert (counts == 0).sum() == 3
    centres = kmeans(x, x, 4, 20, rng(), Ranks())
    assert (sum_by_code(x, nearest(x, centres), 4)[1] > 0).all()


def test_mini_batches_come_close_to_lloyd() -> None:
    x = blobs(2000)
    centres = minibatch_kmeans(
        lambda rows: x[rows], len(x), x[:400], 12, epochs=5, batch_rows=256, generator=rng(), ranks=Ranks()
    )
    assert inertia(x, centres) <= 1.1 * inertia(x, kmeans(x, x[:400], 12, 30, rng(), Ranks()))


def on_ranks(mini: bool) -> Tensor:
    x = blobs()
    with joined() as ranks:
        if mini:
            return minibatch_kmeans(
                lambda rows: x[rows], len(x), x[:200], 12, epochs=2, batch_rows=128, generator=rng(), ranks=ranks
            )
        return kmeans(x[ranks.rank :: ranks.world], x[:200], 12, 5, rng(), ranks)


@pytest.mark.parametrize("mini", [False, True])
def test_ranks_together_find_what_one_finds(mini: bool, ranks: Callable[..., list[Any]]) -> None:
    alone = on_ranks(mini)
    first, second = ranks(2, on_ranks, mini)
    assert np.array_equal(first.numpy(), second.numpy())
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-4)
