"""CPU path of ``search_attention``: a compiled loop over samples forward, and one backward.

The chosen visits of a sample are gathered into tiles of z that stay in its core's cache, so that all products are of
small matrices: A queries with a tile turned on its side, A rows of weights with a tile as it is.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dice_cpu import exp
from .threads import jit, parallel_rows
from .tile_products import FAST, times, width

_TILE = 16  # visits: half a tile is the waste of each sample
_ROWS = width(_TILE)
_GRAIN = 64  # samples below which a second thread does not pay


@jit()
def _gather(Ds: Any, knots: int, keys: Any, gaps: Any, rows: Any, b: int, t: int, z: Any, across: Any) -> int:
    """z [tile, E] of the sample's chosen visits from the t-th on, and across = z.T; how many there are."""
    D, k = len(Ds), rows.shape[1]
    n = 0
    while n < _TILE and t + n < k and rows[b, t + n] >= 0:
        row = rows[b, t + n]
        for d in range(D):
            z[n, d] = keys[row, d]
        for i in range(D, z.shape[1]):
            z[n, i] = 0
        for g in range(gaps.shape[1]):
            at = min(max(gaps[row, g], np.float32(0)), np.float32(knots - 1))
            low = min(int(at), knots - 2)
            part = np.float32(at - low)
            z[n, D + g * knots + low] = 1 - part
            z[n, D + g * knots + low + 1] = part
        n += 1
    if n > 0:
        z[n:] = 0
        for i in range(z.shape[1]):
            for r in range(_TILE):
                across[i, r] = z[r, i]
    return n


@jit(fastmath=FAST)
def _softmax(x: Any, start: int, A: int, tiles: int, n: int, log_total: Any, b: int) -> None:
    """Over the first n numbers of head a, in rows start + a, start + A + a, ... of x [., tile], and a 0; 0 after them.

    log_total [B, A]: log(1 + sum of exp(x)).
    """
    for a in range(A):
        top = np.float32(0)
        for i in range(tiles):
            for r in range(min(_TILE, n - i * _TILE)):
                top = max(top, x[start + i * A + a, r])
        total = exp(-top)
        for i in range(tiles):
            row, m = start + i * A + a, min(_TILE, n - i * _TILE)
            for r in range(_TILE):
                x[row, r] = exp(x[row, r] - top)
            for r in range(m, _TILE):
                x[row, r] = 0
            for r in range(_TILE):
                total += x[row, r]
        for i in range(tiles):
            for r in range(_TILE):
                x[start + i * A + a, r] /= total
        log_total[b, a] = top + np.log(total)


