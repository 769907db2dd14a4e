"""Great-circle distances in kilometres, from degrees or from unit vectors on the sphere."""

import torch
from torch import Tensor

from .checks import check_floating
from .earth import EARTH_RADIUS_KM


def haversine_km(lat1: Tensor, lon1: Tensor, lat2: Tensor, lon2: Tensor) -> Tensor:
    """Great-circle distance in km between points given in degrees.

    Args:
        lat1, lon1, lat2, lon2: degrees, float32 or float64, any shapes that broadcast.

    Returns:
        km, broadcast shape, in the inputs' promoted dtype. NaN where an input is NaN.

    Raises:
        TypeError, ValueError: here and below, what is no floating tensor, or does not broadcast.

    With h the haversine of the angle, 1 - h is the haversine to the antipode, which is computed by itself: neither
    end of the range loses digits, as ``asin(sqrt(h))`` does near the antipode. Longitudes may be of any turn: 181 is
    -179, and the difference is brought to within half a turn before anything is rounded.

    Error against exact mathematics on the same numbers: float64 within 1e-8 m from 0 to the antipode, and 1e-14 of the
    distance away from the poles; float32 within 4 m, and between places up to 100 km apart 2e-6 of the distance
    plus, near the poles, 1 m. But degrees are themselves rounded to float32, by up to 0.4 m (latitude) and 0.9 m
    (longitude) a point, so 10 m between neighbours come out as 8 to 12: keep degrees in float64, or make
    ``unit_vectors`` from float64, which float32 holds to 0.3 m.

    There is no Triton kernel of it: in a compiled model the compiler fuses these lines into one pass, and kernels that
    compare distances do it on chords, without a single sine (``pairwise_within``).
    """
    check_floating(lat1=lat1, lon1=lon1, lat2=lat2, lon2=lon2)
    phi1, phi2 = torch.deg2rad(lat1), torch.deg2rad(lat2)
    half_dlat, half_sum = torch.deg2rad(lat2 - lat1) / 2, torch.deg2rad(lat1 + lat2) / 2
    dlon = lon2 - lon1
    half_dlon = torch.deg2rad(dlon - 360 * torch.round(dlon / 360)) / 2
    cosines = torch.cos(phi1) * torch.cos(phi2)
    h = torch.sin(half_dlat) ** 2 + cosines * torch.sin(half_dlon) ** 2
    rest = torch.sin(half_sum) ** 2 + cosines * torch.cos(half_dlon) ** 2
    return 2 * EARTH_RADIUS_KM * torch.atan2(h.clamp(min=0).sqrt(), rest.clamp(min=0).sqrt())


def unit_vectors(lat: Tensor, lon: Tensor) -> Tensor:
    """Points on the unit sphere: degrees of shape [...] to [..., 3] (x, y, z), same dtype."""
    check_floating(lat=lat, lon=lon)
    phi, lam = torch.deg2rad(lat), torch.deg2rad(lon)
    cos_phi = torch.cos(phi)
    return torch.stack([cos_phi * torch.cos(lam), cos_phi * torch.sin(lam), torch.sin(phi)], dim=-1)


def unit_vectors_km(u: Tensor, v: Tensor) -> Tensor:
    """Great-circle distance in km between unit vectors [..., 3] that broadcast.

    From the chord |u - v| and its complement |u + v|: the difference comes first, so nothing cancels at
    short range, and the angle stays exact up to the antipode.
    """
    check_floating(u=u, v=v)
    if u.shape[-1:] != (3,) or v.shape[-1:] != (3,):
        raise ValueError(f"got u {list(u.shape)} and v {list(v.shape)}, expected unit vectors [..., 3]")
    chord = torch.linalg.vector_norm(u - v, dim=-1)
    complement = torch.linalg.vector_norm(u + v, dim=-1)
    return 2 * EARTH_RADIUS_KM * torch.atan2(chord, complement)
