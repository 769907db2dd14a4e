"""TIGER as published: the next item's semantic ID, code by code, from the codes of the user's last visits.

Rajput et al., Recommender Systems with Generative Retrieval, NeurIPS 2023. The encoder reads a token of the user, then
a token a code of each of the last visits, the oldest first, in both directions; the decoder writes the codes of what
comes, each by a softmax over all codes of its level, those too that no item has. Blocks, sizes and the start of their
weights are T5's. Nothing else is known to it: no time, no place.

    log p(item) = sum over levels of log p(code | codes before it, visits)

**The suffix.** Items of one semantic ID are told apart by a last code: 0, 1, 2, ... in the order in which they came. It
is a level like the others, so it is one in ``facts`` and ``index`` too, and nothing here knows which level it is
(``SemanticFeatures.load(..., suffix=True)``). It lies beside the codes where items are tokenized, is never dealt
anew, and items that ``tokenize --add`` brings go on after the largest: so what was trained stays true. As published it
is a code among as many as other levels have; where more items share an ID (Res-KMeans had 70 in one on New York, with
64 codes) all levels get that many, rounded up. An item past that number can't be told apart by a trained head:
``set_items`` refuses, and the ranker is trained again, or tokens are made anew with more codes.

Shapes: S stretches of visits, T visits, B targets, U distinct items, d columns, L levels (the suffix among them), K
codes a level, P columns of a user's row.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.jagged import segment_rows_unchecked
from .config import TigerConfig
from .decoding import Lists, Softmax, beam, score
from .index import Index
from .layers import Memory, Transformer
from .model import Buffers, PlaceFacts, Questions, where_it_lies
from .reach import Allowed

TOKENS = 4096
"""Tokens of visits, padding among them, that a pass takes together; one target at least."""
PADDING = 512
"""Tokens of padding that a pass may have: about what a pass costs beside its tokens, on a CPU."""


def user_tokens(users: Tensor, most: int) -> Tensor:
    """Rows of the table of user tokens, of ``most`` + 1 rows, for rows of the user table.

    Users are dealt to tokens in turn, which is as even as a hash can be and is the same whoever comes later. Who is not
    known (row 0) has row 0.
    """
    return torch.where(users > 0, 1 + (users - 1) % most, 0)


class Tiger(nn.Module):
    """See the top of this file.

    Args:
        config: sizes.
        facts: of all items, the suffix as their last code; only the codes are used.
        index: of all items, with the same codes.
        item_columns: not used: items are their codes.
        user_columns: P, of the rows of user tokens that ``forward`` is given.

    Raises:
        ValueError: items that share all codes.
    """

    softmax: Softmax = "own"

    def __init__(
        self, config: TigerConfig, facts: PlaceFacts, index: Index, item_columns: int, user_columns: int
    ) -> None:
        super().__init__()
        d = config.columns
        transformer = partial(
            Transformer,
            columns=d,
            heads=config.heads,
            head_columns=config.head_columns,
            hidden=config.hidden,
            layers=config.layers,
            dropout=config.dropout,
        )
        self.config, self.levels, self.codes_per_level = config, index.levels, index.codes_per_level
        self.set_items(facts, index)
        self.encoder, self.decoder = transformer(), transformer(causal=True, memory=True)
        self.code = nn.Embedding(self.levels * (self.codes_per_level + 1), d)  # of encoder and decoder; code 0 is none
        self.of_user = nn.Linear(user_columns, d, bias=False)
        self.begin = nn.Parameter(torch.randn(d))
        self.head = nn.ModuleList([nn.Linear(d, self.codes_per_level, bias=False) for _ in range(self.levels)])

    def set_items(self, facts: PlaceFacts, index: Index) -> None:
        """Take other items, as after ``tokenize --add``: no weight depends on how many there are.

        Raises:
            ValueError: items that share all codes, or other levels or codes a level than there are.
        """
        got, expected = (index.levels, index.codes_per_level), (self.levels, self.codes_per_level)
        if got != expected or facts.codes.shape[1] != self.levels:
            raise ValueError(
                f"items: got {facts.codes.shape[1]} levels, and an index of {got[0]} of {got[1]} codes, "
                f"expected {expected[0]} of {expected[1]}; use the semantic IDs that the model was trained with, "
                "or train again if more items share one now than the suffix has codes"
            )
        alike = len(index) - len(index.whole().levels[-1].codes)
        if alike:
            raise ValueError(
                f"index: got {alike:,} items with the codes of another, expected each item to have its own; "
                "make it of SemanticFeatures.load(..., suffix=True), which adds the level that tells them apart"
            )
        self.index, self._facts = index, where_it_lies(self, Buffers(facts))

    @property
    def facts(self) -> PlaceFacts:
        """What is known of all items, where the model lies."""
        return PlaceFacts(*self._facts)

    # --- what has been ----------------------------------------------------------------------------------------------

    def forward(self, q: Questions, rows: Tensor, users: Tensor) -> Tensor:
        """Log p of the targets, [B], by teacher forcing; -inf for those without codes.

        Args:
            q: what is asked; its targets are known.
            rows: not used, [U, any].
            users: of the targets' user tokens, [B, P].
        """
        assert q.target is not None
        codes = self.facts.codes[q.target]
        found, parts = [], []
        for part, memory, lengths in self._memories(q, users):
            own = codes[part].clamp(min=0)
            x = [self.begin.expand(len(part), -1)]
            x += [self.embed(level, own[:, level - 1]) for level in range(1, self.levels)]
            hidden = self.decoder(torch.stack(x, dim=1), None, memory, lengths)
            log_p = [
                self.logits(i + 1, hidden[:, i], part, None).gather(1, own[:, i : i + 1]) for i in range(self.levels)
            ]
            found.append(torch.cat(log_p, dim=1).sum(1))
            parts.append(part)
        if not found:
            return users.new_zeros(0)
        back = torch.cat(parts).argsort()
        return torch.cat(found)[back].masked_fill((codes < 0).any(1), -torch.inf)

    def _memories(self, q: Questions, users: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Targets of about as many visits [b], what the encoder makes of them [b, M, d], and rows that count, [b]."""
        visits = q.seen.clamp(max=self.config.visits)
        order = visits.argsort(descending=True, stable=True)
        sizes, start = visits[order].tolist(), 0
        device = users.device
        of_level = torch.arange(self.levels, device=device) * (self.codes_per_level + 1)
        tokens = (self.facts.codes[q.items] + 1 + of_level)[q.visits]
        last = q.offsets[q.stretch] + q.seen
        while start < len(sizes):
            longest, stop, padding = sizes[start], start + 1, 0
            most = max(TOKENS // (1 + longest * self.levels), 1)
            while stop < min(len(sizes), start + most):
                padding += (longest - sizes[stop]) * self.levels
                if padding > PADDING:
                    break
                stop += 1
            part = order[start:stop]
            _, at = segment_rows_unchecked(last[part] - visits[part], last[part])
            there = torch.arange(longest, device=device) < visits[part][:, None]
            own = tokens.new_zeros(len(part), longest, self.levels)
            own[there] = tokens[at]
            x = torch.cat([self.of_user(users[part])[:, None], self.code(own.flatten(1))], dim=1)
            lengths = 1 + visits[part] * self.levels
            yield part, self.encoder(x, None if sizes[stop - 1] == longest else lengths), lengths
            start = stop

    # --- what comes -------------------------------------------------------------------------------------------------

    def embed(self, level: int, codes: Tensor) -> Tensor:
        """What the decoder takes for codes of a level, int [n] to [n, d]: the encoder's tokens."""
        found: Tensor = self.code(codes.long() + 1 + (level - 1) * (self.codes_per_level + 1))
        return found

    def logits(self, level: int, hidden: Tensor, nodes: Tensor, about: Tensor | None) -> Tensor:
        """Log p of all codes of a level, [n, K]."""
        return F.log_softmax(self.head[level - 1](hidden), dim=1)

    # --- lists ------------------------------------------------------------------------------------------------------

    def memory(self, q: Questions, users: Tensor) -> Memory:
        """For ``decoding.score`` and ``beam``: the user's token, then those of the visits."""
        rows, parts = [], []
        lengths = 1 + q.seen.clamp(max=self.config.visits) * self.levels
        for part, memory, own in self._memories(q, users):
            rows.append(memory[torch.arange(memory.shape[1], device=memory.device) < own[:, None]])
            parts.append(part)
        offsets = F.pad(lengths.cumsum(0), (1, 0))
        if not rows:
            return Memory(users.new_zeros(0, self.config.columns), offsets, users.new_zeros(0, self.config.columns))
        order = torch.cat(parts)
        _, at = segment_rows_unchecked(offsets[order], offsets[order + 1])
        every = torch.cat(rows)
        return Memory(torch.empty_like(every).index_copy(0, at, every), offsets, self.begin.expand(len(order), -1))

    @torch.no_grad()
    def score(
        self, q: Questions, rows: Tensor, users: Tensor, index: Index | None = None, allowed: Allowed | None = None
    ) -> Tensor:
        """Exact log p of every allowed item, as ``decoding.score`` returns them, on the host.

        Args:
            q, rows, users: as for ``forward``.
            index: what the columns are in the order of, without ``allowed``; default: the model's own.
            allowed: items of each request; None: all.
        """
        return score(self, self.memory(q, users), self.index if index is None else index, allowed).cpu()

    @torch.no_grad()
    def beam(
        self,
        q: Questions,
        rows: Tensor,
        users: Tensor,
        index: Index | None = None,
        allowed: Allowed | None = None,
        *,
        beams: int,
        k: int,
    ) -> Lists:
        """The k best that beams find, see ``decoding.beam``.

        Args:
            q, rows, users: as for ``forward``.
            index, allowed, beams, k: as for ``decoding.beam``; of the index the default is the model's own.
        """
        return beam(self, self.memory(q, users), self.index if index is None else index, allowed, beams=beams, k=k)
