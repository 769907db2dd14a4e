"""CPU path of ``gru``: compiled loops over tiles of samples of about equal length, a step of all of them at a time.

Samples are sorted by length and cut into tiles of 16; at each step the tile's samples that are that long are its first.
A tile's state, gates and the weights stay in the caches. Threads draw blocks of tiles with about equally many visits,
the longest first. The gradients of weight and bias are kept by block and added at the end, so a result does not depend
on which thread took which block.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dice_cpu import sigmoid
from .threads import inlined, jit, run_on_workers
from .tile_products import FAST, outer, times, width

_TILE = 16  # samples a tile
_BLOCK = 1024  # visits a block, at least
_BLOCKS = 64  # blocks, at most: each has a gradient of the weights of its own
_ONE, _TWO = np.float32(1), np.float32(2)


@inlined(fastmath=FAST)
def _active(order: Any, offsets: Any, first: int, n: int, t: int) -> int:
    """How many of samples order[first:first+n], longest first, have a visit t."""
    while n > 0 and offsets[order[first + n - 1] + 1] - offsets[order[first + n - 1]] <= t:
        n -= 1
    return n


@jit(fastmath=FAST)
def _forward(
    first: int, last: int, Hs: Any, H3s: Any, order: Any, offsets: Any, x: Any, weight: Any, bias: Any, attention: Any,
    states: Any,
) -> None:  # fmt: skip
    """Samples order[first:last]; weight [H, 3 H]."""
    H, attended = len(Hs), len(attention) > 0
    h, hidden = np.empty((_TILE, H), np.float32), np.empty((_TILE, 3 * H), np.float32)
    for tile in range(first, last, _TILE):
        n, t = min(_TILE, last - tile), 0
        h[:] = 0
        n = _active(order, offsets, tile, n, t)
        while n > 0:
            for s in range(n):
                for j in range(3 * H):
                    hidden[s, j] = bias[j]
            times(Hs, H3s, h, 0, n, weight, hidden, 0)
            for s in range(n):
                row = offsets[order[tile + s]] + t
                a = attention[row] if attended else _ONE
                for j in range(H):
                    r = sigmoid(x[row, j] + hidden[s, j])
                    u = sigmoid(x[row, H + j] + hidden[s, H + j])
                    y = _TWO * sigmoid(_TWO * (x[row, 2 * H + j] + r * hidden[s, 2 * H + j])) - _ONE
                    h[s, j] += a * u * (y - h[s, j])
                for j in range(H):
                    states[row, j] = h[s, j]
            t += 1
            n = _active(order, offsets, tile, n, t)


@jit(fastmath=FAST)
def _back(
    first: int, last: int, Hs: Any, H3s: Any, order: Any, offsets: Any, x: Any, weight_t: Any, weight: Any, bias: Any,
    attention: Any, states: Any, grad: Any, of_x: Any, of_attention: Any, of_weight: Any, of_bias: Any,
) -> None:  # fmt: skip
    """Samples order[first:last]; weight_t [H, 3 H], weight [3 H, H], of_weight [3 H, H], of_bias [3 H]."""
    H, attended = len(Hs), len(attention) > 0
    h, dh = np.empty((_TILE, H), np.float32), np.empty((_TILE, H), np.float32)
    hidden, of_hidden = np.empty((_TILE, 3 * H), np.float32), np.empty((_TILE, 3 * H), np.float32)
    for tile in range(first, last, _TILE):
        size = min(_TILE, last - tile)
        longest = offsets[order[tile] + 1] - offsets[order[tile]]
        n = 0
        for t in range(longest - 1, -1, -1):
            while n < size and offsets[order[tile + n] + 1] - offsets[order[tile + n]] > t:
                dh[n] = 0
                n += 1
            for s in range(n):
                row = offsets[order[tile + s]] + t
                for j in range(H):
                    h[s, j] = states[row - 1, j] if t > 0 else np.float32(0)
                for j in range(3 * H):
                    hidden[s, j] = bias[j]
            times(Hs, H3s, h, 0, n, weight_t, hidden, 0)
            for s in range(n):
                row = offsets[order[tile + s]] + t
                a = attention[row] if attended else _ONE
                of_a = np.float32(0)
                for j in range(H):
                    g = hidden[s, 2 * H + j]
                    r = sigmoid(x[row, j] + hidden[s, j])
                    u = sigmoid(x[row, H + j] + hidden[s, H + j])
                    y = _TWO * sigmoid(_TWO * (x[row, 2 * H + j] + r * g)) - _ONE
                    up = dh[s, j] + grad[row, j]
                    v = a * u
                    dy = up * v * (_ONE - y * y)
                    dv = up * (y - h[s, j])
                    of_a += dv * u
                    of_hidden[s, j] = dy * g * r * (_ONE - r)
                    of_hidden[s, H + j] = dv * v * (_ONE - u)
                    of_hidden[s, 2 * H + j] = dy * r
                    of_x[row, 2 * H + j] = dy
                    dh[s, j] = up * (_ONE - v)
                for j in range(2 * H):
                    of_x[row, j] = of_hidden[s, j]
                for j in range(3 * H):
                    of_bias[j] += of_hidden[s, j]
                if attended:
                    of_attention[row] = of_a
            times(H3s, Hs, of_hidden, 0, n, weight, dh, 0)
            outer(H3s, Hs, of_hidden, 0, n, h, 0, of_weight)


def _plan(offsets: Tensor) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Samples by length, longest first, and blocks of whole tiles of them as (block, first, last)."""
    order = offsets.diff().argsort(descending=True, stable=True)
    lengths, total = offsets.diff()[order], int(offsets[-1])
    tiles = torch.arange(0, order.numel(), _TILE)
    block = (lengths.cumsum(0) - lengths)[tiles] // max(_BLOCK, -(-total // _BLOCKS))
    starts = tiles[torch.cat([block[:1] >= 0, block.diff() > 0])].tolist()
    return order, [(i, *cut) for i, cut in enumerate(pairwise([*starts, order.numel()]))]


