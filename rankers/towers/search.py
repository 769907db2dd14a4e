"""What the two-stage towers for long histories share: multi-head target attention over the visits that a search found.

A first stage (general search unit) scores all visits of a history, up to 10,000 of them, and keeps the best ``top_k``;
the second (exact search unit) attends to those. The search itself is not differentiable: gradients reach the visits
that were found, through the attention.

Three things are not in the papers. With a plain softmax these towers learned more slowly than DIN and ranked a user's
places worse, on histories that were found whole:

- A visit's map starts as the target's, and there is no 1 / sqrt(d): so a head's logit starts as a similarity, of a
  size that a softmax notices. Products of two random maps of rows within 0.1 differ by a hundredth at most.
- "No visit" has a logit too, 0, and log(1 + sum exp(logits)) of each head joins the interest. A softmax over visits
  alone weights the best of them fully however badly it matches, where DIN's sum tells how many match, and how well.
- The found keys, weighted by the mean of the heads, times the target join the interest: the ranker's layers see values
  and target side by side and can't multiply them. TWIN's AUC in the simulated city rose by 0.011.

Every linear map of a visit is moved to the sample's side (``kernels/search_attention.py``), so that the attention costs
a visit 4 A (D + 2 G) operations forward however wide the heads are, and no key of a history is copied or padded.

Shapes: B samples, T visits, D columns, G gaps, K knots, C columns of a gap's embedding, A heads of d columns.
"""

import torch
from torch import Tensor, nn

from ...kernels.search_attention import search_attention_unchecked
from .tower import History

KNOTS = 13
"""Gaps are natural logarithms: knots 0 to 12 reach from an hour to 18 years, and round the earth."""
GAP_DIM = 8
"""Columns of a gap's embedding, as TWIN has them."""


class GapEmbedding(nn.Module):
    """Time and distance gaps as vectors: a row for each knot of each gap, linear in between, constant beyond the last.

    The papers cut gaps into buckets; between two knots this is a bucket's edge that does not jump.

    Args:
        gaps: G, gaps of a visit.
    """

    def __init__(self, gaps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(gaps, KNOTS, GAP_DIM).normal_(std=0.1))

    def fold(self, of_embeddings: Tensor) -> Tensor:
        """A linear map of the embeddings, [..., G * C], as one of the gaps' hats, [..., G * K]."""
        parts = of_embeddings.unflatten(-1, (-1, GAP_DIM))
        return torch.einsum("...gc,gkc->...gk", parts, self.weight).flatten(-2)


def linear_heads(heads: int, width: int, columns: int) -> nn.Parameter:
    """A linear map a head, [A, d, columns], that starts so as to keep the size of what it maps."""
    return nn.Parameter(torch.empty(heads, width, columns).normal_(std=columns**-0.5))


def similar_heads(of_query: nn.Parameter, columns: int) -> nn.Parameter:
    """A linear map a head, [A, d, columns], that starts equal to the query's [A, d, D] in its first D columns."""
    heads, width, dim = of_query.shape
    of_visit = linear_heads(heads, width, columns)
    with torch.no_grad():
        of_visit[..., :dim] = of_query
    return of_visit


class FoundAttention(nn.Module):
    """The second stage: each head's softmax over the found visits and none, and the values it weights.

    Values are maps of key and gap embeddings, [k, e(gaps)], to d columns a head. The heads' output is not mixed by
    another map, since the ranker's first layer is one. Beside them lie the product with the target, D columns, and
    log(1 + sum exp(logits)), a column a head.

    Args:
        dim: D.
        gaps: G.
        heads: A; d is D / A, rounded up.
    """

    def __init__(self, dim: int, gaps: int, heads: int) -> None:
        super().__init__()
        self.head_dim = -(-dim // heads)
        self.output_dim = heads * (self.head_dim + 1) + dim
        self.gap_embedding = GapEmbedding(gaps)
        self.value = linear_heads(heads, self.head_dim, dim + gaps * GAP_DIM)

    def forward(self, query: Tensor, queries: Tensor, history: History, rows: Tensor) -> Tensor:
        """Interest [B, A d + D + A]; zeros where nothing was found.

        Args:
            query: the target, [B, D].
            queries: each head's, against z, [B, A, D + G K]; the history may have gaps beyond those of the values.
            history: where the rows are.
            rows: what the search found, int64 [B, k] with -1 for none.
        """
        shared = () if history.starts is None else (history.offsets, history.starts)
        pooled, strength = search_attention_unchecked(queries, history.keys, history.gaps, rows, *shared)
        of_visit = self.fold(self.value).to(pooled.dtype)
        value = torch.einsum("bae,ade->bad", pooled[:, :, : of_visit.shape[2]], of_visit).flatten(1)
        product = pooled[:, :, : query.shape[1]].mean(dim=1) * query
        return torch.cat([value, product.to(value.dtype), strength.to(value.dtype)], dim=1)

    def fold(self, of_visit: Tensor) -> Tensor:
        """A linear map of [k, e(gaps)] as one of z = [k, hats(gaps)], [..., D + G C] to [..., D + G K]."""
        gaps = self.gap_embedding.weight.shape[0] * GAP_DIM
        of_key, of_embeddings = of_visit.split([of_visit.shape[-1] - gaps, gaps], dim=-1)
        return torch.cat([of_key, self.gap_embedding.fold(of_embeddings)], dim=-1)


class TargetAttention(nn.Module):
    """Multi-head target attention with gaps as part of a visit: SIM's exact search unit, which ETA uses too.

    A head's weights are softmax((W_b [k, e(gaps)]) . (W_a q)) over the found visits and none. SIM's values are
    [k, e(gaps)] itself.

    Args:
        dim, gaps, heads: see FoundAttention.
    """

    def __init__(self, dim: int, gaps: int, heads: int) -> None:
        super().__init__()
        self.found = FoundAttention(dim, gaps, heads)
        self.output_dim = self.found.output_dim
        width = self.found.head_dim
        self.from_query = linear_heads(heads, width, dim)
        self.from_visit = similar_heads(self.from_query, dim + gaps * GAP_DIM)

    def forward(self, query: Tensor, history: History, rows: Tensor) -> Tensor:
        """query [B, D], history and found rows [B, k] to [B, A d + D + A]."""
        whole = torch.einsum("adi,ade->iae", self.from_query, self.found.fold(self.from_visit))  # W_a^T W_b
        queries = query @ whole.flatten(1).to(query.dtype)
        return self.found(query, queries.unflatten(1, whole.shape[1:]), history, rows)
