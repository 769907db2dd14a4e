"""The earth's size and shape, for those too who don't wait for torch."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

EARTH_RADIUS_KM = 6371.0088  # mean radius R1 of the WGS84 ellipsoid (IUGG)


def on_sphere(lat: ArrayLike, lon: ArrayLike) -> NDArray[np.float64]:
    """Unit vectors of places in degrees, float64 [..., 3]; NaN stays. In torch: ``haversine.unit_vectors``."""
    phi, lam = np.radians(np.asarray(lat, np.float64)), np.radians(np.asarray(lon, np.float64))
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=-1)
