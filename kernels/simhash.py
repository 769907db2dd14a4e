"""SimHash: vectors as signs of random projections, and how many signs differ between a query and each of its visits.

Charikar, Similarity estimation techniques from rounding algorithms, STOC 2002: a sign of a projection differs between
two vectors with probability angle / pi, so among m signs their Hamming distance is about m angle / pi.

T visits of D columns and m projections cost 2 D m operations a visit, which is all of the cost. The CPU path keeps
projections of 32 visits at a time and counts them there: signs are never packed, since each is used once. Elsewhere
PyTorch's operations take so many visits at a time that their projections stay small.
"""

import torch
from torch import Tensor

from .checks import check_number, check_offsets, check_tensors
from .jagged import segment_ids_unchecked
from .simhash_cpu import segment_hamming_cpu

NUMBERS = 1 << 24  # projections in memory at once


def segment_hamming_reference(query: Tensor, keys: Tensor, projections: Tensor, offsets: Tensor) -> Tensor:
    """``segment_hamming`` in plain PyTorch."""
    signs, wanted = keys @ projections < 0, query @ projections < 0
    return (signs != wanted.index_select(0, segment_ids_unchecked(offsets, keys.shape[0]))).sum(dim=1)


def segment_hamming(query: Tensor, keys: Tensor, projections: Tensor, offsets: Tensor, beyond: int = 0) -> Tensor:
    """Hamming distance between the hash of each visit and that of its sample's query. Has no gradient.

    Where a projection is within rounding of 0 its sign may differ between devices and dtypes. On CUDA the projections
    of some visits are in memory at once, 64 MB in float32; in a compiled or exported program those of all.

    Args:
        query: [B, D], any floating dtype.
        keys: [T, D], same dtype.
        projections: [D, m], same dtype.
        offsets: int64 [B+1], offsets[0] = 0, offsets[B] = T.
        beyond: only segments of more rows need their distances; those of others are undefined.

    Returns:
        0 to m, int64 [T].

    Raises:
        TypeError, ValueError: shapes, dtypes, devices or offsets don't fit together.
    """
    check_offsets(offsets, keys)
    return segment_hamming_unchecked(query, keys, projections, offsets, beyond)


def segment_hamming_unchecked(
    query: Tensor, keys: Tensor, projections: Tensor, offsets: Tensor, beyond: int = 0
) -> Tensor:
    """``segment_hamming`` by offsets that are known to be right."""
    floats = {"query": (query, "B D"), "keys": (keys, "T D"), "projections": (projections, "D m")}
    check_tensors(floats, {"offsets": (offsets, "B+1")})
    check_number("beyond", beyond, 0, whole=True)
    query, keys, projections = query.detach(), keys.detach(), projections.detach()
    if keys.device.type == "cpu" and keys.dtype == torch.float32 and not torch.compiler.is_exporting():
        return segment_hamming_cpu(query, keys, projections, offsets, beyond)
    if torch.compiler.is_compiling():  # steps would be another program for each number of visits
        return segment_hamming_reference(query, keys, projections, offsets)
    return _segment_hamming_steps(query, keys, projections, offsets)


def _segment_hamming_steps(query: Tensor, keys: Tensor, projections: Tensor, offsets: Tensor) -> Tensor:
    """``segment_hamming_reference``, so many visits at a time."""
    wanted, segments = query @ projections < 0, segment_ids_unchecked(offsets, keys.shape[0])
    out = torch.empty_like(segments)
    step = max(1, NUMBERS // max(1, projections.shape[1]))
    for some, own, distances in zip(keys.split(step), segments.split(step), out.split(step), strict=True):
        torch.sum((some @ projections < 0) != wanted.index_select(0, own), dim=1, out=distances)
    return out
