"""Segment operations against loops, and their gradients."""

import pytest
import torch

from placerank.kernels.jagged import segment_ids, segment_sum_reference, weighted_segment_sum

LENGTHS = [[], [0], [1], [0, 0, 3], [5, 0, 1, 0], [2, 7, 0, 31, 1]]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("dim", [1, 5, 16])
def test_sum_equals_the_loop(lengths: list[int], dim: int) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    total = sum(lengths)
    values, weights = torch.randn(total, dim), torch.randn(total)
    got = weighted_segment_sum(values, weights, offsets, segment_ids(offsets, total))
    torch.testing.assert_close(got, segment_sum_reference(values, weights, offsets))


@pytest.mark.parametrize("lengths", LENGTHS[2:])
def test_gradients(lengths: list[int]) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    total = sum(lengths)
    ids = segment_ids(offsets, total)
    values = torch.randn(total, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(total, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, w: weighted_segment_sum(v, w, offsets, ids), (values, weights))
