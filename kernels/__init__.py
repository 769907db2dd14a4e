"""Numerical kernels; imports nothing but torch (and triton, where a kernel has a Triton path)."""

from .haversine import EARTH_RADIUS_KM, haversine_km, unit_vectors, unit_vectors_km

__all__ = ["EARTH_RADIUS_KM", "haversine_km", "unit_vectors", "unit_vectors_km"]
