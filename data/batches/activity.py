"""How active items and users are, as of the training split: what AKT-Rec's gates and heads follow.

N rows (items or users), A = ``ACTIVITY_DIM`` columns.
"""

import torch
from torch import Tensor

from .settings import ACTIVITY_DIM as ACTIVITY_DIM

COLD = 3
"""Fewer positives than this look alike."""
_EDGES = (COLD, 10, 30, 100, 300)  # of buckets of counts; from the last on a row counts as fully active
_LOGS = torch.tensor([COLD - 1, _EDGES[-1]]).float().log1p()
_LOWEST, _SPAN = float(_LOGS[0]), float(_LOGS[1] - _LOGS[0])
_HALF_LIFE_DAYS = 30.0
HEAD_SHARE = 0.1
"""The most active share of items, and of users, is the head."""


def activity_features(count: Tensor, days_since_last: Tensor) -> Tensor:
    """How active an item or user is: log-count, recency and bucket of the count.

    Counts come from the training split, so an item without any positive has only negative samples there, and a model
    that could tell it from one with a positive would learn that such items are never clicked. So fewer than ``COLD``
    positives look alike, and have no recency.

    Args:
        count: positives, integer or float [N].
        days_since_last: since the last of them, [N]; anything for cold rows, NaN where unknown.

    Returns:
        float32 [N, A]: log-count from 0 (cold) to 1 (300 positives or more); 2^(-days / 30), 0 for cold rows; one
        column a bucket, 1 for the row's.
    """
    return spread_activity(*activity_numbers(count, days_since_last))


def activity_numbers(count: Tensor, days_since_last: Tensor) -> tuple[Tensor, Tensor]:
    """What ``activity_features`` follows from, in 9 bytes a row: log-count and recency, float32 [N, 2], and the bucket
    of the count, int8 [N]."""
    count, days = count.float(), days_since_last.float()
    log_count = (count.clamp(COLD - 1, _EDGES[-1]).log1p() - _LOWEST) / _SPAN
    recency = torch.exp2(-days.clamp(min=0) / _HALF_LIFE_DAYS).nan_to_num(0).where(count >= COLD, 0)
    bucket = torch.zeros_like(count, dtype=torch.int8)
    for edge in _EDGES:  # numbers, not a tensor, which would have to be copied to the device
        bucket += count >= edge
    return torch.stack([log_count, recency], dim=1), bucket


def spread_activity(numbers: Tensor, bucket: Tensor) -> Tensor:
    """``activity_features`` from what ``activity_numbers`` gave: float32 [N, A]."""
    one_hot = bucket[:, None] == torch.arange(len(_EDGES) + 1, device=bucket.device)
    return torch.cat([numbers, one_hot.float()], dim=1)


def find_heads(count: Tensor, share: float = HEAD_SHARE) -> Tensor:
    """The most active rows, bool [N]: ``share`` of those with any positive, and all that are as active as the last.

    Args:
        count: positives up to the split, [N].
        share: in (0, 1).
    """
    active = count[count > 0]
    if not active.numel():
        return torch.zeros_like(count, dtype=torch.bool)
    at = max(1, round(share * active.numel()))
    return count >= active.sort(descending=True).values[at - 1]
