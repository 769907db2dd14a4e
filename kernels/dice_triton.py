"""Triton path of Dice's statistics: what ``dice.pool_statistics`` and the scale of its columns are, in one kernel."""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .variants import BIG, Variants, aligned, cdiv, launch

BLOCK_P, BLOCK_H = 512, 8


@triton.jit(do_not_specialize=["parts", "rows", "each"])
def _statistics_kernel(  # type: ignore[no-untyped-def]
    moments_ptr, offsets_ptr, alpha_ptr, used_ptr, scale_ptr, parts, rows: tl.int64, each, eps,
    H: tl.constexpr, OF_OFFSETS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Columns program_id(0) * BLOCK_H on, of all parts; sums in float64, so that one pass is enough."""
    h = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    in_h = h < H
    total, squares = tl.zeros([BLOCK_H], tl.float64), tl.zeros([BLOCK_H], tl.float64)
    for first in range(0, parts, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P).to(tl.int64)
        there = p < parts
        if OF_OFFSETS:
            # offsets: [parts + 1]
            n = tl.load(offsets_ptr + p + 1, mask=there, other=0) - tl.load(offsets_ptr + p, mask=there, other=0)
        else:
            n = tl.where(there, tl.minimum(rows - p * each, each), 0)
        # moments: [parts, 2, H]
        at, real = moments_ptr + p[:, None] * 2 * H + h[None, :], there[:, None] & in_h[None, :]
        mean = tl.load(at, mask=real, other=0.0).to(tl.float64)
        weighed = mean * n[:, None].to(tl.float64)
        total += tl.sum(weighed, 0)
        squares += tl.sum(weighed * mean + tl.load(at + H, mask=real, other=0.0).to(tl.float64), 0)
    mean = total / rows
    variance = squares / rows - mean * mean
    variance = tl.where(variance < 0, 0.0, variance).to(tl.float32)
    # used: [2, H]; scale: [3, H]; alpha: [H]
    tl.store(used_ptr + h, mean.to(tl.float32), mask=in_h)
    tl.store(used_ptr + H + h, variance, mask=in_h)
    tl.store(scale_ptr + h, mean.to(tl.float32), mask=in_h)
    tl.store(scale_ptr + H + h, 1 / tl.sqrt(variance + eps), mask=in_h)
    tl.store(scale_ptr + 2 * H + h, tl.load(alpha_ptr + h, mask=in_h), mask=in_h)


def statistics_triton(
    moments: Tensor, alpha: Tensor, eps: float, rows: int, offsets: Tensor | None, each: int
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of all rows from those of their parts, and what the kernels' ``dice_scale`` reads.

    Args:
        moments: each part's mean and sum of squared differences from it, float32 [P, 2, H].
        alpha: float32 [H].
        eps: joins the variance.
        rows: of all parts together, at least 1.
        offsets: of the parts' rows, int64 [P + 1]; None: ``each`` rows a part, but for the last.

    Returns:
        float32 [2, H], and [3, H]: mean, 1 / standard deviation, alpha.
    """
    parts, _, H = moments.shape
    used, scale = moments.new_empty(2, H), moments.new_empty(3, H)
    launch(_statistics_kernel, (cdiv(H, BLOCK_H),))(
        moments, moments if offsets is None else offsets, aligned(alpha), used, scale, parts, rows, each, eps,
        H=H, OF_OFFSETS=offsets is not None, BLOCK_P=BLOCK_P, BLOCK_H=BLOCK_H, num_warps=8,
    )  # fmt: skip
    return used, scale


def _one(H: int, parts: int = 1000, of_offsets: bool = False) -> None:
    """Start the kernel on the meta device."""
    moments, alpha = (torch.empty(*s, H, device="meta") for s in ((parts, 2), ()))
    offsets = torch.empty(parts + 1, dtype=torch.int64, device="meta") if of_offsets else None
    statistics_triton(moments, alpha, 1e-8, 10, offsets, 32)


VARIANTS = Variants(
    {
        "samples": partial(_one, 32, of_offsets=True),
        "tiles": partial(_one, 16),
        "wide": partial(_one, 256, of_offsets=True),
        "big": partial(_one, 16, BIG),
        "big_samples": partial(_one, 16, BIG, True),
    }
)
