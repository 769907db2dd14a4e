"""What a worker of an engine is asked to do: a share of the interactions, or a bucket, from files into files.

Nothing here imports torch, which takes longer to start than most tasks take. A task that is tried again writes its
files anew.
"""

import pickle
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..raw.checks import BadRows
from ..raw.lookup import IdIndex
from ..raw.outcomes import Outcomes
from ..raw.own import OwnColumn
from ..raw.schema import iter_interactions
from ..requests import SEQUENCES, SPLITS, Sequences
from .buckets import LZ4, Bucket, bucket_rows, read_rows, sort_rows, times
from .per_bucket import BucketCounts, Context, count, pieces_of_bucket, time_bins
from .summary import Seen
from .writer import SequenceWriter, SplitWriter

ITEMS_FILE, STOP_FILE = "items", "stop"
T = TypeVar("T")


def going(things: Iterable[T], work: Path) -> Iterator[T]:
    """What there is to do in this unfinished folder, until another thread or process has an error."""
    return takewhile(lambda _: not (work / STOP_FILE).exists(), things)


def on_threads(
    things: Iterable[int], call: Callable[[int], T], then: Callable[[int, T], None], threads: int, work: Path
) -> None:
    """Call ``call`` for each of some numbers on so many threads, and in this one, as they are done, ``then`` with each
    number and what was found.

    With one thread all is done in this one. An error, and Ctrl-C, leaves a file in ``work``, by which everybody comes
    to hear of it, and is raised when all threads have left off, so that nothing is written after it.
    """
    left = going(things, work)
    if threads == 1:
        with _stopping_all(work):
            for number in left:
                then(number, call(number))
        return
    with ThreadPoolExecutor(threads, "placerank-prepare") as pool, _stopping_all(work):
        running = {pool.submit(call, number): number for number in islice(left, threads)}
        while running:
            done = next(iter(wait(running, return_when=FIRST_COMPLETED).done))
            number, found = running.pop(done), done.result()
            running |= {pool.submit(call, more): more for more in islice(left, 1)}
            then(number, found)
            del done, found  # or they are held until the next one is done


