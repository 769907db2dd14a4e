"""Files of samples: one split's requests in full row groups, and what is counted of them."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..requests import ENCODING, Requests

_GROUPS_PER_FILE = 16


def row_groups(candidates: NDArray[np.int64], most: int) -> list[int]:
    """How many requests each row group takes, in their order: as many as have ``most`` candidates together, at least
    one; what is left at the end, which more requests may follow, is in none.

    Args:
        candidates: of each request, [R].
        most: at most so many a group, unless one request has more.
    """
    upto = np.concatenate([[0], np.cumsum(candidates)])
    taken, first = [], 0
    while upto[-1] - upto[first] >= most:
        stop = max(int(np.searchsorted(upto, upto[first] + most, "right")) - 1, first + 1)
        taken.append(stop - first)
        first = stop
    return taken


@dataclass
class SplitWriter:
    """Writes the shards of one split: full row groups, so many to a file, and counts what it wrote.

    A row group has at most ``row_group_rows`` candidates, and whole requests: one with more than that has its own.
    ``placed`` are the requests with a known place, ``history`` the visits in the candidates' histories.
    """

    folder: Path
    row_group_rows: int
    rows: int = 0
    requests: int = 0
    placed: int = 0
    positives: int = 0
    history: int = 0
    first: int | None = None
    last: int | None = None
    row_groups: dict[str, list[int]] = field(default_factory=dict)
    _files: int = 0
    _groups: int = 0
    _pending: list[Requests] = field(default_factory=list)
    _waiting: int = 0  # candidates of those
    _writer: pq.ParquetWriter | None = None

    def write(self, more: Requests) -> None:
        """Append requests, each with at least one candidate."""
        if len(more) == 0:
            return
        candidates, history = np.diff(more.candidates.offsets), np.diff(more.history.offsets)
        time = more.flat["time"]
        self.rows += int(candidates.sum())
        self.requests += len(more)
        self.placed += int((~np.isnan(more.flat["lat"])).sum())
        self.positives += int(more.candidates.values["label"].sum())
        self.history += int((candidates * history).sum())
        self.first = int(time.min()) if self.first is None else min(self.first, int(time.min()))
        self.last = int(time.max()) if self.last is None else max(self.last, int(time.max()))
        self._pending.append(more)
        self._waiting += int(candidates.sum())
        self._flush(last=False)

    def _flush(self, last: bool) -> None:
        if not self._pending or not (last or self._waiting >= self.row_group_rows):
            return
        waiting = Requests.join(self._pending)
        candidates = np.diff(waiting.candidates.offsets)
        takes = row_groups(candidates, self.row_group_rows)
        done = sum(takes)
        if last and done < len(waiting):
            takes.append(len(waiting) - done)
        done = 0
        for requests in takes:
            self._write_group(waiting.take(np.arange(done, done + requests)))
            done += requests
        self._pending = [waiting.take(np.arange(done, len(waiting)))] if done < len(waiting) else []
        self._waiting = int(candidates[done:].sum())

    def _write_group(self, group: Requests) -> None:
        table = group.table()
        if self._writer is None:
            self.folder.mkdir(exist_ok=True)
            name = f"part-{self._files:05d}.parquet"
            self.row_groups[name] = []
            self._writer = pq.ParquetWriter(self.folder / name, table.schema, **ENCODING)
            self._files += 1
        self._writer.write_table(table, row_group_size=len(table))
        self.row_groups[f"part-{self._files - 1:05d}.parquet"].append(int(group.candidates.offsets[-1]))
        self._groups += 1
        if self._groups % _GROUPS_PER_FILE == 0:
            self._close_file()

    def _close_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def close(self) -> None:
        """Write what is left; the split is whole after this."""
        self._flush(last=True)
        self._close_file()

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
        for file, groups in piece.row_groups.items():
            self.folder.mkdir(exist_ok=True)
            name = f"part-{len(self.row_groups):05d}.parquet"
            os.rename(piece.folder / file, self.folder / name)
            self.row_groups[name] = groups
