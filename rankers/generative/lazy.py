"""OneRec-V2's lazy decoder: what it looks back on is not encoded, only mapped to keys and values, once for all layers.

Zhou et al., OneRec-V2 Technical Report, 2025 (arXiv 2508.20900), section 2. From the report:

- There is no encoder. A context processor maps what is known of the user and each visit to d_context = S_kv L_kv G_kv D
  columns, which are cut into L_kv sets of keys and values, each after an RMSNorm of its own (S_kv = 1: values are the
  keys).
- A block is cross-attention to a set, causal self-attention, a feed-forward layer, each after an RMSNorm and added to
  what it took. The cross-attention has maps of queries and of its output and none of keys and values. Block l looks at
  set floor(l L_kv / layers), so blocks share them.
- Feed-forward layers of the deeper blocks are mixtures of experts.

Decided here: S_kv = 2 and G_kv = A (keys and values apart, no grouped heads: of four heads of 16 columns there is
little to share). The context are visits alone; user and request are where the decoder starts, as in the full model, so
its start has no token of its own. Norms are of a set's columns over all heads. Experts are in all blocks, as in the
full decoder, which the report's comparison of sizes does not settle for so few of them. Where a row stands in the
written sequence enters by T5's bias, as everywhere in ``layers.py``; hours and km before a visit are in its token, and
nothing else tells where it stands.

Shapes: as in ``layers.py``; L_kv sets.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.tree_attention import memory_attention_by_lists, tree_attention_unchecked
from .layers import EPS, Dropout, Memory, Norm, Transformer, TreeState


class Context(nn.Module):
    """Visits' tokens as they are, normed: it stands where other models have an encoder.

    Args:
        columns: d.
        dropout: in training.
    """

    def __init__(self, columns: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.dropout = Norm(columns, EPS), Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[S, T, d] to the same; each row by itself."""
        normed: Tensor = self.norm(self.dropout(x))
        return normed


class LazyAttention(nn.Module):
    """Queries to keys and values that are there, and what comes of them."""

    def __init__(self, columns: int, heads: int, head_columns: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_columns
        self.norm = Norm(columns, EPS)
        self.query = nn.Linear(columns, inner, bias=False)
        self.out = nn.Linear(inner, columns, bias=False)
        nn.init.normal_(self.query.weight, std=(columns * head_columns) ** -0.5)  # so nothing is divided
        nn.init.normal_(self.out.weight, std=inner**-0.5)

    def queries(self, x: Tensor) -> Tensor:
        """[..., d] to [..., A, D]."""
        return self.query(self.norm(x)).unflatten(-1, (self.heads, -1))


class LazyDecoder(Transformer):
    """A decoder with the interface of ``Transformer``; see the top of this file.

    Args:
        sets: L_kv, 1 to ``layers``.
        columns, heads, head_columns, hidden, layers, dropout, feed_forward: as of ``Transformer``.
    """

    def __init__(
        self,
        *,
        columns: int,
        heads: int,
        head_columns: int,
        hidden: int,
        layers: int,
        sets: int,
        dropout: float = 0.1,
        feed_forward: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__(
            columns=columns, heads=heads, head_columns=head_columns, hidden=hidden, layers=layers, dropout=dropout,
            causal=True, feed_forward=feed_forward,
        )  # fmt: skip
        if not 1 <= sets <= layers:
            raise ValueError(f"sets: got {sets}, expected 1 to {layers}, the number of layers")
        self.sets, self.heads, inner = sets, heads, heads * head_columns
        self.context = nn.Linear(columns, 2 * sets * inner, bias=False)
        nn.init.normal_(self.context.weight, std=columns**-0.5)
        self.norms = nn.ModuleList(Norm(inner, EPS) for _ in range(2 * sets))
        self.asking = nn.ModuleList(LazyAttention(columns, heads, head_columns) for _ in range(layers))

    def keys_values(self, memory: Tensor) -> list[tuple[Tensor, ...]]:
        """Of rows [..., d] keys and values [..., A, D] by layer; those of a set are the same tensors."""
        parts = self.context(memory).chunk(2 * self.sets, dim=-1)
        made = [norm(x).unflatten(-1, (self.heads, -1)) for norm, x in zip(self.norms, parts, strict=True)]
        pairs = list(zip(made[::2], made[1::2], strict=True))
        return [pairs[layer * self.sets // len(self.blocks)] for layer in range(len(self.blocks))]

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        memory: Tensor | None = None,
        memory_lengths: Tensor | None = None,
    ) -> Tensor:
        """As of ``Transformer``; there has to be a memory.

        Raises:
            ValueError: there is none.
        """
        if memory is None:
            raise ValueError("memory: got None, expected [B, M, d]: a lazy decoder looks at nothing else")
        B, M = memory.shape[:2]
        each = torch.arange(B, device=x.device)
        sees = torch.ones(B, M, dtype=torch.bool, device=x.device)
        if memory_lengths is not None:
            sees = torch.arange(M, device=x.device) < memory_lengths[:, None]
        return self.together(x, memory, each, torch.zeros_like(each), sees)

    def together(self, x: Tensor, memory: Tensor, group: Tensor, number: Tensor, sees: Tensor) -> Tensor:
        """As of ``Transformer``."""
        S, mask, bias = x.shape[1], *self._masks(x, memory, group, number, sees)
        many = mask.shape[2] // S
        x = self.dropout(x)
        for block, asking, pair in zip(self._blocks(), self._asking(), self.keys_values(memory), strict=True):
            queries = asking.queries(x)
            q = queries.new_zeros(len(memory), many, *queries.shape[1:]).index_put((group, number), queries)
            q, k, v = (y.transpose(1, 2) for y in (q.flatten(1, 2), *pair))
            found = F.scaled_dot_product_attention(q, k, v, mask, scale=1.0)
            found = found.transpose(1, 2).flatten(2).unflatten(1, (many, S))
            x = x + block.dropout(asking.out(found[group, number]))
            x = x + block.dropout(block.attention(block.norm(x), None, bias))
            x = block.feed(x)
        return self.dropout(self.norm(x))

    def _asking(self) -> list[LazyAttention]:
        return [cast(LazyAttention, asking) for asking in self.asking]

    def _of_memory(self, memory: Memory) -> list[tuple[Tensor, ...]]:
        return self.keys_values(memory.rows)

    def step(self, x: Tensor, rows: Tensor, offsets: list[int], state: TreeState) -> Tensor:
        """As of ``Transformer``."""
        bias, own = self._own(x, rows)
        for block, asking, keys, values, (memory_keys, memory_values) in zip(
            self._blocks(), self._asking(), state.keys, state.values, state.memory, strict=True
        ):
            queries = asking.queries(x)
            found = memory_attention_by_lists(queries, memory_keys, memory_values, offsets, state.memory_offsets)
            x = x + asking.out(found.flatten(1))
            queries, keys[own], values[own] = block.attention.queries_keys_values(block.norm(x))
            found = values[own] if bias is None else tree_attention_unchecked(queries, keys, values, rows, bias)
            x = block.feed(x + block.attention.out(found.flatten(1)))
        return self.norm(x)
