"""Files of prepared data: requests of a split, or users' sequences, in full row groups, and what is counted of them."""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..requests import ENCODING, ENCODING_OF_SEQUENCES, SPLITS, Requests, Sequences

_GROUPS_PER_FILE = 16

T = TypeVar("T", Requests, Sequences)
G = TypeVar("G")


def row_groups(sizes: NDArray[np.int64], most: int) -> list[int]:
    """How many units (requests, users) each row group takes, in their order: as many as have ``most`` rows together, at
    least one; what is left at the end, which more may follow, is in none.

    Args:
        sizes: rows of each unit, [U].
        most: at most so many a group, unless one unit has more.
    """
    upto = np.concatenate([[0], np.cumsum(sizes)])
    taken, first = [], 0
    while upto[-1] - upto[first] >= most:
        stop = max(int(np.searchsorted(upto, upto[first] + most, "right")) - 1, first + 1)
        taken.append(stop - first)
        first = stop
    return taken


@dataclass
class GroupWriter(ABC, Generic[T, G]):
    """Writes whole units in row groups of at most ``row_group_rows`` rows, so many groups to a file; a unit with more
    rows has a group of its own.

    Attributes:
        row_groups: by file, what ``_told`` says of each of its row groups.
    """

    encoding: ClassVar[dict[str, Any]]

    folder: Path
    row_group_rows: int
    row_groups: dict[str, list[G]] = field(default_factory=dict)
    _pending: list[T] = field(default_factory=list)
    _waiting: int = 0  # rows of those
    _writer: pq.ParquetWriter | None = None

    @abstractmethod
    def _count(self, more: T) -> None:
        """Add what will be written to what is counted."""

    @abstractmethod
    def _told(self, group: T) -> G:
        """What the manifest says of a row group."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """For the manifest."""

    def write(self, more: T) -> None:
        """Append units, each with at least one row."""
        if len(more) == 0:
            return
        self._count(more)
        self._pending.append(more)
        self._waiting += int(more.sizes.sum())
        if self._waiting >= self.row_group_rows:
            self._flush(last=False)

    def _flush(self, last: bool) -> None:
        waiting = type(self._pending[0]).join(self._pending)
        sizes = waiting.sizes
        takes = row_groups(sizes, self.row_group_rows)
        if last and (rest := len(waiting) - sum(takes)):
            takes.append(rest)
        done = 0
        for units in takes:
            self._write_group(waiting.take(np.arange(done, done + units)))
            done += units
        self._pending = [waiting.take(np.arange(done, len(waiting)))] if done < len(waiting) else []
        self._waiting = int(sizes[done:].sum())

    def _write_group(self, group: T) -> None:
        table = group.table()
        if self._writer is None:
            self.folder.mkdir(exist_ok=True)
            name = f"part-{len(self.row_groups):05d}.parquet"
            self.row_groups[name] = []
            self._writer = pq.ParquetWriter(self.folder / name, table.schema, **self.encoding)
        self._writer.write_table(table, row_group_size=len(table))
        groups = next(reversed(self.row_groups.values()))
        groups.append(self._told(group))
        if len(groups) == _GROUPS_PER_FILE:
            self._close_file()

    def _close_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def close(self) -> None:
        """Write what is left; all is whole after this."""
        if self._pending:
            self._flush(last=True)
        self._close_file()

    def _take_files(self, piece: "GroupWriter[T, G]") -> None:
        for file, groups in piece.row_groups.items():
            self.folder.mkdir(exist_ok=True)
            name = f"part-{len(self.row_groups):05d}.parquet"
            os.rename(piece.folder / file, self.folder / name)
            self.row_groups[name] = groups


@dataclass
class SplitWriter(GroupWriter[Requests, int]):
    """Requests of one split; a row is a candidate.

    ``placed`` are the requests with a known place, ``history`` the visits in the candidates' histories.
    """

    encoding = ENCODING

    rows: int = 0
    requests: int = 0
    placed: int = 0
    positives: int = 0
    history: int = 0
    first: int | None = None
    last: int | None = None

    def _count(self, more: Requests) -> None:
        time = more.flat["time"]
        self.rows += int(more.sizes.sum())
        self.requests += len(more)
        self.placed += int((~np.isnan(more.flat["lat"])).sum())
        self.positives += int(more.candidates.values["label"].sum())
        self.history += int((more.sizes * np.diff(more.history.offsets)).sum())
        self.first = int(time.min()) if self.first is None else min(self.first, int(time.min()))
        self.last = int(time.max()) if self.last is None else max(self.last, int(time.max()))

    def _told(self, group: Requests) -> int:
        return int(group.candidates.offsets[-1])

    def summary(self) -> dict[str, Any]:
        """Of the split, for the manifest: ``rows`` are candidates, and so are the numbers of ``row_groups``."""
        return {
            "rows": self.rows,
            "requests": self.requests,
            "positives": self.positives,
            "mean_history": self.history / max(self.rows, 1),
            "time": [self.first, self.last],
            "row_groups": self.row_groups,
        }

    def take_over(self, piece: "SplitWriter") -> None:
        """Let the files of another writer, which is closed, be the next ones of this split."""
        self.rows += piece.rows
        self.requests += piece.requests
        self.placed += piece.placed
        self.positives += piece.positives
        self.history += piece.history
        times = [t for t in (self.first, self.last, piece.first, piece.last) if t is not None]
        self.first, self.last = min(times, default=None), max(times, default=None)
        self._take_files(piece)


@dataclass
class SequenceWriter(GroupWriter[Sequences, list[int]]):
    """Users' sequences; a row is a visit. Of a row group the manifest has the visits in each of ``SPLITS``."""

    encoding = ENCODING_OF_SEQUENCES

    users: int = 0
    carried: int = 0  # visits of days before

    def _count(self, more: Sequences) -> None:
        self.users += len(more)
        self.carried += int((more.visits.values["split"] < 0).sum())

    def _told(self, group: Sequences) -> list[int]:
        split = group.visits.values["split"]
        found: list[int] = np.bincount(split[split >= 0], minlength=len(SPLITS)).tolist()
        return found

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        visits = sum(sum(group) for groups in self.row_groups.values() for group in groups)
        return {"users": self.users, "visits": visits, "carried": self.carried, "row_groups": self.row_groups}

    def take_over(self, piece: "SequenceWriter") -> None:
        """Let the files of another writer, which is closed, be the next ones."""
        self.users += piece.users
        self.carried += piece.carried
        self._take_files(piece)
