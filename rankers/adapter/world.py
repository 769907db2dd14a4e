"""What teacher and student learn from: a prepared folder's catalog, and questions with answers made of its visits."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from ...data.batches.sequences import ALL, SequenceBatch, SequenceLoader
from ...data.raw.hours import OPENING_HOURS
from ...data.urls import fetched
from ..generative.reach import minute_of_week
from .facts import Clause, Known, clauses, lifts, reference, sentences
from .inputs import Places, Requests
from .language import trained_tokenizer
from .queries import NEXT, drawn_explain, drawn_recommend, every, line

EACH = 8
"""Places of each kind that a visited one is compared with: the user's own, near ones, any; each drawn evenly."""
NEAR = 32
BLOCK = 32
"""Batches whose visits are sorted by the length of their history together."""
CATALOG = ("item_id", "name", "category", "brand", "lat", "lon", "positives", OPENING_HOURS)
"""What is kept of it."""


def read_catalog(prepared: Path) -> pa.Table:
    """What an adapter needs of a prepared folder's catalog [I]."""
    file = fetched(prepared / "catalog.parquet")
    return pq.read_table(file, columns=[c for c in CATALOG if c in pq.read_schema(file).names]).combine_chunks()


@dataclass(frozen=True)
class Asking:
    """Visits as they are asked for, B of them.

    Attributes:
        q: the requests.
        target: catalog rows, int64 [B].
        visited: all rows before each, oldest first.
        place: of each request in degrees, None where it has none.
        minute: of the week at the request; None where its offset from UTC is unknown.
    """

    q: Requests
    target: Tensor
    visited: list[list[int]]
    place: list[tuple[float, float] | None]
    minute: list[int | None]

    @classmethod
    def of(cls, batch: SequenceBatch, places: Places, history: int) -> "Asking":
        """Of a loader's batch, which sees all visits, in stretches of one target each."""
        rows, starts = batch.item.tolist(), batch.offsets[batch.stretch].tolist()
        visited = [rows[at : at + n] for at, n in zip(starts, batch.seen.tolist(), strict=True)]
        at = zip(batch.lat.double().tolist(), batch.lon.double().tolist(), strict=True)
        local = batch.target_time + (batch.target_offset.nan_to_num(0) * 60).long()
        known = zip(minute_of_week(local).tolist(), batch.target_offset.isnan().tolist(), strict=True)
        return cls(
            Requests.of_batch(batch, places, history),
            batch.target,
            visited,
            [None if a != a or b != b else (a, b) for a, b in at],
            [None if lacks else minute for minute, lacks in known],
        )

    def some(self, rows: Tensor) -> "Asking":
        """Of these, int64 [N]; as few columns of visits as they need."""
        pick = lambda x: [x[i] for i in rows.tolist()]  # noqa: E731
        lists = (pick(x) for x in (self.visited, self.place, self.minute))
        return Asking(self.q.some(rows).trimmed(), self.target[rows], *lists)


@dataclass(frozen=True)
class Lesson:
    """One step: questions, and what is to be answered.

    Attributes:
        asking: the visits.
        questions: a line each, [B].
        candidates: the visited place, then others, int64 [B, 1 + N].
        log_q: of how often each of the others is drawn on average, float [B, N]; inf for one that does not count.
        why: whose reasons are learned, int64 [G].
        whys, reasons: the question for each, and the sentence.
        routed, intents: questions, and what is wanted: 0 recommend, 1 explain.
    """

    asking: Asking
    questions: list[str]
    candidates: Tensor
    log_q: Tensor
    why: Tensor
    whys: list[str]
    reasons: list[str]
    routed: list[str]
    intents: Tensor


