"""Triton kernels of ``target_attention``'s forward; ``target_attention_triton.py`` starts them."""

import triton
import triton.language as tl


@triton.jit
def dice_scale(scale_ptr, h, in_h, H: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows 0 to 2 of scale [3 or 5, H] at columns h: mean, 1 / standard deviation and alpha of Dice."""
    mean = tl.load(scale_ptr + h, mask=in_h, other=0.0)
    rstd = tl.load(scale_ptr + H + h, mask=in_h, other=0.0)
    return mean, rstd, tl.load(scale_ptr + 2 * H + h, mask=in_h, other=0.0)


@triton.jit
def dice(z, mean, rstd, alpha):  # type: ignore[no-untyped-def]
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
        for g in range(G):
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


@triton.jit(do_not_specialize=["T"])
def _between_fwd_kernel(  # type: ignore[no-untyped-def]
    z_ptr,
    scale_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    moments_ptr,
    T: tl.int64,
    H: tl.constexpr,
    N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = Dice(z) @ weight.T + bias of one tile of visits."""
    tile = tl.program_id(0).to(tl.int64)
    t, n = tile * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_N)
    there, in_n = t < T, n < N
    # bias: [N]
    out = tl.zeros([BLOCK_T, BLOCK_N], tl.float32) + tl.load(bias_ptr + n, mask=in_n, other=0.0)[None, :]
    for first in range(0, H, BLOCK_H):
        h = first + tl.arange(0, BLOCK_H)
        in_h = h < H
        # scale: [3, H]
        mean, rstd, alpha = dice_scale(scale_ptr, h, in_h, H)
        # z: [T, H]
        z = tl.load(z_ptr + t[:, None] * H + h[None, :], mask=there[:, None] & in_h[None, :], other=0.0)
        a, _, _ = dice(z.to(tl.float32), mean, rstd, alpha)
        # weight: [N, H], read as [H, N]
        weight = tl.load(weight_ptr + n[None, :] * H + h[:, None], mask=in_h[:, None] & in_n[None, :], other=0.0)
        out = tl.dot(a.to(z.dtype), weight.to(z.dtype), out, input_precision=PRECISION)
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
    mean, rstd, alpha = dice_scale(scale_ptr, h, in_h, H)
    weight = tl.load(weight_ptr + h, mask=in_h, other=0.0)
    bias = tl.load(bias_ptr)
    interest = tl.zeros([BLOCK_D], tl.float32)
    for t0 in range(start, stop, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        there = t < stop
        # z: [T, H]; keys: [T, D]
        z = tl.load(z_ptr + t[:, None] * H + h[None, :], mask=there[:, None] & in_h[None, :], other=0.0)
        k = tl.load(keys_ptr + t[:, None] * D + d[None, :], mask=there[:, None] & in_d[None, :], other=0.0)
        a, _, _ = dice(z.to(tl.float32), mean, rstd, alpha)
        w = (tl.sum(a * weight[None, :], 1) + bias).to(weights_ptr.dtype.element_ty)
        tl.store(weights_ptr + t, w, mask=there)
        interest += tl.sum(w.to(tl.float32)[:, None] * k.to(tl.float32), 0)
    # interest: [B, D]
    tl.store(interest_ptr + b * D + d, interest.to(interest_ptr.dtype.element_ty), mask=in_d)
