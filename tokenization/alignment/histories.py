"""Who went where in the training split, for whatever learns from behaviour. Never a later visit.

Read from the samples of a prepared folder: the positives of ``train/``. A place that only validation or test visits
know has no part in any pair.

**Memory.** What pairs are drawn from is bounded: past ``MOST_VISITS`` visits it is those of a sample of users, chosen
by a hash of their number, so that ranks, restarts and other orders of files choose the same. Whole histories are kept,
since pairs lie within them. Reading takes at most 56 bytes a visit, what is held 24, counting pairs about 100: 1 GB,
whatever the data. Steps draw some ten thousand pairs out of the millions that so many visits make; users are a fair
sample, so what is drawn of each is as likely as before. What changes is which items count as visited together: more
than the threshold of the *sampled* users. The threshold that follows the data (``count_threshold``) falls with the
sample, down to pairs that two users have; one that is set stays, and at a share s of the users pairs of fewer than
about threshold / s of them become rare in D_mix. Geographic ones take the places of what is missing (``align`` warns).
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ...data.requests import by_candidate
from ...data.urls import open_parquet, told

log = logging.getLogger(__name__)

MOST_VISITS = 10_000_000
CLOSEST = 0.05
"""Share of the pairs of items with a visitor in common that count as visited together, at most."""
_VISIT = ("user_index", "user_row", "item_row", "time")
_OF_REQUEST, _OF_CANDIDATES = ("user_index", "user_row", "time"), ("item_row", "label")


@dataclass(frozen=True)
class Histories:
    """Visits in the training split, sorted by user and then time.

    Attributes:
        user: numbers of users, int64 [V].
        item: rows of the items table (catalog rows less one), int64 [V].
        time: seconds since 1970, int64 [V].
        items: how many items there are, N.
        share: of the users that are in it.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time: NDArray[np.int64]
    items: int
    share: float = 1.0

    def latest(self, most: int) -> "Histories":
        """The last ``most`` distinct items of each user, each at its last visit."""
        # Last visit of each (user, item): the rows are in order of time, so the last of equal ones wins.
        key = self.user * self.items + self.item
        _, last = np.unique(key[::-1], return_index=True)
        rows = len(key) - 1 - last
        rows = rows[np.lexsort((rows, self.user[rows]))]
        user = self.user[rows]
        ends = np.searchsorted(user, user, "right")
        kept = rows[ends - np.arange(len(rows)) <= most]
        return Histories(self.user[kept], self.item[kept], self.time[kept], self.items)


def read_histories(prepared: Path, items: int, most: int = MOST_VISITS) -> Histories:
    """The training split's positives, of all users or of a sample that has at most ``most`` of them.

    Streamed a batch at a time: a user is in the sample while the hash of their number is below a bound, which is halved
    whenever more than ``most`` visits are held. So the bound is the largest such that they fit, in whatever order the
    visits come.

    Args:
        prepared: the prepared folder.
        items: how many items its catalog has, N.
        most: visits held.

    Raises:
        FileNotFoundError: the folder has no training samples.
    """
    kept: list[list[NDArray[np.int64]]] = []
    held = halved = 0
    for user, _, item, time in _positives(_groups(prepared)):
        rows = _sampled(user, halved)
        kept.append([user[rows], item[rows], time[rows]])
        held += len(kept[-1][0])
        while held > most:
            halved += 1
            kept = [[column[_sampled(part[0], halved)] for column in part] for part in kept]
            held = sum(len(part[0]) for part in kept)
    if halved:
        log.info("histories: %s visits, those of 1 in %s users", f"{held:,}", f"{2**halved:,}")
    return _histories(kept, items, 0.5**halved)


class UserVisits:
    """Training visits of the users of users.parquet, some rows of it at a time.

    Holds 32 bytes a row group of the samples, and of what is asked for 56 bytes a visit while it is read. ``prepare``
    writes users together, so few row groups have some of a range of rows.
    """

    def __init__(self, prepared: Path, items: int) -> None:
        self.items = items
        self._found: list[tuple[Path, int, int, int]] = []
        for path, of_file in groupby(_groups(prepared), key=itemgetter(0)):
            with told(path), open_parquet(path) as file:
                for _, group in of_file:
                    row = file.read_row_group(group, columns=["user_row"])["user_row"].to_numpy()
                    row = row[row > 0]  # 0: one of those who share it
                    if len(row):
                        self._found.append((path, group, int(row.min()), int(row.max())))

    def known(self) -> NDArray[np.int64]:
        """Rows of users.parquet whose users have a visit, ascending, int64 [n]. After ``prepare --after`` those are the
        users of the new days."""
        groups = [(file, group) for file, group, _, _ in self._found]
        rows = [np.unique(row) for _, row, _, _ in _positives(groups)]
        found = np.unique(np.concatenate([np.zeros(0, np.int64), *rows]))
        return found[found > 0]

    def of(self, rows: range) -> Histories:
        """Visits of the users of these rows, by whose numbers they are called."""
        groups = [(file, group) for file, group, low, high in self._found if low < rows.stop and high >= rows.start]
        kept = []
        for _, row, item, time in _positives(groups):
            mine = (row >= rows.start) & (row < rows.stop)
            kept.append([row[mine], item[mine], time[mine]])
        return _histories(kept, self.items, 1.0)


