"""The vectors of items and users as the ranker ends up seeing them: mixed with their clusters, warmed up.

What serving needs to find items by similarity, or to feed another model, without this one's dense part.

    item_final    of each item, what towers take as query and keys: its own embedding after gate and warm-up, then its
                  attributes' embeddings and the sum of its semantic ID's
    user_final    of each user, the embedding after the gate; activity, and the cluster of a user without a semantic
                  ID of the user's own, are those that the history of the latest training sample shows

Both are tables as those of a checkpoint are, computed block by block: memory holds a block, the tables that items
share (attributes, semantic IDs, clusters), and for users a row of activity each.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.batches.activity import ACTIVITY_DIM
from ..data.batches.catalog import Catalog
from ..data.batches.features import USER_CLUSTER
from ..data.batches.loader import SampleLoader
from ..embeddings.shards import CheckpointTables
from ..reports.progress import tracked
from .dense import Scorer

ITEM_FINAL, USER_FINAL = "item_final", "user_final"
_BATCH = 8192


def final_tables(scorer: Scorer) -> list[str]:
    """Names of the vectors that differ from rows of tables: none for a ranker without plug-ins and semantic IDs."""
    return [ITEM_FINAL] * (not scorer.items.plain) + [USER_FINAL] * scorer.users.mixes


class FinalVectors:
    """Tables ``item_final`` and ``user_final``; a ``TableSource`` for ``export_tables``.

    Args:
        tables: of the checkpoint.
        scorer: its dense part, in eval mode.
        catalog: of the data that it was trained on.
        data: that data; its training samples tell what users did.
    """

    def __init__(self, tables: CheckpointTables, scorer: Scorer, catalog: Catalog, data: Path) -> None:
        self.tables, self.scorer, self.catalog, self.data = tables, scorer, catalog, data

    def shape(self, name: str) -> tuple[int, int]:
        """Rows and columns of a table."""
        if name == USER_FINAL:
            return self.tables.shape("user")
        return self.tables.shape("item")[0], self.scorer.items.output_dim

    def blocks(self, name: str, block_rows: int) -> Iterator[Tensor]:
        """A table from first row to last in blocks of ``block_rows`` rows (the last may have fewer), float32 [n, D]."""
        with torch.no_grad():
            yield from self._users(block_rows) if name == USER_FINAL else self._items(block_rows)

    def _whole(self, name: str) -> Tensor:
        return next(self.tables.blocks(name, self.tables.shape(name)[0]))

    def _items(self, block_rows: int) -> Iterator[Tensor]:
        catalog, shared = self.catalog, {n: self._whole(n) for n in self.scorer.items.names if n != "item"}
        start = 0
        for own in self.tables.blocks("item", block_rows):
            some = catalog.rows(torch.arange(start, start + len(own)))
            rows = {name: table[some.rows(name)] for name, table in shared.items()}
            by_table = [own if n == "item" else rows[n] for n in self.scorer.items.names]
            traits = (some.attributes, some.activity) if catalog.features.traits else ()
            yield self.scorer.items(by_table, *traits).vectors
            start += len(own)

    def _users(self, block_rows: int) -> Iterator[Tensor]:
        clusters, activity = latest_users(self.catalog, self.data, self.tables.shape("user")[0])
        table = self._whole(USER_CLUSTER)
        start = 0
        for own in self.tables.blocks("user", block_rows):
            some = slice(start, start + len(own))
            yield self.scorer.users.mix(own, table[clusters[some]], activity[some])
            start += len(own)


def latest_users(catalog: Catalog, data: Path, users: int) -> tuple[Tensor, Tensor]:
    """Cluster row int64 [U] and activity float32 [U, A] of users, by the history of each one's latest training sample.

    Row 0, everybody outside of the vocabulary, and users without a training sample are as without a history.
    """
    clusters, latest = torch.zeros(users, dtype=torch.int64), torch.full((users,), torch.iinfo(torch.int64).min)
    none = torch.zeros(2, dtype=torch.int64)
    activity = catalog.user_activity(none, torch.zeros(0)).expand(users, ACTIVITY_DIM).clone()
    loader = SampleLoader(data, "train", _BATCH)
    for sample in tracked(loader, "users", loader.steps_per_epoch, "batches"):
        user = sample.user
        newest_first = sample.time.argsort(descending=True, stable=True)
        rows, first = map(torch.from_numpy, np.unique(user[newest_first].numpy(), return_index=True))
        at = newest_first[first]
        newer = (sample.time[at] >= latest[rows]) & (rows > 0)
        rows, at = rows[newer], at[newer]
        latest[rows] = sample.time[at]
        clusters[rows] = catalog.user_clusters(user, sample.offsets, sample.history)[at]
        activity[rows] = catalog.user_activity(sample.offsets, sample.history_hours, sample.history_size)[at]
    return clusters, activity
