"""Products of small matrices inside compiled loops, on tiles that stay in the first-level cache.

Widths come in as tuples, made by ``width``: a tuple's length is part of its type, so it is a constant of the compiled
code, vectors stay in registers, and numba still keeps what it compiled on disk. 25 to 50 GFLOP/s a core were seen on
tiles of 32 rows of 16 to 64 columns.
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
    K8 = K - K % 8
    for k in range(0, K8, 8):  # eight rows of w, used by all rows of x
        for row in range(n):
            a, b, c, d = x[i + row, k], x[i + row, k + 1], x[i + row, k + 2], x[i + row, k + 3]
            e, f, g, j = x[i + row, k + 4], x[i + row, k + 5], x[i + row, k + 6], x[i + row, k + 7]
            for h in range(H):
                low = a * w[k, h] + b * w[k + 1, h] + c * w[k + 2, h] + d * w[k + 3, h]
                high = e * w[k + 4, h] + f * w[k + 5, h] + g * w[k + 6, h] + j * w[k + 7, h]
                out[o + row, h] += low + high
    for row in range(n if K8 < K else 0):
        for h in range(H):
            x_w = out[o + row, h]
            for k in range(K8, K):
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
