"""Attention of the nodes of prefix trees: to their ancestors, and to the memory of their request.

Shapes: n nodes in hand, N nodes that have keys and values, P columns of ``rows`` (a node, the one before it, up to the
root: depth of the tree at most), A heads, D columns a head, B requests, M rows of memory in all.

A decoder that scores many items of one request sees each prefix once: nodes of one level are rows of one batch, and a
node's self-attention is over the few rows on its way to the root. So a level of n nodes costs 4 n P A D operations
instead of those of n whole sequences, and reordering beams moves no keys, only row numbers.

``tree_attention`` on the CPU is a compiled loop that reads keys where they lie (``tree_attention_cpu.py``); the
reference lays out [n, P, A, D] first. ``memory_attention`` is PyTorch's scaled_dot_product_attention: on a CPU request
by request, where its products take nearly all the time and ran at 55 to 65 of a core's 85 GFLOP/s; elsewhere of all
requests at once, padded, since a GPU waits for the host at each launch. Neither has a Triton kernel: elsewhere, and
where gradients are asked for, the reference of ``tree_attention`` is what runs.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_ids, check_offsets, check_tensors
from .tree_attention_cpu import tree_attention_cpu


def tree_attention_reference(
    queries: Tensor, keys: Tensor, values: Tensor, rows: Tensor, bias: Tensor | None = None
) -> Tensor:
    """``tree_attention`` in plain PyTorch."""
    there = rows >= 0
    at = rows.clamp(min=0)
    if not keys.shape[0]:  # rows of none then look at one of zeros
        keys, values = (F.pad(x, (0, 0, 0, 0, 0, 1)) for x in (keys, values))
    logits = torch.einsum("nad,npad->nap", queries, keys[at])
    if bias is not None:
        logits = logits + bias
    weights = logits.masked_fill(~there[:, None], -torch.inf).softmax(dim=2).nan_to_num(nan=0)
    return torch.einsum("nap,npad->nad", weights, values[at].masked_fill(~there[:, :, None, None], 0))


def tree_attention(queries: Tensor, keys: Tensor, values: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention of each node over a few rows: itself and its ancestors. Nothing is divided by sqrt(D).

    Args:
        queries: scaled, [n, A, D], any floating dtype.
        keys, values: of the nodes so far, [N, A, D], same dtype.
        rows: of each node's ancestors and of itself, -1 for none, int64 [n, P].
        bias: added to the logits by head and column of ``rows``, [A, P], same dtype; None for none.

    Returns:
        [n, A, D], zeros for a node without rows; differentiable in all but rows.

    Raises:
        IndexError: rows that aren't there.
        TypeError, ValueError: shapes, dtypes or devices that don't fit together.
    """
    if isinstance(rows, Tensor) and isinstance(keys, Tensor) and keys.dim():
        check_ids("rows", rows, keys.shape[0], -1)
    return tree_attention_unchecked(queries, keys, values, rows, bias)


def tree_attention_unchecked(
    queries: Tensor, keys: Tensor, values: Tensor, rows: Tensor, bias: Tensor | None = None
) -> Tensor:
    """``tree_attention`` over rows that are known to be there."""
    floats = {"queries": (queries, "n A D"), "keys": (keys, "N A D"), "values": (values, "N A D")}
    if bias is not None:
        floats["bias"] = bias, "A P"
    sizes = check_tensors(floats, {"rows": (rows, "n P")})
    asked = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (queries, keys, values, bias))
    cpu = queries.device.type == "cpu" and queries.dtype == torch.float32 and not torch.compiler.is_exporting()
    if cpu and not asked:
        bias = queries.new_zeros(sizes["A"], sizes["P"]) if bias is None else bias
        return tree_attention_cpu(queries, keys, values, rows, bias)
    return tree_attention_reference(queries, keys, values, rows, bias)


def memory_attention_reference(
    queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, memory_offsets: Tensor
) -> Tensor:
    """``memory_attention`` as a loop over nodes."""
    out = torch.zeros_like(queries)
    for b in range(offsets.shape[0] - 1):
        of_request = slice(int(memory_offsets[b]), int(memory_offsets[b + 1]))
        for i in range(int(offsets[b]), int(offsets[b + 1])):
            weights = torch.einsum("ad,mad->am", queries[i], keys[of_request]).softmax(dim=1)
            out[i] = torch.einsum("am,mad->ad", weights, values[of_request])
    return out


