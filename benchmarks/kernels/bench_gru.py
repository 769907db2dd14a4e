"""A recurrent unit over jagged rows, the map of its inputs included: forward alone, and a whole step.

Histories are skewed as in the throughput benchmark (median 10 visits, at most 50), all full, or one very long one
beside many of three. torch.nn.GRU has no attention on its update gate, so none is used here; it gets its histories
packed or padded beforehand.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_sequence

from placerank.kernels.gru import gru

from .harness import Case, Suite, Work

H, LONGEST = 48, 50


class Inputs(NamedTuple):
    """The unit, inputs [T, H] and where each history starts; grad [T, H] for a whole step."""

    unit: torch.nn.GRU
    x: Tensor
    offsets: Tensor
    grad: Tensor | None


CASES = [
    Case(f"{mode}_{lengths}", quick=B == 256 and lengths == "skewed", B=B, H=H)
    for lengths in ("skewed", "full_histories", "one_long")
    for mode in ("forward", "step")
    for B in (256, 1024)
]


def _lengths(case: Case) -> Tensor:
    g = torch.Generator().manual_seed(0)
    if case.name.endswith("full_histories"):
        return torch.full((case.B,), LONGEST)
    if case.name.endswith("one_long"):
        return torch.full((case.B,), 3).index_fill_(0, torch.tensor([case.B // 2]), 2 * case.B)
    return torch.randn(case.B, generator=g).add(2.3).exp().long().clamp(min=1, max=LONGEST)


def setup(case: Case, device: torch.device) -> Inputs:
    torch.manual_seed(1)
    lengths, step = _lengths(case), case.name.startswith("step")
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(device)
    x = torch.randn(int(lengths.sum()), H, device=device).requires_grad_(step)
    unit = torch.nn.GRU(H, H, batch_first=True).to(device).requires_grad_(step)
    return Inputs(unit, x, offsets, torch.randn(x.shape, device=device) if step else None)


def work(case: Case) -> Work:
    """Products with both weights, and in a step twice as many; inputs in, states out, and in a step their gradients."""
    total, step = int(_lengths(case).sum()), case.name.startswith("step")
    return Work(flops=12 * total * H * H * (3 if step else 1), bytes=8 * total * H * (2 if step else 1))


def _timed(inputs: Inputs, x: Tensor, forward: Callable[[], Tensor], grad: Tensor | None) -> Callable[[], object]:
    if grad is None:
        return forward
    return lambda: torch.autograd.grad(forward(), [x, *inputs.unit.parameters()], grad)


def placerank(inputs: Inputs) -> Callable[[], object]:
    """The unit's weights as they are: its update gate is 1 minus ours, which costs the same."""
    w_x, w_h, b_x, b_h = inputs.unit.parameters()
    return _timed(inputs, inputs.x, lambda: gru(F.linear(inputs.x, w_x, b_x), w_h, b_h, inputs.offsets), inputs.grad)


def _histories(inputs: Inputs) -> list[Tensor]:
    return list(inputs.x.detach().split(inputs.offsets.diff().tolist()))


def packed(inputs: Inputs) -> Callable[[], object]:
    rows = pack_sequence(_histories(inputs), enforce_sorted=False)
    x = rows.data.requires_grad_(inputs.grad is not None)
    rows = PackedSequence(x, rows.batch_sizes, rows.sorted_indices, rows.unsorted_indices)
    return _timed(inputs, x, lambda: inputs.unit(rows)[0].data, inputs.grad)


def padded(inputs: Inputs) -> Callable[[], object]:
    x = pad_sequence(_histories(inputs), batch_first=True).requires_grad_(inputs.grad is not None)
    return _timed(inputs, x, lambda: inputs.unit(x)[0], None if inputs.grad is None else torch.ones_like(x))


SUITE = Suite(
    kernel="gru",
    cases=CASES,
    setup=setup,
    work=work,
    peers={"placerank": placerank, "packed nn.GRU": packed, "padded nn.GRU": padded},
    size="B",
)
