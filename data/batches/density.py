"""How dense places are: the distance to the k-th nearest one, from which radii are made that fit town and country."""

import numpy as np
import torch
from numpy.typing import ArrayLike

from ...kernels.haversine import EARTH_RADIUS_KM, unit_vectors
from ...kernels.tiles import curve_order

DENSITY_NEIGHBOURS = 20
"""How dense it is around an item is told by the distance to this neighbour."""
DENSITY_RANGE = 3.0
"""Density-adaptive radii are between a third of the fixed ones and three times as long."""
_NUMBERS = 1 << 22  # of distances in memory at once


def nearest_km(lat: ArrayLike, lon: ArrayLike, k: int) -> np.ndarray:
    """Great-circle distance from each place to its k-th nearest other place.

    Args:
        lat, lon: degrees [N].
        k: 1 for the nearest. Another place at the same point is a neighbour at distance 0.

    Returns:
        km, float64 [N]; infinite where there are fewer than k others.

    Raises:
        ValueError: k below 1, shapes that do not fit, NaN or infinity, with the first row of it.

    Exact: nearest by chord is nearest on the sphere, and chords come from float64 unit vectors (a micrometre). Equal
    points are looked up once, so a mall of 100,000 places at one point costs no more than one. Memory: some 220 bytes a
    place and 100 MB; all processors search.
    """
    lat, lon = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
    if k < 1:
        raise ValueError(f"k: got {k}, expected at least 1, the nearest other place")
    if lat.ndim != 1 or lat.shape != lon.shape:
        raise ValueError(f"got lat {lat.shape} and lon {lon.shape}, expected one shape [N]")
    bad = ~(np.isfinite(lat) & np.isfinite(lon))
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"got lat {lat[row]}, lon {lon[row]} in row {row}, expected degrees; leave such places out")
    if len(lat) == 0:
        return np.zeros(0)
    from scipy.spatial import cKDTree

    points, row_of, places_at = np.unique(lat + 1j * lon, return_inverse=True, return_counts=True)
    vectors = unit_vectors(torch.from_numpy(points.real.copy()), torch.from_numpy(points.imag.copy()))
    order = curve_order(vectors).numpy()  # neighbours one after the other find the tree's nodes in the cache
    vectors, places_at = vectors.numpy()[order], places_at[order]
    tree = cKDTree(vectors)
    wanted = min(k + 1, len(vectors))  # each point finds itself
    chords = np.empty(len(vectors))
    for start in range(0, len(vectors), max(1, _NUMBERS // wanted)):
        some = slice(start, start + max(1, _NUMBERS // wanted))
        found, at = map(np.asarray, tree.query(vectors[some], k=np.arange(1, wanted + 1), workers=-1))
        # The first of its points by which k places besides itself have been met; infinite if they never are.
        met = places_at[at].cumsum(axis=1) > k
        first = met.argmax(axis=1)
        chords[some] = np.where(met[:, -1], found[np.arange(len(found)), first], np.inf)
    km = np.empty(len(chords))
    km[order] = np.where(np.isinf(chords), np.inf, 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(chords / 2, 1)))
    return km[row_of]


def adaptive_km(lat: ArrayLike, lon: ArrayLike, k: int, minimum: float, maximum: float) -> np.ndarray:
    """A radius for each place that reaches its k nearest others, but between ``minimum`` and ``maximum`` km; [N]."""
    if not 0 <= minimum <= maximum:
        raise ValueError(f"got minimum {minimum} and maximum {maximum} km, expected 0 <= minimum <= maximum")
    return np.clip(nearest_km(lat, lon, k), minimum, maximum)


def density_scale(lat: ArrayLike, lon: ArrayLike) -> np.ndarray:
    """By how much each item's radii are longer than the fixed ones, float32 [I]: its distance to the 20th neighbour
    over the median item's, within 1/3 and 3.

    Args:
        lat, lon: degrees of all items [I], NaN where unknown; those have 1.
    """
    lat, lon = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
    scale = np.ones(len(lat), np.float32)
    known = np.isfinite(lat) & np.isfinite(lon)
    km = nearest_km(lat[known], lon[known], DENSITY_NEIGHBOURS)
    typical = np.median(km) if len(km) else 0.0
    if 0 < typical < np.inf:  # not where most items share one point, or there are too few to tell
        scale[known] = np.clip(km / typical, 1 / DENSITY_RANGE, DENSITY_RANGE)
    return scale
