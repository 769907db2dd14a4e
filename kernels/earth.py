"""The size of the earth, for those too who don't wait for torch."""

EARTH_RADIUS_KM = 6371.0088  # mean radius R1 of the WGS84 ellipsoid (IUGG)
