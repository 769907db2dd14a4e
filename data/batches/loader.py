"""The loader: prepared Parquet files to batches, sharded by rank, with a position that any number of ranks takes up."""

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ..arrays import ranges
from ..manifest import MANIFEST, read_manifest
from ..plain import Count, fault
from .batch import SampleBatch
from .epoch import Intervals, Line, after, cut, share, total

_WINDOW = 4  # row groups that are shuffled together
_FLAT = {
    "request": np.int64,
    "user_row": np.int32,
    "user_index": np.int64,
    "item_row": np.int32,
    "label": np.float32,
    "time": np.int64,
    "lat": np.float32,
    "lon": np.float32,
    "visits": np.int32,
}
_JAGGED = {"history": np.int32, "history_hours": np.float32}

T = TypeVar("T")


@dataclass
class _Rows:
    """Samples as NumPy arrays: columns [R], and jagged columns as offsets [R + 1] and values."""

    flat: dict[str, NDArray[Any]]
    offsets: NDArray[np.int64]
    jagged: dict[str, NDArray[Any]]

    @classmethod
    def of_table(cls, table: pa.Table) -> "_Rows":
        flat = {n: table[n].to_numpy() for n in table.column_names if n not in _JAGGED}
        lists = {n: table[n].combine_chunks() for n in _JAGGED}
        offsets = lists["history"].offsets.to_numpy()
        values = {n: x.values.to_numpy()[offsets[0] : offsets[-1]] for n, x in lists.items()}
        return cls(flat, offsets.astype(np.int64) - offsets[0], values)

    def take(self, rows: NDArray[np.int64]) -> "_Rows":
        """Some rows, in the types of a batch."""
        start, length = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        at = ranges(start, length)
        flat = {n: x[rows].astype(_FLAT.get(n, np.float32), copy=False) for n, x in self.flat.items()}
        jagged = {n: x[at].astype(_JAGGED[n], copy=False) for n, x in self.jagged.items()}
        return _Rows(flat, np.concatenate([[0], np.cumsum(length)]), jagged)

    @staticmethod
    def join(parts: list["_Rows"]) -> "_Rows":
        if len(parts) == 1:
            return parts[0]
        flat = {n: np.concatenate([p.flat[n] for p in parts]) for n in parts[0].flat}
        jagged = {n: np.concatenate([p.jagged[n] for p in parts]) for n in parts[0].jagged}
        length = np.concatenate([np.diff(p.offsets) for p in parts])
        return _Rows(flat, np.concatenate([[0], np.cumsum(length)]), jagged)

    def batch(self, valid: int) -> SampleBatch:
        flat = {n: torch.from_numpy(x) for n, x in self.flat.items() if n not in ("user_row", "item_row")}
        values = (self.flat["user_row"], self.flat["item_row"], self.jagged["history"])
        one = np.ones(len(self.offsets) - 1, np.int64)
        ids = KeyedJaggedTensor(
            keys=["user", "item", "history"],
            values=torch.from_numpy(np.concatenate(values, dtype=np.int64)),
            lengths=torch.from_numpy(np.concatenate([one, one, np.diff(self.offsets)])),
        )
        names = ("label", "request", "user_index", "time", "lat", "lon", "visits")
        return SampleBatch(
            ids=ids,
            history_hours=torch.from_numpy(self.jagged["history_hours"]),
            probability=flat.get("probability"),
            valid=valid,
            **{n: flat[n] for n in names},
        )


