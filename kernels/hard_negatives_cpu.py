"""Loops of ``hard_negatives`` on the CPU.

Workers draw runs of queries that lie together. For each run the candidates in reach come in chunks: one matrix
product writes their cosines into a buffer that fits the core's own cache, one loop looks there for negatives, one for
positives. A tile of 64 candidates that holds nothing better than a row's k-th so far costs that row two vector
comparisons per 8 candidates: only the few tiles that pass are looked at more closely.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .places import TILE, Search
from .threads import inlined, jit, run_on_workers
from .threads import numba as nb
from .tiles import reachable_tiles, tile_bounds

# Most queries of a run, a multiple of TILE, and tiles of a chunk: a buffer of 1 MiB, half a core's level-2 cache here.
# 128 x 32 was as fast, 64 x 32 a fifth slower in the product.
ROWS, CHUNK = 256, 16
RUNS = (
    16  # that a batch should have at least, for workers to share; not by their number, so that answers are not either
)


@inlined()
def _uniform(key: int, candidate: int) -> np.floating:
    """``hard_negatives.random_scores``."""
    x = nb.uint32(nb.uint32(key) ^ nb.uint32(nb.uint32(candidate) * nb.uint32(0x9E3779B9)))
    x = nb.uint32(nb.uint32(x ^ (x >> nb.uint32(16))) * nb.uint32(0x85EBCA6B))
    x = nb.uint32(nb.uint32(x ^ (x >> nb.uint32(13))) * nb.uint32(0xC2B2AE35))
    x = nb.uint32(x ^ (x >> nb.uint32(16)))
    return nb.float32(nb.int32(x >> nb.uint32(8))) * nb.float32(2.0**-24)


@jit()
def _draw(scores: np.ndarray, pieces: np.ndarray, keys: np.ndarray, c_rows: np.ndarray) -> None:
    """scores [R, CHUNK, TILE] of random negatives."""
    for r in range(keys.size):
        tile = 0
        for piece in range(len(pieces)):
            for at in range(pieces[piece, 0], pieces[piece, 1]):
                for t in range(TILE):
                    scores[r, tile, t] = _uniform(keys[r], c_rows[at, t])
                tile += 1


@jit()
def _scan_negatives(
    scores: np.ndarray,
    pieces: np.ndarray,
    q_positions: np.ndarray,
    q_items: np.ndarray,
    q_categories: np.ndarray,
    limits: np.ndarray,
    reach: np.ndarray,
    c_rows: np.ndarray,
    c_positions: np.ndarray,
    c_items: np.ndarray,
    c_categories: np.ndarray,
    centres: np.ndarray,
    radii: np.ndarray,
    different: bool,
    best: np.ndarray,
    found: np.ndarray,
) -> None:
    """Put each query's best candidates of these pieces into best, found [R, k], kept in order.

    Args:
        scores: [R, CHUNK, TILE]; the pieces' tiles one after the other.
        pieces: [P, 2], first tile and the one after the last.
        reach: [R], largest chord, rounded up.
        c_*: [..., tiles, TILE].
        different: candidates of the query's category and of none are not eligible.
    """
    k = best.shape[1]
    here = np.empty(TILE, np.float32)  # one tile's scores, NaN where not eligible
    for r in range(q_items.size):
        x, y, z = q_positions[0, r], q_positions[1, r], q_positions[2, r]
        item, limit = q_items[r], limits[r]
        if not limit >= 0:
            continue
        category = q_categories[r] if different else nb.int32(-2)  # -2 is nobody's
        lowest = nb.int32(0) if different else nb.int32(-1)
        mine, rows = best[r], found[r]
        worst = mine[k - 1]
        tile = -1
        for piece in range(len(pieces)):
            for at in range(pieces[piece, 0], pieces[piece, 1]):
                tile += 1
                dx, dy, dz = x - centres[at, 0], y - centres[at, 1], z - centres[at, 2]
                far = reach[r] + radii[at]
                if not dx * dx + dy * dy + dz * dz <= far * far:
                    continue
                hit = nb.int32(0)  # no early exit and no branch, so that this and the next loop are vectorised
                for t in range(TILE):
                    hit |= (scores[r, tile, t] >= worst) & (c_categories[at, t] != category)
                if not hit:
                    continue
                for t in range(TILE):
                    dx, dy, dz = x - c_positions[0, at, t], y - c_positions[1, at, t], z - c_positions[2, at, t]
                    eligible = (
                        (dx * dx + dy * dy + dz * dz <= limit)
                        & (c_categories[at, t] != category)
                        & (c_categories[at, t] >= lowest)
                        & (c_items[at, t] != item)
                    )
                    here[t] = scores[r, tile, t] if eligible else nb.float32(np.nan)
                for t in range(TILE):
                    score, row = here[t], c_rows[at, t]
                    if not score >= worst or (score == worst and row > rows[k - 1]):
                        continue
                    e = k - 1
                    while e > 0 and (score > mine[e - 1] or (score == mine[e - 1] and row < rows[e - 1])):
                        mine[e], rows[e] = mine[e - 1], rows[e - 1]
                        e -= 1
                    mine[e], rows[e] = score, row
                    worst = mine[k - 1]


@jit()
def _scan_positives(
    scores: np.ndarray,
    pieces: np.ndarray,
    q_positions: np.ndarray,
    q_items: np.ndarray,
    groups: np.ndarray,
    limits: np.ndarray,
    keys: np.ndarray,
    c_rows: np.ndarray,
    c_positions: np.ndarray,
    c_items: np.ndarray,
    offsets: np.ndarray,
    members: np.ndarray,
    best: np.ndarray,
    found: np.ndarray,
) -> None:
    """Lower best, found [R] to the lowest score among the candidates of each query's group in these pieces.

    A group is a category or a brand: far fewer than all candidates, so its members are listed, not searched for.

    Args:
        scores, pieces: as in ``_scan_negatives``, scores as [R, CHUNK * TILE].
        keys: [R], draw at random instead of reading scores; empty: don't.
        c_*: [..., candidates].
        offsets, members: group g has the candidates members[offsets[g] : offsets[g + 1]], ascending.
    """
    for r in range(q_items.size):
        group = groups[r]
        if group < 0 or not limits[r] >= 0:
            continue
        x, y, z = q_positions[0, r], q_positions[1, r], q_positions[2, r]
        lowest, next_, end, column = best[r], offsets[group], offsets[group + 1], 0
        for piece in range(len(pieces)):
            first, stop = pieces[piece, 0] * TILE, pieces[piece, 1] * TILE
            high = end
            while next_ < high:  # first member of this piece, by bisection
                middle = (next_ + high) >> 1
                if members[middle] < first:
                    next_ = middle + 1
                else:
                    high = middle
            while next_ < end and members[next_] < stop:
                at = members[next_]
                next_ += 1
                score = _uniform(keys[r], c_rows[at]) if keys.size else scores[r, column + at - first]
                if score > lowest:
                    continue
                dx, dy, dz = x - c_positions[0, at], y - c_positions[1, at], z - c_positions[2, at]
                if not dx * dx + dy * dy + dz * dz <= limits[r] or c_items[at] == q_items[r]:
                    continue
                if score < lowest or c_rows[at] < found[r]:
                    lowest, found[r] = score, c_rows[at]
            column += stop - first
        best[r] = lowest


@jit()
def _groups(numbers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts [count + 1] and members, ascending, of groups 0 .. count of candidates with equal numbers; -1: none."""
    starts = np.zeros(count + 2, np.int64)
    for number in numbers:
        starts[number + 2 if number >= 0 else 0] += 1
    starts[0] = 0
    starts = np.cumsum(starts)
    members = np.empty(starts[count + 1], np.int32)
    for at, number in enumerate(numbers):
        if number >= 0:
            members[starts[number + 1]] = at
            starts[number + 1] += 1
    return starts[: count + 1], members


