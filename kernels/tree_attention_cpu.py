"""CPU path of ``tree_attention``: one compiled loop over nodes that reads keys and values where they lie."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dice_cpu import exp
from .threads import jit, parallel_rows
from .tile_products import FAST, width

_GRAIN = 64  # nodes below which a second thread does not pay


@jit(fastmath=FAST)
def _attend(
    start: int, stop: int, Ds: Any, queries: Any, keys: Any, values: Any, rows: Any, bias: Any, out: Any
) -> None:
    D, heads, P = len(Ds), queries.shape[1], rows.shape[1]
    weights = np.empty(P, np.float32)
    for i in range(start, stop):
        for a in range(heads):
            top = np.float32(-np.inf)
            for p in range(P):
                row = rows[i, p]
                if row >= 0:
                    x = np.float32(0)
                    for d in range(D):
                        x += queries[i, a, d] * keys[row, a, d]
                    weights[p] = x + bias[a, p]
                    top = max(top, weights[p])
            total = np.float32(0)
            for p in range(P):
                if rows[i, p] >= 0:
                    weights[p] = exp(weights[p] - top)
                    total += weights[p]
            for d in range(D):
                out[i, a, d] = 0
            for p in range(P):
                row = rows[i, p]
                if row >= 0:
                    w = weights[p] / total
                    for d in range(D):
                        out[i, a, d] += w * values[row, a, d]


def tree_attention_cpu(queries: Tensor, keys: Tensor, values: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    """``tree_attention`` for float32 on the CPU."""
    out = torch.empty(queries.shape)
    arrays = (x.detach().contiguous().numpy() for x in (queries, keys, values, rows, bias, out))
    parallel_rows(_attend, queries.shape[0], width(queries.shape[2]), *arrays, grain=_GRAIN)
    return out
