"""Products of small matrices inside compiled loops, on tiles that stay in the first-level cache.

Widths come in as tuples, made by ``width``: a tuple's length is part of its type, so it is a constant of the compiled
code, vectors stay in registers, and numba still keeps what it compiled on disk. 70 to 115 GFLOP/s a core were seen on
tiles of 32 rows of 16 to 48 columns (AVX-512).
"""

from typing import Any

from .threads import inlined

FAST = {"reassoc", "contract", "nsz"}
"""Sums in any order; NaN and infinity stay what they are."""


def width(columns: int) -> tuple[None, ...]:
    """A number of columns as the loops take it."""
    return (None,) * columns


@inlined(fastmath=FAST)
def times(Ks: Any, Hs: Any, x: Any, i: int, n: int, w: Any, out: Any, o: int) -> None:
    """out[o:o+n] += x[i:i+n] @ w for x [., K], w [K, H], out [., H]."""
    K, H = len(Ks), len(Hs)
    K4, n4 = K - K % 4, n - n % 4
    for row in range(i, i + n4, 4):  # four rows of x by four of w: each vector of w that is loaded is used four times
        y = row - i + o
        for k in range(0, K4, 4):
            a0, a1, a2, a3 = x[row, k], x[row, k + 1], x[row, k + 2], x[row, k + 3]
            b0, b1, b2, b3 = x[row + 1, k], x[row + 1, k + 1], x[row + 1, k + 2], x[row + 1, k + 3]
            c0, c1, c2, c3 = x[row + 2, k], x[row + 2, k + 1], x[row + 2, k + 2], x[row + 2, k + 3]
            d0, d1, d2, d3 = x[row + 3, k], x[row + 3, k + 1], x[row + 3, k + 2], x[row + 3, k + 3]
            for h in range(H):
                w0, w1, w2, w3 = w[k, h], w[k + 1, h], w[k + 2, h], w[k + 3, h]
                out[y, h] += a0 * w0 + a1 * w1 + a2 * w2 + a3 * w3
                out[y + 1, h] += b0 * w0 + b1 * w1 + b2 * w2 + b3 * w3
                out[y + 2, h] += c0 * w0 + c1 * w1 + c2 * w2 + c3 * w3
                out[y + 3, h] += d0 * w0 + d1 * w1 + d2 * w2 + d3 * w3
    for row in range(n4, n):
        for k in range(0, K4, 4):
            a, b, c, d = x[i + row, k], x[i + row, k + 1], x[i + row, k + 2], x[i + row, k + 3]
            for h in range(H):
                out[o + row, h] += a * w[k, h] + b * w[k + 1, h] + c * w[k + 2, h] + d * w[k + 3, h]
    for row in range(n if K4 < K else 0):
        for h in range(H):
            x_w = out[o + row, h]
            for k in range(K4, K):
                x_w += x[i + row, k] * w[k, h]
            out[o + row, h] = x_w


@inlined(fastmath=FAST)
def outer(Ks: Any, Hs: Any, x: Any, i: int, n: int, y: Any, o: int, out: Any) -> None:
    """out += x[i:i+n].T @ y[o:o+n] for x [., K], y [., H], out [K, H]."""
    K, H = len(Ks), len(Hs)
    n4 = n - n % 4
    for row in range(0, n4, 4):
        for k in range(K):
            a, b, c, d = x[i + row, k], x[i + row + 1, k], x[i + row + 2, k], x[i + row + 3, k]
            for h in range(H):
                out[k, h] += a * y[o + row, h] + b * y[o + row + 1, h] + c * y[o + row + 2, h] + d * y[o + row + 3, h]
    for row in range(n4, n):
        for k in range(K):
            a = x[i + row, k]
            for h in range(H):
                out[k, h] += a * y[o + row, h]
