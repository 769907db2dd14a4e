"""Transformer blocks of the generative rankers: T5's, on PyTorch's scaled_dot_product_attention, and over a tree.

Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, JMLR 2020: the norm
before each part is RMSNorm, logits are not divided by sqrt(D) (the start of the weights does that), and where a row
stands enters by a bias a head and bucket of distances, the same in all layers. They can hold a T5's weights, so what is
computed here can be held against it.

Shapes: B requests, S rows of a sequence, M rows of memory, d columns, A heads of D columns, n nodes of a tree's level.

A decoder computes the same in two forms. ``forward`` takes whole sequences [B, S, d], as training does. ``step`` takes
a level of a prefix tree [n, d], whose nodes attend to those on their way to the root: beams and exact scores of many
items go that way, and a sequence is a tree of one child a node. Where the memory is [B, M, d] in the first, the second
has its rows alone (``Memory``), without padding, and their keys and values once a request, whatever the nodes.
"""

from collections.abc import Callable
from math import log
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ...kernels.tree_attention import memory_attention_by_lists, tree_attention_unchecked

EPS = 1e-6  # of the norms, T5's


class Memory(NamedTuple):
    """What a decoder looks at, by request.

    Attributes:
        rows: an encoder's output, [M of all requests, d].
        offsets: request b's are rows offsets[b] to offsets[b+1], int64 [B+1].
        first: what the decoder starts from, [B, d].
        about: what else the model's logits ask of a request, [B, C]; None: nothing.
    """

    rows: Tensor
    offsets: Tensor
    first: Tensor
    about: Tensor | None = None

    @classmethod
    def of_padded(cls, rows: Tensor, lengths: Tensor, first: Tensor) -> "Memory":
        """From [B, M, d], of which request b's first lengths[b] rows count, int64 [B]."""
        there = torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]
        return cls(rows[there], F.pad(lengths.cumsum(0), (1, 0)), first)

    def some(self, start: int, stop: int) -> "Memory":
        """Of requests start to stop alone."""
        offsets = self.offsets[start : stop + 1]
        a, b = int(offsets[0]), int(offsets[-1])
        about = None if self.about is None else self.about[start:stop]
        return Memory(self.rows[a:b], offsets - a, self.first[start:stop], about)


class TreeState(NamedTuple):
    """What a decoder keeps between the levels of a tree: keys and values, by layer.

    Attributes:
        keys, values: of the nodes so far, [layers, rows, A, D]; a level's are written where ``step`` is told to.
        memory: of the memory, (keys, values) [M, A, D] by layer.
        memory_offsets: int [B+1].
    """

    keys: Tensor
    values: Tensor
    memory: list[tuple[Tensor, ...]]
    memory_offsets: list[int]


class _Drop(torch.autograd.Function):
    """Random bits four elements a draw: PyTorch's draws a number an element, which was a fifth of a training step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = torch.empty(x.shape, dtype=x.dtype)  # as numbers at once: to choose by booleans takes thrice as long
        torch.ge(bits[: x.numel()].view(x.shape), round(share * 2**16) - 2**15, out=kept)
        kept.mul_(1 / (1 - share))
        ctx.save_for_backward(kept)
        return x * kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return g * kept, None


class Dropout(nn.Dropout):
    """PyTorch's; on a CPU with shares in steps of 2^-16, by cheaper random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        """x [...] to the same."""
        if self.training and 0 < self.p < 1 and x.device.type == "cpu":
            return cast(Tensor, _Drop.apply(x, self.p))
        return super().forward(x)


class _Normed(torch.autograd.Function):
    """x / sqrt(mean x^2 + eps) times a weight, in half of the passes over x that PyTorch's own takes with gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(normed, weight, scale)
        return normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, weight, scale = ctx.saved_tensors
        of_weight = (g * normed).flatten(0, -2).sum(0)
        g = g * weight
        along = (g * normed).mean(-1, keepdim=True)
        return torch.addcmul(g, normed, along, value=-1).mul_(scale), of_weight, None


class Norm(nn.RMSNorm):
    """PyTorch's of the last dimension, with a faster training on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] to the same."""
        if self.training and x.device.type == "cpu":
            return cast(Tensor, _Normed.apply(x, self.weight, self.eps))
        return super().forward(x)


