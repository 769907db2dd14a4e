"""Lists from rankers of candidates: raw ids to samples, and their logits.

Shapes: R requests, N candidates of all of them together, K objectives.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..data.arrays import one_array, ranges
from ..data.batches.batch import SampleBatch
from ..data.manifest import MANIFEST, read_manifest
from ..data.plain import from_plain
from ..data.raw.own import OwnColumn, normal
from ..data.raw.times import YEAR_1990
from ..data.visit_clusters import Clustering, look_back
from .dense import DensePart, RankerConfig
from .exported import ExportedRanker
from .rank_base import Found, Ranker, vocabularies
from .rank_requests import checked, flat, is_whole, numbers_of

log = logging.getLogger(__name__)
_HOUR = 3600
_TOGETHER = 16_384  # candidates scored at a time: what bounds the memory
_ALIKE = 1e-3  # logits of the program and of the code may differ by so much


class TowerRanker(Ranker):
    """Scores candidates.

    What is of a request, its user, history and place, is computed once, however many candidates it has. The dense part
    runs as placerank's own code on the program's weights, which shares the keys of a history among candidates; where
    that can't be had (an export of an older placerank, a tower that can't be imported) the program itself runs.

    Args:
        exported: the ranker of samples.
        items, users, history_length: see ``Ranker``.
        dense: the dense part as code; None: the program.
        clustering: how visits of long ago become entries of histories, of catalog rows; None: each is one.
    """

    def __init__(
        self,
        exported: ExportedRanker,
        items: pa.Table,
        users: pa.Array,
        history_length: int | None = None,
        dense: DensePart | None = None,
        clustering: Clustering | None = None,
    ) -> None:
        super().__init__(items, users, None if clustering else history_length)  # which clusters there are, all decide
        self.entries = history_length
        self.exported, self.dense, self.clustering = exported, dense, clustering
        self.objectives, self.amount, self.own = exported.features.objectives, exported.features.amount, exported.own

    @classmethod
    def load(cls, folder: Path, verify: bool = True) -> Self:
        """See ``placerank.load``."""
        exported = ExportedRanker.load(folder, verify)
        manifest = read_manifest(folder, "export")
        items, users = vocabularies(folder)
        length = manifest.get("history_length")
        if length is not None and (not is_whole(length) or length < 1):
            raise ValueError(f"{folder / MANIFEST}: got history_length {length!r}, expected at least 1; export again")
        clustering = None
        if (most := exported.features.cluster_visits) > 1:
            category = pq.read_table(folder / "catalog.parquet", columns=["category_row"])["category_row"]
            clustering = Clustering.of(most, category.to_numpy(), *(items[c].to_numpy() for c in ("lat", "lon")))
        ranker = cls(exported, items, users, length, clustering=clustering)
        ranker.dense = ranker._as_code(manifest.get("ranker"), str(folder))
        return ranker

    def _as_code(self, settings: Any, where: str) -> DensePart | None:
        """The dense part with the program's weights, if it gives what the program gives."""
        if settings is None:
            return None
        try:
            dense = DensePart(self.exported.features, from_plain(RankerConfig, settings, where))
            dense.scorer.load_state_dict(self.exported.scorer.state_dict())
        except (ValueError, RuntimeError) as error:
            log.warning("%s: its program is used, which is slower, since the ranker can't be made: %s", where, error)
            return None
        probe = self._probe()
        off = 0.0
        if len(probe):
            off = (self._by_code(dense.eval(), probe) - self.exported.score(probe)).abs().max().item()
        if not off <= _ALIKE:
            log.warning("%s: its program is used, which is slower: this placerank's code is off by %.2g", where, off)
            return None
        return dense.eval()

    def _probe(self) -> SampleBatch:
        """A request of nobody, who was at the last items, for the first."""
        known = np.arange(1, len(self.item_ids))
        asked = pa.table({"user_id": pa.nulls(1, self.user_ids.type), "time": [YEAR_1990 + _HOUR]})
        visits = pa.array([self.item_ids.take(pa.array(known[-4:])).to_pylist()], pa.list_(self.item_ids.type))
        when = pa.array([[YEAR_1990] * len(known[-4:])], pa.list_(pa.int64()))
        asked = asked.append_column("history", visits).append_column("history_time", when)
        return self._samples(asked, np.array([0, len(known[:8])]), known[:8])

    def _found(self, asked: pa.Table, offsets: NDArray[np.int64], rows: NDArray[np.int64], k: int, by: int) -> Found:
        """Equal ones by catalog row."""
        logits = self._scored(asked, offsets, rows)
        request = np.repeat(np.arange(len(asked)), np.diff(offsets))
        order = np.lexsort((rows, -logits[:, by], request))
        order = order[np.arange(len(order)) - offsets[request] < k]  # the order keeps each request's places together
        return Found(request[order], rows[order], logits[order])

    def _probabilities(self, outputs: Tensor) -> list[Tensor]:
        found = self.exported.probabilities(outputs if len(self.objectives) > 1 else outputs.squeeze(1))
        return [found[name] for name in self.objectives]

    def _scored(self, asked: pa.Table, offsets: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits of candidates, [N, K]; a request whose candidates are many is in several batches."""
        whole = self._samples(asked, offsets, rows)
        of_candidates = {feature.name for feature in self.exported.features.own if feature.of == "candidate"}
        parts = [torch.empty(0, len(self.exported.features.objectives))]
        for start in range(0, len(rows), _TOGETHER):
            stop = min(start + _TOGETHER, len(rows))
            some = whole if stop - start == len(rows) else _part(whole, start, stop, of_candidates)
            outputs = self._logits(some)
            parts.append(outputs if outputs.dim() > 1 else outputs[:, None])
        found: NDArray[np.float32] = torch.cat(parts).numpy()
        return found

    def samples(self, asked: pa.Table) -> SampleBatch:
        """Requests with candidates, in the columns of ``predict``, as ``ExportedRanker`` takes them."""
        asked = checked(asked, self._own_names())
        lat, lon = (numbers_of(asked, c, np.float64) for c in ("lat", "lon"))
        return self._samples(asked, *self._candidates(asked, lat, lon, 0))

    def _logits(self, sample: SampleBatch) -> Tensor:
        """As ``ExportedRanker.score``."""
        return self.exported.score(sample) if self.dense is None else self._by_code(self.dense, sample)

    @torch.no_grad()
    def _by_code(self, dense: DensePart, sample: SampleBatch) -> Tensor:
        batch, rows, pooled = self.exported.looked_up(sample)
        logits: Tensor = dense(rows, pooled, batch.dense).logits
        return logits

    def _samples(self, asked: pa.Table, offsets: NDArray[np.int64], rows: NDArray[np.int64]) -> SampleBatch:
        """Requests as samples, as ``prepare`` would have made them."""
        requests, time = len(asked), asked["time"].to_numpy()
        request = np.repeat(np.arange(requests), np.diff(offsets))
        visits, size = self._visits(asked, offsets, rows), None
        if self.clustering is not None:
            assert self.entries is not None
            first, end = visits.offsets[:-1], visits.offsets[1:]
            seen = look_back(first, end, time, visits.rows, visits.time, self.entries, self.clustering)
            at = ranges(seen.start.ravel(), seen.length.ravel())
            upto = np.concatenate([[0], np.cumsum(seen.length.sum(1))])
            visits = visits._replace(offsets=upto, rows=seen.item[at], time=seen.time[at])
            size = torch.from_numpy(seen.size[at].astype(np.float32))
        length = np.diff(visits.offsets)
        hours = ((np.repeat(time, length) - visits.time) / _HOUR).astype(np.float32)
        user = self._users.rows(one_array(asked["user_id"]))
        offset = numbers_of(asked, "utc_offset", np.float32) if "utc_offset" in asked.column_names else None
        own = {}
        for feature in self.exported.features.own:
            if feature.of in ("request", "candidate"):
                own[feature.name] = self._own(asked, feature.name, feature.of, offsets, len(rows))
        return SampleBatch(
            request_id=torch.arange(requests),
            user=user,
            user_index=torch.full((requests,), -1),
            time=torch.from_numpy(time.copy()),
            lat=torch.from_numpy(numbers_of(asked, "lat", np.float32)),
            lon=torch.from_numpy(numbers_of(asked, "lon", np.float32)),
            offsets=torch.from_numpy(visits.offsets),
            history=torch.from_numpy(visits.rows),
            history_hours=torch.from_numpy(hours),
            history_size=size,
            request=torch.from_numpy(request),
            item=torch.from_numpy(rows),
            label=torch.zeros(len(rows)),
            visits=torch.from_numpy(visits.earlier),
            probability=None,
            valid=len(rows),
            utc_offset=None if offset is None else torch.from_numpy(offset),
            own=own,
        )

    def _own(self, asked: pa.Table, name: str, of: str, offsets: NDArray[np.int64], candidates: int) -> Tensor:
        """An own column as ``SampleBatch.own`` has it."""
        count = candidates if of == "candidate" else len(asked)
        values: pa.Array = pa.nulls(count, pa.string())
        if name in asked.column_names:
            values = one_array(asked[name])
            if of == "candidate":
                ends, values = flat(values, name)
                if "candidates" not in asked.column_names or not np.array_equal(ends, offsets):
                    raise ValueError(f"{name}: is of candidates; expected a list a request, a value a candidate given")
        if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):  # prepare too takes the hours to it
            times = asked["time"].to_numpy()
            time = np.repeat(times, np.diff(offsets)) if of == "candidate" else times
            date = OwnColumn(of="interactions", column=name, kind="buckets", why="")
            values = one_array(normal(date, pa.chunked_array([values]), pa.chunked_array([time])))
        return self.exported.own_values(name, values)


def _part(whole: SampleBatch, start: int, stop: int, of_candidates: set[str]) -> SampleBatch:
    """Candidates start to stop alone, and their requests; ``of_candidates``: which own columns are theirs."""
    request, at = whole.request[start:stop].unique_consecutive(return_inverse=True)
    length = whole.offsets.diff()[request]
    visits = torch.from_numpy(ranges(whole.offsets[request].numpy(), length.numpy()))
    of_requests = {n: getattr(whole, n)[request] for n in ("request_id", "user", "user_index", "time", "lat", "lon")}
    return replace(
        whole,
        **of_requests,
        utc_offset=None if whole.utc_offset is None else whole.utc_offset[request],
        offsets=F.pad(length.cumsum(0), (1, 0)),
        history=whole.history[visits],
        history_hours=whole.history_hours[visits],
        history_size=None if whole.history_size is None else whole.history_size[visits],
        request=at,
        **{n: getattr(whole, n)[start:stop] for n in ("item", "label", "visits")},
        own={n: x[start:stop] if n in of_candidates else x[request] for n, x in whole.own.items()},
        valid=stop - start,
    )
