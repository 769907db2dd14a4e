"""Row-wise Adagrad on the rows of a table that a batch looked up, as fbgemm's EXACT_ROWWISE_ADAGRAD.

Each distinct row's gradients are summed first; its state, one number, grows by the mean of the squared sum; the row
moves by lr / (sqrt(state) + eps) times the sum. The reference sorts ids by comparing, gathers gradients in that order,
sums, squares, gathers and scatters, each a pass over memory. Here ids are sorted digit by digit, and the rest is one
pass that reads each gradient once: about half the time for 200,000 lookups of 16 columns on 2 CPU cores. Tables of few
rows (categories, levels of semantic IDs, clusters) are not sorted for: their sums fit the cache, whatever the order.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import check_ids, check_number, check_tensors
from .jagged import segment_sum_unchecked
from .threads import inlined, jit, parallel_rows
from .tile_products import FAST, width

_DIGIT = 11  # bits: a counter for each value of a digit stays in the first-level cache
_VALUES = 1 << _DIGIT
_GRAIN = 4096  # lookups that pay for a thread
_FEW = 4  # lookups a row from which sums of all rows cost less than sorting


def row_adagrad_reference(weights: Tensor, states: Tensor, ids: Tensor, grad: Tensor, lr: float, eps: float) -> None:
    """``row_adagrad_`` in plain PyTorch."""
    ordered, order = ids.sort(stable=True)
    rows, counts = torch.unique_consecutive(ordered, return_counts=True)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    row_grad = segment_sum_unchecked(grad.index_select(0, order), offsets)
    state = states.index_select(0, rows) + row_grad.square().mean(dim=1)
    states.index_copy_(0, rows, state)
    step = row_grad.mul_((-lr / (state.sqrt() + eps))[:, None])
    weights.index_copy_(0, rows, step.add_(weights.index_select(0, rows)))


@jit()
def _sort(ids: Any, largest: int, keys: Any, order: Any, other_keys: Any, other_order: Any) -> Any:
    """ids in order and where each came from, stable, by counting the values of one digit after the other.

    The four buffers, int32 [T] each, are written in turns; returns the two that hold the result.
    """
    for i in range(len(ids)):
        keys[i], order[i] = ids[i], i
    shift = 0
    while shift == 0 or largest >> shift:
        starts = np.zeros(_VALUES + 1, np.int64)
        for i in range(len(ids)):
            starts[((keys[i] >> shift) & (_VALUES - 1)) + 1] += 1
        for value in range(_VALUES):
            starts[value + 1] += starts[value]
        for i in range(len(ids)):
            value = (keys[i] >> shift) & (_VALUES - 1)
            at = starts[value]
            other_keys[at], other_order[at] = keys[i], order[i]
            starts[value] = at + 1
        keys, order, other_keys, other_order = other_keys, other_order, keys, order
        shift += _DIGIT
    return keys, order


@inlined(fastmath=FAST)
def _move(Ds: Any, total: Any, row: int, lr: float, eps: float, weights: Any, states: Any) -> None:
    """A row's step along the sum of its gradients, [D]."""
    D = len(Ds)
    square = np.float32(0)
    for d in range(D):
        square += total[d] * total[d]
    states[row] += square / np.float32(D)
    scale = np.float32(lr / (np.sqrt(states[row]) + eps))
    for d in range(D):
        weights[row, d] -= scale * total[d]


@jit(fastmath=FAST)
def _step(
    start: int, stop: int, Ds: Any, ordered: Any, order: Any, grad: Any, lr: float, eps: float, weights: Any,
    states: Any,
) -> None:  # fmt: skip
    """Rows whose first lookup, in order, lies in start .. stop."""
    D = len(Ds)
    total = np.empty(D, np.float32)
    i = start
    while 0 < i < stop and ordered[i] == ordered[i - 1]:
        i += 1
    while i < stop:
        row = ordered[i]
        total[:] = 0
        while i < len(order) and ordered[i] == row:
            at = order[i]
            for d in range(D):
                total[d] += grad[at, d]
            i += 1
        _move(Ds, total, row, lr, eps, weights, states)


@jit(fastmath=FAST)
def _step_unsorted(
    start: int, stop: int, Ds: Any, ids: Any, grad: Any, lr: float, eps: float, weights: Any, states: Any
) -> None:
    """Rows start .. stop: sums of all of them side by side, added up in the same order as ``_step`` does."""
    D = len(Ds)
    total, met = np.zeros((stop - start, D), np.float32), np.zeros(stop - start, np.bool_)
    for i in range(len(ids)):
        row = ids[i] - start
        if 0 <= row < stop - start:
            met[row] = True
            for d in range(D):
                total[row, d] += grad[i, d]
    for row in range(stop - start):
        if met[row]:
            _move(Ds, total[row], start + row, lr, eps, weights, states)


def row_adagrad_(weights: Tensor, states: Tensor, ids: Tensor, grad: Tensor, lr: float, eps: float) -> None:
    """Take one step on the rows that ``ids`` name, in place.

    Args:
        weights: the table, [R, D], D of 1 or more.
        states: sums of mean squared gradients, [R], same dtype.
        ids: rows looked up, int64 or int32 [T], in 0 .. R - 1, in any order and as often as they come.
        grad: gradient of each lookup, [T, D], same dtype.
        lr, eps: learning rate; joins the root of the state.

    Raises:
        IndexError: an id that names no row; nothing has been changed.
        TypeError, ValueError: shapes, dtypes or devices don't fit together.
    """
    if isinstance(weights, Tensor) and isinstance(ids, Tensor) and weights.dim() == 2:
        check_ids("ids", ids, weights.shape[0])
    row_adagrad_unchecked_(weights, states, ids, grad, lr, eps)


def row_adagrad_unchecked_(weights: Tensor, states: Tensor, ids: Tensor, grad: Tensor, lr: float, eps: float) -> None:
    """``row_adagrad_`` on rows that are known to be there."""
    check_tensors(
        {"weights": (weights, "R D"), "states": (states, "R"), "grad": (grad, "T D")},
        {"ids": (ids, "T")},
        integer_dtypes=(torch.int64, torch.int32),
    )
    if weights.shape[1] < 1:
        raise ValueError(f"weights: got {list(weights.shape)}, expected [R, D] with D of 1 or more")
    check_number("lr", lr, 0)
    check_number("eps", eps, 0)
    if len(ids) == 0:
        return
    floats = weights, states, grad
    plain = all(x.device.type == "cpu" and x.dtype == torch.float32 for x in floats)
    if not plain or not weights.is_contiguous() or not states.is_contiguous() or max(*weights.shape, len(ids)) >= 2**31:
        return row_adagrad_reference(weights, states, ids, grad, lr, eps)
    (rows, columns), found = weights.shape, ids.contiguous().numpy()
    arrays = grad.detach().contiguous().numpy(), lr, eps, weights.detach().numpy(), states.detach().numpy()
    if rows * _FEW <= len(found):
        parallel_rows(_step_unsorted, rows, width(columns), found, *arrays, grain=max(1, rows * _GRAIN // len(found)))
        return
    ordered, order = _sort(found, rows - 1, *np.empty((4, len(found)), np.int32))
    parallel_rows(_step, len(ordered), width(columns), ordered, order, *arrays, grain=_GRAIN)
