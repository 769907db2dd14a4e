"""Gated recurrent unit over jagged rows, with or without an attention on its update gate (AUGRU).

Zhou et al., Deep Interest Evolution Network for Click-Through Rate Prediction, AAAI 2019 (arXiv 1809.03672): its GRU
and AUGRU. With x the input's maps, W the state's maps and a the attention (1 where there is none), a step from state
h is

    r = sigmoid(x_r + W_r h + b_r)      u = sigmoid(x_u + W_u h + b_u)
    n = tanh(x_n + r * (W_n h + b_n))   h' = (1 - a u) * h + a u * n

r multiplies W_n h + b_n together, as in torch.nn.GRU; u is 1 minus its update gate.

Nothing is padded, and what depends on x alone is a product of whole matrices outside. Only the states are kept for the
backward, which makes the gates again: [T, H] numbers instead of [T, 5 H].

CPU, float32: compiled loops (``gru_cpu.py``) over tiles of 16 samples of about equal length, so that one history of
10,000 visits costs 10,000 small products and not 10,000 calls. All else, CUDA too, takes a step of time at a time for
all samples that are that long, in the order of a PackedSequence: two products a step and a dozen small operations. How
many steps there are the host has to know: on CUDA it waits once for the lengths, for forward and backward together, or
not at all if it is given them. On an H100 that is seven times slower than cuDNN's GRU (docs/kernels.md).
"""

from typing import Any

import torch
from torch import Tensor

from .checks import check_offsets, check_tensors
from .gru_cpu import gru_backward_cpu, gru_cpu
from .jagged import segment_ids_unchecked


def gru_reference(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, attention: Tensor | None = None) -> Tensor:
    """``gru`` as a loop over samples and visits."""
    rows = []
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        h = x.new_zeros(weight.shape[1])
        for t in range(start, stop):
            (x_r, x_u, x_n), (h_r, h_u, h_n) = x[t].chunk(3), (weight @ h + bias).chunk(3)
            u = torch.sigmoid(x_u + h_u) * (1 if attention is None else attention[t])
            n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
            h = (1 - u) * h + u * n
            rows.append(h)
    return torch.stack(rows) if rows else x.new_zeros(0, weight.shape[1])


