"""Vectors of users: of the text of their last places, or the mean of those places' vectors.

They are what the anchors of behaviour alignment are (``behaviour``), whether anything was learned from these or not.
``tokenize`` makes users' semantic IDs of them. Only visits of the training split count; a user's vector holds the
last of them, which training samples have to predict, so in training it says more than it will in serving.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...data.urls import fetched
from ..ranks import Ranks
from ..text.encoders import Encoder
from ..text.prompts import Prompts
from ..text.store import USER, EmbeddingStore, EmbeddingWriter
from .behaviour import VisitPairs, anchor_vectors, user_places
from .histories import UserVisits


def write_user_vectors(
    folder: Path,
    data: Path,
    items: EmbeddingStore,
    by: Literal["text", "mean"],
    history: int,
    *,
    shard_rows: int = 65_536,
    text: tuple[Encoder, Prompts] | None = None,
) -> int:
    """A store of the vectors of users who have a training visit, in the order of users.parquet; all ranks call it.

    A shard at a time, and the visits of its users. Shards that are there stay.

    Args:
        folder: of the store.
        data: the prepared folder.
        items: vectors of its items, in its order.
        by: mean of the places' vectors, or text.
        history: last distinct places of a user.
        shard_rows: users a shard.
        text: what reads the users, for ``by="text"``.

    Returns:
        How many users there are.
    """
    seen, ranks = UserVisits(data, len(items)), Ranks.current()
    known = seen.known()
    ids = pq.read_table(fetched(data / "users.parquet"), columns=["user_id"])["user_id"].take(pa.array(known))
    made_from = items.made_from | {"users": {"by": by, "history": history}}
    writer = EmbeddingWriter(folder, ids, items.dim, shard_rows, made_from, USER)
    for shard in writer.missing()[ranks.rank :: ranks.world]:
        rows = known[writer.rows_of(shard)]
        _, places = user_places(seen.of(range(int(rows[0]), int(rows[-1]) + 1)), history)
        pairs = VisitPairs(places, np.zeros(len(rows), np.int64), np.ones(len(rows), bool))
        writer.write(shard, anchor_vectors(text if by == "text" else None, items, pairs))
    ranks.barrier()
    return len(known)
