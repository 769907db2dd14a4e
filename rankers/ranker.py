"""The ranker: embeddings, interest tower, MLP, logit."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.batch import Context, RankingBatch
from ..data.features import HISTORY_GAPS, Features
from ..embeddings.tables import Embedded, FeatureEmbeddings
from .din import Dice
from .tower import History, find_tower


@dataclass(kw_only=True)
class RankerConfig:
    """The dense part of a ranker."""

    tower: str = "din"
    """Interest tower: din, or your own as package.module:Class."""
    mlp: list[int] = field(default_factory=lambda: [128, 64])
    """Widths of the hidden layers between tower and logit."""

    @property
    def uses_context(self) -> bool:
        """Whether batches must carry a Context for the tower."""
        return bool(getattr(find_tower(self.tower), "uses_context", False))

    def __post_init__(self) -> None:
        if not self.mlp or min(self.mlp) < 1:
            raise ValueError(f"ranker.mlp={self.mlp}: expected one or more positive widths")


class Scorer(nn.Module):
    """The dense part: what the tables give, to logits. Plain tensors in and out, so that torch.export takes it whole.

    Args:
        features: widths follow from it.
        config: tower and MLP.
    """

    def __init__(self, features: Features, config: RankerConfig) -> None:
        super().__init__()
        self.tower = find_tower(config.tower)(features.query_dim, HISTORY_GAPS)
        width = features.query_dim + self.tower.output_dim + features.pooled_dim + features.dense_dim
        layers: list[nn.Module] = []
        for hidden in config.mlp:
            layers += [nn.Linear(width, hidden), Dice(hidden)]
            width = hidden
        self.mlp = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(
        self,
        query: Tensor,
        keys: Tensor,
        offsets: Tensor,
        gaps: Tensor,
        pooled: Tensor,
        dense: Tensor,
        context: Context | tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """Logits float32 [B].

        Args:
            query: target item, [B, D].
            keys: history, jagged, [T, D].
            offsets: int64 [B+1].
            gaps: of each history entry, [T, G].
            pooled: pooled features, [B, P].
            dense: dense features, [B, F].
            context: where the tower uses it; an exported program takes its fields as a plain tuple.
        """
        context = None if context is None else Context(*context)
        interest = self.tower(query, History(keys, offsets, gaps), context)
        return self.logits(query, interest, pooled, dense)

    def logits(self, query: Tensor, interest: Tensor, pooled: Tensor, dense: Tensor) -> Tensor:
        """The MLP on target [B, D], interest [B, I], pooled [B, P] and dense [B, F] features: float32 [B]."""
        return self.mlp(torch.cat([query, interest, pooled, dense], dim=1)).squeeze(1).float()


class Scores(NamedTuple):
    """What a ranker gives for a batch.

    Attributes:
        logits: float32 [B].
        losses: by name, the weighted losses that join the cross-entropy; empty outside of training.
    """

    logits: Tensor
    losses: dict[str, Tensor]


class Ranker(nn.Module):
    """Tables and scorer in one module, for DistributedModelParallel.

    Args:
        features: the description of tables.
        config: the dense part.
        device: of the tables; "meta" leaves it to the sharder.
    """

    def __init__(self, features: Features, config: RankerConfig, device: torch.device | str = "meta") -> None:
        super().__init__()
        self.embeddings = FeatureEmbeddings(features, device)
        self.scorer = Scorer(features, config)

    def forward(self, batch: RankingBatch) -> Scores:
        embedded: Embedded = self.embeddings(batch)
        query, pooled = embedded.query, embedded.pooled
        history = History(embedded.keys, embedded.offsets, batch.history_gaps)
        if not self.training:
            return Scores(self.scorer(query, *history, pooled, batch.dense, batch.context), {})
        interest, loss = self.scorer.tower.forward_with_loss(query, history, batch.context)
        logits = self.scorer.logits(query, interest, pooled, batch.dense)
        return Scores(logits, {} if loss is None else {"tower": loss})
