"""Triton path of ``search_attention``.

A program a sample: its queries stay in registers, and its chosen visits pass by in tiles, in the forward under an
online softmax, in the backward twice: once for what a softmax's gradient shares, once for the gradients. Hats are
computed from the gaps, never stored. Each visit belongs to one sample, so nothing is added up between programs, and
results are the same from run to run.
"""

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .variants import BIG, Variants, aligned, launch, next_power_of_2

NUMBERS, NUMBERS_BWD = 2048, 1024  # of heads x visits x columns in registers at once
MOST_NUMBERS = 2048  # of heads x columns, both rounded up to powers of two: a visit at a time, or two


@triton.jit
def _visits(  # type: ignore[no-untyped-def]
    keys_ptr,
    gaps_ptr,
    rows_ptr,
    b,
    r0,
    n,
    k,
    D: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Of visits r0 .. n of sample b: rows [R], which are there, keys [R, D], hats [R, C] and their slopes."""
    r, d, c = r0 + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C)
    there = r < n
    # rows: [B, k]; keys: [T, D]; gaps: [T, G]
    row = tl.load(rows_ptr + b * k + r, mask=there, other=0)
    key = tl.load(keys_ptr + row[:, None] * D + d[None, :], mask=there[:, None] & (d < D)[None, :], other=0.0)
    real = there[:, None] & (c < G * K)[None, :]
    gap = tl.load(gaps_ptr + row[:, None] * G + (c // K)[None, :], mask=real, other=0.0).to(tl.float32)
    knot = (c % K)[None, :].to(tl.float32)
    at = tl.minimum(tl.maximum(gap, 0.0), K - 1.0)
    hat = tl.where(real, tl.maximum(1 - tl.abs(at - knot), 0.0), 0.0)
    low = tl.minimum(tl.floor(at), K - 2.0)
    slope = tl.where(knot == low, -1.0, tl.where(knot == low + 1, 1.0, 0.0))
    slope = tl.where(real & (gap > 0) & (gap < K - 1), slope, 0.0)
    return row, there, key.to(tl.float32), hat, slope


@triton.jit
def _heads(  # type: ignore[no-untyped-def]
    x_ptr, b, A: tl.constexpr, E: tl.constexpr, D: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Rows of sample b in x [B, A, E], as the columns of a key [A, D] and those of hats [A, C]."""
    a, d, c = tl.arange(0, BLOCK_A), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C)
    start = x_ptr + (b * A + a)[:, None] * E
    of_key = tl.load(start + d[None, :], mask=(a < A)[:, None] & (d < D)[None, :], other=0.0)
    of_hats = tl.load(start + D + c[None, :], mask=(a < A)[:, None] & (c < E - D)[None, :], other=0.0)
    return of_key.to(tl.float32), of_hats.to(tl.float32)


