"""Softmax attention of each sample over the few visits that a search chose from its long history.

Shapes: B samples, T visits in all, D columns of a key, G gaps, K knots of each gap, A heads, k chosen visits at most,
E = D + G K.

A visit is seen as z = [key, hats of its gaps]. The hats of a gap g are max(0, 1 - |g - i|) at the knots i = 0 .. K-1,
so that a weight a knot makes any function of the gap that is linear between knots (and constant outside of them).
Queries and results are in z's own columns: whatever linear maps a tower has before its products and after its sums go
into the queries and onto the pooled z, a sample's worth of work instead of a visit's:

    (W_k z) . q = z . (W_k^T q)        sum of w_t (W_v z_t) = W_v (sum of w_t z_t)

So 4 A (D + 2 G) operations a chosen visit are all that is left of a forward, 12 A (D + 2 G) of a step, and no key is
copied: rows are read where they lie.

CPU: float32 by compiled loops (``search_attention_cpu.py``). CUDA: float32, float16 and bfloat16 by Triton kernels
(``search_attention_triton.py``). What neither takes goes to the reference, over [B, k, E]: other dtypes, exported
programs, on CUDA heads times columns beyond 2,048 (both rounded up to powers of two).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_chosen, check_floating, check_number, check_offsets, check_starts, check_tensors
from .jagged import shared_rows_unchecked
from .search_attention_cpu import (
    interpolate_cpu,
    search_attention_backward_cpu,
    search_attention_cpu,
    weights_shape,
)


def hats(gaps: Tensor, knots: int) -> Tensor:
    """Hat functions of gaps [..., G], side by side, [..., G * knots]; at most two of a gap's are not 0."""
    check_floating(gaps=gaps)
    check_number("knots", knots, 1, whole=True)
    at = torch.arange(knots, dtype=gaps.dtype, device=gaps.device)
    distance = (gaps.clamp(0, knots - 1)[..., None] - at).abs()
    return (1 - distance).clamp(min=0).flatten(-2)


def interpolate(gaps: Tensor, table: Tensor) -> Tensor:
    """``hats(gaps, K) @ table`` by two look-ups a gap: gaps [T, G] and a number a knot [G, K] to [T]; K of 2 or more.

    NaN where a gap is.

    Raises:
        TypeError, ValueError: shapes or dtypes don't fit together.
    """
    knots = check_tensors({"gaps": (gaps, "T G"), "table": (table, "G K")}, mixed=True)["K"]
    if knots < 2:
        raise ValueError(f"table: got {list(table.shape)}, expected [G, K] with K of 2 or more")
    asked = torch.is_grad_enabled() and (gaps.requires_grad or table.requires_grad)
    float32 = gaps.device.type == "cpu" and gaps.dtype == table.dtype == torch.float32
    if float32 and not asked and not torch.compiler.is_compiling():  # nor exporting
        return interpolate_cpu(gaps, table)
    total = gaps.new_zeros(gaps.shape[0], dtype=table.dtype)
    for gap, values in zip(gaps.unbind(1), table, strict=True):
        at = gap.clamp(0, knots - 1)
        low = at.long().clamp(0, knots - 2)  # NaN becomes any integer
        total = total + torch.lerp(values[low], values[low + 1], (at - low).to(table.dtype))
    return total