@jit(fastmath=FAST)
def _attend(
    start: int, stop: int, Ds: Any, Es: Any, A: int, knots: int, queries: Any, keys: Any, gaps: Any, rows: Any,
    weights: Any, pooled: Any, log_total: Any,
) -> None:  # fmt: skip
    """queries, pooled [B A, E]; weights [B tiles A, tile]; log_total [B, A]."""
    most = -(-rows.shape[1] // _TILE)
    z, across = np.empty((most, _TILE, len(Es)), np.float32), np.empty((len(Es), _TILE), np.float32)
    for b in range(start, stop):
        tiles, n, first = 0, 0, b * most * A
        while tiles < most:
            m = _gather(Ds, knots, keys, gaps, rows, b, n, z[tiles], across)
            if m == 0:
                break
            weights[first + tiles * A : first + (tiles + 1) * A] = 0
            times(Es, _ROWS, queries, b * A, A, across, weights, first + tiles * A)
            tiles += 1
            n += m
        _softmax(weights, first, A, tiles, n, log_total, b)
        pooled[b * A : (b + 1) * A] = 0
        for i in range(tiles):
            times(_ROWS, Es, weights, first + i * A, A, z[i], pooled, b * A)


@jit(fastmath=FAST)
def _attend_back(
    start: int, stop: int, Ds: Any, Es: Any, pairs: Any, knots: int, of_total: Any, grad: Any, queries: Any, keys: Any,
    gaps: Any, rows: Any, weights: Any, of_queries: Any, of_keys: Any, of_gaps: Any,
) -> None:  # fmt: skip
    """grad, queries [B A, E]; of_total [B, A]; pairs has length 2 A: z has gradients by weights and logits of heads."""
    D, E, A = len(Ds), len(Es), len(pairs) // 2
    most = -(-rows.shape[1] // _TILE)
    z, across = np.empty((most, _TILE, E), np.float32), np.empty((E, _TILE), np.float32)
    of_logits, shared = np.empty((most * A, _TILE), np.float32), np.empty(A, np.float32)
    both, vectors = np.empty((_TILE, 2 * A), np.float32), np.empty((2 * A, E), np.float32)
    of_z = np.empty((_TILE, D), np.float32)
    for b in range(start, stop):
        tiles, n, first = 0, 0, b * most * A
        shared[:] = -of_total[b]  # d log_total / d logit is the weight
        while tiles < most:
            m = _gather(Ds, knots, keys, gaps, rows, b, n, z[tiles], across)
            if m == 0:
                break
            of_logits[tiles * A : (tiles + 1) * A] = 0  # of the weights first
            times(Es, _ROWS, grad, b * A, A, across, of_logits, tiles * A)
            for a in range(A):
                for r in range(_TILE):
                    shared[a] += weights[first + tiles * A + a, r] * of_logits[tiles * A + a, r]
            tiles += 1
            n += m
        of_queries[b * A : (b + 1) * A] = 0
        vectors[:A], vectors[A:] = grad[b * A : (b + 1) * A], queries[b * A : (b + 1) * A]
        for i in range(tiles):
            for a in range(A):
                for r in range(_TILE):
                    w = weights[first + i * A + a, r]
                    of_logits[i * A + a, r] = w * (of_logits[i * A + a, r] - shared[a])
                    both[r, a], both[r, A + a] = w, of_logits[i * A + a, r]
            times(_ROWS, Es, of_logits, i * A, A, z[i], of_queries, b * A)
            of_z[:] = 0
            m = min(_TILE, n - i * _TILE)
            times(pairs, Ds, both, 0, m, vectors, of_z, 0)
            for r in range(m):
                row = rows[b, i * _TILE + r]
                for d in range(D):
                    of_keys[row, d] = of_z[r, d]
                for g in range(gaps.shape[1] if of_gaps.shape[0] > 0 else 0):
                    if gaps[row, g] > 0 and gaps[row, g] < knots - 1:
                        low = D + g * knots + min(int(gaps[row, g]), knots - 2)
                        for j in range(2 * A):
                            of_gaps[row, g] += both[r, j] * (vectors[j, low + 1] - vectors[j, low])


def _numpy(x: Tensor) -> Any:
    return x.detach().contiguous().numpy()


def weights_shape(queries: Tensor, rows: Tensor) -> tuple[int, int]:
    """Of the weights that the forward leaves for the backward: tile by tile, [B tiles A, tile]."""
    return queries.shape[0] * -(-rows.shape[1] // _TILE) * queries.shape[1], _TILE


def search_attention_cpu(queries: Tensor, keys: Tensor, gaps: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The forward of ``search_attention`` for float32 on the CPU, and its weights, for the backward."""
    B, A, E = queries.shape
    D, G = keys.shape[1], gaps.shape[1]
    weights, pooled = queries.new_empty(weights_shape(queries, rows)), queries.new_empty(B * A, E)
    log_total = queries.new_empty(B, A)
    arrays = (_numpy(x) for x in (queries.reshape(B * A, E), keys, gaps, rows, weights, pooled, log_total))
    parallel_rows(_attend, B, width(D), width(E), A, (E - D) // G, *arrays, grain=_GRAIN)
    return pooled.view(B, A, E), log_total, weights


def search_attention_backward_cpu(
    grad: Tensor,
    of_total: Tensor,
    queries: Tensor,
    keys: Tensor,
    gaps: Tensor,
    rows: Tensor,
    weights: Tensor,
    want_gaps: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Its backward: gradients of queries, keys and gaps ([0, G] if not wanted)."""
    B, A, E = queries.shape
    D, G = keys.shape[1], gaps.shape[1]
    of_queries, of_keys = torch.empty(B * A, E), torch.empty(keys.shape)
    if int((rows >= 0).sum()) < len(keys):  # else every row of of_keys is written
        of_keys.zero_()
    of_gaps = torch.zeros(len(gaps) if want_gaps else 0, G)
    rows_of_heads = of_total, grad.reshape(B * A, E), queries.reshape(B * A, E)
    arrays = (_numpy(x) for x in (*rows_of_heads, keys, gaps, rows, weights, of_queries, of_keys, of_gaps))
    parallel_rows(_attend_back, B, width(D), width(E), width(2 * A), (E - D) // G, *arrays, grain=_GRAIN)
    return of_queries.view(B, A, E), of_keys, of_gaps
