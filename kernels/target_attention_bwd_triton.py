"""Triton kernels of ``target_attention``'s backward; ``target_attention_triton.py`` starts them."""

import triton
import triton.language as tl

from .target_attention_fwd_triton import dice, dice_scale


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
    mean, rstd, alpha = dice_scale(scale_ptr, h, in_h, H)
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
        a, x, p = dice(z, mean, rstd, alpha)
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


@triton.jit(do_not_specialize=["T"])
def _layer_delta_kernel(  # type: ignore[no-untyped-def]
    above_ptr,
    above_weight_ptr,
    z_ptr,
    scale_ptr,
    delta_ptr,
    T: tl.int64,
    H: tl.constexpr,
    N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """delta, the gradient of z [T, H], of one tile of visits and columns, from that of the layer above [T, N]."""
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    there, in_h = t < T, h < H
    # scale: [5, H]
    mean, rstd, alpha = dice_scale(scale_ptr, h, in_h, H)
    share = tl.load(scale_ptr + 3 * H + h, mask=in_h, other=0.0)
    share_x = tl.load(scale_ptr + 4 * H + h, mask=in_h, other=0.0)
    real = there[:, None] & in_h[None, :]
    # z, delta: [T, H]
    z = tl.load(z_ptr + t[:, None] * H + h[None, :], mask=real, other=0.0).to(tl.float32)
    da = _above(above_ptr, above_weight_ptr, t, there, h, in_h, H, N, BLOCK_N, PRECISION)
    _, x, p = dice(z, mean, rstd, alpha)
    dx = da * z * (1 - alpha[None, :]) * p * (1 - p)
    gate = alpha[None, :] + (1 - alpha[None, :]) * p
    delta = da * gate + rstd[None, :] * (dx - share[None, :] - x * share_x[None, :])
    tl.store(delta_ptr + t[:, None] * H + h[None, :], delta.to(delta_ptr.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["T"])
def _layer_sums_kernel(  # type: ignore[no-untyped-def]
    above_ptr,
    above_weight_ptr,
    z_ptr,
    scale_ptr,
    sums_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    T: tl.int64,
    H: tl.constexpr,
    N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What a layer's gradients need summed over all visits, from delta of the layer above [T, N], N > 1.

    For program_id(1)'s columns and each num_programs(0)-th tile of visits; every program writes its own sums.
    """
    program, first = tl.program_id(0).to(tl.int64), tl.program_id(1) == 0
    h, n = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_N)
    in_h, in_n = h < H, n < N
    # scale: [3, H]
    mean, rstd, alpha = dice_scale(scale_ptr, h, in_h, H)
    sum_x, sum_xx, sum_alpha = (tl.zeros([BLOCK_H], tl.float32),) * 3
    grad_weight, grad_bias = tl.zeros([BLOCK_N, BLOCK_H], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    for tile in range(program, tl.cdiv(T, BLOCK_T), tl.num_programs(0)):
        t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
        there = t < T
        # z: [T, H]; above: [T, N]
        z = tl.load(z_ptr + t[:, None] * H + h[None, :], mask=there[:, None] & in_h[None, :], other=0.0)
        da = _above(above_ptr, above_weight_ptr, t, there, h, in_h, H, N, BLOCK_N, PRECISION)
        a, x, p = dice(z.to(tl.float32), mean, rstd, alpha)
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
    tl.store(grad_bias_ptr + program * N + n, grad_bias, mask=in_n & first)


@triton.jit(do_not_specialize=["B"])
def _first_bwd_kernel(  # type: ignore[no-untyped-def]
    query_ptr,
    keys_ptr,
    offsets_ptr,
    weight_ptr,
    grad_ptr,
    weights_ptr,
    delta_ptr,
    grad_query_ptr,
    grad_bias_ptr,
    grad_keys_ptr,
    grad_weight_ptr,
    B: tl.int64,
    D: tl.constexpr,
    H: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of the first layer and of the keys, for program_id(1)'s columns and each num_programs(0)-th sample.

    Weights add up in the program's slot; the bias, which has no columns of keys, is for the first column of programs.
    """
    program, first = tl.program_id(0).to(tl.int64), tl.program_id(1) == 0
    d, h = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_H)
    in_d, in_h = d < D, h < H
    # weight: [H, 2 D]; grad_weight: [programs, H, 2 D]
    place, both = h[:, None] * (2 * D) + d[None, :], in_h[:, None] & in_d[None, :]
    slot = grad_weight_ptr + program * H * (2 * D) + place
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
            in_keys = there[:, None] & in_d[None, :]
            # delta: [T, H]; keys, grad_keys: [T, D]; weights: [T]
            delta = tl.load(delta_ptr + t[:, None] * H + h[None, :], mask=there[:, None] & in_h[None, :], other=0.0)
            w = tl.load(weights_ptr + t, mask=there, other=0.0).to(tl.float32)
            grad_k = tl.dot(delta, own, input_precision=PRECISION) + w[:, None] * grad[None, :]
            grad_k = grad_k.to(grad_keys_ptr.dtype.element_ty)
            tl.store(grad_keys_ptr + t[:, None] * D + d[None, :], grad_k, mask=in_keys)
            k = tl.load(keys_ptr + t[:, None] * D + d[None, :], mask=in_keys, other=0.0)
            grad_own = tl.dot(tl.trans(delta), k, grad_own, input_precision=PRECISION)
            grad_bias += tl.sum(delta.to(tl.float32), 0)
        tl.store(slot, tl.load(slot, mask=both, other=0.0) + grad_own, mask=both)
        of_product = tl.load(slot + D, mask=both, other=0.0) + q[None, :] * grad_own
        tl.store(slot + D, of_product, mask=both)
        tl.debug_barrier()  # what the next sample loads from the slot may be another thread's
        # grad_query: [B, D]; grad_bias: [B, H]
        grad_q = tl.sum(tl.load(weight_ptr + place + D, mask=both, other=0.0) * grad_own, 0)
        tl.store(grad_query_ptr + b * D + d, grad_q.to(grad_query_ptr.dtype.element_ty), mask=in_d)
        tl.store(grad_bias_ptr + b * H + h, grad_bias.to(grad_bias_ptr.dtype.element_ty), mask=in_h & first)


@triton.jit(do_not_specialize=["T"])
def _gaps_bwd_kernel(  # type: ignore[no-untyped-def]
    gaps_ptr,
    weight_ptr,
    delta_ptr,
    grad_gaps_ptr,
    grad_weight_ptr,
    T: tl.int64,
    G: tl.constexpr,
    H: tl.constexpr,
    WANT_GAPS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of gaps and of their weight, for program_id(1)'s columns and each num_programs(0)-th tile of visits."""
    program = tl.program_id(0).to(tl.int64)
    g, h = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_H)
    in_g, in_h = g < G, h < H
    both = in_h[:, None] & in_g[None, :]
    of_gaps = tl.zeros([BLOCK_H, BLOCK_G], tl.float32)
    # weight: [H, G]
    weight = tl.load(weight_ptr + h[:, None] * G + g[None, :], mask=both, other=0.0)
    weight = weight.to(delta_ptr.dtype.element_ty)
    for tile in range(program, tl.cdiv(T, BLOCK_T), tl.num_programs(0)):
        t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
        there = t < T
        # delta: [T, H]; gaps, grad_gaps: [T, G]
        delta = tl.load(delta_ptr + t[:, None] * H + h[None, :], mask=there[:, None] & in_h[None, :], other=0.0)
        gap = tl.load(gaps_ptr + t[:, None] * G + g[None, :], mask=there[:, None] & in_g[None, :], other=0.0)
        of_gaps = tl.dot(tl.trans(delta), gap, of_gaps, input_precision=PRECISION)
        if WANT_GAPS:
            grad_gap = tl.dot(delta, weight, input_precision=PRECISION).to(grad_gaps_ptr.dtype.element_ty)
            tl.store(grad_gaps_ptr + t[:, None] * G + g[None, :], grad_gap, mask=there[:, None] & in_g[None, :])
    # grad_weight: [programs, H, G]
    tl.store(grad_weight_ptr + program * H * G + h[:, None] * G + g[None, :], of_gaps, mask=both)
