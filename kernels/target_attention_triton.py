"""Triton path of ``target_attention``.

The same six steps as on the CPU. The first and the last layer take a program a sample (their matrix, or their sum, is
the sample's own), the layers between and the gaps take tiles of visits. What is summed over all visits is written once
a program and then added up by one, so results are the same from run to run.

Here are settings and launchers; the kernels are in ``target_attention_fwd_triton.py`` and
``target_attention_bwd_triton.py``.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .dice_triton import statistics_triton
from .target_attention_bwd_triton import (
    _first_bwd_kernel,
    _gaps_bwd_kernel,
    _last_bwd_kernel,
    _layer_delta_kernel,
    _layer_sums_kernel,
)
from .target_attention_fwd_triton import _between_fwd_kernel, _first_fwd_kernel, _last_fwd_kernel
from .variants import BIG, Variants, aligned, cdiv, launch, next_power_of_2

PROGRAMS = 512  # that keep a large GPU busy and still leave few partial sums
MOST_NUMBERS = 4096  # of a sample's own matrix, D * H1 with both rounded up to powers of two


def _block(columns: int) -> int:
    """Columns as the kernels take them: a power of two that tensor cores can multiply."""
    return max(16, next_power_of_2(columns))


def fits(dim: int, hidden: list[int]) -> bool:
    """Whether matrices of these widths can be kept in registers; wider ones are for the reference."""
    pairs = zip([dim, *hidden], hidden, strict=False)
    return all(_block(a) * _block(b) <= MOST_NUMBERS for a, b in pairs)


def _settings(D: int, H: int) -> dict[str, int]:
    """Of a program that takes a sample's visits forward, with a matrix [D, H] in registers."""
    tile = 32 if _block(D) * _block(H) <= 2048 else 16
    return {"BLOCK_T": tile, "num_warps": 4 if tile == 32 or H <= 32 else 8, "num_stages": 1}


