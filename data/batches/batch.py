"""What the loader yields, and what the ranker takes.

Shapes: B samples, each a candidate of one of R requests, T history entries of all requests together (jagged), U
distinct items among targets and visits of a batch: what belongs to an item is looked up and computed once, however
often it was met.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from .dense_batch import DenseBatch


@dataclass
class SampleBatch:
    """Requests and candidates of them, as they stand in prepared folders, on the CPU.

    What is of a request is here once, however many of its candidates are. A request that the edge of a batch cuts is in
    both batches, each with its own candidates of it.

    Attributes:
        request_id: number of the request among all, int64 [R].
        user: row of users, 0 outside the vocabulary, int64 [R].
        user_index: index among all users, also those outside the vocabulary, int64 [R].
        time: of the request, seconds since 1970 UTC, int64 [R].
        lat, lon: place of the request in degrees, NaN where unknown, float32 [R].
        offsets: request r's history is entries offsets[r] to offsets[r+1], int64 [R+1].
        history: rows of the items visited, oldest first, int64 [T].
        history_hours: hours between each of these visits and the request, float32 [T].
        request: which of the R requests each candidate belongs to, in ascending order, each at least once, int64 [B].
        item: row of the candidate, int64 [B].
        label: 1 clicked or visited, 0 shown and not, float32 [B].
        visits: earlier positives of the user on this item, int32 [B].
        probability: the true click probability where the source knows it, float32 [B].
        valid: candidates before this index are real; the others repeat one so that all ranks have equal batches.
        utc_offset: of the request, minutes east of UTC, NaN where unknown, float32 [R]; None: unknown for all. Where it
            is unknown hours are in the item's solar time.
        history_size: visits that each entry of the histories stands for, float32 [T]; None: each is one.
        own: further columns by name, of requests [R] or candidates [B]: rows of tables, int64, or numbers, float32.
    """

    request_id: Tensor
    user: Tensor
    user_index: Tensor
    time: Tensor
    lat: Tensor
    lon: Tensor
    offsets: Tensor
    history: Tensor
    history_hours: Tensor
    request: Tensor
    item: Tensor
    label: Tensor
    visits: Tensor
    probability: Tensor | None
    valid: int
    utc_offset: Tensor | None = None
    history_size: Tensor | None = None
    own: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.label.numel()


@dataclass
class RankingBatch(Pipelineable):
    """What the ranker takes, on its device.

    Attributes:
        items: keys of the EmbeddingCollection: each table's rows of the distinct items, [U] a key; all belong to one
            "sample" of the tensor.
        pooled: keys of the EmbeddingBagCollection.
        dense: what the dense part takes besides.
        label: float32 [B]; [B, K] where the ranker has several objectives, a column each, NaN where nobody knows them.
        weight: of samples in training, float32 [B]; None: 1 each.
    """

    items: KeyedJaggedTensor
    pooled: KeyedJaggedTensor
    dense: DenseBatch
    label: Tensor
    weight: Tensor | None = None

    def _map(self, f: Callable[[Any], Any]) -> Self:
        weight = None if self.weight is None else f(self.weight)
        return type(self)(f(self.items), f(self.pooled), self.dense.map(f), f(self.label), weight)

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        return self._map(lambda x: x.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._map(lambda x: x.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        for x in (self.items, self.pooled, self.dense, self.label, self.weight):
            if x is not None:
                x.record_stream(stream)
