"""Residual codebooks: nearest centres level by level, sums of the chosen centres, and how evenly centres are used.

An item's semantic ID is its vector's code at each level: ``residual_encode`` finds the nearest centre, subtracts it and
goes on with what is left (LGSID, arXiv 2511.14221; Res-KMeans; RQ-VAE). ``residual_lookup`` is the way back and carries
gradients to the codebooks. ``soft_usage`` is the differentiable usage p of LGSID's entropy term
KL(p || uniform), which a count of codes has no gradient for.

On CPUs the loops are in ``codebook_cpu.py``, on GPUs the kernels are in ``codebook_triton.py``, which have not run on a
GPU yet: they are tested in Triton's interpreter and compiled ahead of time.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import codebook_cpu
from .checks import check_number, check_tensors

Metric = Literal["euclidean", "cosine"]
Precision = Literal["fp32", "bf16"]

_INPUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Scores in one chunk of soft_usage: 4 MiB, near a core's own cache, and 64 MiB, enough to fill a GPU.
_SOFT_NUMBERS_CPU = 2**20
_SOFT_NUMBERS_CUDA = 2**24


class Quantized(NamedTuple):
    """What ``residual_quantize`` finds.

    Attributes:
        codes: int64 [N, L].
        norms: float32 [N], length of what the last level leaves over: the reconstruction's error.
        reconstruction: [N, D], ``residual_lookup(codes, codebooks)``.
    """

    codes: Tensor
    norms: Tensor
    reconstruction: Tensor


def residual_encode_reference(
    x: Tensor, codebooks: Tensor, *, metric: Metric | Sequence[Metric] = "euclidean", sizes: Sequence[int] | None = None
) -> Tensor:
    """``residual_encode`` in fp32, as the papers write it, with an N x K buffer."""
    residual, codes = x.float(), []
    for level, centres in enumerate(codebooks.float()):
        if (metric if isinstance(metric, str) else metric[level]) == "euclidean":
            scores = residual @ centres.t() - centres.square().sum(dim=1) / 2  # largest where |r - c|^2 is smallest
        else:
            scores = residual @ torch.nn.functional.normalize(centres, dim=1).t()
        if sizes is not None:
            scores[:, sizes[level] :] = -torch.inf
        best, code = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).max(dim=1)
        found = best.isfinite()
        residual = torch.where(found[:, None], residual - centres[code], residual)
        codes.append(torch.where(found, code, -1))
    return torch.stack(codes, dim=1)


def residual_lookup_reference(codes: Tensor, codebooks: Tensor) -> Tensor:
    """``residual_lookup`` with an N x L x D buffer, differentiable by autograd."""
    wide = codebooks.double() if codebooks.dtype == torch.float64 else codebooks.float()
    levels = torch.arange(codebooks.shape[0], device=codes.device)
    rows = wide[levels, codes.clamp(min=0)]
    return torch.where(codes[..., None] >= 0, rows, 0).sum(dim=1).to(codebooks.dtype)


def soft_usage_reference(x: Tensor, centres: Tensor, temperature: float) -> Tensor:
    """``soft_usage`` with N x K buffers, differentiable by autograd."""
    distances = (x[:, None, :] - centres).square().sum(dim=2)
    return torch.softmax(-distances / temperature, dim=1).mean(dim=0)


@torch.library.custom_op("placerank::residual_encode", mutates_args=())
def _encode(
    x: Tensor, centres: Tensor, directions: Tensor, half_norms: Tensor, with_norms: bool
) -> tuple[Tensor, Tensor]:
    return codebook_cpu.residual_encode_cpu(x, centres, directions, half_norms, with_norms)


@_encode.register_fake
def _(x: Tensor, centres: Tensor, directions: Tensor, half_norms: Tensor, with_norms: bool) -> tuple[Tensor, Tensor]:
    codes = x.new_empty(x.shape[0], centres.shape[0], dtype=torch.int64)
    return codes, x.new_empty(x.shape[0] if with_norms else 0, dtype=torch.float32)


@_encode.register_kernel("cuda")
def _(x: Tensor, centres: Tensor, directions: Tensor, half_norms: Tensor, with_norms: bool) -> tuple[Tensor, Tensor]:
    from .codebook_triton import residual_encode_triton

    return residual_encode_triton(x, centres, directions, half_norms, with_norms)


@torch.library.custom_op("placerank::residual_lookup", mutates_args=())
def _lookup(codes: Tensor, codebooks: Tensor, deterministic: bool) -> Tensor:
    return codebook_cpu.residual_lookup_cpu(codes, codebooks)


@_lookup.register_fake
def _(codes: Tensor, codebooks: Tensor, deterministic: bool) -> Tensor:
    return codebooks.new_empty(codes.shape[0], codebooks.shape[2])


@_lookup.register_kernel("cuda")
def _(codes: Tensor, codebooks: Tensor, deterministic: bool) -> Tensor:
    from .codebook_triton import residual_lookup_triton

    return residual_lookup_triton(codes, codebooks)


@torch.library.custom_op("placerank::residual_lookup_backward", mutates_args=())
def _lookup_backward(grad: Tensor, codes: Tensor, count: int, deterministic: bool) -> Tensor:
    return codebook_cpu.residual_lookup_backward_cpu(grad, codes, count)


@_lookup_backward.register_fake
def _(grad: Tensor, codes: Tensor, count: int, deterministic: bool) -> Tensor:
    return grad.new_empty(codes.shape[1], count, grad.shape[1])


@_lookup_backward.register_kernel("cuda")
def _(grad: Tensor, codes: Tensor, count: int, deterministic: bool) -> Tensor:
    from .codebook_triton import residual_lookup_backward_triton

    return residual_lookup_backward_triton(grad, codes, count, deterministic)


def _save_codes(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    codes, codebooks, ctx.deterministic = inputs
    ctx.save_for_backward(codes)
    ctx.count = codebooks.shape[1]


def _lookup_grad(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
    (codes,) = ctx.saved_tensors
    return None, _lookup_backward(grad, codes, ctx.count, ctx.deterministic), None


_lookup.register_autograd(_lookup_grad, setup_context=_save_codes)


def _save_more_codes(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, codes, _, ctx.deterministic = inputs
    ctx.save_for_backward(codes)


def _lookup_grad_grad(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (codes,) = ctx.saved_tensors
    return _lookup(codes, grad, ctx.deterministic), None, None, None


_lookup_backward.register_autograd(
    _lookup_grad_grad, setup_context=_save_more_codes
)  # the two are each other's transpose


def _soft_chunks(x: Tensor, centres: Tensor, temperature: float) -> Any:
    """Chunks of rows, exp(score - largest score) [n, K], its sums [n]; a score is (|x|^2 - |x - c|^2) / temperature."""
    numbers = _SOFT_NUMBERS_CUDA if x.is_cuda else _SOFT_NUMBERS_CPU
    offsets = centres.square().sum(dim=1).mul_(-1 / temperature)
    for rows in x.split(max(1, numbers // centres.shape[0])):
        rows = rows.to(centres.dtype)
        scores = torch.addmm(offsets, rows, centres.t(), alpha=2 / temperature)
        scores.sub_(scores.amax(dim=1, keepdim=True)).exp_()
        yield rows, scores, scores.sum(dim=1)


def _soft_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.custom_op("placerank::soft_usage", mutates_args=())
def _soft_usage(x: Tensor, centres: Tensor, temperature: float) -> Tensor:
    usage = torch.zeros(centres.shape[0], dtype=torch.float64, device=x.device)
    for _, weights, sums in _soft_chunks(x, centres.to(_soft_dtype(x)), temperature):
        usage += weights.t() @ sums.reciprocal()
    return usage.div_(x.shape[0]).to(_soft_dtype(x))


@_soft_usage.register_fake
def _(x: Tensor, centres: Tensor, temperature: float) -> Tensor:
    return centres.new_empty(centres.shape[0], dtype=_soft_dtype(x))


@torch.library.custom_op("placerank::soft_usage_backward", mutates_args=())
def _soft_usage_backward(
    grad: Tensor, x: Tensor, centres: Tensor, temperature: float, want_x: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x ([0, D] if not wanted) and of the centres."""
    wide = centres.to(_soft_dtype(x))
    grad_x = x.new_empty(x.shape[0] if want_x else 0, x.shape[1])
    grad_centres, weight_of = torch.zeros_like(wide), torch.zeros_like(wide[:, 0])
    scale, first = 2 / (temperature * max(x.shape[0], 1)), 0
    for rows, weights, sums in _soft_chunks(x, wide, temperature):
        weights.div_(sums[:, None])  # the soft assignment p of each row; usage is its mean
        grad_scores = weights.mul_(grad - (weights @ grad)[:, None])
        if want_x:
            torch.mul(grad_scores @ wide, scale, out=grad_x[first : first + len(rows)])
        grad_centres.addmm_(grad_scores.t(), rows)
        weight_of += grad_scores.sum(dim=0)
        first += len(rows)
    grad_centres.addcmul_(weight_of[:, None], wide, value=-1).mul_(scale)
    return grad_x, grad_centres.to(centres.dtype)


