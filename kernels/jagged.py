"""Jagged rows: B segments laid end to end in T rows, segment b being rows offsets[b] to offsets[b+1].

Repeating each segment's row for its members and summing over segments are each other's transpose, so each one's
backward is the other's forward. Written so, neither scatters: PyTorch's own backward of a gather adds row by row with
atomics or in one thread, and took 10 to 50 times as long as the gather on 2 CPU cores.

Each function looks at its offsets first: a wrong one would read, and write, what lies beside the rows. ``*_unchecked``
are for callers whose offsets are right by construction; shapes and types they look at too.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_number, check_offsets, check_segments, check_tensors
from .jagged_cpu import (
    segment_dot_cpu,
    segment_linear_attention_backward_cpu,
    segment_linear_attention_cpu,
    segment_topk_cpu,
)


def segment_ids(offsets: Tensor, total: int) -> Tensor:
    """The segment of each row: offsets int64 [B+1], total = T, to int64 [T]. Empty segments are legal.

    Raises:
        TypeError, ValueError: here and below, what does not fit, offsets that do not cut T rows included.
    """
    check_offsets(offsets, total)
    return segment_ids_unchecked(offsets, total)


def segment_ids_unchecked(offsets: Tensor, total: int) -> Tensor:
    """``segment_ids`` of offsets that are known to be right."""
    batch = torch.arange(offsets.numel() - 1, device=offsets.device)
    return torch.repeat_interleave(batch, offsets.diff(), output_size=total)


def ranges_unchecked(stops: Tensor, lengths: Tensor, total: int) -> Tensor:
    """Rows stops[b] - lengths[b] to stops[b] - 1, one b after the other, int64 [total].

    Args:
        stops: int64 [B].
        lengths: int64 [B]; their sum is ``total``, which a GPU need not be asked for then.
    """
    shift = (stops - lengths.cumsum(0)).repeat_interleave(lengths, output_size=total)
    return torch.arange(total, device=stops.device) + shift


def segment_rows_unchecked(starts: Tensor, stops: Tensor) -> tuple[Tensor, Tensor]:
    """Segment and number of each row of segments starts[i] to stops[i], int64 [rows] each; waits for a GPU."""
    counts = (stops - starts).long()
    total = int(counts.sum())
    segments = torch.arange(counts.shape[0], device=counts.device)
    return segments.repeat_interleave(counts, output_size=total), ranges_unchecked(stops.long(), counts, total)


def shared_rows_unchecked(starts: Tensor, offsets: Tensor, total: int) -> Tensor:
    """Rows of segments that may share them, laid out one segment after the other, int64 [total].

    Args:
        starts: first row of each segment, int64 [B].
        offsets: of the segments laid out, int64 [B+1]; the last is ``total``.
    """
    lengths = offsets.diff()
    return ranges_unchecked(starts + lengths, lengths, total)


def segment_sum_reference(values: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """``weighted_segment_sum`` as a loop over segments."""
    rows = [
        (values[a:b] * weights[a:b, None]).sum(dim=0)
        for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    ]
    return torch.stack(rows) if rows else values.new_zeros(0, values.shape[1])


def segment_sum(values: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum over each segment of values [T, D], times weights [T] if given; [B, D]. Has no backward of its own."""
    check_offsets(offsets, values)
    return segment_sum_unchecked(values, offsets, weights)


