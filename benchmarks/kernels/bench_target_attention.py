"""DIN's activation unit and its weighted sum, with Dice on statistics of the batch: forward alone, and a whole step.

Histories are skewed (median 10 visits, mean 14, at most 50, as in the throughput benchmark) or all full. The padded
peer does what libraries with padded batches do: a rectangle of B x the longest history, [q, k, q - k, q * k] for each
place in it, and a mask on the weights. It counts padding in Dice's statistics, as they do, so it equals the others
where histories are full.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from placerank.kernels.target_attention import DiceLinear, target_attention, target_attention_reference

from .harness import Case, Suite, Work

D, G, HIDDEN, LONGEST = 32, 2, (32, 16), 50
EPS = 1e-8


class Inputs(NamedTuple):
    """Arguments of target_attention, all but offsets and statistics leaves; grad [B, D] for a whole step."""

    tensors: tuple[Tensor, ...]
    layers: list[DiceLinear]
    grad: Tensor | None

    @property
    def leaves(self) -> list[Tensor]:
        return [x for x in [*self.tensors, *(x for layer in self.layers for x in layer)] if x.requires_grad]


CASES = [
    Case(f"{mode}_{lengths}", quick=B == 1024 and lengths == "skewed", B=B, D=D)
    for lengths in ("skewed", "full_histories")
    for mode in ("forward", "step")
    for B in (1024, 4096)
]


def _lengths(case: Case) -> Tensor:
    g = torch.Generator().manual_seed(0)
    if case.name.endswith("full_histories"):
        return torch.full((case.B,), LONGEST)
    return torch.randn(case.B, generator=g).add(2.3).exp().long().clamp(max=LONGEST)


def setup(case: Case, device: torch.device) -> Inputs:
    g = torch.Generator().manual_seed(1)
    step = case.name.startswith("step")

    def leaf(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=g) / 4).to(device).requires_grad_(step)

    lengths = _lengths(case)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(device)
    total = int(lengths.sum())
    layers = [
        DiceLinear(leaf(h), torch.rand(2, h, generator=g).to(device), leaf(n, h), leaf(n))
        for h, n in zip(HIDDEN, (*HIDDEN[1:], 1), strict=True)
    ]
    gaps = torch.rand(total, G, generator=g).to(device)
    rows = leaf(case.B, D), leaf(case.B, HIDDEN[0]), leaf(total, D), gaps
    grad = torch.randn(case.B, D, generator=g).to(device) if step else None
    return Inputs((*rows, offsets, leaf(HIDDEN[0], 2 * D + G)), layers, grad)


def work(case: Case) -> Work:
    """Products of the layers, twice as many backward; keys and gaps in, and for a step the keys' gradient out."""
    total, step = int(_lengths(case).sum()), case.name.startswith("step")
    widths = zip((D + G, *HIDDEN), (*HIDDEN, 1), strict=True)
    products = 2 * total * (sum(a * b for a, b in widths) + D)
    return Work(flops=products * (3 if step else 1), bytes=4 * total * (D + G + (2 * D if step else 0)))


def _timed(inputs: Inputs, attend: Callable[..., tuple[Tensor, object]]) -> Callable[[], object]:
    """The interest, and all gradients if they are asked for."""

    def forward() -> Tensor:
        return attend(*inputs.tensors, inputs.layers, True, EPS)[0]

    if inputs.grad is None:
        return forward
    return lambda: torch.autograd.grad(forward(), inputs.leaves, inputs.grad)


def placerank(inputs: Inputs) -> Callable[[], object]:
    return _timed(inputs, target_attention)


def eager(inputs: Inputs) -> Callable[[], object]:
    return _timed(inputs, target_attention_reference)


def compiled(inputs: Inputs) -> Callable[[], object]:
    return _timed(inputs, torch.compile(target_attention_reference, dynamic=False))


def padded_attention(
    query: Tensor,
    bias: Tensor,
    keys: Tensor,
    gaps: Tensor,
    mask: Tensor,
    weight: Tensor,
    layers: list[DiceLinear],
    batch_statistics: bool,
    eps: float,
) -> tuple[Tensor, object]:
    """keys [B, L, D], gaps [B, L, G], mask [B, L]. What q - k adds is taken from the weights of q and k."""
    of_key, of_product, of_gaps = weight.split([D, D, G], dim=1)
    whole = torch.cat([of_key / 2, of_key / 2, -of_key / 2, of_product, of_gaps], dim=1)
    q = query[:, None].expand_as(keys)
    z = (torch.cat([q, keys, q - keys, q * keys, gaps], dim=2) @ whole.t() + bias[:, None]).flatten(0, 1)
    for layer in layers:
        mean, variance = layer.statistics
        p = torch.sigmoid(F.batch_norm(z, mean, variance, training=batch_statistics, eps=eps))
        z = F.linear(p * z + (1 - p) * layer.alpha * z, layer.weight, layer.bias)
    weights = z.view_as(mask) * mask
    return (weights[:, None] @ keys).squeeze(1), None


def padded(inputs: Inputs) -> Callable[[], object]:
    """Padding is done before: libraries with padded batches get them so from their loaders."""
    query, bias, keys, gaps, offsets, weight = inputs.tensors
    lengths = offsets.diff()
    mask = torch.arange(int(lengths.max()), device=keys.device) < lengths[:, None]
    all_keys, all_gaps = keys.new_zeros(*mask.shape, D), gaps.new_zeros(*mask.shape, G)
    all_keys[mask], all_gaps[mask] = keys.detach(), gaps
    all_keys.requires_grad_(keys.requires_grad)
    layers = [layer._replace(statistics=layer.statistics.clone()) for layer in inputs.layers]  # batch_norm moves them
    return _timed(
        inputs._replace(tensors=(query, bias, all_keys, all_gaps, mask, weight), layers=layers), padded_attention
    )


SUITE = Suite(
    kernel="target_attention",
    cases=CASES,
    setup=setup,
    work=work,
    peers={"placerank": placerank, "eager PyTorch": eager, "torch.compile": compiled, "padded PyTorch": padded},
    size="B",
)
