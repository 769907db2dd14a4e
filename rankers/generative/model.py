"""The default generative ranker: where a user goes next, as a distribution over all places.

    p(item) = g p_copy(item) + (1 - g) p_gen(item)
    p_gen(item) = product over levels of p(code | codes before it, request) * p(item | code, request)

A visit is one token: its semantic ID's codes, its item's row, the hour, and hours and km since the visit before. A
causal encoder reads the visits, so one pass over a user serves all targets; a decoder that starts from the request
(place, hour, user, time since the last visit) walks the prefix tree of semantic IDs. Three things a place needs and
models of semantic IDs for shops on the net have not:

- **What exists.** A softmax is over the codes that lead to an item. The sum over all items is 1.
- **Where it is.** A node of the tree has a centre, a radius and a popularity, and so has an item. What distance and
  popularity are worth is asked of the request, a weight a feature, and added to the decoder's logits. It starts as the
  floor popularity / (1 + km); the decoder learns what that floor doesn't know. New items have all of it too.
- **Habit.** Three visits in four may be to a place where the user has been. p_copy points at past visits: at the items,
  not at their codes, which others share.

Shapes: S stretches of visits, T visits in all, B targets, U distinct items, d columns, L levels, K codes a level, D
columns of an item's row, P of a user's.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...data.batches.activity import COLD
from ...data.batches.features import HOURS_PER_WEEK
from ...data.batches.item_columns import HOUR, local_shift, solar_shift
from ...data.batches.semantic_features import SemanticFeatures
from ...data.batches.sequences import SequenceBatch
from ...kernels.haversine import unit_vectors, unit_vectors_km
from ...kernels.jagged import segment_rows_unchecked
from ...kernels.trie_topk import trie_logsumexp_unchecked
from .config import GeneratorConfig
from .decoding import Lists, Softmax, beam, best, score, segment_logsumexp
from .index import Index
from .layers import Memory, Transformer
from .reach import Allowed, everything

if TYPE_CHECKING:
    from ...data.batches.batch import SampleBatch  # needs TorchRec, and the dense part runs where there is none

T = TypeVar("T", bound=nn.Module)

_STEP = 0.5
KM_KNOTS, HOUR_KNOTS = 21, 25
"""Knots half a unit of log(1 + x) apart: up to 22,000 km, and to 18 years in hours."""


def hats(x: Tensor, knots: int) -> Tensor:
    """Values [...] as shares of the knots around them, [..., knots]; beyond the last they are the last; NaN is none."""
    at = (x / _STEP).clamp(0, knots - 1)
    found = 1 - (at[..., None] - torch.arange(knots, device=x.device)).abs()
    return found.clamp(min=0).nan_to_num(0.0)


def curve(x: Tensor, heights: Tensor, of: Tensor) -> Tensor:
    """``(hats(x) * heights[of]).sum(-1)`` without laying hats out: x [N], heights [B, knots], of int64 [N] to [N]."""
    knots = heights.shape[1]
    at = (x / _STEP).clamp(0, knots - 1)
    there = ~at.isnan()
    low = at.nan_to_num(0.0).floor().clamp(max=knots - 2)
    above, row = (at - low).nan_to_num(0.0), of * knots + low.long()
    flat = heights.flatten()
    return (flat.index_select(0, row) * (1 - above) + flat.index_select(0, row + 1) * above) * there


class PlaceFacts(NamedTuple):
    """What is known of all items, by catalog row; row 0 is none.

    Attributes:
        codes: int64 [I, L], -1 where an item has none.
        place: unit vectors, NaN where unknown, float32 [I, 3].
        popularity: log(1 + training visits); fewer than ``COLD`` look alike, as a place without any is no target in
            training, float32 [I].
        shift: seconds to add to UTC, so that an hour of the solar week starts at multiples of 3,600, int64 [I].
    """

    codes: Tensor
    place: Tensor
    popularity: Tensor
    shift: Tensor

    @classmethod
    def of(cls, catalog: pa.Table, tokens: SemanticFeatures) -> Self:
        """Of a prepared folder's ``catalog.parquet`` and the semantic IDs of its items."""
        lat, lon, positives = (
            torch.from_numpy(catalog[name].to_numpy().astype(np.float64)) for name in ("lat", "lon", "positives")
        )
        return cls(
            torch.from_numpy(tokens.codes),
            unit_vectors(lat, lon).float(),
            positives.clamp(min=COLD - 1).log1p().float(),
            solar_shift(lon),
        )