def search_attention_reference(queries: Tensor, keys: Tensor, gaps: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """``search_attention`` in plain PyTorch."""
    knots = (queries.shape[2] - keys.shape[1]) // gaps.shape[1]
    found = rows >= 0
    rows = torch.where(found, rows, keys.shape[0])  # a row of zeros, which is there even without visits
    z = torch.cat([F.pad(keys, (0, 0, 0, 1))[rows], hats(F.pad(gaps, (0, 0, 0, 1))[rows], knots)], dim=2)
    logits = F.pad(torch.where(found[:, None], queries @ z.mT, -torch.inf), (1, 0))  # the first is no visit's
    weights = logits.softmax(dim=2)[:, :, 1:]
    return weights.to(z.dtype) @ z, logits.logsumexp(dim=2)


@torch.library.custom_op("placerank::search_attention", mutates_args=())
def _forward(
    queries: Tensor, keys: Tensor, gaps: Tensor, rows: Tensor, shifts: Tensor | None, groups: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled [B, A, E], log total [B, A], and what the backward takes: weights on the CPU, log total in float32."""
    return search_attention_cpu(queries, keys, gaps, rows, shifts)


@_forward.register_kernel("cuda")
def _(
    queries: Tensor, keys: Tensor, gaps: Tensor, rows: Tensor, shifts: Tensor | None, groups: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    from .search_attention_triton import search_attention_triton

    return search_attention_triton(queries, keys, gaps, rows)


@_forward.register_fake
def _(
    queries: Tensor, keys: Tensor, gaps: Tensor, rows: Tensor, shifts: Tensor | None, groups: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    kept = weights_shape(queries, rows) if queries.device.type == "cpu" else queries.shape[:2]
    return (
        queries.new_empty(queries.shape),
        queries.new_empty(queries.shape[:2]),
        queries.new_empty(kept, dtype=torch.float32),
    )


@torch.library.custom_op("placerank::search_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    of_total: Tensor,
    queries: Tensor,
    keys: Tensor,
    gaps: Tensor,
    rows: Tensor,
    shifts: Tensor | None,
    groups: Tensor | None,
    kept: Tensor,
    want_gaps: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and gaps ([0, G] if not wanted)."""
    return search_attention_backward_cpu(grad, of_total, queries, keys, gaps, rows, kept, want_gaps, shifts, groups)


@_backward.register_kernel("cuda")
def _(*arguments: Any) -> Any:
    from .search_attention_triton import search_attention_backward_triton

    return search_attention_backward_triton(*arguments[:6], *arguments[8:])  # keys come a row a visit here


@_backward.register_fake
def _(
    grad: Tensor,
    of_total: Tensor,
    queries: Tensor,
    keys: Tensor,
    gaps: Tensor,
    rows: Tensor,
    shifts: Tensor | None,
    groups: Tensor | None,
    kept: Tensor,
    want_gaps: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    of_gaps = gaps.new_empty(gaps.shape[0] if want_gaps else 0, gaps.shape[1])
    return queries.new_empty(queries.shape), keys.new_empty(keys.shape), of_gaps


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*inputs, output[2])


def _grad(ctx: Any, grad: Tensor, of_total: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    want_gaps = ctx.needs_input_grad[2]
    of_queries, of_keys, of_gaps = _backward(grad.contiguous(), of_total.contiguous(), *ctx.saved_tensors, want_gaps)
    return of_queries, of_keys, of_gaps if want_gaps else None, None, None, None


_forward.register_autograd(_grad, setup_context=_save)


def search_attention(
    queries: Tensor,
    keys: Tensor,
    gaps: Tensor,
    rows: Tensor,
    offsets: Tensor | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of z over the chosen visits of each sample, weighted by softmax(z . query, 0), head by head.

    The 0 is the logit of no visit at all (add_zero_attn in nn.MultiheadAttention): w_t = exp(l_t) / (1 + sum exp(l)),
    so the weights of visits that all match badly are small, and don't add up to 1.

    Args:
        queries: in z's columns, scaled, [B, A, D + G K].
        keys: visits, [T, D].
        gaps: [T, G].
        rows: of each sample's chosen visits, each row once in the whole batch, then -1; int64 [B, k].
        offsets, starts: where samples share keys, as the candidates of one request do: sample b's visits are rows
            offsets[b] to offsets[b+1] of the gaps, int64 [B+1], and their keys those from row starts[b] on, int64 [B];
            keys are then [K, D], and rows are of the gaps. Samples with the same keys lie side by side.

    Returns:
        Pooled z, [B, A, D + G K], and log(1 + sum exp(l)), [B, A]; both zeros where nothing was chosen,
        differentiable in queries, keys and gaps; of keys' dtype or autocast's.

    Raises:
        IndexError: rows that aren't there.
        TypeError, ValueError: shapes, dtypes or devices don't fit together, a row comes twice or after a -1.
    """
    if isinstance(rows, Tensor) and isinstance(gaps, Tensor) and gaps.dim() == 2:
        check_chosen(rows, gaps.shape[0])
    if (offsets is None) != (starts is None):
        raise ValueError("offsets, starts: got one of the two, expected both or none")
    if offsets is not None and starts is not None:
        check_offsets(offsets, gaps)
        check_starts(starts, offsets, keys)
        within = (rows < 0) | ((rows >= offsets[:-1, None]) & (rows < offsets[1:, None]))
        if not bool(within.all()):
            raise ValueError("rows: got some of another sample's visits, expected offsets[b] to offsets[b+1]")
    return search_attention_unchecked(queries, keys, gaps, rows, offsets, starts)


def search_attention_unchecked(
    queries: Tensor,
    keys: Tensor,
    gaps: Tensor,
    rows: Tensor,
    offsets: Tensor | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``search_attention`` over rows that are known to be right."""
    floats = {"keys": (keys, "T D" if starts is None else "K D"), "gaps": (gaps, "T G"), "queries": (queries, "B A E")}
    integers = {"rows": (rows, "B k")}
    if offsets is not None and starts is not None:
        integers |= {"offsets": (offsets, "B+1"), "starts": (starts, "B")}
    sizes = check_tensors(floats, integers, mixed=True)
    D, G, E = sizes["D"], sizes["G"], sizes["E"]
    if G < 1 or (E - D) % G or (E - D) // G < 2:
        raise ValueError(
            f"queries: got {list(queries.shape)} beside keys {list(keys.shape)} and gaps {list(gaps.shape)}, expected "
            "[B, A, D + G K] with G of 1 or more and K of 2 or more"
        )
    device = keys.device.type
    if torch.is_autocast_enabled(device):
        keys = keys.to(torch.get_autocast_dtype(device))
    queries, gaps = queries.to(keys.dtype), gaps.to(keys.dtype)
    # an exported file must load without placerank, so it holds PyTorch's own operations
    plain = torch.compiler.is_exporting() or not _compiled(queries, keys)
    shifts = groups = None
    if offsets is not None and starts is not None:
        if plain or keys.device.type != "cpu":
            keys = keys.index_select(0, shared_rows_unchecked(starts, offsets, gaps.shape[0]))
        else:
            shifts, groups = starts - offsets[:-1], _groups(starts)
    if plain:
        return search_attention_reference(queries, keys, gaps, rows)
    return _forward(queries, keys, gaps, rows, shifts, groups)[:2]


def _groups(starts: Tensor) -> Tensor:
    """Cuts of the samples into runs of equal starts, int64 [groups + 1]; on the CPU."""
    new = (starts.diff() != 0).nonzero().squeeze(1) + 1
    return torch.cat([new.new_zeros(min(1, len(starts))), new, new.new_tensor([len(starts)])])


def _compiled(queries: Tensor, keys: Tensor) -> bool:
    """Whether the operation takes these, or the reference must."""
    if not keys.is_cuda:
        return keys.device.type == "cpu" and keys.dtype == torch.float32
    from .search_attention_triton import fits

    D = keys.shape[1]
    return keys.dtype != torch.float64 and fits(queries.shape[1], D, queries.shape[2] - D)
