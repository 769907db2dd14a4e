"""AKT-Rec: knowledge goes from heads to the tail, and not back.

AKT-Rec (arXiv 2605.23310), section 3.2. The text that this was made from names the parts without formulas: they are
ours (design, sections 6 and 7). The gated embedding is ``embeddings/cluster_gate.py``, the views are ``views.py``.
Left out: the fine-tuning of a multimodal language model; clusters come from semantic IDs (LGSID's tokenizers).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...kernels.places import numbers_of
from .rows import rows_to_take
from .settings import AktConfig

_LOGITS = 1 << 22  # in memory at once: 16 MiB
_NEVER = -1e30  # logit of what does not count: -inf would make NaN of a row that has none


def akt_ladder() -> dict[str, AktConfig]:
    """AKT-Rec by name, each config adding one part to the one before: gate is the default, views all of the paper's."""
    return {
        "none": AktConfig(enabled=False),
        "cluster": AktConfig(enabled=True, one_way_weight=0.0, gate=False),
        "one_way": AktConfig(enabled=True, gate=False),
        "gate": AktConfig(enabled=True),
        "users": AktConfig(enabled=True, users=True),
        "views": AktConfig(enabled=True, users=True, views=True),
    }


class _InfoNce(torch.autograd.Function):
    """-log softmax(rows @ means^T) at ``own``, where the mean is ``there``: [N]; no gradient but that of the rows.

    The rows' gradient is made in the same pass, some rows at a time, so that no [N, C] matrix is kept.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, means: Tensor, there: Tensor, own: Tensor) -> Tensor:
        losses, gradients = [], []
        step = max(1, _LOGITS // max(1, len(means)))
        for some, mine in zip(rows.split(step), own.split(step), strict=True):
            logs = (some @ means.T).float().masked_fill_(~there, _NEVER).log_softmax(dim=1)
            losses.append(-logs.gather(1, mine[:, None]).squeeze(1))
            gradients.append(logs.exp_() @ means - means.index_select(0, mine))
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad[:, None], None, None, None


def one_way_loss(
    individual: Tensor, cluster: Tensor, is_head: Tensor, temperature: float, clusters: int
) -> tuple[Tensor, Tensor]:
    """InfoNCE that pulls each tail row to the heads of its cluster, away from the heads of others.

        L = mean over tail t of  -log( exp(cos(e_t, sg(h_c(t))) / tau) / sum over c of exp(cos(e_t, sg(h_c)) / tau) )

    with h_c the mean direction of the heads of cluster c among these rows, c over clusters that have one, and sg no
    gradient. No gradient reaches a head's row: the rows' gradient is exactly zero there. A tail row of a cluster
    without a head here, or of no cluster, is no anchor. The paper does not say how positives and negatives are drawn:
    mean directions make every head of the batch count at [tail, clusters] products.

    A GPU is not waited for: there all N rows are compared with min(N, ``clusters``) means, and what is no anchor or no
    mean is masked.

    Args:
        individual: e_ind of some ids of one kind (items or users), float [N, D]; one that comes twice counts twice.
        cluster: row of the cluster table, 0 = none, int64 [N].
        is_head: bool [N].
        temperature: tau.
        clusters: rows of the cluster table.

    Returns:
        The loss, a float32 scalar (0 without anchors), and the share of tail rows that are anchors, without gradient.
    """
    numbers = numbers_of(cluster).long()  # below the number of rows and that of clusters, however large cluster is
    heads = is_head & (cluster > 0)
    directions = F.normalize(individual.detach().float()).masked_fill(~heads[:, None], 0)
    means = directions.new_zeros(min(len(cluster), clusters), individual.shape[1]).index_add_(0, numbers, directions)
    there = torch.zeros_like(means[:, 0]).index_add_(0, numbers, heads.float()) > 0
    anchors = ~is_head & there[numbers]
    share = anchors.sum() / (~is_head).sum().clamp(min=1)
    chosen, used = rows_to_take(anchors), rows_to_take(there)
    column = numbers.new_zeros(len(there)).index_copy_(0, used, torch.arange(len(used), device=used.device))
    losses = _InfoNce.apply(
        F.normalize(individual.index_select(0, chosen).float()),
        F.normalize(means.index_select(0, used)) / temperature,
        there[used],
        column[numbers[chosen]],
    )
    return losses.where(anchors[chosen], 0).sum() / anchors.sum().clamp(min=1), share
