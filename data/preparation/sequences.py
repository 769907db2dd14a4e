"""Users' whole sequences as files, a row a user: samples hold the last visits before each request alone."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..arrays import starts_run
from ..requests import ENCODING_OF_SEQUENCES, SPLITS, Lists, Sequences
from .samples import Positives, row_groups

_FILE = "part-{:05d}.parquet"


def sequences_of(
    p: Positives, starts: NDArray[np.int64], user_row: NDArray[np.int32], users: int, requests: int
) -> Sequences:
    """Positives by user.

    Args:
        p: of whole users, sorted by user and time.
        starts: first moment of the validation and of the test split.
        user_row: vocabulary row of each user of the bucket.
        users, requests: how many came before this bucket.
    """
    new = np.flatnonzero(starts_run(p.user))
    of = p.user[new]
    columns: dict[str, NDArray[Any]] = {
        "item_row": p.item + np.int32(1),
        "time": p.time,
        "lat": p.lat,
        "lon": p.lon,
        "visits": p.visits,
        "split": np.searchsorted(starts, p.time, "right").astype(np.int8),
        "request": np.where(p.request < 0, -1, p.request + requests),
    }
    return Sequences(
        {"user_row": user_row[of], "user_index": of.astype(np.int64) + users},
        Lists(np.append(new, len(p.user)), columns),
    )


@dataclass
class SequenceWriter:
    """Writes the sequences of a bucket: one file, in row groups of whole users.

    A row group has at most ``row_group_rows`` visits; a user with more has one of their own.

    Attributes:
        row_groups: by file, for each row group the visits in each of ``SPLITS``.
    """

    folder: Path
    row_group_rows: int
    users: int = 0
    row_groups: dict[str, list[list[int]]] = field(default_factory=dict)
    _pending: list[Sequences] = field(default_factory=list)
    _waiting: int = 0  # visits of those
    _writer: pq.ParquetWriter | None = None

    def write(
        self, p: Positives, starts: NDArray[np.int64], user_row: NDArray[np.int32], users: int, requests: int
    ) -> None:
        """Append users; see ``sequences_of``."""
        if len(p.user) == 0:
            return
        self._pending.append(sequences_of(p, starts, user_row, users, requests))
        self._waiting += len(p.user)
        if self._waiting >= self.row_group_rows:
            self._flush(last=False)

    def _flush(self, last: bool) -> None:
        waiting = Sequences.join(self._pending)
        visits = np.diff(waiting.visits.offsets)
        takes = row_groups(visits, self.row_group_rows)
        if last and (rest := len(waiting) - sum(takes)):
            takes.append(rest)
        done = 0
        for users in takes:
            self._write_group(waiting.take(np.arange(done, done + users)))
            done += users
        self._pending = [waiting.take(np.arange(done, len(waiting)))] if done < len(waiting) else []
        self._waiting = int(visits[done:].sum())

    def _write_group(self, group: Sequences) -> None:
        table = group.table()
        name = _FILE.format(0)
        if self._writer is None:
            self.folder.mkdir(exist_ok=True)
            self._writer = pq.ParquetWriter(self.folder / name, table.schema, **ENCODING_OF_SEQUENCES)
        self._writer.write_table(table, row_group_size=len(table))
        self.users += len(group)
        of_split = np.bincount(group.visits.values["split"], minlength=len(SPLITS))
        self.row_groups.setdefault(name, []).append(of_split.tolist())

    def close(self) -> None:
        """Write what is left; the bucket is whole after this."""
        if self._pending:
            self._flush(last=True)
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def take_over(self, piece: "SequenceWriter") -> None:
        """Let the file of a bucket be the next one."""
        self.users += piece.users
        for file, groups in piece.row_groups.items():
            self.folder.mkdir(exist_ok=True)
            name = _FILE.format(len(self.row_groups))
            os.rename(piece.folder / file, self.folder / name)
            self.row_groups[name] = groups

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        visits = sum(sum(group) for groups in self.row_groups.values() for group in groups)
        return {"users": self.users, "visits": visits, "row_groups": self.row_groups}
