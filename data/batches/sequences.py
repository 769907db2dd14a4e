"""Users' visits as sequences: what generative rankers learn from, and what they are asked.

A **target** is a visit that is to be predicted. It sees the user's visits strictly before its moment and nothing else:
those of the same moment are not seen. A **stretch** is a run of one user's visits, in time order, that one or more
targets look back on, so that one pass of a causal encoder over it serves all of them:

    visits of the stretch   a b c d e f g          offsets[s] to offsets[s + 1]
    targets                       d     g h        seen = 3, 6, 7: how many visits of the stretch each may see

Target t sees visits ``offsets[stretch[t]]`` to ``offsets[stretch[t]] + seen[t] - 1``. With ``together=1`` each target
has a stretch of its own, which ends where its knowledge does: that is one target with its last visits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..arrays import first_of_run, ranges, starts_run
from ..requests import OF_USER, OF_VISITS, OFFSET, SEQUENCES, SPLITS, Lists, Sequences, sequences_to_read
from ..urls import place
from .line_loader import LineLoader, RowGroups, visit_groups

Ints = NDArray[np.int64]
ALL = 1 << 40
"""Visits to look back on: no window."""


@dataclass
class SequenceBatch:
    """Stretches of visits [S], their visits [T], and targets [B]; of the targets of a stretch each is later.

    Attributes:
        offsets: visits of stretch s are offsets[s] to offsets[s+1], int64 [S+1].
        item: rows of the visited items, int64 [T].
        time: unix seconds of the visits, int64 [T].
        utc_offset: minutes east of UTC where and when each visit was, NaN = unknown, float32 [T].
        user: row of each stretch's user in the user table, 0 = out of vocabulary, int64 [S].
        user_index: the same over all users, int64 [S].
        stretch: which one each target looks back on, int64 [B].
        seen: how many of its visits are strictly before the target, int64 [B].
        target: row of the item that was visited, int64 [B].
        target_time: unix seconds, int64 [B].
        lat, lon: place of the request in degrees, NaN = unknown, float32 [B].
        target_offset: of the request, as ``utc_offset``, float32 [B].
        visits: the user's visits of that item strictly before, int32 [B].
        request: in the samples of the same folder; -1 = it has none there, int64 [B].
        valid: the first so many targets count, see ``LineLoader``.
    """

    offsets: Tensor
    item: Tensor
    time: Tensor
    utc_offset: Tensor
    user: Tensor
    user_index: Tensor
    stretch: Tensor
    seen: Tensor
    target: Tensor
    target_time: Tensor
    lat: Tensor
    lon: Tensor
    target_offset: Tensor
    visits: Tensor
    request: Tensor
    valid: int

    def __len__(self) -> int:
        return len(self.target)

    def last(self, longest: int) -> tuple[Tensor, Tensor]:
        """The last visits that each target sees.

        Args:
            longest: at most so many a target.

        Returns:
            offsets int64 [B+1], and which of the visits, int64 [N]: those of target t, oldest first, are
            at[offsets[t]] to at[offsets[t+1]].
        """
        length = self.seen.clamp(max=longest)
        end = self.offsets[self.stretch] + self.seen
        at = ranges((end - length).numpy(), length.numpy())
        return torch.cat([length.new_zeros(1), length.cumsum(0)]), torch.from_numpy(at)

    def trimmed(self, history: int) -> Self:
        """The same targets on stretches that begin ``history`` visits before the first of theirs, at most."""
        length = self.offsets.diff()
        low = torch.full_like(length, ALL).scatter_reduce(0, self.stretch, self.seen, "amin")
        low = torch.minimum((low - history).clamp(min=0), length)
        length = length - low
        at = torch.from_numpy(ranges((self.offsets[:-1] + low).numpy(), length.numpy()))
        return replace(
            self,
            offsets=torch.cat([length.new_zeros(1), length.cumsum(0)]),
            item=self.item[at],
            time=self.time[at],
            utc_offset=self.utc_offset[at],
            seen=self.seen - low[self.stretch],
        )


@dataclass
class Stretches:
    """What a batch is made of, as arrays.

    Attributes:
        flat: ``OF_USER`` by name, [S].
        visits: item_row, time.
        targets: columns of the targets, and ``seen``.
    """

    flat: dict[str, NDArray[Any]]
    visits: Lists
    targets: Lists

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        flat = {name: np.concatenate([p.flat[name] for p in parts]) for name in parts[0].flat}
        return cls(flat, Lists.join([p.visits for p in parts]), Lists.join([p.targets for p in parts]))


class TargetRuns:
    """Users in memory, and the visits of one split in them, in runs of at most so many of a user.

    Args:
        users: whole sequences.
        split: number of the split.
        history: visits before the first target of a stretch, at most.
        together: targets of a run, at most.
    """

    def __init__(self, users: Sequences, split: int, history: int, together: int) -> None:
        self.users, self.history = users, history
        offsets, columns = users.visits.offsets, users.visits.values
        user = np.repeat(np.arange(len(users)), np.diff(offsets))
        # where each moment begins: what comes before it is what is seen
        self.seen = first_of_run(starts_run(user, columns["time"]))
        wanted = np.flatnonzero(columns["split"] == split)  # of a user they follow each other
        first = np.flatnonzero(starts_run(user[wanted]))
        many = np.diff(first, append=len(wanted))
        runs = -(-many // together)
        of, number = np.repeat(np.arange(len(first)), runs), ranges(np.zeros_like(runs), runs)
        self.start: Ints = wanted[first][of] + number * together
        self._sizes: Ints = np.minimum(together, many[of] - number * together)
        self.user: Ints = user[wanted][first][of]

    @property
    def sizes(self) -> Ints:
        """Targets of each run, [U]."""
        return self._sizes

    def take(self, rows: Ints, skip: int, count: int) -> Stretches:
        """Stretches of some runs; of their targets laid end to end ``count``, after the first ``skip``."""
        before = np.cumsum(self._sizes[rows]) - self._sizes[rows]
        first, last = (np.clip(at - before, 0, self._sizes[rows]) for at in (skip, skip + count))
        start, length, user = self.start[rows] + first, last - first, self.user[rows]
        low = np.maximum(self.seen[start] - self.history, self.users.visits.offsets[user])
        context = self.seen[start + length - 1] - low
        columns = self.users.visits.values
        visits, targets = ranges(low, context), ranges(start, length)
        return Stretches(
            {name: self.users.flat[name][user] for name in OF_USER},
            Lists(_offsets(context), {name: columns[name][visits] for name in ("item_row", "time", OFFSET)}),
            Lists(
                _offsets(length),
                {name: columns[name][targets] for name in OF_VISITS if name != "split"}
                | {"seen": self.seen[targets] - np.repeat(low, length)},
            ),
        )


def _offsets(length: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(length)])


class SequenceLoader(LineLoader[Stretches, SequenceBatch]):
    """Batches of the targets of one split, for one rank, as ``LineLoader`` deals them.

    All visits of the split are targets, those too that have no samples. The unit that stays together is a run of a
    user's targets. Visits of earlier splits, and those of earlier days, are seen and are no targets.

    A batch holds at most ``history`` visits for each stretch and one for each target. Each target sees its last
    ``history`` visits, or all where there are fewer; later ones of a stretch see more, back to where it begins.

    Args:
        folder: a prepared folder.
        split: "train", "valid" or "test".
        batch_size: targets a batch, on each rank.
        history: visits that a target sees at least, where there are as many.
        together: at most so many targets of a user share a stretch; 1: each has its own.
        rank, world_size: this rank and how many there are.
        seed: decides the shuffled order.
        shuffle: training or evaluation, see ``LineLoader``.
        prefetch: batches that a background thread reads ahead; 0 reads in the caller's thread.

    Raises:
        FileNotFoundError, ValueError: the folder is not whole, has no sequences or no such split, or a file is damaged.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        batch_size: int,
        *,
        history: int = 50,
        together: int = 256,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = False,
        prefetch: int = 8,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
        for name, value in (("history", history), ("together", together)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        self.split, self.history, self.together = SPLITS.index(split), history, together
        known = visit_groups(place(folder))
        of_split = {file: [group[self.split] for group in groups] for file, groups in known.items()}
        self._groups = RowGroups(place(folder) / SEQUENCES, of_split)
        about = f"{folder}: the {split} split"
        if not self._groups.sizes:
            raise ValueError(f"{about} has no visits; prepare with a fraction for it")
        super().__init__(
            about, self._groups.sizes, batch_size,
            rank=rank, world_size=world_size, seed=seed, shuffle=shuffle, prefetch=prefetch,
        )  # fmt: skip

    def _read(self, groups: Ints) -> TargetRuns:
        parts = []
        for found in self._groups.read(groups, sequences_to_read):
            with found.named():
                users = Sequences.of_table(found.table)
            found.check(int((users.visits.values["split"] == self.split).sum()), "visits")
            parts.append(users)
        return TargetRuns(Sequences.join(parts), self.split, self.history, self.together)

    def _batch(self, parts: list[Stretches], valid: int) -> SequenceBatch:
        found = Stretches.join(parts)
        visits, targets = found.visits.values, found.targets.values

        def whole(x: NDArray[Any]) -> Tensor:
            return torch.from_numpy(x.astype(np.int64, copy=False))

        return SequenceBatch(
            offsets=whole(found.visits.offsets),
            item=whole(visits["item_row"]),
            time=whole(visits["time"]),
            utc_offset=torch.from_numpy(visits[OFFSET]),
            user=whole(found.flat["user_row"]),
            user_index=whole(found.flat["user_index"]),
            stretch=whole(np.repeat(np.arange(len(found.flat["user_row"])), np.diff(found.targets.offsets))),
            seen=whole(targets["seen"]),
            target=whole(targets["item_row"]),
            target_time=whole(targets["time"]),
            lat=torch.from_numpy(targets["lat"]),
            lon=torch.from_numpy(targets["lon"]),
            target_offset=torch.from_numpy(targets[OFFSET]),
            visits=torch.from_numpy(targets["visits"]),
            request=whole(targets["request"]),
            valid=valid,
        )


def read_users(folder: Path, user_rows: Ints) -> Sequences:
    """Whole sequences of some users of the vocabulary, each once, by user row.

    Args:
        folder: a prepared folder.
        user_rows: rows of the user table; 0, who is not in the vocabulary, has none.

    Raises:
        FileNotFoundError, ValueError: as ``SequenceLoader``.
    """
    known = visit_groups(place(folder))
    groups = RowGroups(place(folder) / SEQUENCES, {f: [sum(x) for x in of_file] for f, of_file in known.items()})
    wanted = np.unique(user_rows[user_rows > 0])
    parts = []
    for found in groups.read(range(len(groups.sizes)), sequences_to_read):
        with found.named():
            users = Sequences.of_table(found.table)
        found.check(int((users.visits.values["split"] >= 0).sum()), "visits")
        parts.append(users.take(np.flatnonzero(np.isin(users.flat["user_row"], wanted))))
    users = Sequences.join(parts)
    return users.take(np.argsort(users.flat["user_row"]))


def ask(
    users: Sequences,
    user_row: Ints,
    time: Ints,
    lat: NDArray[np.float32],
    lon: NDArray[np.float32],
    history: int,
    utc_offset: NDArray[np.float32] | None = None,
) -> SequenceBatch:
    """Requests as a batch whose targets nobody knows: each looks back on its user's last visits before its moment.

    Args:
        users: of ``read_users``; who is not there has no visits.
        user_row: of the requests, [B].
        time: of the requests, unix seconds, int64 [B].
        lat, lon: of the requests in degrees, NaN = unknown, [B].
        history: visits of a request, at most.
        utc_offset: of the requests, minutes east of UTC, NaN = unknown, [B]; None: of all.
    """
    rows, visits = users.flat["user_row"], users.visits
    at = np.searchsorted(rows, user_row)
    there = at < len(rows)
    there[there] = (rows[at[there]] == user_row[there]) & (user_row[there] > 0)
    first, last = np.zeros_like(time), np.zeros_like(time)
    for b in np.flatnonzero(there):
        low, high = visits.offsets[at[b] : at[b] + 2]
        last[b] = low + np.searchsorted(visits.values["time"][low:high], time[b])
        first[b] = max(low, last[b] - history)
    seen = last - first
    mine = ranges(first, seen)

    def whole(x: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.asarray(x).astype(np.int64, copy=False))

    nobody = np.full(len(time), -1)
    index = np.where(there, users.flat["user_index"][np.where(there, at, 0)], -1) if len(rows) else nobody
    return SequenceBatch(
        offsets=whole(_offsets(seen)),
        item=whole(visits.values["item_row"][mine]),
        time=whole(visits.values["time"][mine]),
        utc_offset=torch.from_numpy(visits.values[OFFSET][mine]),
        user=whole(user_row),
        user_index=whole(index),
        stretch=torch.arange(len(time)),
        seen=whole(seen),
        target=torch.zeros(len(time), dtype=torch.int64),
        target_time=whole(time),
        lat=torch.from_numpy(lat),
        lon=torch.from_numpy(lon),
        target_offset=torch.from_numpy(np.full(len(time), np.nan, np.float32) if utc_offset is None else utc_offset),
        visits=torch.zeros(len(time), dtype=torch.int32),
        request=whole(nobody),
        valid=len(time),
    )


def sessions(stretch: Tensor, time: Tensor, gap_hours: float) -> Tensor:
    """Numbers the sessions of visits or targets: one ends where the user does nothing for longer than the gap.

    Args:
        stretch: of each, rising, int64 [N]; a session lies in one.
        time: unix seconds, rising within a stretch, int64 [N].
        gap_hours: 0 < gap; what follows within it is the same session.

    Returns:
        Number of the session, from 0, int64 [N].
    """
    if not gap_hours > 0:
        raise ValueError(f"gap_hours={gap_hours}: expected more than 0")
    return _numbered(len(time), (stretch.diff() != 0) | (time.diff() > gap_hours * 3600))


def sessions_by_request(stretch: Tensor, request: Tensor) -> Tensor:
    """As ``sessions``, but what was chosen in one request is a session; of those without one (-1) each is its own."""
    return _numbered(len(request), (stretch.diff() != 0) | (request.diff() != 0) | (request[1:] < 0))


def _numbered(rows: int, new: Tensor) -> Tensor:
    """Where a row after the first begins something new, [max(rows - 1, 0)]."""
    number = torch.zeros(rows, dtype=torch.int64, device=new.device)
    number[1:] = new.cumsum(0)
    return number