@torch.library.custom_op("placerank::gru", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, attention: Tensor, lengths: Tensor) -> Tensor:
    """States [T, H]; attention [T], or [0] for none; lengths [B], on the CPU."""
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return gru_cpu(x, weight, bias, offsets, attention)
    return _gru_steps(x, weight, bias, offsets, attention, lengths)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, *_: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op("placerank::gru_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    offsets: Tensor,
    attention: Tensor,
    lengths: Tensor,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias, attention."""
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return gru_backward_cpu(grad, x, weight, bias, offsets, attention, states)
    return _gru_steps_backward(grad, x, weight, bias, offsets, attention, lengths, states)


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, attention: Tensor, *_: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        weight.new_empty(weight.shape),
        bias.new_empty(bias.shape),
        x.new_empty(attention.shape),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    of_x, of_weight, of_bias, of_attention = _backward(grad.contiguous(), *ctx.saved_tensors)
    return of_x, of_weight, of_bias, None, of_attention, None


_forward.register_autograd(_grad, setup_context=_save)


def gru(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, attention: Tensor | None = None) -> Tensor:
    """States after each visit, from a state of zeros before each sample's first.

    Args:
        x: maps of the inputs, for r, u and n side by side, [T, 3 H], floating; float16 and bfloat16 are computed in
            float32.
        weight: of the state, [3 H, H].
        bias: of the state, [3 H].
        offsets: int64 [B+1], offsets[0] = 0, offsets[B] = T; empty histories are legal.
        attention: factor of each visit's update gate, [T], or None.

    Returns:
        [T, H] in x's dtype, differentiable once in all floating inputs.

    Raises:
        TypeError, ValueError: shapes, dtypes, devices or offsets don't fit together.
    """
    check_offsets(offsets, x)
    return gru_unchecked(x, weight, bias, offsets, attention)


def host_lengths(offsets: Tensor) -> Tensor:
    """How long each sample is, int64 [B] on the CPU, of offsets int64 [B+1]; on CUDA a wait for the device."""
    return offsets.diff().cpu()


def gru_unchecked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    offsets: Tensor,
    attention: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """``gru`` by offsets that are known to be right.

    lengths: ``host_lengths(offsets)``, where the caller has them; else they are asked of the device.
    """
    floats = {"weight": (weight, "3H H"), "x": (x, "T 3H"), "bias": (bias, "3H")}
    floats |= {} if attention is None else {"attention": (attention, "T")}
    check_tensors(floats, {"offsets": (offsets, "B+1")}, mixed=True)
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    factors = x.new_empty(0) if attention is None else attention
    lengths = host_lengths(offsets) if lengths is None else lengths
    floating = (y.to(compute) for y in (x, weight, bias))
    out: Tensor = _forward(*floating, offsets, factors.to(compute), lengths)
    return out.to(x.dtype)


def _steps(offsets: Tensor, total: int, lengths: Tensor) -> tuple[Tensor, list[int]]:
    """Rows in the order of a PackedSequence, [T]: all first visits, all second ones; and how many of each.

    Longer samples come first, so a step's samples are the first of the step's before.
    """
    order = offsets.diff().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.numel(), device=order.device)
    sample = segment_ids_unchecked(offsets, total)
    step = torch.arange(total, device=offsets.device) - offsets[sample]
    ended = lengths.bincount().cumsum(0)[:-1]  # samples of at most 0, 1, ... visits
    return (step * max(order.numel(), 1) + rank[sample]).argsort(), (lengths.numel() - ended).tolist()


def _gates(x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    H = hidden.shape[1] // 3
    r, u = torch.sigmoid(x[:, : 2 * H] + hidden[:, : 2 * H]).chunk(2, dim=1)
    return r, u, torch.tanh(x[:, 2 * H :] + r * hidden[:, 2 * H :])


def _gru_steps(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, attention: Tensor, lengths: Tensor) -> Tensor:
    """``placerank::gru`` step by step in PyTorch's own operations."""
    rows, counts = _steps(offsets, x.shape[0], lengths)
    packed, factors = x[rows], attention[rows, None] if attention.numel() else None
    states = x.new_empty(x.shape[0], weight.shape[1])
    h, start = x.new_zeros(offsets.numel() - 1, weight.shape[1]), 0
    for count in counts:
        here = slice(start, start + count)
        h = h[:count]
        _, u, n = _gates(packed[here], torch.addmm(bias, h, weight.t()))
        h = torch.lerp(h, n, u if factors is None else u * factors[here])
        states[here] = h
        start += count
    return torch.empty_like(states).index_copy_(0, rows, states)


def _gru_steps_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    offsets: Tensor,
    attention: Tensor,
    lengths: Tensor,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``placerank::gru_backward`` step by step in PyTorch's own operations."""
    (rows, counts), H = _steps(offsets, x.shape[0], lengths), weight.shape[1]
    # Each visit's state before it: none where a sample begins, which for an empty one is where the next does, or T.
    before = torch.cat([states.new_zeros(1, H), states]).index_fill(0, offsets[:-1], 0)[rows]
    hidden = torch.addmm(bias, before, weight.t())
    r, u, n = _gates(x[rows], hidden)
    a = attention[rows, None] if attention.numel() else torch.ones_like(u[:, :1])
    up, g = grad[rows], hidden[:, 2 * H :]
    of_hidden, of_x, dv = torch.empty_like(hidden), torch.empty_like(x), torch.empty_like(u)
    dh, stop = x.new_zeros(0, H), x.shape[0]
    for count in reversed(counts):
        here = slice(stop - count, stop)
        dh = torch.cat([dh, dh.new_zeros(count - dh.shape[0], H)]) + up[here]
        v, r_, n_ = u[here] * a[here], r[here], n[here]
        dn = dh * v * (1 - n_ * n_)
        dv[here] = dh * (n_ - before[here])
        du = dv[here] * a[here] * u[here] * (1 - u[here])
        dr = dn * g[here] * r_ * (1 - r_)
        of_x[here] = torch.cat([dr, du, dn], dim=1)
        of_hidden[here] = torch.cat([dr, du, dn * r_], dim=1)
        dh = torch.addmm(dh * (1 - v), of_hidden[here], weight)
        stop -= count
    of_attention = torch.empty_like(attention)
    if attention.numel():
        of_attention.index_copy_(0, rows, (dv * u).sum(dim=1))
    unpacked = torch.empty_like(of_x).index_copy_(0, rows, of_x)
    return unpacked, of_hidden.t() @ before, of_hidden.sum(dim=0), of_attention
