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

from ..manifest import read_manifest
from ..requests import PROBABILITY, Requests, columns_to_read
from .batch import SampleBatch
from .epoch import Intervals, Line, after, cut, share, total

_WINDOW = 4  # row groups that are shuffled together

T = TypeVar("T")


@dataclass
class _Block:
    """A few row groups, in the order of the line.

    Attributes:
        requests: as they were read.
        order: of the requests, int64 [R].
        ends: candidates up to each request and with it, in that order, int64 [R].
    """

    requests: Requests
    order: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, requests: Requests, order: NDArray[np.int64]) -> "_Block":
        return cls(requests, order, np.cumsum(np.diff(requests.candidates.offsets)[order]))

    def take(self, low: int, high: int) -> Requests:
        """Candidates low to high - 1 of the block, one or more, and the requests that they belong to."""
        first, last = np.searchsorted(self.ends, [low, high - 1], "right").tolist()
        before = int(self.ends[first - 1]) if first else 0
        return self.requests.take(self.order[first : last + 1], low - before, high - low)


def _batch(found: Requests, valid: int) -> SampleBatch:
    flat, candidates = found.flat, found.candidates

    def whole(x: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(x.astype(np.int64, copy=False))

    def real(x: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(x.astype(np.float32, copy=False))

    known = candidates.values.get(PROBABILITY)
    return SampleBatch(
        request_id=whole(flat["request"]),
        user=whole(flat["user_row"]),
        user_index=whole(flat["user_index"]),
        time=whole(flat["time"]),
        lat=real(flat["lat"]),
        lon=real(flat["lon"]),
        offsets=whole(found.history.offsets),
        history=whole(found.history.values["history"]),
        history_hours=real(found.history.values["history_hours"]),
        request=whole(np.repeat(np.arange(len(found)), np.diff(candidates.offsets))),
        item=whole(candidates.values["item_row"]),
        label=real(candidates.values["label"]),
        visits=torch.from_numpy(candidates.values["visits"].astype(np.int32, copy=False)),
        probability=None if known is None else real(known),
        valid=valid,
    )


class SampleLoader:
    """Batches of one split of a prepared folder, for one rank. Samples, which are counted below, are candidates.

    **Order.** The samples of an epoch lie on a line that does not depend on the number of ranks: shuffled, the row
    groups are in an order that follows from seed and epoch, and requests are mixed within each four consecutive ones;
    unshuffled, it is the order of the files. Candidates of a request lie side by side. Each rank takes a contiguous
    part of what is left of the line; the parts differ by one row at most. A rank reads only the row groups that its
    part needs. Where the edge of a batch, or of a rank's part, cuts a request, both sides have the request, and each
    some of its candidates.

    **Training** (``shuffle=True``): all ranks have the same batches in number and size. The last batch of an epoch is
    shorter, and fewer than ``world_size`` rows of an epoch are left out.

    **Evaluation** (``shuffle=False``): nothing is left out. A rank with a row less than the others repeats its last
    one (or, if it has none, the first one left), and ``SampleBatch.valid`` does not count it.

    Iterating yields the rest of the current epoch; iterating again, the next one. ``state_dict`` after a batch is
    the position after that batch, however many have been read ahead.

    Args:
        folder: a prepared folder.
        split: "train", "valid" or "test".
        batch_size: samples a batch, on each rank, however many requests they belong to.
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
        parts: list[Requests] = []
        size = min(self.batch_size, rows - done)
        for number, at, end in line.pieces(cut(mine, done, rows)):
            if number != held or block is None:
                found = self._read(line.blocks[number])
                held, block = number, _Block.of(found, line.order(number, len(found)))
            while at < end:
                upto = min(at + size, end)
                parts.append(block.take(at, upto))
                at, size = upto, size - (upto - at)
                if size == 0:
                    yield _batch(Requests.join(parts), valid=min(high - low - done, self.batch_size, rows - done))
                    parts = []
                    done += self.batch_size
                    size = min(self.batch_size, rows - done)

    def _read(self, groups: NDArray[np.int64]) -> Requests:
        parts = []
        for group in groups:
            file, index = self._groups[group]
            path = self._files[file]
            try:
                with pq.ParquetFile(path, metadata=self._footers.get(file)) as source:
                    footer = self._footers[file] = source.metadata
                    if index >= footer.num_row_groups:
                        raise ValueError(
                            f"{path}: got {footer.num_row_groups:,} row groups, the manifest tells of more; prepare "
                            "the data again"
                        )
                    table = source.read_row_group(index, columns=columns_to_read(source.schema_arrow.names))
            except (pa.ArrowInvalid, OSError) as error:
                raise ValueError(
                    f"{path}: not a whole Parquet file of samples ({error}); prepare the data again"
                ) from error
            try:
                parts.append(Requests.of_table(table))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            rows = int(parts[-1].candidates.offsets[-1])
            if rows != self._sizes[group]:
                raise ValueError(
                    f"{path}: got {rows:,} samples in row group {index}, the manifest says {self._sizes[group]:,}; "
                    "prepare the data again"
                )
            longest = int(np.diff(parts[-1].history.offsets).max())
            if longest > self._longest:
                raise ValueError(
                    f"{path}: got a history of {longest:,} visits, the data were prepared with "
                    f"history_length={self._longest:,}; prepare with --history-length {longest}, or cut the histories"
                )
        return Requests.join(parts)

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


def _row_groups(
    folder: Path, split: str, manifest: dict[str, Any]
) -> tuple[list[Path], list[tuple[int, int]], list[int]]:
    """Files; (file, row group) of each row group that has samples; and how many: the manifest tells them."""
    splits = manifest["splits"]
    if split not in splits:
        raise ValueError(f"{folder} has no {split!r} split, it has {', '.join(splits)}; prepare with a fraction for it")
    known, expected = splits[split]["row_groups"], splits[split]["rows"]
    names = sorted(known)
    groups = [(f, i) for f, name in enumerate(names) for i, rows in enumerate(known[name]) if rows]
    if (got := sum(map(sum, known.values()))) != expected:
        raise ValueError(
            f"{folder / split}: got {got:,} samples in {len(names)} files, the manifest says {expected:,}; "
            "prepare the data again"
        )
    return [folder / split / name for name in names], groups, [known[names[f]][i] for f, i in groups]


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
