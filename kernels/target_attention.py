"""Target attention over jagged histories: the whole activation unit of DIN and its weighted sum as one operation.

Zhou et al., Deep Interest Network for Click-Through Rate Prediction, KDD 2018 (arXiv 1706.06978), figure 2, equations 2
and 3. For each visit k of a sample with target q, an MLP with Dice activations gives a weight from q, k, q * k and the
gaps; the interest is the sum of weight times k. Nothing is padded.

What it costs, for T visits of D columns and hidden widths H: as separate operations each layer writes and reads about
eight [T, H] buffers forward and twice as many backward, besides [T, D] for q, q * k and w k: 4 KB a visit and step at
D = 32, H = (32, 16). Here the layers before Dice alone are stored and all else lives in tiles: 0.9 KB a visit and step.
Dice asks for mean and variance of a layer over all visits before it can be applied, so each layer is a pass forward and
a pass backward, no fewer. A sample's q enters the first layer as a matrix of its own, weight_k + weight_qk * q: 2 D H
operations a visit instead of 4 D H.

CPU: float32 by compiled loops (``target_attention_cpu.py``). CUDA: float32, float16 and bfloat16 by Triton kernels
(``target_attention_triton.py``). Keys that samples share are read where they lie by the CPU's loops; elsewhere they
are laid out a row a visit first. What neither takes goes to the reference: other dtypes, and on CUDA layers of more
than 4,096 weights (widths rounded up to powers of two), which would not fit the registers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_number, check_offsets, check_starts, check_tensors
from .dice import dice_reference
from .jagged import segment_ids_unchecked, shared_rows_unchecked, weighted_segment_sum_unchecked
from .target_attention_cpu import target_attention_backward_cpu, target_attention_cpu


class DiceLinear(NamedTuple):
    """Dice, then a linear map: one layer of the unit after the first.

    Attributes:
        alpha: Dice's slope, [H].
        statistics: mean and variance that Dice uses when it is not to take those of the batch, [2, H].
        weight: [N, H]; N = 1 in the last layer.
        bias: [N].
    """

    alpha: Tensor
    statistics: Tensor
    weight: Tensor
    bias: Tensor


def target_attention_reference(
    query: Tensor,
    bias: Tensor,
    keys: Tensor,
    gaps: Tensor,
    offsets: Tensor,
    weight: Tensor,
    layers: Sequence[DiceLinear],
    batch_statistics: bool,
    eps: float = 1e-8,
) -> tuple[Tensor, list[Tensor]]:
    """``target_attention`` in plain PyTorch."""
    segments = segment_ids_unchecked(offsets, keys.shape[0])
    of_key, of_product, of_gaps = weight.split([keys.shape[1], keys.shape[1], gaps.shape[1]], dim=1)
    z = F.linear(keys, of_key) + F.linear(query[segments] * keys, of_product) + F.linear(gaps, of_gaps) + bias[segments]
    used = []
    for layer in layers:
        mean, variance = torch.var_mean(z, 0, correction=0)[::-1] if batch_statistics else layer.statistics
        used.append(torch.stack([mean, variance]).detach())
        z = F.linear(dice_reference(z, mean, variance, layer.alpha, eps), layer.weight, layer.bias)
    return weighted_segment_sum_unchecked(keys, z.squeeze(1), offsets, segments), used


@torch.library.custom_op("placerank::target_attention", mutates_args=())
def _forward(
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
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Interest [B, D], weights [T, 1], layers before Dice [T, H] each, statistics used [2, H] each."""
    return target_attention_cpu(
        query, bias, keys, gaps, offsets, weight, alphas, statistics, weights, biases, batch_statistics, eps, starts
    )


@_forward.register_kernel("cuda")
def _(*arguments: Any) -> Any:
    from .target_attention_triton import target_attention_triton

    return target_attention_triton(*arguments[:-1])  # keys come a row a visit here


