"""Triton path of what ``places.sort_places`` does once the order is known: one kernel for a score of operations."""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .places import TILE
from .variants import BIG, Variants, aligned, cdiv, launch, next_power_of_2


@triton.jit(do_not_specialize=["rows", "filled"])
def _put_in_order_kernel(  # type: ignore[no-untyped-def]
    order_ptr, numbers_ptr, positions_ptr, embeddings_ptr, out_numbers_ptr, out_positions_ptr, out_embeddings_ptr,
    rows: tl.int64, filled: tl.int64, D: tl.constexpr, TILE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of sorted places."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    there = i < rows
    # order: [rows]; out_numbers: [4, filled]; numbers: [3, rows]
    at = tl.load(order_ptr + i, mask=there, other=0)
    tl.store(out_numbers_ptr + i, at.to(tl.int32))
    for column in tl.static_range(3):
        number = tl.load(numbers_ptr + column * rows + at, mask=there, other=-1)
        tl.store(out_numbers_ptr + (column + 1) * filled + i, number)
        # positions: [rows, 3]; out_positions: [3, filled]
        position = tl.load(positions_ptr + at * 3 + column, mask=there, other=float("nan"))
        tl.store(out_positions_ptr + column * filled + i, position)
    # embeddings: [rows, D]; out_embeddings: [filled, D]
    squares = tl.zeros([TILE], tl.float32)
    for d0 in range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        real = there[:, None] & (d < D)[None, :]
        x = tl.load(embeddings_ptr + at[:, None] * D + d[None, :], mask=real, other=0.0).to(tl.float32)
        squares += tl.sum(x * x, 1)
    length = tl.maximum(tl.sqrt(squares), 1e-12)
    finite = squares < float("inf")
    for d0 in range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        real = there[:, None] & (d < D)[None, :]
        x = tl.load(embeddings_ptr + at[:, None] * D + d[None, :], mask=real, other=0.0).to(tl.float32)
        x = tl.where(finite[:, None], x / length[:, None], 0.0)
        tl.store(out_embeddings_ptr + i[:, None] * D + d[None, :], x, mask=(d < D)[None, :])


def put_in_order(
    order: Tensor, numbers: Tensor, positions: Tensor, embeddings: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The fields of ``SortedPlaces``.

    Args:
        order: int64 [B].
        numbers: int32 [3, B].
        positions: float32 [B, 3], NaN where not known.
        embeddings: [B, D], float32, float16 or bfloat16.
    """
    order, numbers, positions, embeddings = map(aligned, (order, numbers, positions, embeddings))
    rows, dim = embeddings.shape
    tiles = cdiv(rows, TILE)
    out = (
        numbers.new_empty(4, tiles * TILE),
        positions.new_empty(3, tiles * TILE),
        positions.new_empty(tiles * TILE, dim),
    )
    if tiles:
        launch(_put_in_order_kernel, (tiles,))(
            order, numbers, positions, embeddings, *out, rows, tiles * TILE, D=dim, TILE=TILE,
            BLOCK_D=min(32, next_power_of_2(dim)), num_warps=4,
        )  # fmt: skip
    return out


def _one(dtype: torch.dtype, dim: int, rows: int = 1000) -> None:
    """Start the kernel on the meta device."""

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    put_in_order(
        empty(rows, dtype=torch.int64),
        empty(3, rows, dtype=torch.int32),
        empty(rows, 3, dtype=torch.float32),
        empty(rows, dim, dtype=dtype),
    )


VARIANTS = Variants(
    {
        "d16": partial(_one, torch.float32, 16),
        "d64": partial(_one, torch.float32, 64),
        "d768": partial(_one, torch.float32, 768),
        "d64_bf16": partial(_one, torch.bfloat16, 64),
        "big": partial(_one, torch.float32, 64, BIG),
    }
)
