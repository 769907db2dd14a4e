"""Where places are, for the benchmarks: one city, a whole country, one block. Each from a seed, as float64 degrees."""

import numpy as np
import torch
from torch import Tensor

from placerank.data.city.world import cities_of, scatter

CENTRE = (31.2222, 121.4581)  # the city and the block stand in Shanghai
CITY_KM = 10.0  # deviation of the city's districts from its centre: 95 % of the places are within 20 to 28 km, by seed
CITIES = 600  # of the country, the largest ones; the last has 118,000 people


def city(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """A city about 40 km across: a dense centre, 80 districts from streets to suburbs, and places between them."""
    rng = np.random.default_rng(seed)
    return _as_tensors(*_one_city(rng, n, *CENTRE, CITY_KM))


def country(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Cities of China, each with places as its people and as wide as their square root, laid out as ``city``."""
    rng = np.random.default_rng(seed)
    found = cities_of("CN", CITIES)
    people = np.array([float(c["population"]) for c in found])
    counts = rng.multinomial(n, people / people.sum())
    widths = CITY_KM * np.sqrt(people / people.max())
    parts = [
        _one_city(rng, count, float(c["latitude"]), float(c["longitude"]), width)
        for c, count, width in zip(found, counts, widths, strict=True)
    ]
    lat, lon = (np.concatenate(axis) for axis in zip(*parts, strict=True))
    mixed = rng.permutation(n)
    return _as_tensors(lat[mixed], lon[mixed])


def one_block(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Everything in a square of 140 m, so no two are more than 200 m apart: nothing can be skipped."""
    rng = np.random.default_rng(seed)
    north, east = rng.uniform(-0.07, 0.07, (2, n)) / 111.195
    return _as_tensors(CENTRE[0] + north, CENTRE[1] + east / np.cos(np.deg2rad(CENTRE[0])))


def _one_city(rng: np.random.Generator, n: int, lat: float, lon: float, km: float) -> tuple[np.ndarray, np.ndarray]:
    """n places: one in five at the centre or anywhere around it, the others in districts of Zipf sizes."""
    rank = np.arange(1, 81)
    centres = scatter(rng, np.full(80, lat), np.full(80, lon), km)
    widths = km * rng.lognormal(np.log(0.08), 0.6, 80)
    district = rng.choice(80, n, p=(1 / rank) / (1 / rank).sum())
    middle, anywhere = rng.random((2, n)) < 0.1
    lat0 = np.where(middle | anywhere, lat, centres[0][district])
    lon0 = np.where(middle | anywhere, lon, centres[1][district])
    return scatter(rng, lat0, lon0, np.where(middle, 0.15 * km, np.where(anywhere, km, widths[district])))


def _as_tensors(lat: np.ndarray, lon: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.ascontiguousarray(lat)), torch.from_numpy(np.ascontiguousarray(lon))
