"""Triton path of ``pairwise_within``. It has not run on a GPU yet: interpreter and ahead-of-time compiles only.

PyTorch lists what each tile of near queries can reach, in ascending order (a place is a tile of radius 0 to
``reachable_tiles``); one kernel runs down the lists, once to count and once to fill, and keeps the order: a running sum
along the tile's columns says where in its row a pair goes, so nothing is sorted and nothing is added atomically.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import curve_order, reachable_tiles, tile_bounds
from .variants import BIG, Variants, aligned, launch

# Registers are what is short here: places of pairs are 64-bit. With 32 columns a warp adds up a row by itself.
BLOCK_C = 32
ROWS = 4  # of a warp


def _tile(queries: int) -> int:
    """Queries of a program: few while that leaves processors without one."""
    return 16 if queries < 8192 else 32


@triton.jit(do_not_specialize=["B"])
def _pairwise_within_kernel(  # type: ignore[no-untyped-def]
    queries_ptr,
    limits_ptr,
    order_ptr,
    candidates_ptr,
    starts_ptr,
    listed_ptr,
    offsets_ptr,
    indices_ptr,
    B,
    FILL: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One tile of queries against its list: counts of neighbours to offsets[i + 1], or, with FILL, the neighbours."""
    tile = tl.program_id(0).to(tl.int64)
    rows = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inside = rows < B
    # order: [B]; queries: [B, 3]; limits: [B]
    query = tl.load(order_ptr + rows, mask=inside, other=0)
    x = tl.load(queries_ptr + query * 3, mask=inside, other=0.0)
    y = tl.load(queries_ptr + query * 3 + 1, mask=inside, other=0.0)
    z = tl.load(queries_ptr + query * 3 + 2, mask=inside, other=0.0)
    limit = tl.load(limits_ptr + query, mask=inside, other=-1.0)
    # starts: [tiles + 1]
    start = tl.load(starts_ptr + tile)
    stop = tl.load(starts_ptr + tile + 1)
    # offsets: [B + 1]
    at = tl.load(offsets_ptr + query, mask=inside, other=0) if FILL else tl.zeros([BLOCK_Q], dtype=tl.int64)
    for first in range(start, stop, BLOCK_C):
        cols = first + tl.arange(0, BLOCK_C)
        listed = cols < stop
        # listed: [starts[tiles]]; candidates: [M, 3]
        candidate = tl.load(listed_ptr + cols, mask=listed, other=0)
        dx = tl.load(candidates_ptr + candidate * 3, mask=listed, other=0.0)[None, :] - x[:, None]
        dy = tl.load(candidates_ptr + candidate * 3 + 1, mask=listed, other=0.0)[None, :] - y[:, None]
        dz = tl.load(candidates_ptr + candidate * 3 + 2, mask=listed, other=0.0)[None, :] - z[:, None]
        near = (dx * dx + dy * dy + dz * dz <= limit[:, None]) & listed[None, :]
        hits = near.to(tl.int32)
        if FILL:
            places = at[:, None] + (tl.cumsum(hits, axis=1) - hits)
            tl.store(indices_ptr + places, tl.broadcast_to(candidate[None, :], (BLOCK_Q, BLOCK_C)), mask=near)
        at += tl.sum(hits, axis=1)
    if not FILL:
        tl.store(offsets_ptr + query + 1, at, mask=inside)


def pairwise_within_triton(queries: Tensor, candidates: Tensor | None, limits: Tensor) -> tuple[Tensor, Tensor]:
    """``pairwise_within`` on contiguous CUDA tensors, from squared chords ``limits`` [B] in the points' dtype."""
    others = queries if candidates is None else candidates
    block_q = _tile(len(queries))
    order = curve_order(queries)
    centres, radii = tile_bounds(queries[order], block_q)
    padded = torch.nn.functional.pad(limits[order], (0, len(radii) * block_q - len(queries)), value=-1)
    chord = padded.view(-1, block_q).amax(1).sqrt()
    starts, listed = reachable_tiles(centres, radii, others, others.new_zeros(len(others)), chord)
    lists = (*map(aligned, (queries, limits, order, others, starts, listed)),)
    offsets = torch.zeros(len(queries) + 1, dtype=torch.int64, device=queries.device)
    if len(listed):
        _run(False, *lists, offsets, listed)
        torch.cumsum(offsets, 0, out=offsets)
    indices = torch.empty(int(offsets[-1]), dtype=torch.int64, device=queries.device)
    if len(indices):
        _run(True, *lists, offsets, indices)
    return offsets, indices


def _run(fill: bool, queries: Tensor, *others: Tensor) -> None:
    """Count, or fill; tensors in the order of the kernel's arguments."""
    block_q = _tile(len(queries))
    launch(_pairwise_within_kernel, (triton.cdiv(len(queries), block_q),))(
        queries,
        *others,
        len(queries),
        FILL=fill,
        BLOCK_Q=block_q,
        BLOCK_C=BLOCK_C,
        num_warps=block_q // ROWS,
        num_stages=2,
        enable_fp_fusion=False,  # so that pairs on the rim are those of the other paths
    )


def _both(dtype: torch.dtype, queries: int, pairs: int) -> None:
    """Count and fill, on the meta device."""
    points, limits = (torch.empty(queries, *n, dtype=dtype, device="meta") for n in ((3,), ()))
    order, starts, offsets = (torch.empty(queries + n, dtype=torch.int64, device="meta") for n in (0, 1, 1))
    listed = torch.empty(pairs, dtype=torch.int64, device="meta")
    for fill in (False, True):
        _run(fill, points, limits, order, points, starts, listed, offsets, listed)


VARIANTS = Variants(
    {
        f"{name}_{short}": partial(_both, dtype, *sizes)
        for name, sizes in {"few": (1000, 1000), "many": (10_000, 1000), "big": (10_000, BIG)}.items()
        for short, dtype in (("fp32", torch.float32), ("fp64", torch.float64))
    }
)
