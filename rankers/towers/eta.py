"""ETA: end-to-end target attention by hashing.

Chen et al., End-to-End User Behavior Retrieval in Click-Through Rate Prediction Model, 2021 (arXiv 2108.04468).
Written from its abstract and published summaries; its own text was not at hand.
"""

import torch
from torch import Tensor

from ...kernels.jagged import segment_topk_unchecked
from ...kernels.simhash import segment_hamming_unchecked
from .search import TargetAttention
from .tower import Context, History, InterestTower


class ETA(InterestTower):
    """The ``top_k`` visits whose SimHash is nearest to the target's, then multi-head target attention over them.

    A hash is the signs of ``bits`` projections on random directions, drawn once, the same in every
    process, and saved with the parameters but never trained. Distance is Hamming's; of equal distances, which are
    many, the most recent visit is found. Hashes follow the embeddings from step to step, so that nothing has to be
    indexed; serving can keep them packed, once an item.

    Left out: the short-term tower beside it.

    Args:
        dim, gaps: see InterestTower.
        top_k: visits that are attended to, at most.
        heads: of the attention.
        bits: of a hash.
    """

    def __init__(self, dim: int, gaps: int, top_k: int = 100, heads: int = 4, bits: int = 64) -> None:
        super().__init__(dim, gaps)
        self.top_k = top_k
        self.attention = TargetAttention(dim, gaps, heads)
        self.output_dim = self.attention.output_dim
        generator = torch.Generator().manual_seed(0)  # every rank must hash alike
        self.register_buffer("directions", torch.randn(dim, bits, generator=generator))
        self.directions: Tensor

    def forward(self, query: Tensor, history: History, context: Context | None = None) -> Tensor:
        """query [B, D] and history to interest [B, I]."""
        keys, offsets = history[:2]
        with torch.no_grad():
            q, directions = query.to(keys.dtype), self.directions.to(keys.dtype)
            # of histories no longer than top_k all visits are found
            distance = segment_hamming_unchecked(q, keys, directions, offsets, beyond=self.top_k)
            rows = segment_topk_unchecked(-distance.to(torch.float32), offsets, self.top_k)
        return self.attention(query, history, rows)
