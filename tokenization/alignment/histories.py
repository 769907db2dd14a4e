"""Who went where in the training split, for whatever learns from behaviour. Never a later visit.

Read from the samples of a prepared folder: the positives of ``train/``. A place that only validation or test visits
know has no part in any pair.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import csr_array

_VISIT = ("user_index", "item_row", "time", "user_row")


@dataclass(frozen=True)
class Histories:
    """Visits in the training split, sorted by user and then time.

    Attributes:
        user: users as in the samples' ``user_index``, int64 [V].
        item: rows of the items table (catalog rows less one), int64 [V].
        time: seconds since 1970, int64 [V].
        items: how many items there are, N.
        row: row of users.parquet of each visit's user, int64 [V]; 0 = one of those who share it.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time: NDArray[np.int64]
    items: int
    row: NDArray[np.int64] | None = None

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

    def matrix(self) -> csr_array:
        """Who has been where: 0 or 1, uint8 [users, N]."""
        _, user = np.unique(self.user, return_inverse=True)
        size = (int(user.max()) + 1 if len(user) else 0, self.items)
        found = csr_array((np.ones(len(user), np.int32), (user, self.item)), shape=size)
        found.sum_duplicates()
        found.data[:] = 1
        return found


def read_histories(prepared: Path, items: int) -> Histories:
    """The training split's positives, read a row group at a time.

    Raises:
        FileNotFoundError: the folder has no training samples.
    """
    files = sorted((prepared / "train").glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{prepared / 'train'} holds no samples; make them with placerank prepare")
    parts = []
    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=[*_VISIT, "label"]):
                positive = batch["label"].to_numpy() == 1
                columns = (batch[name].to_numpy()[positive] for name in _VISIT)
                parts.append(np.stack([column.astype(np.int64) for column in columns]))
    visits = np.concatenate(parts, axis=1)
    user, item, time, _ = visits
    order = np.lexsort((item, time, user))
    order = order[item[order] > 0]  # row 0 of the catalog stands for items that are not in it
    user, item, time, row = visits[:, order]
    return Histories(user, item - 1, time, items, row)


def cooccurrence(
    histories: Histories, threshold: int, most: int = 100, block: int = 8192
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of items that more than ``threshold`` users have in their histories (LGSID, equation 5).

    Works through the items in blocks: what is held is the histories and the counts of one block. Of each user the
    last ``most`` distinct items count, so that one user of ten thousand visits does not make a hundred million pairs.

    Returns:
        a, b, count: int64 [P] each, a < b, sorted.
    """
    visits = histories.latest(most).matrix()
    by_item = visits.T.tocsr()
    found = []
    for start in range(0, histories.items, block):
        counts = (by_item[start : start + block] @ visits).tocoo()
        a, b = counts.coords[0].astype(np.int64) + start, counts.coords[1].astype(np.int64)
        kept = (a < b) & (counts.data > threshold)
        order = np.lexsort((b[kept], a[kept]))
        found.append(np.stack([a[kept], b[kept], counts.data[kept].astype(np.int64)])[:, order])
    a, b, count = np.concatenate(found, axis=1)
    return a, b, count
