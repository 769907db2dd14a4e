"""A catalog for more items than one device holds: each rank's device has a part of the rows, and asks the others'."""

import torch
import torch.distributed as dist
from torch import Tensor

from .catalog import Catalog
from .features import Features
from .item_columns import FoundItems


class ShardedCatalog(Catalog):
    """``Catalog``, its items cut over ranks: rank r has the rows from r · n on, n = ceil(items / ranks).

    Batches are equal to those of ``Catalog`` to the last bit. A batch's distinct items are asked for once: their rows,
    4 bytes an item, go to who has them, and their words come back, W · 4 bytes an item. The host waits once a batch,
    for how many rows go where.

    ``expand`` and ``rows`` are collective: all ranks of the group call them in the same order.

    Args:
        columns, features, device: as for ``Catalog``.
        group: the ranks that the items are cut over.
    """

    def __init__(
        self, columns: dict[str, Tensor], features: Features, device: torch.device, group: dist.ProcessGroup
    ) -> None:
        self.group, self.ranks = group, group.size()
        self.part = -(-len(columns["words"]) // self.ranks)
        self.first = group.rank() * self.part
        super().__init__(columns, features, device)
        self.starts = torch.arange(self.ranks + 1, device=device) * self.part

    def _own_words(self, words: Tensor) -> Tensor:
        return words[self.first : self.first + self.part]

    def rows(self, found: Tensor) -> FoundItems:
        """As ``Catalog.rows``; all ranks of the group call it, each with its own items."""
        cuts = torch.searchsorted(found, self.starts)  # in ascending order, so each rank's lie side by side
        wanted = cuts.diff()
        asked = torch.empty_like(wanted)
        dist.all_to_all_single(asked, wanted, group=self.group)
        to_get, to_give = torch.stack([wanted, asked]).tolist()
        rows = self._exchange(found.int(), to_give, to_get)
        words = self.words.index_select(0, rows - self.first)
        return FoundItems(self.layout, self._exchange(words, to_get, to_give))

    def _exchange(self, sent: Tensor, received_from: list[int], sent_to: list[int]) -> Tensor:
        received = sent.new_empty(sum(received_from), *sent.shape[1:])
        dist.all_to_all_single(received, sent.contiguous(), received_from, sent_to, group=self.group)
        return received
