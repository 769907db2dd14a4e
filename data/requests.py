"""The layout of prepared data: of samples a Parquet row is a request, of sequences it is a user.

What is of the request, its user, time, place and history, is written once, however many candidates it has. A user's
sequence is all that the user has chosen, once, in the order in which histories have it. This file alone knows the
columns: ``prepare`` writes them from here, and all who read prepared data read them from here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from . import OWN as OWN
from .arrays import one_array, ranges

Array = NDArray[Any]

SPLITS = ("train", "valid", "test")
OF_REQUEST: dict[str, Any] = {
    "request": np.int64,
    "user_row": np.int32,
    "user_index": np.int64,
    "time": np.int64,
    "lat": np.float32,
    "lon": np.float32,
    "utc_offset": np.float32,
}
OF_HISTORY: dict[str, Any] = {"history": np.int32, "history_hours": np.float32, "history_size": np.int32}
OF_CANDIDATES: dict[str, Any] = {"item_row": np.int32, "label": np.int8, "visits": np.int32, "probability": np.float32}
PROBABILITY, OFFSET = EXTRA = "probability", "utc_offset"
"""Columns of samples that not every source has."""
SIZE = "history_size"
"""Of an entry of a history, how many visits it stands for; there only where they are clusters."""
CLUSTER_VISITS = "cluster_visits"
"""The manifest's word for how many that are at most; not there where each entry is a visit."""
ENCODING: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": ["label.list.element", "visits.list.element"],
    "column_encoding": {
        f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in ("history", "history_hours", "item_row", PROBABILITY)
    },
}
"""How ``pyarrow.parquet.ParquetWriter`` packs the columns."""

SEQUENCES = "sequences"
"""Their folder in a prepared one."""
OF_USER: dict[str, Any] = {"user_row": np.int32, "user_index": np.int64}
OF_VISITS: dict[str, Any] = {
    "item_row": np.int32,
    "time": np.int64,
    "lat": np.float32,
    "lon": np.float32,
    "utc_offset": np.float32,
    "visits": np.int32,
    "split": np.int8,
    "request": np.int64,
}
ENCODING_OF_SEQUENCES: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": [f"{name}.list.element" for name in ("visits", "split", OFFSET)],
    "column_encoding": {"item_row.list.element": "BYTE_STREAM_SPLIT"}
    | {f"{name}.list.element": "DELTA_BINARY_PACKED" for name in ("time", "request")},
}


@dataclass
class Lists:
    """Columns of lists that are equally long in all of them.

    Attributes:
        offsets: list r is entries offsets[r] to offsets[r+1], int64 [R+1], from 0.
        values: by column, [N].
    """

    offsets: NDArray[np.int64]
    values: dict[str, Array]

    def take(self, rows: NDArray[np.int64], skip: int = 0, count: int | None = None) -> Self:
        """The lists of some rows; laid end to end, without the first ``skip`` entries, and then ``count`` of them."""
        start, length = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        if count is not None:
            before = np.cumsum(length) - length
            first, last = (np.clip(at - before, 0, length) for at in (skip, skip + count))
            start, length = start + first, last - first
        at = ranges(start, length)
        return type(self)(np.concatenate([[0], np.cumsum(length)]), {name: x[at] for name, x in self.values.items()})

    @classmethod
    def join(cls, parts: Sequence["Lists"]) -> Self:
        lengths = np.concatenate([np.diff(p.offsets) for p in parts])
        values = {name: np.concatenate([p.values[name] for p in parts]) for name in parts[0].values}
        return cls(np.concatenate([[0], np.cumsum(lengths)]), values)

    def columns(self) -> dict[str, pa.Array]:
        """As Arrow's lists."""
        offsets = self.offsets.astype(np.int32)
        return {name: pa.ListArray.from_arrays(offsets, x) for name, x in self.values.items()}

    @classmethod
    def of_table(cls, table: pa.Table, names: Sequence[str]) -> Self:
        """Reads Arrow's own buffers.

        Raises:
            ValueError: columns that are no lists, or not equally long.
        """
        offsets, values = None, {}
        for name in names:
            column = one_array(table[name])
            if not pa.types.is_list(column.type):
                raise ValueError(
                    f"column {name}: got {column.type}, expected a list a request: samples of an older placerank have "
                    "a row a candidate; prepare the data again"
                )
            ends = column.offsets.to_numpy()
            own = ends.astype(np.int64) - ends[0]
            if offsets is not None and not np.array_equal(own, offsets):
                raise ValueError(
                    f"columns {names[0]} and {name}: got lists of different lengths; prepare the data again"
                )
            offsets, values[name] = own, column.values.to_numpy()[ends[0] : ends[-1]]
        assert offsets is not None
        return cls(offsets, values)


