"""Decoding over prefix trees: what is left of a softmax over the children that exist, and the best children of beams.

Shapes: n nodes in hand, K codes a level, C nodes of the next level, B requests. A node's children are nodes starts[i]
to stops[i] of the next level; ``codes`` [C] says which code leads to each, in ascending order within a parent. Nothing
of size n x C or B x items is made, and a prefix that no item has is never looked at.

CPU: compiled loops over the children that there are (``trie_topk_cpu.py``), a heap of k a request. Elsewhere the
reference, PyTorch's operations on all children laid out. No Triton kernel: beside the decoder's own products the loops
take 4 to 5 % of a beam search on a CPU, and on an H100 neither is among what takes most (docs/kernels.md).
"""

from typing import Any

import torch
from torch import Tensor

from .checks import check_ids, check_number, check_offsets, check_tensors
from .jagged import segment_ids_unchecked, segment_rows_unchecked
from .trie_topk_cpu import trie_logsumexp_backward_cpu, trie_logsumexp_cpu, trie_topk_cpu

_INTEGERS = (torch.int64, torch.int32)


def _check_children(logits: Tensor, starts: Tensor, stops: Tensor, codes: Tensor) -> None:
    """Ranges of children that are there, and codes that are columns."""
    check_tensors({"logits": (logits, "n K")})
    for name, x in (("starts", starts), ("stops", stops)):
        check_tensors({"logits": (logits, "n K")}, {name: (x, "n")}, integer_dtypes=_INTEGERS)
        check_ids(name, x, codes.shape[0] + 1 if isinstance(codes, Tensor) and codes.dim() else 1)
    check_tensors({"logits": (logits, "n K")}, {"codes": (codes, "C")}, integer_dtypes=_INTEGERS)
    check_ids("codes", codes, logits.shape[1])
    if not starts.is_meta and bool((starts > stops).any()):
        raise ValueError("starts: got some after their stops, expected children starts[i] to stops[i]")


def trie_logsumexp_reference(logits: Tensor, starts: Tensor, stops: Tensor, codes: Tensor) -> Tensor:
    """``trie_logsumexp`` in plain PyTorch."""
    parents, children = segment_rows_unchecked(starts, stops)
    exists = torch.zeros_like(logits, dtype=torch.bool)
    exists[parents, codes[children].long()] = True
    return logits.masked_fill(~exists, -torch.inf).logsumexp(dim=1)


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, starts: Tensor, stops: Tensor, codes: Tensor) -> Tensor:
        total = trie_logsumexp_cpu(logits, starts, stops, codes)
        ctx.save_for_backward(logits, starts, stops, codes, total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return trie_logsumexp_backward_cpu(grad, *ctx.saved_tensors), None, None, None


def trie_logsumexp(logits: Tensor, starts: Tensor, stops: Tensor, codes: Tensor) -> Tensor:
    """Log of the sum of exp(logits) over each node's children: what makes a softmax one over existing children alone.

    Args:
        logits: of the next level's codes, [n, K], any floating dtype.
        starts, stops: node i's children are nodes starts[i] to stops[i] of the next level, int32 or int64 [n].
        codes: of the next level's nodes, int32 or int64 [C]; different ones within a parent.

    Returns:
        [n], -inf for a node without children; differentiable in ``logits``.

    Raises:
        IndexError: a code or a child that is not there.
        TypeError, ValueError: shapes, dtypes or devices that don't fit together.
    """
    _check_children(logits, starts, stops, codes)
    return trie_logsumexp_unchecked(logits, starts, stops, codes)


def trie_logsumexp_unchecked(logits: Tensor, starts: Tensor, stops: Tensor, codes: Tensor) -> Tensor:
    """``trie_logsumexp`` of children that are known to be there."""
    check_tensors(
        {"logits": (logits, "n K")},
        {"starts": (starts, "n"), "stops": (stops, "n"), "codes": (codes, "C")},
        mixed=True,
        integer_dtypes=_INTEGERS,
    )
    if _compiled(logits):
        return _LogSumExp.apply(logits, starts, stops, codes)
    return trie_logsumexp_reference(logits, starts, stops, codes)


def trie_topk_reference(
    logits: Tensor, totals: Tensor, starts: Tensor, stops: Tensor, codes: Tensor, offsets: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``trie_topk`` in plain PyTorch: all children laid out, sorted by request, total and number."""
    parents, children = segment_rows_unchecked(starts, stops)
    found = totals[parents] + logits[parents, codes[children].long()]
    requests = segment_ids_unchecked(offsets, totals.shape[0])[parents]
    keep = ~found.isnan()
    parents, children, found, requests = (x[keep] for x in (parents, children, found, requests))
    order = children.argsort(stable=True)
    order = order[found[order].argsort(stable=True, descending=True)]
    order = order[requests[order].argsort(stable=True)]
    counts = torch.bincount(requests, minlength=offsets.shape[0] - 1)
    rank = torch.arange(order.shape[0], device=order.device) - (counts.cumsum(0) - counts)[requests[order]]
    order = order[rank < k]
    return parents[order], children[order], found[order], _offsets(counts.clamp(max=k))


def _offsets(counts: Tensor) -> Tensor:
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def trie_topk(
    logits: Tensor, totals: Tensor, starts: Tensor, stops: Tensor, codes: Tensor, offsets: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The k best children of each request's beams, by the beam's total plus the child's logit. Has no gradient.

    Args:
        logits: of the next level's codes, [n, K], any floating dtype.
        totals: of the beams, [n], same dtype: log p of the beam less what normalises its logits.
        starts, stops, codes: as in ``trie_logsumexp``.
        offsets: request b's beams are rows offsets[b] to offsets[b+1], int64 [B+1].
        k: children to choose, at most; positive.

    Returns:
        Row of the parent, number of the child (int64 [M]), its total [M], and offsets int64 [B+1]: best first within a
        request, fewer than k where there are fewer. Of equal totals the child of the lower number wins, which in a
        prefix tree is that of the lower code. A total of NaN is never chosen. The same on every path.

    Raises:
        IndexError: a code or a child that is not there.
        TypeError, ValueError: shapes, dtypes, devices or offsets that don't fit together, a k below 1.
    """
    _check_children(logits, starts, stops, codes)
    check_offsets(offsets, logits)
    return trie_topk_unchecked(logits, totals, starts, stops, codes, offsets, k)


def trie_topk_unchecked(
    logits: Tensor, totals: Tensor, starts: Tensor, stops: Tensor, codes: Tensor, offsets: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``trie_topk`` of children and offsets that are known to be right."""
    check_tensors({"logits": (logits, "n K"), "totals": (totals, "n")}, {"offsets": (offsets, "B+1")})
    check_tensors(
        {"logits": (logits, "n K")},
        {"starts": (starts, "n"), "stops": (stops, "n"), "codes": (codes, "C")},
        mixed=True,
        integer_dtypes=_INTEGERS,
    )
    check_number("k", k, 1, whole=True)
    logits, totals = logits.detach(), totals.detach()
    if _compiled(logits):
        return trie_topk_cpu(logits, totals, starts, stops, codes, offsets, k)
    return trie_topk_reference(logits, totals, starts, stops, codes, offsets, k)


def _compiled(logits: Tensor) -> bool:
    return logits.device.type == "cpu" and logits.dtype == torch.float32 and not torch.compiler.is_exporting()
