"""AKT-Rec's cluster-guided embedding: what an id has of its own, and what its cluster shares, mixed by activity.

AKT-Rec (arXiv 2605.23310), section 3.2.1. The text that this was made from names the parts and gives no formula, so
these are ours (design, section 6):

    e_i = g_i * e_ind + (1 - g_i) * e_clu,    g_i = sigmoid(MLP(activity_i))

with a gate a column. N rows (items or users), D columns, A activity columns.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..data.batches.activity import ACTIVITY_DIM

_FIRST_LOGIT = 2.0  # the gate starts from 0.12 without activity to 0.88 with all of it
_LEAST_GRADIENT = 0.1


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
        >>> from placerank.data.batches.activity import activity_features
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
