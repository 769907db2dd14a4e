"""Segment operations against loops, and their gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from placerank.kernels.jagged import (
    segment_dot,
    segment_dot_shared_unchecked,
    segment_ids,
    segment_linear_attention,
    segment_linear_attention_reference,
    segment_softmax,
    segment_softmax_reference,
    segment_sum_reference,
    segment_topk,
    segment_topk_reference,
    shared_rows_unchecked,
    weighted_segment_sum,
)

LENGTHS = [[], [0], [1], [0, 0, 3], [5, 0, 1, 0], [2, 7, 0, 31, 1]]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("dim", [1, 5, 16])
def test_sum_equals_the_loop(lengths: list[int], dim: int) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    total = sum(lengths)
    values, weights = torch.randn(total, dim), torch.randn(total)
    got = weighted_segment_sum(values, weights, offsets, segment_ids(offsets, total))
    torch.testing.assert_close(got, segment_sum_reference(values, weights, offsets))


@pytest.mark.parametrize("dim", [1, 5, 48])
def test_products_with_rows_that_segments_share(dim: int) -> None:
    # more segments of the same rows than a vector has numbers, some shorter or empty, and more rows than a tile
    starts = torch.tensor([0] * 20 + [70] * 3 + [70, 72])
    lengths = torch.tensor([70] * 18 + [0, 33] + [2, 2, 0] + [1, 0])
    offsets, values = nn.functional.pad(lengths.cumsum(0), (1, 0)), torch.randn(72, dim)
    vectors, total = torch.randn(len(starts), dim), int(lengths.sum())
    found = segment_dot_shared_unchecked(values, vectors, offsets, starts, total)
    rows = shared_rows_unchecked(starts, offsets, total)
    want = (values[rows] * vectors.repeat_interleave(lengths, 0)).sum(1)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", LENGTHS[2:])
def test_gradients(lengths: list[int]) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    total = sum(lengths)
    ids = segment_ids(offsets, total)
    values = torch.randn(total, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(total, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, w: weighted_segment_sum(v, w, offsets, ids), (values, weights))


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("dim", [1, 5, 16])
def test_products_with_the_segments_vector(lengths: list[int], dim: int) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    values, vectors = torch.randn(sum(lengths), dim), torch.randn(len(lengths), dim)
    want = [values[t] @ vectors[b] for b in range(len(lengths)) for t in range(int(offsets[b]), int(offsets[b + 1]))]
    torch.testing.assert_close(segment_dot(values, vectors, offsets), torch.tensor(want))
    wide = [x.double().requires_grad_() for x in (values, vectors)]
    assert torch.autograd.gradcheck(lambda *x: segment_dot(*x, offsets), wide)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("dim", [1, 16])
def test_linear_attention_is_its_two_steps(lengths: list[int], dim: int) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    values = torch.randn(sum(lengths), dim, requires_grad=True)
    vectors = torch.randn(len(lengths), dim, requires_grad=True)
    grad = torch.randn(len(lengths), dim)
    results = []
    for attend in (segment_linear_attention, segment_linear_attention_reference):
        x, out = attend(values, vectors, offsets)
        assert not x.requires_grad
        results.append([x, out, *torch.autograd.grad(out, (values, vectors), grad)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
    wide = [x.detach().double().requires_grad_() for x in (values, vectors)]
    assert torch.autograd.gradcheck(lambda *x: segment_linear_attention(*x, offsets)[1], wide)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_softmax_equals_the_loop(lengths: list[int], dtype: torch.dtype) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    logits = (100 * torch.randn(sum(lengths), 3)).to(dtype)
    logits[::4] = -torch.inf
    got = segment_softmax(logits, offsets, segment_ids(offsets, sum(lengths)))
    assert got.dtype == dtype
    torch.testing.assert_close(got, segment_softmax_reference(logits, offsets))


def test_softmax_gives_nothing_where_all_is_masked() -> None:
    offsets = torch.tensor([0, 2, 3])
    logits = torch.tensor([[-torch.inf], [-torch.inf], [5.0]], requires_grad=True)
    got = segment_softmax(logits, offsets, segment_ids(offsets, 3))
    assert got.flatten().tolist() == [0, 0, 1]
    got.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("lengths", LENGTHS[2:])
def test_gradients_of_softmax(lengths: list[int]) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    ids = segment_ids(offsets, sum(lengths))
    logits = torch.randn(sum(lengths), 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: segment_softmax(x, offsets, ids), (logits,))


class SortedTopk(nn.Module):
    """What is exported, and what runs where there is no compiled loop."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, scores: Tensor, offsets: Tensor) -> Tensor:
        return segment_topk(scores, offsets, self.k)


@pytest.fixture(scope="module")
def by_sorting() -> dict[int, nn.Module]:
    B, T = torch.export.Dim("B", min=0), torch.export.Dim("T", min=0)
    example = torch.randn(5), torch.tensor([0, 2, 2, 5])
    shapes = ({0: T}, {0: B + 1})
    return {
        k: torch.export.export(
            SortedTopk(k), example, dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True
        ).module()
        for k in (1, 3, 8)
    }


@settings(deadline=None, max_examples=150)
@given(
    lengths=st.lists(st.integers(0, 30), max_size=5),
    k=st.sampled_from([1, 3, 8]),
    levels=st.sampled_from([1, 2, 5, 1000]),
    seed=st.integers(0, 999),
)
def test_topk_equals_the_loop_on_every_path(
    by_sorting: dict[int, nn.Module], lengths: list[int], k: int, levels: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    scores = torch.randint(-levels, levels + 1, (sum(lengths),), generator=g) / 2.0  # few levels: many ties
    odd = torch.randint(0, 12, scores.shape, generator=g)
    for value, which in ((-torch.inf, 0), (torch.nan, 1), (-0.0, 2), (torch.inf, 3)):
        scores[odd == which] = value
    want = segment_topk_reference(scores, offsets, k)
    assert torch.equal(segment_topk(scores, offsets, k), want)
    assert torch.equal(by_sorting[k](scores, offsets), want)


@pytest.mark.parametrize("k", [1, 64, 100])
def test_topk_of_long_and_short_segments(k: int) -> None:
    lengths = [10_000, 3, 0, 64, 65, 900, *([7] * 300)]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    scores = torch.randn(sum(lengths)).round(decimals=1)
    assert torch.equal(segment_topk(scores, offsets, k), segment_topk_reference(scores, offsets, k))
