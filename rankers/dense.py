"""The dense part of a ranker: plug-ins, interest tower, MLP or heads, logits, and the losses.

Plain tensors in and out: nothing of it knows how tables are sharded, and it runs where there is no TorchRec.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ..data.batches.activity import ACTIVITY_DIM
from ..data.batches.dense_batch import Context, DenseBatch, LossInputs, Traits
from ..data.batches.features import CLUSTER, USER_CLUSTER, Features
from ..embeddings.cluster_gate import ClusterGate
from .objectives import Heads, hidden, weighted_mean
from .plugins.akt import AktConfig, one_way_loss
from .plugins.items import ItemEncoder, Items
from .plugins.rest import ContrastItems, SpatialContrast
from .plugins.views import HierarchicalViews
from .settings import RankerConfig
from .towers.tower import Samples, with_options


class Encoded(NamedTuple):
    """What the tables gave, after the plug-ins.

    Attributes:
        items: the batch's distinct items, U of them.
        pooled: pooled features, users mixed with their clusters, [B, P].
    """

    items: Items
    pooled: Tensor


class Scorer(nn.Module):
    """The dense part: what the tables give, to logits. Plain tensors in and out, so that torch.export takes it whole.

    Args:
        features: widths follow from it.
        config: plug-ins, tower and MLP.
    """

    def __init__(self, features: Features, config: RankerConfig) -> None:
        super().__init__()
        self.items = ItemEncoder(features, config.rest, config.akt)
        self.users = UserEncoder(features, config.akt)
        make, dim = with_options(config.tower, config.tower_options), self.items.output_dim
        self.tower: nn.Module
        self.views = bool(config.akt.enabled) and config.akt.views
        if self.views:
            own = self.items.dim
            self.tower = HierarchicalViews(
                make,
                # the individual view, which is all that a tower alone would see, the cluster's, and the content's
                [dim, own, *([dim - own] if dim > own else [])],
                features.gaps,
                2 * ACTIVITY_DIM,
                config.akt.view_visits,
            )
        else:
            self.tower = make(dim, features.gaps)
        width = dim + self.tower.output_dim + self.users.output_dim + features.dense_dim
        self.mlp: nn.Module
        if len(features.objectives) > 1:
            self.mlp = Heads(width, config.mlp, features, config.objectives)
        else:
            self.mlp = nn.Sequential(*hidden(width, config.mlp), nn.Linear(config.mlp[-1], 1))

    def forward(
        self,
        items: Tensor,
        target: Tensor,
        visits: Tensor,
        offsets: Tensor,
        gaps: Tensor,
        pooled: Tensor,
        dense: Tensor,
        context: Context | tuple[Tensor, ...] | None = None,
        traits: Traits | tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """Logits float32 [B]; of several objectives [B, K], see ``Heads``.

        Args:
            items: rows of distinct items, of all sequence tables side by side, [U, D].
            target: which of them each sample is about, int64 [B].
            visits: which of them the history has, jagged, int64 [T].
            offsets: int64 [B+1].
            gaps: of each history entry, [T, G].
            pooled: pooled features, [B, P].
            dense: dense features, [B, F].
            context: where the tower uses it; an exported program takes its fields as a plain tuple.
            traits: where plug-ins use them; as the context.
        """
        samples = Samples(target, visits, offsets, gaps, None if context is None else Context(*context))
        traits = None if traits is None else Traits(*traits)
        encoded = self.encode(items.split(self.items.dim, dim=1), pooled, traits)
        query = samples.query(encoded.items.vectors)
        interest, _ = self.interest(encoded.items, query, samples, traits, with_loss=False)
        return self.logits(query, interest, encoded.pooled, dense)

    def encode(self, items: Sequence[Tensor], pooled: Tensor, traits: Traits | None) -> Encoded:
        """The plug-ins' part; rows of the distinct items by sequence table, else as in ``forward``."""
        if traits is None:
            return Encoded(self.items(items), pooled)
        return Encoded(self.items(items, traits.attributes, traits.activity), self.users(pooled, traits.user_activity))

    def interest(
        self, items: Items, query: Tensor, samples: Samples, traits: Traits | None, with_loss: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Interest [B, I], and the tower's own loss if that is asked for and there is one; query is the targets'."""
        arguments: tuple[object, ...]
        if self.views:
            assert traits is not None and items.cluster is not None
            activity = torch.cat([traits.user_activity, traits.activity[samples.target]], dim=1)
            content = items.vectors[:, self.items.dim :]
            views = [items.vectors, items.cluster, *([content] if content.shape[1] else [])]
            arguments = views, samples, activity
        else:
            shared = bool(getattr(self.tower, "shares_keys", False))
            arguments = query, samples.history(items.vectors, shared), samples.context
        if with_loss:
            *found, loss = self.tower.forward_with_loss(*arguments)  # type: ignore[operator]
            return found[0], loss
        found = self.tower(*arguments)
        return found[0] if self.views else found, None

    def logits(self, query: Tensor, interest: Tensor, pooled: Tensor, dense: Tensor) -> Tensor:
        """The MLP on target [B, D], interest [B, I], pooled [B, P] and dense [B, F] features: as ``forward`` gives."""
        logits: Tensor = self.mlp(torch.cat([query, interest, pooled, dense], dim=1))
        return logits if self.heads else logits.squeeze(1).float()

    @property
    def heads(self) -> Heads | None:
        """What gives several objectives; None where there is one."""
        return self.mlp if isinstance(self.mlp, Heads) else None


class UserEncoder(nn.Module):
    """Mixes the user's own embedding with that of the user's cluster (AKT-Rec), among the other pooled features.

    Args:
        features: the pooled tables.
        akt: the plug-in; without it, or without users' clusters, the pooled features pass through.
    """

    def __init__(self, features: Features, akt: AktConfig) -> None:
        super().__init__()
        self.names = features.pooled_keys
        self.widths = [t.dim for t in features.pooled for _ in t.features]
        self.mixes = bool(akt.enabled) and {"user", USER_CLUSTER} <= {*self.names}
        self.output_dim = features.pooled_dim
        if self.mixes:
            dim = self.widths[self.names.index("user")]
            self.gate = ClusterGate(dim, adaptive=akt.gate)
            self.output_dim -= dim

    def forward(self, pooled: Tensor, activity: Tensor) -> Tensor:
        """Pooled features [B, P] and ``Traits.user_activity`` [B, A] to [B, P less the cluster's columns]."""
        if not self.mixes:
            return pooled
        parts = dict(zip(self.names, pooled.split(self.widths, dim=1), strict=True))
        parts["user"] = self.mix(parts["user"], parts.pop(USER_CLUSTER), activity)
        return torch.cat(list(parts.values()), dim=1)

    def mix(self, own: Tensor, cluster: Tensor, activity: Tensor) -> Tensor:
        """Users' own rows and those of their clusters, [N, D] both, and activity [N, A] to [N, D]."""
        mixed: Tensor = self.gate(own, cluster, activity)[0]
        return mixed


class Scores(NamedTuple):
    """What a ranker gives for a batch.

    Attributes:
        logits: float32 [B], or [B, K] of several objectives.
        losses: by name, the weighted losses that join those of the objectives; empty outside of training.
        logged: by name, numbers worth a line in the log; no gradient.
    """

    logits: Tensor
    losses: dict[str, Tensor]
    logged: dict[str, Tensor]

    def loss(
        self, label: Tensor, weight: Tensor | None = None, heads: Heads | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to descend, that of the objectives plus ``losses``; and what to log of the objectives.

        Args:
            label: float32 [B], or [B, K].
            weight: of samples, float32 [B]; None: 1 each.
            heads: that gave the logits, of several objectives.

        Returns:
            A scalar, and ``loss`` of all objectives, with ``loss/NAME`` of each where there are several.
        """
        if heads is None:
            if weight is None:
                own = binary_cross_entropy_with_logits(self.logits, label)
            else:
                own = weighted_mean(binary_cross_entropy_with_logits(self.logits, label, reduction="none"), weight)
            return sum(self.losses.values(), own), {"loss": own}
        each = heads.losses(self.logits, label, weight)
        total = torch.stack([*each.values()]).sum()
        return sum(self.losses.values(), total), {"loss": total} | {f"loss/{name}": x for name, x in each.items()}


class DensePart(nn.Module):
    """All of a ranker but its tables, in one module: a trace of the ranker sees the tables and this as one leaf.

    Args:
        features: widths follow from it.
        config: plug-ins, tower and MLP.
    """

    def __init__(self, features: Features, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        rows = {t.name: t.rows for t in features.tables}
        self.clusters, self.user_clusters = (rows.get(name, 0) for name in (CLUSTER, USER_CLUSTER))
        self.scorer = Scorer(features, config)
        self.contrast = (
            SpatialContrast(self.scorer.items.dim, config.rest, features.attributes)
            if config.rest.enabled and config.rest.contrast
            else None
        )

    def forward(self, items: list[Tensor], pooled: Tensor, batch: DenseBatch) -> Scores:
        """Logits, and in training the losses beside those of the objectives.

        Args:
            items: rows of the batch's distinct items, [U, D] by sequence table.
            pooled: pooled features, [B, P].
            batch: all else.
        """
        encoded = self.scorer.encode(items, pooled, batch.traits)
        samples = Samples(
            batch.target, batch.visits, batch.offsets, batch.history_gaps, batch.context, batch.lengths, batch.starts
        )
        query = samples.query(encoded.items.vectors)
        interest, loss = self.scorer.interest(encoded.items, query, samples, batch.traits, with_loss=self.training)
        scores = Scores(self.scorer.logits(query, interest, encoded.pooled, batch.features), {}, {})
        if loss is not None:
            scores.losses["tower"] = loss
        if self.training and batch.traits is not None and batch.loss_inputs is not None:
            self._add_contrast(scores, batch.target, query, items, batch.traits, batch.loss_inputs)
            self._add_one_way(scores, batch.target, items, pooled, batch.loss_inputs)
        return scores

    def _add_contrast(
        self,
        scores: Scores,
        target: Tensor,
        query: Tensor,
        rows: list[Tensor],
        traits: Traits,
        inputs: LossInputs,
    ) -> None:
        """ReST's loss, on the distinct targets of the batch; query [B, D], ``rows`` by sequence table."""
        if self.contrast is None:
            return
        items, first = self.scorer.items, inputs.first_targets
        targets = target.index_select(0, first)
        parts = dict(zip(items.names, rows, strict=True))
        loss, logged = self.contrast(
            ContrastItems(
                vectors=query[:, : items.dim].index_select(0, first),  # their gradient needs no buffer of all items
                rows=traits.attributes[targets],
                attributes=torch.stack(
                    [parts[name].detach().index_select(0, targets) for name in items.attributes], dim=1
                ),
                places=inputs.place.index_select(0, targets),
                ids=inputs.item.index_select(0, targets),
                radius_scale=inputs.radius_scale[targets] if self.config.rest.density_adaptive else None,
            ),
            most=len(target),
        )
        scores.losses["rest"] = loss
        scores.logged.update({f"rest_{name}": value for name, value in logged.items()})

    def _add_one_way(
        self, scores: Scores, target: Tensor, items: list[Tensor], pooled: Tensor, inputs: LossInputs
    ) -> None:
        """AKT-Rec's one-way losses: of the targets, and of the users."""
        akt = self.config.akt
        if not akt.enabled or not akt.one_way_weight:
            return
        loss, share = one_way_loss(
            items[self.scorer.items.names.index("item")].index_select(0, target),
            inputs.item_cluster[target],
            inputs.item_head[target],
            akt.temperature,
            self.clusters,
        )
        scores.losses["akt_items"], scores.logged["akt_items_anchors"] = akt.one_way_weight * loss, share
        users = self.scorer.users
        if users.mixes:
            own = pooled.split(users.widths, dim=1)[users.names.index("user")]
            loss, share = one_way_loss(own, inputs.user_cluster, inputs.user_head, akt.temperature, self.user_clusters)
            scores.losses["akt_users"], scores.logged["akt_users_anchors"] = akt.one_way_weight * loss, share
