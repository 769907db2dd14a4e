"""Nine hardest negatives within 10 km and the hardest positive within 30 km, of every item of a batch, among the batch.

Everybody starts from the same embeddings, categories, brands, and places as unit vectors or radians, and does all of
it, trees and sorting along the curve included: every batch is another set of places.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from placerank.kernels.hard_negatives import HardNegatives, hard_negatives
from placerank.kernels.haversine import EARTH_RADIUS_KM, unit_vectors
from placerank.kernels.places import Places
from placerank.kernels.tiles import chord_of_km

from . import geography
from .harness import Case, Suite, Work

K, DIM, NEGATIVE_KM, POSITIVE_KM = 9, 64, 10.0, 30.0
CATEGORIES = 200  # Zipf: the first has 17 % of the items
# Pairs that PyTorch looks at together. On the CPU they stay in the cache: 1 << 21 was the fastest of 2^20 to 2^25.
CHUNK = {"cpu": 1 << 21, "cuda": 1 << 28}
# Largest batches on a CPU for peers whose time grows as the square of B or as the neighbours: a minute each.
MOST_PAIRS, MOST_NEIGHBOURS = 16384**2, 3e8


class Inputs(NamedTuple):
    """A batch: ``places`` on the device; the same places in float64, unit vectors [B, 3] and radians [B, 2]."""

    places: Places
    double: Tensor
    radians: np.ndarray
    neighbours: float  # pairs within POSITIVE_KM


CASES = [
    Case("city", quick=True, B=1024),
    Case("city", quick=True, B=4096),
    Case("city", B=10240),
    Case("city", B=16384),
    Case("city", B=65536),
    Case("one_block", B=4096),
    Case("country", quick=True, B=4096),
    Case("country", B=16384),
    Case("country", B=65536),
    Case("country", B=262144),
]


def setup(case: Case, device: torch.device) -> Inputs:
    lat, lon = getattr(geography, case.name)(case.B, seed=0)
    g = torch.Generator().manual_seed(0)
    zipf = 1 / torch.arange(1, CATEGORIES + 1)
    categories = torch.multinomial(zipf, case.B, replacement=True, generator=g)
    brands = torch.randint(-(case.B // 20), case.B // 20, (case.B,), generator=g)  # one half has none
    # Items of a category are alike, as trained embeddings are: cosines of about 0.5 among them.
    embeddings = torch.randn(CATEGORIES, DIM, generator=g)[categories] + torch.randn(case.B, DIM, generator=g)
    double = unit_vectors(lat, lon)
    fields = torch.arange(case.B), double.float(), embeddings, categories, brands
    radians = np.radians(torch.stack([lat, lon], dim=1).numpy())
    places = Places(*(field.to(device) for field in fields))
    return Inputs(places, double.to(device), radians, _sampled(case)[1])


@cache
def _sampled(case: Case) -> tuple[float, float]:
    """Pairs within NEGATIVE_KM and within POSITIVE_KM, from 256 of the places."""
    points = unit_vectors(*getattr(geography, case.name)(case.B, seed=0))
    apart = torch.cdist(points[:256], points)
    near, far = ((apart <= chord_of_km(km)).double().mean().item() * case.B**2 for km in (NEGATIVE_KM, POSITIVE_KM))
    return near, far


def work(case: Case) -> Work:
    """The cosine of each pair within NEGATIVE_KM; each input read and each result written once."""
    return Work(flops=2 * DIM * _sampled(case)[0], bytes=case.B * (4 * DIM + 12 + 3 * 8 + 9 * (K + 1)))


def placerank(inputs: Inputs) -> Callable[[], HardNegatives]:
    return lambda: hard_negatives(inputs.places, k=K, negative_km=NEGATIVE_KM, positive_km=POSITIVE_KM)


def _unit(places: Places) -> Tensor:
    return F.normalize(places.embeddings)


def _joined(parts: Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]) -> HardNegatives:
    """Chunks of (scores [n, K] of the best, their columns, lowest cosine [n], its column) put together."""
    scores, negatives, lowest, positives = (torch.cat(fields) for fields in zip(*parts, strict=True))
    return HardNegatives(negatives, scores > -2, positives, lowest < 2)


def _chunked(inputs: Inputs, choose: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]) -> HardNegatives:
    """Chunks of rows by all columns; ``choose`` gets a chunk's cosines, chords and ids."""
    places, size = inputs.places, len(inputs.double)
    unit = _unit(places)
    # Around their own middle, points of one city are small numbers: float32 then tells centimetres apart by a product.
    points = inputs.double - inputs.double.mean(0)
    points = points.float() if points.abs().max() < 0.02 else points
    squares = points.square().sum(1)
    step = max(1, CHUNK[unit.device.type] // size)

    def parts() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        for start in range(0, size, step):
            rows = slice(start, start + step)
            ids = [(ids[rows, None], ids) for ids in (places.items, places.categories, places.brands)]
            yield choose(unit[rows] @ unit.T, points[rows] @ points.T, squares[rows, None], squares, *ids)

    return _joined(parts())


Pair = tuple[Tensor, Tensor]
NEAR, FAR = (chord_of_km(km) ** 2 for km in (NEGATIVE_KM, POSITIVE_KM))


def _choose_eager(
    cosines: Tensor, products: Tensor, q_squares: Tensor, c_squares: Tensor, items: Pair, categories: Pair, brands: Pair
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """In place where that is faster: masked_fill_ takes two fifths of masked_fill's time or where's."""
    apart = products.mul_(-2).add_(q_squares).add_(c_squares)
    same_category = categories[0] == categories[1]
    same_brand = (brands[0] == brands[1]) & (brands[0] >= 0)
    same_item = items[0] == items[1]
    unlike = ~(same_category | same_brand) | same_item | (apart > FAR)
    lowest, positives = cosines.masked_fill(unlike, 3).min(1)
    scores, negatives = cosines.masked_fill_(same_category | same_item | (apart > NEAR), -3).topk(K)
    return scores, negatives, lowest, positives


def _choose_fused(
    cosines: Tensor, products: Tensor, q_squares: Tensor, c_squares: Tensor, items: Pair, categories: Pair, brands: Pair
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    apart = q_squares + c_squares - 2 * products
    same_category = categories[0] == categories[1]
    alike = (same_category | ((brands[0] == brands[1]) & (brands[0] >= 0))) & (items[0] != items[1])
    lowest, positives = torch.where(alike & (apart <= FAR), cosines, 3).min(1)
    other = ~same_category & (items[0] != items[1])
    scores, negatives = torch.where(other & (apart <= NEAR), cosines, -3).topk(K)
    return scores, negatives, lowest, positives


def eager(inputs: Inputs) -> Callable[[], HardNegatives] | None:
    """Matrix products, masks, topk and min of chunks of rows."""
    if _too_large(inputs):
        return None
    return lambda: _chunked(inputs, _choose_eager)


def compiled(inputs: Inputs) -> Callable[[], HardNegatives] | None:
    """The same in functions without side effects, compiled."""
    if _too_large(inputs):
        return None
    choose = torch.compile(_choose_fused, dynamic=False)
    return lambda: _chunked(inputs, choose)


def _too_large(inputs: Inputs) -> bool:
    return not inputs.double.is_cuda and len(inputs.double) ** 2 > MOST_PAIRS


Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Neighbours of a chunk of rows within POSITIVE_KM: how many each row has, their columns row by row, their chords."""


def _from_neighbours(inputs: Inputs, search: Callable[[slice], Found]) -> HardNegatives:
    """Cosines of neighbours only. Each row's are laid out from the left, so that PyTorch's topk and min do the rest."""
    places, unit, size = inputs.places, _unit(inputs.places), len(inputs.double)
    step = max(64, int((1 << 22) / max(inputs.neighbours / size, 1)))

    def parts() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        for start in range(0, size, step):
            n = min(step, size - start)
            counts, columns, chords = (torch.from_numpy(array) for array in search(slice(start, start + n)))
            rows = torch.repeat_interleave(torch.arange(n), counts)
            left = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
            if len(rows) > n * size / 32:  # a product with all is cheaper than gathering both sides of each pair
                cosines = (unit[start : start + n] @ unit.T).view(-1)[rows * size + columns]
            else:
                pieces = zip(rows.split(1 << 16), columns.split(1 << 16), strict=True)
                cosines = torch.cat([(unit[start + r] * unit[c]).sum(1) for r, c in pieces])
            same_category = places.categories[start + rows] == places.categories[columns]
            brands = places.brands[start + rows]
            alike = same_category | ((brands == places.brands[columns]) & (brands >= 0))
            same_item = places.items[start + rows] == places.items[columns]
            at = rows * (wide := max(int(counts.max()), K)) + left
            there = torch.zeros(n, wide, dtype=torch.int64)
            there.view(-1)[at] = columns
            table = torch.full((n, wide), 3.0)
            table.view(-1)[at] = cosines.masked_fill(~alike | same_item, 3)
            lowest, first = table.min(1, keepdim=True)
            table.fill_(-3).view(-1)[at] = cosines.masked_fill(same_category | same_item | (chords > NEAR**0.5), -3)
            scores, best = table.topk(K)
            yield scores, there.gather(1, best), lowest[:, 0], there.gather(1, first)[:, 0]

    return _joined(parts())


def ball_tree(inputs: Inputs) -> Callable[[], HardNegatives] | None:
    """scikit-learn's BallTree with its haversine metric, then cosines of the neighbours."""
    if inputs.double.is_cuda or inputs.neighbours > MOST_NEIGHBOURS:
        return None
    from sklearn.neighbors import BallTree

    radians = inputs.radians

    def call() -> HardNegatives:
        tree = BallTree(radians, metric="haversine")

        def search(rows: slice) -> Found:
            found, angles = tree.query_radius(radians[rows], POSITIVE_KM / EARTH_RADIUS_KM, return_distance=True)
            counts = np.fromiter(map(len, found), np.int64, len(found))
            return counts, np.concatenate(found), 2 * np.sin(np.concatenate(angles) / 2)

        return _from_neighbours(inputs, search)

    return call


def k_d_tree(inputs: Inputs) -> Callable[[], HardNegatives] | None:
    """SciPy's cKDTree on unit vectors, then cosines of the neighbours. By sparse_distance_matrix: query_ball_point
    makes lists of Python numbers and leaves the distances out."""
    if inputs.double.is_cuda or inputs.neighbours > MOST_NEIGHBOURS:
        return None
    from scipy.spatial import cKDTree

    points = inputs.double.numpy()

    def call() -> HardNegatives:
        tree = cKDTree(points)

        def search(rows: slice) -> Found:
            own: Any = cKDTree(points[rows])
            found = own.sparse_distance_matrix(tree, FAR**0.5, output_type="ndarray")
            order = np.argsort(found["i"], kind="stable")
            counts = np.bincount(found["i"], minlength=len(points[rows]))
            return counts, found["j"][order], found["v"][order]

        return _from_neighbours(inputs, search)

    return call


SUITE = Suite(
    kernel="hard_negatives",
    cases=CASES,
    setup=setup,
    work=work,
    peers={
        "placerank": placerank,
        "eager PyTorch": eager,
        "torch.compile": compiled,
        "BallTree, then cosine": ball_tree,
        "cKDTree, then cosine": k_d_tree,
    },
    size="B",
)