@dataclass
class Requests:
    """Requests as arrays.

    Attributes:
        flat: what is of the request, ``OF_REQUEST`` by name, [R]; the offset (minutes east of UTC, NaN = unknown) where
            the source has it; and columns of one's own.
        history: ``OF_HISTORY``, oldest first; sizes where entries are clusters of visits.
        candidates: ``OF_CANDIDATES``, probability where the source knows it; and columns of one's own.
    """

    flat: dict[str, Array]
    history: Lists
    candidates: Lists

    def __len__(self) -> int:
        return len(self.history.offsets) - 1

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Candidates of each, [R]."""
        return np.diff(self.candidates.offsets)

    def take(self, rows: NDArray[np.int64], skip: int = 0, count: int | None = None) -> Self:
        """Some requests; of their candidates laid end to end ``count``, after the first ``skip``."""
        flat = {name: x[rows] for name, x in self.flat.items()}
        return type(self)(flat, self.history.take(rows), self.candidates.take(rows, skip, count))

    @classmethod
    def join(cls, parts: Sequence["Requests"]) -> "Requests":
        """One after the other; a single part is not copied."""
        if len(parts) == 1:
            return parts[0]
        flat = {name: np.concatenate([p.flat[name] for p in parts]) for name in parts[0].flat}
        return cls(flat, Lists.join([p.history for p in parts]), Lists.join([p.candidates for p in parts]))

    def table(self) -> pa.Table:
        """A row a request, as it is written."""
        return pa.table({**self.flat, **self.history.columns(), **self.candidates.columns()})

    @classmethod
    def of_table(cls, table: pa.Table) -> Self:
        """What ``table`` made, or read back from Parquet with ``columns_to_read``.

        Raises:
            ValueError: not in this layout.
        """
        there = table.column_names
        own = [name for name in there if name.startswith(OWN)]
        lists = [name for name in own if pa.types.is_list(table.schema.field(name).type)]
        candidates = [name for name in OF_CANDIDATES if name in there] + lists
        flat = [name for name in OF_REQUEST if name not in EXTRA or name in there]
        return cls(
            {name: table[name].to_numpy() for name in (*flat, *(n for n in own if n not in lists))},
            Lists.of_table(table, [name for name in OF_HISTORY if name in there or name != SIZE]),
            Lists.of_table(table, candidates),
        )


@dataclass
class Sequences:
    """Users with all their visits (positives), each user once.

    Attributes:
        flat: what is of the user, ``OF_USER`` by name, [U].
        visits: ``OF_VISITS``, in the order of histories: by time, and those of a moment by request and item. Beside
            item and time of a visit: place of its request in degrees and its minutes east of UTC (NaN = unknown), the
            user's visits of the item strictly before, number of its split in ``SPLITS`` (-1: of a day before), and its
            request in the samples (-1: it has none there).
    """

    flat: dict[str, Array]
    visits: Lists

    def __len__(self) -> int:
        return len(self.visits.offsets) - 1

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Visits of each, [U]."""
        return np.diff(self.visits.offsets)

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Some users."""
        return type(self)({name: x[rows] for name, x in self.flat.items()}, self.visits.take(rows))

    @classmethod
    def join(cls, parts: Sequence["Sequences"]) -> "Sequences":
        """One after the other; a single part is not copied."""
        if len(parts) == 1:
            return parts[0]
        flat = {name: np.concatenate([p.flat[name] for p in parts]) for name in parts[0].flat}
        return cls(flat, Lists.join([p.visits for p in parts]))

    def table(self) -> pa.Table:
        """A row a user, as it is written."""
        return pa.table({**self.flat, **self.visits.columns()})

    @classmethod
    def of_table(cls, table: pa.Table) -> Self:
        """What ``table`` made, or read back from Parquet with ``sequences_to_read``.

        Raises:
            ValueError: not in this layout.
        """
        there = [name for name in OF_VISITS if name != OFFSET or name in table.column_names]
        visits = Lists.of_table(table, there)
        if OFFSET not in there:
            visits.values[OFFSET] = np.full(visits.offsets[-1], np.nan, np.float32)
        return cls({name: table[name].to_numpy() for name in OF_USER}, visits)


def columns_to_read(there: Sequence[str]) -> list[str]:
    """All columns of samples, of those that a file has; some may be missing."""
    known = [n for n in (*OF_REQUEST, *OF_HISTORY, *OF_CANDIDATES) if n not in (*EXTRA, SIZE) or n in there]
    return known + [n for n in there if n.startswith(OWN)]


def sequences_to_read(there: Sequence[str]) -> list[str]:
    """All columns of sequences, of those that a file has; an older placerank wrote no offsets."""
    return [n for n in (*OF_USER, *OF_VISITS) if n != OFFSET or n in there]


def by_candidate(table: pa.Table, of_request: Sequence[str], of_candidates: Sequence[str]) -> Mapping[str, Array]:
    """Columns with an entry a candidate: those of the request are repeated for each of its candidates.

    Args:
        table: rows of prepared samples, with these columns.
        of_request, of_candidates: names of the columns wanted.

    Raises:
        ValueError: not in this layout.
    """
    lists = Lists.of_table(table, of_candidates)
    lengths = np.diff(lists.offsets)
    return {name: np.repeat(table[name].to_numpy(), lengths) for name in of_request} | lists.values