def memory_attention(queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, memory_offsets: Tensor) -> Tensor:
    """Softmax attention of each request's nodes over the request's own memory. Nothing is divided by sqrt(D).

    Args:
        queries: scaled, [n, A, D], any floating dtype.
        keys, values: of the memories of all requests, [M, A, D], same dtype.
        offsets: request b's nodes are rows offsets[b] to offsets[b+1], int64 [B+1].
        memory_offsets: and its memory rows memory_offsets[b] to memory_offsets[b+1], int64 [B+1].

    Returns:
        [n, A, D], zeros where a request has no memory; differentiable in queries, keys and values.

    Raises:
        TypeError, ValueError: shapes, dtypes, devices or offsets that don't fit together.

    On a GPU it waits for both offsets.
    """
    check_tensors(
        {"queries": (queries, "n A D"), "keys": (keys, "M A D"), "values": (values, "M A D")},
        {"offsets": (offsets, "B+1"), "memory_offsets": (memory_offsets, "B+1")},
    )
    check_offsets(offsets, queries)
    check_offsets(memory_offsets, keys)
    if queries.is_meta:
        return torch.empty_like(queries)
    return memory_attention_by_lists(queries, keys, values, offsets.tolist(), memory_offsets.tolist())


def memory_attention_by_lists(
    queries: Tensor, keys: Tensor, values: Tensor, offsets: list[int], memory_offsets: list[int]
) -> Tensor:
    """``memory_attention`` by offsets that are known to be right, as lists that the host has."""
    if queries.device.type != "cpu" and len(offsets) > 2:
        return _padded_memory_attention(queries, keys, values, offsets, memory_offsets)
    parts = []
    for b in range(len(offsets) - 1):
        start, stop, m, end = offsets[b], offsets[b + 1], memory_offsets[b], memory_offsets[b + 1]
        if stop == start:
            continue
        if end == m:
            parts.append(torch.zeros_like(queries[start:stop]))
            continue
        q, k, v = (x.transpose(0, 1)[None] for x in (queries[start:stop], keys[m:end], values[m:end]))
        parts.append(F.scaled_dot_product_attention(q, k, v, scale=1.0)[0].transpose(0, 1))
    if not parts:
        return torch.zeros_like(queries)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _padded_memory_attention(
    queries: Tensor, keys: Tensor, values: Tensor, offsets: list[int], memory_offsets: list[int]
) -> Tensor:
    """All requests that have nodes at once, laid out to the longest. Where each row goes is found out on the host:
    nothing waits.
    """
    starts, memory_starts = torch.tensor(offsets), torch.tensor(memory_offsets)
    asked = starts.diff().nonzero().squeeze(1)
    if not len(asked):
        return torch.zeros_like(queries)

    def places(starts: Tensor) -> tuple[Tensor, int, Tensor, Tensor]:
        """Rows of each request, of the longest (1 at least); and which rows go where among all laid out."""
        counts = starts.diff()[asked]
        longest = max(int(counts.max()), 1)
        within = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        rows, at = (
            (first.repeat_interleave(counts) + within).to(queries.device, non_blocking=True)
            for first in (starts[asked], torch.arange(len(asked)) * longest)
        )
        return counts, longest, rows, at

    def laid_out(x: Tensor, longest: int, rows: Tensor, at: Tensor) -> Tensor:
        y = x.new_zeros(len(asked) * longest, *x.shape[1:]).index_copy(0, at, x.index_select(0, rows))
        return y.unflatten(0, (len(asked), longest)).transpose(1, 2)

    _, most, rows, at = places(starts)
    counts, longest, memory_rows, memory_at = places(memory_starts)
    # without a memory a request looks at a row of zeros, and gets zeros
    seen = (torch.arange(longest) < counts.clamp(min=1)[:, None]).to(queries.device, non_blocking=True)
    q = laid_out(queries, most, rows, at)
    k, v = (laid_out(x, longest, memory_rows, memory_at) for x in (keys, values))
    found = F.scaled_dot_product_attention(q, k, v, seen[:, None, None], scale=1.0)
    return found.transpose(1, 2).flatten(0, 1).index_select(0, at)
