"""Distance to the k-th nearest place, against all distances sorted."""

import math

import numpy as np
import pytest
import torch

from placerank.data.batches import density
from placerank.data.batches.density import adaptive_km, nearest_km
from placerank.kernels.haversine import haversine_km


def by_sorting(lat: np.ndarray, lon: np.ndarray, k: int) -> np.ndarray:
    p, q = torch.from_numpy(lat), torch.from_numpy(lon)
    km = haversine_km(p[:, None], q[:, None], p, q).fill_diagonal_(-1).sort(1).values
    return km[:, k].numpy() if k < len(lat) else np.full(len(lat), np.inf)


def town(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Places across the antimeridian, around both poles, and several at one point."""
    rng = np.random.default_rng(n)
    lat, lon = rng.normal(20, 0.1, n), (rng.normal(180, 0.1, n) + 180) % 360 - 180
    lat[: n // 4], lon[: n // 4] = 90 - rng.exponential(0.01, n // 4), rng.uniform(-180, 180, n // 4)
    lat[n // 4 : n // 3] *= -1
    lat[-n // 5 :], lon[-n // 5 :] = lat[-1], lon[-1]
    return lat, lon


@pytest.mark.parametrize("n", [1, 2, 7, 211])
@pytest.mark.parametrize("k", [1, 2, 6, 50])
def test_against_all_distances(n: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lat, lon = town(n)
    expected = by_sorting(lat, lon, k)
    np.testing.assert_allclose(nearest_km(lat, lon, k), expected, rtol=1e-9, atol=1e-9)
    monkeypatch.setattr(density, "_NUMBERS", 3 * (k + 1))  # a few rows at a time
    np.testing.assert_allclose(nearest_km(lat, lon, k), expected, rtol=1e-9, atol=1e-9)


def test_equal_points_are_neighbours_at_distance_zero() -> None:
    lat, lon = [52.0, 52.0, 52.0, 53.0], [4.9, 4.9, 4.9, 4.9]
    degree = math.pi * 6371.0088 / 180
    assert nearest_km(lat, lon, 2) == pytest.approx([0, 0, 0, degree])
    assert nearest_km(lat, lon, 3) == pytest.approx([degree] * 4)
    assert nearest_km(lat, lon, 4).tolist() == [math.inf] * 4
    assert nearest_km(np.full(200_000, 1.0), np.full(200_000, 2.0), 15).max() == 0  # at once, not after 10^10 distances
    assert nearest_km([], [], 3).shape == (0,)


def test_adaptive_radius_is_clipped() -> None:
    lat, lon = [0.0, 0.0, 0.0, 50.0], [0.0, 0.001, 0.05, 0.0]
    assert adaptive_km(lat, lon, 1, 0.5, 5).tolist() == pytest.approx([0.5, 0.5, 5, 5])
    assert adaptive_km(lat, lon, 9, 0.5, 5).tolist() == [5] * 4
    with pytest.raises(ValueError, match="got minimum 3 and maximum 2 km"):
        adaptive_km(lat, lon, 1, 3, 2)


def test_bad_input_is_told() -> None:
    with pytest.raises(ValueError, match=r"got lat 1\.0, lon nan in row 1, expected degrees"):
        nearest_km([0.0, 1.0], [0.0, math.nan], 1)
    with pytest.raises(ValueError, match="k: got 0, expected at least 1"):
        nearest_km([0.0], [0.0], 0)
    with pytest.raises(ValueError, match=r"got lat \(2,\) and lon \(1,\)"):
        nearest_km([0.0, 1.0], [0.0], 1)