class RelativeBias(nn.Module):
    """A bias a head and bucket of distances: exact for near rows, by the log up to ``most`` for far ones.

    Args:
        heads: A.
        causal: whether only rows before count; else half of the buckets are of rows after.
        buckets, most: T5's are 32 and 128.
    """

    def __init__(self, heads: int, causal: bool, buckets: int = 32, most: int = 128) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(buckets, heads))
        self.causal, self.most = causal, most

    def forward(self, behind: Tensor) -> Tensor:
        """Bias [A, ...] of keys that lie so many rows behind the query, int64 [...]; below 0: ahead of it."""
        buckets = self.weight.shape[0] // (1 if self.causal else 2)
        far = behind.clamp(min=0) if self.causal else behind.abs()
        exact = buckets // 2
        by_log = (far.clamp(min=1).float() / exact).log() / log(self.most / exact) * (buckets - exact)
        bucket = torch.where(far < exact, far, (exact + by_log.long()).clamp(max=buckets - 1))
        if not self.causal:
            bucket = bucket + buckets * (behind < 0)
        return self.weight[bucket].movedim(-1, 0)


class _BiasedAttention(torch.autograd.Function):
    """Attention whose bias learns. PyTorch's on a CPU is fast where no bias does; else it takes it apart and looks for
    rows that see nothing, of which there are none here: this took 0.6 of its time (50 x 4 heads, 81 rows, 16 columns).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        p = (q @ k.transpose(-1, -2)).add_(bias).softmax(-1)
        ctx.save_for_backward(q, k, v, p)
        ctx.shape = bias.shape
        return p @ v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        q, k, v, p = ctx.saved_tensors
        of_v = p.transpose(-1, -2) @ g
        of_logits = torch._softmax_backward_data(g @ v.transpose(-1, -2), p, -1, p.dtype)
        return of_logits @ k, of_logits.transpose(-1, -2) @ q, of_v, of_logits.sum_to_size(ctx.shape)


class Attention(nn.Module):
    """Heads of attention without biases; the maps to queries, keys and values lie in one weight, in this order."""

    def __init__(self, columns: int, heads: int, head_columns: int) -> None:
        super().__init__()
        self.heads, self.inner = heads, heads * head_columns
        self.maps = nn.Linear(columns, 3 * self.inner, bias=False)
        self.out = nn.Linear(self.inner, columns, bias=False)
        nn.init.normal_(self.maps.weight, std=columns**-0.5)
        nn.init.normal_(self.maps.weight[: self.inner], std=(columns * head_columns) ** -0.5)  # so nothing is divided
        nn.init.normal_(self.out.weight, std=self.inner**-0.5)

    def _heads(self, x: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
        """Maps start to stop of queries, keys and values, of one product: [..., d] to [..., A, D] each."""
        y = F.linear(x, self.maps.weight[start * self.inner : stop * self.inner])
        return y.view(*x.shape[:-1], stop - start, self.heads, self.inner // self.heads).unbind(-3)

    def queries(self, x: Tensor) -> Tensor:
        """[..., d] to [..., A, D]."""
        return self._heads(x, 0, 1)[0]

    def keys_values(self, x: Tensor) -> tuple[Tensor, ...]:
        """[..., d] to keys and values, [..., A, D] each."""
        return self._heads(x, 1, 3)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, ...]:
        """All three, of the same rows."""
        return self._heads(x, 0, 3)

    def forward(self, x: Tensor, memory: Tensor | None, bias: Tensor | None) -> Tensor:
        """x [B, S, d] over memory [B, M, d], or itself; bias is added to the logits, [B or 1, A or 1, S, M]."""
        parts = self.queries_keys_values(x) if memory is None else (self.queries(x), *self.keys_values(memory))
        q, k, v = (y.transpose(1, 2) for y in parts)
        if bias is not None and bias.requires_grad and bias.device.type == "cpu":
            found = _BiasedAttention.apply(*(y.contiguous() for y in (q, k, v)), bias)
        else:
            found = F.scaled_dot_product_attention(q, k, v, bias, scale=1.0)
        return self.out(found.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, attention to a memory if there is one, and two linear layers with a ReLU between, or what stands
    in for them; each after a norm, each added to what it took."""

    def __init__(
        self,
        columns: int,
        heads: int,
        head_columns: int,
        hidden: int,
        dropout: float,
        memory: bool,
        feed_forward: nn.Module | None,
    ) -> None:
        super().__init__()
        self.norm = Norm(columns, EPS)
        self.attention = Attention(columns, heads, head_columns)
        self.memory_norm = Norm(columns, EPS) if memory else None
        self.memory_attention = Attention(columns, heads, head_columns) if memory else None
        self.hidden_norm = Norm(columns, EPS)
        self.dropout = Dropout(dropout)
        self.feed_forward = feed_forward
        if feed_forward is not None:
            return
        self.hidden = nn.Linear(columns, hidden, bias=False)
        self.out = nn.Linear(hidden, columns, bias=False)
        nn.init.normal_(self.hidden.weight, std=columns**-0.5)
        nn.init.normal_(self.out.weight, std=hidden**-0.5)

    def of_memory(self) -> tuple[Norm, Attention]:
        """The norm before the attention to a memory, and that attention.

        Raises:
            ValueError: made without.
        """
        if self.memory_norm is None or self.memory_attention is None:
            raise ValueError("got a memory, but these blocks attend to none: make the Transformer with memory=True")
        return self.memory_norm, self.memory_attention

    def feed(self, x: Tensor) -> Tensor:
        """x and its two linear layers, or what stands in for them."""
        y = self.hidden_norm(x)
        if self.feed_forward is not None:
            return x + self.dropout(self.feed_forward(y))
        return x + self.dropout(self.out(self.dropout(self.hidden(y).relu_())))

    def forward(self, x: Tensor, bias: Tensor, memory: Tensor | None, memory_bias: Tensor | None) -> Tensor:
        """x [B, S, d] to the same."""
        x = x + self.dropout(self.attention(self.norm(x), None, bias))
        if memory is not None:
            norm, attention = self.of_memory()
            x = x + self.dropout(attention(norm(x), memory, memory_bias))
        return self.feed(x)