@_soft_usage_backward.register_fake
def _(grad: Tensor, x: Tensor, centres: Tensor, temperature: float, want_x: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0] if want_x else 0, x.shape[1]), centres.new_empty(centres.shape)


def _save_soft(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, centres, ctx.temperature = inputs
    ctx.save_for_backward(x, centres)


def _soft_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
    want_x = ctx.needs_input_grad[0]
    grad_x, grad_centres = _soft_usage_backward(grad, *ctx.saved_tensors, ctx.temperature, want_x)
    return grad_x if want_x else None, grad_centres, None


_soft_usage.register_autograd(_soft_grad, setup_context=_save_soft)


def _check(x: Tensor, codebooks: Tensor) -> None:
    _same_device(x=x, codebooks=codebooks)
    if x.dim() != 2 or codebooks.dim() != 3 or x.shape[1] != codebooks.shape[2] or 0 in codebooks.shape:
        got = f"x {list(x.shape)} and codebooks {list(codebooks.shape)}"
        raise ValueError(f"got {got}, expected [N, D] and [L, K, D] with L, K, D of at least 1")
    for name, tensor in (("x", x), ("codebooks", codebooks)):
        if tensor.dtype not in _INPUT_DTYPES:
            raise ValueError(f"{name}: got {tensor.dtype}, expected float32, float16 or bfloat16; convert it first")


def _same_device(**tensors: Tensor) -> None:
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: got {type(x).__name__}, expected a tensor")
    (one, x), (other, y) = tensors.items()
    if x.device != y.device:
        raise ValueError(f"{one} is on {x.device}, {other} are on {y.device}; move one, a chunk at a time if need be")


def _metrics(metric: Metric | Sequence[Metric], levels: int) -> list[Metric]:
    metrics: list[Any] = [metric] * levels if isinstance(metric, str) else list(metric)
    if len(metrics) != levels or not set(metrics) <= {"euclidean", "cosine"}:
        raise ValueError(f'metric: got {metric!r}, expected "euclidean", "cosine" or a list of {levels} of them')
    return metrics


def _prepare(
    codebooks: Tensor, metrics: list[Metric], precision: Precision, sizes: Sequence[int] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """centres, directions and half norms as the op takes them: the winner is the largest r . direction - half norm."""
    if precision not in ("fp32", "bf16"):
        raise ValueError(f'precision: got {precision!r}, expected "fp32" or "bf16"')
    levels, count, _ = codebooks.shape
    if sizes is not None and (len(sizes) != levels or not all(1 <= size <= count for size in sizes)):
        raise ValueError(f"sizes: got {list(sizes)}, expected {levels} numbers from 1 to K = {count}")
    centres = codebooks.detach().float().contiguous()
    directions = centres
    if "cosine" in metrics or precision == "bf16":
        directions = centres.to(torch.bfloat16 if precision == "bf16" else torch.float32, copy=True)
    half_norms = torch.zeros(levels, count, device=centres.device)
    for level, metric in enumerate(metrics):  # level by level: no temporary of all codebooks
        if metric == "cosine":
            directions[level] = torch.nn.functional.normalize(centres[level], dim=1)
        else:
            half_norms[level] = directions[level].float().square().sum(dim=1) / 2
        if sizes is not None:
            half_norms[level, sizes[level] :] = torch.inf
    return centres, directions, half_norms


def residual_encode(
    x: Tensor,
    codebooks: Tensor,
    *,
    metric: Metric | Sequence[Metric] = "euclidean",
    precision: Precision = "fp32",
    sizes: Sequence[int] | None = None,
) -> Tensor:
    """Code of each row at each level: the nearest centre of what earlier levels left over. Ties: the lowest index.

    Args:
        x: [N, D], float32, float16 or bfloat16; anything that reads as rows, a memory-mapped file included.
        codebooks: [L, K, D], same dtypes. L up to 8, K up to 65,536 and D up to 4,096 are what it is made for.
        metric: of all levels, or one each. "euclidean": the smallest |r - c|. "cosine": the largest r . c / |c|, after
            which c is subtracted as it is (UnifiedSID's early levels); a centre of zeros has cosine 0.
        precision: "fp32", or "bf16": residual and centres are rounded to bfloat16 for the product, which is summed in
            float32; what is subtracted stays float32. The chosen distance is then at most 2^-7 (|r| + max |c|) above
            the smallest. Made for GPUs; on CPUs the same numbers at no better speed.
        sizes: number of centres of each level where that differs; rows of ``codebooks`` past it are padding.

    Returns:
        int64 [N, L]. -1 from the level on where the best score is no finite number: from the first for a row with NaN
        or infinity, which no centre is near. A centre with NaN is never chosen. Of two centres whose distances differ
        by less than float32 can tell, either.

    Naive: 2 N K D flops and 2 N K + 3 N D float32 numbers of traffic a level, N K of memory. Here: the same flops, x
    is read once, codes are written once; scores and residuals stay in cache (CPU) or on chip (GPU). Memory added to
    inputs and codes does not grow with N: about (D + 512) x 768 float32 numbers a thread on CPUs, half norms on GPUs,
    and on both a copy of codebooks that are 16-bit, "cosine" or "bf16".
    """
    _check(x, codebooks)
    prepared = _prepare(codebooks, _metrics(metric, codebooks.shape[0]), precision, sizes)
    codes: Tensor = _encode(x.detach(), *prepared, False)[0]
    return codes


def residual_quantize(
    x: Tensor,
    codebooks: Tensor,
    *,
    metric: Metric | Sequence[Metric] = "euclidean",
    precision: Precision = "fp32",
    sizes: Sequence[int] | None = None,
) -> Quantized:
    """``residual_encode`` with what is left over and what was found; arguments as there.

    The reconstruction is ``residual_lookup`` of the codes and carries gradients to the codebooks. The norms are taken
    along the way, at the cost of one more reading of the last residual; they carry none. A row of code -1
    has the norm of what was left over: NaN or infinity, if the row has them.
    """
    _check(x, codebooks)
    prepared = _prepare(codebooks, _metrics(metric, codebooks.shape[0]), precision, sizes)
    codes, norms = _encode(x.detach(), *prepared, True)
    return Quantized(codes, norms, residual_lookup(codes, codebooks))


def residual_lookup(codes: Tensor, codebooks: Tensor, *, deterministic: bool = False) -> Tensor:
    """Sum over the levels of the chosen centres.

    Args:
        codes: int64 [N, L]. A negative code adds nothing: rows that could not be encoded, prefixes of a semantic ID.
        codebooks: [L, K, D], any floating dtype.
        deterministic: on CUDA, sum gradients in a fixed order (the codes are sorted first) instead of by atomic
            additions; also when ``torch.use_deterministic_algorithms`` is on. On CPUs the order is always fixed.

    Returns:
        [N, D] in the codebooks' dtype, differentiable in ``codebooks``, any number of times. Sums, those of gradients
        too, are taken in float32 (float64 for float64) and rounded once.

    Raises:
        ValueError: shapes or dtypes do not fit; on CPUs also a code of K or more. On CUDA, where looking would cost a
            synchronisation, such a row is NaN and sends no gradient.

    L N D numbers are read and N D written, backward N D read and L K D written at least; nothing of N x K or N x L x D
    is kept.
    """
    _same_device(codes=codes, codebooks=codebooks)
    if codes.dim() != 2 or codebooks.dim() != 3 or codes.shape[1] != codebooks.shape[0] or 0 in codebooks.shape:
        got = f"codes {list(codes.shape)} and codebooks {list(codebooks.shape)}"
        raise ValueError(f"got {got}, expected [N, L] and [L, K, D] with L, K, D of at least 1")
    if codes.dtype != torch.int64 or not codebooks.is_floating_point():
        raise ValueError(
            f"got codes {codes.dtype} and codebooks {codebooks.dtype}, expected int64 and a floating dtype"
        )
    deterministic = deterministic or torch.are_deterministic_algorithms_enabled()
    out: Tensor = _lookup(codes, codebooks, deterministic)
    return out


def soft_usage(x: Tensor, centres: Tensor, temperature: float) -> Tensor:
    """Share of the rows that each centre attracts, softly: the mean over rows of softmax(-|x - c|^2 / temperature).

    Args:
        x: [N, D], any floating dtype: for level l of a residual codebook, what the levels before it left over.
        centres: [K, D], any floating dtype; the codebook of one level.
        temperature: above 0, in units of squared distance; towards 0 this becomes the histogram of codes.

    Returns:
        [K], sums to 1, float32 (float64 if x is); differentiable in ``x`` and ``centres``. NaN where N is 0 or a row
        has NaN or infinity.

    LGSID, arXiv 2511.14221: L_reg = sum of p log(K p) with p the usage of a level. Rows are streamed in chunks of 4 MiB
    of scores (64 MiB on CUDA) and scored again in the backward, so that nothing of N x K is kept: 2 N K D flops
    forward, 6 N K D backward, 4 N K D where x asks for no gradient. Chunks of plain products and exponentials are the
    whole of it, on either device.
    """
    _same_device(x=x, centres=centres)
    if x.dim() != 2 or centres.dim() != 2 or x.shape[1] != centres.shape[1] or 0 in centres.shape:
        got = f"x {list(x.shape)} and centres {list(centres.shape)}"
        raise ValueError(f"got {got}, expected [N, D] and [K, D] with K, D of at least 1")
    check_tensors({"x": (x, "N D"), "centres": (centres, "K D")}, mixed=True)
    check_number("temperature", temperature, 0, above=True)
    usage: Tensor = _soft_usage(x, centres, float(temperature))
    return usage
