"""Triton path of ``pairwise_within``. It has not run on a GPU yet: interpreter and ahead-of-time compiles only.

PyTorch lists what each tile of near queries can reach, in ascending order (a place is a tile of radius 0 to
``reachable_tiles``); one kernel runs down the lists, once to count and once to fill, and keeps the order: a running sum
along the tile's columns says where in its row a pair goes, so nothing is sorted and nothing is added atomically.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import curve_order, reachable_tiles, tile_bounds
from .variants import Variant

# Registers are what is short here: places of pairs are 64-bit. With 32 columns a warp adds up a row by itself.
BLOCK_C = 32
NUM_WARPS = 4
# The sum of squares is rounded as everywhere else: with fused multiply-adds pairs on the rim would differ.
OPTIONS = {"num_warps": NUM_WARPS, "num_stages": 2, "enable_fp_fusion": False}


def _tile(queries: int) -> int:
    """Queries of a program: few while that leaves processors without one."""
    return 16 if queries < 8192 else 32


@triton.jit
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
    offsets = torch.zeros(len(queries) + 1, dtype=torch.int64, device=queries.device)

    def run(fill: bool, indices: Tensor) -> None:
        _pairwise_within_kernel[(len(radii),)](
            queries,
            limits,
            order,
            others,
            starts,
            listed,
            offsets,
            indices,
            len(queries),
            FILL=fill,
            BLOCK_Q=block_q,
            BLOCK_C=BLOCK_C,
            **OPTIONS,
        )

    if len(listed):
        run(False, listed)
        torch.cumsum(offsets, 0, out=offsets)
    indices = torch.empty(int(offsets[-1]), dtype=torch.int64, device=queries.device)
    if len(indices):
        run(True, indices)
    return offsets, indices


_POINTERS = ("queries", "limits", "candidates"), ("order", "starts", "listed", "offsets", "indices")
VARIANTS = {
    f"{'fill' if fill else 'count'}-{dtype}-{block_q}": Variant(
        kernel=_pairwise_within_kernel,
        signature={
            **{f"{name}_ptr": f"*{dtype}" for name in _POINTERS[0]},
            **{f"{name}_ptr": "*i64" for name in _POINTERS[1]},
            "B": "i32",
        },
        constants={"FILL": fill, "BLOCK_Q": block_q, "BLOCK_C": BLOCK_C},
        num_warps=NUM_WARPS,
        num_stages=2,
    )
    for fill in (False, True)
    for dtype in ("fp32", "fp64")
    for block_q in (_tile(1), _tile(1 << 20))
}
