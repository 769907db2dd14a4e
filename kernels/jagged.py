"""Jagged rows: B segments laid end to end in T rows, segment b being rows offsets[b] to offsets[b+1].

Repeating each segment's row for its members and summing over segments are each other's transpose, so each one's
backward is the other's forward. Written so, neither scatters: PyTorch's own backward of a gather adds row by row with
atomics or in one thread, and took 10 to 50 times as long as the gather on 2 CPU cores.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def segment_ids(offsets: Tensor, total: int) -> Tensor:
    """The segment of each row: offsets int64 [B+1], total = T, to int64 [T]. Empty segments are legal."""
    batch = torch.arange(offsets.numel() - 1, device=offsets.device)
    return torch.repeat_interleave(batch, offsets.diff(), output_size=total)


def segment_sum_reference(values: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """``weighted_segment_sum`` as a loop over segments."""
    rows = [
        (values[a:b] * weights[a:b, None]).sum(dim=0)
        for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    ]
    return torch.stack(rows) if rows else values.new_zeros(0, values.shape[1])


def segment_sum(values: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum over each segment of values [T, D], times weights [T] if given; [B, D]. Has no backward of its own."""
    rows = torch.arange(values.shape[0], device=values.device)
    return F.embedding_bag(rows, values, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


class _WeightedSegmentSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weights: Tensor, offsets: Tensor, segments: Tensor) -> Tensor:
        ctx.save_for_backward(values, weights, segments)
        return segment_sum(values, offsets, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        values, weights, segments = ctx.saved_tensors
        expanded = grad.index_select(0, segments)
        return expanded * weights[:, None], torch.linalg.vecdot(expanded, values), None, None


def weighted_segment_sum(values: Tensor, weights: Tensor, offsets: Tensor, segments: Tensor) -> Tensor:
    """Sum of weights[t] * values[t] over each segment; zeros for an empty one.

    Args:
        values: [T, D], any floating dtype.
        weights: [T], same dtype.
        offsets: int64 [B+1], offsets[0] = 0, offsets[B] = T.
        segments: ``segment_ids(offsets, T)``, int64 [T].

    Returns:
        [B, D], differentiable in ``values`` and ``weights``.
    """
    return _WeightedSegmentSum.apply(values, weights, offsets, segments)
