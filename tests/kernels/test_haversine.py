"""Distances against float64 mathematics, at the places where formulas break."""

import math

import pytest
import torch

from placerank.kernels.haversine import EARTH_RADIUS_KM, haversine_km, unit_vectors, unit_vectors_km

HALF = math.pi * EARTH_RADIUS_KM
CASES = [
    ((0, 0), (0, 0), 0.0),
    ((0, 0), (0, 180), HALF),
    ((90, 0), (-90, 77), HALF),
    ((90, 10), (90, -120), 0.0),  # the pole has every longitude
    ((0, 179.5), (0, -179.5), HALF / 180),  # across the antimeridian
    ((0, 0), (1e-7, 0), HALF / 180 * 1e-7),  # 1 cm
    ((52.3676, 4.9041), (48.8566, 2.3522), 429.9),  # Amsterdam to Paris
    ((45, 0), (-45 + 1e-6, 180), HALF - HALF / 180 * 1e-6),  # next to the antipode
]


@pytest.mark.parametrize(("a", "b", "km"), CASES)
def test_known_distances(a: tuple[float, float], b: tuple[float, float], km: float) -> None:
    p, q = (torch.tensor(x, dtype=torch.float64) for x in (a, b))
    tolerance = 0.5 if km == 429.9 else 1e-9  # a micrometre, but for the one read off a map
    vectors = unit_vectors(p[0], p[1]), unit_vectors(q[0], q[1])
    for got in (haversine_km(p[0], p[1], q[0], q[1]), unit_vectors_km(*vectors)):
        assert abs(got.item() - km) <= tolerance


def test_both_forms_agree_everywhere() -> None:
    g = torch.Generator().manual_seed(0)
    lat = torch.rand(2, 1000, generator=g, dtype=torch.float64) * 180 - 90
    lon = torch.rand(2, 1000, generator=g, dtype=torch.float64) * 360 - 180
    by_angle = haversine_km(lat[0], lon[0], lat[1], lon[1])
    by_chord = unit_vectors_km(unit_vectors(lat[0], lon[0]), unit_vectors(lat[1], lon[1]))
    torch.testing.assert_close(by_angle, by_chord, rtol=1e-9, atol=1e-9)
    single = unit_vectors_km(unit_vectors(lat[0], lon[0]).float(), unit_vectors(lat[1], lon[1]).float())
    torch.testing.assert_close(single.double(), by_chord, rtol=1e-5, atol=2e-3)


def test_shapes_broadcast_and_nan_stays_nan() -> None:
    lat = torch.tensor([[1.0], [float("nan")]])
    km = haversine_km(lat, torch.tensor(2.0), torch.zeros(3), torch.zeros(3))
    assert km.shape == (2, 3) and km[0].isfinite().all() and km[1].isnan().all()
