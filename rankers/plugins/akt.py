"""AKT-Rec: knowledge goes from heads to the tail, and not back.

AKT-Rec (arXiv 2605.23310), section 3.2. The text that this was made from names the parts without formulas: they are
ours (design, sections 6 and 7). The gated embedding is ``embeddings/cluster_gate.py``, the views are ``views.py``.
Left out: the fine-tuning of a multimodal language model; clusters come from semantic IDs (LGSID's tokenizers).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...data.plain import check_numbers


@dataclass(kw_only=True)
class AktConfig:
    """AKT-Rec on any tower: cluster-guided embeddings of items and users, one-way transfer, hierarchical views.

    The defaults are what gained on real data (docs/papers.md): items' clusters, one-way transfer and gate. Users'
    clusters and views, the paper's other parts, are off. ``akt_ladder`` gives the steps in between by name.
    """

    enabled: bool | None = None
    """Whether there are clusters at all; needs semantic IDs. Default: where there are semantic IDs."""
    prefix: int = 1
    """Levels of the semantic ID that make an item's cluster."""
    cluster_rows: int = 65_536
    """Rows of the cluster table, at most; more prefixes than that are hashed."""
    users: bool = False
    """Users have clusters too: the most frequent one of their history."""
    gate: bool = True
    """Mix individual and cluster embedding by activity, and scale the cluster's gradient; else in equal parts."""
    one_way_weight: float = 0.01
    """Weight of the one-way contrastive loss; 0: none."""
    temperature: float = 0.1
    """Of the one-way loss."""
    views: bool = False
    """Towers on the individual, the cluster and the content view, fused by activity; else one on all together."""
    view_visits: int = 10
    """Latest visits that the cluster and the content view see; 0: the whole history."""

    def __post_init__(self) -> None:
        check_numbers(self, "akt", least={"prefix": 1, "cluster_rows": 1})
        if self.view_visits < 0:
            raise ValueError(f"akt.view_visits={self.view_visits}: expected 0 (the whole history) or more")
        if not self.one_way_weight >= 0:
            raise ValueError(f"akt.one_way_weight={self.one_way_weight}: expected 0 or more")
        if not self.temperature > 0:
            raise ValueError(f"akt.temperature={self.temperature}: expected more than 0")


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


def one_way_loss(individual: Tensor, cluster: Tensor, is_head: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE that pulls each tail row to the heads of its cluster, away from the heads of others.

        L = mean over tail t of  -log( exp(cos(e_t, sg(h_c(t))) / tau) / sum over c of exp(cos(e_t, sg(h_c)) / tau) )

    with h_c the mean direction of the heads of cluster c among these rows, c over clusters that have one, and sg no
    gradient. No gradient reaches a head's row: the rows' gradient is exactly zero there. A tail row of a cluster
    without a head here, or of no cluster, is no anchor. The paper does not say how positives and negatives are drawn:
    mean directions make every head of the batch count at [tail, clusters] products.

    Args:
        individual: e_ind of some ids of one kind (items or users), float [N, D]; one that comes twice counts twice.
        cluster: row of the cluster table, 0 = none, int64 [N].
        is_head: bool [N].
        temperature: tau.

    Returns:
        The loss, a float32 scalar (0 without anchors), and the share of tail rows that are anchors, without gradient.
    """
    known = cluster > 0
    heads = (is_head & known).nonzero().squeeze(1)
    tails = (~is_head).nonzero().squeeze(1)
    clusters, of_head = cluster[heads].unique(return_inverse=True)
    directions = F.normalize(individual.detach()[heads].float())
    means = directions.new_zeros(clusters.numel(), individual.shape[1]).index_add_(0, of_head, directions)
    own = torch.searchsorted(clusters, cluster[tails])
    has_head = torch.isin(cluster[tails], clusters)
    anchors = individual.index_select(0, tails[has_head])
    logits = F.normalize(anchors.float()) @ (F.normalize(means) / temperature).T
    total = F.cross_entropy(logits, own[has_head], reduction="sum")
    return total / max(1, anchors.shape[0]), has_head.float().sum() / max(1, tails.numel())
