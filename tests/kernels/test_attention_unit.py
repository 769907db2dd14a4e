"""The activation unit's first layer against its one-line reference."""

import pytest
import torch

from placerank.kernels.attention_unit import attention_unit, attention_unit_reference
from placerank.kernels.jagged import segment_ids


def make_inputs(lengths: list[int], gaps: int, dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    total, dim, hidden = sum(lengths), 5, 3
    shapes = [(len(lengths), dim), (len(lengths), hidden), (total, dim), (total, gaps), (hidden, 2 * dim + gaps)]
    tensors = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    return tensors, [offsets, segment_ids(offsets, total)]


@pytest.mark.parametrize("gaps", [0, 2])
@pytest.mark.parametrize("lengths", [[], [0], [1], [0, 3, 0], [7, 0, 1, 13]])
def test_equals_the_reference(lengths: list[int], gaps: int) -> None:
    tensors, (offsets, segments) = make_inputs(lengths, gaps, torch.float32)
    fast, slow = attention_unit(*tensors, offsets, segments), attention_unit_reference(*tensors, segments)
    torch.testing.assert_close(fast, slow)
    grad = torch.randn_like(fast)
    for a, b in zip(torch.autograd.grad(fast, tensors, grad), torch.autograd.grad(slow, tensors, grad), strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck() -> None:
    tensors, index = make_inputs([2, 0, 3], 2, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: attention_unit(*x, *index), tensors)
