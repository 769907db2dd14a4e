"""CPU path of ``search_attention``: one compiled loop over samples forward, and one backward.

A sample's queries are laid out once so that everything in the loop over its visits is as wide as a vector: four heads
share each load of a key, a knot's numbers lie side by side by head, and so do a visit's weights. Keys are read where
they lie, and of a gap's hats the two that are not 0.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dice_cpu import exp
from .threads import inlined, jit, parallel_rows
from .tile_products import FAST, width
from .vectors import LANES, add_product, load, store

_HEADS = 4  # that share a load
_GRAIN = 64  # samples below which a second thread does not pay


@inlined()
def _split(Ds: Any, x: Any, first: int, heads: int, of_key: Any, of_hats: Any) -> None:
    """Rows x[first : first + heads] as of_key [A, D] and, head by head side by side, of_hats [G K, A]."""
    D = len(Ds)
    for a in range(heads):
        for d in range(D):
            of_key[a, d] = x[first + a, d]
        for i in range(len(of_hats)):
            of_hats[i, a] = x[first + a, D + i]


@inlined()
def _join(Ds: Any, of_key: Any, of_hats: Any, heads: int, x: Any, first: int) -> None:
    """The reverse of ``_split``."""
    D = len(Ds)
    for a in range(heads):
        for d in range(D):
            x[first + a, d] = of_key[a, d]
        for i in range(len(of_hats)):
            x[first + a, D + i] = of_hats[i, a]


@inlined()
def _hat(gap: Any, knots: int) -> Any:
    """The knot below a gap, and the weight of the one above."""
    at = min(max(gap, np.float32(0)), np.float32(knots - 1))
    low = max(0, min(int(at), knots - 2))  # NaN becomes any integer
    return low, np.float32(at - np.float32(low))


@jit(fastmath=FAST)
def _interpolate(start: int, stop: int, gaps: Any, table: Any, out: Any) -> None:
    knots = table.shape[1]
    for row in range(start, stop):
        total = np.float32(0)
        for g in range(gaps.shape[1]):
            low, part = _hat(gaps[row, g], knots)
            total += table[g, low] + part * (table[g, low + 1] - table[g, low])
            if gaps[row, g] != gaps[row, g]:
                total = np.float32(np.nan)
        out[row] = total


@inlined(fastmath=FAST)
def _products(
    Ds: Any,
    As: Any,
    knots: int,
    of_key: Any,
    of_hats: Any,
    keys: Any,
    gaps: Any,
    rows: Any,
    b: int,
    shift: int,
    out: Any,
) -> int:
    """out[t, a] = z_t . x_a for the sample's visits; how many there are."""
    n = 0
    while n < rows.shape[1] and rows[b, n] >= 0:
        row = rows[b, n]
        key = row + shift
        for a in range(0, len(As), _HEADS):
            s0 = s1 = s2 = s3 = np.float32(0)
            for d in range(len(Ds)):
                k = keys[key, d]
                s0 += of_key[a, d] * k
                s1 += of_key[a + 1, d] * k
                s2 += of_key[a + 2, d] * k
                s3 += of_key[a + 3, d] * k
            out[n, a], out[n, a + 1], out[n, a + 2], out[n, a + 3] = s0, s1, s2, s3
        for g in range(gaps.shape[1]):
            low, part = _hat(gaps[row, g], knots)
            i = g * knots + low
            for a in range(len(As)):
                out[n, a] += (1 - part) * of_hats[i, a] + part * of_hats[i + 1, a]
        n += 1
    return n


@inlined(fastmath=FAST)
def _sums(
    Ds: Any, As: Any, knots: int, w: Any, keys: Any, gaps: Any, rows: Any, b: int, shift: int, n: int, of_key: Any,
    of_hats: Any,
) -> None:  # fmt: skip
    """of_key, of_hats = sum of w[t, a] z_t over the sample's n visits."""
    of_key[:] = 0
    of_hats[:] = 0
    whole = len(Ds) - len(Ds) % LANES
    for d in range(0, whole, LANES):
        for a in range(0, len(As), _HEADS):
            sum0, sum1, sum2, sum3 = (
                load(of_key, a, d), load(of_key, a + 1, d), load(of_key, a + 2, d), load(of_key, a + 3, d)
            )  # fmt: skip
            for t in range(n):
                key = load(keys, rows[b, t] + shift, d)
                sum0 = add_product(sum0, w[t, a], key)
                sum1 = add_product(sum1, w[t, a + 1], key)
                sum2 = add_product(sum2, w[t, a + 2], key)
                sum3 = add_product(sum3, w[t, a + 3], key)
            store(of_key, a, d, sum0)
            store(of_key, a + 1, d, sum1)
            store(of_key, a + 2, d, sum2)
            store(of_key, a + 3, d, sum3)
    for t in range(n if whole < len(Ds) else 0):
        row = rows[b, t] + shift
        for a in range(len(As)):
            for d in range(whole, len(Ds)):
                of_key[a, d] += w[t, a] * keys[row, d]
    for t in range(n):
        for g in range(gaps.shape[1]):
            low, part = _hat(gaps[rows[b, t], g], knots)
            i = g * knots + low
            for a in range(len(As)):
                of_hats[i, a] += (1 - part) * w[t, a]
                of_hats[i + 1, a] += part * w[t, a]


