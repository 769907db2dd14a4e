"""The order of an epoch's samples, that is of its candidates, as a line [0, N), and what is left of it.

The line depends on the files, the seed and the epoch, and not on the number of ranks. What is left of it is a
list of intervals [low, high), the same on every rank, so any number of ranks can go on from it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Intervals = list[tuple[int, int]]


class Line:
    """Row groups in a random order, and requests in a random order within blocks of a few row groups.

    Candidates of a request stay side by side.

    Args:
        sizes: candidates of each row group, in file order.
        window: row groups of a block: what a reader holds in memory.
        seed: with ``epoch`` decides the order; None keeps the file order.
        epoch: number of the epoch.
    """

    def __init__(self, sizes: Sequence[int], window: int, seed: int | None, epoch: int) -> None:
        self._seed, self._epoch = seed, epoch
        groups = np.arange(len(sizes))
        if seed is not None:
            groups = np.random.default_rng([seed, epoch]).permutation(len(sizes))
        self.blocks = [groups[i : i + window] for i in range(0, len(sizes), window)]
        rows = [sum(sizes[g] for g in block) for block in self.blocks]
        self.starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])

    def pieces(self, intervals: Intervals) -> Iterator[tuple[int, int, int]]:
        """What the intervals hold, in their order: block, and first and last+1 of the candidates within it."""
        for low, high in intervals:
            while low < high:
                block = int(np.searchsorted(self.starts, low, "right")) - 1
                start, end = int(self.starts[block]), int(self.starts[block + 1])
                yield block, low - start, min(high, end) - start
                low = end

    def order(self, block: int, requests: int) -> NDArray[np.int64]:
        """The order of a block's requests, as many as the reader has found in it."""
        if self._seed is None:
            return np.arange(requests)
        return np.random.default_rng([self._seed, self._epoch, block]).permutation(requests)


def total(intervals: Intervals) -> int:
    """Rows in the intervals together."""
    return sum(high - low for low, high in intervals)


def cut(intervals: Intervals, start: int, end: int) -> Intervals:
    """Rows [start, end) of the intervals laid end to end, as intervals."""
    out: Intervals = []
    at = 0
    for low, high in intervals:
        a, b = max(start - at, 0), min(end - at, high - low)
        if a < b:
            out.append((low + a, low + b))
        at += high - low
    return out


def share(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and last+1 of the rows of a rank: contiguous, and the first ``rows % world_size`` ranks have one more."""
    least, more = divmod(rows, world_size)
    start = rank * least + min(rank, more)
    return start, start + least + (rank < more)


def after(remaining: Intervals, world_size: int, done: int) -> Intervals:
    """What is left when each rank has done the first ``done`` rows of its share; neighbours are joined."""
    out: Intervals = []
    rows = total(remaining)
    for rank in range(world_size):
        start, end = share(rows, rank, world_size)
        for low, high in cut(remaining, min(start + done, end), end):
            if out and out[-1][1] == low:
                out[-1] = (out[-1][0], high)
            else:
                out.append((low, high))
    return out
