"""Row-wise Adagrad on looked-up rows: compiled = reference = a loop; order, threads, ugly sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from placerank.kernels import row_adagrad
from placerank.kernels.row_adagrad import row_adagrad_, row_adagrad_reference

LR, EPS = 0.1, 1e-8


def make(rows: int, dim: int, lookups: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    ids = (torch.rand(lookups, generator=g) ** 3 * rows).long()  # some rows often, many never
    return (
        torch.randn(rows, dim, generator=g),
        torch.rand(rows, generator=g),
        ids,
        torch.randn(lookups, dim, generator=g),
    )


def by_hand(weights: Tensor, states: Tensor, ids: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    weights, states = weights.double(), states.double()
    for row in set(ids.tolist()):
        total = grad[ids == row].double().sum(0)
        states[row] += total.square().mean()
        weights[row] -= LR / (states[row].sqrt() + EPS) * total
    return weights.float(), states.float()


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 40), dim=st.integers(1, 4), lookups=st.integers(0, 60), seed=st.integers(0, 99))
def test_equals_a_loop(rows: int, dim: int, lookups: int, seed: int) -> None:
    weights, states, ids, grad = make(rows, dim, lookups, seed)
    want = by_hand(weights.clone(), states.clone(), ids, grad)
    for step in (row_adagrad_, row_adagrad_reference):
        got = weights.clone(), states.clone()
        step(*got, ids, grad, LR, EPS)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rows", [1, 2**11 - 1, 2**11, 2**11 + 1, 2**22 + 1])
def test_ids_of_one_digit_and_more(rows: int) -> None:
    weights, states, ids, grad = make(rows, 1, 500)
    ids[::7], ids[::5] = rows - 1, 0
    want = weights.clone(), states.clone()
    row_adagrad_reference(*want, ids, grad, LR, EPS)
    row_adagrad_(weights, states, ids, grad, LR, EPS)
    torch.testing.assert_close(weights, want[0])
    torch.testing.assert_close(states, want[1])


@pytest.mark.parametrize("rows", [3000, 9000])
def test_same_bits_on_any_number_of_threads_and_for_int32_or_strided_inputs(rows: int) -> None:
    weights, states, ids, grad = make(rows, 4, 20_000)
    wide = torch.zeros(20_000, 8)
    wide[:, ::2] = grad
    before = torch.get_num_threads()
    results = []
    try:
        for threads, x, y in ((1, ids, grad), (2, ids, grad), (3, ids.int(), wide[:, ::2])):
            torch.set_num_threads(threads)
            results.append((weights.clone(), states.clone()))
            row_adagrad_(*results[-1], x, y, LR, EPS)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0]) and torch.equal(results[0][1], other[1])


def test_tables_of_few_rows_get_the_same_bits_without_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, states, ids, grad = make(300, 16, 5000)
    sorted_for = weights.clone(), states.clone()
    row_adagrad_(weights, states, ids, grad, LR, EPS)
    monkeypatch.setattr(row_adagrad, "_FEW", len(ids))
    row_adagrad_(*sorted_for, ids, grad, LR, EPS)
    assert torch.equal(weights, sorted_for[0]) and torch.equal(states, sorted_for[1])


def test_float64_and_strided_tables_take_the_reference() -> None:
    weights, states, ids, grad = make(50, 4, 200)
    want = by_hand(weights.clone(), states.clone(), ids, grad)
    wide = weights.double(), states.double()
    row_adagrad_(*wide, ids, grad.double(), LR, EPS)
    torch.testing.assert_close(wide[0].float(), want[0])
    strided = torch.zeros(50, 8)[:, ::2]
    strided.copy_(weights)
    row_adagrad_(strided, states, ids, grad, LR, EPS)
    torch.testing.assert_close(strided, want[0])
