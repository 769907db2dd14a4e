"""OneRec for places: an encoder of visits, a decoder with a sparse mixture of experts, and lists for a session.

Deng et al., OneRec: Unifying Retrieve and Rank with Generative Recommender and Iterative Preference Alignment, 2025:
an encoder reads what a user has done, a decoder whose feed-forward layers are mixtures of experts writes semantic IDs,
and the answer to a request is a list whose items are written one after the other, each given those before it:

    log p(list) = sum over its items j of log p(item_j | items before it in the list, request, visits)

The rest is the default model's (``model.py``): softmax over what exists, place and popularity of nodes, last mile, copy
path. So is how an item is written; what has been listed enters by the decoder's start: the codes of the last item and
the mean over all, beside the user, and the last item's place instead of the request's. (The paper's decoder attends to
the codes of all items before; this costs a request nothing, and lists are short.) Preference alignment is in
``preference.py``.

A target is asked by a request of its own, so evaluation sees lists of one. In training a share of the targets goes on
with the list of the user's session instead: it sees the visits before the session, the session's first request, and
those of its items that were listed.

With ``lazy`` it has the decoder of OneRec-V2, and no encoder: ``lazy.py``.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...data.batches.sequences import sessions
from ...kernels.checks import check_number
from .config import OneRecConfig
from .decoding import Lists, best
from .experts import Experts
from .index import Index
from .layers import Transformer
from .lazy import Context, LazyDecoder
from .model import Generator, PlaceFacts, Questions
from .reach import Allowed, everything


class OneRec(Generator):
    """See the top of this file.

    Args:
        config, facts, index, item_columns, user_columns: as of ``Generator``.
    """

    config: OneRecConfig

    def __init__(
        self, config: OneRecConfig, facts: PlaceFacts, index: Index, item_columns: int, user_columns: int
    ) -> None:
        d = config.columns
        super().__init__(config, facts, index, item_columns, user_columns + 2 * d)
        sizes: dict[str, Any] = {
            "columns": d,
            "heads": config.heads,
            "head_columns": d // config.heads,
            "hidden": config.hidden,
            "layers": config.layers,
            "dropout": config.dropout,
            "feed_forward": lambda: Experts(
                d, config.hidden // config.active, config.experts, config.active, config.dropout
            ),
        }
        if config.lazy:
            self.encoder = Context(d, config.dropout)
            self.decoder = LazyDecoder(sets=config.lazy, **sizes)
        else:
            self.decoder = Transformer(causal=True, memory=True, **sizes)

    def forward(self, q: Questions, rows: Tensor, users: Tensor, lists: Tensor | None = None) -> Tensor:
        """Log p of the targets, given the visits before their list and the items before them in it.

        Args:
            q: targets in the order of their stretches and moments.
            rows, users: as for ``encode``.
            lists: number of each target's list, rising, within a stretch, int64 [B]. The first of a list asks by its
                own request. None: drawn in training, and else a list for each.

        Returns:
            [B]; -inf for those without codes that were not visited before.
        """
        assert q.target is not None
        each = torch.arange(len(q.target), device=users.device)
        if lists is None:
            lists = self._drawn(q) if self.training else each
        first = torch.searchsorted(lists, lists)
        goes_on = first < each
        before = torch.where(goes_on, each - 1, each)
        token = self._codes(q.target)
        upto = F.pad(token.cumsum(0), (0, 0, 1, 0))  # of those before each
        mean = (upto[each] - upto[first]) / (each - first).clamp(min=1)[:, None]
        listed = torch.cat([token[before], mean], dim=1) * goes_on[:, None]
        offset = None if q.asked_offset is None else q.asked_offset[first]
        q = replace(q, seen=q.seen[first], asked=q.asked[first], place=q.place[first], asked_offset=offset)
        q.place = self._here(q.place, torch.where(goes_on, q.target[before], 0))  # type: ignore[index]
        return super().forward(q, rows, torch.cat([users, listed], dim=1))

    def _drawn(self, q: Questions) -> Tensor:
        session = sessions(q.stretch, q.asked, self.config.session_hours)
        new = (session.diff() > 0) | (torch.rand(max(len(session) - 1, 0), device=session.device) >= self.config.joined)
        return F.pad(new.cumsum(0), (1, 0))[: len(session)]

    def _codes(self, items: Tensor) -> Tensor:
        """Codes of catalog rows [...] as a token, [..., d]."""
        codes = self.facts.codes[items] + 1
        return torch.stack([table(codes[..., i]) for i, table in enumerate(self.code)]).sum(0)

    def _here(self, place: Tensor, item: Tensor) -> Tensor:
        """Places of catalog rows [B], where they have one, instead of those of requests [B, 3]."""
        of_item = self.facts.place[item]
        return torch.where(of_item.isnan(), place, of_item)

    @torch.no_grad()
    def score(
        self,
        q: Questions,
        rows: Tensor,
        users: Tensor,
        index: Index | None = None,
        allowed: Allowed | None = None,
        before: Tensor | None = None,
    ) -> Tensor:
        """Exact log p of every allowed item as the next one of a list, as ``decoding.score`` returns them, on the host.

        Args:
            q, rows, users: as for ``encode``; each target is the request of a list.
            index, allowed: as for ``Generator.score``.
            before: catalog rows that are in the lists, the first first, int64 [B, P]; None: nothing yet. They have a
                probability as others do: leave them out of ``allowed``.
        """
        return super().score(*self._going_on(q, rows, users, before), index, allowed)

    @torch.no_grad()
    def beam(
        self,
        q: Questions,
        rows: Tensor,
        users: Tensor,
        index: Index | None = None,
        allowed: Allowed | None = None,
        before: Tensor | None = None,
        *,
        beams: int,
        k: int,
    ) -> Lists:
        """The k best as the next one of a list, see ``Generator.beam``; ``before`` as for ``score``."""
        return super().beam(*self._going_on(q, rows, users, before), index, allowed, beams=beams, k=k)

    def _going_on(
        self, q: Questions, rows: Tensor, users: Tensor, before: Tensor | None
    ) -> tuple[Questions, Tensor, Tensor]:
        """What ``Generator`` takes, of requests whose lists have items."""
        listed = users.new_zeros(len(users), 2 * self.config.columns)
        if before is not None and before.shape[1]:
            before = before.to(users.device)
            token = self._codes(before)
            listed = torch.cat([token[:, -1], token.mean(1)], dim=1)
            q = replace(q, place=self._here(q.place, before[:, -1]))
        return q, rows, torch.cat([users, listed], dim=1)

    @torch.no_grad()
    def lists(
        self, q: Questions, rows: Tensor, users: Tensor, allowed: Allowed | None = None, *, k: int, beams: int = 0
    ) -> Lists:
        """The list for each request: the most probable item, then the most probable after it, none twice.

        Args:
            q, rows, users, allowed: as for ``score``.
            k: items a request, at most.
            beams: look for each item with so many beams; 0: among the scores of all.

        Returns:
            min(k, allowed items that have a probability) items each, in the order in which they were written, and log p
            of each given those before it. Ties go to the lower row.
        """
        check_number("k", k, 1, whole=True)
        B = len(q.seen)
        left = everything(self.index.items, B) if allowed is None else allowed
        items, log_p = torch.zeros(B, 0, dtype=torch.int64), torch.zeros(B, 0)
        for _ in range(k):
            if beams:
                next_ = self.beam(q, rows, users, None, left, items, beams=beams, k=1)
            else:
                next_ = best(self.score(q, rows, users, None, left, items), left, 1)
            there = next_.offsets.diff() > 0
            item, found = torch.zeros(B, dtype=torch.int64), torch.full((B,), -torch.inf)
            item[there], found[there] = next_.items, next_.log_p
            items, log_p = torch.cat([items, item[:, None]], dim=1), torch.cat([log_p, found[:, None]], dim=1)
            left = left.keep(left.items != item[left.requests])
        listed = log_p.isfinite()
        return Lists(F.pad(listed.sum(1).cumsum(0), (1, 0)), items[listed], log_p[listed])
