"""What a ranker takes besides rows of tables: plain tensors, so that the dense part needs no TorchRec.

Shapes: B samples, T history entries in all of them together (jagged), F dense columns, G gap columns, U distinct items
among targets and visits of a batch, A distinct targets. Samples are candidates of requests: V visits of these in all,
which T counts for each of the candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor


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
        first_targets: the first sample of each distinct target, in the order of the items, int64 [A].
        user_cluster: row of the user's cluster in its table, 0 where unknown or there is none, int64 [B].
        item: row of the items in the catalog, the same on all ranks, int64 [U].
    """

    item_cluster: Tensor
    item_head: Tensor
    user_head: Tensor
    place: Tensor
    radius_scale: Tensor
    first_targets: Tensor
    user_cluster: Tensor
    item: Tensor


_GROUPS = (Context, Traits, LossInputs)


@dataclass
class DenseBatch:
    """All that the dense part takes but rows of tables, on its device.

    Attributes:
        target: which of the items each sample is about, int64 [B].
        visits: which of them was visited, oldest first, int64 [V].
        offsets: sample b's history is entries offsets[b] to offsets[b+1] of what has T entries, int64 [B+1].
        lengths: of the histories, int64 [B], always on the host: a size that follows from it needs no wait for a GPU.
        features: dense features, float32 [B, F].
        history_gaps: log(1 + hours) and log(1 + km) of each history entry, float32 [T, G].
        starts: of each sample, where its history is among the visits, int64 [B]; None: visits are [T], each sample's
            own, as offsets say.
        context: for towers that use it, else None.
        traits, loss_inputs: for plug-ins, else None.
    """

    target: Tensor
    visits: Tensor
    offsets: Tensor
    lengths: Tensor
    features: Tensor
    history_gaps: Tensor
    starts: Tensor | None = None
    context: Context | None = None
    traits: Traits | None = None
    loss_inputs: LossInputs | None = None

    def map(self, f: Callable[[Tensor], Tensor]) -> Self:
        """The same with f of each tensor, but for those that stay on the host."""

        def moved(value: Any) -> Any:
            if isinstance(value, _GROUPS):
                return type(value)(*map(f, value))
            return None if value is None else f(value)

        return type(self)(
            **{x.name: moved(getattr(self, x.name)) for x in fields(self) if x.name != "lengths"}, lengths=self.lengths
        )

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator that the stream uses what lies on its device."""

        def record(x: Tensor) -> Tensor:
            x.record_stream(stream)
            return x

        self.map(record)
