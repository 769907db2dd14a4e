"""CPU loops over jagged rows, and how they are shared among threads."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .threads import inlined, jit, parallel_rows
from .tile_products import FAST, width

_BLOCK = 1024  # rows a block, at least
_BLOCKS = 64  # blocks, at most


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
    for b in range(bounds[start], bounds[stop]):
        shift = starts[b] - offsets[b]
        for row in range(offsets[b], offsets[b + 1]):
            x = np.float32(0)
            for d in range(len(Ds)):
                x += values[row + shift, d] * vectors[b, d]
            out[row] = x


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


@inlined()
def _worse(heap: Any, rows: Any, i: int, j: int) -> bool:
    return heap[i] < heap[j] or (heap[i] == heap[j] and rows[i] < rows[j])


@jit()
def _topk(start: int, stop: int, bounds: Any, offsets: Any, scores: Any, found: Any) -> None:
    """Where not all can be taken: a heap of the k best so far, the worst on top.

    Rows come latest first, so that each new one is worse than those of the same score.
    """
    k = found.shape[1]
    heap, rows = np.empty(k, np.float32), np.empty(k, np.int64)
    for b in range(bounds[start], bounds[stop]):
        n = 0
        if offsets[b + 1] - offsets[b] <= k:
            for row in range(offsets[b], offsets[b + 1]):
                if scores[row] > -np.inf:
                    found[b, n] = row
                    n += 1
        else:
            for row in range(offsets[b + 1] - 1, offsets[b] - 1, -1):
                score = scores[row]
                if not score > (heap[0] if n == k else -np.inf):
                    continue
                if n == k:
                    i, child = 0, 1  # sinks from the top below all that are worse
                    while child < k:
                        if child + 1 < k and _worse(heap, rows, child + 1, child):
                            child += 1
                        if heap[child] >= score:
                            break
                        heap[i], rows[i] = heap[child], rows[child]
                        i, child = child, 2 * child + 1
                else:
                    i = n  # rises above all that are better
                    n += 1
                    while i > 0 and heap[(i - 1) // 2] >= score:
                        heap[i], rows[i] = heap[(i - 1) // 2], rows[(i - 1) // 2]
                        i = (i - 1) // 2
                heap[i], rows[i] = score, row
            found[b, :n] = np.sort(rows[:n])
        found[b, n:] = -1


def segment_topk_cpu(scores: Tensor, offsets: Tensor, k: int) -> Tensor:
    """``segment_topk`` for float32 on the CPU."""
    found = torch.empty(offsets.numel() - 1, k, dtype=torch.int64)
    bounds = segment_blocks(offsets, scores.shape[0])
    arrays = (x.contiguous().numpy() for x in (bounds, offsets, scores, found))
    parallel_rows(_topk, bounds.numel() - 1, *arrays)
    return found
