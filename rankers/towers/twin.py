"""TWIN: a two-stage network whose stages agree.

Chang et al., TWIN: TWo-stage Interest Network for Lifelong User Behavior Modeling in CTR Prediction at Kuaishou, KDD
2023 (arXiv 2302.02352). Written from its abstract, published summaries and what is generally known of its equations;
they were not checked against its text.
"""

import torch
from torch import Tensor, nn

from ...kernels.jagged import (
    all_fit,
    segment_dot_shared_unchecked,
    segment_dot_unchecked,
    segment_topk_unchecked,
)
from ...kernels.search_attention import interpolate
from .search import GAP_DIM, FoundAttention, linear_heads, similar_heads
from .tower import Context, History, InterestTower


class TWIN(InterestTower):
    """Search and attention by the same relevance, so that what the attention would weight most is what is found.

    A visit's features are inherent (the key, the same for every user who was there) and cross (the gaps, of this user,
    visit and target). Relevance of a head:

        alpha = (K_h W^h) (q W^q)^T + (K_c W^c) beta

    with one number a gap from its embedding (W^c), weighted by beta a head. Softmax over the found visits and none (see
    search.py) weights the values K W^v, of inherent and cross features. The projections K_h W^h hold no gaps, so a
    serving system can keep them once an item; here W^h is moved into the query, which costs a visit 2 D operations in
    the search: less than reading projections would.

    The search is for all heads together and keeps the highest mean of alpha over them, which is the highest geometric
    mean of their weights; the paper does not say how its heads share a search.

    Left out: W^o on the heads' output, as the ranker's first layer is linear too; 1 / sqrt(d) in alpha, see search.py.

    Args:
        dim, gaps: see InterestTower.
        top_k: visits that are attended to, at most; the paper's 100.
        heads: the paper's 4.
    """

    shares_keys = True

    def __init__(self, dim: int, gaps: int, top_k: int = 100, heads: int = 4) -> None:
        super().__init__(dim, gaps)
        self.top_k = top_k
        self.found = FoundAttention(dim, gaps, heads)
        self.output_dim = self.found.output_dim
        self.from_query = linear_heads(heads, self.found.head_dim, dim)
        self.inherent = similar_heads(self.from_query, dim)
        self.cross = nn.Parameter(torch.empty(gaps, GAP_DIM).normal_(std=GAP_DIM**-0.5))
        self.beta = nn.Parameter(torch.ones(heads, gaps))

    def forward(self, query: Tensor, history: History, context: Context | None = None) -> Tensor:
        """query [B, D] and history to interest [B, I]."""
        queries, bias = self.queries(query)
        return self.found(query, torch.cat([queries, bias], dim=2), history, self.search(queries, bias, history))

    def queries(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """alpha as products: with the key, [B, A, D], and with the hats of its gaps, [B, A, G K]."""
        whole = torch.einsum("adi,ade->iae", self.from_query, self.inherent)  # W^q W^h^T
        queries = query @ whole.flatten(1).to(query.dtype)
        bias = self.of_gaps().to(queries.dtype).expand(query.shape[0], -1, -1)
        return queries.unflatten(1, whole.shape[1:]), bias

    def of_gaps(self) -> Tensor:
        """What each head's alpha has of the gaps, a number for each of their hats, [A, G K]."""
        return self.found.gap_embedding.fold((self.beta[:, :, None] * self.cross).flatten(1))

    @torch.no_grad()
    def search(self, queries: Tensor, bias: Tensor, history: History) -> Tensor:
        """The rows with the highest relevance, int64 [B, top_k] with -1 where a history is shorter."""
        keys, offsets, gaps = history[:3]
        if all_fit(offsets, self.top_k):
            return segment_topk_unchecked(gaps.new_zeros(gaps.shape[0]), offsets, self.top_k)
        mean, keys = queries.mean(dim=1), keys.to(queries.dtype)
        if history.starts is None:
            relevance = segment_dot_unchecked(keys, mean, offsets)
        else:
            relevance = segment_dot_shared_unchecked(keys, mean, offsets, history.starts, gaps.shape[0])
        of_gaps = self.of_gaps().mean(dim=0).view(gaps.shape[1], -1)
        return segment_topk_unchecked(relevance + interpolate(gaps, of_gaps), offsets, self.top_k)
