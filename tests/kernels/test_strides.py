"""Every kernel takes its inputs at any strides, and gradients too."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from placerank.kernels.codebook import residual_encode, residual_lookup, soft_usage
from placerank.kernels.gru import gru
from placerank.kernels.hard_negatives import Places, hard_negatives
from placerank.kernels.haversine import haversine_km, unit_vectors
from placerank.kernels.jagged import (
    segment_dot,
    segment_ids,
    segment_linear_attention,
    segment_softmax,
    segment_sum,
    segment_topk,
    weighted_segment_sum,
)
from placerank.kernels.pairwise_within import pairwise_within
from placerank.kernels.search_attention import search_attention
from placerank.kernels.simhash import segment_hamming
from placerank.kernels.target_attention import DiceLinear, target_attention

B, T, D, H, G = 5, 23, 8, 4, 2
OFFSETS = torch.tensor([0, 4, 4, 11, 20, T])


def inputs(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def attention(query: Tensor, bias: Tensor, keys: Tensor, gaps: Tensor, offsets: Tensor, *rest: Tensor) -> Tensor:
    weight, alpha, statistics, last, last_bias = rest
    layers = [DiceLinear(alpha, statistics, last, last_bias)]
    return target_attention(query, bias, keys, gaps, offsets, weight, layers, False)[0]


def hamming(query: Tensor, keys: Tensor, projections: Tensor, offsets: Tensor) -> Tensor:
    return segment_hamming(query, keys, projections.detach(), offsets)  # its projections are never trained


def negatives(lat: Tensor, lon: Tensor, items: Tensor, embeddings: Tensor, categories: Tensor, brands: Tensor) -> Any:
    return hard_negatives(Places(items, unit_vectors(lat, lon), embeddings, categories, brands), k=3)


def cases() -> dict[str, tuple[Callable[..., Any], list[Tensor]]]:
    values, other, weights, vectors = inputs((T, D), (T, D), (T,), (B, D))
    segments = segment_ids(OFFSETS, T)
    whole = torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(4))
    lat, lon, embeddings = (a + b for a, b in zip(inputs((40,), (40,), (40, D)), (40, 10, 0), strict=True))
    lat, lon = 40 + (lat - 40) / 20, 10 + (lon - 10) / 20
    rows = torch.tensor([[0, 2, 1], [-1, -1, -1], [4, 9, -1], [12, -1, -1], [21, 20, 22]])
    of_attention = inputs((B, D), (B, H), (T, D), (T, G), (H, 2 * D + G), (H,), (2, H), (1, H), (1,))
    of_attention[6] = of_attention[6].abs()
    return {
        "segment_sum": (segment_sum, [values, OFFSETS, weights]),
        "weighted_segment_sum": (weighted_segment_sum, [values, weights, OFFSETS, segments]),
        "segment_dot": (segment_dot, [values, vectors, OFFSETS]),
        "segment_linear_attention": (segment_linear_attention, [values, vectors, OFFSETS]),
        "segment_softmax": (segment_softmax, [values, OFFSETS, segments]),
        "segment_topk": (partial(segment_topk, k=3), [weights, OFFSETS]),
        "segment_hamming": (hamming, [vectors, values, *inputs((D, 16)), OFFSETS]),
        "gru": (gru, [*inputs((T, 3 * H), (3 * H, H), (3 * H,)), OFFSETS, weights.sigmoid()]),
        "target_attention": (attention, [*of_attention[:4], OFFSETS, *of_attention[4:]]),
        "search_attention": (search_attention, [*inputs((B, 4, D + G * 3), (T, D), (T, G)), rows]),
        "residual_encode": (residual_encode, [values, *inputs((2, 6, D))]),
        "residual_lookup": (residual_lookup, [rows.clamp(max=5), *inputs((3, 6, D))]),
        "soft_usage": (partial(soft_usage, temperature=0.5), [values, other[:6].clone()]),
        "haversine_km": (haversine_km, [lat, lon, lat.flip(0), lon.flip(0)]),
        "pairwise_within": (partial(pairwise_within, km=5.0), [unit_vectors(lat, lon), unit_vectors(lat, lon)[:30]]),
        "hard_negatives": (negatives, [lat, lon, torch.arange(40), embeddings, whole, whole.flip(0)]),
    }


def spread(x: Tensor) -> Tensor:
    """The same numbers, with others between them in memory."""
    wide = torch.full((*x.shape, 2), 3, dtype=x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


def turned(x: Tensor) -> Tensor:
    """The same numbers, last dimension first in memory."""
    order = list(range(x.dim()))[::-1]
    return x.permute(order).contiguous().permute(order)


def outcome(function: Callable[..., Any], given: list[Tensor], change: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """What the function returns, and the gradients of its inputs for a gradient of changed strides."""
    leaves = [change(x).requires_grad_(x.is_floating_point()) for x in given]
    got = function(*leaves)
    outputs = [x for x in (got if isinstance(got, tuple) else [got]) if isinstance(x, Tensor)]
    found = [x.detach() for x in outputs]
    smooth = [x for x in outputs if x.requires_grad]
    if smooth:
        wanted = [x for x in leaves if x.requires_grad]
        grads = [change(torch.linspace(-1, 1, x.numel()).view(x.shape)) for x in smooth]
        found += [x for x in torch.autograd.grad(smooth, wanted, grads, allow_unused=True) if x is not None]
    return found


@pytest.mark.parametrize("change", [spread, turned], ids=["spread", "turned"])
@pytest.mark.parametrize("name", cases())
def test_strides_change_nothing(name: str, change: Callable[[Tensor], Tensor]) -> None:
    function, given = cases()[name]
    want = outcome(function, given, lambda x: x.clone())
    got = outcome(function, given, change)
    assert len(got) == len(want) and any(x.count_nonzero() for x in want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
