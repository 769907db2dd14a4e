"""Triton path of ``target_attention``. It has not run on a GPU yet: interpreter and ahead-of-time compiles only.

The same six steps as on the CPU. The first and the last layer take a program a sample (their matrix, or their sum, is
the sample's own), the layers between take tiles of visits. What is summed over all visits is written once a program and
added by PyTorch, so results are the same from run to run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dice import pool_statistics
from .variants import Variant

PROGRAMS = 512  # that keep a large GPU busy and still leave few partial sums
MOST_NUMBERS = 4096  # of a sample's own matrix, D * H1 with both rounded up to powers of two


@triton.jit
def _dice(z, mean, rstd, alpha):  # type: ignore[no-untyped-def]
    """Dice(z) [R, H], the normalised z, and the gate's sigmoid."""
    x = (z - mean[None, :]) * rstd[None, :]
    p = tl.sigmoid(x)
    return z * (alpha[None, :] + (1 - alpha[None, :]) * p), x, p


@triton.jit
def _moments(z, there, n, count, mean, square):  # type: ignore[no-untyped-def]
    """Join count rows of z [R, H] (those that are there) to mean and sum of squared differences of n rows."""
    own = tl.sum(tl.where(there, z, 0.0), 0) / count
    difference = tl.where(there, z - own[None, :], 0.0)
    shift = own - mean
    total = n + count
    square += tl.sum(difference * difference, 0) + shift * shift * (n * count / total)
    return mean + shift * (count / total), square


