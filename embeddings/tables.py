"""The embedding tables: one description of features makes the sharded collections.

Shapes: B samples, T history entries of all samples together, D_t = width of table t, P = pooled width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from ..data.batch import RankingBatch
from ..data.features import Features

INIT_RANGE = 0.1
"""Rows start uniform in +-INIT_RANGE. TorchRec's default, sqrt(1/rows), makes small tables far louder."""


class Embedded(NamedTuple):
    """What the dense part takes from the tables.

    Attributes:
        query: rows of the target item, [B, D_t] by sequence table.
        keys: rows of the history, jagged, [T, D_t] by sequence table.
        offsets: sample b's history is rows offsets[b] to offsets[b+1], int64 [B+1].
        pooled: all pooled features side by side, [B, P].
    """

    query: list[Tensor]
    keys: list[Tensor]
    offsets: Tensor
    pooled: Tensor


class FeatureEmbeddings(nn.Module):
    """All tables of a ranker.

    ``sequence`` is an EmbeddingCollection in which target and history share rows; ``pooled`` is an
    EmbeddingBagCollection that adds or averages. Both are TorchRec modules, so DistributedModelParallel shards them.

    Args:
        features: the description of tables.
        device: "meta" where the sharder will place the rows, else where to put them.
    """

    def __init__(self, features: Features, device: torch.device | str = "meta") -> None:
        super().__init__()
        self.features = features
        device = torch.device(device)
        self.sequence = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name=t.name,
                    num_embeddings=t.rows,
                    embedding_dim=t.dim,
                    feature_names=list(t.features),
                    weight_init_min=-INIT_RANGE,
                    weight_init_max=INIT_RANGE,
                )
                for t in features.sequence
            ],
            device=device,
        )
        self.pooled = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=t.name,
                    num_embeddings=t.rows,
                    embedding_dim=t.dim,
                    feature_names=list(t.features),
                    pooling=PoolingType.MEAN if t.mean else PoolingType.SUM,
                    weight_init_min=-INIT_RANGE,
                    weight_init_max=INIT_RANGE,
                )
                for t in features.pooled
            ],
            device=device,
        )

    def forward(self, batch: RankingBatch) -> Embedded:
        """Look up a batch; with sharded tables this is where ranks exchange ids and rows."""
        rows = self.sequence(batch.sequence)
        query, keys = by_table(self.features, batch, {key: found.values() for key, found in rows.items()})
        pooled = self.pooled(batch.pooled)  # a sharded collection orders its keys by rank, not as configured
        return Embedded(
            query=query,
            keys=keys,
            offsets=rows[self.features.history_keys[0]].offsets(),
            pooled=torch.cat([pooled[key] for key in self.features.pooled_keys], dim=1),
        )


def by_table(features: Features, batch: RankingBatch, rows: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Rows of targets, [B, D_t] by sequence table, and of visits, [T, D_t].

    Args:
        features: the description of tables.
        batch: what was looked up.
        rows: what that gave by feature; for tables with few rows the distinct ones.
    """
    samples = batch.label.numel()
    places = {} if batch.places is None else dict(zip(features.few, batch.places.unbind(0), strict=True))
    query, keys = [], []
    for table in features.sequence:
        of_target, of_history = table.features
        if table.name in places:
            place = places[table.name]
            query.append(F.embedding(place[:samples], rows[of_history]))
            keys.append(F.embedding(place[samples:], rows[of_history]))
        else:
            query.append(rows[of_target])
            keys.append(rows[of_history])
    return query, keys
