"""Products of small matrices inside compiled loops, on tiles that stay in the first-level cache.

Widths come in as tuples, made by ``width``: a tuple's length is part of its type, so it is a constant of the compiled
code, and numba still keeps what it compiled on disk. Four rows of a product and 16 of its columns are summed at a time,
in registers; columns beyond a multiple of 16 are slower.
"""

from typing import Any

from .threads import inlined
from .vectors import LANES, add_product, load, store

FAST = {"reassoc", "contract", "nsz"}
"""Sums in any order; NaN and infinity stay what they are."""


def width(columns: int) -> tuple[None, ...]:
    """A number of columns as the loops take it."""
    return (None,) * columns


@inlined(fastmath=FAST)
def times(Ks: Any, Hs: Any, x: Any, i: int, n: int, w: Any, out: Any, o: int) -> None:
    """out[o:o+n] += x[i:i+n] @ w for contiguous float32 x [., K], w [K, H], out [., H]."""
    K, H = len(Ks), len(Hs)
    whole = H - H % LANES
    for h in range(0, whole, LANES):
        for a in range(0, n, 4):  # where rows are no multiple of 4, the last is computed again for those that lack
            b, c, d = min(a + 1, n - 1), min(a + 2, n - 1), min(a + 3, n - 1)
            of_a, of_b, of_c, of_d = load(out, o + a, h), load(out, o + b, h), load(out, o + c, h), load(out, o + d, h)
            for k in range(K):
                w_k = load(w, k, h)
                of_a = add_product(of_a, x[i + a, k], w_k)
                of_b = add_product(of_b, x[i + b, k], w_k)
                of_c = add_product(of_c, x[i + c, k], w_k)
                of_d = add_product(of_d, x[i + d, k], w_k)
            store(out, o + a, h, of_a)
            store(out, o + b, h, of_b)
            store(out, o + c, h, of_c)
            store(out, o + d, h, of_d)
    K4 = K - K % 4
    for row in range(n if whole < H else 0):
        for k in range(0, K4, 4):
            x0, x1, x2, x3 = x[i + row, k], x[i + row, k + 1], x[i + row, k + 2], x[i + row, k + 3]
            for h in range(whole, H):
                out[o + row, h] += x0 * w[k, h] + x1 * w[k + 1, h] + x2 * w[k + 2, h] + x3 * w[k + 3, h]
        for k in range(K4, K):
            x0 = x[i + row, k]
            for h in range(whole, H):
                out[o + row, h] += x0 * w[k, h]


@inlined(fastmath=FAST)
def outer(Ks: Any, Hs: Any, x: Any, i: int, n: int, y: Any, o: int, out: Any) -> None:
    """out += x[i:i+n].T @ y[o:o+n] for contiguous float32 x [., K], y [., H], out [K, H]."""
    K, H = len(Ks), len(Hs)
    whole = H - H % LANES
    for h in range(0, whole, LANES):
        for a in range(0, K, 4):  # as above
            b, c, d = min(a + 1, K - 1), min(a + 2, K - 1), min(a + 3, K - 1)
            of_a, of_b, of_c, of_d = load(out, a, h), load(out, b, h), load(out, c, h), load(out, d, h)
            for row in range(n):
                y_row = load(y, o + row, h)
                of_a = add_product(of_a, x[i + row, a], y_row)
                of_b = add_product(of_b, x[i + row, b], y_row)
                of_c = add_product(of_c, x[i + row, c], y_row)
                of_d = add_product(of_d, x[i + row, d], y_row)
            store(out, a, h, of_a)
            store(out, b, h, of_b)
            store(out, c, h, of_c)
            store(out, d, h, of_d)
    for row in range(n if whole < H else 0):
        for k in range(K):
            x_k = x[i + row, k]
            for h in range(whole, H):
                out[k, h] += x_k * y[o + row, h]
