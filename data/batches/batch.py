"""What the loader yields, and what the ranker takes.

Shapes: B samples, T history entries in all of them together (jagged), U distinct items among targets and visits of a
batch: what belongs to an item is looked up and computed once, however often it was met.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from .dense_batch import DenseBatch


@dataclass
class SampleBatch:
    """Samples as they stand in the prepared Parquet files, on the CPU.

    Attributes:
        ids: keys "user", "item" (one row number a sample) and "history" (oldest first); int64 values.
        history_hours: hours between each visit in the history and the sample's time, float32 [T].
        label: 1 clicked or visited, 0 shown and not, float32 [B].
        request: samples of one request share it, int64 [B].
        user_index: index among all users, also those outside the vocabulary, int64 [B].
        time: seconds since 1970 UTC, int64 [B].
        lat, lon: place of the request in degrees, NaN where unknown, float32 [B].
        visits: earlier positives of this user on this item, int32 [B].
        probability: the true click probability where the source knows it, float32 [B].
        valid: samples before this index are real; the others repeat one so that all ranks have equal batches.
    """

    ids: KeyedJaggedTensor
    history_hours: Tensor
    label: Tensor
    request: Tensor
    user_index: Tensor
    time: Tensor
    lat: Tensor
    lon: Tensor
    visits: Tensor
    probability: Tensor | None
    valid: int

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
        label: float32 [B].
    """

    items: KeyedJaggedTensor
    pooled: KeyedJaggedTensor
    dense: DenseBatch
    label: Tensor

    def _map(self, f: Callable[[Any], Any]) -> Self:
        return type(self)(f(self.items), f(self.pooled), self.dense.map(f), f(self.label))

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        return self._map(lambda x: x.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._map(lambda x: x.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        for x in (self.items, self.pooled, self.dense, self.label):
            x.record_stream(stream)