@_forward.register_fake
def _(
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
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    zs = [keys.new_empty(gaps.shape[0], alpha.shape[0]) for alpha in alphas]
    return (
        query.new_empty(query.shape),
        keys.new_empty(gaps.shape[0], 1),
        zs,
        [s.new_empty(s.shape) for s in statistics],
    )


@torch.library.custom_op("placerank::target_attention_backward", mutates_args=())
def _backward(
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
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of query, bias, keys, gaps ([0, G] if not wanted), weight, alphas, weights, biases."""
    return target_attention_backward_cpu(
        grad, query, keys, gaps, offsets, weight, alphas, statistics, weights, of_visits, zs, batch_statistics, eps,
        want_gaps, starts,
    )  # fmt: skip


@_backward.register_kernel("cuda")
def _(*arguments: Any) -> Any:
    from .target_attention_triton import target_attention_backward_triton

    return target_attention_backward_triton(*arguments[:-1])


@_backward.register_fake
def _(
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
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    return (
        query.new_empty(query.shape),
        query.new_empty(query.shape[0], weight.shape[0]),
        keys.new_empty(keys.shape),
        gaps.new_empty(gaps.shape[0] if want_gaps else 0, gaps.shape[1]),
        weight.new_empty(weight.shape),
        [x.new_empty(x.shape) for x in alphas],
        [x.new_empty(x.shape) for x in weights],
        [x.new_empty(x.shape[0]) for x in weights],
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    query, _, keys, gaps, offsets, weight, alphas, _, weights, _, ctx.batch_statistics, ctx.eps, starts = inputs
    _, of_visits, zs, used = output
    ctx.layers = len(weights)
    ctx.save_for_backward(query, keys, gaps, offsets, weight, of_visits, starts, *alphas, *used, *weights, *zs)
    ctx.set_materialize_grads(False)


def _grad(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    query, keys, gaps, offsets, weight, of_visits, starts, *lists = ctx.saved_tensors
    alphas, used, weights, zs = (lists[i * ctx.layers : (i + 1) * ctx.layers] for i in range(4))
    grad = torch.zeros_like(query) if grad is None else grad.contiguous()
    want_gaps = ctx.needs_input_grad[3]
    *grads, of_alphas, of_weights, of_biases = _backward(
        grad, query, keys, gaps, offsets, weight, alphas, used, weights, of_visits, zs, ctx.batch_statistics, ctx.eps,
        want_gaps, starts,
    )  # fmt: skip
    of_query, of_bias, of_keys, of_gaps, of_weight = grads
    none = [None] * ctx.layers
    return (
        of_query, of_bias, of_keys, of_gaps if want_gaps else None, None, of_weight, of_alphas, none, of_weights,
        of_biases, None, None, None,
    )  # fmt: skip


_forward.register_autograd(_grad, setup_context=_save)


def target_attention(
    query: Tensor,
    bias: Tensor,
    keys: Tensor,
    gaps: Tensor,
    offsets: Tensor,
    weight: Tensor,
    layers: Sequence[DiceLinear],
    batch_statistics: bool,
    eps: float = 1e-8,
    starts: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Interest of B samples in their targets, from T visits in all.

    The first layer is [k, q * k, gaps] @ weight.T + bias of the sample; then each of ``layers`` in turn; the last one's
    single output w is the visit's weight, and the interest is the sum of w k over the sample's visits.

    Args:
        query: targets, [B, D].
        bias: of the first layer, one row a sample, so that it can hold a map of the query, [B, H1].
        keys: visits, [T, D].
        gaps: [T, G].
        offsets: int64 [B+1], offsets[0] = 0, offsets[B] = T; empty histories are legal.
        weight: [H1, 2 D + G].
        layers: one or more.
        batch_statistics: take Dice's mean and variance over the T visits, not ``layers[i].statistics``.
        eps: joins the variance, as in batch norm.
        starts: where samples share keys, as the candidates of one request do: of each sample the row of its first
            visit's key, int64 [B]; keys are then [K, D], and gaps [T, G] are still each sample's own. Samples with
            the same keys lie side by side.

    Returns:
        Interest [B, D], zeros for an empty history, differentiable in all floating inputs but the statistics, of keys'
        dtype or autocast's; mean and (biased) variance that each Dice used, [2, H] each.

    Raises:
        TypeError, ValueError: shapes, dtypes, devices or offsets don't fit together.
    """
    if starts is None:
        check_offsets(offsets, keys)
    else:
        check_offsets(offsets, gaps)
        check_starts(starts, offsets, keys)
    return target_attention_unchecked(query, bias, keys, gaps, offsets, weight, layers, batch_statistics, eps, starts)


def target_attention_unchecked(
    query: Tensor,
    bias: Tensor,
    keys: Tensor,
    gaps: Tensor,
    offsets: Tensor,
    weight: Tensor,
    layers: Sequence[DiceLinear],
    batch_statistics: bool,
    eps: float = 1e-8,
    starts: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """``target_attention`` by offsets and starts that are known to be right."""
    _check(query, bias, keys, gaps, offsets, weight, layers, starts)
    check_number("eps", eps, 0)
    if not isinstance(batch_statistics, bool):
        raise TypeError(f"batch_statistics: got {batch_statistics!r}, expected True or False")
    device = keys.device.type
    if torch.is_autocast_enabled(device):
        keys = keys.to(torch.get_autocast_dtype(device))
    query, bias, gaps = query.to(keys.dtype), bias.to(keys.dtype), gaps.to(keys.dtype)
    if starts is not None and not (keys.device.type == "cpu" and _compiled(keys, layers)):
        keys, starts = keys.index_select(0, shared_rows_unchecked(starts, offsets, gaps.shape[0])), None
    if not _compiled(keys, layers):
        with torch.autocast(device, enabled=False):
            cast = [DiceLinear(*(x.to(keys.dtype) for x in layer)) for layer in layers]
            return target_attention_reference(
                query, bias, keys, gaps, offsets, weight.to(keys.dtype), cast, batch_statistics, eps
            )
    alphas, statistics, weights, biases = ([x.float() for x in column] for column in zip(*layers, strict=True))
    interest, _, _, used = _forward(
        query, bias, keys, gaps, offsets, weight.float(), alphas, statistics, weights, biases, batch_statistics, eps,
        starts,
    )  # fmt: skip
    return interest, [x.detach() for x in used]


def _compiled(keys: Tensor, layers: Sequence[DiceLinear]) -> bool:
    """Whether the operation takes these, or the reference must."""
    if not keys.is_cuda:
        return keys.dtype == torch.float32
    from .target_attention_triton import fits

    return keys.dtype != torch.float64 and fits(keys.shape[1], [layer.weight.shape[1] for layer in layers])


def _check(
    query: Tensor,
    bias: Tensor,
    keys: Tensor,
    gaps: Tensor,
    offsets: Tensor,
    weight: Tensor,
    layers: Sequence[DiceLinear],
    starts: Tensor | None,
) -> None:
    floats = {
        "query": (query, "B D"),
        "keys": (keys, "T D" if starts is None else "K D"),
        "gaps": (gaps, "T G"),
        "weight": (weight, "H E"),
        "bias": (bias, "B H"),
    }
    rows = {"offsets": (offsets, "B+1")} | ({} if starts is None else {"starts": (starts, "B")})
    sizes = check_tensors(floats, rows, mixed=True)
    columns, H = 2 * sizes["D"] + sizes["G"], sizes["H"]
    if sizes["E"] != columns:
        raise ValueError(f"weight: got {list(weight.shape)}, expected [H, 2 D + G] = [{H}, {columns}]")
    if not layers:
        raise ValueError("layers is empty: expected one DiceLinear or more, the last with one output")
    for i, layer in enumerate(layers):
        if not isinstance(layer, DiceLinear):
            raise TypeError(f"layers[{i}]: got {type(layer).__name__}, expected a DiceLinear")
        N = "1" if i + 1 == len(layers) else "N"
        shapes = f"{H}", f"2 {H}", f"{N} {H}", N
        fields = zip(DiceLinear._fields, layer, shapes, strict=True)
        named = {f"layers[{i}].{name}": (x, shape) for name, x, shape in fields}
        H = check_tensors({"keys": (keys, "T D"), **named}, mixed=True).get("N", 1)
