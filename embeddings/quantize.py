"""Rows of a table in fewer bytes: fp32, fp16, and fbgemm's row-wise int8 and int4.

A packed row of D columns:

    fp32   D float32
    fp16   D float16
    int8   uint8: D codes, then scale and bias as float32           value = code * scale + bias
    int4   uint8: D/2 bytes of two codes each (the first column in the low half), then scale and bias as float16

Scale and bias are those of the row, so a value comes back within half a scale. Numbers are little-endian.
"""

import fbgemm_gpu  # noqa: F401  registers torch.ops.fbgemm
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .settings import DTYPES

_HALF_MAX = 65504.0


def packed_layout(dim: int, dtype: str) -> tuple[np.dtype, int]:
    """Element type and elements of a packed row of ``dim`` columns.

    Raises:
        ValueError: unknown dtype, or int4 of an odd number of columns.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
    if dtype == "int4" and dim % 2:
        raise ValueError(f"dtype=int4: packs two columns into a byte, the table has {dim}; use int8")
    kind = {"fp32": "<f4", "fp16": "<f2"}.get(dtype, "u1")
    width = {"int8": dim + 8, "int4": dim // 2 + 4}.get(dtype, dim)
    return np.dtype(kind), width


def pack(rows: Tensor, dtype: str) -> NDArray:
    """float32 [n, dim], of any strides, to [n, width] of the dtype's layout, row after row in memory.

    Raises:
        ValueError: a value that float16 can't hold (fp16 and int4 keep values or biases in it), or NaN; rows that are
            not float32 [n, dim]; int4 of an odd number of columns.
    """
    if rows.dtype != torch.float32 or rows.dim() != 2:
        raise ValueError(f"rows to pack: got {rows.dtype} {tuple(rows.shape)}, expected torch.float32 [n, dim]")
    packed_layout(rows.shape[1], dtype)
    rows = rows.detach().contiguous()  # fbgemm's quantisers take no notice of strides
    if dtype == "fp32":
        return rows.numpy()
    largest = max(abs(x.item()) for x in rows.aminmax()) if rows.numel() else 0.0
    if not largest <= (_HALF_MAX if dtype in ("fp16", "int4") else torch.finfo(torch.float32).max):
        raise ValueError(f"dtype={dtype}: a value of magnitude {largest} can't be kept; export as fp32")
    if dtype == "fp16":
        return rows.half().numpy()
    if dtype == "int8":
        packed: Tensor = torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(rows)
    else:
        packed = torch.ops.fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf(rows, 4)
    return packed.numpy()


def unpack(packed: NDArray, dtype: str) -> Tensor:
    """[n, width], of any strides, back to float32 [n, dim]; may share memory with fp32 input."""
    rows = torch.from_numpy(np.ascontiguousarray(packed))  # as in ``pack``
    if dtype in ("fp32", "fp16"):
        return rows.float()
    if dtype == "int8":
        back: Tensor = torch.ops.fbgemm.Fused8BitRowwiseQuantizedToFloat(rows)
    else:
        back = torch.ops.fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(rows, 4)
    return back
