"""SimHash: vectors as signs of random projections, and how many signs differ between a query and each of its visits.

Charikar, Similarity estimation techniques from rounding algorithms, STOC 2002: a sign of a projection differs between
two vectors with probability angle / pi, so among m signs their Hamming distance is about m angle / pi.

T visits of D columns and m projections cost 2 D m operations a visit, which is all of the cost. The CPU path keeps
projections of 32 visits at a time and counts them there: signs are never packed, since each is used once.
"""

import torch
from torch import Tensor

from .checks import check_number, check_offsets, check_tensors
from .jagged import segment_ids_unchecked
from .simhash_cpu import segment_hamming_cpu


def segment_hamming_reference(query: Tensor, keys: Tensor, projections: Tensor, offsets: Tensor) -> Tensor:
    """``segment_hamming`` in plain PyTorch."""
    signs, wanted = keys @ projections < 0, query @ projections < 0
    return (signs != wanted.index_select(0, segment_ids_unchecked(offsets, keys.shape[0]))).sum(dim=1)


def segment_hamming(query: Tensor, keys: Tensor, projections: Tensor, offsets: Tensor, beyond: int = 0) -> Tensor:
    """Hamming distance between the hash of each visit and that of its sample's query. Has no gradient.

    Where a projection is within rounding of 0 its sign may differ between devices and dtypes.

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
    # an exported file must load without placerank, so it holds PyTorch's own operations
    if keys.device.type != "cpu" or keys.dtype != torch.float32 or torch.compiler.is_exporting():
        return segment_hamming_reference(query, keys, projections, offsets)
    return segment_hamming_cpu(query, keys, projections, offsets, beyond)
