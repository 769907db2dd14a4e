"""From the rows that the tables give to the vectors that towers see: plug-ins on an item's embedding, in one place."""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...data.batches.features import CLUSTER, LEVEL, Features
from ...embeddings.cluster_gate import ClusterGate
from ...embeddings.warm_up import MetaWarmUp
from .akt import AktConfig
from .rest import RestConfig

_MOST = 2**62  # combinations that are told apart by one number


def first_of_each(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Where each distinct number comes first, by number, [U], and which of those it is for each of the numbers [N].

    Example:
        >>> first_of_each(torch.tensor([7, 3, 7, 5]))
        (tensor([1, 3, 0]), tensor([2, 0, 2, 1]))
    """
    found, which = numbers.unique(return_inverse=True)
    rows = torch.arange(len(which), device=which.device)
    return torch.empty_like(found).scatter_reduce_(0, which, rows, "amin", include_self=False), which


class Items(NamedTuple):
    """Items as towers see them, N of them.

    Attributes:
        vectors: the item's own embedding, then its content, that is attributes and semantic ID, [N, D].
        cluster: embedding of its cluster; None without clusters.
    """

    vectors: Tensor
    cluster: Tensor | None


class ItemEncoder(nn.Module):
    """Mixes (AKT-Rec) and warms up (ReST) the item's own embedding; adds up the levels of its semantic ID.

        e = warm_up(gate(e_ind, e_clu), attributes)

    The levels of a semantic ID refine each other, so they are summed, as the vectors are that they stand for. Without
    plug-ins and semantic IDs, rows pass through as they are.

    Args:
        features: which tables there are.
        rest, akt: the plug-ins.

    Raises:
        ValueError: a plug-in lacks what it works on.
    """

    def __init__(self, features: Features, rest: RestConfig, akt: AktConfig) -> None:
        super().__init__()
        self.dim = features.sequence[0].dim
        self.names = [t.name for t in features.sequence]
        self.attributes = features.attributes
        if rest.enabled and not self.attributes:
            raise ValueError(
                "rest is enabled, but no item has a category or a brand, or features.history_attributes leaves them "
                "out; add an attribute, or leave rest out"
            )
        if akt.enabled and CLUSTER not in self.names:
            raise ValueError(
                "akt is enabled, but there are no semantic IDs to make clusters of; set features.semantic_ids to a "
                "folder that placerank tokenize made"
            )
        self.gate = ClusterGate(self.dim, adaptive=akt.gate) if akt.enabled else None
        warm_up = rest.enabled and rest.warm_up
        self.warm_up = MetaWarmUp(self.dim, len(self.attributes), rest.attribute_dropout) if warm_up else None
        self.attribute_rows = [next(t.rows for t in features.sequence if t.name == n) for n in self.attributes]
        levels = [n for n in self.names if n.startswith(LEVEL)]
        alone = [n for n in self.names if n != CLUSTER and n not in levels]
        self.output_dim = self.dim * (len(alone) + bool(levels))
        self.plain = not levels and not akt.enabled and not warm_up

    def forward(
        self, rows: Sequence[Tensor], attributes: Tensor | None = None, activity: Tensor | None = None
    ) -> Items:
        """Items from the rows of their tables.

        Args:
            rows: [N, D] by sequence table.
            attributes: ``Traits.attributes``, int64 [N, F], for the warm-up.
            activity: ``Traits.activity``, [N, A], for the gate.
        """
        if self.plain:
            return Items(torch.cat([*rows], dim=1), None)
        parts = dict(zip(self.names, rows, strict=True))
        item, cluster = parts.pop("item"), parts.pop(CLUSTER, None)
        if self.gate is not None:
            assert cluster is not None and activity is not None
            item, _ = self.gate(item, cluster, activity)
        if self.warm_up is not None:
            assert attributes is not None
            item = item + self._content([parts[name] for name in self.attributes], attributes)
        levels = [parts.pop(name) for name in list(parts) if name.startswith(LEVEL)]
        semantic = [reduce(torch.add, levels)] if levels else []
        return Items(torch.cat([item, *parts.values(), *semantic], dim=1), cluster)

    def _content(self, embeddings: list[Tensor], rows: Tensor) -> Tensor:
        """What the warm-up makes of attributes, [N, D]; embeddings [N, D] by attribute, rows int64 [N, F].

        On the CPU once for each combination that is met: of 39,000 items of a batch 8,000. A GPU would wait for their
        number longer than it computes, a compiled program has none, and with dropout each item draws its own.
        """
        assert self.warm_up is not None
        if self.warm_up.drops or rows.device.type != "cpu" or torch.compiler.is_compiling():
            return self.warm_up.content(torch.stack(embeddings, dim=1), rows > 0)
        combination, below = torch.zeros_like(rows[:, 0]), 1
        for size, column in zip(self.attribute_rows, rows.unbind(1), strict=True):
            if below * size > _MOST:
                combination = combination.unique(return_inverse=True)[1]
                below = len(combination)
            combination, below = combination * size + column, below * size
        first, which = first_of_each(combination)
        chosen = torch.stack([x.index_select(0, first) for x in embeddings], dim=1)
        return self.warm_up.content(chosen, rows[first] > 0).index_select(0, which)
