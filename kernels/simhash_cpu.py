"""CPU path of ``segment_hamming``."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .jagged_cpu import segment_blocks
from .threads import jit, parallel_rows
from .tile_products import FAST, times, width

_TILE = 32


@jit(fastmath=FAST)
def _hamming(
    start: int, stop: int, Ds: Any, Ms: Any, bounds: Any, beyond: int, offsets: Any, query: Any, keys: Any,
    projections: Any, out: Any,
) -> None:  # fmt: skip
    m = len(Ms)
    tile, wanted = np.empty((_TILE, m), np.float32), np.empty((1, m), np.float32)
    for b in range(bounds[start], bounds[stop]):
        if offsets[b + 1] - offsets[b] <= beyond:
            out[offsets[b] : offsets[b + 1]] = 0
            continue
        wanted[:] = 0
        times(Ds, Ms, query, b, 1, projections, wanted, 0)
        for t in range(offsets[b], offsets[b + 1], _TILE):
            n = min(_TILE, offsets[b + 1] - t)
            tile[:n] = 0
            times(Ds, Ms, keys, t, n, projections, tile, 0)
            for row in range(n):
                differ = np.int32(0)
                for j in range(m):
                    differ += np.int32((tile[row, j] < 0) != (wanted[0, j] < 0))
                out[t + row] = differ


def segment_hamming_cpu(query: Tensor, keys: Tensor, projections: Tensor, offsets: Tensor, beyond: int) -> Tensor:
    """``segment_hamming`` for float32 on the CPU."""
    (T, D), m = keys.shape, projections.shape[1]
    out = torch.empty(T, dtype=torch.int64)
    bounds = segment_blocks(offsets, T)
    arrays = (x.contiguous().numpy() for x in (offsets, query, keys, projections, out))
    parallel_rows(_hamming, bounds.numel() - 1, width(D), width(m), bounds.numpy(), beyond, *arrays)
    return out