@triton.jit
def _store_heads(  # type: ignore[no-untyped-def]
    x_ptr, of_key, of_hats, b, A: tl.constexpr, E: tl.constexpr, D: tl.constexpr, BLOCK_A: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The reverse of ``_heads``."""
    a, d, c = tl.arange(0, BLOCK_A), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C)
    start = x_ptr + (b * A + a)[:, None] * E
    tl.store(start + d[None, :], of_key.to(x_ptr.dtype.element_ty), mask=(a < A)[:, None] & (d < D)[None, :])
    tl.store(start + D + c[None, :], of_hats.to(x_ptr.dtype.element_ty), mask=(a < A)[:, None] & (c < E - D)[None, :])


@triton.jit
def _products(of_key, of_hats, key, hat):  # type: ignore[no-untyped-def]
    """[A, D] with [R, D], and [A, C] with [R, C]: [A, R]."""
    return tl.sum(of_key[:, None, :] * key[None, :, :], 2) + tl.sum(of_hats[:, None, :] * hat[None, :, :], 2)


@triton.jit
def _found(rows_ptr, b, k, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many visits of sample b were chosen; they come first."""
    r = tl.arange(0, BLOCK_K)
    row = tl.load(rows_ptr + b * k + r, mask=r < k, other=-1)
    return tl.sum((row >= 0).to(tl.int32), 0)


@triton.jit(do_not_specialize=["k"])
def _fwd_kernel(  # type: ignore[no-untyped-def]
    queries_ptr,
    keys_ptr,
    gaps_ptr,
    rows_ptr,
    pooled_ptr,
    total_ptr,
    k,
    A: tl.constexpr,
    D: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Pooled z and log(1 + sum of exp) of one sample, all heads."""
    b = tl.program_id(0).to(tl.int64)
    E: tl.constexpr = D + G * K
    a = tl.arange(0, BLOCK_A)
    query, query_hats = _heads(queries_ptr, b, A, E, D, BLOCK_A, BLOCK_D, BLOCK_C)
    n = _found(rows_ptr, b, k, BLOCK_K)
    top, total = tl.zeros([BLOCK_A], tl.float32), tl.full([BLOCK_A], 1.0, tl.float32)  # no visit: logit 0
    pooled, pooled_hats = tl.zeros([BLOCK_A, BLOCK_D], tl.float32), tl.zeros([BLOCK_A, BLOCK_C], tl.float32)
    for r0 in range(0, n, BLOCK_R):
        _, there, key, hat, _ = _visits(keys_ptr, gaps_ptr, rows_ptr, b, r0, n, k, D, G, K, BLOCK_R, BLOCK_D, BLOCK_C)
        logit = tl.where(there[None, :], _products(query, query_hats, key, hat), -float("inf"))
        new = tl.maximum(top, tl.max(logit, 1))
        scale, power = tl.exp(top - new), tl.exp(logit - new[:, None])
        total = total * scale + tl.sum(power, 1)
        pooled = pooled * scale[:, None] + tl.sum(power[:, :, None] * key[None, :, :], 1)
        pooled_hats = pooled_hats * scale[:, None] + tl.sum(power[:, :, None] * hat[None, :, :], 1)
        top = new
    _store_heads(
        pooled_ptr, pooled / total[:, None], pooled_hats / total[:, None], b, A, E, D, BLOCK_A, BLOCK_D, BLOCK_C
    )
    # total: float32 [B, A]
    tl.store(total_ptr + b * A + a, top + tl.log(total), mask=a < A)


@triton.jit(do_not_specialize=["k"])
def _bwd_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    of_total_ptr,
    queries_ptr,
    keys_ptr,
    gaps_ptr,
    rows_ptr,
    total_ptr,
    of_queries_ptr,
    of_keys_ptr,
    of_gaps_ptr,
    k,
    A: tl.constexpr,
    D: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    WANT_GAPS: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Gradients of one sample's queries, and of the keys and gaps of its chosen visits."""
    b = tl.program_id(0).to(tl.int64)
    E: tl.constexpr = D + G * K
    a, d, c = tl.arange(0, BLOCK_A), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C)
    query, query_hats = _heads(queries_ptr, b, A, E, D, BLOCK_A, BLOCK_D, BLOCK_C)
    grad, grad_hats = _heads(grad_ptr, b, A, E, D, BLOCK_A, BLOCK_D, BLOCK_C)
    # total, of_total: [B, A]
    total = tl.load(total_ptr + b * A + a, mask=a < A, other=0.0)
    shared = -tl.load(of_total_ptr + b * A + a, mask=a < A, other=0.0).to(tl.float32)
    n = _found(rows_ptr, b, k, BLOCK_K)
    for r0 in range(0, n, BLOCK_R):
        _, there, key, hat, _ = _visits(keys_ptr, gaps_ptr, rows_ptr, b, r0, n, k, D, G, K, BLOCK_R, BLOCK_D, BLOCK_C)
        weight = tl.exp(_products(query, query_hats, key, hat) - total[:, None])
        shared += tl.sum(tl.where(there[None, :], weight * _products(grad, grad_hats, key, hat), 0.0), 1)
    of_query, of_query_hats = tl.zeros([BLOCK_A, BLOCK_D], tl.float32), tl.zeros([BLOCK_A, BLOCK_C], tl.float32)
    for r0 in range(0, n, BLOCK_R):
        row, there, key, hat, slope = _visits(
            keys_ptr, gaps_ptr, rows_ptr, b, r0, n, k, D, G, K, BLOCK_R, BLOCK_D, BLOCK_C
        )
        real = there[None, :] & (a < A)[:, None]
        weight = tl.where(real, tl.exp(_products(query, query_hats, key, hat) - total[:, None]), 0.0)
        of_logit = weight * (_products(grad, grad_hats, key, hat) - shared[:, None])
        of_query += tl.sum(of_logit[:, :, None] * key[None, :, :], 1)
        of_query_hats += tl.sum(of_logit[:, :, None] * hat[None, :, :], 1)
        of_key = tl.sum(weight[:, :, None] * grad[:, None, :] + of_logit[:, :, None] * query[:, None, :], 0)
        tl.store(
            of_keys_ptr + row[:, None] * D + d[None, :], of_key.to(of_keys_ptr.dtype.element_ty),
            mask=there[:, None] & (d < D)[None, :],
        )  # fmt: skip
        if WANT_GAPS:
            of_hat = tl.sum(
                weight[:, :, None] * grad_hats[:, None, :] + of_logit[:, :, None] * query_hats[:, None, :], 0
            )
            for g in tl.static_range(G):
                of_gap = tl.sum(tl.where((c // K == g)[None, :], of_hat * slope, 0.0), 1)
                tl.store(of_gaps_ptr + row * G + g, of_gap.to(of_gaps_ptr.dtype.element_ty), mask=there)
    _store_heads(of_queries_ptr, of_query, of_query_hats, b, A, E, D, BLOCK_A, BLOCK_D, BLOCK_C)


def _block(size: int) -> int:
    return next_power_of_2(max(1, size))


def _settings(A: int, D: int, C: int, numbers: int) -> dict[str, int]:
    """Tile of visits by how many numbers there are of one."""
    columns = _block(A) * max(_block(D), _block(C))
    visits = min(8, max(2, numbers // columns))
    return {"BLOCK_R": visits, "num_warps": 4, "num_stages": 1}


def fits(A: int, D: int, C: int) -> bool:
    """Whether A heads of D + C columns stay in registers; C: hats of all gaps."""
    return _block(A) * max(_block(D), _block(C)) <= MOST_NUMBERS


def _arguments(queries: Tensor, keys: Tensor, gaps: Tensor, rows: Tensor, numbers: int) -> dict[str, Any]:
    """Settings and constants of a kernel with so many numbers in registers."""
    (_, A, E), D, G = queries.shape, keys.shape[1], gaps.shape[1]
    blocks = {"BLOCK_A": _block(A), "BLOCK_D": _block(D), "BLOCK_C": _block(E - D), "BLOCK_K": _block(rows.shape[1])}
    return {"A": A, "D": D, "G": G, "K": (E - D) // G, **blocks, **_settings(A, D, E - D, numbers)}


def search_attention_triton(queries: Tensor, keys: Tensor, gaps: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The forward of ``search_attention``; its third result is the log total in float32, for the backward."""
    queries, keys, gaps, rows = map(aligned, (queries, keys, gaps, rows))
    B, A, _ = queries.shape
    pooled, total = torch.empty_like(queries), queries.new_empty(B, A, dtype=torch.float32)
    if B:
        constants = _arguments(queries, keys, gaps, rows, NUMBERS)
        launch(_fwd_kernel, (B,))(queries, keys, gaps, rows, pooled, total, rows.shape[1], **constants)
    return pooled, total.to(queries.dtype, copy=True), total


def search_attention_backward_triton(
    grad: Tensor,
    of_total: Tensor,
    queries: Tensor,
    keys: Tensor,
    gaps: Tensor,
    rows: Tensor,
    total: Tensor,
    want_gaps: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Its backward: gradients of queries, keys and gaps ([0, G] if not wanted)."""
    grad, of_total, queries, keys = map(aligned, (grad, of_total, queries, keys))
    gaps, rows, total = map(aligned, (gaps, rows, total))
    of_queries, of_keys = torch.empty_like(queries), torch.zeros_like(keys)
    of_gaps = gaps.new_zeros(len(gaps) if want_gaps else 0, gaps.shape[1])
    if len(queries):
        constants = _arguments(queries, keys, gaps, rows, NUMBERS_BWD)
        launch(_bwd_kernel, (len(queries),))(
            grad, of_total, queries, keys, gaps, rows, total, of_queries, of_keys, of_gaps, rows.shape[1],
            WANT_GAPS=want_gaps, **constants,
        )  # fmt: skip
    return of_queries, of_keys, of_gaps


def _both(
    dtype: torch.dtype, A: int, D: int, G: int, K: int, k: int, visits: int = 1000, want_gaps: bool = False
) -> None:
    """Start both kernels in these widths, on the meta device."""
    queries, keys, gaps = (
        torch.empty(s, dtype=dtype, device="meta") for s in ((100, A, D + G * K), (visits, D), (visits, G))
    )
    rows = torch.empty(100, k, dtype=torch.int64, device="meta")
    pooled, of_total, total = search_attention_triton(queries, keys, gaps, rows)
    search_attention_backward_triton(pooled, of_total, queries, keys, gaps, rows, total, want_gaps)


# Beside what rankers have: ``tests/support/ranker_launches.py`` asks the towers for that.
_WIDE, _GAPS = (8, 256, 2, 13, 200), (4, 48, 2, 13, 100)
VARIANTS = Variants(
    {
        "narrow_fp32": partial(_both, torch.float32, 1, 16, 2, 13, 20),
        "wide_fp32": partial(_both, torch.float32, *_WIDE),
        "wide_bf16": partial(_both, torch.bfloat16, *_WIDE),
        "gaps_fp32": partial(_both, torch.float32, *_GAPS, BIG, True),
        "gaps_bf16": partial(_both, torch.bfloat16, *_GAPS, BIG, True),
        "gaps_fp16": partial(_both, torch.float16, *_GAPS, BIG, True),
    }
)