def _groups(prepared: Path) -> Iterator[tuple[Path, int]]:
    train = prepared / "train"
    files = sorted(p for p in train.iterdir() if p.suffix == ".parquet") if train.is_dir() else []
    if not files:
        raise FileNotFoundError(f"{prepared / 'train'} holds no samples; make them with placerank prepare")
    for path in files:
        with told(path), open_parquet(path) as file:
            groups = file.num_row_groups
        yield from ((path, group) for group in range(groups))


def _positives(groups: Iterable[tuple[Path, int]]) -> Iterator[tuple[NDArray[np.int64], ...]]:
    """user_index, user_row, item_row and time of the positives of row groups, int64 [n] each.

    The one place here that knows how ``prepare`` lays out samples.
    """
    for path, of_file in groupby(groups, key=itemgetter(0)):
        with told(path), open_parquet(path) as file:
            for _, group in of_file:
                table = file.read_row_group(group, columns=[*_OF_REQUEST, *_OF_CANDIDATES])
                samples = by_candidate(table, _OF_REQUEST, _OF_CANDIDATES)
                good = (samples["label"] == 1) & (samples["item_row"] > 0)  # row 0 is no item
                yield tuple(samples[name][good].astype(np.int64) for name in _VISIT)


def _sampled(user: NDArray[np.int64], halved: int) -> NDArray[np.bool_]:
    """Whether users are in the sample after so many halvings, bool [n]: one in 2^halved, by splitmix64."""
    with np.errstate(over="ignore"):
        x = user.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    found: NDArray[np.bool_] = x <= np.uint64((1 << 64 - halved) - 1)
    return found


def _histories(parts: list[list[NDArray[np.int64]]], items: int, share: float) -> Histories:
    """Visits sorted by user, time and item; the parts are used up, a column at a time."""
    nothing = np.zeros(0, np.int64)
    user, item, time = (np.concatenate([nothing, *(part.pop(0) for part in parts)]) for _ in range(3))
    order = np.lexsort((item, time, user))
    return Histories(user[order], item[order] - 1, time[order], items, share)


def cooccurrence(
    histories: Histories, threshold: int, most: int = 100, block: int = 8192
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of items that more than ``threshold`` users have in their histories (LGSID, equation 5).

    Works through the items that somebody visited in blocks: what is held is the histories, the counts of one block
    and the pairs found. Of each user the last ``most`` distinct items count, so that one user of ten thousand visits
    does not make a hundred million pairs.

    Returns:
        a, b, count: int64 [P] each, a < b, sorted.
    """
    items, blocks = _pair_counts(histories, most, block)
    found = [np.zeros((3, 0), np.int64)]
    for a, b, count in blocks:
        kept = count > threshold
        order = np.lexsort((b[kept], a[kept]))
        found.append(np.stack([a[kept], b[kept], count[kept].astype(np.int64)])[:, order])
    a, b, count = np.concatenate(found, axis=1)
    return items[a], items[b], count


def count_threshold(histories: Histories, most: int = 100, block: int = 8192) -> int:
    """What counts as visited together in these data: the smallest number of users that at most one in twenty
    (``CLOSEST``) of the pairs that anybody visited exceeds.

    The paper has 1,200 users, of data a thousand times as many. A share of the pairs there are goes with the number of
    users, of visits and of items, and with a sample of them; 0 where there are no pairs.
    """
    of_count = np.zeros(2, np.int64)  # pairs by how many users they have
    for _, _, count in _pair_counts(histories, most, block)[1]:
        more = np.bincount(count, minlength=len(of_count))
        more[: len(of_count)] += of_count
        of_count = more
    above = of_count[::-1].cumsum()[::-1] - of_count
    return int(np.flatnonzero(above <= CLOSEST * of_count.sum())[0])


def _pair_counts(
    histories: Histories, most: int, block: int
) -> tuple[NDArray[np.int64], Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]]]:
    """The items that somebody visited, and block by block which pairs of them, a < b, how many users have."""
    latest = histories.latest(most)
    items, item = np.unique(latest.item, return_inverse=True)  # in the same order, and no longer as many as there are
    users, user = np.unique(latest.user, return_inverse=True)
    visits = csr_array((np.ones(len(user), np.int32), (user, item)), shape=(len(users), len(items)))
    by_item = visits.T.tocsr()

    def blocks() -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]]:
        for start in range(0, len(items), block):
            counts = (by_item[start : start + block] @ visits).tocoo()
            a, b = counts.coords[0].astype(np.int64) + start, counts.coords[1].astype(np.int64)
            once = a < b
            yield a[once], b[once], counts.data[once]

    return items, blocks()
