"""All pairs of places within 1 km, as CSR. Trees are built inside what is timed: every batch is another set of places.

Ours reads float32 unit vectors, the others float64, which costs ours a few pairs on the rim and the others little time.
The peers' rows may come in any order, ours are ascending.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from placerank.kernels.haversine import EARTH_RADIUS_KM, unit_vectors
from placerank.kernels.pairwise_within import pairwise_within
from placerank.kernels.tiles import chord_of_km

from . import geography
from .harness import Case, Suite, Work

KM = 1.0
MOST = 16384  # places
CHUNK = {"cpu": 1 << 19, "cuda": 1 << 26}  # pairs that PyTorch compares at once: the fastest of several on the CPU


class Inputs(NamedTuple):
    """The same places as float32 and float64 unit vectors [B, 3] on the device, and as radians [B, 2]."""

    single: Tensor
    double: Tensor
    radians: np.ndarray


CASES = [
    Case("tiny", quick=True, B=256),
    Case("city", quick=True, B=1024),
    Case("city", B=4096),
    Case("city", B=16384),
    Case("country", quick=True, B=4096),
    Case("country", B=16384),
    Case("country", B=65536),
    Case("one_block", B=4096),
]


def setup(case: Case, device: torch.device) -> Inputs:
    make = geography.city if case.name == "tiny" else getattr(geography, case.name)
    lat, lon = make(case.B, seed=0)
    double = unit_vectors(lat, lon)
    radians = np.radians(torch.stack([lat, lon], dim=1).numpy())
    return Inputs(double.float().to(device), double.to(device), radians)


@cache
def _pairs(case: Case) -> int:
    return pairwise_within(setup(case, torch.device("cpu")).single, None, KM)[1].numel()


def work(case: Case) -> Work:
    """Each pair that is found has to be tested and written once, each place read once."""
    return Work(flops=9 * _pairs(case), bytes=12 * case.B + 8 * (case.B + 1) + 8 * _pairs(case))


def placerank(inputs: Inputs) -> Callable[[], object]:
    return lambda: pairwise_within(inputs.single, None, KM)


def _too_large(inputs: Inputs) -> bool:
    """For peers whose time grows as B squared; on a CPU so may their memory, where freed chunks come back in pieces."""
    return not inputs.single.is_cuda and len(inputs.single) > MOST


def eager(inputs: Inputs) -> Callable[[], object] | None:
    """Cosines in float64, which still tells metres apart there, by one matrix product a chunk of queries."""
    if _too_large(inputs):
        return None
    points, least = inputs.double, 1 - chord_of_km(KM) ** 2 / 2
    return lambda: _by_chunks(points, lambda rows: points[rows] @ points.T >= least)


def compiled(inputs: Inputs) -> Callable[[], object] | None:
    """Chords in float32, difference first, fused to one loop over a chunk. It stores bytes: of several ways to write
    it, those that store booleans or read planes of coordinates took 2 to 6 times as long on the CPU."""
    if _too_large(inputs):
        return None
    points, limit = inputs.single, chord_of_km(KM) ** 2
    near = torch.compile(_near, dynamic=False)
    return lambda: _by_chunks(points, lambda rows: near(points[rows], points, limit).view(torch.bool))


def _near(u: Tensor, v: Tensor, limit: float) -> Tensor:
    squares = [(u[:, axis, None] - v[:, axis]) ** 2 for axis in range(3)]
    return (squares[0] + squares[1] + squares[2] <= limit).to(torch.uint8)


def _by_chunks(points: Tensor, near: Callable[[slice], Tensor]) -> tuple[Tensor, Tensor]:
    rows = max(1, CHUNK[points.device.type] // len(points))
    masks = (near(slice(start, start + rows)) for start in range(0, len(points), rows))
    counts, columns = zip(*((mask.sum(1), mask.nonzero()[:, 1]) for mask in masks), strict=True)
    return torch.nn.functional.pad(torch.cat(counts).cumsum(0), (1, 0)), torch.cat(columns)


def ball_tree(inputs: Inputs) -> Callable[[], object] | None:
    """scikit-learn's BallTree as its documentation shows it for places: the haversine metric on radians."""
    if inputs.single.is_cuda:
        return None
    from sklearn.neighbors import BallTree

    points = inputs.radians
    return lambda: _rows(BallTree(points, metric="haversine").query_radius(points, KM / EARTH_RADIUS_KM))


def ball_tree_chords(inputs: Inputs) -> Callable[[], object] | None:
    """The same tree on unit vectors: no sines, several times as fast."""
    if inputs.single.is_cuda:
        return None
    from sklearn.neighbors import BallTree

    points, chord = inputs.double.numpy(), chord_of_km(KM)
    return lambda: _rows(BallTree(points, metric="euclidean").query_radius(points, chord))


def _rows(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.cumsum([0, *map(len, found)]), np.concatenate(found)


def k_d_tree(inputs: Inputs) -> Callable[[], object] | None:
    """SciPy's cKDTree: query_pairs finds each pair once; query_ball_point (2 workers) and sparse_distance_matrix, which
    do the same job, took 1.2 to 7 times as long."""
    if inputs.single.is_cuda:
        return None
    from scipy.sparse import csr_array
    from scipy.spatial import cKDTree

    points, chord = inputs.double.numpy(), chord_of_km(KM)

    def call() -> tuple[np.ndarray, np.ndarray]:
        n = len(points)
        pairs = cKDTree(points).query_pairs(chord, output_type="ndarray")
        rows = np.concatenate([pairs[:, 0], pairs[:, 1], np.arange(n)])
        columns = np.concatenate([pairs[:, 1], pairs[:, 0], np.arange(n)])
        matrix = csr_array((np.ones(len(rows), bool), (rows, columns)), shape=(n, n))
        return matrix.indptr, matrix.indices

    return call


SUITE = Suite(
    kernel="pairwise_within",
    cases=CASES,
    setup=setup,
    work=work,
    peers={
        "placerank": placerank,
        "eager PyTorch": eager,
        "torch.compile": compiled,
        "BallTree, haversine": ball_tree,
        "BallTree, unit vectors": ball_tree_chords,
        "cKDTree": k_d_tree,
    },
    size="B",
)