@inlined(fastmath=FAST)
def _softmax(As: Any, x: Any, n: int, top: Any, total: Any) -> None:
    """x[t, a] over the first n visits t and a 0, in place; total[a] = log(1 + sum of exp(x))."""
    for a in range(len(As)):
        top[a] = 0
    for t in range(n):
        for a in range(len(As)):
            top[a] = max(top[a], x[t, a])
    for a in range(len(As)):
        total[a] = exp(-top[a])
    for t in range(n):
        for a in range(len(As)):
            x[t, a] = exp(x[t, a] - top[a])
    for t in range(n):
        for a in range(len(As)):
            total[a] += x[t, a]
    for t in range(n):
        for a in range(len(As)):
            x[t, a] /= total[a]
    for a in range(len(As)):
        total[a] = top[a] + np.log(total[a])


@jit(fastmath=FAST)
def _attend(
    start: int, stop: int, Ds: Any, As: Any, A: int, knots: int, shifts: Any, queries: Any, keys: Any, gaps: Any,
    rows: Any, weights: Any, pooled: Any, log_total: Any,
) -> None:  # fmt: skip
    """queries, pooled [B A, E]; weights [B, k, A of As]; log_total [B, A]."""
    of_key, of_hats = np.zeros((len(As), len(Ds)), np.float32), np.zeros((gaps.shape[1] * knots, len(As)), np.float32)
    sum_key, sum_hats = np.empty_like(of_key), np.empty_like(of_hats)
    top, total = np.empty(len(As), np.float32), np.empty(len(As), np.float32)
    for b in range(start, stop):
        _split(Ds, queries, b * A, A, of_key, of_hats)
        n = _products(Ds, As, knots, of_key, of_hats, keys, gaps, rows, b, shifts[b], weights[b])
        _softmax(As, weights[b], n, top, total)
        for a in range(A):
            log_total[b, a] = total[a]
        _sums(Ds, As, knots, weights[b], keys, gaps, rows, b, shifts[b], n, sum_key, sum_hats)
        _join(Ds, sum_key, sum_hats, A, pooled, b * A)


@jit(fastmath=FAST)
def _attend_back(
    start: int, stop: int, Ds: Any, As: Any, A: int, knots: int, bounds: Any, shifts: Any, shared_keys: bool,
    of_total: Any, grad: Any, queries: Any, keys: Any, gaps: Any, rows: Any, weights: Any, of_queries: Any,
    of_keys: Any, of_gaps: Any,
) -> None:  # fmt: skip
    """grad, queries, of_queries [B A, E]; of_total [B, A]; weights as ``_attend`` left them.

    Samples bounds[i] to bounds[i+1] may share keys, others not; of_keys are zeros if any do.
    """
    G, heads = gaps.shape[1], len(As)
    q, q_hats = np.zeros((heads, len(Ds)), np.float32), np.zeros((G * knots, heads), np.float32)
    g, g_hats = np.zeros_like(q), np.zeros_like(q_hats)
    sum_key, sum_hats = np.empty_like(q), np.empty_like(q_hats)
    dx, shared = np.empty((rows.shape[1], heads), np.float32), np.zeros(heads, np.float32)
    for b in range(bounds[start], bounds[stop]):
        w, shift = weights[b], shifts[b]
        _split(Ds, queries, b * A, A, q, q_hats)
        _split(Ds, grad, b * A, A, g, g_hats)
        n = _products(Ds, As, knots, g, g_hats, keys, gaps, rows, b, shift, dx)
        shared[:] = 0  # heads that only fill up the group too: what a NaN left there must not reach the next sample
        for a in range(A):
            shared[a] = -of_total[b, a]  # d log_total / d logit is the weight
        for t in range(n):
            for a in range(heads):
                shared[a] += w[t, a] * dx[t, a]
        for t in range(n):
            for a in range(heads):
                dx[t, a] = w[t, a] * (dx[t, a] - shared[a])
        _sums(Ds, As, knots, dx, keys, gaps, rows, b, shift, n, sum_key, sum_hats)
        _join(Ds, sum_key, sum_hats, A, of_queries, b * A)
        for t in range(n):
            row = rows[b, t]
            key = row + shift
            for d in range(0 if shared_keys else len(Ds)):
                of_keys[key, d] = 0
            for a in range(0, heads, _HEADS):
                w0, w1, w2, w3 = w[t, a], w[t, a + 1], w[t, a + 2], w[t, a + 3]
                x0, x1, x2, x3 = dx[t, a], dx[t, a + 1], dx[t, a + 2], dx[t, a + 3]
                for d in range(len(Ds)):
                    by_w = w0 * g[a, d] + w1 * g[a + 1, d] + w2 * g[a + 2, d] + w3 * g[a + 3, d]
                    by_x = x0 * q[a, d] + x1 * q[a + 1, d] + x2 * q[a + 2, d] + x3 * q[a + 3, d]
                    of_keys[key, d] += by_w + by_x
            for j in range(G if len(of_gaps) > 0 else 0):
                if gaps[row, j] > 0 and gaps[row, j] < knots - 1:
                    i = j * knots + min(int(gaps[row, j]), knots - 2)
                    for a in range(heads):
                        of_gaps[row, j] += w[t, a] * (g_hats[i + 1, a] - g_hats[i, a])
                        of_gaps[row, j] += dx[t, a] * (q_hats[i + 1, a] - q_hats[i, a])


