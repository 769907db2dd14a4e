"""What the loader yields, and what the ranker takes.

Shapes: B samples, T history entries in all of them together (jagged), F dense columns, G gap columns, U distinct items
among targets and visits of a batch: what belongs to an item is looked up and computed once, however often it was met.
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


class Traits(NamedTuple):
    """What the plug-ins (ReST, AKT-Rec) know of items and users besides embeddings. F attributes, A activity columns.

    Attributes:
        attributes: of the items, rows of their tables, 0 where unknown, int64 [U, F].
        activity: of the items (``data/batches/activity.py``), float32 [U, A].
        user_activity: of the user, as the sample's history shows it, float32 [B, A].
    """

    attributes: Tensor
    activity: Tensor
    user_activity: Tensor


class LossInputs(NamedTuple):
    """What the plug-ins' own losses ask of items and users.

    Attributes:
        item_cluster: row of the cluster table, 0 where unknown or there is none, int64 [U].
        item_head: whether the item belongs to the most active ones, bool [U].
        user_head: whether the sample's user does, bool [B].
        place: of the items, unit vectors, NaN where unknown, float32 [U, 3].
        radius_scale: of the items (``data/batches/density.py``), float32 [U]; 1 unless radii are density-adaptive.
    """

    item_cluster: Tensor
    item_head: Tensor
    user_head: Tensor
    place: Tensor
    radius_scale: Tensor


_GROUPS = (Context, Traits, LossInputs)


@dataclass
class RankingBatch(Pipelineable):
    """What the ranker takes, on its device.

    Attributes:
        items: keys of the EmbeddingCollection: each table's rows of the distinct items, [U] a key; all belong to one
            "sample" of the tensor.
        target: which of the items each sample is about, int64 [B].
        visits: which of them was visited, oldest first, int64 [T].
        offsets: sample b's visits are entries offsets[b] to offsets[b+1], int64 [B+1].
        pooled: keys of the EmbeddingBagCollection.
        dense: float32 [B, F].
        history_gaps: log(1 + hours) and log(1 + km) of each history entry, float32 [T, G].
        label: float32 [B].
        context: for towers that use it, else None.
        traits, loss_inputs: for plug-ins, else None.
    """

    items: KeyedJaggedTensor
    target: Tensor
    visits: Tensor
    offsets: Tensor
    pooled: KeyedJaggedTensor
    dense: Tensor
    history_gaps: Tensor
    label: Tensor
    context: Context | None = None
    traits: Traits | None = None
    loss_inputs: LossInputs | None = None

    def _map(self, f: Any) -> Self:
        def moved(value: Any) -> Any:
            if isinstance(value, _GROUPS):
                return type(value)(*map(f, value))
            return None if value is None else f(value)

        return type(self)(**{x.name: moved(getattr(self, x.name)) for x in fields(self)})

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        return self._map(lambda x: x.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._map(lambda x: x.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        for x in fields(self):
            value = getattr(self, x.name)
            for tensor in value if isinstance(value, _GROUPS) else [] if value is None else [value]:
                tensor.record_stream(stream)
