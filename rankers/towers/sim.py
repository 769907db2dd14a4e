"""SIM: search-based interest model.

Pi et al., Search-based User Interest Modeling with Lifelong Sequential Behavior Data for Click-Through Rate Prediction,
CIKM 2020 (arXiv 2006.05639). Written from published summaries that give its equations; its own text was not at hand.
"""

from math import sqrt

import torch
from torch import Tensor, nn

from ...kernels.jagged import segment_ids_unchecked, segment_linear_attention_unchecked, segment_topk_unchecked
from .search import TargetAttention
from .tower import Context, History, InterestTower


class SIM(InterestTower):
    """Hard search: the visits to places of the target's category, then multi-head target attention.

    r_i = 1 where visit i has the target's category, else 0. Of more than ``top_k`` such visits the most recent are
    kept; fewer are not filled up with others, and with none the interest is zero, as in the paper. An unknown category
    (0) equals no category.

    Left out: the short-term tower beside it (DIEN on recent visits).

    Args:
        dim, gaps: see InterestTower.
        top_k: visits that are attended to, at most.
        heads: of the attention.
    """

    uses_context = True
    shares_keys = True

    def __init__(self, dim: int, gaps: int, top_k: int = 100, heads: int = 4) -> None:
        super().__init__(dim, gaps)
        self.top_k = top_k
        self.attention = TargetAttention(dim, gaps, heads)
        self.output_dim = self.attention.output_dim

    def forward(self, query: Tensor, history: History, context: Context | None = None) -> Tensor:
        """query [B, D], history and context to interest [B, I]."""
        if context is None:
            raise ValueError("SIM's hard search got no context; it needs the categories of target and visits")
        wanted = context.category.index_select(0, segment_ids_unchecked(history.offsets, history.gaps.shape[0]))
        same = (context.visit_category == wanted) & (wanted != 0)
        rows = segment_topk_unchecked(torch.where(same, 0.0, -torch.inf), history.offsets, self.top_k)
        return self.attention(query, history, rows)


class SoftSIM(InterestTower):
    """Soft search: the ``top_k`` highest inner products with the target, then multi-head target attention.

    r_i = (W_b e_i) . (W_a e_a), here over sqrt(D). The choice of visits has no gradient, so W_a and W_b are trained
    through the whole history weighted by r_i, U = mean of r_i e_i (the paper's sum would grow with the history). The
    paper puts a click loss of its own on [U, e_a]; here U joins the interest, and the ranker's loss does it.

    Left out: approximate search (the paper's maximum inner product index); all products are computed, 2 D operations a
    visit. The short-term tower beside it.

    Args:
        dim, gaps, top_k, heads: see SIM.
    """

    def __init__(self, dim: int, gaps: int, top_k: int = 100, heads: int = 4) -> None:
        super().__init__(dim, gaps)
        self.top_k = top_k
        self.from_query = nn.Linear(dim, dim, bias=False)
        self.from_visit = nn.Linear(dim, dim, bias=False)
        self.attention = TargetAttention(dim, gaps, heads)
        self.output_dim = self.attention.output_dim + dim

    def forward(self, query: Tensor, history: History, context: Context | None = None) -> Tensor:
        """query [B, D] and history to interest [B, I]: what the attention found, then U."""
        keys, offsets = history[:2]
        wanted = self.from_query(query) @ self.from_visit.weight / sqrt(self.dim)  # once a sample: W_b^T W_a e_a
        relevance, whole = segment_linear_attention_unchecked(keys.to(wanted.dtype), wanted, offsets)
        rows = segment_topk_unchecked(relevance, offsets, self.top_k)
        whole = whole / offsets.diff().clamp(min=1)[:, None].to(whole.dtype)
        return torch.cat([self.attention(query, history, rows), whole], dim=1)