class SampleLoader:
    """Batches of one split of a prepared folder, for one rank.

    **Order.** The samples of an epoch lie on a line that does not depend on the number of ranks: shuffled, the row
    groups are in an order that follows from seed and epoch, and rows are mixed within each four consecutive ones;
    unshuffled, it is the order of the files. Each rank takes a contiguous part of what is left of the line; the
    parts differ by one row at most. A rank reads only the row groups that its part needs.

    **Training** (``shuffle=True``): all ranks have the same batches in number and size. The last batch of an epoch is
    shorter, and fewer than ``world_size`` rows of an epoch are left out.

    **Evaluation** (``shuffle=False``): nothing is left out. A rank with a row less than the others repeats its last
    one (or, if it has none, the first one left), and ``SampleBatch.valid`` does not count it.

    Iterating yields the rest of the current epoch; iterating again, the next one. ``state_dict`` after a batch is
    the position after that batch, however many have been read ahead.

    Args:
        folder: a prepared folder.
        split: "train", "valid" or "test".
        batch_size: samples a batch, on each rank.
        rank, world_size: this rank and how many there are.
        seed: decides the shuffled order.
        shuffle: training or evaluation, see above.
        prefetch: batches that a background thread reads ahead; 0 reads in the caller's thread.

    Raises:
        FileNotFoundError, ValueError: the folder is not whole, has no such split, or a file is damaged.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = False,
        prefetch: int = 8,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank}, world_size={world_size}: expected 0 <= rank < world_size")
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.seed, self.shuffle, self.prefetch = seed, shuffle, prefetch
        manifest = read_manifest(Path(folder), "prepared")
        self._longest = manifest["history_length"]
        self._files, self._groups, self._sizes = _row_groups(Path(folder), split, manifest)
        self._footers: dict[int, pq.FileMetaData] = {}  # of the files that were read from
        self.rows = sum(self._sizes)
        if shuffle and self.rows < world_size:
            raise ValueError(
                f"{folder}: the {split} split has {self.rows} samples for {world_size} ranks, expected at least one "
                "each; use fewer ranks or more data"
            )
        self._start(0, [(0, self.rows)])

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

    def __iter__(self) -> Iterator[SampleBatch]:
        epoch, remaining, first = self._epoch, self._remaining, self._taken
        batches: Iterator[SampleBatch] = self._batches(epoch, remaining, first)
        if self.prefetch:
            batches = read_ahead(batches, self.prefetch)
        left = len(self)
        for batch in batches:
            left -= 1
            self._taken += 1
            if left == 0:
                self._start(epoch + 1, [(0, self.rows)])
            yield batch

    def _batches(self, epoch: int, remaining: Intervals, first: int) -> Iterator[SampleBatch]:
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
        parts: list[_Rows] = []
        size = min(self.batch_size, rows - done)
        for number, order in line.pieces(cut(mine, done, rows)):
            if number != held or block is None:
                held, block = number, self._read(line.blocks[number])
            while len(order):
                part, order = order[:size], order[size:]
                parts.append(block.take(part))
                size -= len(part)
                if size == 0:
                    yield _Rows.join(parts).batch(valid=min(high - low - done, self.batch_size, rows - done))
                    parts = []
                    done += self.batch_size
                    size = min(self.batch_size, rows - done)

    def _read(self, groups: NDArray[np.int64]) -> _Rows:
        parts = []
        for group in groups:
            file, index = self._groups[group]
            path = self._files[file]
            try:
                with pq.ParquetFile(path, metadata=self._footers.get(file)) as source:
                    footer = self._footers[file] = source.metadata
                    rows = footer.row_group(index).num_rows if index < footer.num_row_groups else 0
                    if rows != self._sizes[group]:
                        raise ValueError(
                            f"{path}: got {rows:,} samples in row group {index}, the manifest says "
                            f"{self._sizes[group]:,}; prepare the data again"
                        )
                    there = ["probability"] if "probability" in source.schema_arrow.names else []
                    parts.append(_Rows.of_table(source.read_row_group(index, columns=[*_FLAT, *_JAGGED, *there])))
            except (pa.ArrowInvalid, OSError) as error:
                raise _damaged(path, error) from error
            longest = int(np.diff(parts[-1].offsets).max())
            if longest > self._longest:
                raise ValueError(
                    f"{path}: got a history of {longest:,} visits, the data were prepared with "
                    f"history_length={self._longest:,}; prepare with --history-length {longest}, or cut the histories"
                )
        return _Rows.join(parts)

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


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: not a whole Parquet file of samples ({error}); prepare the data again")


def _row_groups(
    folder: Path, split: str, manifest: dict[str, Any]
) -> tuple[list[Path], list[tuple[int, int]], list[int]]:
    """Files; (file, row group) of each row group that has rows; and how many.

    The manifest tells them. An older one does not: then the files' footers are read.
    """
    splits = manifest["splits"]
    if split not in splits:
        raise ValueError(f"{folder} has no {split!r} split, it has {', '.join(splits)}; prepare with a fraction for it")
    known = splits[split].get("row_groups")
    if known is None:
        known = {path.name: _footer_rows(path) for path in (folder / split).glob("*.parquet")}
    elif found := fault(known, dict[str, list[Count]], f"splits.{split}.row_groups"):
        raise ValueError(f"{folder / MANIFEST}: {found}; prepare the data again")
    names = sorted(known)
    groups = [(f, i) for f, name in enumerate(names) for i, rows in enumerate(known[name]) if rows]
    got, expected = sum(map(sum, known.values())), splits[split]["rows"]
    if got != expected:
        raise ValueError(
            f"{folder / split}: got {got:,} samples in {len(names)} files, the manifest says {expected:,}; "
            "prepare the data again"
        )
    return [folder / split / name for name in names], groups, [known[names[f]][i] for f, i in groups]


def _footer_rows(path: Path) -> list[int]:
    try:
        footer = pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from error
    return [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]


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