def segment_sum_unchecked(values: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
    """``segment_sum`` by offsets that are known to be right."""
    floats = {"values": (values, "T D")} | ({} if weights is None else {"weights": (weights, "T")})
    check_tensors(floats, {"offsets": (offsets, "B+1")})
    rows = torch.arange(values.shape[0], device=values.device)
    return F.embedding_bag(rows, values, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """Products of rows [N, D], in their own dtype: under autocast CUDA's vecdot would give 16 bits."""
    autocast = a.is_cuda and torch.is_autocast_enabled("cuda")
    return (a * b).sum(-1).to(a.dtype) if autocast else torch.linalg.vecdot(a, b)


class _WeightedSegmentSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weights: Tensor, offsets: Tensor, segments: Tensor) -> Tensor:
        ctx.save_for_backward(values, weights, segments)
        return segment_sum_unchecked(values, offsets, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        values, weights, segments = ctx.saved_tensors
        expanded = grad.index_select(0, segments)
        return expanded * weights[:, None], _dots(expanded, values), None, None


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
    check_offsets(offsets, values)
    check_segments(segments, offsets, values)
    return weighted_segment_sum_unchecked(values, weights, offsets, segments)


def weighted_segment_sum_unchecked(values: Tensor, weights: Tensor, offsets: Tensor, segments: Tensor) -> Tensor:
    """``weighted_segment_sum`` by offsets and segments that are known to be right."""
    check_tensors(
        {"values": (values, "T D"), "weights": (weights, "T")},
        {"offsets": (offsets, "B+1"), "segments": (segments, "T")},
    )
    return _WeightedSegmentSum.apply(values, weights, offsets, segments)


class _SegmentDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, vectors: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(values, vectors, offsets)
        if values.device.type == "cpu" and values.dtype == torch.float32 and not torch.compiler.is_exporting():
            return segment_dot_cpu(values, vectors, offsets)
        segments = segment_ids_unchecked(offsets, values.shape[0])
        return _dots(values, vectors.index_select(0, segments))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        values, vectors, offsets = ctx.saved_tensors
        expanded = vectors.index_select(0, segment_ids_unchecked(offsets, values.shape[0]))
        return expanded * grad[:, None], segment_sum_unchecked(values, offsets, grad), None


def segment_dot(values: Tensor, vectors: Tensor, offsets: Tensor) -> Tensor:
    """Product of each row with its segment's vector.

    Args:
        values: [T, D], any floating dtype.
        vectors: one a segment, [B, D], same dtype.
        offsets: int64 [B+1], offsets[0] = 0, offsets[B] = T.

    Returns:
        [T], differentiable in ``values`` and ``vectors``.
    """
    check_offsets(offsets, values)
    return segment_dot_unchecked(values, vectors, offsets)


def segment_dot_unchecked(values: Tensor, vectors: Tensor, offsets: Tensor) -> Tensor:
    """``segment_dot`` by offsets that are known to be right."""
    check_tensors({"values": (values, "T D"), "vectors": (vectors, "B D")}, {"offsets": (offsets, "B+1")})
    return _SegmentDot.apply(values, vectors, offsets)


def segment_dot_shared_unchecked(
    values: Tensor, vectors: Tensor, offsets: Tensor, starts: Tensor, total: int
) -> Tensor:
    """``segment_dot`` of segments that may share rows: values [K, D], segment b's from starts[b] on; [total].

    Where no gradient is asked for, the CPU's loop reads the rows where they lie; else they are laid out first.
    """
    check_tensors(
        {"values": (values, "K D"), "vectors": (vectors, "B D")}, {"offsets": (offsets, "B+1"), "starts": (starts, "B")}
    )
    asked = torch.is_grad_enabled() and (values.requires_grad or vectors.requires_grad)
    compiled = values.device.type == "cpu" and values.dtype == torch.float32 and not torch.compiler.is_exporting()
    if compiled and not asked:
        return segment_dot_cpu(values, vectors, offsets, starts, total)
    rows = shared_rows_unchecked(starts, offsets, total)
    return segment_dot_unchecked(values.index_select(0, rows), vectors, offsets)


def segment_linear_attention_reference(values: Tensor, vectors: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """``segment_linear_attention`` in two steps."""
    x = segment_dot_unchecked(values, vectors, offsets)
    segments = segment_ids_unchecked(offsets, values.shape[0])
    return x.detach(), weighted_segment_sum_unchecked(values, x, offsets, segments)


class _SegmentLinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, vectors: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        x, out = segment_linear_attention_cpu(values, vectors, offsets)
        ctx.save_for_backward(values, vectors, offsets, x)
        ctx.mark_non_differentiable(x)
        return x, out

    @staticmethod
    def backward(ctx: Any, _: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        values, vectors, offsets, x = ctx.saved_tensors
        return *segment_linear_attention_backward_cpu(grad, values, vectors.detach(), offsets, x), None


def segment_linear_attention(values: Tensor, vectors: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of each segment's rows, weighted by their products with the segment's vector.

    On the CPU each row is read once forward and once backward, 4 D and 8 D operations.

    Args:
        values: [T, D], any floating dtype.
        vectors: one a segment, [B, D], same dtype.
        offsets: int64 [B+1], offsets[0] = 0, offsets[B] = T.

    Returns:
        The products [T], without a gradient; the sums [B, D], differentiable in ``values`` and ``vectors``.
    """
    check_offsets(offsets, values)
    return segment_linear_attention_unchecked(values, vectors, offsets)


def segment_linear_attention_unchecked(values: Tensor, vectors: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """``segment_linear_attention`` by offsets that are known to be right."""
    check_tensors({"values": (values, "T D"), "vectors": (vectors, "B D")}, {"offsets": (offsets, "B+1")})
    if values.device.type == "cpu" and values.dtype == torch.float32 and not torch.compiler.is_exporting():
        return _SegmentLinearAttention.apply(values, vectors, offsets)
    return segment_linear_attention_reference(values, vectors, offsets)


def segment_softmax_reference(logits: Tensor, offsets: Tensor) -> Tensor:
    """``segment_softmax`` as a loop over segments."""
    parts = [logits[a:b].softmax(dim=0) for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]
    return torch.cat([logits[:0], *(part.nan_to_num(nan=0) for part in parts)])


class _SegmentSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, offsets: Tensor, segments: Tensor) -> Tensor:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        rows = torch.arange(logits.shape[0], device=logits.device)
        top = F.embedding_bag(rows, wide, offsets, mode="max", include_last_offset=True).nan_to_num(neginf=0)
        powers = torch.exp(wide - top.index_select(0, segments))
        total = segment_sum_unchecked(powers, offsets).clamp(min=torch.finfo(wide.dtype).tiny)
        weights = (powers / total.index_select(0, segments)).to(logits.dtype)
        ctx.save_for_backward(weights, offsets, segments)
        return weights

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        weights, offsets, segments = ctx.saved_tensors
        share = weights * grad
        return share - weights * segment_sum_unchecked(share, offsets).index_select(0, segments), None, None


def segment_softmax(logits: Tensor, offsets: Tensor, segments: Tensor) -> Tensor:
    """Softmax over the rows of each segment, column by column.

    Args:
        logits: [T, A], any floating dtype; -inf gives a weight of 0, also where a whole segment is -inf.
        offsets: int64 [B+1], offsets[0] = 0, offsets[B] = T.
        segments: ``segment_ids(offsets, T)``, int64 [T].

    Returns:
        Weights [T, A] of the same dtype, computed in float32 at least, differentiable in ``logits``.
    """
    check_offsets(offsets, logits)
    check_segments(segments, offsets, logits)
    return segment_softmax_unchecked(logits, offsets, segments)


def segment_softmax_unchecked(logits: Tensor, offsets: Tensor, segments: Tensor) -> Tensor:
    """``segment_softmax`` by offsets and segments that are known to be right."""
    check_tensors({"logits": (logits, "T A")}, {"offsets": (offsets, "B+1"), "segments": (segments, "T")})
    return _SegmentSoftmax.apply(logits, offsets, segments)


def all_fit(offsets: Tensor, k: int) -> bool:
    """Whether no segment has more than k rows, so that nothing need be scored to choose among them.

    Looked at on the CPU alone: a GPU would be waited for, and a compiled or exported program serves every length.
    """
    check_tensors({}, {"offsets": (offsets, "B+1")})
    check_number("k", k, 1, whole=True)
    if offsets.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not bool((offsets.diff() > k).any())


def segment_topk_reference(scores: Tensor, offsets: Tensor, k: int) -> Tensor:
    """``segment_topk`` as a loop over segments."""
    found = torch.full((offsets.numel() - 1, k), -1, dtype=torch.int64)
    scores = scores.float()
    for b, (start, stop) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        rows = [t for t in range(start, stop) if scores[t] > -torch.inf]
        best = sorted(sorted(rows, key=lambda t: (-float(scores[t]), -t))[:k])
        found[b, : len(best)] = torch.tensor(best, dtype=torch.int64)
    return found.to(offsets.device)


def segment_topk(scores: Tensor, offsets: Tensor, k: int) -> Tensor:
    """The rows of the k highest scores of each segment.

    On the CPU each segment keeps a heap of k while it is read once: B skewed segments cost about their T rows together.
    Elsewhere, and in an exported program, all rows are sorted once by one integer made of segment and score.

    Args:
        scores: [T], any floating dtype, compared as float32. Rows with -inf or NaN are never chosen; of equal scores
            the later row wins.
        offsets: int64 [B+1], offsets[0] = 0, offsets[B] = T.
        k: rows to choose, at most; positive.

    Returns:
        Row numbers in ascending order, then -1 where a segment has fewer, int64 [B, k]. The same on every path.
    """
    check_offsets(offsets, scores)
    return segment_topk_unchecked(scores, offsets, k)


def segment_topk_unchecked(scores: Tensor, offsets: Tensor, k: int) -> Tensor:
    """``segment_topk`` by offsets that are known to be right."""
    check_tensors({"scores": (scores, "T")}, {"offsets": (offsets, "B+1")})
    check_number("k", k, 1, whole=True)
    scores = scores.detach().float()
    if scores.device.type == "cpu" and not torch.compiler.is_exporting():
        return segment_topk_cpu(scores, offsets, k)
    T = scores.shape[0]
    scores = torch.where(scores.isnan(), -torch.inf, scores) + 0.0  # + 0.0 makes -0.0 equal to 0.0
    bits = scores.view(torch.int32)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()  # integers in the order of the scores
    by_segment = (segment_ids_unchecked(offsets, T) << 32) - ordered
    best_first = T - 1 - by_segment.flip(0).argsort(stable=True)  # flipped, so that of equals the later comes first
    places = offsets[:-1, None] + torch.arange(k, device=offsets.device)
    places = torch.where(places < offsets[1:, None], places, T)
    none = torch.full_like(offsets[:1], T)
    rows = torch.cat([best_first, none])[places]
    rows = torch.where(F.pad(scores, (0, 1), value=-torch.inf)[rows] > -torch.inf, rows, T).sort(dim=1).values
    return torch.where(rows < T, rows, -1)