class Transformer(nn.Module):
    """Blocks with one relative bias, and a norm at the end: an encoder, or with ``memory`` a decoder.

    Args:
        columns: d.
        heads, head_columns: A and D; A D need not be d.
        hidden: columns between the two linear layers.
        layers: blocks.
        dropout: in training.
        causal: whether a row sees only itself and those before it.
        memory: whether blocks attend to a memory.
        window: a row sees at most so many, itself among them; None: all.
        feed_forward: makes what stands in for a block's two linear layers, [..., d] to the same.
    """

    def __init__(
        self,
        *,
        columns: int,
        heads: int,
        head_columns: int,
        hidden: int,
        layers: int,
        dropout: float = 0.1,
        causal: bool = False,
        memory: bool = False,
        window: int | None = None,
        feed_forward: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.window = window
        self.bias = RelativeBias(heads, causal)
        self.blocks = nn.ModuleList(
            Block(columns, heads, head_columns, hidden, dropout, memory, feed_forward() if feed_forward else None)
            for _ in range(layers)
        )
        self.norm = Norm(columns, EPS)
        self.dropout = Dropout(dropout)
        self.causal = causal

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        memory: Tensor | None = None,
        memory_lengths: Tensor | None = None,
    ) -> Tensor:
        """Sequences from the first row on.

        Args:
            x: [B, S, d].
            lengths: rows that count, int64 [B]; None for all. What comes after them is seen by no other row.
            memory: [B, M, d], for a decoder.
            memory_lengths: as lengths, 1 or more.

        Returns:
            [B, S, d]; rows past a sequence's length mean nothing.
        """
        S = x.shape[1]
        at = torch.arange(S, device=x.device)
        behind = at[:, None] - at
        # a bias a distance, laid out after it is computed
        bias = self.bias(torch.arange(1 - S, S, device=x.device)).to(x.dtype)[None, :, behind + (S - 1)]
        if self.causal:  # a row sees no later one, so what comes after a sequence is not seen either
            bias = bias.masked_fill(behind < 0, -torch.inf)
        elif lengths is not None:
            bias = bias.masked_fill(at >= lengths.clamp(min=1)[:, None, None, None], -torch.inf)
        if self.window is not None:
            bias = bias.masked_fill(behind >= self.window, -torch.inf)
        memory_bias = None
        if memory is not None and memory_lengths is not None:
            past = torch.arange(memory.shape[1], device=x.device) >= memory_lengths[:, None]
            memory_bias = torch.zeros(past.shape, dtype=x.dtype, device=x.device).masked_fill(past, -torch.inf)
            memory_bias = memory_bias[:, None, None]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, bias, memory, memory_bias)
        return self.dropout(self.norm(x))

    def together(self, x: Tensor, memory: Tensor, group: Tensor, number: Tensor, sees: Tensor) -> Tensor:
        """Sequences of which several look at the same memory, whose keys and values are made once for all of them.

        Args:
            x: [B, S, d].
            memory: [G, M, d].
            group: which of the memories each sequence looks at, int64 [B].
            number: of the sequence among those of its group, int64 [B].
            sees: which rows of it, one or more, bool [B, M].

        Returns:
            [B, S, d], as ``forward`` gives for each sequence with the rows that it sees.
        """
        S, mask, bias = x.shape[1], *self._masks(x, memory, group, number, sees)
        many = mask.shape[2] // S
        x = self.dropout(x)
        for block in self._blocks():
            x = x + block.dropout(block.attention(block.norm(x), None, bias))
            norm, attention = block.of_memory()
            y = x.new_zeros(len(memory), many, S, x.shape[2]).index_put((group, number), norm(x))
            y = attention(y.flatten(1, 2), memory, mask).unflatten(1, (many, S))
            x = block.feed(x + block.dropout(y[group, number]))
        return self.dropout(self.norm(x))

    def _masks(self, x: Tensor, memory: Tensor, group: Tensor, number: Tensor, sees: Tensor) -> tuple[Tensor, Tensor]:
        """Of ``together``: what is added to logits over the memory, [G, 1, sequences of a group x S, M], and over the
        sequence itself, [1, A, S, S]."""
        S, many = x.shape[1], int(number.max()) + 1
        mask = x.new_zeros(len(memory), many, memory.shape[1])
        mask[group, number] = torch.zeros_like(sees, dtype=x.dtype).masked_fill(~sees, -torch.inf)
        at = torch.arange(S, device=x.device)
        behind = at[:, None] - at
        bias = self.bias(behind).to(x.dtype)[None]
        if self.causal:
            bias = bias.masked_fill(behind < 0, -torch.inf)
        return mask.repeat_interleave(S, dim=1)[:, None], bias

    def _blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.blocks]

    def start(self, memory: Memory, rows: int) -> TreeState:
        """Begin trees of up to so many rows (nodes whose keys are kept at once) on a memory."""
        blocks = self._blocks()
        one = blocks[0].attention
        shape = len(blocks), rows, one.heads, one.inner // one.heads
        keys, values = memory.rows.new_empty(shape), memory.rows.new_empty(shape)
        return TreeState(keys, values, self._of_memory(memory), memory.offsets.tolist())

    def _of_memory(self, memory: Memory) -> list[tuple[Tensor, ...]]:
        """Keys and values of the memory, by layer."""
        return [block.of_memory()[1].keys_values(memory.rows) for block in self._blocks()]

    def step(self, x: Tensor, rows: Tensor, offsets: list[int], state: TreeState) -> Tensor:
        """A level's nodes, in evaluation: without dropout.

        Args:
            x: [n, d].
            rows: of ``state``, of the nodes on the way from the root to each node, itself last, int64 [n, P]; the last
                column is one run of rows, where the nodes' keys and values are written.
            offsets: request b's nodes are offsets[b] to offsets[b+1], int [B+1].
            state: of ``start``; changed in place.

        Returns:
            [n, d], each row what ``forward`` gives for the last of the sequence of its ancestors and itself.
        """
        bias, own = self._own(x, rows)
        for block, keys, values, (memory_keys, memory_values) in zip(
            self._blocks(), state.keys, state.values, state.memory, strict=True
        ):
            queries, keys[own], values[own] = block.attention.queries_keys_values(block.norm(x))
            # the root has only itself to look at
            found = values[own] if bias is None else tree_attention_unchecked(queries, keys, values, rows, bias)
            x = x + block.attention.out(found.flatten(1))
            norm, attention = block.of_memory()
            queries = attention.queries(norm(x))
            found = memory_attention_by_lists(queries, memory_keys, memory_values, offsets, state.memory_offsets)
            x = block.feed(x + attention.out(found.flatten(1)))
        return self.norm(x)

    def _own(self, x: Tensor, rows: Tensor) -> tuple[Tensor | None, slice]:
        """Of ``step``: the bias of each ancestor, None at the roots, and the rows of the state that are the nodes'."""
        depth = rows.shape[1]
        bias = self.bias(torch.arange(depth - 1, -1, -1, device=x.device)).to(x.dtype) if depth > 1 else None
        at = int(rows[0, -1]) if len(rows) else 0
        return bias, slice(at, at + len(rows))
