"""Loops of ``codebook`` on the CPU.

Encoding is matrix products with a little around them, so its speed is theirs if nothing gets in the way:

* Each worker thread takes its own rows through all levels, with products of one thread, in buffers that stay in its
  own cache. Threads that share each product wait for each other twice a level and move residuals between their caches.
* Scores lie centre by row, so the running maximum is taken lane by lane: nothing is reduced across a vector, ties go
  to the lowest index by themselves, and a NaN is never larger.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .threads import jit, parallel_rows, run_on_workers

# Rows and centres of one product: 512 to 1,024 rows ran within 5 % of each other at D = 384, with residuals and scores
# about the size of a core's level-2 cache; under 384 rows the product itself slows down.
CHUNK_ROWS = 768
TILE_CENTRES = 512
MIN_WORK = 2**24  # multiplications below which a second worker does not pay: about 0.1 ms

_LANES = 256  # rows whose running maxima stay in the level-1 cache
_COLUMNS = 16  # float32 numbers in a cache line: two threads never add into the same one
_GRAIN = 2**19  # additions below which a second thread does not pay: about 0.1 ms
_STEP = 2**14  # rows of 16 bits that are widened at a time


@jit()
def _running_argmax(
    scores: np.ndarray, half_norms: np.ndarray, first: int, best: np.ndarray, codes: np.ndarray
) -> None:
    """Raise best, codes [n] to scores [k, n] - half_norms [k] of centres first, first + 1, ... where those are more."""
    centres, rows = scores.shape
    fours = centres - centres % 4
    for start in range(0, rows, _LANES):
        stop = min(start + _LANES, rows)
        values, winners = best[start:stop], codes[start:stop]
        for k in range(0, fours, 4):  # four at a time: a quarter of the loads and stores of the running maxima
            s0, s1, s2, s3 = (
                scores[k, start:stop],
                scores[k + 1, start:stop],
                scores[k + 2, start:stop],
                scores[k + 3, start:stop],
            )
            h0, h1, h2, h3 = half_norms[k], half_norms[k + 1], half_norms[k + 2], half_norms[k + 3]
            k0 = np.int32(first + k)
            k1, k2, k3 = np.int32(k0 + 1), np.int32(k0 + 2), np.int32(k0 + 3)
            for j in range(stop - start):
                value, winner = values[j], winners[j]
                s = s0[j] - h0
                better = s > value
                value, winner = (s if better else value), (k0 if better else winner)
                s = s1[j] - h1
                better = s > value
                value, winner = (s if better else value), (k1 if better else winner)
                s = s2[j] - h2
                better = s > value
                value, winner = (s if better else value), (k2 if better else winner)
                s = s3[j] - h3
                better = s > value
                value, winner = (s if better else value), (k3 if better else winner)
                values[j], winners[j] = value, winner
        for k in range(fours, centres):
            row, half_norm, this = scores[k, start:stop], half_norms[k], np.int32(first + k)
            for j in range(stop - start):
                s = row[j] - half_norm
                better = s > values[j]
                values[j] = s if better else values[j]
                winners[j] = this if better else winners[j]


@jit()
def _subtract(rows: np.ndarray, centres: np.ndarray, codes: np.ndarray) -> None:
    """rows [n, D] -= centres[codes]; a row of code -1 stays as it is."""
    for i in range(rows.shape[0]):
        if codes[i] >= 0:
            row, centre = rows[i], centres[codes[i]]
            for d in range(row.size):
                row[d] -= centre[d]


@jit(fastmath={"reassoc"})
def _norms(rows: np.ndarray, centres: np.ndarray, codes: np.ndarray, norms: np.ndarray) -> None:
    """norms [n] = |rows - centres[codes]|, as after ``_subtract``."""
    for i in range(rows.shape[0]):
        row, total = rows[i], np.float32(0)
        if codes[i] < 0:
            for d in range(row.size):
                total += row[d] * row[d]
        else:
            centre = centres[codes[i]]
            for d in range(row.size):
                total += (row[d] - centre[d]) * (row[d] - centre[d])
        norms[i] = np.sqrt(total)


def _encode_chunks(
    starts: Iterator[int],
    rows: int,
    x: Tensor,
    centres: Tensor,
    directions: Tensor,
    half_norms: Tensor,
    codes: Tensor,
    norms: Tensor,
) -> None:
    """All levels of the chunks of ``rows`` rows that this worker draws from ``starts``."""
    levels, count, dim = centres.shape
    residual = torch.empty(rows, dim)
    scores = torch.empty(min(TILE_CENTRES, count), rows)
    best, winners = np.empty(rows, np.float32), np.empty(rows, np.int32)
    for start in starts:
        chunk = x[start : start + rows]
        n = len(chunk)
        chunk = residual[:n].copy_(chunk)
        for level in range(levels):
            best.fill(-np.inf)
            winners.fill(-1)
            factor = chunk if directions.dtype == chunk.dtype else chunk.to(directions.dtype).float()
            for k in range(0, count, TILE_CENTRES):
                tile = directions[level, k : k + TILE_CENTRES].float()
                tile_scores = torch.mm(tile, factor.t(), out=scores[: len(tile), :n])
                tile_half_norms = half_norms[level, k : k + TILE_CENTRES]
                _running_argmax(tile_scores.numpy(), tile_half_norms.numpy(), k, best[:n], winners[:n])
            winners[:n][best[:n] == np.inf] = -1  # an infinite row, or products too large for float32
            codes[start : start + n, level] = torch.from_numpy(winners[:n])
            if level < levels - 1:
                _subtract(chunk.numpy(), centres[level].numpy(), winners)
            elif norms.numel():
                _norms(chunk.numpy(), centres[level].numpy(), winners, norms[start : start + n].numpy())


def residual_encode_cpu(
    x: Tensor, centres: Tensor, directions: Tensor, half_norms: Tensor, with_norms: bool
) -> tuple[Tensor, Tensor]:
    """Codes int64 [N, L] and norms of the last residual float32 [N] (empty if not asked for).

    Args:
        x: float16, bfloat16 or float32 [N, D].
        centres: float32 [L, K, D], contiguous; what is subtracted.
        directions: float32 or bfloat16 [L, K, D]; what the residual, rounded likewise, is multiplied with.
        half_norms: float32 [L, K]; subtracted from the product. +inf: never chosen.

    The largest product minus half norm wins, if it is finite. Adds ``CHUNK_ROWS * (D + TILE_CENTRES)`` numbers a thread
    to memory.
    """
    total, threads = x.shape[0], torch.get_num_threads()
    codes = torch.empty(total, centres.shape[0], dtype=torch.int64)
    norms = torch.empty(total if with_norms else 0)
    rows = max(1, min(CHUNK_ROWS, max(-(-total // threads), MIN_WORK // centres.numel()), total))
    starts = range(0, total, rows)
    draw = iter(starts)  # shared: the next chunk goes to whoever is free
    run_on_workers(_encode_chunks, draw, rows, x, centres, directions, half_norms, codes, norms, most=len(starts))
    return codes, norms


# The two loops below count in unsigned numbers: a signed index could be negative, which numba has to look at each time,
# and that keeps the additions from being vectorised. Inputs are flat for the same reason; sizes are L, K, D.


@jit()
def _sum_centres(
    start: int, stop: int, codes: np.ndarray, codebooks: np.ndarray, out: np.ndarray, sizes: tuple[int, int, int]
) -> None:
    """out[n] = sum over levels l of codebooks[l, codes[n, l]]."""
    levels, count, width = sizes[0], sizes[1], np.uint64(sizes[2])
    for n in range(start, stop):
        to = np.uint64(n) * width
        for d in range(width):
            out[to + d] = 0
        for level in range(levels):
            code = codes[n * levels + level]
            if code >= 0:
                at = np.uint64(level * count + code) * width
                for d in range(width):
                    out[to + d] += codebooks[at + d]


@jit()
def _sum_rows(
    start: int, stop: int, codes: np.ndarray, rows: np.ndarray, out: np.ndarray, sizes: tuple[int, int, int]
) -> None:
    """out[l, codes[n, l]] += rows[n], in the columns of units start .. stop."""
    levels, count, dim = sizes[0], sizes[1], np.uint64(sizes[2])
    first, last = np.uint64(start * _COLUMNS), np.uint64(min(stop * _COLUMNS, sizes[2]))
    width = last - first
    for n in range(codes.size // levels):
        at = np.uint64(n) * dim + first
        for level in range(levels):
            code = codes[n * levels + level]
            if code >= 0:
                to = np.uint64(level * count + code) * dim + first
                for d in range(width):
                    out[to + d] += rows[at + d]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float64 if tensor.dtype == torch.float64 else torch.float32).contiguous()


def residual_lookup_cpu(codes: Tensor, codebooks: Tensor) -> Tensor:
    """[N, D] in the codebooks' dtype, summed in float32 (float64 for float64)."""
    sizes = levels, count, dim = tuple(codebooks.shape)
    if codes.numel() and int(codes.max()) >= count:
        raise ValueError(f"codes: got {int(codes.max())}, expected less than K = {count}")
    table, codes = _wide(codebooks), codes.contiguous()
    out = torch.empty(len(codes), dim, dtype=codebooks.dtype)
    direct = out.dtype == table.dtype
    step = max(len(codes), 1) if direct else _STEP  # 16-bit rows by way of a small buffer
    for first in range(0, len(codes), step):
        chunk, part = codes[first : first + step], out[first : first + step]
        sums = part if direct else torch.empty(part.shape, dtype=table.dtype)
        arrays = (x.view(-1).numpy() for x in (chunk, table, sums))
        parallel_rows(_sum_centres, len(chunk), *arrays, sizes, grain=_GRAIN // (levels * dim))
        if not direct:
            part.copy_(sums)
    return out


def residual_lookup_backward_cpu(grad: Tensor, codes: Tensor, count: int) -> Tensor:
    """Gradient of the codebooks, [L, K, D] in the dtype of ``grad`` [N, D], summed in float32.

    Threads divide the columns, not the rows: nothing is sorted, nobody adds where another does, and each sum runs in
    the order of the rows whatever the number of threads.
    """
    sizes = codes.shape[1], count, grad.shape[1]
    wide, codes = torch.float64 if grad.dtype == torch.float64 else torch.float32, codes.contiguous()
    out = torch.zeros(sizes, dtype=wide)
    units = -(-grad.shape[1] // _COLUMNS)
    step = max(len(codes), 1) if grad.dtype == wide else _STEP
    for first in range(0, len(codes), step):
        chunk, rows = codes[first : first + step], _wide(grad[first : first + step])
        arrays = (x.view(-1).numpy() for x in (chunk, rows, out))
        parallel_rows(_sum_rows, units, *arrays, sizes, grain=1 + units * _GRAIN // (chunk.numel() * grad.shape[1]))
    return out.to(grad.dtype)
