"""What loaders share: a line of rows dealt to ranks, batches of it, a position that any number of ranks takes up."""

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..manifest import read_manifest
from ..plain import Count, fault
from ..requests import SEQUENCES, SPLITS
from ..urls import UrlError, open_parquet, told
from .epoch import Intervals, Line, after, cut, share, total

_WINDOW = 4  # row groups that are shuffled together

B = TypeVar("B")
P = TypeVar("P")
P_co = TypeVar("P_co", covariant=True)
T = TypeVar("T")


class Read(Protocol[P_co]):
    """What a few row groups hold: units, requests say, which are kept together, of one row or more each."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows of each unit, [U]."""

    def take(self, rows: NDArray[np.int64], skip: int, count: int) -> P_co:
        """Some units; of their rows laid end to end ``count``, after the first ``skip``."""


class LineLoader(ABC, Generic[P, B]):
    """Batches of one split of a prepared folder, for one rank.

    **Order.** The rows of an epoch lie on a line that does not depend on the number of ranks: shuffled, the row
    groups are in an order that follows from seed and epoch, and units are mixed within each four consecutive ones;
    unshuffled, it is the order of the files. Rows of a unit lie side by side. Each rank takes a contiguous part of what
    is left of the line; the parts differ by one row at most. A rank reads only the row groups that its part needs.
    Where the edge of a batch, or of a rank's part, cuts a unit, both sides have the unit, and each some of its rows.

    **Training** (``shuffle=True``): all ranks have the same batches in number and size. The last batch of an epoch is
    shorter, and fewer than ``world_size`` rows of an epoch are left out.

    **Evaluation** (``shuffle=False``): nothing is left out. A rank with a row less than the others repeats its last
    one (or, if it has none, the first one left), and ``valid`` of the batch does not count it.

    Iterating yields the rest of the current epoch; iterating again, the next one. ``state_dict`` after a batch is
    the position after that batch, however many have been read ahead.

    Args:
        about: folder and split, for messages.
        sizes: rows of each row group, in the order of the files.
        batch_size, rank, world_size, seed, shuffle, prefetch: see the loaders.
    """

    def __init__(
        self,
        about: str,
        sizes: list[int],
        batch_size: int,
        *,
        rank: int,
        world_size: int,
        seed: int,
        shuffle: bool,
        prefetch: int,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank}, world_size={world_size}: expected 0 <= rank < world_size")
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.seed, self.shuffle, self.prefetch = seed, shuffle, prefetch
        self._sizes = sizes
        self.rows = sum(sizes)
        if shuffle and self.rows < world_size:
            raise ValueError(
                f"{about} has {self.rows} samples for {world_size} ranks, expected at least one "
                "each; use fewer ranks or more data"
            )
        self._start(0, [(0, self.rows)])

    @abstractmethod
    def _read(self, groups: NDArray[np.int64]) -> Read[P]:
        """Row groups by their numbers."""

    @abstractmethod
    def _batch(self, parts: list[P], valid: int) -> B:
        """A batch of what ``take`` gave; the first ``valid`` rows count."""

    def _start(self, epoch: int, remaining: Intervals) -> None:
        self._epoch, self._remaining, self._taken = epoch, remaining, 0

    def _rows_a_rank(self, rows: int) -> int:
        return rows // self.world_size if self.shuffle else -(-rows // self.world_size)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        return -(-self._rows_a_rank(self.rows) // self.batch_size)

    def __len__(self) -> int:
        """Batches left in the current epoch."""
        return -(-self._rows_a_rank(total(self._remaining)) // self.batch_size) - self._taken

    def __iter__(self) -> Iterator[B]:
        epoch, remaining, first = self._epoch, self._remaining, self._taken
        batches: Iterator[B] = self._batches(epoch, remaining, first)
        if self.prefetch:
            batches = read_ahead(batches, self.prefetch)
        left = len(self)
        for batch in batches:
            left -= 1
            self._taken += 1
            if left == 0:
                self._start(epoch + 1, [(0, self.rows)])
            yield batch

    def _batches(self, epoch: int, remaining: Intervals, first: int) -> Iterator[B]:
        """Batches of this rank's share of ``remaining``, from number ``first`` on."""
        low, high = share(total(remaining), self.rank, self.world_size)
        rows = self._rows_a_rank(total(remaining))
        mine = cut(remaining, low, low + min(rows, high - low))
        if high - low < rows:
            repeated = mine[-1][1] - 1 if mine else remaining[0][0]
            mine.append((repeated, repeated + 1))
        done = first * self.batch_size
        line = Line(self._sizes, _WINDOW if self.shuffle else 1, self.seed if self.shuffle else None, epoch)
        held, block = -1, None
        parts: list[P] = []
        size = min(self.batch_size, rows - done)
        for number, at, end in line.pieces(cut(mine, done, rows)):
            if number != held or block is None:
                found = self._read(line.blocks[number])
                held, block = number, _Block(found, line.order(number, len(found.sizes)))
            while at < end:
                upto = min(at + size, end)
                parts.append(block.take(at, upto))
                at, size = upto, size - (upto - at)
                if size == 0:
                    yield self._batch(parts, valid=min(high - low - done, self.batch_size, rows - done))
                    parts = []
                    done += self.batch_size
                    size = min(self.batch_size, rows - done)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was taken: JSON-ready, and the same on every rank.

        ``epoch`` and ``remaining``, the intervals of that epoch's line that no rank has had; ``rows`` and
        ``seed`` tell whether a position fits.
        """
        left = after(self._remaining, self.world_size, self._taken * self.batch_size)
        return {"epoch": self._epoch, "remaining": [list(x) for x in left], "rows": self.rows, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position that was saved with any number of ranks.

        What is left of the epoch is split evenly over the ranks there are now. With as many ranks and the same
        batch size as before, the batches are those that would have come. Fewer rows than ranks are left out in
        training: the next epoch starts.
        """
        for name in ("rows", "seed"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the position was saved with {name}={state[name]}, this loader has {name}={getattr(self, name)}; "
                    "resume with the same prepared data and seed"
                )
        remaining = [(int(low), int(high)) for low, high in state["remaining"]]
        self._start(state["epoch"], remaining)
        if len(self) == 0:
            self._start(state["epoch"] + 1, [(0, self.rows)])


@dataclass(frozen=True)
class Found:
    """A row group as it was read, and how many rows the manifest says it has."""

    path: Path
    index: int
    table: pa.Table
    expected: int

    def check(self, rows: int, of: str) -> None:
        if rows != self.expected:
            raise ValueError(
                f"{self.path}: got {rows:,} {of} in row group {self.index}, the manifest says {self.expected:,}; "
                "prepare the data again"
            )

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors that are raised within name the file."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error


class RowGroups:
    """Row groups that have rows.

    Args:
        folder: of the files.
        known: rows of each row group, by file, as the manifest has them.
    """

    def __init__(self, folder: Path, known: dict[str, list[int]]) -> None:
        names = sorted(known)
        self._at = [(folder / name, i) for name in names for i, rows in enumerate(known[name]) if rows]
        self.sizes = [known[path.name][i] for path, i in self._at]
        self._footers: dict[Path, pq.FileMetaData] = {}  # of the files that were read from

    def read(self, groups: Iterable[int], columns: Callable[[list[str]], list[str]]) -> Iterator[Found]:
        """Some of them, by number; ``columns``: which to read, of those that a file has.

        Raises:
            ValueError: a file is damaged, or another one than the manifest tells of.
        """
        for group in groups:
            path, index = self._at[group]
            try:
                with told(path), open_parquet(path, metadata=self._footers.get(path)) as source:
                    footer = self._footers[path] = source.metadata
                    if index >= footer.num_row_groups:
                        raise ValueError(
                            f"{path}: got {footer.num_row_groups:,} row groups, the manifest tells of more; prepare "
                            "the data again"
                        )
                    table = source.read_row_group(index, columns=columns(source.schema_arrow.names))
            except UrlError:
                raise
            except (pa.ArrowInvalid, OSError) as error:
                raise ValueError(
                    f"{path}: not a whole Parquet file of samples ({error}); prepare the data again"
                ) from error
            yield Found(path, index, table, self.sizes[group])


def visit_groups(folder: Path) -> dict[str, list[list[int]]]:
    """By file, visits of each row group by split: the manifest tells them. Those carried over are in none.

    Raises:
        FileNotFoundError, ValueError: no prepared folder, or one without sequences, or damaged.
    """
    manifest = read_manifest(folder, "prepared")
    if SEQUENCES not in manifest:
        raise ValueError(f"{folder} has no {SEQUENCES}: an older placerank prepared it; prepare the data again")
    found = fault(manifest[SEQUENCES], {"row_groups": dict[str, list[list[Count]]]}, SEQUENCES)
    known: dict[str, list[list[int]]] = {} if found else manifest[SEQUENCES]["row_groups"]
    if found or any(len(group) != len(SPLITS) for groups in known.values() for group in groups):
        why = found or f"{SEQUENCES}.row_groups: expected a number for each of {', '.join(SPLITS)}"
        raise ValueError(f"{folder}: {why}; the manifest is damaged: prepare the data again")
    return known


class _Block(Generic[P]):
    """A few row groups, in the order of the line.

    Args:
        found: as they were read.
        order: of the units, int64 [U].
    """

    def __init__(self, found: Read[P], order: NDArray[np.int64]) -> None:
        self.found, self.order = found, order
        self.ends = np.cumsum(found.sizes[order])  # rows up to each unit and with it, in that order

    def take(self, low: int, high: int) -> P:
        """Rows low to high - 1 of the block, one or more, and the units that they belong to."""
        first, last = np.searchsorted(self.ends, [low, high - 1], "right").tolist()
        before = int(self.ends[first - 1]) if first else 0
        return self.found.take(self.order[first : last + 1], low - before, high - low)


def read_ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """The same items, made in a background thread that is at most ``depth`` ahead; its errors are raised here."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not stop.is_set():
            try:
                return ready.put((kind, value), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put("item", item)
                if stop.is_set():
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=work, name="placerank-loader", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()
