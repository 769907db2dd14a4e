"""CPU path of ``pairwise_within``: compiled loops over tiles of queries.

For each tile of near queries the candidates in reach are listed once, in ascending order, their coordinates side by
side; each query of the tile then runs down that list. So a row comes out ascending without being sorted, and what is
far away is met once a tile of candidates, not once a pair.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .threads import inlined, jit, parallel_rows
from .tiles import curve_order, reachable_tiles, tile_bounds

TILE = 64  # queries or candidates
SMALL = 1 << 18  # pairs below which looking at all of them costs less than ordering the points

# Number of the only bit that is set, by the top six bits of its product with a de Bruijn sequence.
DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
BIT = np.empty(64, np.int64)
BIT[[(0x03F79D71B4CB0A89 << bit) % 2**64 >> 58 for bit in range(64)]] = np.arange(64)


class _Plan(NamedTuple):
    """Which candidates a query is compared with.

    Attributes:
        queries: [B], the queries in the order of their tiles of TILE.
        centres, reach: middle of each tile of queries [n, 3] and how far from it a candidate can matter [n].
        offsets, tiles: CSR, the tiles of candidates that each tile of queries looks at.
        members, places: the candidates in the order of their tiles, [M], and where they are, [M, 3].
        size: candidates in a tile.
    """

    queries: np.ndarray
    centres: np.ndarray
    reach: np.ndarray
    offsets: np.ndarray
    tiles: np.ndarray
    members: np.ndarray
    places: np.ndarray
    size: int


def pairwise_within_cpu(queries: Tensor, candidates: Tensor | None, limits: Tensor) -> tuple[Tensor, Tensor]:
    """``pairwise_within`` on contiguous CPU tensors, from squared chords ``limits`` [B] in the points' dtype."""
    others = queries if candidates is None else candidates
    plan = (_all if len(queries) * len(others) <= SMALL else _near)(queries, candidates, limits)
    points = queries.numpy(), others.numpy(), limits.numpy()
    offsets = torch.zeros(len(queries) + 1, dtype=torch.int64)
    # Two passes over the same lists: how many neighbours, then which, each row at its place.
    parallel_rows(_count, len(plan.centres), plan, *points, offsets.numpy())
    torch.cumsum(offsets, 0, out=offsets)
    indices = torch.empty(int(offsets[-1]), dtype=torch.int64)
    parallel_rows(_fill, len(plan.centres), plan, *points, offsets.numpy(), indices.numpy())
    return offsets, indices


