"""Self-attention of a level of a prefix tree: each node over itself and its ancestors, whose rows are anywhere.

The fused peer is PyTorch's scaled_dot_product_attention, a node as a batch of one query, over rows that are gathered
for it: what a decoder does that reorders its keys with the beams.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from placerank.kernels.tree_attention import tree_attention, tree_attention_reference

from .harness import Case, Suite, Work

HEADS, D = 6, 64


class Inputs(NamedTuple):
    """Arguments of tree_attention."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    rows: Tensor
    bias: Tensor


CASES = [Case(f"depth_{depth}", quick=n == 1024, n=n, depth=depth) for depth in (2, 4) for n in (50, 1024, 16384)]


def setup(case: Case, device: torch.device) -> Inputs:
    g = torch.Generator().manual_seed(0)
    above = [torch.randint(max(1, case.n >> 3 * i), (case.n,), generator=g).sort().values for i in range(case.depth)]
    starts = torch.arange(case.depth) * case.n
    rows = torch.stack([*reversed(above[1:]), torch.arange(case.n)], dim=1) + starts
    shapes = ((case.n, HEADS, D), (case.depth * case.n, HEADS, D), (case.depth * case.n, HEADS, D), (HEADS, case.depth))
    queries, keys, values, bias = (torch.randn(shape, generator=g).to(device) / 8 for shape in shapes)
    return Inputs(queries, keys, values, rows.to(device), bias)


def work(case: Case) -> Work:
    """Products with the rows of each node; queries in, sums out, each node's own key and value in."""
    columns = HEADS * D
    return Work(flops=4 * case.n * case.depth * columns, bytes=4 * case.n * 4 * columns)


def placerank(inputs: Inputs) -> Callable[[], object]:
    return lambda: tree_attention(*inputs)


def eager(inputs: Inputs) -> Callable[[], object]:
    return lambda: tree_attention_reference(*inputs)


def fused(inputs: Inputs) -> Callable[[], object]:
    def attend() -> Tensor:
        keys, values = (x[inputs.rows].transpose(1, 2) for x in (inputs.keys, inputs.values))
        bias = inputs.bias[None, :, None]
        return F.scaled_dot_product_attention(inputs.queries[:, :, None], keys, values, bias, scale=1.0)[:, :, 0]

    return attend


SUITE = Suite(
    kernel="tree_attention",
    cases=CASES,
    setup=setup,
    work=work,
    peers={"placerank": placerank, "eager PyTorch": eager, "SDPA": fused},
    size="n",
)
