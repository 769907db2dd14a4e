"""Triton paths of ``curve_keys``, ``tile_bounds`` and ``reachable_tiles``.

The first two are some 170 small operations in PyTorch, and to start them took the host longer than all else that
``hard_negatives`` did on a GPU.

How many tiles are in reach only the device knows, and to ask it is to wait. So each list has room for all tiles, and
lists are made for so many tiles at a time that they stay small.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import BITS, LAST, LEVELS, curve_table
from .variants import BIG, Variants, aligned, cdiv, launch, next_power_of_2

PAIRS = 1 << 25  # of tiles that lists have room for at once: 128 MB
BLOCK = 256
BOXES = 128  # programs that look for the box of all points, and so the boxes that each later one reads
FINITE = tl.constexpr(float("inf"))


@triton.jit
def _points(places_ptr, i, there, row, column):  # type: ignore[no-untyped-def]
    """Rows i of places [N, 3] as [BLOCK, 4], and which of them are finite; row and column: strides."""
    c = tl.arange(0, 4)
    real = there[:, None] & (c < 3)[None, :]
    points = tl.load(places_ptr + i[:, None] * row + c[None, :] * column, mask=real, other=0.0)
    return points, (tl.max((tl.abs(points) < FINITE).to(tl.int32) ^ 1, 1) == 0) & there


@triton.jit(do_not_specialize=["n"])
def _box_kernel(places_ptr, box_ptr, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of each num_programs(0)-th block of points: the low and the high corner of the finite ones' box."""
    c = tl.arange(0, 4)
    low = tl.full([4], FINITE, places_ptr.dtype.element_ty)
    high = -low
    for start in range(tl.program_id(0) * BLOCK, n, tl.num_programs(0) * BLOCK):
        i = start + tl.arange(0, BLOCK).to(tl.int64)
        points, known = _points(places_ptr, i, i < n, 3, 1)
        low = tl.minimum(low, tl.min(tl.where(known[:, None], points, FINITE), 0))
        high = tl.maximum(high, tl.max(tl.where(known[:, None], points, -FINITE), 0))
    # box: [num_programs(0), 2, 4]
    tl.store(box_ptr + tl.program_id(0) * 8 + c, low)
    tl.store(box_ptr + tl.program_id(0) * 8 + 4 + c, high)


