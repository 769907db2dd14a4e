"""Triton kernels of ``codebook``.

Encoding is matrix products of bfloat16 in either precision. A float32 number is the sum of three bfloat16 numbers, 24
bits in all, so x . c is six products of such planes, summed in float32; the three left out are below 2^-25 |x| |c|, and
what remains is the rounding of the sum. That runs on the matrix units of NVIDIA and AMD alike. tf32x3 keeps 22 bits at
the same peak rate, bfloat16 being twice as fast as tf32, and "ieee" leaves NVIDIA's matrix units unused. Planes are cut
once a level, not once a tile, so the inner loop is loads and products and nothing else.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .variants import BIG, Variants, aligned, cdiv, launch


@triton.jit
def _residual(x_ptr, centres_ptr, codes_ptr, rows, cols, N, K, D, L, levels):  # type: ignore[no-untyped-def]
    """fp32 [rows, cols]: x less the centres that the first ``levels`` levels chose, in their order."""
    # x: [N, D]
    mask = (rows < N)[:, None] & (cols < D)[None, :]
    r = tl.load(x_ptr + rows[:, None] * D + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    for level in range(0, levels):
        # codes: [N, L]
        code = tl.load(codes_ptr + rows * L + level, mask=rows < N, other=-1).to(tl.int32)
        # centres: [L, K, D]
        level_ptr = centres_ptr + level * tl.cast(K, tl.int64) * D
        r -= tl.load(level_ptr + code[:, None] * D + cols[None, :], mask=mask & (code >= 0)[:, None], other=0.0)
    return r


@triton.jit(do_not_specialize=["N", "K", "D", "L"])
def _residual_encode_fwd_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    centres_ptr,
    planes_ptr,
    half_norms_ptr,
    scratch_ptr,
    codes_ptr,
    N: tl.int64,
    K,
    D,
    L,
    PLANES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """All levels of BLOCK_N rows, then of the next BLOCK_N rows of this program.

    The residual's planes lie in the program's own slot of the scratch, which is small enough to stay in the level-2
    cache: on the chip, where registers could not hold it. It is never read back to be subtracted from: each level
    rebuilds it from x and the chosen centres, so no rounding adds up.

    Offsets inside a block, a slot and a level are 32-bit; their bases are 64-bit.
    """
    PAIRS: tl.constexpr = 6 if PLANES == 3 else 1
    # Planes of r and c of each pair, two bits a pair: 2 0, 0 2, 1 1, 1 0, 0 1, 0 0, the smallest first.
    R_PLANES: tl.constexpr = 0b00_00_01_01_00_10 if PLANES == 3 else 0
    C_PLANES: tl.constexpr = 0b00_01_00_01_10_00 if PLANES == 3 else 0
    chunks = tl.cdiv(D, BLOCK_D)
    padded_D = chunks * BLOCK_D
    level_size = tl.cast(K, tl.int64) * padded_D
    rows = tl.arange(0, BLOCK_N)
    program = tl.program_id(0).to(tl.int64)
    # scratch: [programs, PLANES, BLOCK_N, padded_D]; planes: [PLANES, L, K, padded_D]
    slot_ptr = tl.multiple_of(scratch_ptr + program * PLANES * BLOCK_N * padded_D, 16)
    for block in range(program, tl.cdiv(N, BLOCK_N), tl.num_programs(0)):
        first_row = block * BLOCK_N
        left = tl.minimum(N - first_row, BLOCK_N).to(tl.int32)
        block_x_ptr = x_ptr + first_row * D
        block_codes_ptr = codes_ptr + first_row * L
        for level in range(0, L):
            for column in range(0, padded_D, BLOCK_C):
                cols = column + tl.arange(0, BLOCK_C)
                rest = _residual(block_x_ptr, centres_ptr, block_codes_ptr, rows, cols, left, K, D, L, level)
                for plane in tl.static_range(PLANES):
                    part = rest.to(tl.bfloat16)
                    rest -= part.to(tl.float32)
                    tl.store(slot_ptr + (plane * BLOCK_N + rows)[:, None] * padded_D + cols[None, :], part)
            tl.debug_barrier()  # the planes are read by other threads than wrote them

            best = tl.full([BLOCK_N], -float("inf"), tl.float32)
            winner = tl.full([BLOCK_N], -1, tl.int32)
            for first in range(0, K, BLOCK_K):
                k = first + tl.arange(0, BLOCK_K)
                scores = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
                for step in range(0, PAIRS * chunks):  # one loop over pairs and columns, so that loads run ahead
                    pair, chunk = (step // chunks, step % chunks) if PLANES == 3 else (0, step)
                    cols = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
                    r_plane, c_plane = (R_PLANES >> 2 * pair) & 3, (C_PLANES >> 2 * pair) & 3
                    r = tl.load(slot_ptr + (r_plane * BLOCK_N + rows)[:, None] * padded_D + cols[None, :])
                    c_ptr = tl.multiple_of(planes_ptr + (c_plane * L + level) * level_size, 16)
                    c = tl.load(c_ptr + k[None, :] * padded_D + cols[:, None], mask=(k < K)[None, :], other=0.0)
                    scores = tl.dot(r, c, scores)
                # half norms: [L, K]
                scores -= tl.load(half_norms_ptr + level * K + k, mask=k < K, other=float("inf"))[None, :]
                scores = tl.where(scores == scores, scores, -float("inf"))  # NaN is never chosen
                top = tl.max(scores, axis=1)
                lowest = tl.min(tl.where(scores == top[:, None], k[None, :], K), axis=1)
                winner = tl.where(top > best, lowest, winner)
                best = tl.maximum(top, best)
            winner = tl.where(best < float("inf"), winner, -1)  # an infinite row, or products too large
            # codes: [N, L]
            tl.store(block_codes_ptr + rows * L + level, winner.to(tl.int64), mask=rows < left)
            tl.debug_barrier()  # codes are written before the next level reads them, planes read before it writes them


@triton.jit(do_not_specialize=["N", "K", "L"])
def _residual_norms_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    centres_ptr,
    codes_ptr,
    norms_ptr,
    N: tl.int64,
    K,
    D,
    L,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_N
    left = tl.minimum(N - first_row, BLOCK_N).to(tl.int32)
    rows = tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_N], tl.float32)
    for column in range(0, D, BLOCK_D):
        cols = column + tl.arange(0, BLOCK_D)
        rest = _residual(x_ptr + first_row * D, centres_ptr, codes_ptr + first_row * L, rows, cols, left, K, D, L, L)
        total += tl.sum(rest * rest, axis=1)
    # norms: [N]
    tl.store(norms_ptr + first_row + rows, tl.sqrt(total), mask=rows < left)


@triton.jit(do_not_specialize=["N", "K", "L"])
def _residual_lookup_fwd_kernel(  # type: ignore[no-untyped-def]
    codes_ptr, codebooks_ptr, out_ptr, N: tl.int64, K, D, L, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_N
    rows, cols = tl.arange(0, BLOCK_N), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_rows, in_cols = rows < N - first_row, (cols < D)[None, :]
    total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for level in range(0, L):
        # codes: [N, L]
        code = tl.load(codes_ptr + first_row * L + rows * L + level, mask=in_rows, other=-1)
        found, code = (code >= 0) & (code < K), tl.where(code < K, code, K).to(tl.int32)
        # codebooks: [L, K, D]
        level_ptr = codebooks_ptr + level * tl.cast(K, tl.int64) * D
        centre = tl.load(level_ptr + code[:, None] * D + cols[None, :], mask=found[:, None] & in_cols, other=0.0)
        total += tl.where((code < K)[:, None], centre.to(tl.float32), float("nan"))
    # out: [N, D]
    out = total.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + first_row * D + rows[:, None] * D + cols[None, :], out, mask=in_rows[:, None] & in_cols)


@triton.jit(do_not_specialize=["N", "K", "L"])
def _residual_lookup_bwd_kernel(  # type: ignore[no-untyped-def]
    grad_ptr, codes_ptr, out_ptr, N: tl.int64, K, D, L, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Adds each row's gradient to its centres by atomics, into fp32 zeros."""
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_N
    rows, cols = tl.arange(0, BLOCK_N), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_rows, in_cols = rows < N - first_row, (cols < D)[None, :]
    # grad: [N, D]
    grad_ptrs = grad_ptr + first_row * D + rows[:, None] * D + cols[None, :]
    grad = tl.load(grad_ptrs, mask=in_rows[:, None] & in_cols, other=0.0).to(tl.float32)
    for level in range(0, L):
        # codes: [N, L]
        code = tl.load(codes_ptr + first_row * L + rows * L + level, mask=in_rows, other=-1)
        found, code = (code >= 0) & (code < K), code.to(tl.int32)
        # out: [L, K, D]
        level_ptr = out_ptr + level * tl.cast(K, tl.int64) * D
        tl.atomic_add(level_ptr + code[:, None] * D + cols[None, :], grad, mask=found[:, None] & in_cols, sem="relaxed")