def _row_settings(N: int, H: int) -> dict[str, int]:
    """Of a program that takes tiles of visits through a layer with weight [N, H], so many columns of it at a time."""
    columns = min(_block(H), 2048 // _block(N))
    blocks = {"BLOCK_T": 32 if _block(N) * columns <= 1024 else 16, "BLOCK_H": columns, "BLOCK_N": _block(N)}
    return {**blocks, "num_warps": 4, "num_stages": 1}


def _first_bwd_settings(H: int) -> dict[str, int]:
    """Columns so few that the kernel's matrices, [H, BLOCK_D] each, and two products' operands fit the registers."""
    warps = 4 if _block(H) <= 32 else 8
    return {"BLOCK_T": 16, "BLOCK_D": max(16, 1024 // _block(H)), "num_warps": warps, "num_stages": 1}


def _gaps_bwd_settings(G: int) -> dict[str, int]:
    """Of a program that takes tiles of visits through the first layer's weight of gaps, [G, H]."""
    return {"BLOCK_T": 16, "BLOCK_G": min(32, _block(G)), "num_warps": 4, "num_stages": 1}


def _precision() -> str:
    """Of float32 products, by the getter that answers however PyTorch was told: ``allow_tf32`` may raise."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


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
    query, bias, keys, gaps, offsets, weight = map(aligned, (query, bias, keys, gaps, offsets, weight))
    (T, D), G, (B, H), precision = keys.shape, gaps.shape[1], bias.shape, _precision()
    wide = {"BLOCK_D": _block(D)}
    zs, used = [keys.new_empty(T, H)], []
    moments = keys.new_empty(B, 2, H, dtype=torch.float32)
    parts: tuple[Tensor | None, int] = offsets, 0
    settings = _settings(D, H) | wide
    launch(_first_fwd_kernel, (B,))(
        query, bias, keys, gaps, offsets, weight, zs[0], moments, D, G, H,
        BLOCK_H=_block(H), PRECISION=precision, **settings,
    )  # fmt: skip
    interest, of_visits = query.new_empty(B, D), keys.new_empty(T, 1)
    for i, (of_layer, offset) in enumerate(zip(weights, biases, strict=True)):
        if batch_statistics:
            of_columns, scale = statistics_triton(moments, alphas[i], eps, T, *parts)
        else:
            of_columns, scale = statistics[i].clone(), _scale(statistics[i], alphas[i], eps)
        used.append(of_columns)
        of_layer, offset, (N, H) = aligned(of_layer), aligned(offset), of_layer.shape
        if i + 1 < len(weights):
            zs.append(keys.new_empty(T, N))
            settings = _row_settings(N, H)
            tiles = cdiv(T, settings["BLOCK_T"])
            moments = keys.new_empty(tiles, 2, N, dtype=torch.float32)
            parts = (None, settings["BLOCK_T"])
            if T:
                launch(_between_fwd_kernel, (tiles,))(
                    zs[i], scale, of_layer, offset, zs[-1], moments, T, H, N, PRECISION=precision, **settings
                )  # fmt: skip
        else:
            settings = _settings(D, H) | wide
            launch(_last_fwd_kernel, (B,))(
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
    grad, query, keys, gaps, offsets, weight = map(aligned, (grad, query, keys, gaps, offsets, weight))
    (T, D), G, B, precision = keys.shape, gaps.shape[1], query.shape[0], _precision()
    layers, wide = len(weights), {"BLOCK_D": _block(D)}
    weights, zs, of_visits = [*map(aligned, weights)], [*map(aligned, zs)], aligned(of_visits)
    grad_alphas, grad_weights, grad_biases = ([keys.new_empty(0)] * layers for _ in range(3))
    above = of_visits
    for i in reversed(range(layers)):
        N, H = weights[i].shape
        scale, rows = _scale(statistics[i], alphas[i], eps), _row_settings(N, H)
        tiles, columns = cdiv(T, rows["BLOCK_T"]), cdiv(H, rows["BLOCK_H"])
        if i + 1 == layers:
            above, sums = keys.new_empty(T, 1), scale.new_empty(B, 5, H)
            settings = _settings(D, H) | wide
            launch(_last_bwd_kernel, (B,))(
                grad, keys, zs[i], scale, weights[i], offsets, above, sums, D, H, BLOCK_H=_block(H), **settings
            )
            dx, dx_x, of_alpha, of_weight, of_bias = sums.sum(0)
            grad_weights[i], grad_biases[i] = of_weight[None].clone(), of_bias[:1].clone()
        else:
            programs = max(1, min(PROGRAMS, tiles))
            sums, of_weight, of_bias = (scale.new_empty(programs, *n) for n in ((3, H), (N, H), (N,)))
            launch(_layer_sums_kernel, (programs, columns))(
                above, weights[i], zs[i], scale, sums, of_weight, of_bias, T, H, N, PRECISION=precision, **rows
            )
            dx, dx_x, of_alpha = sums.sum(0)
            grad_weights[i], grad_biases[i] = of_weight.sum(0), of_bias.sum(0)
        grad_alphas[i], share = of_alpha.clone(), 1 / T if batch_statistics and T else 0.0
        scale, delta = torch.cat([scale, torch.stack([dx, dx_x]) * share]), keys.new_empty(T, H)
        if T:
            launch(_layer_delta_kernel, (tiles, columns))(
                above, weights[i], zs[i], scale, delta, T, H, N, PRECISION=precision, **rows
            )
        above = delta

    H, (of_keys, of_gaps) = weight.shape[0], map(aligned, weight.split([2 * D, G], dim=1))
    grad_query, grad_bias, grad_keys = query.new_empty(B, D), query.new_empty(B, H), keys.new_empty(T, D)
    settings, programs = _first_bwd_settings(H), min(PROGRAMS, B)
    grad_of_keys = weight.new_zeros(programs, H, 2 * D)
    launch(_first_bwd_kernel, (programs, cdiv(D, settings["BLOCK_D"])))(
        query, keys, offsets, of_keys, grad, of_visits, above, grad_query, grad_bias, grad_keys, grad_of_keys,
        B, D, H, BLOCK_H=_block(H), PRECISION=precision, **settings,
    )  # fmt: skip
    settings = _gaps_bwd_settings(G)
    programs = min(PROGRAMS, cdiv(T, settings["BLOCK_T"]))
    grad_gaps, grad_of_gaps = gaps.new_empty(T if want_gaps else 0, G), weight.new_empty(programs, H, G)
    if T and G:
        launch(_gaps_bwd_kernel, (programs, cdiv(G, settings["BLOCK_G"])))(
            gaps, of_gaps, above, grad_gaps, grad_of_gaps, T, G, H, want_gaps,
            BLOCK_H=_block(H), PRECISION=precision, **settings,
        )  # fmt: skip
    of_weight = torch.cat([grad_of_keys.sum(0), grad_of_gaps.sum(0)], 1)
    return grad_query, grad_bias, grad_keys, grad_gaps, of_weight, grad_alphas, grad_weights, grad_biases


def _both(
    dtype: torch.dtype, D: int, G: int, hidden: tuple[int, ...], visits: int = 1000, want_gaps: bool = False
) -> None:
    """Start all kernels of a step in these widths, on the meta device."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    B, N = 100, (*hidden[1:], 1)
    query, bias, keys, gaps = (empty(*s, dtype=dtype) for s in ((B, D), (B, hidden[0]), (visits, D), (visits, G)))
    offsets, weight = empty(B + 1, dtype=torch.int64), empty(hidden[0], 2 * D + G)
    alphas, statistics = [empty(h) for h in hidden], [empty(2, h) for h in hidden]
    weights, biases = [empty(n, h) for n, h in zip(N, hidden, strict=True)], [empty(n) for n in N]
    out, of_visits, zs, used = target_attention_triton(
        query, bias, keys, gaps, offsets, weight, alphas, statistics, weights, biases, True, 1e-8
    )
    target_attention_backward_triton(
        out, query, keys, gaps, offsets, weight, alphas, used, weights, of_visits, zs, True, 1e-8, want_gaps
    )


def _in_tf32(*sizes: Any) -> None:
    """``_both`` with float32 products in tf32, as a user may ask PyTorch for them."""
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        _both(torch.float32, *sizes)
    finally:
        matmul.fp32_precision = before


# The extremes of what ``fits``. Beside what rankers have: ``tests/support/ranker_launches.py`` asks towers for that.
_SIZES: dict[str, tuple[Any, ...]] = {
    "wide": (256, 2, (16, 16)),
    "square": (64, 2, (64, 64)),
    "gaps": (16, 40, (256, 16), BIG, True),
}
VARIANTS = Variants(
    {f"{name}_fp32": partial(_both, torch.float32, *sizes) for name, sizes in _SIZES.items()}
    | {f"{name}_bf16": partial(_both, torch.bfloat16, *sizes) for name, sizes in _SIZES.items()}
    | {
        "narrow_bf16": partial(_both, torch.bfloat16, 32, 2, (32, 16)),
        "square_fp16": partial(_both, torch.float16, *_SIZES["square"]),
        "square_tf32": partial(_in_tf32, *_SIZES["square"]),
    }
)
