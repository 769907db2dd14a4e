"""AKT-Rec's cluster-guided embedding: what an id has of its own, and what its cluster shares, mixed by activity.

AKT-Rec (arXiv 2605.23310), section 3.2.1. The text that this was made from names the parts and gives no formula, so
these are ours (design, section 6):

    e_i = g_i * e_ind + (1 - g_i) * e_clu,    g_i = sigmoid(MLP(activity_i))

with a gate a column. N rows (items or users), D columns, A activity columns.
"""

from typing import Any

import torch
from torch import Tensor, nn

COLD = 3
"""Fewer positives than this look alike."""
_EDGES = (COLD, 10, 30, 100, 300)  # of buckets of counts; from the last on a row counts as fully active
_HALF_LIFE_DAYS = 30.0
ACTIVITY_DIM = 2 + len(_EDGES) + 1
"""A: columns of ``activity_features``."""
_FIRST_LOGIT = 2.0  # the gate starts from 0.12 without activity to 0.88 with all of it
_LEAST_GRADIENT = 0.1


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
    one_hot = nn.functional.one_hot(bucket, len(_EDGES) + 1).float()
    return torch.cat([log_count[:, None], recency[:, None], one_hot], dim=1)


class _Mix(torch.autograd.Function):
    """gate * individual + (1 - gate) * cluster; the gradient of cluster row n times scale[n]."""

    @staticmethod
    def forward(ctx: Any, individual: Tensor, cluster: Tensor, gate: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(individual, cluster, gate, scale)
        return torch.lerp(cluster, individual, gate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        individual, cluster, gate, scale = ctx.saved_tensors
        of_individual = grad * gate
        of_cluster = (grad - of_individual).mul_(scale)
        of_gate = torch.sub(individual, cluster).mul_(grad) if ctx.needs_input_grad[2] else None
        return of_individual, of_cluster, of_gate, None


class ClusterGate(nn.Module):
    """Mixes individual and cluster embeddings; starts rising with activity, the same for every column.

    An id that was hardly seen takes most from its cluster; a head keeps its own. Beside the gate, the gradient that a
    row sends into its cluster's row is scaled by activity, from 0.1 (cold) to 1 (300 positives): the many, noisy
    samples of the tail do not drown those of the heads. A cluster of tail ids alone still learns at full speed, since
    Adagrad divides by the size of a row's own gradients.

    Args:
        dim: columns D.
        hidden: width of the MLP's hidden layer.
        adaptive: False mixes both in equal parts whatever the activity, and scales nothing: the paper's ablation.

    Example:
        >>> gate = ClusterGate(4)
        >>> activity = activity_features(torch.tensor([0, 50, 5000]), torch.tensor([float("nan"), 3.0, 0.5]))
        >>> mixed, g = gate(torch.ones(3, 4), torch.zeros(3, 4), activity)
        >>> bool((mixed.diff(dim=0) > 0).all())
        True
    """

    def __init__(self, dim: int, hidden: int = 8, adaptive: bool = True) -> None:
        super().__init__()
        self.adaptive = adaptive
        if adaptive:
            self.mlp = nn.Sequential(nn.Linear(ACTIVITY_DIM, hidden), nn.ReLU(), nn.Linear(hidden, dim))
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Monotone: no weight is negative; log-count and recency alone count, buckets learn from zero."""
        first, last = self.mlp[0], self.mlp[2]
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        first.weight.zero_()
        first.weight[:, :2].uniform_(0.5, 1)
        first.bias.zero_()
        last.weight.uniform_(0.5, 1)
        full = last.weight @ first.weight[:, :2].sum(1)  # of the most active row
        last.weight.mul_(2 * _FIRST_LOGIT / full[:, None])
        last.bias.fill_(-_FIRST_LOGIT)

    def forward(self, individual: Tensor, cluster: Tensor, activity: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed rows and gates.

        Args:
            individual: e_ind, [N, D].
            cluster: e_clu, the cluster's row for each id, [N, D]; same dtype.
            activity: ``activity_features``, [N, A].

        Returns:
            e [N, D] and g [N, D], in (0, 1).
        """
        if not self.adaptive:
            gate = torch.full_like(individual, 0.5)
            return torch.lerp(cluster, individual, gate), gate
        gate = torch.sigmoid(self.mlp(activity)).to(individual.dtype)
        if torch.compiler.is_exporting():
            return torch.lerp(cluster, individual, gate), gate
        scale = (_LEAST_GRADIENT + (1 - _LEAST_GRADIENT) * activity[:, :1]).to(individual.dtype)
        mixed: Tensor = _Mix.apply(individual, cluster, gate, scale)
        return mixed, gate
