"""Triton path of ``hard_negatives``.

A program takes one tile of queries down the list of candidate tiles that it can reach: cosines by tensor cores, the
tests on each pair, and what beats a row's k-th best so far replaces it among the row's k keys, which are in no order.
A key is a number that orders by score, then by lowest row, so ties need no code. While there are few tiles of queries,
several programs share a list, and PyTorch takes the best of what they found.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .places import TILE, Search, SortedPlaces
from .tiles import tile_bounds
from .tiles_triton import Lists, reachable_tiles_triton
from .variants import BIG, Variants, aligned, launch, next_power_of_2

# Scores are cosines or lie in [0, 1). An empty slot is worth less than any, what is not eligible less than that.
SCALE, UNSCALED = 128.0, tl.constexpr(2.0**-14)
EMPTY, NEVER = tl.constexpr(-3.0), tl.constexpr(-4.0)
LARGEST = tl.constexpr(2**63 - 1)  # key of a slot that is not for use: never the least of a row
LAST_ROW = tl.constexpr(2**31 - 1)
SMALLEST = -1073741825 << 32  # key of a score of -2
WARPS = 8
MOST_NEGATIVES = 128  # keys of a row, two registers each, spread over the threads of a warp
PROGRAMS = 512  # that keep a large GPU busy: some four for each of its processors


@triton.jit
def _ordered(bits):  # type: ignore[no-untyped-def]
    """int32 that orders as the float32 of these bits does, and back again."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _key(score, row):  # type: ignore[no-untyped-def]
    """int64 that orders by score, then by lowest row. Adding 0 makes -0 and 0 one number."""
    high = _ordered((score + 0.0).to(tl.int32, bitcast=True)).to(tl.int64) << 32
    return high | (row ^ LAST_ROW).to(tl.int64)


