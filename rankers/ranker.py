"""The ranker: tables, and one module for all else."""

import torch
from torch import nn

from ..data.batches.batch import RankingBatch
from ..data.batches.features import Features
from ..embeddings.tables import FeatureEmbeddings
from .dense import DensePart, RankerConfig, Scores


class Ranker(nn.Module):
    """Tables and dense part in one module, for DistributedModelParallel.

    Two parts, so that TorchRec's pipelines, which trace ``forward`` for where tables are looked up, see two calls and
    nothing of what towers and plug-ins do.

    Args:
        features: the description of tables.
        config: the dense part.
        device: of the tables; "meta" leaves it to the sharder.
    """

    def __init__(self, features: Features, config: RankerConfig, device: torch.device | str = "meta") -> None:
        super().__init__()
        self.embeddings = FeatureEmbeddings(features, device)
        self.dense = DensePart(features, config)

    def forward(self, batch: RankingBatch) -> Scores:
        rows = self.embeddings(batch)
        scores: Scores = self.dense(rows.items, rows.pooled, batch.dense)
        return scores