@triton.jit(do_not_specialize=["n", "boxes"])
def _keys_kernel(  # type: ignore[no-untyped-def]
    places_ptr, box_ptr, table_ptr, keys_ptr, n, boxes, LEAST: tl.constexpr, LAST: tl.constexpr, BITS: tl.constexpr,
    LEVELS: tl.constexpr, BOXES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Steps of the curve, as in ``tiles.curve_keys``; the sum over the axes puts their spread bits together."""
    b, c = tl.arange(0, BOXES), tl.arange(0, 4)
    corner, found = box_ptr + b[:, None] * 8 + c[None, :], (b < boxes)[:, None]
    low = tl.min(tl.load(corner, mask=found, other=FINITE), 0)
    high = tl.max(tl.load(corner + 4, mask=found, other=-FINITE), 0)
    side = tl.max(tl.where(c < 3, high - low, -FINITE), 0)
    scale = 1 / tl.maximum(side, LEAST) * LAST
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    points, known = _points(places_ptr, i, i < n, 3, 1)
    real = known[:, None] & (c < 3)[None, :]
    x = tl.where(real, (points - low[None, :]) * scale, 0.0).to(tl.int64)
    x = tl.minimum(tl.maximum(x, 0), LAST)
    x = (x | (x << 32)) & 0x1F00000000FFFF
    x = (x | (x << 16)) & 0x1F0000FF0000FF
    x = (x | (x << 8)) & 0x100F00F00F00F00F
    x = (x | (x << 4)) & 0x10C30C30C30C30C3
    x = (x | (x << 2)) & 0x1249249249249249
    morton = tl.sum(x << c[None, :].to(tl.int64), 1)
    WIDTH: tl.constexpr = 3 * LEVELS
    key, state = tl.zeros([BLOCK], tl.int64), tl.zeros([BLOCK], tl.int64)
    for level in tl.static_range(BITS // LEVELS):
        cell = (morton >> (3 * BITS - WIDTH * (level + 1))) & ((1 << WIDTH) - 1)
        step = tl.load(table_ptr + ((state << WIDTH) | cell))
        key, state = (key << WIDTH) | (step & ((1 << WIDTH) - 1)), step >> WIDTH
    # keys: [N]
    tl.store(keys_ptr + i, tl.where(known, key, 0x7FFFFFFFFFFFFFFF), mask=i < n)


def curve_keys_triton(places: Tensor) -> Tensor:
    """What ``curve_keys`` gives but for rounding, on CUDA."""
    places, n = aligned(places), len(places)
    boxes = max(1, min(BOXES, cdiv(n, BLOCK)))
    box, keys = places.new_empty(boxes, 2, 4), torch.empty(n, dtype=torch.int64, device=places.device)
    if n:
        least = torch.finfo(places.dtype).tiny * 2**BITS
        launch(_box_kernel, (boxes,))(places, box, n, BLOCK=BLOCK, num_warps=4)
        launch(_keys_kernel, (cdiv(n, BLOCK),))(
            places, box, curve_table(places.device), keys, n, boxes, LEAST=least, LAST=LAST, BITS=BITS, LEVELS=LEVELS,
            BOXES=BOXES, BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return keys


@triton.jit(do_not_specialize=["n", "row", "column", "tile"])
def _tile_bounds_kernel(  # type: ignore[no-untyped-def]
    places_ptr, centres_ptr, radii_ptr, n, row, column, tile, GROW: tl.constexpr, LEAST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The ball of tile program_id(0)."""
    c, j = tl.arange(0, 4), tl.arange(0, BLOCK)
    i = tl.program_id(0).to(tl.int64) * tile + j
    points, known = _points(places_ptr, i, (i < n) & (j < tile), row, column)
    low = tl.min(tl.where(known[:, None], points, FINITE), 0)
    high = tl.max(tl.where(known[:, None], points, -FINITE), 0)
    some = tl.max(known.to(tl.int32), 0) > 0
    centre = tl.where(some & (c < 3), (low + high) / 2, 0.0)
    away = points - centre[None, :]
    far = tl.max(tl.where(known, tl.sqrt(tl.sum(away * away, 1)), -FINITE), 0)
    # centres: [n tiles, 3]; radii: [n tiles]
    tl.store(centres_ptr + tl.program_id(0) * 3 + c, centre, mask=c < 3)
    tl.store(radii_ptr + tl.program_id(0), far * GROW + LEAST)


def tile_bounds_triton(places: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """What ``tile_bounds`` gives but for rounding, on CUDA; places of any strides."""
    tiles, limits = cdiv(len(places), tile), torch.finfo(places.dtype)
    centres, radii = places.new_empty(tiles, 3), places.new_empty(tiles)
    if tiles:
        places = places if places.data_ptr() % 16 == 0 else places.clone()
        launch(_tile_bounds_kernel, (tiles,))(
            places, centres, radii, len(places), *places.stride(), tile, GROW=1 + 8 * limits.eps,
            LEAST=limits.tiny**0.5, BLOCK=next_power_of_2(tile), num_warps=1 if tile <= 64 else 4,
        )  # fmt: skip
    return centres, radii


class Lists(NamedTuple):
    """What some tiles can reach.

    Attributes:
        first: the first of those n tiles.
        counts: how many tiles each reaches, int32 [n].
        tiles: which, ascending, int32 [n, nb]; past a row's count there is anything.
    """

    first: int
    counts: Tensor
    tiles: Tensor


@triton.jit(do_not_specialize=["first", "nb"])
def _reachable_tiles_kernel(  # type: ignore[no-untyped-def]
    centres_a_ptr, reach_ptr, centres_b_ptr, radii_b_ptr, counts_ptr, tiles_ptr, first, nb,
    SLACK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The list of tile first + program_id(0), in the order of b: a running sum says where in its row a tile goes."""
    row = tl.program_id(0)
    # centres: [n, 3]; reach: [na]
    centre_ptr = centres_a_ptr + (first + row) * 3
    x, y, z = tl.load(centre_ptr), tl.load(centre_ptr + 1), tl.load(centre_ptr + 2)
    reach = tl.load(reach_ptr + first + row)
    count = tl.zeros([], tl.int32)
    for start in range(0, nb, BLOCK):
        b = start + tl.arange(0, BLOCK)
        in_b = b < nb
        dx = tl.load(centres_b_ptr + b * 3, mask=in_b, other=0.0) - x
        dy = tl.load(centres_b_ptr + b * 3 + 1, mask=in_b, other=0.0) - y
        dz = tl.load(centres_b_ptr + b * 3 + 2, mask=in_b, other=0.0) - z
        # radii: [nb]
        far = (reach + tl.load(radii_b_ptr + b, mask=in_b, other=0.0)) * SLACK
        near = in_b & (tl.sqrt(dx * dx + dy * dy + dz * dz) <= far)
        hits = near.to(tl.int32)
        # tiles: [n, nb]
        tl.store(tiles_ptr + row * nb + count + tl.cumsum(hits, 0) - hits, b, mask=near)
        count += tl.sum(hits, 0)
    # counts: [n]
    tl.store(counts_ptr + row, count)


def reachable_tiles_triton(
    centres_a: Tensor, radii_a: Tensor, centres_b: Tensor, radii_b: Tensor, chord: Tensor
) -> Iterator[Lists]:
    """What ``reachable_tiles`` finds, without a wait for the device: all tiles of a, some at a time.

    Args:
        centres_a, radii_a, centres_b, radii_b: what ``tile_bounds`` gave, [na, 3], [na], [nb, 3], [nb].
        chord: largest chord of each tile of a, [na], in their dtype.

    Memory: 4 na nb bytes, but no more than 128 MB, or 4 nb bytes where that is more.
    """
    na, nb, slack = len(centres_a), len(centres_b), 1 + 32 * torch.finfo(radii_a.dtype).eps
    bounds = (*map(aligned, (centres_a, radii_a + chord, centres_b, radii_b)),)
    step = max(1, PAIRS // max(nb, 1))
    for first in range(0, na, step):
        rows = min(step, na - first)
        counts, tiles = (torch.empty(s, dtype=torch.int32, device=radii_a.device) for s in ((rows,), (rows, nb)))
        launch(_reachable_tiles_kernel, (rows,))(
            *bounds, counts, tiles, first, nb, SLACK=slack, BLOCK=BLOCK, num_warps=4, num_stages=2
        )
        yield Lists(first, counts, tiles)


def _lists(dtype: torch.dtype) -> None:
    """Start the kernel on the meta device."""
    centres, radii = (torch.empty(100, *n, dtype=dtype, device="meta") for n in ((3,), ()))
    list(reachable_tiles_triton(centres, radii, centres, radii, radii))


def _balls(dtype: torch.dtype, rows: int, tile: int) -> None:
    """Start the kernels of keys and bounds on the meta device."""
    places = torch.empty(rows, 3, dtype=dtype, device="meta")
    curve_keys_triton(places)
    tile_bounds_triton(places, tile)


_TYPES = {"fp32": torch.float32, "fp64": torch.float64}
VARIANTS = Variants(
    {short: partial(_lists, dtype) for short, dtype in _TYPES.items()}
    | {f"few_{short}": partial(_balls, dtype, 1000, 64) for short, dtype in _TYPES.items()}
    | {f"big_{short}": partial(_balls, dtype, BIG, 16) for short, dtype in _TYPES.items()}
)
