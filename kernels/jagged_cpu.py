"""CPU loops over jagged rows, and how they are shared among threads."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .threads import jit, parallel_rows
from .tile_products import FAST, times, width
from .vectors import LANES

_BLOCK = 1024  # rows a block, at least
_BLOCKS = 64  # blocks, at most
_TILE = 32  # rows of a product at a time
_LANES = width(LANES)


def segment_blocks(offsets: Tensor, total: int, starts: Tensor | None = None) -> Tensor:
    """Cuts of the segments into blocks of whole segments with about equally many rows, int64 [blocks + 1].

    Segments of equal ``starts`` [B], which read the same rows, are in one block.
    """
    blocks = max(1, min(_BLOCKS, total // _BLOCK))
    cuts = torch.searchsorted(offsets.contiguous(), torch.arange(blocks + 1) * total // blocks)
    cuts[0], cuts[-1] = 0, offsets.numel() - 1
    if starts is not None:
        new = torch.ones(offsets.numel(), dtype=torch.bool)  # the end of all segments is one more
        new[1:-1] = starts[1:] != starts[:-1]
        first = torch.where(new, torch.arange(len(new)), 0).cummax(0).values
        cuts = first[cuts]
    return cuts


@jit(fastmath=FAST)
def _dot(
    start: int, stop: int, Ds: Any, bounds: Any, offsets: Any, starts: Any, values: Any, vectors: Any, out: Any
) -> None:
    """Up to 16 segments that share rows at a time, their vectors the columns of a matrix: each row is read once."""
    D = len(Ds)
    columns, tile = np.zeros((D, LANES), np.float32), np.empty((_TILE, LANES), np.float32)
    b = bounds[start]
    while b < bounds[stop]:
        n, longest = 0, 0
        while n < LANES and b + n < bounds[stop] and starts[b + n] == starts[b]:
            for d in range(D):
                columns[d, n] = vectors[b + n, d]
            longest = max(longest, offsets[b + n + 1] - offsets[b + n])
            n += 1
        for first in range(0, longest, _TILE):
            tile[:] = 0
            times(Ds, _LANES, values, starts[b] + first, min(_TILE, longest - first), columns, tile, 0)
            for i in range(n):
                at = offsets[b + i] + first
                for row in range(min(_TILE, offsets[b + i + 1] - at)):
                    out[at + row] = tile[row, i]
        b += n


def segment_dot_cpu(
    values: Tensor, vectors: Tensor, offsets: Tensor, starts: Tensor | None = None, total: int | None = None
) -> Tensor:
    """The forward of ``segment_dot`` for float32 on the CPU; with ``starts`` of ``segment_dot_shared``, [total]."""
    out = values.new_empty(values.shape[0] if total is None else total)
    bounds = segment_blocks(offsets, len(out))
    starts = offsets[:-1] if starts is None else starts
    arrays = (x.detach().contiguous().numpy() for x in (bounds, offsets, starts, values, vectors, out))
    parallel_rows(_dot, bounds.numel() - 1, width(values.shape[1]), *arrays)
    return out


@jit(fastmath=FAST)
def _linear(
    start: int, stop: int, Ds: Any, bounds: Any, offsets: Any, values: Any, vectors: Any, x: Any, out: Any
) -> None:
    D = len(Ds)
    total = np.empty(D, np.float32)
    for b in range(bounds[start], bounds[stop]):
        total[:] = 0
        for row in range(offsets[b], offsets[b + 1]):
            weight = np.float32(0)
            for d in range(D):
                weight += values[row, d] * vectors[b, d]
            x[row] = weight
            for d in range(D):
                total[d] += weight * values[row, d]
        out[b] = total


@jit(fastmath=FAST)
def _linear_back(
    start: int, stop: int, Ds: Any, bounds: Any, offsets: Any, grad: Any, values: Any, vectors: Any, x: Any,
    of_values: Any, of_vectors: Any,
) -> None:  # fmt: skip
    D = len(Ds)
    total = np.empty(D, np.float32)
    for b in range(bounds[start], bounds[stop]):
        total[:] = 0
        for row in range(offsets[b], offsets[b + 1]):
            of_x = np.float32(0)
            for d in range(D):
                of_x += values[row, d] * grad[b, d]
            for d in range(D):
                of_values[row, d] = x[row] * grad[b, d] + of_x * vectors[b, d]
            for d in range(D):
                total[d] += of_x * values[row, d]
        of_vectors[b] = total


def segment_linear_attention_cpu(values: Tensor, vectors: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The forward of ``segment_linear_attention`` for float32 on the CPU: products [T] and sums [B, D]."""
    x, out = values.new_empty(values.shape[0]), torch.empty(vectors.shape)
    bounds = segment_blocks(offsets, values.shape[0])
    arrays = (y.detach().contiguous().numpy() for y in (bounds, offsets, values, vectors, x, out))
    parallel_rows(_linear, bounds.numel() - 1, width(values.shape[1]), *arrays)
    return x, out


