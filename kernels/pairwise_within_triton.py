"""Triton path of ``pairwise_within``.

Queries and candidates lie along a curve, each in tiles. One kernel takes a tile of queries down the list of candidate
tiles that it can reach, once to count and once to fill. So a row's neighbours come in the order of the curve: they are
written as query and candidate in one number, and sorted, some rows at a time. The device is waited for twice: how many
pairs there are says how large the result is, and where rows end, where more than ``SORTED`` can be sorted.
"""

from functools import partial
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import curve_order, tile_bounds
from .tiles_triton import Lists, reachable_tiles_triton
from .variants import BIG, Variants, aligned, launch

# Registers are what is short here: places of pairs are 64-bit. With 32 columns a warp adds up a row by itself.
BLOCK_C = 32
ROWS = 4  # of a warp
SORTED = 1 << 22  # pairs that are sorted at once: some 130 MB


def _tile(queries: int) -> int:
    """Queries of a program: few while that leaves processors without one."""
    return 16 if queries < 8192 else 32


@triton.jit(do_not_specialize=["first", "listed", "B", "M"])
def _pairwise_within_kernel(  # type: ignore[no-untyped-def]
    queries_ptr,
    limits_ptr,
    order_ptr,
    candidates_ptr,
    members_ptr,
    counts_ptr,
    tiles_ptr,
    offsets_ptr,
    pairs_ptr,
    first,
    listed,
    B,
    M,
    FILL: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Tile first + program_id(0) of the queries against its list: counts to offsets[i + 1] or, with FILL, the pairs."""
    row_of_list = tl.program_id(0)
    rows = (first + row_of_list).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inside = rows < B
    # order: [B]; queries: [B, 3] and limits: [B], in that order
    query = tl.load(order_ptr + rows, mask=inside, other=0)
    x = tl.load(queries_ptr + rows * 3, mask=inside, other=0.0)
    y = tl.load(queries_ptr + rows * 3 + 1, mask=inside, other=0.0)
    z = tl.load(queries_ptr + rows * 3 + 2, mask=inside, other=0.0)
    limit = tl.load(limits_ptr + rows, mask=inside, other=-1.0)
    # offsets: [B + 1]
    # a row has fewer than 2^31 neighbours, as candidates are no more
    at = tl.load(offsets_ptr + query, mask=inside, other=0) if FILL else tl.zeros([BLOCK_Q], dtype=tl.int32)
    # counts: [num_programs(0)]; tiles: [num_programs(0), listed]
    for i in range(row_of_list * listed, row_of_list * listed + tl.load(counts_ptr + row_of_list)):
        cols = tl.load(tiles_ptr + i).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
        there = cols < M
        # members: [M]; candidates: [M, 3], in that order
        dx = tl.load(candidates_ptr + cols * 3, mask=there, other=0.0)[None, :] - x[:, None]
        dy = tl.load(candidates_ptr + cols * 3 + 1, mask=there, other=0.0)[None, :] - y[:, None]
        dz = tl.load(candidates_ptr + cols * 3 + 2, mask=there, other=0.0)[None, :] - z[:, None]
        near = (dx * dx + dy * dy + dz * dz <= limit[:, None]) & there[None, :]
        hits = near.to(tl.int32)
        if FILL:
            places = at[:, None] + (tl.cumsum(hits, axis=1) - hits)
            candidate = tl.load(members_ptr + cols, mask=there, other=0)
            tl.store(pairs_ptr + places, (query << 32)[:, None] | candidate[None, :], mask=near)
        at += tl.sum(hits, axis=1)
    if not FILL:
        tl.store(offsets_ptr + query + 1, at, mask=inside)


def pairwise_within_triton(queries: Tensor, candidates: Tensor | None, limits: Tensor) -> tuple[Tensor, Tensor]:
    """``pairwise_within`` on contiguous CUDA tensors, from squared chords ``limits`` [B] in the points' dtype."""
    block_q = _tile(len(queries))
    order = curve_order(queries)
    queries, limits = queries[order], limits[order]
    members, others = (order, queries) if candidates is None else (curve_order(candidates), candidates)
    others = others if candidates is None else others[members]
    centres, radii = tile_bounds(queries, block_q)
    chord = torch.nn.functional.pad(limits, (0, len(radii) * block_q - len(limits)), value=-1).view(-1, block_q)
    reach = centres, radii, *tile_bounds(others, BLOCK_C), chord.amax(1).sqrt()
    places = (*map(aligned, (queries, limits, order, others, members)),)
    offsets = torch.zeros(len(queries) + 1, dtype=torch.int64, device=queries.device)
    for lists in reachable_tiles_triton(*reach):
        _run(False, lists, *places, offsets, offsets)
    torch.cumsum(offsets, 0, out=offsets)
    pairs = torch.empty(int(offsets[-1]), dtype=torch.int64, device=queries.device)
    for lists in reachable_tiles_triton(*reach) if len(pairs) else ():
        _run(True, lists, *places, offsets, pairs)
    cuts = [0, len(pairs)]
    if len(pairs) > SORTED:  # at the first row's end from each multiple on
        multiples = torch.arange(SORTED, len(pairs), SORTED, device=pairs.device)
        cuts[1:1] = offsets[torch.searchsorted(offsets, multiples)].tolist()
    for start, stop in pairwise(cuts):
        rows = pairs[start:stop]
        torch.bitwise_and(rows.sort().values, 0xFFFFFFFF, out=rows)
    return offsets, pairs


def _run(fill: bool, lists: Lists, queries: Tensor, *others: Tensor) -> None:
    """Count, or fill; tensors in the order of the kernel's arguments, the lists' left out."""
    block_q, (*places, offsets, pairs) = _tile(len(queries)), others
    launch(_pairwise_within_kernel, (len(lists.counts),))(
        queries, *places, lists.counts, lists.tiles, offsets, pairs, lists.first, lists.tiles.shape[1],
        len(queries), len(places[-1]),
        FILL=fill,
        BLOCK_Q=block_q,
        BLOCK_C=BLOCK_C,
        num_warps=block_q // ROWS,
        num_stages=2,
        enable_fp_fusion=False,  # so that pairs on the rim are those of the other paths
    )  # fmt: skip


def _both(dtype: torch.dtype, queries: int, pairs: int) -> None:
    """Count and fill, on the meta device."""
    points, limits = (torch.empty(queries, *n, dtype=dtype, device="meta") for n in ((3,), ()))
    order, offsets, found = (torch.empty(n, dtype=torch.int64, device="meta") for n in (queries, queries + 1, pairs))
    lists = Lists(0, *(torch.empty(100, *n, dtype=torch.int32, device="meta") for n in ((), (100,))))
    for fill in (False, True):
        _run(fill, lists, points, limits, order, points, order, offsets, found)


VARIANTS = Variants(
    {
        f"{name}_{short}": partial(_both, dtype, *sizes)
        for name, sizes in {"few": (1000, 1000), "many": (10_000, 1000), "big": (10_000, BIG)}.items()
        for short, dtype in (("fp32", torch.float32), ("fp64", torch.float64))
    }
)
