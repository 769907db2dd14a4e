"""TWIN-V2: TWIN over clusters of a life-long history.

Si et al., TWIN V2: Scaling Ultra-Long User Behavior Sequence Modeling for Enhanced CTR Prediction at Kuaishou, CIKM
2024 (arXiv 2407.16357). Written from its abstract and what is generally known of its equations; they were not checked
against its text. How histories become clusters: ``data/visit_clusters.py``.
"""

import torch
from torch import Tensor

from ...data.batches.features import HISTORY_GAPS
from .search import KNOTS
from .twin import TWIN


class TWINV2(TWIN):
    """Cluster-aware target attention: an entry that stands for n visits counts as n of them.

        alpha' = alpha + ln n

    in the search and in the attention, with TWIN's alpha of the place that stands for the cluster. A softmax gives n
    equal keys together what it gives one whose logit is higher by ln n, so this is TWIN over histories in which each
    entry is repeated n times; but the search finds ``top_k`` clusters, not visits.

    ln n is the last of the gaps where histories are clusters. Its hats, times the numbers of their knots, are ln n
    itself, up to n = e^12 = 162,754: so ``kernels/search_attention.py`` adds it as it adds what is learned of the other
    gaps. Nothing is learned of it, so weights are TWIN's own, and histories of visits (n = 1, or no such gap) give what
    TWIN gives.

    Args:
        dim, gaps, top_k, heads: as of TWIN; ``gaps`` beyond hours and km is ln n.
    """

    def __init__(self, dim: int, gaps: int, top_k: int = 100, heads: int = 4) -> None:
        super().__init__(dim, min(gaps, HISTORY_GAPS), top_k, heads)
        self.clusters = gaps > HISTORY_GAPS

    def of_gaps(self) -> Tensor:
        """As TWIN's; the hats of ln n give ln n."""
        learned = super().of_gaps()
        if not self.clusters:
            return learned
        ln_n = torch.arange(KNOTS, device=learned.device, dtype=learned.dtype)
        return torch.cat([learned, ln_n.expand(len(learned), -1)], dim=1)
