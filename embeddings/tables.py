"""The embedding tables: one description of features makes the sharded collections.

Shapes: B samples, U distinct items of a batch, D_t = width of table t, P = pooled width.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from ..data.batches.batch import RankingBatch
from ..data.batches.features import Features, Table

INIT_RANGE = 0.1
"""Rows start uniform in +-INIT_RANGE. TorchRec's default, sqrt(1/rows), makes small tables far louder."""


class Embedded(NamedTuple):
    """What the dense part takes from the tables.

    Attributes:
        items: rows of the batch's distinct items, [U, D_t] by sequence table.
        pooled: all pooled features side by side, [B, P].
    """

    items: list[Tensor]
    pooled: Tensor


def _settings(table: Table) -> dict[str, Any]:
    """What both kinds of collections are told of a table."""
    return {
        "name": table.name,
        "num_embeddings": table.rows,
        "embedding_dim": table.dim,
        "feature_names": list(table.features),
        "weight_init_min": -INIT_RANGE,
        "weight_init_max": INIT_RANGE,
    }


class FeatureEmbeddings(nn.Module):
    """All tables of a ranker.

    ``sequence`` is an EmbeddingCollection from which target and history have their rows; ``pooled`` is an
    EmbeddingBagCollection that adds or averages. Both are TorchRec modules, so DistributedModelParallel shards them.

    Args:
        features: the description of tables.
        device: "meta" where the sharder will place the rows, else where to put them.
    """

    def __init__(self, features: Features, device: torch.device | str = "meta") -> None:
        super().__init__()
        self.features = features
        device = torch.device(device)
        self.sequence = None  # TIGER has none
        if features.sequence:
            tables = [EmbeddingConfig(**_settings(t)) for t in features.sequence]
            self.sequence = EmbeddingCollection(tables=tables, device=device)
        self.pooled = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(**_settings(t), pooling=PoolingType.MEAN if t.mean else PoolingType.SUM)
                for t in features.pooled
            ],
            device=device,
        )

    def forward(self, batch: RankingBatch) -> Embedded:
        """Look up a batch; with sharded tables this is where ranks exchange ids and rows."""
        rows = {} if self.sequence is None else self.sequence(batch.items)
        pooled = self.pooled(batch.pooled)  # a sharded collection orders its keys by rank, not as configured
        return Embedded(
            items=[rows[key].values() for key in self.features.item_keys],
            pooled=torch.cat([pooled[key] for key in self.features.pooled_keys], dim=1),
        )