@triton.jit
def _score(key):  # type: ignore[no-untyped-def]
    return _ordered((key >> 32).to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def _uniform(keys, rows):  # type: ignore[no-untyped-def]
    """``hard_negatives.random_scores``, [TILE, BLOCK_C]."""
    x = keys[:, None] ^ (rows.to(tl.uint32, bitcast=True) * 0x9E3779B9)[None, :]
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    x = x ^ (x >> 16)
    return (x >> 8).to(tl.int32).to(tl.float32) * (1.0 / (1 << 24))


@triton.jit(do_not_specialize=["first", "listed", "k", "any_category"])
def _hard_negatives_kernel(  # type: ignore[no-untyped-def]
    q_points_ptr,
    q_numbers_ptr,
    q_keys_ptr,
    q_halves_ptr,
    c_points_ptr,
    c_numbers_ptr,
    c_halves_ptr,
    counts_ptr,
    tiles_ptr,
    found_ptr,
    positives_ptr,
    first,
    listed,
    B,
    C,
    D,
    k,
    any_category,
    BLOCK_D: tl.constexpr,
    SLOTS: tl.constexpr,
    ONE_STEP: tl.constexpr,
    RANDOM_NEGATIVES: tl.constexpr,
    RANDOM_POSITIVES: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Tile first + program_id(0) of the queries against each num_programs(1)-th tile of its list from program_id(1) on.

    listed: places of a list. any_category: 0, or 2 if a negative's category need not differ. B and C are whole tiles
    and D whole blocks, so nothing needs a mask.
    """
    row_of_list = tl.program_id(0)
    tile = (first + row_of_list).to(tl.int64)
    part = tl.program_id(1)
    row = tile * TILE + tl.arange(0, TILE)
    d = tl.arange(0, BLOCK_D)
    # q_points: [5, B], x, y, z and limits
    x = tl.load(q_points_ptr + row)
    y = tl.load(q_points_ptr + B + row)
    z = tl.load(q_points_ptr + 2 * B + row)
    negative_limit = tl.load(q_points_ptr + 3 * B + row)
    positive_limit = tl.load(q_points_ptr + 4 * B + row)
    # q_numbers: [3, B], items, categories and brands; an unknown one equals none
    item = tl.load(q_numbers_ptr + row)
    category = tl.load(q_numbers_ptr + B + row)
    category = tl.where(category < 0, -2, category)
    brand = tl.load(q_numbers_ptr + 2 * B + row)
    brand = tl.where(brand < 0, -2, brand)
    # q_keys: [2, B]
    if RANDOM_NEGATIVES:
        negative_key = tl.load(q_keys_ptr + row).to(tl.uint32)
    if RANDOM_POSITIVES:
        positive_key = tl.load(q_keys_ptr + B + row).to(tl.uint32)
    slot = tl.arange(0, SLOTS)
    empty = _key(tl.full([SLOTS], EMPTY, tl.float32), slot ^ LAST_ROW)
    best = tl.broadcast_to(tl.where(slot < k, empty, LARGEST)[None, :], (TILE, SLOTS))
    positive = _key(tl.full([TILE], EMPTY, tl.float32), tl.full([TILE], LAST_ROW, tl.int32))
    # counts: [num_programs(0)]; tiles: [num_programs(0), listed]
    start = row_of_list * listed
    stop = start + tl.load(counts_ptr + row_of_list)
    q_offsets = tl.arange(0, TILE)[:, None] * (2 * D) + d[None, :]
    c_offsets = tl.arange(0, BLOCK_C)[None, :] * (2 * D) + d[:, None]
    split: tl.constexpr = TILE // BLOCK_C
    for i in range(start * split + part, stop * split, tl.num_programs(1)):
        first_column = tl.load(tiles_ptr + i // split) * TILE + i % split * BLOCK_C
        column = first_column + tl.arange(0, BLOCK_C)
        # c_positions: [3, C]; the others of c: [C]
        if not (RANDOM_NEGATIVES and RANDOM_POSITIVES):
            # c_halves: [C, 2, D]
            cosine = tl.zeros([TILE, BLOCK_C], dtype=tl.float32)
            for at in range(0, 1 if ONE_STEP else D, BLOCK_D):
                q_ptrs = q_halves_ptr + tile * TILE * 2 * D + at + q_offsets
                c_ptrs = c_halves_ptr + first_column.to(tl.int64) * 2 * D + at + c_offsets
                q_high, q_low = tl.load(q_ptrs), tl.load(q_ptrs + D)
                c_high, c_low = tl.load(c_ptrs), tl.load(c_ptrs + D)
                cosine = tl.dot(q_high, c_high, cosine)
                cosine = tl.dot(q_high, c_low, cosine)
                cosine = tl.dot(q_low, c_high, cosine)
            cosine = cosine * UNSCALED
        # c_points: [3, C]; c_numbers: [4, C], rows, items, categories and brands
        dx = x[:, None] - tl.load(c_points_ptr + column)[None, :]
        dy = y[:, None] - tl.load(c_points_ptr + C + column)[None, :]
        dz = z[:, None] - tl.load(c_points_ptr + 2 * C + column)[None, :]
        c_row = tl.load(c_numbers_ptr + column)
        c_item = tl.load(c_numbers_ptr + C + column)
        c_category = tl.load(c_numbers_ptr + 2 * C + column)
        c_brand = tl.load(c_numbers_ptr + 3 * C + column)
        # Few masks, as they are short on AMD: NaN is within no limit, and 0 only where two numbers are equal.
        apart = tl.where(item[:, None] == c_item[None, :], float("nan"), dx * dx + dy * dy + dz * dz)
        categories = (category[:, None] ^ c_category[None, :]).to(tl.uint32, bitcast=True)
        brands = (brand[:, None] ^ c_brand[None, :]).to(tl.uint32, bitcast=True)
        alike = (apart <= positive_limit[:, None]) & (tl.minimum(categories, brands) == 0)
        apart += tl.where(c_category < -any_category, float("nan"), 0.0)[None, :]
        eligible = (apart <= negative_limit[:, None]) & ((categories | any_category) != 0)
        unlikeness = tl.where(alike, -(_uniform(positive_key, c_row) if RANDOM_POSITIVES else cosine), NEVER)
        score = tl.where(eligible, _uniform(negative_key, c_row) if RANDOM_NEGATIVES else cosine, NEVER)
        if tl.max((unlikeness >= _score(positive)[:, None]).to(tl.int32)) > 0:
            top = tl.max(unlikeness, axis=1)
            lowest = tl.min(tl.where(unlikeness == top[:, None], c_row[None, :], LAST_ROW), axis=1)
            positive = tl.maximum(positive, _key(top, lowest))
        while tl.max((score >= _score(tl.min(best, axis=1))[:, None]).to(tl.int32)) > 0:
            # Each row's best of this tile takes the place of its worst key; rows with none are done with the tile.
            top = tl.max(score, axis=1)
            lowest = tl.min(tl.where(score == top[:, None], c_row[None, :], LAST_ROW), axis=1)
            key = _key(top, lowest)
            least = tl.min(best, axis=1)
            better = key > least
            best = tl.where((best == least[:, None]) & better[:, None], key[:, None], best)
            score = tl.where(better[:, None] & (c_row[None, :] != lowest[:, None]), score, NEVER)
    # found: [parts, N, k]; positives: [parts, N], of the N rows of these tiles
    out = (part.to(tl.int64) * tl.num_programs(0) + row_of_list) * TILE + tl.arange(0, TILE)
    tl.store(found_ptr + out[:, None] * k + slot[None, :], best, mask=best != LARGEST)
    tl.store(positives_ptr + out, positive)


def _halves(embeddings: Tensor, block_d: int) -> Tensor:
    """float16 [N, 2, D], D to whole blocks: the numbers and what float16 cuts off them, 22 bits in all.

    Three products of these on tensor cores make a cosine to about 1e-7, as float32 does, at half the price of three
    products of TF32, and on every kind of GPU. Scaled up, so that what is cut off is no denormal number.
    """
    scaled = F.pad(embeddings, (0, -embeddings.shape[1] % block_d)) * SCALE
    halves = scaled.new_empty(len(scaled), 2, scaled.shape[1], dtype=torch.float16)
    halves[:, 0] = scaled  # torch.stack takes no float16 under autocast to bfloat16
    halves[:, 1] = scaled - halves[:, 0]
    return halves


def _constants(k: int, dim: int, random_negatives: bool, random_positives: bool) -> dict[str, Any]:
    """What the kernel is compiled with: 32 columns a step where the compilers find registers for them, else 16."""
    slots = max(4, next_power_of_2(k))
    usual = not random_negatives and not random_positives and slots <= 32
    block_d = max(16, min(32, next_power_of_2(dim)))  # with 64 AMD spills
    return {
        "TILE": TILE,
        "BLOCK_C": 32 if usual else 16,
        "BLOCK_D": block_d,
        "SLOTS": slots,
        "ONE_STEP": dim <= block_d,
        "RANDOM_NEGATIVES": random_negatives,
        "RANDOM_POSITIVES": random_positives,
    }


def _rows(keys: Tensor) -> Tensor:
    """int32 rows of keys, -1 of empty slots."""
    return torch.where(keys < SMALLEST, -1, (keys & LAST_ROW.value) ^ LAST_ROW.value).int()


def hard_negatives_triton(search: Search) -> Tensor:
    """What ``hard_negatives_cpu`` returns, on CUDA, without a wait for the device.

    Memory: 4 D bytes a place, 8 (k + 1) bytes a query and program that shares its list, and 4 bytes a pair of tiles
    (of 64 places), 128 MB at most (``reachable_tiles_triton``).

    Raises:
        ValueError: more than ``MOST_NEGATIVES`` negatives are asked for.
    """
    q, c, k = search.queries, search.candidates, search.k
    rows, others = len(q.rows), len(c.rows)
    if k > MOST_NEGATIVES:
        raise ValueError(f"k: got {k}, expected at most {MOST_NEGATIVES} on CUDA; the CPU takes any number")
    if not rows or not others:
        return q.rows.new_full((rows, k + 1), -1)
    limits = torch.fmax(search.negative_limits, search.positive_limits)
    reach = limits.sqrt().nan_to_num(-torch.inf, posinf=torch.inf).view(-1, TILE).amax(1)
    bounds = tile_bounds(q.positions.t(), TILE)
    far = bounds if c is q else tile_bounds(c.positions.t(), TILE)
    return _rows(_search(search, reachable_tiles_triton(*bounds, *far, reach)))


def _search(search: Search, lists: Iterable[Lists]) -> Tensor:
    """Best keys of each query, from the lists of all tiles: of negatives and a positive, int64 [B, k + 1]."""
    q, c, k = search.queries, search.candidates, search.k
    keys = search.negative_keys, search.positive_keys
    constants = _constants(k, q.embeddings.shape[1], keys[0] is not None, keys[1] is not None)
    none = torch.zeros_like(q.rows, dtype=torch.int64)
    q_halves = _halves(q.embeddings, constants["BLOCK_D"])
    c_halves = q_halves if c is q else _halves(c.embeddings, constants["BLOCK_D"])
    places = (
        torch.cat([q.positions, torch.stack([search.negative_limits, search.positive_limits])]),
        q.numbers[1:],
        torch.stack([none if draw is None else draw for draw in keys]),
        q_halves,
        aligned(c.positions),
        c.numbers,
        c_halves,
    )
    sizes = len(q.rows), len(c.rows), q_halves.shape[2], k
    best = []
    for first, counts, tiles in lists:
        parts = max(1, min(16, PROGRAMS // len(counts)))
        found, positives = (
            torch.empty(parts, len(counts) * TILE, *n, dtype=torch.int64, device=q.rows.device) for n in ((k,), ())
        )
        launch(_hard_negatives_kernel, (len(counts), parts))(
            *places, counts, tiles, found, positives, first, tiles.shape[1], *sizes,
            0 if search.different_category else 2,
            **constants,
            num_warps=WARPS,
            num_stages=2,
            enable_fp_fusion=False,
        )  # fmt: skip
        if parts > 1:
            found, positives = found.transpose(0, 1).flatten(1).topk(k, dim=1).values, positives.amax(0)
        else:
            found, positives = found[0].sort(descending=True).values, positives[0]
        best.append(torch.cat([found, positives[:, None]], dim=1))
    return best[0] if len(best) == 1 else torch.cat(best)


def _one(k: int, dim: int, rows: int = 6400, random_negatives: bool = False, random_positives: bool = False) -> None:
    """Start the kernel with so many rows, on the meta device."""

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    points = empty(3, rows, dtype=torch.float32), empty(rows, dim, dtype=torch.float32)
    places = SortedPlaces(empty(4, rows), *points)
    limits, draw = empty(rows, dtype=torch.float32), empty(rows, dtype=torch.int64)
    keys = draw if random_negatives else None, draw if random_positives else None
    lists = Lists(0, empty(rows // TILE), empty(rows // TILE, 1))
    _search(Search(places, places, limits, limits, *keys, k, True), [lists])


VARIANTS = Variants(
    {
        "k9_d16": partial(_one, 9, 16),
        "k9_d64": partial(_one, 9, 64),
        "k9_d768": partial(_one, 9, 768),
        "k1_d16": partial(_one, 1, 16),
        "k32_d128": partial(_one, 32, 128),
        "k64_d64": partial(_one, 64, 64),
        "k128_d64": partial(_one, 128, 64),
        "random_negatives": partial(_one, 9, 64, random_negatives=True),
        "random_positives": partial(_one, 9, 64, random_positives=True),
        "random_negatives_d768": partial(_one, 9, 768, random_negatives=True),
        "random": partial(_one, 9, 64, random_negatives=True, random_positives=True),
        "big_d64": partial(_one, 9, 64, BIG),
        "big_d768": partial(_one, 9, 768, BIG),
        "big_embeddings": partial(_one, 9, 768, 1 << 20),
    }
)