def _pieces(offsets: Tensor, tiles: Tensor) -> tuple[np.ndarray, list[int], list[int]]:
    """Pieces of consecutive tiles, in chunks of at most CHUNK tiles of a run.

    Args:
        offsets, tiles: what ``reachable_tiles`` gave.

    Returns:
        pieces int64 [P, 2], first tile and the one after the last. Chunk i has the pieces chunks[i] : chunks[i + 1],
        run i has the chunks runs[i] : runs[i + 1].
    """
    counts = offsets.diff()
    within = torch.arange(len(tiles)) - offsets[:-1].repeat_interleave(counts)
    chunk = within % CHUNK == 0
    piece = chunk | (tiles != F.pad(tiles[:-1], (1, 0)) + 1)
    starts = piece.nonzero()[:, 0]
    stops = tiles[F.pad(starts[1:], (0, 1), value=len(tiles)) - 1] + 1 if len(tiles) else tiles
    chunks = chunk[starts].nonzero()[:, 0].tolist()
    runs = F.pad((-(-counts // CHUNK)).cumsum(0), (1, 0)).tolist()
    return torch.stack([tiles[starts], stops], dim=1).numpy(), [*chunks, len(starts)], runs


def _search_runs(
    search: Search,
    size: int,
    draw: Iterator[int],
    pieces: np.ndarray,
    chunks: list[int],
    runs: list[int],
    reach: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    groups: list[tuple[np.ndarray, np.ndarray]],
    best: np.ndarray,
    found: np.ndarray,
    lowest: np.ndarray,
    positives: np.ndarray,
) -> None:
    """The runs of ``size`` queries that this worker draws."""
    q, c = search.queries, search.candidates
    (_, q_items, q_categories, q_brands), q_positions = q.numbers.numpy(), q.positions.numpy()
    (c_rows, c_items, c_categories, _), c_positions = c.numbers.numpy(), c.positions.numpy()
    tiled = [array.reshape(*array.shape[:-1], -1, TILE) for array in (c_rows, c_positions, c_items, c_categories)]
    limits = search.negative_limits.numpy(), search.positive_limits.numpy()
    negative_keys, positive_keys = (
        np.empty(0, np.int64) if keys is None else keys.numpy() for keys in (search.negative_keys, search.positive_keys)
    )
    all_random = bool(negative_keys.size and positive_keys.size)
    cosines = torch.empty(size, CHUNK * TILE)
    cosines_array = cosines.numpy()
    scores = np.empty_like(cosines_array) if negative_keys.size else cosines_array
    for run in draw:
        this = slice(run * size, min((run + 1) * size, len(q.rows)))
        n = this.stop - this.start
        own, own_embeddings = (q_positions[:, this], q_items[this]), q.embeddings[this]
        this_cosines, this_scores = cosines[:n], scores[:n].reshape(n, CHUNK, TILE)
        test: tuple[Any, ...] = limits[0][this], reach[this], *tiled, *bounds, search.different_category
        of_negatives: tuple[Any, ...] = *own, q_categories[this], *test, best[this], found[this]
        test = limits[1][this], positive_keys[this], c_rows, c_positions, c_items
        of_positives: list[tuple[Any, ...]] = [
            (*own, numbers[this], *test, *lists, lowest[this], positives[this])
            for numbers, lists in zip((q_categories, q_brands), groups, strict=True)
            if lists[1].size
        ]
        for chunk in range(runs[run], runs[run + 1]):
            part = pieces[chunks[chunk] : chunks[chunk + 1]]
            column = 0
            for first, stop in [] if all_random else part.tolist():
                wide = (stop - first) * TILE
                theirs = c.embeddings[first * TILE : stop * TILE].t()
                torch.mm(own_embeddings, theirs, out=this_cosines[:, column : column + wide])
                column += wide
            if negative_keys.size:
                _draw(this_scores, part, negative_keys[this], tiled[0])
            _scan_negatives(this_scores, part, *of_negatives)
            for of_group in of_positives:
                _scan_positives(cosines_array, part, *of_group)


def hard_negatives_cpu(search: Search) -> Tensor:
    """Rows of candidates, -1 where there is none: int32 [N, k + 1], negatives in order, then the positive.

    Memory: the results and their scores, and ``ROWS * CHUNK * TILE`` numbers a thread (twice that if negatives are
    random).
    """
    q, c = search.queries, search.candidates
    rows = len(q.rows)
    best, found = torch.full((rows, search.k), -torch.inf), torch.full((rows, search.k), -1, dtype=torch.int32)
    lowest, positives = torch.full((rows,), torch.inf), torch.full((rows,), -1, dtype=torch.int32)
    if rows and len(c.rows):
        slack = 1 + 32 * torch.finfo(torch.float32).eps
        reach, far = (
            limits.sqrt().nan_to_num(-torch.inf, posinf=torch.inf) * slack
            for limits in (search.negative_limits, search.positive_limits)
        )
        size = min(ROWS, -(-rows // (RUNS * TILE)) * TILE)  # of a run
        furthest = F.pad(torch.maximum(reach, far), (0, -rows % size), value=-torch.inf).view(-1, size).amax(1)
        bounds = tile_bounds(c.positions.t(), TILE)
        offsets, tiles = reachable_tiles(*tile_bounds(q.positions.t(), size), *bounds, furthest)
        groups = [
            _groups(numbers.numpy(), int(1 + max(a.max(), numbers.max())))
            for a, numbers in ((q.categories, c.categories), (q.brands, c.brands))
        ]
        draw = iter(range(len(furthest)))  # shared: the next run goes to whoever is free
        run_on_workers(
            _search_runs, search, size, draw, *_pieces(offsets, tiles), reach.numpy(),
            [bound.numpy() for bound in bounds], groups, best.numpy(), found.numpy(), lowest.numpy(),
            positives.numpy(), most=len(furthest),
        )  # fmt: skip
    return torch.cat([found, positives[:, None]], dim=1)
