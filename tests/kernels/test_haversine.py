"""Distances against float64 mathematics, at the places where formulas break."""

import math

import mpmath
import pytest
import torch
from torch import Tensor

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


def exact_km(lat1: float, lon1: float, lat2: float, lon2: float) -> mpmath.mpf:
    """Vincenty's formula on the sphere, to 40 digits."""
    with mpmath.workdps(40):
        a, b, c, d = (mpmath.radians(mpmath.mpf(x)) for x in (lat1, lon1, lat2, lon2))
        across = mpmath.cos(c) * mpmath.sin(d - b)
        along = mpmath.cos(a) * mpmath.sin(c) - mpmath.sin(a) * mpmath.cos(c) * mpmath.cos(d - b)
        ahead = mpmath.sin(a) * mpmath.sin(c) + mpmath.cos(a) * mpmath.cos(c) * mpmath.cos(d - b)
        return mpmath.mpf(EARTH_RADIUS_KM) * mpmath.atan2(mpmath.hypot(across, along), ahead)


def pairs(degrees: float, where: str, dtype: torch.dtype) -> list[Tensor]:
    """40 pairs about so many degrees apart: anywhere, around a pole, or that far from each other's antipode."""
    g = torch.Generator().manual_seed(0)
    u = torch.rand(4, 40, generator=g, dtype=torch.float64)
    lat, lon = (90 - degrees * u[0] if where == "pole" else u[0] * 140 - 70), u[1] * 360 - 180
    lat2 = 90 - degrees * u[2] if where == "pole" else lat + degrees * (u[2] - 0.5)
    lon2 = u[3] * 360 - 180 if where == "pole" else lon + degrees * (u[3] - 0.5)
    if where == "antipode":
        lat2, lon2 = -lat2, lon2 + 180
    return [x.to(dtype) for x in (lat, lon, lat2, (lon2 + 180) % 360 - 180)]


@pytest.mark.parametrize("where", ["anywhere", "pole", "antipode"])
@pytest.mark.parametrize("degrees", [1e-7, 1e-3, 0.5])  # 1 cm to 50 km
def test_error_against_forty_digits(degrees: float, where: str) -> None:
    for dtype, absolute, relative in ((torch.float64, 1e-11, 1e-14), (torch.float32, 4e-3, 2e-6)):
        points = pairs(degrees, where, dtype)
        got = haversine_km(*points).tolist()
        for km, *point in zip(got, *(x.tolist() for x in points), strict=True):
            exact = exact_km(*point)
            error = float(abs(mpmath.mpf(km) - exact))
            assert error <= absolute
            assert where != "anywhere" or error <= relative * exact


def test_a_turn_more_is_the_same_place() -> None:
    lon = torch.tensor([180.0, 179.75, -300.0, 540.0])
    km = haversine_km(torch.full((4,), 10.0), lon, torch.full((4,), 10.0), torch.tensor([-180.0, -180.25, 60.0, 180.0]))
    assert km.tolist() == [0, 0, 0, 0]


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