class Tree(nn.Module):
    """The prefix tree of all items, with what is known of its nodes, for training and for scores.

    Its tensors are buffers that no checkpoint has, so they lie where the model does.

    Attributes:
        starts, codes: by level 1 to L: first child of each node of the level above, and past the last one, int64
            [n + 1]; and the nodes' codes, int64 [n]. ``starts`` has one more: the items below the last level's nodes.
        items: catalog rows in the order of the tree, int64 [N].
        node: of each catalog row its node on each level, -1 without codes, int64 [I, L].
        facts: by level, and last of the catalog's rows: popularity, log(1 + radius in km), centre, [n, 2 + 3].
    """

    def __init__(self, index: Index, facts: PlaceFacts) -> None:
        super().__init__()
        whole, levels = index.whole(), index.levels
        items, node = whole.items.long(), torch.full((len(facts.codes), levels), -1)
        starts = [whole.levels[0].offsets.long(), *(level.children.long() for level in whole.levels)]
        numbers = torch.arange(len(items))
        for level in range(levels, 0, -1):
            numbers = torch.repeat_interleave(starts[level].diff())[numbers]
            node[items, level - 1] = numbers
        known = [_node_facts(facts, items, node[items, i]) for i in range(levels)]
        known.append(torch.cat([facts.popularity[:, None], torch.zeros(len(facts.place), 1), facts.place], dim=1))
        self.starts, self.facts = Buffers(starts), Buffers(known)
        self.codes = Buffers([level.codes.long() for level in whole.levels])
        self.items: Tensor
        self.node: Tensor
        self.register_buffer("items", items, persistent=False)
        self.register_buffer("node", node, persistent=False)


