"""What the loader yields, and what the ranker takes.

Shapes: B samples, T history entries in all of them together (jagged), F dense columns, G gap columns.
"""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


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


class Context(NamedTuple):
    """What is known of request, target and visits besides their embeddings.

    Places are unit vectors, NaN where unknown; hours are hours of the week in the item's solar time, 0 to 167;
    categories are rows of the category table, 0 where unknown.

    Attributes:
        category: of the target, int64 [B].
        hour: of the request, int64 [B].
        place: of the request, float32 [B, 3].
        target_place: of the target, float32 [B, 3].
        visit_category: int64 [T].
        visit_hour: int64 [T].
        visit_place: float32 [T, 3].
    """

    category: Tensor
    hour: Tensor
    place: Tensor
    target_place: Tensor
    visit_category: Tensor
    visit_hour: Tensor
    visit_place: Tensor


@dataclass
class RankingBatch(Pipelineable):
    """What the ranker takes, on its device.

    Attributes:
        sequence: keys of the EmbeddingCollection: for each table the target's feature, then the history's.
        pooled: keys of the EmbeddingBagCollection.
        dense: float32 [B, F].
        history_gaps: log(1 + hours) and log(1 + km) of each history entry, float32 [T, G].
        label: float32 [B].
        context: for towers that use it, else None.
    """

    sequence: KeyedJaggedTensor
    pooled: KeyedJaggedTensor
    dense: Tensor
    history_gaps: Tensor
    label: Tensor
    context: Context | None = None

    def _map(self, f: Any) -> Self:
        moved = {x.name: f(getattr(self, x.name)) for x in fields(self) if x.name != "context"}
        return type(self)(**moved, context=self.context and Context(*map(f, self.context)))

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        return self._map(lambda x: x.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._map(lambda x: x.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        for x in fields(self):
            if x.name != "context":
                getattr(self, x.name).record_stream(stream)
        for tensor in self.context or ():
            tensor.record_stream(stream)