def _numpy(x: Tensor) -> Any:
    return x.detach().contiguous().numpy()


def gru_cpu(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, attention: Tensor) -> Tensor:
    """``placerank::gru`` for float32 on the CPU."""
    H = weight.shape[1]
    order, blocks = _plan(offsets)
    states = x.new_empty(x.shape[0], H)
    inputs = tuple(_numpy(v) for v in (order, offsets, x, weight.t(), bias, attention))
    out, widths = states.numpy(), (width(H), width(3 * H))

    loop: Any = _forward

    def work(todo: Iterator[tuple[int, int, int]]) -> None:
        for _, first, last in todo:
            loop(first, last, *widths, *inputs, out)

    run_on_workers(work, iter(blocks), most=len(blocks))
    return states


def gru_backward_cpu(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, attention: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``placerank::gru_backward`` for float32 on the CPU."""
    H = weight.shape[1]
    order, blocks = _plan(offsets)
    of_x, of_attention = x.new_empty(x.shape), attention.new_empty(attention.shape)
    of_weight, of_bias = weight.new_zeros(len(blocks), 3 * H, H), weight.new_zeros(len(blocks), 3 * H)
    inputs = tuple(_numpy(v) for v in (order, offsets, x, weight.t(), weight, bias, attention, states, grad))
    outputs, widths = (of_x.numpy(), of_attention.numpy()), (width(H), width(3 * H))

    loop: Any = _back

    def work(todo: Iterator[tuple[int, int, int]]) -> None:
        for i, first, last in todo:
            loop(first, last, *widths, *inputs, *outputs, of_weight[i].numpy(), of_bias[i].numpy())

    run_on_workers(work, iter(blocks), most=len(blocks))
    return of_x, of_weight.sum(dim=0), of_bias.sum(dim=0), of_attention