@triton.jit(do_not_specialize=["first"])
def _residual_lookup_bwd_sorted_kernel(  # type: ignore[no-untyped-def]
    grad_ptr, order_ptr, offsets_ptr, out_ptr, first: tl.int64, D, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """One centre of the level whose first is ``first``: the sum of its rows, in the order of the rows."""
    k = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    # offsets: [K + 1], where the centre's rows begin and end in order
    start, stop = tl.load(offsets_ptr + k), tl.load(offsets_ptr + k + 1)
    total = tl.zeros([BLOCK_D], tl.float32)
    for begin in range(start, stop, BLOCK_N):
        at = begin + tl.arange(0, BLOCK_N)
        # order: [N]
        rows = tl.load(order_ptr + at, mask=at < stop, other=0)
        # grad: [N, D]
        in_grad = (at < stop)[:, None] & (cols < D)[None, :]
        grad = tl.load(grad_ptr + rows[:, None] * D + cols[None, :], mask=in_grad, other=0.0)
        total += tl.sum(grad.to(tl.float32), axis=0)
    # out: [L * K, D]
    tl.store(out_ptr + (first + k) * D + cols, total, mask=cols < D)


def _encode_settings(rows: int) -> dict[str, int]:
    """Tile, warps and stages: shared memory of 64 KiB at most, as AMD asks for."""
    tile = {"BLOCK_K": 128, "BLOCK_D": 64, "BLOCK_C": 32}
    if rows >= 8192:
        return {"BLOCK_N": 128, **tile, "num_warps": 8, "num_stages": 3}
    return {"BLOCK_N": 64, **tile, "num_warps": 4, "num_stages": 3}  # more programs for few rows


_LOOKUP = {"BLOCK_N": 32, "BLOCK_D": 64, "num_warps": 4, "num_stages": 2}
_NORMS = {"BLOCK_N": 32, "BLOCK_D": 64, "num_warps": 4, "num_stages": 2}


def _programs(device: torch.device, warps: int) -> int:
    """As many as registers leave room for at once: 8 warps a multiprocessor."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return processors * 8 // warps


def _planes(directions: Tensor, count: int, block_d: int) -> Tensor:
    """bfloat16 [count, L, K, D padded with zeros to blocks of block_d]; their sum over ``count`` is ``directions``."""
    padded = -(-directions.shape[2] // block_d) * block_d
    planes, rest = directions.new_zeros(count, *directions.shape[:2], padded, dtype=torch.bfloat16), directions
    for plane in planes:
        part = plane[:, :, : directions.shape[2]]
        part.copy_(rest)  # torch.stack takes no bfloat16 under autocast to float16
        rest = rest - part
    return planes


def residual_encode_triton(
    x: Tensor, centres: Tensor, directions: Tensor, half_norms: Tensor, with_norms: bool
) -> tuple[Tensor, Tensor]:
    """As ``codebook_cpu.residual_encode_cpu``. Adds 2 or 6 bytes a number of 128 rows a multiprocessor."""
    (total, dim), (levels, count, _) = x.shape, centres.shape
    x, centres, half_norms = map(aligned, (x, centres, half_norms))
    codes = torch.empty(total, levels, dtype=torch.int64, device=x.device)
    norms = torch.empty(total if with_norms else 0, device=x.device)
    if total == 0:
        return codes, norms
    planes = 3 if directions.dtype == torch.float32 else 1
    settings = _encode_settings(total)
    block_n, block_d = settings["BLOCK_N"], settings["BLOCK_D"]
    # Triton's interpreter multiplies bfloat16 as the integers that it keeps them in: there, planes are kept as float32.
    split = _planes(directions, planes, block_d).to(torch.float32 if x.is_cpu else torch.bfloat16)
    if max(count, block_n) * split.shape[3] >= 2**31:
        raise ValueError(f"K = {count} centres of D = {dim}: K D or {block_n} rows are over 2^31 numbers")
    programs = min(_programs(x.device, settings["num_warps"]), cdiv(total, block_n))
    scratch = torch.empty(programs, planes, block_n, split.shape[3], dtype=split.dtype, device=x.device)
    sizes = total, count, dim, levels
    launch(_residual_encode_fwd_kernel, (programs,))(
        x, centres, split, half_norms, scratch, codes, *sizes, PLANES=planes, **settings
    )
    if with_norms:
        grid = (cdiv(total, _NORMS["BLOCK_N"]),)
        launch(_residual_norms_kernel, grid)(x, centres, codes, norms, *sizes, **_NORMS)
    return codes, norms


def _lookup_grid(rows: int, dim: int) -> tuple[int, int]:
    return cdiv(rows, _LOOKUP["BLOCK_N"]), cdiv(dim, _LOOKUP["BLOCK_D"])


def residual_lookup_triton(codes: Tensor, codebooks: Tensor) -> Tensor:
    """As ``codebook_cpu.residual_lookup_cpu``, but NaN where a code is out of range. No float64."""
    codes, codebooks = aligned(codes), aligned(codebooks)
    (total, levels), (_, count, dim) = codes.shape, codebooks.shape
    out = torch.empty(total, dim, dtype=codebooks.dtype, device=codebooks.device)
    if total:
        grid = _lookup_grid(total, dim)
        launch(_residual_lookup_fwd_kernel, grid)(codes, codebooks, out, total, count, dim, levels, **_LOOKUP)
    return out


def residual_lookup_backward_triton(grad: Tensor, codes: Tensor, count: int, deterministic: bool) -> Tensor:
    """As ``codebook_cpu.residual_lookup_backward_cpu``: by atomics, or of each level's rows sorted by code."""
    codes, grad = aligned(codes), aligned(grad)
    (total, dim), levels = grad.shape, codes.shape[1]
    out = torch.zeros(levels, count, dim, device=grad.device)
    if total and not deterministic:
        grid = _lookup_grid(total, dim)
        launch(_residual_lookup_bwd_kernel, grid)(grad, codes, out, total, count, dim, levels, **_LOOKUP)
    elif total:
        grid = count, cdiv(dim, _LOOKUP["BLOCK_D"])
        for level in range(levels):
            ordered, order = codes[:, level].sort(stable=True)
            offsets = torch.searchsorted(ordered, torch.arange(count + 1, device=codes.device))
            launch(_residual_lookup_bwd_sorted_kernel, grid)(grad, order, offsets, out, level * count, dim, **_LOOKUP)
    return out.to(grad.dtype)


def _encode(dtype: torch.dtype, rows: int, dim: int, precision: torch.dtype) -> None:
    """Start both kernels, on the meta device."""
    centres = torch.empty(3, 256, dim, device="meta")
    x = torch.empty(rows, dim, dtype=dtype, device="meta")
    residual_encode_triton(x, centres, centres.to(precision), centres[:, :, 0].contiguous(), True)


def _lookup(dtype: torch.dtype, rows: int, dim: int) -> None:
    """Start all three kernels, on the meta device."""
    codes = torch.empty(rows, 3, dtype=torch.int64, device="meta")
    out = residual_lookup_triton(codes, torch.empty(3, 256, dim, dtype=dtype, device="meta"))
    for deterministic in (False, True):
        residual_lookup_backward_triton(out, codes, 256, deterministic)


# But for encoding, which is all products, rows are read 16 bytes at once where their width divides by 16.
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ENCODED = {"few": (100, 384), "many": (10_000, 384), "odd": (10_000, 50), "one": (10_000, 1), "big": (BIG, 384)}
_LOOKED_UP = {"lookup": (1000, 384), "lookup_odd": (1000, 50), "lookup_one": (1000, 1), "lookup_big": (BIG, 384)}
VARIANTS = Variants(
    {
        f"{name}_{short}_by_{by}": partial(_encode, _DTYPES[short], *sizes, _DTYPES[by])
        for short, by in (("fp32", "fp32"), ("bf16", "fp32"), ("fp32", "bf16"), ("bf16", "bf16"))
        for name, sizes in _ENCODED.items()
    }
    | {"few_fp16_by_fp32": partial(_encode, torch.float16, 100, 384, torch.float32)}
    | {
        f"{name}_{short}": partial(_lookup, dtype, *sizes)
        for short, dtype in _DTYPES.items()
        for name, sizes in _LOOKED_UP.items()
    }
)
