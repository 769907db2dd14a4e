"""Prices: what they add to a distance, that they hold limits, and what that costs beside the best assignment."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from placerank.kernels.codebook import residual_encode
from placerank.tokenization.codes.balance import fit_prices, with_prices
from placerank.tokenization.ranks import Ranks


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_squared_distances_grow_by_the_price_on_every_level() -> None:
    z, books = torch.randn(40, 3, generator=rng()), torch.randn(3, 6, 3, generator=rng(1))
    prices = torch.rand(3, 6, generator=rng(2)) * 4
    codes = residual_encode(*with_prices(z, books, prices))
    left = z
    for level in range(3):
        cost = torch.cdist(left, books[level]).square() + prices[level]
        assert torch.equal(codes[:, level], cost.argmin(1))
        left = left - books[level][codes[:, level]]


@pytest.mark.parametrize("capacity", [1.1, 1.5, 3.0])
def test_no_code_takes_more_than_its_share(capacity: float) -> None:
    z = torch.cat([0.3 * torch.randn(700, 4, generator=rng()), 2 * torch.randn(300, 4, generator=rng(1))])
    books = torch.randn(2, 10, 4, generator=rng(2))
    free = residual_encode(z, books)
    prices = fit_prices(z, books, capacity, 1000, Ranks())
    codes = residual_encode(*with_prices(z, books, prices))
    fullest = [int(level.bincount().max()) for level in codes.T]
    assert int(free[:, 0].bincount().max()) > 300 and max(fullest) <= capacity * 100 + 2


def test_the_cost_is_near_that_of_the_best_assignment() -> None:
    z, books = torch.randn(120, 3, generator=rng()) + 0.5, torch.randn(1, 4, 3, generator=rng(1))
    prices = fit_prices(z, books, 1.2, 120, Ranks())
    codes = residual_encode(*with_prices(z, books, prices))[:, 0]
    assert int(codes.bincount().max()) <= 36
    cost = torch.cdist(z, books[0]).square().numpy()
    slots = np.repeat(cost, 36, axis=1)
    best = slots[linear_sum_assignment(slots)].sum()
    mine = cost[np.arange(120), codes.numpy()].sum()
    assert best <= mine <= 1.03 * best


def test_codes_that_are_not_full_cost_nothing() -> None:
    z, books = torch.randn(100, 3, generator=rng()), torch.randn(1, 4, 3, generator=rng(1))
    assert (fit_prices(z, books, 4.0, 100, Ranks()) == 0).all()
