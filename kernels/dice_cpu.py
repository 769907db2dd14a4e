"""Dice inside compiled loops: rows of a tile, forward and backward, and an exp and a sigmoid that LLVM vectorises.

The rows of ``s`` are float32 [H] each: mean, 1 / standard deviation, alpha, and, for the backward, the means over all
rows of dx and dx x, where x is the normalised input and dx its gradient through the gate (zeros where mean and
deviation are running averages, which have no gradient).
"""

from typing import Any

import numpy as np

from .threads import inlined
from .tile_products import FAST

_ONE = np.float32(1)
_LIMIT = np.float32(87)  # exp of it is still a normal number
_LOG2E = np.float32(1.4426950408889634)
_ROUND = np.float32(3 << 22)  # added and taken away, it rounds to an integer, which lies in the lowest bits meanwhile
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # ln 2; the first has few bits
# exp(r) = 1 + r + r^2 p(r) for |r| <= ln(2) / 2 (Cephes' expf)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_BIAS, _MANTISSA = np.int32(127), np.int32(23)


@inlined(fastmath={"contract"})  # no "reassoc": it would undo the rounding
def exp(x: np.float32) -> np.float32:
    """exp(x) to 2e-7 of its value, from -87 to 87; beyond those its value there; NaN stays NaN.

    numba has no vector exp here, and a call of the scalar one costs as much as the rest of a loop.
    """
    y = min(max(x, -_LIMIT), _LIMIT)
    rounded = np.float32(y * _LOG2E + _ROUND)
    n = rounded - _ROUND
    r = y - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    power = np.int32((rounded.view(np.int32) + _BIAS) << _MANTISSA).view(np.float32)
    return (p * r * r + r + _ONE) * power


@inlined(fastmath={"contract"})
def sigmoid(x: np.float32) -> np.float32:
    """1 / (1 + exp(-x)), as exact as ``exp``."""
    return _ONE / (_ONE + exp(-x))


@inlined(fastmath=FAST)
def dice(Hs: Any, z: Any, i: int, n: int, s: Any, a: Any) -> None:
    """a[:n] = Dice(z[i:i+n])."""
    H = len(Hs)
    for row in range(n):
        for h in range(H):
            x = z[i + row, h]
            p = sigmoid((x - s[0, h]) * s[1, h])
            a[row, h] = x * (s[2, h] + (_ONE - s[2, h]) * p)


@inlined(fastmath=FAST)
def dice_sums(Hs: Any, z: Any, i: int, n: int, da: Any, s: Any, a: Any, sums: Any) -> None:
    """a[:n] = Dice(z[i:i+n]) again; turns da[:n], the gradient of a, into what the gradients need summed over visits.

    Adds to sums [3, H]: dx, dx x, dalpha.
    """
    H = len(Hs)
    for row in range(n):
        for h in range(H):
            v = z[i + row, h]
            x = (v - s[0, h]) * s[1, h]
            p = sigmoid(x)
            a[row, h] = v * (s[2, h] + (_ONE - s[2, h]) * p)
            up = da[row, h] * v * (_ONE - p)
            dx = up * p * (_ONE - s[2, h])
            sums[0, h] += dx
            sums[1, h] += dx * x
            sums[2, h] += up


@inlined(fastmath=FAST)
def dice_back(Hs: Any, z: Any, i: int, n: int, s: Any, da: Any, o: int) -> None:
    """Turns da[o:o+n], the gradient of Dice(z[i:i+n]), into that of z."""
    H = len(Hs)
    for row in range(n):
        for h in range(H):
            v, grad = z[i + row, h], da[o + row, h]
            x = (v - s[0, h]) * s[1, h]
            p = sigmoid(x)
            gate = s[2, h] + (_ONE - s[2, h]) * p
            dx = grad * v * (_ONE - s[2, h]) * p * (_ONE - p)
            da[o + row, h] = grad * gate + s[1, h] * (dx - s[3, h] - x * s[4, h])


@inlined(fastmath=FAST)
def moments(Hs: Any, z: Any, i: int, n: int, near: Any, tile: Any, block: Any) -> None:
    """Add rows z[i:i+n] to a block's moments [2, H]: sums of the differences from near [H] and of their squares."""
    H = len(Hs)
    tile[:] = 0
    for row in range(n):
        for h in range(H):
            x = z[i + row, h] - near[h]
            tile[0, h] += x
            tile[1, h] += x * x
    for h in range(H):
        block[0, h] += tile[0, h]
        block[1, h] += tile[1, h]
