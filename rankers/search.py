"""What the two-stage towers for long histories share: multi-head target attention over the visits that a search found.

A first stage (general search unit) scores all visits of a history, up to 10,000 of them, and keeps the best ``top_k``;
the second (exact search unit) attends to those. The search itself is not differentiable: gradients reach the visits
that were found, through the attention.

Every linear map of a visit is moved to the sample's side (``kernels/search_attention.py``), so that the attention costs
a visit 4 A (D + 2 G) operations forward however wide the heads are, and no key of a history is copied or padded.

Shapes: B samples, T visits, D columns, G gaps, K knots, C columns of a gap's embedding, A heads of d columns.
"""

from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..kernels.search_attention import search_attention
from .tower import History

KNOTS = 13
"""Gaps are natural logarithms: knots 0 to 12 reach from an hour to 18 years, and round the earth."""
GAP_DIM = 8
"""Columns of a gap's embedding, as TWIN has them."""


class Heads(NamedTuple):
    """Multi-head queries against visits, for each head two parts: against keys and against gaps.

    Attributes:
        of_keys: [B, A, D].
        of_gaps: for each gap a number a knot, [B, A, G * K].
    """

    of_keys: Tensor
    of_gaps: Tensor


class GapEmbedding(nn.Module):
    """Time and distance gaps as vectors: a row for each knot of each gap, linear in between, constant beyond the last.

    The papers cut gaps into buckets; between two knots this is a bucket's edge that does not jump.

    Args:
        gaps: G, gaps of a visit.
    """

    def __init__(self, gaps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(gaps, KNOTS, GAP_DIM).normal_(std=0.1))

    def query(self, x: Tensor) -> Tensor:
        """Products with embeddings as products with hats: [..., G * C] to [..., G * K]."""
        x = x.unflatten(-1, (-1, GAP_DIM))
        return torch.einsum("...gc,gkc->...gk", x, self.weight.to(x.dtype)).flatten(-2)

    def pooled(self, x: Tensor) -> Tensor:
        """Pooled hats to pooled embeddings: [..., G * K] to [..., G * C]."""
        x = x.unflatten(-1, (-1, KNOTS))
        return torch.einsum("...gk,gkc->...gc", x, self.weight.to(x.dtype)).flatten(-2)


def linear_heads(heads: int, width: int, columns: int) -> nn.Parameter:
    """A linear map a head, [A, d, columns], that starts so as to keep the size of what it maps.

    nn.Linear's start would make products of two projections three times smaller, and with them what trains a softmax.
    """
    return nn.Parameter(torch.empty(heads, width, columns).normal_(std=columns**-0.5))


class FoundAttention(nn.Module):
    """The second stage: each head's softmax over the found visits, and the values it weights.

    Values are maps of key and gap embeddings, z = [k, e(gaps)], to d columns a head. The heads' output is not mixed by
    another map, since the ranker's first layer is one.

    Args:
        dim: D.
        gaps: G.
        heads: A; d is D / A, rounded up.
    """

    def __init__(self, dim: int, gaps: int, heads: int) -> None:
        super().__init__()
        self.head_dim = -(-dim // heads)
        self.output_dim = heads * self.head_dim
        self.gap_embedding = GapEmbedding(gaps)
        self.value = linear_heads(heads, self.head_dim, dim + gaps * GAP_DIM)

    def forward(self, heads: Heads, history: History, rows: Tensor) -> Tensor:
        """Heads and the found rows, int64 [B, k] with -1 for none, to [B, A d]; zeros where nothing was found."""
        dim = heads.of_keys.shape[2]
        pooled = search_attention(torch.cat(heads, dim=2), history.keys, history.gaps, rows)
        z = torch.cat([pooled[..., :dim], self.gap_embedding.pooled(pooled[..., dim:])], dim=2)
        return torch.einsum("bae,ade->bad", z, self.value.to(z.dtype)).flatten(1)


class TargetAttention(nn.Module):
    """Multi-head target attention with gaps as part of a visit: SIM's exact search unit, which ETA uses too.

    A head's weights are softmax((W_b z) . (W_a q) / sqrt(d)) over the found visits, z = [k, e(gaps)]. The paper has no
    1 / sqrt(d), and its values are z itself.

    Args:
        dim, gaps, heads: see FoundAttention.
    """

    def __init__(self, dim: int, gaps: int, heads: int) -> None:
        super().__init__()
        self.found = FoundAttention(dim, gaps, heads)
        self.output_dim = self.found.output_dim
        width = self.found.head_dim
        self.from_query = linear_heads(heads, width, dim)
        self.from_visit = linear_heads(heads, width, dim + gaps * GAP_DIM)

    def forward(self, query: Tensor, history: History, rows: Tensor) -> Tensor:
        """query [B, D], history and found rows [B, k] to [B, A d]."""
        scale = sqrt(self.found.head_dim)
        q = torch.einsum("bi,adi->bad", query, self.from_query.to(query.dtype)) / scale
        x = torch.einsum("bad,ade->bae", q, self.from_visit.to(q.dtype))
        of_keys, of_gaps = x.split([query.shape[1], x.shape[2] - query.shape[1]], dim=2)
        return self.found(Heads(of_keys, self.found.gap_embedding.query(of_gaps)), history, rows)
