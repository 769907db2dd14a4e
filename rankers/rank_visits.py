"""Lists from generative rankers: raw ids to questions, and exact probabilities of the next visit.

Shapes: R requests, N candidates of all of them together.
"""

from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.arrays import one_array
from ..data.batches.sequences import SequenceBatch
from .exported_generator import ExportedGenerator
from .generative.reach import Allowed
from .rank_base import Found, Ranker, vocabularies
from .rank_requests import numbers_of

_TOGETHER = 4_000_000  # candidates of requests that are decoded at a time: what bounds the memory


class VisitRanker(Ranker):
    """Lists places by the probability that they are visited next.

    Without candidates, lists are made of places that have a semantic ID.

    Args:
        exported: the generative ranker.
        items, users: see ``Ranker``.
    """

    def __init__(self, exported: ExportedGenerator, items: pa.Table, users: pa.Array) -> None:
        super().__init__(items, users, exported.generator.config.history)
        self.exported = exported
        self.objectives, self.amount, self.own = exported.features.objectives, None, {}

    @classmethod
    def load(cls, folder: Path, verify: bool = True) -> Self:
        """See ``placerank.load``."""
        return cls(ExportedGenerator.load(folder, verify), *vocabularies(folder))

    def _listed(self) -> NDArray[np.int64]:
        return np.asarray(self.exported.generator.index.items, np.int64)

    def _found(self, asked: pa.Table, offsets: NDArray[np.int64], rows: NDArray[np.int64], k: int, by: int) -> Found:
        """What ``ExportedGenerator.lists`` gives, for some requests at a time."""
        allowed = Allowed(torch.from_numpy(offsets), torch.from_numpy(rows))
        nothing = np.zeros(0, np.int64)
        parts, start = [Found(nothing, nothing, np.zeros((0, 1), np.float32))], 0
        while start < len(asked):
            stop = max(start + 1, int(np.searchsorted(offsets, offsets[start] + _TOGETHER, "right")) - 1)
            some = allowed.some(start, stop)
            batch = self.questions(asked.slice(start, stop - start), some)
            lists = self.exported.lists(batch, some, k)
            request = start + np.repeat(np.arange(stop - start), lists.offsets.diff().numpy())
            parts.append(Found(request, lists.items.numpy(), lists.log_p.float().numpy()[:, None]))
            start = stop
        return Found(*(np.concatenate(x) for x in zip(*parts, strict=True)))

    def _probabilities(self, outputs: Tensor) -> list[Tensor]:
        return [outputs[:, 0].exp()]

    def questions(self, asked: pa.Table, candidates: Allowed) -> SequenceBatch:
        """Requests in the columns of ``predict``, as ``ExportedGenerator`` takes them."""
        visits = self._visits(asked, candidates.offsets.numpy(), candidates.items.numpy())
        nobody = torch.full((len(asked),), -1)
        offsets = torch.from_numpy(visits.offsets)
        minutes = torch.from_numpy(numbers_of(asked, "utc_offset", np.float32))
        return SequenceBatch(
            offsets=offsets,
            item=torch.from_numpy(visits.rows),
            time=torch.from_numpy(visits.time),
            utc_offset=minutes.repeat_interleave(offsets.diff()),  # the visits' own are not asked for
            user=self._users.rows(one_array(asked["user_id"])),
            user_index=nobody,
            stretch=torch.arange(len(asked)),
            seen=offsets.diff(),
            target=torch.zeros(len(asked), dtype=torch.int64),
            target_time=torch.from_numpy(asked["time"].to_numpy().copy()),
            target_offset=minutes,
            lat=torch.from_numpy(numbers_of(asked, "lat", np.float32)),
            lon=torch.from_numpy(numbers_of(asked, "lon", np.float32)),
            visits=torch.zeros(len(asked), dtype=torch.int32),
            request=nobody,
            valid=len(asked),
        )
