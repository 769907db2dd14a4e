"""Draws within reach: exactly the disc, without the excluded item, uniform, on every part of the globe."""

import numpy as np
import pytest
import torch

from placerank.data.preparation.negatives import Reach
from placerank.kernels.haversine import haversine_km

PLACES = {
    "city": (40.7, -74.0, 0.2),
    "antimeridian": (-17.0, 179.99, 0.3),
    "pole": (89.95, 10.0, 0.2),
    "whole globe": (0.0, 0.0, 60.0),
}


def scatter(name: str, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    lat, lon, spread = PLACES[name]
    rng = np.random.default_rng(seed)
    lats = np.clip(rng.normal(lat, spread, n), -90, 90)
    lons = rng.uniform(-180, 180, n) if name in ("pole", "whole globe") else rng.normal(lon, spread, n)
    return lats, (lons + 180) % 360 - 180


def km(lat1: np.ndarray, lon1: np.ndarray, lat2: np.ndarray, lon2: np.ndarray) -> np.ndarray:
    return haversine_km(*(torch.from_numpy(np.asarray(x, np.float64)) for x in (lat1, lon1, lat2, lon2))).numpy()


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("reach", [0.5, 10.0, 3000.0, 25_000.0])
def test_lists_exactly_the_disc(name: str, reach: float) -> None:
    lat, lon = scatter(name, 300)
    sampler = Reach(lat, lon, reach)
    exclude = np.arange(60)
    drawn = sampler.draw(lat[:60], lon[:60], exclude, 299, np.random.default_rng(1))
    distance = km(lat[:60, None], lon[:60, None], lat, lon)
    for i in range(60):
        expected = set(np.flatnonzero(distance[i] <= reach)) - {i}
        got = drawn[i][drawn[i] >= 0]
        assert set(got) == expected and len(got) == len(expected)
        assert (drawn[i][len(got) :] == -1).all()


@pytest.mark.parametrize("name", PLACES)
def test_draws_are_different_reachable_and_enough(name: str) -> None:
    lat, lon = scatter(name, 3000)
    sampler = Reach(lat, lon, 10.0)
    exclude = np.arange(500)
    drawn = sampler.draw(lat[:500], lon[:500], exclude, 7, np.random.default_rng(1))
    distance = km(lat[:500, None], lon[:500, None], lat, lon)
    available = (distance <= 10.0).sum(1) - 1
    assert ((drawn >= 0).sum(1) == np.minimum(available, 7)).all()
    for i, row in enumerate(drawn):
        row = row[row >= 0]
        assert len(set(row)) == len(row) and i not in row
        assert (distance[i, row] <= 10.0).all()


@pytest.mark.parametrize("items", [12, 400])  # listed, and drawn by rejection
def test_uniform(items: int) -> None:
    lat, lon = scatter("city", items)
    centre, n, k = (np.full(20_000, lat[0]), np.full(20_000, lon[0])), 20_000, 3
    drawn = Reach(lat, lon, 60.0).draw(*centre, np.zeros(n, int), k, np.random.default_rng(0))
    inside = np.flatnonzero(km(lat[:1], lon[:1], lat, lon) <= 60.0)
    inside = inside[inside != 0]
    count = np.bincount(drawn[drawn >= 0], minlength=items)[inside]
    expected = n * k / len(inside)
    chi2 = ((count - expected) ** 2 / expected).sum()
    assert len(inside) > k and chi2 - len(inside) < 5 * np.sqrt(2 * len(inside))


def test_first_draw_is_uniform_too() -> None:
    lat, lon = scatter("city", 400)
    drawn = Reach(lat, lon, 1000.0).draw(
        np.full(40_000, 40.7), np.full(40_000, -74.0), np.zeros(40_000, int), 9, np.random.default_rng(0)
    )
    for column in (drawn[:, 0], drawn[:, 8]):
        count = np.bincount(column, minlength=400)[1:]
        chi2 = ((count - 40_000 / 399) ** 2 / (40_000 / 399)).sum()
        assert abs(chi2 - 399) < 5 * np.sqrt(2 * 399)


def test_seeded_and_nowhere() -> None:
    lat, lon = scatter("city", 100)
    sampler = Reach(lat, lon, 10.0)
    draw = lambda seed: sampler.draw(lat[:9], lon[:9], np.arange(9), 4, np.random.default_rng(seed))  # noqa: E731
    assert (draw(1) == draw(1)).all() and (draw(1) != draw(2)).any()
    assert (sampler.draw(np.array([0.0]), np.array([0.0]), np.array([0]), 4, np.random.default_rng(0)) == -1).all()
    assert sampler.draw(lat[:0], lon[:0], np.arange(0), 4, np.random.default_rng(0)).shape == (0, 4)
    assert not sampler.within(np.array([np.nan]), np.array([0.0]), np.array([3]))[0]