class World:
    """A prepared folder, as lessons.

    Args:
        prepared: the folder.
        history: visits that are attended to.
    """

    def __init__(self, prepared: Path, history: int) -> None:
        self.prepared, self.history = prepared, history
        self.catalog = read_catalog(prepared)
        self.places, self.known = Places.of_catalog(self.catalog), Known.of_catalog(self.catalog)
        self.names = self.catalog["name"].cast(pa.string()).to_pylist()
        self.paths = [[x for x in path or [] if x] for path in self.catalog["category"].to_pylist()]
        self._near = _neighbours(self.places.point.numpy())
        self.lifts: dict[str, float] = {}

    @cached_property
    def tokenizer(self) -> Any:
        """Of these places' texts, for language models that are made here."""
        return trained_tokenizer(self._texts())

    def _texts(self) -> Iterator[str]:
        """Names, questions at all hours, and sentences."""
        yield from self.places.texts
        yield from every()
        for hour in range(7 * 24):
            yield line(NEXT, hour * 3600)
        rng = np.random.default_rng(0)
        for row in rng.integers(1, len(self.places), 200).tolist():
            visited = rng.integers(1, len(self.places), rng.integers(1, 50)).tolist() + [row] * int(rng.integers(0, 20))
            start = (self.known.lat[row] + rng.normal(0, 0.05), self.known.lon[row] + rng.normal(0, 0.05))
            place = None if rng.random() < 0.5 or start[0] != start[0] or abs(start[0]) > 90 else start
            yield from sentences(clauses(self.known, row, visited, place, 0))

    def loader(self, split: str, visits: int, seed: int, shuffle: bool) -> SequenceLoader:
        """Of so many visits at a time, each with all before it."""
        return SequenceLoader(
            self.prepared, split, visits, history=ALL, together=1, seed=seed, shuffle=shuffle, prefetch=2
        )

    def asking(self, batch: SequenceBatch) -> Asking:
        """A loader's batch."""
        return Asking.of(batch, self.places, self.history)

    def true(self, a: Asking, i: int, row: int) -> list[Clause]:
        """Clauses about a place for the i-th."""
        return clauses(self.known, row, a.visited[i], a.place[i], a.minute[i])

    def learn_lifts(self, a: Asking, seed: int) -> None:
        """How much clauses tell visited places from others, of some visits."""
        candidates, log_q = self.others(a, np.random.default_rng([seed, 1]))
        of_visited, of_others, others = Counter[str](), Counter[str](), 0
        for i, (row, *rest) in enumerate(candidates.tolist()):
            of_visited.update({c.bucket for c in self.true(a, i, row)})
            for other, drawn in zip(rest[::4], log_q[i, ::4].tolist(), strict=True):
                if drawn < np.inf:
                    of_others.update({c.bucket for c in self.true(a, i, other)})
                    others += 1
        self.lifts = lifts(of_visited, of_others, len(candidates), others)

    def others(self, a: Asking, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Each visited place and ``3 EACH`` others, int64 [B, 1 + N], and the others' ``log_q``, float [B, N]."""
        target, length = a.target.numpy(), a.q.seen.sum(1).numpy()
        shape = (len(target), EACH)
        own, mine, distinct = np.zeros(shape, np.int64), a.q.item.numpy(), np.ones(len(target))
        for i, visited in enumerate(mine):
            if length[i]:
                places = np.unique(visited[: length[i]])
                own[i], distinct[i] = rng.choice(places, EACH), len(places)
        last = np.array([visited[-1] if visited else row for visited, row in zip(a.visited, target, strict=True)])
        around = np.concatenate([self._near[target], self._near[last]], axis=1)  # where it is, and where it is asked
        near = np.take_along_axis(around, rng.integers(0, around.shape[1], shape), 1)
        others = np.concatenate([own, near, rng.integers(1, len(self.places), shape)], axis=1)
        q = EACH / (len(self.places) - 1) + EACH * (others[:, :, None] == around[:, None]).mean(2)
        q += EACH * (others[:, :, None] == mine[:, None]).any(2) / distinct[:, None]
        log_q = np.where((others > 0) & (others != target[:, None]), np.log(q), np.inf)
        return torch.from_numpy(np.concatenate([target[:, None], others], axis=1)), torch.from_numpy(log_q).float()

    def lesson(self, a: Asking, reasons: int, rng: np.random.Generator) -> Lesson:
        """What is asked about these visits, drawn."""
        local, targets = a.q.local.tolist(), a.target.tolist()
        questions = [line(drawn_recommend(rng, self.paths[t]), s) for t, s in zip(targets, local, strict=True)]
        why = np.sort(rng.permutation(len(targets))[:reasons]).tolist()
        whys = [line(drawn_explain(rng, self.names[targets[i]]), local[i]) for i in why]
        told = [reference(self.true(a, i, targets[i]), self.lifts) for i in why]
        routed = [questions[i] for i in why] + whys
        intents = torch.arange(2).repeat_interleave(len(why))
        return Lesson(a, questions, *self.others(a, rng), torch.tensor(why), whys, told, routed, intents)


def by_length(lengths: Tensor, batch_size: int, rng: np.random.Generator) -> list[Tensor]:
    """Rows in batches of about equal lengths, in a drawn order: int64 [batch_size], one of them with what is left."""
    mixed = torch.from_numpy(rng.permutation(len(lengths)))
    ordered = mixed[lengths[mixed].sort(stable=True).indices]
    batches = ordered.split(batch_size)
    return [batches[i] for i in rng.permutation(len(batches)).tolist()]


def _neighbours(point: NDArray[Any]) -> NDArray[np.int64]:
    """Rows of the nearest places of each, [I, NEAR]; 0 where there are fewer, or no place is known."""
    found = np.zeros((len(point), NEAR), np.int64)
    placed = np.flatnonzero(np.isfinite(point).all(1))
    count = min(NEAR, len(placed) - 1)
    if count > 0:
        nearest = cKDTree(point[placed]).query(point[placed], k=count + 1)[1].reshape(len(placed), -1)
        found[placed, :count] = placed[nearest[:, 1:]]  # itself, or one at the very same place
    return found
