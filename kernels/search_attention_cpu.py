"""CPU path of ``search_attention``: one compiled loop over samples forward, one backward.

Queries of a sample are A rows of E columns that stay in the first-level cache while its chosen keys pass by once for
the products and once more for the sums.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .threads import jit, parallel_rows
from .tile_products import FAST, width

_GRAIN = 64  # samples below which a second thread does not pay


@jit(fastmath=FAST)
def _knot(gap: np.float32, knots: int) -> Any:
    """The knot below a gap, and how far the gap lies above it, 0 to 1."""
    at = min(max(gap, np.float32(0)), np.float32(knots - 1))
    low = min(int(at), knots - 2)
    return low, np.float32(at - low)


@jit(fastmath=FAST)
def _product(Ds: Any, knots: int, x: Any, keys: Any, gaps: Any, row: int) -> np.float32:
    """x . z of a visit, x [D + G K]."""
    D = len(Ds)
    out = np.float32(0)
    for d in range(D):
        out += x[d] * keys[row, d]
    for g in range(gaps.shape[1]):
        low, part = _knot(gaps[row, g], knots)
        i = D + g * knots + low
        out += x[i] + part * (x[i + 1] - x[i])
    return out


@jit(fastmath=FAST)
def _add(Ds: Any, knots: int, w: np.float32, keys: Any, gaps: Any, row: int, out: Any) -> None:
    """out += w z of a visit, out [D + G K]."""
    D = len(Ds)
    for d in range(D):
        out[d] += w * keys[row, d]
    for g in range(gaps.shape[1]):
        low, part = _knot(gaps[row, g], knots)
        i = D + g * knots + low
        out[i] += w * (np.float32(1) - part)
        out[i + 1] += w * part


@jit(fastmath=FAST)
def _attend(
    start: int, stop: int, Ds: Any, knots: int, queries: Any, keys: Any, gaps: Any, rows: Any, weights: Any, pooled: Any
) -> None:
    A, k = queries.shape[1], rows.shape[1]
    for b in range(start, stop):
        n = 0
        while n < k and rows[b, n] >= 0:
            for a in range(A):
                weights[b, n, a] = _product(Ds, knots, queries[b, a], keys, gaps, rows[b, n])
            n += 1
        for a in range(A):
            top, total = np.float32(-np.inf), np.float32(0)
            for f in range(n):
                top = max(top, weights[b, f, a])
            for f in range(n):
                weights[b, f, a] = np.exp(weights[b, f, a] - top)
                total += weights[b, f, a]
            for f in range(n):
                weights[b, f, a] /= total
        pooled[b] = 0
        for f in range(n):
            for a in range(A):
                _add(Ds, knots, weights[b, f, a], keys, gaps, rows[b, f], pooled[b, a])


@jit(fastmath=FAST)
def _attend_back(
    start: int, stop: int, Ds: Any, knots: int, grad: Any, queries: Any, keys: Any, gaps: Any, rows: Any, weights: Any,
    of_queries: Any, of_keys: Any, of_gaps: Any,
) -> None:  # fmt: skip
    D, A, k = len(Ds), queries.shape[1], rows.shape[1]
    of_weights, shared = np.empty((k, A), np.float32), np.empty(A, np.float32)
    for b in range(start, stop):
        n = 0
        shared[:] = 0
        while n < k and rows[b, n] >= 0:
            for a in range(A):
                of_weights[n, a] = _product(Ds, knots, grad[b, a], keys, gaps, rows[b, n])
                shared[a] += weights[b, n, a] * of_weights[n, a]
            n += 1
        of_queries[b] = 0
        for f in range(n):
            row = rows[b, f]
            for a in range(A):
                w = weights[b, f, a]
                of_logit = w * (of_weights[f, a] - shared[a])
                _add(Ds, knots, of_logit, keys, gaps, row, of_queries[b, a])
                for d in range(D):
                    of_keys[row, d] += w * grad[b, a, d] + of_logit * queries[b, a, d]
                if of_gaps.shape[0] > 0:
                    for g in range(gaps.shape[1]):
                        if gaps[row, g] > 0 and gaps[row, g] < knots - 1:
                            i = D + g * knots + _knot(gaps[row, g], knots)[0]
                            of_gaps[row, g] += w * (grad[b, a, i + 1] - grad[b, a, i])
                            of_gaps[row, g] += of_logit * (queries[b, a, i + 1] - queries[b, a, i])


def _numpy(x: Tensor) -> Any:
    return x.detach().contiguous().numpy()


def search_attention_cpu(queries: Tensor, keys: Tensor, gaps: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The forward of ``search_attention`` for float32 on the CPU, and the weights [B, k, A]."""
    B, A, E = queries.shape
    D, G = keys.shape[1], gaps.shape[1]
    weights, pooled = queries.new_empty(*rows.shape, A), queries.new_empty(B, A, E)
    arrays = (_numpy(x) for x in (queries, keys, gaps, rows, weights, pooled))
    parallel_rows(_attend, B, width(D), (E - D) // G, *arrays, grain=_GRAIN)
    return pooled, weights


def search_attention_backward_cpu(
    grad: Tensor, queries: Tensor, keys: Tensor, gaps: Tensor, rows: Tensor, weights: Tensor, want_gaps: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Its backward: gradients of queries, keys and gaps ([0, G] if not wanted)."""
    D, G = keys.shape[1], gaps.shape[1]
    of_queries, of_keys = torch.empty(queries.shape), torch.zeros(keys.shape)
    of_gaps = torch.zeros(len(gaps) if want_gaps else 0, G)
    arrays = (_numpy(x) for x in (grad, queries, keys, gaps, rows, weights, of_queries, of_keys, of_gaps))
    parallel_rows(_attend_back, queries.shape[0], width(D), (queries.shape[2] - D) // G, *arrays, grain=_GRAIN)
    return of_queries, of_keys, of_gaps