@triton.jit
def _first_fwd_kernel(  # type: ignore[no-untyped-def]
    query_ptr,
    bias_ptr,
    keys_ptr,
    gaps_ptr,
    offsets_ptr,
    weight_ptr,
    z_ptr,
    moments_ptr,
    D: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """z of one sample's visits: k @ (weight of k + q * weight of q * k) + gaps @ weight of gaps + bias."""
    b = tl.program_id(0).to(tl.int64)
    d, h = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_H)
    in_d, in_h = d < D, h < H
    # offsets: [B + 1]
    start, stop = tl.load(offsets_ptr + b), tl.load(offsets_ptr + b + 1)
    # query: [B, D]; bias: [B, H]; weight: [H, 2 D + G]
    q = tl.load(query_ptr + b * D + d, mask=in_d, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + b * H + h, mask=in_h, other=0.0).to(tl.float32)
    weights = weight_ptr + h[None, :] * (2 * D + G) + d[:, None]
    both = in_d[:, None] & in_h[None, :]
    own = tl.load(weights, mask=both, other=0.0) + q[:, None] * tl.load(weights + D, mask=both, other=0.0)
    own = own.to(keys_ptr.dtype.element_ty)
    mean, square = tl.zeros([BLOCK_H], tl.float32), tl.zeros([BLOCK_H], tl.float32)
    for t0 in range(start, stop, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        there = t < stop
        # keys: [T, D]
        k = tl.load(keys_ptr + t[:, None] * D + d[None, :], mask=there[:, None] & in_d[None, :], other=0.0)
        z = tl.dot(k, own, input_precision=PRECISION) + bias[None, :]
        for g in tl.static_range(G):
            # gaps: [T, G]
            gap = tl.load(gaps_ptr + t * G + g, mask=there, other=0.0).to(tl.float32)
            of_gap = tl.load(weight_ptr + h * (2 * D + G) + 2 * D + g, mask=in_h, other=0.0)
            z += gap[:, None] * of_gap[None, :]
        stored = z.to(z_ptr.dtype.element_ty)
        real = there[:, None] & in_h[None, :]
        tl.store(z_ptr + t[:, None] * H + h[None, :], stored, mask=real)
        count = tl.minimum(stop - t0, BLOCK_T).to(tl.float32)
        mean, square = _moments(stored.to(tl.float32), real, (t0 - start).to(tl.float32), count, mean, square)
    # moments: [B, 2, H]
    tl.store(moments_ptr + b * 2 * H + h, mean, mask=in_h)
    tl.store(moments_ptr + b * 2 * H + H + h, square, mask=in_h)


@triton.jit
def _between_fwd_kernel(  # type: ignore[no-untyped-def]
    z_ptr,
    scale_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    moments_ptr,
    T,
    H: tl.constexpr,
    N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = Dice(z) @ weight.T + bias of one tile of visits."""
    tile = tl.program_id(0).to(tl.int64)
    t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    h, n = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_N)
    there, in_h, in_n = t < T, h < H, n < N
    # scale: [3, H]
    mean = tl.load(scale_ptr + h, mask=in_h, other=0.0)
    rstd = tl.load(scale_ptr + H + h, mask=in_h, other=0.0)
    alpha = tl.load(scale_ptr + 2 * H + h, mask=in_h, other=0.0)
    # z: [T, H]
    z = tl.load(z_ptr + t[:, None] * H + h[None, :], mask=there[:, None] & in_h[None, :], other=0.0)
    a, _, _ = _dice(z.to(tl.float32), mean, rstd, alpha)
    # weight: [N, H], read as [H, N]; bias: [N]
    weight = tl.load(weight_ptr + n[None, :] * H + h[:, None], mask=in_h[:, None] & in_n[None, :], other=0.0)
    bias = tl.load(bias_ptr + n, mask=in_n, other=0.0)
    out = tl.dot(a.to(z.dtype), weight.to(z.dtype), input_precision=PRECISION) + bias[None, :]
    stored = out.to(out_ptr.dtype.element_ty)
    real = there[:, None] & in_n[None, :]
    tl.store(out_ptr + t[:, None] * N + n[None, :], stored, mask=real)
    count = tl.minimum(T - tile * BLOCK_T, BLOCK_T).to(tl.float32)
    zeros = tl.zeros([BLOCK_N], tl.float32)
    mean, square = _moments(stored.to(tl.float32), real, 0.0, count, zeros, zeros)
    # moments: [tiles, 2, N]
    tl.store(moments_ptr + tile * 2 * N + n, mean, mask=in_n)
    tl.store(moments_ptr + tile * 2 * N + N + n, square, mask=in_n)


@triton.jit
def _last_fwd_kernel(  # type: ignore[no-untyped-def]
    z_ptr,
    scale_ptr,
    weight_ptr,
    bias_ptr,
    keys_ptr,
    offsets_ptr,
    weights_ptr,
    interest_ptr,
    D: tl.constexpr,
    H: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """w = Dice(z) @ weight + bias of one sample's visits, and the sum of w k."""
    b = tl.program_id(0).to(tl.int64)
    d, h = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_H)
    in_d, in_h = d < D, h < H
    start, stop = tl.load(offsets_ptr + b), tl.load(offsets_ptr + b + 1)
    # scale: [3, H]; weight: [H]
    mean = tl.load(scale_ptr + h, mask=in_h, other=0.0)
    rstd = tl.load(scale_ptr + H + h, mask=in_h, other=0.0)
    alpha = tl.load(scale_ptr + 2 * H + h, mask=in_h, other=0.0)
    weight = tl.load(weight_ptr + h, mask=in_h, other=0.0)
    bias = tl.load(bias_ptr)
    interest = tl.zeros([BLOCK_D], tl.float32)
    for t0 in range(start, stop, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        there = t < stop
        # z: [T, H]; keys: [T, D]
        z = tl.load(z_ptr + t[:, None] * H + h[None, :], mask=there[:, None] & in_h[None, :], other=0.0)
        k = tl.load(keys_ptr + t[:, None] * D + d[None, :], mask=there[:, None] & in_d[None, :], other=0.0)
        a, _, _ = _dice(z.to(tl.float32), mean, rstd, alpha)
        w = (tl.sum(a * weight[None, :], 1) + bias).to(weights_ptr.dtype.element_ty)
        tl.store(weights_ptr + t, w, mask=there)
        interest += tl.sum(w.to(tl.float32)[:, None] * k.to(tl.float32), 0)
    # interest: [B, D]
    tl.store(interest_ptr + b * D + d, interest.to(interest_ptr.dtype.element_ty), mask=in_d)


@triton.jit
def _last_bwd_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    keys_ptr,
    z_ptr,
    scale_ptr,
    weight_ptr,
    offsets_ptr,
    delta_ptr,
    sums_ptr,
    D: tl.constexpr,
    H: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """delta, the gradient of w, of one sample's visits; sums of dx, dx x, dalpha, weight and bias."""
    b = tl.program_id(0).to(tl.int64)
    d, h = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_H)
    in_d, in_h = d < D, h < H
    start, stop = tl.load(offsets_ptr + b), tl.load(offsets_ptr + b + 1)
    # scale: [3, H]; weight: [H]; grad: [B, D]
    mean = tl.load(scale_ptr + h, mask=in_h, other=0.0)
    rstd = tl.load(scale_ptr + H + h, mask=in_h, other=0.0)
    alpha = tl.load(scale_ptr + 2 * H + h, mask=in_h, other=0.0)
    weight = tl.load(weight_ptr + h, mask=in_h, other=0.0)
    grad = tl.load(grad_ptr + b * D + d, mask=in_d, other=0.0).to(tl.float32)
    sum_x, sum_xx, sum_alpha = (tl.zeros([BLOCK_H], tl.float32),) * 3
    sum_weight, sum_bias = tl.zeros([BLOCK_H], tl.float32), 0.0
    for t0 in range(start, stop, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        there = t < stop
        # keys: [T, D]; z: [T, H]
        k = tl.load(keys_ptr + t[:, None] * D + d[None, :], mask=there[:, None] & in_d[None, :], other=0.0)
        z = tl.load(z_ptr + t[:, None] * H + h[None, :], mask=there[:, None] & in_h[None, :], other=0.0).to(tl.float32)
        dw = tl.sum(k.to(tl.float32) * grad[None, :], 1)
        tl.store(delta_ptr + t, dw, mask=there)
        a, x, p = _dice(z, mean, rstd, alpha)
        up = dw[:, None] * weight[None, :] * z * (1 - p)
        dx = up * p * (1 - alpha[None, :])
        sum_x += tl.sum(dx, 0)
        sum_xx += tl.sum(dx * x, 0)
        sum_alpha += tl.sum(up, 0)
        sum_weight += tl.sum(dw[:, None] * a, 0)
        sum_bias += tl.sum(dw, 0)
    # sums: [B, 5, H], the last row's first number is the bias's
    sums = sums_ptr + b * 5 * H + h
    tl.store(sums, sum_x, mask=in_h)
    tl.store(sums + H, sum_xx, mask=in_h)
    tl.store(sums + 2 * H, sum_alpha, mask=in_h)
    tl.store(sums + 3 * H, sum_weight, mask=in_h)
    tl.store(sums + 4 * H, tl.where(h == 0, sum_bias, 0.0), mask=in_h)


@triton.jit
def _above(  # type: ignore[no-untyped-def]
    above_ptr,
    weight_ptr,
    t,
    there,
    h,
    in_h,
    H: tl.constexpr,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of Dice(z) [R, H] from delta of the layer above, [T, N], and that layer's weight [N, H]."""
    if N == 1:
        delta = tl.load(above_ptr + t, mask=there, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + h, mask=in_h, other=0.0)
        da = delta[:, None] * weight[None, :]
    else:
        n = tl.arange(0, BLOCK_N)
        in_n = n < N
        delta = tl.load(above_ptr + t[:, None] * N + n[None, :], mask=there[:, None] & in_n[None, :], other=0.0)
        both = in_n[:, None] & in_h[None, :]
        weight = tl.load(weight_ptr + n[:, None] * H + h[None, :], mask=both, other=0.0)
        da = tl.dot(delta, weight.to(delta.dtype), input_precision=PRECISION)
    return da


@triton.jit
def _layer_delta_kernel(  # type: ignore[no-untyped-def]
    above_ptr,
    above_weight_ptr,
    z_ptr,
    scale_ptr,
    delta_ptr,
    T,
    H: tl.constexpr,
    N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """delta, the gradient of z [T, H], of one tile of visits, from that of the layer above [T, N]."""
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    h = tl.arange(0, BLOCK_H)
    there, in_h = t < T, h < H
    # scale: [5, H]
    mean = tl.load(scale_ptr + h, mask=in_h, other=0.0)
    rstd = tl.load(scale_ptr + H + h, mask=in_h, other=0.0)
    alpha = tl.load(scale_ptr + 2 * H + h, mask=in_h, other=0.0)
    share = tl.load(scale_ptr + 3 * H + h, mask=in_h, other=0.0)
    share_x = tl.load(scale_ptr + 4 * H + h, mask=in_h, other=0.0)
    real = there[:, None] & in_h[None, :]
    # z, delta: [T, H]
    z = tl.load(z_ptr + t[:, None] * H + h[None, :], mask=real, other=0.0).to(tl.float32)
    da = _above(above_ptr, above_weight_ptr, t, there, h, in_h, H, N, BLOCK_N, PRECISION)
    _, x, p = _dice(z, mean, rstd, alpha)
    dx = da * z * (1 - alpha[None, :]) * p * (1 - p)
    gate = alpha[None, :] + (1 - alpha[None, :]) * p
    delta = da * gate + rstd[None, :] * (dx - share[None, :] - x * share_x[None, :])
    tl.store(delta_ptr + t[:, None] * H + h[None, :], delta.to(delta_ptr.dtype.element_ty), mask=real)


@triton.jit
def _layer_sums_kernel(  # type: ignore[no-untyped-def]
    above_ptr,
    above_weight_ptr,
    z_ptr,
    scale_ptr,
    sums_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    T,
    H: tl.constexpr,
    N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What a layer's gradients need summed over all visits, from delta of the layer above [T, N], N > 1.

    Each num_programs-th tile of visits; every program writes its own sums.
    """
    program = tl.program_id(0).to(tl.int64)
    h, n = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_N)
    in_h, in_n = h < H, n < N
    # scale: [3, H]
    mean = tl.load(scale_ptr + h, mask=in_h, other=0.0)
    rstd = tl.load(scale_ptr + H + h, mask=in_h, other=0.0)
    alpha = tl.load(scale_ptr + 2 * H + h, mask=in_h, other=0.0)
    sum_x, sum_xx, sum_alpha = (tl.zeros([BLOCK_H], tl.float32),) * 3
    grad_weight, grad_bias = tl.zeros([BLOCK_N, BLOCK_H], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    for tile in range(program, tl.cdiv(T, BLOCK_T), tl.num_programs(0)):
        t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
        there = t < T
        # z: [T, H]; above: [T, N]
        z = tl.load(z_ptr + t[:, None] * H + h[None, :], mask=there[:, None] & in_h[None, :], other=0.0)
        da = _above(above_ptr, above_weight_ptr, t, there, h, in_h, H, N, BLOCK_N, PRECISION)
        a, x, p = _dice(z.to(tl.float32), mean, rstd, alpha)
        up = da * z.to(tl.float32) * (1 - p)
        dx = up * p * (1 - alpha[None, :])
        sum_x += tl.sum(dx, 0)
        sum_xx += tl.sum(dx * x, 0)
        sum_alpha += tl.sum(up, 0)
        delta = tl.load(above_ptr + t[:, None] * N + n[None, :], mask=there[:, None] & in_n[None, :], other=0.0)
        grad_weight = tl.dot(tl.trans(delta), a.to(delta.dtype), grad_weight, input_precision=PRECISION)
        grad_bias += tl.sum(delta.to(tl.float32), 0)
    # sums: [programs, 3, H]; grad_weight: [programs, N, H]; grad_bias: [programs, N]
    sums = sums_ptr + program * 3 * H + h
    tl.store(sums, sum_x, mask=in_h)
    tl.store(sums + H, sum_xx, mask=in_h)
    tl.store(sums + 2 * H, sum_alpha, mask=in_h)
    both = in_n[:, None] & in_h[None, :]
    tl.store(grad_weight_ptr + program * N * H + n[:, None] * H + h[None, :], grad_weight, mask=both)
    tl.store(grad_bias_ptr + program * N + n, grad_bias, mask=in_n)


@triton.jit
def _first_bwd_kernel(  # type: ignore[no-untyped-def]
    query_ptr,
    keys_ptr,
    gaps_ptr,
    offsets_ptr,
    weight_ptr,
    grad_ptr,
    weights_ptr,
    delta_ptr,
    grad_query_ptr,
    grad_bias_ptr,
    grad_keys_ptr,
    grad_gaps_ptr,
    grad_weight_ptr,
    B,
    D: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
    WANT_GAPS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of the first layer and of the keys, for program_id(1)'s columns and each num_programs(0)-th sample.

    Weights add up in the program's slot; what has no columns of keys is for the first column of programs.
    """
    program, first = tl.program_id(0).to(tl.int64), tl.program_id(1) == 0
    d, g, h = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_H)
    in_d, in_g, in_h = d < D, g < G, h < H
    # weight: [H, 2 D + G]; grad_weight: [programs, H, 2 D + G]
    place = h[:, None] * (2 * D + G) + d[None, :]
    place_gaps = h[:, None] * (2 * D + G) + 2 * D + g[None, :]
    both, both_gaps = in_h[:, None] & in_d[None, :], in_h[:, None] & in_g[None, :]
    of_gaps = tl.zeros([BLOCK_H, BLOCK_G], tl.float32)
    slot = grad_weight_ptr + program * H * (2 * D + G)
    for b in range(program, B, tl.num_programs(0)):
        start, stop = tl.load(offsets_ptr + b), tl.load(offsets_ptr + b + 1)
        # query, grad: [B, D]
        q = tl.load(query_ptr + b * D + d, mask=in_d, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + b * D + d, mask=in_d, other=0.0).to(tl.float32)
        own = tl.load(weight_ptr + place, mask=both, other=0.0)
        own += q[None, :] * tl.load(weight_ptr + place + D, mask=both, other=0.0)
        own = own.to(keys_ptr.dtype.element_ty)
        grad_own, grad_bias = tl.zeros([BLOCK_H, BLOCK_D], tl.float32), tl.zeros([BLOCK_H], tl.float32)
        for t0 in range(start, stop, BLOCK_T):
            t = t0 + tl.arange(0, BLOCK_T)
            there = t < stop
            in_keys, in_gaps = there[:, None] & in_d[None, :], there[:, None] & in_g[None, :]
            # delta: [T, H]; keys, grad_keys: [T, D]; weights: [T]; gaps, grad_gaps: [T, G]
            delta = tl.load(delta_ptr + t[:, None] * H + h[None, :], mask=there[:, None] & in_h[None, :], other=0.0)
            w = tl.load(weights_ptr + t, mask=there, other=0.0).to(tl.float32)
            grad_k = tl.dot(delta, own, input_precision=PRECISION) + w[:, None] * grad[None, :]
            grad_k = grad_k.to(grad_keys_ptr.dtype.element_ty)
            tl.store(grad_keys_ptr + t[:, None] * D + d[None, :], grad_k, mask=in_keys)
            k = tl.load(keys_ptr + t[:, None] * D + d[None, :], mask=in_keys, other=0.0)
            grad_own = tl.dot(tl.trans(delta), k, grad_own, input_precision=PRECISION)
            gap = tl.load(gaps_ptr + t[:, None] * G + g[None, :], mask=in_gaps, other=0.0)
            of_gaps = tl.dot(tl.trans(delta), gap, of_gaps, input_precision=PRECISION)
            if WANT_GAPS:
                gap_weight = tl.load(weight_ptr + place_gaps, mask=both_gaps, other=0.0).to(delta.dtype)
                grad_gap = tl.dot(delta, gap_weight, input_precision=PRECISION).to(grad_gaps_ptr.dtype.element_ty)
                tl.store(grad_gaps_ptr + t[:, None] * G + g[None, :], grad_gap, mask=in_gaps & first)
            grad_bias += tl.sum(delta.to(tl.float32), 0)
        of_key = tl.load(slot + place, mask=both, other=0.0) + grad_own
        tl.store(slot + place, of_key, mask=both)
        of_product = tl.load(slot + place + D, mask=both, other=0.0) + q[None, :] * grad_own
        tl.store(slot + place + D, of_product, mask=both)
        tl.debug_barrier()  # what the next sample loads from the slot may be another thread's
        # grad_query: [B, D]; grad_bias: [B, H]
        grad_q = tl.sum(tl.load(weight_ptr + place + D, mask=both, other=0.0) * grad_own, 0)
        tl.store(grad_query_ptr + b * D + d, grad_q.to(grad_query_ptr.dtype.element_ty), mask=in_d)
        tl.store(grad_bias_ptr + b * H + h, grad_bias.to(grad_bias_ptr.dtype.element_ty), mask=in_h & first)
    tl.store(slot + place_gaps, of_gaps, mask=both_gaps & first)


def _block(columns: int) -> int:
    """Columns as the kernels take them: a power of two that tensor cores can multiply."""
    return max(16, triton.next_power_of_2(columns))


def fits(dim: int, hidden: list[int]) -> bool:
    """Whether matrices of these widths can be kept in registers; wider ones are for the reference."""
    pairs = zip([dim, *hidden], hidden, strict=False)
    return all(_block(a) * _block(b) <= MOST_NUMBERS for a, b in pairs)


def _settings(D: int, H: int) -> dict[str, int]:
    """Of a program that takes a sample's visits forward, with a matrix [D, H] in registers."""
    tile = 32 if _block(D) * _block(H) <= 2048 else 16
    return {"BLOCK_T": tile, "num_warps": 4 if tile == 32 or H <= 32 else 8, "num_stages": 1}


def _row_settings(N: int, H: int) -> dict[str, int]:
    """Of a program that takes tiles of visits through a layer with weight [N, H]."""
    return {"BLOCK_T": 32 if _block(N) * _block(H) <= 1024 else 16, "num_warps": 4, "num_stages": 1}


def _first_bwd_settings(H: int, bits: int) -> dict[str, int]:
    """Columns so few that the kernel's matrices, [H, BLOCK_D] each, and two products' operands fit the registers."""
    tile, numbers = (32, 1024) if bits == 16 else (32 if _block(H) <= 32 else 16, 512)
    return {"BLOCK_T": tile, "BLOCK_D": max(16, numbers // _block(H)), "num_warps": 4, "num_stages": 1}


def _precision() -> str:
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _scale(statistics: Tensor, alpha: Tensor, eps: float, *shares: Tensor) -> Tensor:
    mean, variance = statistics
    return torch.stack([mean, (variance + eps).rsqrt(), alpha, *shares])


def target_attention_triton(
    query: Tensor,
    bias: Tensor,
    keys: Tensor,
    gaps: Tensor,
    offsets: Tensor,
    weight: Tensor,
    alphas: list[Tensor],
    statistics: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    batch_statistics: bool,
    eps: float,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """As ``target_attention_cpu``, on a GPU, in the dtype of keys with float32 parameters."""
    query, bias, keys, gaps, offsets, weight = (x.contiguous() for x in (query, bias, keys, gaps, offsets, weight))
    (T, D), G, (B, H), precision = keys.shape, gaps.shape[1], bias.shape, _precision()
    wide = {"BLOCK_D": _block(D)}
    zs, used = [keys.new_empty(T, H)], []
    moments, counts = keys.new_empty(B, 2, H, dtype=torch.float32), offsets.diff()
    settings = _settings(D, H) | wide
    _first_fwd_kernel[(B,)](
        query, bias, keys, gaps, offsets, weight, zs[0], moments, D, G, H,
        BLOCK_H=_block(H), PRECISION=precision, **settings,
    )  # fmt: skip
    interest, of_visits = query.new_empty(B, D), keys.new_empty(T, 1)
    for i, (of_layer, offset) in enumerate(zip(weights, biases, strict=True)):
        used.append(pool_statistics(counts, *moments.unbind(1)) if batch_statistics else statistics[i].clone())
        scale, of_layer, (N, H) = _scale(used[i], alphas[i], eps), of_layer.contiguous(), of_layer.shape
        if i + 1 < len(weights):
            zs.append(keys.new_empty(T, N))
            settings = _row_settings(N, H)
            tiles = triton.cdiv(T, settings["BLOCK_T"])
            moments = keys.new_empty(tiles, 2, N, dtype=torch.float32)
            counts = (T - torch.arange(tiles, device=keys.device) * settings["BLOCK_T"]).clamp(max=settings["BLOCK_T"])
            if T:
                _between_fwd_kernel[(tiles,)](
                    zs[i], scale, of_layer, offset, zs[-1], moments, T, H, N,
                    BLOCK_H=_block(H), BLOCK_N=_block(N), PRECISION=precision, **settings,
                )  # fmt: skip
        else:
            settings = _settings(D, H) | wide
            _last_fwd_kernel[(B,)](
                zs[i], scale, of_layer, offset, keys, offsets, of_visits, interest, D, H, BLOCK_H=_block(H), **settings
            )
    return interest, of_visits, zs, used


def target_attention_backward_triton(
    grad: Tensor,
    query: Tensor,
    keys: Tensor,
    gaps: Tensor,
    offsets: Tensor,
    weight: Tensor,
    alphas: list[Tensor],
    statistics: list[Tensor],
    weights: list[Tensor],
    of_visits: Tensor,
    zs: list[Tensor],
    batch_statistics: bool,
    eps: float,
    want_gaps: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """As ``target_attention_backward_cpu``, on a GPU."""
    grad, query, keys, gaps, offsets, weight = (x.contiguous() for x in (grad, query, keys, gaps, offsets, weight))
    (T, D), G, B, precision = keys.shape, gaps.shape[1], query.shape[0], _precision()
    layers, wide = len(weights), {"BLOCK_D": _block(D)}
    weights = [w.contiguous() for w in weights]
    grad_alphas, grad_weights, grad_biases = ([keys.new_empty(0)] * layers for _ in range(3))
    above = of_visits
    for i in reversed(range(layers)):
        N, H = weights[i].shape
        scale, rows = _scale(statistics[i], alphas[i], eps), _row_settings(N, H)
        if i + 1 == layers:
            above, sums = keys.new_empty(T, 1), scale.new_empty(B, 5, H)
            settings = _settings(D, H) | wide
            _last_bwd_kernel[(B,)](
                grad, keys, zs[i], scale, weights[i], offsets, above, sums, D, H, BLOCK_H=_block(H), **settings
            )
            dx, dx_x, of_alpha, of_weight, of_bias = sums.sum(0)
            grad_weights[i], grad_biases[i] = of_weight[None].clone(), of_bias[:1].clone()
        else:
            programs = max(1, min(PROGRAMS, triton.cdiv(T, rows["BLOCK_T"])))
            sums, of_weight, of_bias = (scale.new_empty(programs, *n) for n in ((3, H), (N, H), (N,)))
            _layer_sums_kernel[(programs,)](
                above, weights[i], zs[i], scale, sums, of_weight, of_bias, T, H, N,
                BLOCK_H=_block(H), BLOCK_N=_block(N), PRECISION=precision, **rows,
            )  # fmt: skip
            dx, dx_x, of_alpha = sums.sum(0)
            grad_weights[i], grad_biases[i] = of_weight.sum(0), of_bias.sum(0)
        grad_alphas[i], share = of_alpha.clone(), 1 / T if batch_statistics and T else 0.0
        scale, delta = torch.cat([scale, torch.stack([dx, dx_x]) * share]), keys.new_empty(T, H)
        if T:
            _layer_delta_kernel[(triton.cdiv(T, rows["BLOCK_T"]),)](
                above, weights[i], zs[i], scale, delta, T, H, N,
                BLOCK_H=_block(H), BLOCK_N=_block(N), PRECISION=precision, **rows,
            )  # fmt: skip
        above = delta

    H = weight.shape[0]
    grad_query, grad_bias, grad_keys = query.new_empty(B, D), query.new_empty(B, H), keys.new_empty(T, D)
    grad_gaps = gaps.new_empty(T if want_gaps else 0, G)
    programs = min(PROGRAMS, B)
    of_first = weight.new_zeros(programs, *weight.shape)
    settings = _first_bwd_settings(H, 8 * keys.element_size())
    _first_bwd_kernel[(programs, triton.cdiv(D, settings["BLOCK_D"]))](
        query, keys, gaps, offsets, weight, grad, of_visits, above, grad_query, grad_bias, grad_keys, grad_gaps,
        of_first, B, D, G, H, want_gaps, BLOCK_G=_block(G), BLOCK_H=_block(H), PRECISION=precision, **settings,
    )  # fmt: skip
    return grad_query, grad_bias, grad_keys, grad_gaps, of_first.sum(0), grad_alphas, grad_weights, grad_biases


def _variants(name: str, dtype: str, D: int, G: int, H: int, N: int) -> dict[str, Variant]:
    """All six kernels for hidden widths (H, N) and keys of this dtype, as the launchers start them."""
    blocks = {"BLOCK_D": _block(D), "BLOCK_G": _block(G), "BLOCK_H": _block(H), "BLOCK_N": _block(N)}

    def variant(
        kernel: Any, in_dtype: str, in_fp32: str, others: str, settings: dict[str, int], **constants: Any
    ) -> Variant:
        signature = {f"{x}_ptr": f"*{dtype}" for x in in_dtype.split()} | {f"{x}_ptr": "*fp32" for x in in_fp32.split()}
        signature |= {f"{x}_ptr": "*i64" for x in others.split() if x == "offsets"}
        signature |= {x: "i64" for x in others.split() if x != "offsets"}
        ordered = {x: signature[x] for x in kernel.arg_names if x in signature}
        every = {**blocks, **settings, **constants, "PRECISION": "ieee"}
        every = {x: every[x] for x in kernel.arg_names if x in every}
        return Variant(kernel, ordered, every, settings["num_warps"], settings["num_stages"])

    first, between, last = _settings(D, H), _row_settings(N, H), _settings(D, N)
    first_bwd = _first_bwd_settings(H, 16 if dtype == "bf16" else 32)
    at_last = {"D": D, "H": N, "BLOCK_H": _block(N)}
    return {
        f"first_fwd_{name}": variant(
            _first_fwd_kernel, "query bias keys gaps z", "weight moments", "offsets", first, D=D, G=G, H=H
        ),
        f"between_fwd_{name}": variant(
            _between_fwd_kernel, "z out", "scale weight bias moments", "T", between, H=H, N=N
        ),
        f"last_fwd_{name}": variant(
            _last_fwd_kernel, "z keys weights interest", "scale weight bias", "offsets", last, **at_last
        ),
        f"last_bwd_{name}": variant(
            _last_bwd_kernel, "grad keys z delta", "scale weight sums", "offsets", last, **at_last
        ),
        f"layer_sums_{name}": variant(
            _layer_sums_kernel, "above z", "above_weight scale sums grad_weight grad_bias", "T", between, H=H, N=N
        ),
        f"layer_delta_{name}": variant(
            _layer_delta_kernel, "above z delta", "above_weight scale", "T", between, H=H, N=N
        ),
        f"first_bwd_{name}": variant(
            _first_bwd_kernel, "query keys gaps grad weights delta grad_query grad_bias grad_keys grad_gaps",
            "weight grad_weight", "offsets B", first_bwd, D=D, G=G, H=H, WANT_GAPS=False,
        ),
    }  # fmt: skip


VARIANTS = {
    key: variant
    for name, sizes in {
        "narrow": (32, 2, 32, 16),
        "default": (48, 2, 32, 16),
        "wide": (128, 2, 32, 16),
        "square": (64, 2, 64, 32),
        "tall": (32, 2, 128, 32),
    }.items()
    for dtype in ("fp32", "bf16")
    for key, variant in _variants(f"{name}_{dtype}", dtype, *sizes).items()
}
