"""CPU path of ``target_attention``: compiled loops over tiles of visits that stay in the first-level cache.

Six loops make a step. Forward: first layer, layers between, last layer with the weighted sum; backward the same in
reverse. What Dice makes of a layer lives in a tile only and is made again in the backward; the layers before Dice are
kept, [T, H] each. Every loop runs over blocks of whole samples with about equally many visits. Sums over all visits
(statistics, gradients of weights) are kept by block and added at the end, so a result does not depend on which thread
took which block.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dice import pool_statistics
from .dice_cpu import dice, dice_back, dice_sums, moments
from .jagged_cpu import segment_blocks
from .threads import inlined, jit, parallel_rows
from .tile_products import FAST, outer, times, width

_TILE = 32  # visits at a time: a tile of every layer fits the first-level cache
_SCALAR = width(1)


@jit(fastmath=FAST)
def _first(
    start: int, stop: int, Ds: Any, Gs: Any, Hs: Any, bounds: Any, offsets: Any, starts: Any, query: Any, bias: Any,
    keys: Any, gaps: Any, of_key: Any, of_product: Any, of_gaps: Any, z: Any, near: Any, sums: Any,
) -> None:  # fmt: skip
    """z = [k, q * k, gaps] @ weight.T + bias, as k @ (weight of k + q * weight of q * k): a matrix for each sample,
    which halves the products of long histories and leaves no [T, D] buffer of q * k."""
    D, H = len(Ds), len(Hs)
    own, tile = np.empty((D, H), np.float32), np.empty((2, H), np.float32)
    for block in range(start, stop):
        begin = offsets[bounds[block]]
        for b in range(bounds[block], bounds[block + 1]):
            if offsets[b] == offsets[b + 1]:
                continue
            for d in range(D):
                for h in range(H):
                    own[d, h] = of_key[d, h] + query[b, d] * of_product[d, h]
            for t in range(offsets[b], offsets[b + 1], _TILE):
                n = min(_TILE, offsets[b + 1] - t)
                for row in range(t, t + n):
                    for h in range(H):
                        z[row, h] = bias[b, h]
                times(Gs, Hs, gaps, t, n, of_gaps, z, t)
                times(Ds, Hs, keys, t + starts[b] - offsets[b], n, own, z, t)
                if t == begin:
                    for h in range(H):
                        near[block, h] = z[t, h]
                moments(Hs, z, t, n, near[block], tile, sums[block])


@jit(fastmath=FAST)
def _between(
    start: int, stop: int, Hs: Any, Ns: Any, bounds: Any, offsets: Any, z: Any, s: Any, weight: Any, bias: Any,
    out: Any, near: Any, sums: Any,
) -> None:  # fmt: skip
    """out = Dice(z) @ weight + bias, weight [H, N]."""
    H, N = len(Hs), len(Ns)
    a, tile = np.empty((_TILE, H), np.float32), np.empty((2, N), np.float32)
    for block in range(start, stop):
        begin, end = offsets[bounds[block]], offsets[bounds[block + 1]]
        for t in range(begin, end, _TILE):
            n = min(_TILE, end - t)
            dice(Hs, z, t, n, s, a)
            for row in range(t, t + n):
                for j in range(N):
                    out[row, j] = bias[j]
            times(Hs, Ns, a, 0, n, weight, out, t)
            if t == begin:
                for j in range(N):
                    near[block, j] = out[t, j]
            moments(Ns, out, t, n, near[block], tile, sums[block])


@jit(fastmath=FAST)
def _last(
    start: int, stop: int, Hs: Any, Ds: Any, bounds: Any, offsets: Any, starts: Any, z: Any, s: Any, weight: Any,
    bias: Any, keys: Any, weights: Any, interest: Any,
) -> None:  # fmt: skip
    """w = Dice(z) @ weight + bias, weight [H]; the sum of w k over each sample."""
    H, D = len(Hs), len(Ds)
    a = np.empty((_TILE, H), np.float32)
    for block in range(start, stop):
        for b in range(bounds[block], bounds[block + 1]):
            shift = starts[b] - offsets[b]
            for d in range(D):
                interest[b, d] = 0
            for t in range(offsets[b], offsets[b + 1], _TILE):
                n = min(_TILE, offsets[b + 1] - t)
                dice(Hs, z, t, n, s, a)
                for row in range(n):
                    w = bias[0]
                    for h in range(H):
                        w += a[row, h] * weight[h]
                    weights[t + row, 0] = w
                    for d in range(D):
                        interest[b, d] += w * keys[t + row + shift, d]


@inlined(fastmath=FAST)
def _layer_sums(
    Hs: Any, Ns: Any, delta: Any, z: Any, t: int, n: int, s: Any, weight: Any, a: Any, da: Any, sums: Any,
    grad_weight: Any, grad_bias: Any,
) -> None:  # fmt: skip
    """What a layer's gradients need summed over all visits, from delta [n, N], the gradient of Dice(z) @ weight.T.

    Adds to block sums: sums [3, H] as _dice_sums, grad_weight [N, H], grad_bias [N].
    """
    N = len(Ns)
    da[:n] = 0
    times(Ns, Hs, delta, t, n, weight, da, 0)
    dice_sums(Hs, z, t, n, da, s, a, sums)
    outer(Ns, Hs, delta, t, n, a, 0, grad_weight)
    for row in range(t, t + n):
        for j in range(N):
            grad_bias[j] += delta[row, j]


@jit(fastmath=FAST)
def _last_back(
    start: int, stop: int, Hs: Any, Ds: Any, bounds: Any, offsets: Any, starts: Any, grad: Any, keys: Any, delta: Any,
    z: Any, s: Any, weight: Any, sums: Any, grad_weight: Any, grad_bias: Any,
) -> None:  # fmt: skip
    """delta = the gradient of w, [T, 1]; sums of the last hidden layer."""
    H, D = len(Hs), len(Ds)
    a, da = np.empty((_TILE, H), np.float32), np.empty((_TILE, H), np.float32)
    for block in range(start, stop):
        for b in range(bounds[block], bounds[block + 1]):
            shift = starts[b] - offsets[b]
            for row in range(offsets[b], offsets[b + 1]):
                dw = np.float32(0)
                for d in range(D):
                    dw += grad[b, d] * keys[row + shift, d]
                delta[row, 0] = dw
        begin, end = offsets[bounds[block]], offsets[bounds[block + 1]]
        for t in range(begin, end, _TILE):
            n = min(_TILE, end - t)
            _layer_sums(
                Hs, _SCALAR, delta, z, t, n, s, weight, a, da, sums[block], grad_weight[block], grad_bias[block]
            )


@jit(fastmath=FAST)
def _between_back(
    start: int, stop: int, Hs: Any, Us: Any, Ns: Any, bounds: Any, offsets: Any, above: Any, upper_z: Any, upper_s: Any,
    upper_weight: Any, delta: Any, z: Any, s: Any, weight: Any, sums: Any, grad_weight: Any, grad_bias: Any,
) -> None:  # fmt: skip
    """delta of the upper layer [T, U] from that of the one above it [T, N]; sums of the lower layer, width H."""
    H = len(Hs)
    a, da = np.empty((_TILE, H), np.float32), np.empty((_TILE, H), np.float32)
    for block in range(start, stop):
        begin, end = offsets[bounds[block]], offsets[bounds[block + 1]]
        for t in range(begin, end, _TILE):
            n = min(_TILE, end - t)
            delta[t : t + n] = 0
            times(Ns, Us, above, t, n, upper_weight, delta, t)
            dice_back(Us, upper_z, t, n, upper_s, delta, t)
            _layer_sums(Hs, Us, delta, z, t, n, s, weight, a, da, sums[block], grad_weight[block], grad_bias[block])


@jit(fastmath=FAST)
def _first_back(
    start: int, stop: int, Ds: Any, Gs: Any, Hs: Any, Ns: Any, bounds: Any, offsets: Any, starts: Any, query: Any,
    keys: Any, gaps: Any, weight: Any, grad: Any, weights: Any, above: Any, z: Any, s: Any, above_weight: Any,
    shared: bool, grad_query: Any, grad_bias: Any, grad_keys: Any, grad_gaps: Any, grad_weight: Any,
    grad_gap_weight: Any,
) -> None:  # fmt: skip
    """Gradients of the first layer and of the keys, from delta of the layer above [T, N]. weight is [H, 2 D + G].

    Keys that several samples read are zeros at first: the samples of a block add to them one after the other.
    """
    D, G, H = len(Ds), len(Gs), len(Hs)
    own, grad_own = np.empty((H, D), np.float32), np.empty((H, D), np.float32)
    delta = np.empty((_TILE, H), np.float32)
    for block in range(start, stop):
        for b in range(bounds[block], bounds[block + 1]):
            grad_query[b] = 0
            grad_bias[b] = 0
            if offsets[b] == offsets[b + 1]:
                continue
            shift = starts[b] - offsets[b]
            grad_own[:] = 0
            for h in range(H):
                for d in range(D):
                    own[h, d] = weight[h, d] + query[b, d] * weight[h, D + d]
            for t in range(offsets[b], offsets[b + 1], _TILE):
                n = min(_TILE, offsets[b + 1] - t)
                delta[:n] = 0
                times(Ns, Hs, above, t, n, above_weight, delta, 0)
                dice_back(Hs, z, t, n, s, delta, 0)
                for row in range(n):
                    for h in range(H):
                        grad_bias[b, h] += delta[row, h]
                    for d in range(D):
                        w_grad = weights[t + row, 0] * grad[b, d]
                        grad_keys[t + row + shift, d] = grad_keys[t + row + shift, d] + w_grad if shared else w_grad
                times(Hs, Ds, delta, 0, n, own, grad_keys, t + shift)
                outer(Hs, Ds, delta, 0, n, keys, t + shift, grad_own)
                outer(Gs, Hs, gaps, t, n, delta, 0, grad_gap_weight[block])
                if grad_gaps.shape[0] > 0:
                    for row in range(n):
                        for g in range(G):
                            x = np.float32(0)
                            for h in range(H):
                                x += delta[row, h] * weight[h, 2 * D + g]
                            grad_gaps[t + row, g] = x
            for h in range(H):
                for d in range(D):
                    grad_weight[block, h, d] += grad_own[h, d]
                    grad_weight[block, h, D + d] += query[b, d] * grad_own[h, d]
                    grad_query[b, d] += weight[h, D + d] * grad_own[h, d]


def _statistics(near: Tensor, block_sums: Tensor, visits: Tensor) -> Tensor:
    """Mean and variance [2, H] from what moments left, [blocks, H] and [blocks, 2, H], and each block's visits.

    A row of each block was taken from all of its rows first, so that nothing cancels where a mean is large.
    """
    first, second = block_sums.unbind(1)
    shift = first / visits[:, None].clamp(min=1)
    return pool_statistics(visits, near + shift, second - first * shift)


def _scale(statistics: Tensor, alpha: Tensor, eps: float, *shares: Tensor) -> Any:
    """The rows that the loops call s."""
    mean, variance = statistics
    return _numpy(torch.stack([mean, (variance + eps).rsqrt(), alpha, *shares]))


def _numpy(x: Tensor) -> Any:
    return x.detach().contiguous().numpy()


def target_attention_cpu(
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
    """The forward of ``target_attention`` for float32 on the CPU."""
    (T, G), D, H = gaps.shape, keys.shape[1], bias.shape[1]
    bounds = segment_blocks(offsets, T, starts)
    visits = offsets[bounds].diff()
    where = bounds.numpy(), _numpy(offsets)
    firsts = _numpy(offsets[:-1] if starts is None else starts)
    blocks = len(visits)
    used = [] if batch_statistics else list(statistics)

    near, block_sums = keys.new_zeros(blocks, H), torch.zeros(blocks, 2, H, dtype=torch.float64)
    zs = [keys.new_empty(T, H)]
    of_key, of_product, of_gaps = (_numpy(w.t()) for w in weight.split([D, D, G], dim=1))
    inputs = (_numpy(x) for x in (query, bias, keys, gaps))
    outputs = (x.numpy() for x in (zs[0], near, block_sums))
    widths = width(D), width(G), width(H)
    parallel_rows(_first, blocks, *widths, *where, firsts, *inputs, of_key, of_product, of_gaps, *outputs)
    for i, (of_layer, offset) in enumerate(zip(weights, biases, strict=True)):
        if batch_statistics:
            used.append(_statistics(near, block_sums, visits))
        s = _scale(used[i], alphas[i], eps)
        (N, H), z = of_layer.shape, zs[i].numpy()
        if i + 1 == len(weights):
            break
        zs.append(keys.new_empty(T, N))
        near, block_sums = keys.new_zeros(blocks, N), torch.zeros(blocks, 2, N, dtype=torch.float64)
        parameters, outputs = (s, _numpy(of_layer.t()), _numpy(offset)), (x.numpy() for x in (zs[-1], near, block_sums))
        parallel_rows(_between, blocks, width(H), width(N), *where, z, *parameters, *outputs)
    of_visits, interest = keys.new_empty(T, 1), query.new_empty(query.shape)
    parameters = s, _numpy(of_layer[0]), _numpy(offset)
    out = of_visits.numpy(), interest.numpy()
    parallel_rows(_last, blocks, width(H), width(D), *where, firsts, z, *parameters, _numpy(keys), *out)
    return interest, of_visits, zs, used if batch_statistics else [x.clone() for x in used]


def target_attention_backward_cpu(
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
    """The backward of ``target_attention`` for float32 on the CPU."""
    (T, G), D = gaps.shape, keys.shape[1]
    bounds = segment_blocks(offsets, T, starts)
    where = bounds.numpy(), _numpy(offsets)
    firsts = _numpy(offsets[:-1] if starts is None else starts)
    blocks = bounds.numel() - 1
    layers = len(weights)
    grad_alphas, grad_weights, grad_biases = ([torch.empty(0)] * layers for _ in range(3))
    above, s_above = of_visits, None
    for i in reversed(range(layers)):
        N, H = weights[i].shape
        delta, grad_weight, grad_bias = keys.new_empty(T, N), keys.new_zeros(blocks, N, H), keys.new_zeros(blocks, N)
        sums = keys.new_zeros(blocks, 3, H)
        layer = _numpy(zs[i]), _scale(statistics[i], alphas[i], eps), _numpy(weights[i])
        outputs = tuple(x.numpy() for x in (sums, grad_weight, grad_bias))
        if i + 1 == layers:
            inputs = _numpy(grad), _numpy(keys)
            parallel_rows(
                _last_back, blocks, width(H), width(D), *where, firsts, *inputs, delta.numpy(), *layer, *outputs
            )
        else:
            upper = above.numpy(), zs[i + 1].numpy(), s_above, _numpy(weights[i + 1])
            above_width = width(above.shape[1])
            parallel_rows(
                _between_back, blocks, width(H), width(N), above_width, *where, *upper, delta.numpy(), *layer, *outputs
            )
        grad_weights[i], grad_biases[i] = grad_weight.sum(0), grad_bias.sum(0)
        dx, dx_x, grad_alphas[i] = sums.double().sum(0).float()
        share = 1 / T if batch_statistics else 0.0
        above, s_above = delta, _scale(statistics[i], alphas[i], eps, dx * share, dx_x * share)

    B, H, N = query.shape[0], weight.shape[0], above.shape[1]
    grad_query, grad_bias = query.new_empty(B, D), query.new_empty(B, H)
    shared = starts is not None
    grad_keys = keys.new_zeros(keys.shape) if shared else keys.new_empty(keys.shape)  # contiguous, whatever keys are
    grad_gaps = keys.new_empty(T if want_gaps else 0, G)
    grad_first, grad_of_gaps = keys.new_zeros(blocks, H, 2 * D), keys.new_zeros(blocks, G, H)
    outputs = tuple(x.numpy() for x in (grad_query, grad_bias, grad_keys, grad_gaps, grad_first, grad_of_gaps))
    inputs = tuple(_numpy(x) for x in (query, keys, gaps, weight, grad, of_visits, above, zs[0]))
    widths = width(D), width(G), width(H), width(N)
    parallel_rows(_first_back, blocks, *widths, *where, firsts, *inputs, s_above, _numpy(weights[0]), shared, *outputs)
    grad_first = torch.cat([grad_first.sum(0), grad_of_gaps.sum(0).t()], dim=1)
    return grad_query, grad_bias, grad_keys, grad_gaps, grad_first, grad_alphas, grad_weights, grad_biases