class Buffers(nn.Module):
    """Tensors in a row that go where the model goes, and into no checkpoint."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        for i, x in enumerate(tensors):
            self.register_buffer(str(i), x, persistent=False)

    def __getitem__(self, i: int) -> Tensor:
        return cast(Tensor, [*self._buffers.values()][i])

    def __iter__(self) -> Iterator[Tensor]:
        return cast(Iterator[Tensor], iter(self._buffers.values()))


def where_it_lies(module: nn.Module, part: T) -> T:
    """A new part of a module, moved to the device of its parameters; of a module without any yet it stays."""
    first = next(module.parameters(), None)
    return part if first is None else part.to(first.device)


def _node_facts(facts: PlaceFacts, items: Tensor, node: Tensor) -> Tensor:
    nodes = int(node.max()) + 1 if len(node) else 0
    visits = facts.popularity[items].expm1()
    place = facts.place[items]
    known = ~place.isnan().any(1)
    sums = torch.zeros(nodes, 3).index_add(0, node[known], place[known])
    centre = F.normalize(sums, dim=1).masked_fill((sums == 0).all(1, keepdim=True), torch.nan)
    km = unit_vectors_km(place[known], centre[node[known]])
    count = torch.zeros(nodes).index_add(0, node[known], torch.ones(int(known.sum())))
    radius = torch.zeros(nodes).index_add(0, node[known], km.square()) / count.clamp(min=1)
    popularity = torch.zeros(nodes).index_add(0, node, visits).log1p()
    return torch.cat([torch.stack([popularity, radius.sqrt().log1p()], 1), centre], dim=1)


FEATURES = KM_KNOTS + 3
"""Of a node or an item as a request sees it: km in hats, popularity, radius, place unknown."""


def worth(place: Tensor, weights: Tensor, of: Tensor, facts: Tensor) -> Tensor:
    """What nodes or items are worth to requests.

    Args:
        place: of the requests, unit vectors, NaN where unknown, [B, 3].
        weights: of the requests, a number a feature, [B, FEATURES].
        of: the request of each node, int64 [n].
        facts: a row of ``Tree.facts`` each, [n, 5].

    Returns:
        [n].
    """
    km = unit_vectors_km(place[of], facts[:, 2:])
    plain = torch.cat([facts[:, :2], km.isnan()[:, None].to(facts.dtype)], dim=1)
    return curve(km.log1p(), weights[:, :KM_KNOTS], of) + (plain * weights[of, KM_KNOTS:]).sum(1)


@dataclass
class Questions:
    """Targets and the visits they look back on, as the model takes them; all but item rows' vectors.

    Attributes:
        items: catalog rows of the distinct visited items, int64 [U].
        visits: which of them each visit is of, int64 [T].
        offsets: visits of each stretch, int64 [S+1].
        time: of the visits, unix seconds, int64 [T].
        stretch, seen: of the targets, see ``SequenceBatch``, int64 [B].
        asked: of the targets, unix seconds, int64 [B].
        place: of the requests, unit vectors, NaN where unknown, float32 [B, 3].
        target: catalog rows, int64 [B]; None where nobody knows.
        offset, asked_offset: of visits and requests, minutes east of UTC, NaN where unknown, float32 [T] and [B]; None:
            unknown for all. Hours of the week are local by them, else in solar time.
    """

    items: Tensor
    visits: Tensor
    offsets: Tensor
    time: Tensor
    stretch: Tensor
    seen: Tensor
    asked: Tensor
    place: Tensor
    target: Tensor | None = None
    offset: Tensor | None = None
    asked_offset: Tensor | None = None

    @classmethod
    def of(cls, batch: SequenceBatch) -> Self:
        """Of a batch of ``SequenceLoader``: all its targets, those too that don't count."""
        items, visits = batch.item.unique(return_inverse=True)
        place = unit_vectors(batch.lat.double(), batch.lon.double()).float()
        return cls(
            items, visits, batch.offsets, batch.time, batch.stretch, batch.seen, batch.target_time, place, batch.target,
            batch.utc_offset, batch.target_offset,
        )  # fmt: skip

    @classmethod
    def of_samples(cls, sample: "SampleBatch") -> Self:
        """Of the requests of a batch of ``SampleLoader``, each with its history, whose hours are by its offset."""
        items, visits = sample.history.unique(return_inverse=True)
        place = unit_vectors(sample.lat.double(), sample.lon.double()).float()
        length = sample.offsets.diff()
        asked = sample.time.repeat_interleave(length)
        time = asked - (sample.history_hours.double() * HOUR).round().long()
        requests = torch.arange(len(length))
        offset = sample.utc_offset
        of_visits = None if offset is None else offset.repeat_interleave(length)
        return cls(items, visits, sample.offsets, time, requests, length, sample.time, place, None, of_visits, offset)

    def map(self, f: Callable[[Tensor], Tensor]) -> Self:
        """The same with f of each tensor."""
        return replace(self, **{x.name: f(value) for x in fields(self) if (value := getattr(self, x.name)) is not None})

    def some(self, targets: Tensor) -> Self:
        """Some of the targets, bool [B] or rows of them int64 [N], on the same visits."""
        return replace(
            self,
            stretch=self.stretch[targets],
            seen=self.seen[targets],
            asked=self.asked[targets],
            place=self.place[targets],
            target=None if self.target is None else self.target[targets],
            asked_offset=None if self.asked_offset is None else self.asked_offset[targets],
        )


class Encoded(NamedTuple):
    """What visits and requests give.

    Attributes:
        visits: the encoder's output, before it a row that stands for nothing, [S, 1 + longest, d].
        state: of the requests, what the decoder starts from, [B, d].
        place: of the requests, or else of the last visit, unit vectors, NaN where unknown, [B, 3].
        copied: p of each seen visit that it is copied, [B, M].
        copied_items: catalog rows of those, 0 for none, int64 [B, M].
        gate: log g and log (1 - g), [B, 2].
    """

    visits: Tensor
    state: Tensor
    place: Tensor
    copied: Tensor
    copied_items: Tensor
    gate: Tensor


