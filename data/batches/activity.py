"""How active items and users are, as of the training split: what AKT-Rec's gates and heads follow.

N rows (items or users), A columns.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

COLD = 3
"""Fewer positives than this look alike."""
_EDGES = (COLD, 10, 30, 100, 300)  # of buckets of counts; from the last on a row counts as fully active
_HALF_LIFE_DAYS = 30.0
ACTIVITY_DIM = 2 + len(_EDGES) + 1
"""A: columns of ``activity_features``."""
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
    edges = torch.tensor(_EDGES, dtype=torch.float32, device=count.device)
    count, days = count.float(), days_since_last.float()
    lowest, highest = edges[0] - 1, edges[-1]
    log_count = (count.clamp(lowest, highest).log1p() - lowest.log1p()) / (highest.log1p() - lowest.log1p())
    recency = torch.exp2(-days.clamp(min=0) / _HALF_LIFE_DAYS).nan_to_num(0).where(count >= COLD, 0)
    bucket = torch.bucketize(count, edges, right=True)
    one_hot = F.one_hot(bucket, len(_EDGES) + 1).float()
    return torch.cat([log_count[:, None], recency[:, None], one_hot], dim=1)


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
