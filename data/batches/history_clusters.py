"""The cluster of a user: the one in which the user has been most often.

AKT-Rec has clusters of users from a language model's reading of their behaviour. Here a user's cluster comes from the
semantic IDs of the history (design, section 6): of each sample's own history, so that it never knows the visit that is
to be predicted, or of each user's visits up to the split.
"""

from typing import Any

import torch
from torch import Tensor

from ...kernels.jagged import segment_ids_unchecked
from ...kernels.threads import jit, parallel_rows

RECENT = 64
"""Visits that count, at most: the latest ones."""


def history_clusters_reference(offsets: Tensor, clusters: Tensor, recent: int = RECENT) -> Tensor:
    """``history_clusters`` in PyTorch's own operations, for any device."""
    total = clusters.numel()
    segment, at = segment_ids_unchecked(offsets, total), torch.arange(total, device=clusters.device)
    visits = ((clusters > 0) & (at >= offsets[1:][segment] - recent)).nonzero().squeeze(1)
    out = torch.zeros(offsets.numel() - 1, dtype=torch.int64, device=clusters.device)
    if not visits.numel():
        return out
    size = int(clusters.max()) + 1
    pair, which, count = (segment[visits] * size + clusters[visits]).unique(return_inverse=True, return_counts=True)
    last = torch.zeros_like(pair).scatter_reduce(0, which, visits, "amax")
    rank, user = count * total + last, pair // size
    best = torch.zeros_like(out).scatter_reduce(0, user, rank, "amax")
    wins = rank == best[user]
    out[user[wins]] = pair[wins] % size
    return out


@jit()
def _most_frequent(start: int, stop: int, offsets: Any, clusters: Any, recent: int, out: Any) -> None:
    for b in range(start, stop):
        first, best = max(offsets[b], offsets[b + 1] - recent), 0
        for t in range(offsets[b + 1] - 1, first - 1, -1):  # newest first, and only more visits win
            c = clusters[t]
            if c == 0 or t - first + 1 <= best:
                continue
            count = 0
            for u in range(first, t + 1):
                count += clusters[u] == c
            if count > best:
                best, out[b] = count, c


def history_clusters(offsets: Tensor, clusters: Tensor, recent: int = RECENT) -> Tensor:
    """The most frequent cluster of each history; of equally frequent ones that of the latest visit.

    Args:
        offsets: history b is visits offsets[b] to offsets[b+1], oldest first, int64 [B+1]; empty ones are legal.
        clusters: cluster of each visit, 0 where unknown (not counted), int64 [T].
        recent: only the last so many visits of each history count.

    Returns:
        int64 [B]; 0 where no visit counts.
    """
    if clusters.device.type != "cpu":
        return history_clusters_reference(offsets, clusters, recent)
    out = torch.zeros(offsets.numel() - 1, dtype=torch.int64)
    parallel_rows(
        _most_frequent, out.numel(), offsets.numpy(), clusters.contiguous().numpy(), recent, out.numpy(), grain=256
    )
    return out