class Generator(nn.Module):
    """See the top of this file.

    Args:
        config: sizes.
        facts: of all items.
        index: of all items.
        item_columns, user_columns: D and P, of the rows that ``forward`` is given.
    """

    softmax: Softmax = "existing"

    def __init__(
        self, config: GeneratorConfig, facts: PlaceFacts, index: Index, item_columns: int, user_columns: int
    ) -> None:
        super().__init__()
        d = config.columns
        transformer = partial(
            Transformer,
            columns=d,
            heads=config.heads,
            head_columns=d // config.heads,
            hidden=config.hidden,
            layers=config.layers,
            dropout=config.dropout,
            causal=True,
        )
        self.config, self.levels, self.codes_per_level = config, index.levels, index.codes_per_level
        self.set_items(facts, index)
        self.encoder: nn.Module = transformer(window=config.window)
        self.decoder = transformer(memory=True)
        codes = [nn.Embedding(self.codes_per_level + 1, d) for _ in range(self.levels)]
        heads = [nn.Linear(d, self.codes_per_level) for _ in range(self.levels)]
        self.code, self.head = nn.ModuleList(codes), nn.ModuleList(heads)
        self.of_item = nn.Linear(item_columns, d, bias=False)
        self.hour = nn.Embedding(HOURS_PER_WEEK, d)
        self.gaps = nn.Linear(HOUR_KNOTS + KM_KNOTS, d)
        self.nobody = nn.Parameter(torch.randn(1, d) * 0.1)  # the memory's first row: a user without visits has one too
        self.asked_hour = nn.Embedding(HOURS_PER_WEEK, d)
        width = 2 * d + user_columns + HOUR_KNOTS + KM_KNOTS + 1
        self.request = nn.Sequential(nn.Linear(width, 2 * d), nn.ReLU(), nn.Linear(2 * d, d))
        self.worth = nn.Linear(d, (self.levels + 1) * FEATURES)
        self.copy_query, self.copy_key = nn.Linear(d, d), nn.Linear(d, d, bias=False)
        self.copy_curves = nn.Linear(d, HOUR_KNOTS + KM_KNOTS)
        self.gate = nn.Sequential(nn.Linear(d + HOUR_KNOTS, d), nn.ReLU(), nn.Linear(d, 1))
        self.never: Tensor  # the gate of who was nowhere
        self.register_buffer("never", torch.tensor([-torch.inf, 0.0]), persistent=False)
        for table in (*codes, self.hour, self.asked_hour):
            nn.init.normal_(table.weight, std=0.1)
        for head in heads:
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
        with torch.no_grad():  # popularity / (1 + km), whatever the request
            nn.init.normal_(self.worth.weight, std=0.01)
            weights = self.worth.bias.zero_().view(self.levels + 1, FEATURES)
            weights[:, :KM_KNOTS] = -_STEP * torch.arange(KM_KNOTS)
            weights[:, KM_KNOTS] = 1.0
            nn.init.normal_(self.copy_curves.weight, std=0.01)
            self.copy_curves.bias.zero_()

    def set_items(self, facts: PlaceFacts, index: Index) -> None:
        """Take other items, as after ``tokenize --add``: no weight depends on how many there are."""
        self.index = index
        self.tree, self._facts = where_it_lies(self, Tree(index, facts)), where_it_lies(self, Buffers(facts))

    @property
    def facts(self) -> PlaceFacts:
        """What is known of all items, where the model lies."""
        return PlaceFacts(*self._facts)

    # --- what has been ----------------------------------------------------------------------------------------------

    def encode(self, q: Questions, rows: Tensor, users: Tensor) -> Encoded:
        """Read visits and requests.

        Args:
            q: what is asked.
            rows: of the distinct items, [U, D].
            users: of the targets' users, [B, P].
        """
        tokens, lengths = self._tokens(q, rows), q.offsets.diff()
        device = tokens.device
        inside = torch.arange(int(lengths.max()), device=device) < lengths[:, None]
        padded = tokens.new_zeros(*inside.shape, tokens.shape[1]).index_put((inside,), tokens)
        nothing = self.nobody.expand(len(lengths), 1, -1)
        visits = torch.cat([nothing, self.encoder(padded, lengths) if inside.shape[1] else padded], dim=1)

        # what each target sees, the oldest first, and the last of it
        M = max(min(self.config.copied, int(q.seen.max())), 1)
        behind = torch.arange(M - 1, -1, -1, device=device)
        there, row = behind < q.seen[:, None], (q.seen[:, None] - behind).clamp(min=0)
        visit = (q.offsets[q.stretch][:, None] + row - 1).clamp(0, max(len(q.visits) - 1, 0))
        item, time = q.items[q.visits], q.time
        if not len(item):
            item = time = q.seen.new_zeros(1)
        item, time = item[visit].masked_fill(~there, 0), time[visit]
        last = self.facts.place[item[:, -1]]
        place = torch.where(q.place.isnan(), last, q.place)
        hours = ((q.asked[:, None] - time) / HOUR).float().clamp(min=0).masked_fill(~there, torch.nan).log1p()

        hour = self.asked_hour(self._hour(q.asked, item[:, -1], q.asked_offset))
        gaps = [hats(hours[:, -1], HOUR_KNOTS), hats(unit_vectors_km(q.place, last).log1p(), KM_KNOTS)]
        known = (~q.place.isnan().any(1, keepdim=True)).float()
        state = self.request(torch.cat([hour, visits[q.stretch, row[:, -1]], users, *gaps, known], dim=1))

        of = torch.arange(len(q.seen), device=device)[:, None].expand_as(row)
        keys = self.copy_key(visits)[q.stretch[:, None], row]
        logits = torch.einsum("bd,bmd->bm", self.copy_query(state), keys) * keys.shape[2] ** -0.5
        km = unit_vectors_km(place[:, None], self.facts.place[item]).log1p()
        of_hours, of_km = self.copy_curves(state).split([HOUR_KNOTS, KM_KNOTS], dim=1)
        for x, heights in ((hours, of_hours), (km, of_km)):
            logits = logits + curve(x.flatten(), heights, of.flatten()).view_as(row)
        seen = there[:, -1:]
        copied = logits.masked_fill(~there & seen, -torch.inf).softmax(dim=1) * there
        many = q.seen.clamp(max=self.config.copied).float()  # where a stretch begins is nobody's habit
        gate = self.gate(torch.cat([state, hats(many.log1p(), HOUR_KNOTS)], dim=1))
        gate = torch.where(seen, torch.cat([F.logsigmoid(gate), F.logsigmoid(-gate)], dim=1), self.never)
        return Encoded(visits, state, place, copied, item, gate)

    def _hour(self, time: Tensor, item: Tensor, offset: Tensor | None) -> Tensor:
        """Of the week, where the offset is known local, else in solar time at the item: 0 to 167."""
        shift = self.facts.shift[item]
        if offset is not None:
            shift = torch.where(offset.isnan(), shift, local_shift(offset))
        return (time + shift) // HOUR % HOURS_PER_WEEK

    def _tokens(self, q: Questions, rows: Tensor) -> Tensor:
        """[T, d]."""
        codes = self.facts.codes[q.items] + 1
        of_items = self.of_item(rows)
        tokens = sum((table(codes[:, i]) for i, table in enumerate(self.code)), torch.zeros_like(of_items))[q.visits]
        of_visits = of_items[q.visits]
        if self.training and self.config.item_dropout:
            of_visits = of_visits * (torch.rand(len(of_visits), 1, device=rows.device) >= self.config.item_dropout)
        item = q.items[q.visits]
        hour = self._hour(q.time, item, q.offset)
        first = torch.zeros(len(q.visits), dtype=torch.bool, device=rows.device)
        first[q.offsets[:-1][q.offsets.diff() > 0]] = True
        hours = F.pad(q.time.diff(), (1, 0)) / HOUR if len(q.time) else q.time.float()
        place = self.facts.place[item]
        km = unit_vectors_km(place, place.roll(1, 0))
        hours, km = (x.float().masked_fill(first, torch.nan) for x in (hours, km))
        gaps = torch.cat([hats(hours.log1p(), HOUR_KNOTS), hats(km.log1p(), KM_KNOTS)], dim=1)
        return tokens + of_visits + self.hour(hour) + self.gaps(gaps)

    # --- what comes -------------------------------------------------------------------------------------------------

    def forward(self, q: Questions, rows: Tensor, users: Tensor) -> Tensor:
        """Log p of the targets, [B]; -inf for those without codes that were not visited before. As for ``encode``."""
        assert q.target is not None
        e = self.encode(q, rows, users)
        copied = (e.copied * (e.copied_items == q.target[:, None])).sum(1)
        return _mixed(e.gate, copied, self.generated(e, q, q.target))

    def generated(self, e: Encoded, q: Questions, target: Tensor) -> Tensor:
        """Log p_gen of one item a request, [B], by teacher forcing; -inf for an item without codes."""
        tree, node = self.tree, self.tree.node[target]
        codes = self.facts.codes[target].clamp(min=0)
        x = torch.stack([e.state, *(self.embed(i + 1, codes[:, i]) for i in range(self.levels - 1))], dim=1)
        number = torch.arange(len(x), device=x.device) - torch.searchsorted(q.stretch, q.stretch)
        hidden = self.decoder.together(x, e.visits, q.stretch, number, self._sees(e, q))
        total, above = e.state.new_zeros(len(target)), torch.zeros_like(target)
        for level in range(1, self.levels + 1):
            logits = self.logits(level, hidden[:, level - 1], above, torch.cat([e.state, e.place], dim=1))
            starts, stops = tree.starts[level - 1][above], tree.starts[level - 1][above + 1]
            own = logits.gather(1, codes[:, level - 1 : level]).squeeze(1)
            total = total + own - trie_logsumexp_unchecked(logits, starts, stops, tree.codes[level - 1])
            above = node[:, level - 1].clamp(min=0)
        of, at = segment_rows_unchecked(tree.starts[-1][above], tree.starts[-1][above + 1])
        items = tree.items[at]
        logits = self._last_mile(of, items, e.state, e.place)
        own = torch.zeros_like(total).index_add(0, of, logits * (items == target[of]))
        total = total + own - segment_logsumexp(logits, of, len(target))
        return total.masked_fill(node[:, 0] < 0, -torch.inf)

    def _sees(self, e: Encoded, q: Questions) -> Tensor:
        """Which rows of the visits each target's decoder looks at: that for nothing, and the last ones, bool [B, M]."""
        row = torch.arange(e.visits.shape[1], device=e.visits.device)
        return (row == 0) | ((row <= q.seen[:, None]) & (row > q.seen[:, None] - self.config.memory))

    def logits(self, level: int, hidden: Tensor, nodes: Tensor, about: Tensor | None) -> Tensor:
        """Of the codes of a level: the decoder's, and what place and popularity of the nodes they lead to are worth.

        Args:
            level: 1 to L.
            hidden: [n, d].
            nodes: of the level above, in the whole tree, int64 [n]; at level 1 zeros.
            about: state and place of the nodes' requests, [n, d + 3].
        """
        assert about is not None
        logits: Tensor = self.head[level - 1](hidden)
        of, at = segment_rows_unchecked(self.tree.starts[level - 1][nodes], self.tree.starts[level - 1][nodes + 1])
        more = worth(about[:, -3:], self._weights(level - 1, about[:, :-3]), of, self.tree.facts[level - 1][at])
        return logits.index_put((of, self.tree.codes[level - 1][at]), more, accumulate=True)

    def _last_mile(self, of: Tensor, items: Tensor, state: Tensor, place: Tensor) -> Tensor:
        """Logits [n] of catalog rows [n] among those that share their codes, of requests ``of`` [n] of [B]."""
        return worth(place, self._weights(self.levels, state), of, self.tree.facts[-1][items])

    def _weights(self, level: int, state: Tensor) -> Tensor:
        own = slice(level * FEATURES, (level + 1) * FEATURES)
        return F.linear(state, self.worth.weight[own], self.worth.bias[own])

    def embed(self, level: int, codes: Tensor) -> Tensor:
        """What the decoder takes for codes of a level, int [n] to [n, d]."""
        found: Tensor = self.code[level - 1](codes.long() + 1)
        return found

    # --- lists ------------------------------------------------------------------------------------------------------

    def memory(self, e: Encoded, q: Questions) -> Memory:
        """For ``decoding.score`` and ``beam``: a row that stands for nothing, then the visits, the newest last."""
        sees = self._sees(e, q)
        offsets = F.pad(sees.sum(1).cumsum(0), (1, 0))
        return Memory(e.visits[q.stretch][sees], offsets, e.state, torch.cat([e.state, e.place], dim=1))

    @torch.no_grad()
    def score(
        self, q: Questions, rows: Tensor, users: Tensor, index: Index | None = None, allowed: Allowed | None = None
    ) -> Tensor:
        """Exact log p of every allowed item, as ``decoding.score`` returns them, on the host.

        Args:
            q, rows, users: as for ``encode``.
            index: what the columns are in the order of, without ``allowed``; default: the model's own.
            allowed: items of each request; None: all.
        """
        index = self.index if index is None else index
        e = self.encode(q, rows, users)
        return self._scored(e, self.memory(e, q), index, allowed)

    def _scored(self, e: Encoded, memory: Memory, index: Index, allowed: Allowed | None) -> Tensor:
        generated = score(self, memory, index, allowed, partial(self._mile, e))
        if allowed is None:
            allowed = everything(index.items, len(e.gate))
        allowed = allowed.to(generated.device)
        found = _mixed(e.gate[allowed.requests], self._copied(e, allowed), generated.flatten())
        return found.view_as(generated).cpu()

    def _mile(self, e: Encoded, of: Tensor, items: Tensor) -> Tensor:
        return self._last_mile(of, items, e.state, e.place)

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
        """The k best of what beams generate and what may be copied, by exact log p.

        p = g p_copy + (1 - g) p_gen is (1 - g) p_gen where nothing is copied, so the k best of all are among what may
        be copied and the k best generated: where beams find these, as those for all allowed semantic IDs do, the lists
        are ``decoding.best`` of ``score``.

        Args:
            q, rows, users: as for ``encode``.
            index, allowed: as for ``score``.
            beams, k: as for ``decoding.beam``.
        """
        index = self.index if index is None else index
        e = self.encode(q, rows, users)
        memory = self.memory(e, q)
        made = beam(self, memory, index, allowed, beams=beams, k=k, last_mile=partial(self._mile, e))
        wide = len(self.facts.codes)
        of_visits = torch.arange(len(e.copied_items))[:, None] * wide + e.copied_items.cpu()
        copied = of_visits[e.copied_items.cpu() > 0].unique()
        if allowed is None:
            copied = copied[torch.isin(copied % wide, torch.from_numpy(index.items).long())]
        else:
            copied = copied[torch.isin(copied, allowed.requests * wide + allowed.items)]
        both = torch.cat([torch.repeat_interleave(made.offsets.diff()) * wide + made.items, copied]).unique()
        counts = torch.bincount(both // wide, minlength=len(memory.first))
        candidates = Allowed(F.pad(counts.cumsum(0), (1, 0)), both % wide)
        return best(self._scored(e, memory, index, candidates), candidates, k)

    def _copied(self, e: Encoded, allowed: Allowed) -> Tensor:
        """p_copy of allowed items, [T]."""
        items = len(self.facts.codes)
        keys, which = (
            (torch.arange(len(e.copied), device=e.copied.device)[:, None] * items + e.copied_items)
            .flatten()
            .unique(return_inverse=True)
        )
        p = e.copied.new_zeros(len(keys)).index_add(0, which, e.copied.flatten())
        wanted = allowed.requests * items + allowed.items
        at = torch.searchsorted(keys, wanted).clamp(max=max(len(keys) - 1, 0))
        return p[at] * (keys[at] == wanted) if len(keys) else p.new_zeros(len(wanted))


def _mixed(gate: Tensor, copied: Tensor, generated: Tensor) -> Tensor:
    """log(g p_copy + (1 - g) p_gen) of the gate's logs [B, 2], p_copy [B] and log p_gen [B]."""
    generated = gate[:, 1] + generated
    top = generated.detach().clamp(min=-60.0)  # e^-60 of 1 is nothing, and its inverse is a float32 still
    p = gate[:, 0].exp() * copied * (-top).exp() + (generated - top).exp()
    dead = p == 0
    return (top + p.masked_fill(dead, 1.0).log()).masked_fill(dead, -torch.inf)