@contextmanager
def _stopping_all(work: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        (work / STOP_FILE).touch()
        raise


def write_table(table: pa.Table, file: Path) -> None:
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def read_table(file: Path, mapped: bool = False) -> pa.Table:
    """A table in memory; a mapped one is the file, so that the ranks of a machine have it once."""
    with pa.memory_map(str(file)) if mapped else pa.OSFile(str(file)) as source:
        return pa.ipc.open_file(source).read_all()


def histogram(files: Iterable[Path], first: int, last: int) -> NDArray[np.int64]:
    """Rows of buckets' files in each of ``per_bucket.time_bins``; ``first`` and ``last``: of all times. What is older
    was carried over and doesn't count.
    """
    width, size = time_bins(first, last)
    bins = np.zeros(size, np.int64)
    for file in files:
        for moments in times(file):
            np.add.at(bins, (moments[moments >= first] - first) // width, 1)
    return bins


def count_bucket(work: Path, number: int, files: Sequence[Path], context: Context) -> BucketCounts:
    """Sort a bucket and count it; leaves it, its users, and those of the vocabulary, as files in ``work``."""
    found = sort_rows(read_rows(files), context.check_ins is not None, context.of_request)
    counts = count(found, context)
    write_table(counts.users, work / f"users-{number:05d}")
    write_table(pa.table({"user_id": counts.ids}), work / f"ids-{number:05d}")
    found.bucket.save(work / f"sorted-{number:05d}")
    return counts


@dataclass
class Written:
    """Files of a bucket, or of all: of each split, and users' sequences."""

    splits: list[SplitWriter]
    sequences: SequenceWriter

    @classmethod
    def into(cls, folder: Path, row_group_rows: int) -> Self:
        """Empty ones, in folders of ``folder``."""
        splits = [SplitWriter(folder / name, row_group_rows) for name in SPLITS]
        return cls(splits, SequenceWriter(folder / SEQUENCES, row_group_rows))

    def take_over(self, piece: Self) -> None:
        """Let the files of another one, which is closed, be the next ones."""
        for whole, own in zip(self.splits, piece.splits, strict=True):
            whole.take_over(own)
        self.sequences.take_over(piece.sequences)


def write_samples(work: Path, number: int, context: Context, row_group_rows: int) -> Written:
    """Write what a bucket that is sorted becomes into files of its own; returns them, closed."""
    folder = work / f"samples-{number:05d}"
    if folder.exists():  # of a try that was cut off
        shutil.rmtree(folder)
    folder.mkdir()
    written = Written.into(folder, row_group_rows)
    for piece in pieces_of_bucket(Bucket.load(work / f"sorted-{number:05d}"), number, context):
        if isinstance(piece, Sequences):
            written.sequences.write(piece)
        else:
            split, requests = piece
            written.splits[split].write(requests)
    for split_writer in written.splits:
        split_writer.close()
    written.sequences.close()
    return written


# --- for engines that have no ranks ------------------------------------------------------------------------------


def pickled(call: Callable[[], Any]) -> bytes:
    """What a call returns, or its error of the data or of a file, for ``value_of``: Ray would wrap that in its own."""
    try:
        return pickle.dumps((call(), None))
    except (ValueError, OSError) as error:
        return pickle.dumps((None, error))


def value_of(told: bytes) -> Any:
    value, error = pickle.loads(told)
    if error is not None:
        raise error
    return value


def told_file(share: int) -> str:
    return f"told-{share:05d}"


def bucket_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.arrow"


def read_share(
    at: pa.Table,
    raw: Path,
    work: Path,
    buckets: int,
    schema: pa.Schema,
    skip: bool,
    shares: int,
    own: Sequence[OwnColumn],
    outcomes: Outcomes,
) -> Iterator[pa.Table]:
    """Rows of a share of the interactions; what was seen of them is left in ``work``."""
    if not work.is_dir():
        raise FileNotFoundError(
            f"{work} is not there on {socket.gethostname()}; with --engine ray all machines have to see the output's "
            "folder and the input at the same path: put both on a disk that they share"
        )
    yield schema.empty_table()  # Ray can't bring blocks together of which one has no columns
    share = at["at"][0].as_py()
    seen = Seen()
    bad_rows = BadRows("skip", work / f"rejected-{share:05d}") if skip else BadRows("error")
    try:
        with bad_rows:
            index = _index(work / ITEMS_FILE)
            found = iter_interactions(raw, index, bad_rows, share=(share, shares), own=own, outcomes=outcomes)
            for block in found:
                if (work / STOP_FILE).exists():
                    break
                seen.add_block(block)
                yield bucket_rows(block, buckets)
    except (ValueError, OSError) as error:
        (work / STOP_FILE).touch()
        told = pickle.dumps((None, error))
    else:
        told = pickle.dumps(((seen, bad_rows), None))
    (work / told_file(share)).write_bytes(told)


@lru_cache(maxsize=1)
def _index(file: Path) -> IdIndex:
    """Of the items' ids: one for all shares that a worker reads."""
    return IdIndex(read_table(file, mapped=True)["item_id"])


def keep_bucket(rows: pa.Table, folder: Path, schema: pa.Schema) -> pa.Table:
    """Write the rows of a bucket as ``buckets.BucketWriter`` does; the file has its name when it is whole."""
    number, rows = rows["bucket"][0].as_py(), rows.cast(schema)
    whole = bucket_file(folder, number)
    part = whole.with_suffix(".part")
    with pa.ipc.new_file(part, rows.schema, options=LZ4) as writer:
        writer.write_table(rows)
    part.rename(whole)
    return pa.table({"bucket": np.array([number])})