def _numpy(x: Tensor) -> Any:
    return x.detach().contiguous().numpy()


def interpolate_cpu(gaps: Tensor, table: Tensor) -> Tensor:
    """``interpolate`` for float32 on the CPU, without a gradient."""
    out = gaps.new_empty(gaps.shape[0])
    parallel_rows(_interpolate, len(out), *(_numpy(x) for x in (gaps, table)), out.numpy(), grain=_GRAIN * _GRAIN)
    return out


def weights_shape(queries: Tensor, rows: Tensor) -> tuple[int, int, int]:
    """Of the weights that the forward leaves for the backward: [B, k, A], A rounded up to whole groups of heads."""
    return queries.shape[0], rows.shape[1], -(-queries.shape[1] // _HEADS) * _HEADS


def search_attention_cpu(
    queries: Tensor, keys: Tensor, gaps: Tensor, rows: Tensor, shifts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward of ``search_attention`` for float32 on the CPU, and its weights, for the backward."""
    B, A, E = queries.shape
    D, G = keys.shape[1], gaps.shape[1]
    weights, pooled = queries.new_empty(weights_shape(queries, rows)), queries.new_empty(B * A, E)
    log_total = queries.new_empty(B, A)
    shifts = torch.zeros(B, dtype=torch.int64) if shifts is None else shifts
    arrays = (_numpy(x) for x in (shifts, queries.reshape(B * A, E), keys, gaps, rows, weights, pooled, log_total))
    parallel_rows(_attend, B, width(D), width(weights.shape[2]), A, (E - D) // G, *arrays, grain=_GRAIN)
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
    shifts: Tensor | None,
    groups: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Its backward: gradients of queries, keys and gaps ([0, G] if not wanted)."""
    B, A, E = queries.shape
    D, G = keys.shape[1], gaps.shape[1]
    shared = groups is not None
    bounds = torch.arange(B + 1) if groups is None else groups
    shifts = torch.zeros(B, dtype=torch.int64) if shifts is None else shifts
    of_queries, of_keys = torch.empty(B * A, E), torch.empty(keys.shape)
    if shared or int((rows >= 0).sum()) < len(keys):  # else every row of of_keys is written
        of_keys.zero_()
    of_gaps = torch.zeros(len(gaps) if want_gaps else 0, G)
    rows_of_heads = of_total, grad.reshape(B * A, E), queries.reshape(B * A, E)
    arrays = (_numpy(x) for x in (*rows_of_heads, keys, gaps, rows, weights, of_queries, of_keys, of_gaps))
    sizes = width(D), width(weights.shape[2]), A, (E - D) // G
    grain = _GRAIN * (bounds.numel() - 1) // max(B, 1)
    parallel_rows(
        _attend_back, bounds.numel() - 1, *sizes, _numpy(bounds), _numpy(shifts), shared, *arrays, grain=max(grain, 1)
    )
    return of_queries.view(B, A, E), of_keys, of_gaps
