"""RecLLM-Adapter: cross-attention from text to visits, a preference aggregator, and heads for places and intents.

B requests, T tokens, M visits, N rows that are attended to, H columns of the language model, d columns of the adapter,
C candidates. From the mind map: "cross-attention (fuses the user's sequence and items' metadata)", "preference
aggregator (distribution of attention weights)", "task routing"; all forms are ours.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import AdapterConfig
from .inputs import FEATURES, GAPS, ItemTexts, Places, Requests, features
from .language import blocks_of, longest
from .queries import INTENTS

COUNTED_FIRST = (1.0, 0.3, 0.3, 0.3, 0.3, 0.5)
"""What features are worth at the start: the model begins as one that counts visits."""


class CrossAttention(nn.Module):
    """Adds to hidden states what they find in rows: x + W_o softmax(W_q LN(x) (W_k r)ᵀ) W_v r, W_o zero at the start.

    So a language model is what it was until the adapter has learned something.

    Args:
        hidden: H.
        columns: d.
        heads: of d / heads columns each.
    """

    def __init__(self, hidden: int, columns: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(hidden)
        self.query = nn.Linear(hidden, columns, bias=False)
        self.keys = nn.Linear(columns, 2 * columns, bias=False)
        self.out = nn.Linear(columns, hidden, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x_BTH: Tensor, rows_BNd: Tensor, seen_BN: Tensor) -> Tensor:
        """Rows that are not seen are not looked at, wherever they lie; each request sees one row or more."""
        apart = lambda x: x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        k, v = self.keys(rows_BNd).chunk(2, dim=-1)
        q = self.query(self.norm(x_BTH))
        found = F.scaled_dot_product_attention(apart(q), apart(k), apart(v), attn_mask=seen_BN[:, None, None])
        return x_BTH + self.out(found.transpose(1, 2).flatten(2))


class RecAdapter(nn.Module):
    """A causal language model with the adapter in it.

    Args:
        language, tokenizer: of ``language.make_language``; which weights are trained is as they come.
        config: of the adapter.
        places: the catalog.
    """

    def __init__(self, language: Any, tokenizer: Any, config: AdapterConfig, places: Places) -> None:
        super().__init__()
        self.language, self.config, self.places, self.tokenizer = language, config, places, tokenizer
        self.item_texts = ItemTexts.of(places.texts, tokenizer)
        self.longest = longest(language)
        self.end: int = tokenizer.eos_token_id
        self.pad: int = self.end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        hidden, d = language.get_input_embeddings().weight.shape[1], config.columns
        blocks = blocks_of(language)
        self.item = nn.Embedding(len(places), d)
        self.text = nn.Linear(hidden, d)
        self.gap = nn.Embedding(GAPS, d)
        self.hour = nn.Embedding(24, d)
        self.nothing = nn.Parameter(torch.zeros(d))
        self.about = nn.Linear(FEATURES, d)
        at = range(config.every - 1, len(blocks), config.every) if config.cross_attention else ()
        self.cross = nn.ModuleDict({str(i): CrossAttention(hidden, d, config.heads) for i in at})
        for name, cross in self.cross.items():
            blocks[int(name)].register_forward_hook(_looking(cross, self))
        self.state = nn.Linear(hidden, d)
        self.ask, self.merge = nn.Linear(d, d), nn.Linear(2 * d, d)
        self.worth = nn.Linear(d, FEATURES)
        self.intent = nn.Linear(hidden, len(INTENTS))
        for table in (self.item, self.gap, self.hour):
            nn.init.normal_(table.weight, std=0.02)
        nn.init.normal_(self.nothing, std=0.02)
        with torch.no_grad():
            self.worth.bias.copy_(torch.tensor(COUNTED_FIRST))
        self._rows: tuple[Tensor, Tensor] | None = None

    # --- text -------------------------------------------------------------------------------------------------------

    def tokens(self, text: str) -> list[int]:
        """Ids of a text, without an end; the first half of what fits the model is kept of a longer one."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[: self.longest // 2] or [self.end]

    @contextmanager
    def looking_at(self, rows_BNd: Tensor, seen_BN: Tensor) -> Iterator[None]:
        """Within, the language model's blocks attend to these rows, and to one that stands for nothing."""
        nothing = self.nothing.expand(len(rows_BNd), 1, -1)
        self._rows = torch.cat([nothing, rows_BNd], dim=1), F.pad(seen_BN, (1, 0), value=True)
        try:
            yield
        finally:
            self._rows = None

    def _padded(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and their mask, [B, T], padded at the right, and the last of each, [B]."""
        lengths = torch.tensor([len(row) for row in ids])
        if not len(ids) or int(lengths.min()) < 1 or int(lengths.max()) > self.longest:
            raise ValueError(f"tokens: got {lengths.tolist()[:5]} a text, expected 1 to {self.longest}")
        wide = int(lengths.max())
        table = torch.tensor([[*row, *[self.pad] * (wide - len(row))] for row in ids])
        return table, (torch.arange(wide) < lengths[:, None]).long(), lengths - 1

    def read(self, ids: Sequence[Sequence[int]], rows_BNd: Tensor, seen_BN: Tensor) -> Tensor:
        """Hidden states of the last token of each text, [B, H].

        Args:
            ids: tokens of the texts, one or more each.
            rows_BNd, seen_BN: what they may look at, and which of it each sees.

        Raises:
            ValueError: numbers of rows that don't fit, or a text without tokens or longer than the model.
        """
        if not len(ids) == len(rows_BNd) == len(seen_BN) or rows_BNd.shape[:2] != seen_BN.shape:
            raise ValueError(
                f"got {len(ids)} texts, rows {[*rows_BNd.shape]}, seen {[*seen_BN.shape]}: expected as many"
            )
        table, mask, last = self._padded(ids)
        with self.looking_at(rows_BNd, seen_BN):
            hidden = self.language.base_model(input_ids=table, attention_mask=mask, use_cache=False)[0]
        return hidden[torch.arange(len(last)), last]

    def write(self, ids: Sequence[Sequence[int]], rows_BNd: Tensor, seen_BN: Tensor) -> Tensor:
        """Logits of the token after each, as ``read``: [B, T, V]; behind a text's end they mean nothing."""
        table, mask, _ = self._padded(ids)
        with self.looking_at(rows_BNd, seen_BN):
            logits: Tensor = self.language(input_ids=table, attention_mask=mask, use_cache=False).logits
        return logits

    # --- places -----------------------------------------------------------------------------------------------------

    def vectors(self, rows: Tensor) -> Tensor:
        """Of catalog rows [...]: an embedding of the row, and its text's mean token, [..., d]."""
        some, back = rows.unique(return_inverse=True)
        tokens, begin = self.item_texts.of_rows(some)
        mean = F.embedding_bag(tokens, self.language.get_input_embeddings().weight, begin, mode="mean")
        return (self.item(some) + self.text(mean))[back]

    def visits(self, q: Requests) -> Tensor:
        """Of each visit, [B, M, d]."""
        return self.vectors(q.item) + self.gap(q.gap) + self.hour(q.hour)

    def score(
        self, q: Requests, ids: Sequence[Sequence[int]], candidates: Tensor, visits: Tensor | None = None
    ) -> Tensor:
        """Of candidates for requests, higher = better, [B, C].

        The question's last state asks the visits what the user prefers, p = Σ a_m v_m; both together are compared with
        places, and weigh what is counted of them: s_i = u·e_i / √d + w(u)·f_i, with a_m among f.

        Args:
            q: requests.
            ids: tokens of their questions.
            candidates: catalog rows, int64 [B, C].
            visits: of ``visits``, where they are known.
        """
        visits = self.visits(q) if visits is None else visits
        state = self.state(self.read(ids, visits, q.seen))
        weights = self.aggregate(state, visits, q.seen)
        u = self.merge(torch.cat([state, (weights[:, :, None] * visits).sum(1)], dim=1))
        match = (self.vectors(candidates) @ u[:, :, None]).squeeze(2) / self.config.columns**0.5
        return match + (features(q, self.places, weights, candidates) @ self.worth(u)[:, :, None]).squeeze(2)

    def aggregate(self, state_Bd: Tensor, visits_BMd: Tensor, seen_BM: Tensor) -> Tensor:
        """The preference aggregator's weights of the visits, [B, M]: a softmax over those seen, zeros where none is."""
        logits = (visits_BMd @ self.ask(state_Bd)[:, :, None]).squeeze(2)
        weights = logits.masked_fill(~seen_BM, -torch.inf).softmax(dim=1) if logits.shape[1] else logits
        return weights.masked_fill(~seen_BM, 0.0)

    def route(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Logits of ``INTENTS`` of questions, [B, 2]; the question alone says what is wanted."""
        nothing = self.nothing.new_zeros(len(ids), 0, self.config.columns)
        found: Tensor = self.intent(self.read(ids, nothing, torch.zeros(len(ids), 0, dtype=torch.bool)))
        return found

    def told_of(self, q: Requests, rows: Tensor, visits: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What a reason is written with: a place, with what is counted of it, and then the visits.

        Args:
            q: requests.
            rows: the place of each, int64 [B].
            visits: as for ``score``.

        Returns:
            Rows [B, 1 + M, d] and which are seen.
        """
        visits = self.visits(q) if visits is None else visits
        even = q.seen.float() / q.seen.sum(1, keepdim=True).clamp(min=1)
        counted = features(q, self.places, even, rows[:, None]).squeeze(1)
        place = self.vectors(rows) + self.about(counted)
        return torch.cat([place[:, None], visits], dim=1), F.pad(q.seen, (1, 0), value=True)


def _looking(cross: nn.Module, model: RecAdapter) -> Any:
    """A hook that lets a block's hidden states look at the model's rows."""

    def hook(block: nn.Module, args: Any, out: Any) -> Any:
        assert model._rows is not None
        rows, seen = model._rows
        if isinstance(out, tuple):
            return (cross(out[0], rows, seen), *out[1:])
        return cross(out, rows, seen)

    return hook
