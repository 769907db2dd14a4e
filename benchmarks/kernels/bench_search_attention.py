"""Attention of each sample over the visits that a search chose: forward alone, and a whole step.

Histories are skewed (median 10 visits, mean 14, at most 50) or all full, of 50 or of 500 visits; 100 are chosen.
The fused peer is PyTorch's own scaled_dot_product_attention over the gathered visits and a row of zeros, which is its
way to have a logit of 0; it gives no log total. Gaps are laid out as hats for it before the clock starts.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from placerank.kernels.jagged import segment_topk
from placerank.kernels.search_attention import hats, search_attention, search_attention_reference

from .harness import Case, Suite, Work

D, G, KNOTS, HEADS, CHOSEN = 48, 2, 13, 4, 100
E = D + G * KNOTS


class Inputs(NamedTuple):
    """Arguments of search_attention, queries and keys leaves in a step; grad [B, A, E] for a whole step."""

    queries: Tensor
    keys: Tensor
    gaps: Tensor
    rows: Tensor
    grad: Tensor | None


CASES = [
    Case(f"{mode}_{lengths}", quick=B == 256 and lengths == "skewed", B=B, D=D)
    for lengths in ("skewed", "full_histories", "long")
    for mode in ("forward", "step")
    for B in (256, 2048)
]


def _lengths(case: Case) -> Tensor:
    g = torch.Generator().manual_seed(0)
    if case.name.endswith("skewed"):
        return torch.randn(case.B, generator=g).add(2.3).exp().long().clamp(max=50)
    return torch.full((case.B,), 500 if case.name.endswith("long") else 50)


def setup(case: Case, device: torch.device) -> Inputs:
    g = torch.Generator().manual_seed(1)
    lengths = _lengths(case)
    offsets, total = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), int(lengths.sum())
    rows = segment_topk(torch.randn(total, generator=g), offsets, min(CHOSEN, int(lengths.max())))
    queries = torch.randn(case.B, HEADS, E, generator=g) / 4
    keys, gaps = torch.randn(total, D, generator=g) / 4, torch.rand(total, G, generator=g) * KNOTS
    step = case.name.startswith("step")
    grad = torch.randn(case.B, HEADS, E, generator=g).to(device) if step else None
    queries, keys = (x.to(device).requires_grad_(step) for x in (queries, keys))
    return Inputs(queries, keys, gaps.to(device), rows.to(device), grad)


def work(case: Case) -> Work:
    """Products with the chosen visits, three times as many in a step; keys and gaps in, and their gradient out."""
    visits, step = int(_lengths(case).clamp(max=CHOSEN).sum()), case.name.startswith("step")
    columns, samples = D + 2 * G, 2 * case.B * HEADS * E
    return Work(
        flops=4 * HEADS * columns * visits * (3 if step else 1),
        bytes=4 * (visits * (D + G + (2 * D if step else 0)) + samples * (2 if step else 1)),
    )


def _timed(inputs: Inputs, attend: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], object]:
    """The pooled visits, and the leaves' gradients if they are asked for."""
    if inputs.grad is None:
        return attend
    return lambda: torch.autograd.grad(attend(), leaves, inputs.grad)


def _with(attend: Callable[..., tuple[Tensor, Tensor]], inputs: Inputs) -> Callable[[], object]:
    return _timed(inputs, lambda: attend(*inputs[:4])[0], [inputs.queries, inputs.keys])


def placerank(inputs: Inputs) -> Callable[[], object]:
    return _with(search_attention, inputs)


def eager(inputs: Inputs) -> Callable[[], object]:
    return _with(search_attention_reference, inputs)


def compiled(inputs: Inputs) -> Callable[[], object]:
    return _with(torch.compile(search_attention_reference, dynamic=False), inputs)


def fused(inputs: Inputs) -> Callable[[], object]:
    rows = F.pad(inputs.rows, (1, 0), value=-1)
    none = rows < 0
    of_gaps = hats(inputs.gaps, KNOTS)
    seen = ~none
    seen[:, 0] = True

    def attend() -> Tensor:
        z = torch.cat([inputs.keys[rows], of_gaps[rows]], dim=2).masked_fill(none[:, :, None], 0)[:, None]
        queries = inputs.queries[:, None]
        return F.scaled_dot_product_attention(queries, z, z, attn_mask=seen[:, None, None], scale=1.0)[:, 0]

    return _timed(inputs, attend, [inputs.queries, inputs.keys])


SUITE = Suite(
    kernel="search_attention",
    cases=CASES,
    setup=setup,
    work=work,
    peers={"placerank": placerank, "eager PyTorch": eager, "torch.compile": compiled, "SDPA": fused},
    size="B",
)
