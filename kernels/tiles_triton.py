"""Triton path of ``reachable_tiles``. It has not run on a GPU yet: interpreter and ahead-of-time compiles only.

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

from .variants import Variants, aligned, launch

PAIRS = 1 << 25  # of tiles that lists have room for at once: 128 MB
BLOCK = 256


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


VARIANTS = Variants({"fp32": partial(_lists, torch.float32), "fp64": partial(_lists, torch.float64)})