def _all(queries: Tensor, candidates: Tensor | None, limits: Tensor) -> _Plan:
    """Every query looks at every candidate."""
    others = (queries if candidates is None else candidates).numpy()
    n = -(-len(queries) // TILE)
    return _Plan(
        queries=np.arange(len(queries)),
        centres=np.zeros((n, 3), others.dtype),
        reach=np.full(n, np.inf, others.dtype),
        offsets=np.arange(n + 1),
        tiles=np.zeros(n, np.int64),
        members=np.arange(len(others)),
        places=others,
        size=len(others),
    )


def _near(queries: Tensor, candidates: Tensor | None, limits: Tensor) -> _Plan:
    """A tile of queries looks at the tiles of candidates that its largest radius can reach."""
    order = curve_order(queries)
    places = queries[order]
    centres, radii = tile_bounds(places, TILE)
    if candidates is None:
        members, bounds = order, (centres, radii)
    else:
        members = curve_order(candidates)
        places = candidates[members]
        bounds = tile_bounds(places, TILE)
    padded = torch.nn.functional.pad(limits[order], (0, len(radii) * TILE - len(queries)), value=-1)
    chord = padded.view(-1, TILE).amax(1).sqrt()
    offsets, tiles = reachable_tiles(centres, radii, *bounds, chord)
    return _Plan(
        queries=order.numpy(),
        centres=centres.numpy(),
        reach=(radii + chord).numpy(),
        offsets=offsets.numpy(),
        tiles=tiles.numpy(),
        members=members.numpy(),
        places=places.numpy(),
        size=TILE,
    )


@inlined()
def _list(plan: _Plan, tile: int, candidates: np.ndarray, marks: np.ndarray, ids: np.ndarray, near: np.ndarray) -> int:
    """What the tile looks at, ascending: fills ids [M] and near [3, M], returns how many. ``marks``: M zero bits."""
    x, y, z = plan.centres[tile]
    limit = plan.reach[tile] * plan.reach[tile]
    limit += 64 * np.finfo(plan.reach.dtype).eps * limit
    for r in range(plan.offsets[tile], plan.offsets[tile + 1]):
        for k in range(plan.tiles[r] * plan.size, min((plan.tiles[r] + 1) * plan.size, len(plan.members))):
            dx, dy, dz = plan.places[k, 0] - x, plan.places[k, 1] - y, plan.places[k, 2] - z
            j = plan.members[k]
            marks[j >> 6] |= np.uint64(dx * dx + dy * dy + dz * dz <= limit) << np.uint64(j & 63)
    n = 0
    for w in range(len(marks)):
        word = marks[w]
        marks[w] = 0
        while word:
            lowest = word & (~word + np.uint64(1))
            ids[n] = 64 * w + BIT[(lowest * DE_BRUIJN) >> np.uint64(58)]
            n += 1
            word ^= lowest
    for k in range(n):
        for axis in range(3):
            near[axis, k] = candidates[ids[k], axis]
    return n


@jit()
def _count(
    start: int,
    stop: int,
    plan: _Plan,
    queries: np.ndarray,
    candidates: np.ndarray,
    limits: np.ndarray,
    counts: np.ndarray,
) -> None:
    """counts[i + 1] = number of candidates within reach of query i, for the queries of tiles start .. stop."""
    marks = np.zeros(len(candidates) // 64 + 1, np.uint64)
    ids = np.empty(len(candidates), np.int64)
    near = np.empty((3, len(candidates)), candidates.dtype)
    for tile in range(start, stop):
        n = _list(plan, tile, candidates, marks, ids, near)
        for q in range(tile * TILE, min((tile + 1) * TILE, len(queries))):
            i = plan.queries[q]
            x, y, z, limit = queries[i, 0], queries[i, 1], queries[i, 2], limits[i]
            found = np.int32(0)
            for k in range(n):
                dx, dy, dz = near[0, k] - x, near[1, k] - y, near[2, k] - z
                found += np.int32(dx * dx + dy * dy + dz * dz <= limit)
            counts[i + 1] = found


@jit()
def _fill(
    start: int,
    stop: int,
    plan: _Plan,
    queries: np.ndarray,
    candidates: np.ndarray,
    limits: np.ndarray,
    offsets: np.ndarray,
    indices: np.ndarray,
) -> None:
    """The row of ``indices`` of each query of tiles start .. stop."""
    marks = np.zeros(len(candidates) // 64 + 1, np.uint64)
    ids = np.empty(len(candidates), np.int64)
    near = np.empty((3, len(candidates)), candidates.dtype)
    hits = np.zeros((len(candidates) // 8 + 2) * 8, np.uint8)
    eights = hits.view(np.uint64)
    for tile in range(start, stop):
        n = _list(plan, tile, candidates, marks, ids, near)
        hits[n : n + 8] = 0
        for q in range(tile * TILE, min((tile + 1) * TILE, len(queries))):
            i = plan.queries[q]
            x, y, z, limit = queries[i, 0], queries[i, 1], queries[i, 2], limits[i]
            for k in range(n):
                dx, dy, dz = near[0, k] - x, near[1, k] - y, near[2, k] - z
                hits[k] = dx * dx + dy * dy + dz * dz <= limit
            at, end = offsets[i], offsets[i + 1]
            eight = 0
            while at < end:
                if eights[eight]:
                    k = 8 * eight
                    while k < 8 * eight + 8 and at < end:  # to write a miss and overwrite it beats guessing wrong
                        indices[at] = ids[k]
                        at += hits[k]
                        k += 1
                eight += 1
