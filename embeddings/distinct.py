"""Equal rows of a batch are computed once: which rows are distinct, and a result for each added to all of them.

Shapes: T rows, N of them distinct, D columns.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Distinct(NamedTuple):
    """Groups of equal rows, in ascending order of what they are equal in.

    Attributes:
        first: the lowest row of each group, int64 [N].
        group: the group of each row, int64 [T].
        order: rows group by group, ascending within each, int64 [T].
        offsets: group n is order[offsets[n] : offsets[n + 1]], int64 [N + 1].
    """

    first: Tensor
    group: Tensor
    order: Tensor
    offsets: Tensor


def distinct(*columns: Tensor) -> Distinct:
    """Group rows that are equal in all columns.

    Args:
        columns: row numbers of tables, int64 [T] each, 0 or more and below 2^31.

    Returns:
        ``Distinct``. On CUDA the number of groups is waited for.

    One sort for one or two columns, one more for each further column. To take the embeddings of the distinct rows from
    those of all, ``index_select(0, first)``: its backward took half the time of ``rows[first]``'s.
    """
    key = columns[0]
    for number, column in enumerate(columns[1:]):
        if number:  # the product of more than two columns might not fit in 63 bits
            key = _group(key).group
        if column.numel():
            key = key * (column.max() + 1) + column
    return _group(key)


def _group(key: Tensor) -> Distinct:
    if key.numel() and int(key.max()) < 2**31:
        key = key.int()  # sorts in half the time
    values, order = key.sort(stable=True)
    new = F.pad(values[1:] != values[:-1], (1 if len(key) else 0, 0), value=True)
    starts = new.nonzero().flatten()
    index = torch.empty_like(order).scatter_(0, order, new.cumsum(0) - 1)
    return Distinct(order[starts], index, order, F.pad(starts, (0, 1), value=len(key)))


class _SpreadAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, values: Tensor, group: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(order, offsets)
        return values.index_select(0, group).add_(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        order, offsets = ctx.saved_tensors
        sums = F.embedding_bag(order, grad, offsets, mode="sum", include_last_offset=True)
        return grad, sums, None, None, None


def spread_add(rows: Tensor, values: Tensor, groups: Distinct) -> Tensor:
    """Each row plus the value of its group: rows [T, D] and values [N, D], of one dtype, to [T, D].

    The backward sums the gradients of each group in the order of its rows, so it is the same every time and needs no
    atomics. One buffer of [T, D] is made, where a gather and a sum would make two.
    """
    added: Tensor = _SpreadAdd.apply(rows, values, groups.group, groups.order, groups.offsets)
    return added