def segment_linear_attention_backward_cpu(
    grad: Tensor, values: Tensor, vectors: Tensor, offsets: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Its backward: gradients of values and vectors."""
    of_values, of_vectors = torch.empty(values.shape), torch.empty(vectors.shape)
    bounds = segment_blocks(offsets, values.shape[0])
    arrays = (y.contiguous().numpy() for y in (bounds, offsets, grad, values, vectors, x, of_values, of_vectors))
    parallel_rows(_linear_back, bounds.numel() - 1, width(values.shape[1]), *arrays)
    return of_values, of_vectors


@jit()
def _topk(start: int, stop: int, bounds: Any, offsets: Any, scores: Any, found: Any) -> None:
    """Where not all can be taken: a heap of the k highest scores so far, the lowest on top; then the rows that have
    them, of those with the lowest the last."""
    k = found.shape[1]
    heap = np.empty(k, np.float32)
    for b in range(bounds[start], bounds[stop]):
        n = 0
        if offsets[b + 1] - offsets[b] <= k:
            for row in range(offsets[b], offsets[b + 1]):
                if scores[row] > -np.inf:
                    found[b, n] = row
                    n += 1
        else:
            for row in range(offsets[b], offsets[b + 1]):
                score = scores[row]
                if not score > (heap[0] if n == k else -np.inf):
                    continue
                if n == k:
                    i, child = 0, 1  # sinks from the top below all that are lower
                    while child < k:
                        if child + 1 < k and heap[child + 1] < heap[child]:
                            child += 1
                        if heap[child] >= score:
                            break
                        heap[i] = heap[child]
                        i, child = child, 2 * child + 1
                else:
                    i = n  # rises above all that are higher
                    n += 1
                    while i > 0 and heap[(i - 1) // 2] > score:
                        heap[i] = heap[(i - 1) // 2]
                        i = (i - 1) // 2
                heap[i] = score
            lowest = heap[0] if n == k else np.float32(-np.inf)
            above, equal = 0, 0
            for row in range(offsets[b], offsets[b + 1]):
                above += scores[row] > lowest
                equal += scores[row] == lowest
            left_out = equal - (n - above)  # of the rows with the lowest score, the first ones
            n = 0
            for row in range(offsets[b], offsets[b + 1]):
                if scores[row] > lowest or (scores[row] == lowest and left_out <= 0):
                    found[b, n] = row
                    n += 1
                left_out -= scores[row] == lowest
        found[b, n:] = -1


def segment_topk_cpu(scores: Tensor, offsets: Tensor, k: int) -> Tensor:
    """``segment_topk`` for float32 on the CPU."""
    found = torch.empty(offsets.numel() - 1, k, dtype=torch.int64)
    bounds = segment_blocks(offsets, scores.shape[0])
    arrays = (x.contiguous().numpy() for x in (bounds, offsets, scores, found))
    parallel_rows(_topk, bounds.numel() - 1, *arrays)
    return found
