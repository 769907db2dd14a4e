"""From an export folder to ranked lists by raw ids: ``placerank.load``.

Shapes: R requests, N candidates of all of them together, T visits of their histories.
"""

import logging
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..data.arrays import one_array, ranges
from ..data.batches.batch import SampleBatch
from ..data.manifest import read_manifest
from ..data.plain import from_plain
from ..data.raw.times import YEAR_1990, looks_like
from ..data.urls import fetched, place
from ..embeddings.reader import EmbeddingTable
from ..kernels.haversine import haversine_km
from .dense import DensePart, RankerConfig
from .exported import ExportedRanker
from .generative.reach import Near
from .hub import OnTheHub

log = logging.getLogger(__name__)
_HOUR = 3600
_TOGETHER = 16_384  # candidates scored at a time: what bounds the memory
_YEAR_2100 = 4_102_444_800
_REQUESTS = 1_024  # of a table that are ranked at a time
_REACHES = 8  # that are kept
_ALIKE = 1e-3  # logits of the program and of the code may differ by so much
_COLUMNS = ("user_id", "time", "lat", "lon", "utc_offset", "history", "history_time", "candidates")


def load(export: Path | str, verify: bool = True) -> "Ranker":
    """A trained ranker, to ask for lists of places by raw ids.

    Args:
        export: folder that ``placerank export`` wrote; one behind a URL is fetched.
        verify: compare the hash of every file with the manifest's, see ``ExportedRanker.load``.

    Raises:
        FileNotFoundError, ValueError: not an export folder, not a whole one, a damaged one, or of a generative ranker.

    Example:
        >>> ranker = placerank.load("runs/demo/export")                                        # doctest: +SKIP
        >>> ranker.rank("ann", (40.7, -74.0), 1714564800, [("cafe-3", 1714478400)])            # doctest: +SKIP
    """
    return Ranker.load(Path(export), verify)


class Ranker(OnTheHub):
    """Ranks places on the CPU, by raw ids.

    What is of a request, its user, history and place, is computed once, however many candidates it has. The dense part
    runs as placerank's own code on the program's weights, which shares the keys of a history among candidates; where
    that can't be had (an export of an older placerank, a tower that can't be imported) the program itself runs.

    Args:
        exported: the ranker of samples.
        items: columns item_id, lat and lon by catalog row; row 0 is that of unknown items.
        users: raw ids by row; row 0 is that of unknown users.
        dense: the dense part as code; None: the program.
        history_length: visits that it was trained to see, at most; None: all that there are.
    """

    def __init__(
        self,
        exported: ExportedRanker,
        items: pa.Table,
        users: pa.Array,
        dense: DensePart | None = None,
        history_length: int | None = None,
    ) -> None:
        self.exported, self.dense, self.history_length = exported, dense, history_length
        self.item_ids, self.user_ids = one_array(items["item_id"]), users
        self.lat, self.lon = (items[c].to_numpy().astype(np.float64) for c in ("lat", "lon"))
        self._items, self._users = _index("item_id", self.item_ids), _index("user_id", users)
        self._near: dict[float, Near] = {}

    @classmethod
    def load(cls, folder: Path, verify: bool = True) -> Self:
        """See ``placerank.load``."""
        folder = fetched(place(folder))
        manifest = read_manifest(folder, "export")
        exported = ExportedRanker.load(folder, verify)
        items = pq.read_table(folder / "catalog.parquet", columns=["item_id", "lat", "lon"])
        users = one_array(pq.read_table(folder / "users.parquet", columns=["user_id"])["user_id"])
        ranker = cls(exported, items, users, None, manifest.get("history_length"))
        ranker.folder = folder
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

    def rank(
        self,
        user: Any,
        place: Any,
        time: Any,
        history: Any = None,
        candidates: Any = None,
        within_km: float = 3.0,
        k: int = 10,
        *,
        by: str | None = None,
        utc_offset: Any = None,
        own: Mapping[str, Any] | None = None,
    ) -> pa.Table:
        """The best places for one user, or for many at once.

        Args:
            user: raw id, one that training did not know too; or a list of R of them, and then a list of R of all else.
            place: (latitude, longitude) in degrees; None: unknown, which needs candidates.
            time: of the request, a datetime with a time zone or whole seconds since 1970 UTC.
            history: earlier visits, (item id, time) each, in any order; all that are known, since how often the user
                has been at a candidate counts too. The ranker sees the last ``history_length`` of them.
            candidates: raw ids to rank; None: all items within ``within_km`` of the place.
            within_km: the reach, more than 0; without meaning where there are candidates.
            k: places of a list, at most.
            by: the objective that orders the list; default: the first.
            utc_offset: of the request in minutes east of UTC; None: unknown, as for a ranker trained without it.
            own: own columns of interactions by name, raw values; of candidates a list in their order. Unknown without.

        Returns:
            A row a place, each request's best first and of equal ones that of the lower catalog row: ``request`` (from
            0), ``user_id``, ``item_id``, ``km`` from the place (NaN = unknown, float32), ``score`` (the logit) and
            ``probability``, float32. A ranker of several objectives gives ``score_NAME`` and ``probability_NAME`` of
            each, ``expected_NAME`` for an amount. A request with nothing in reach has no rows.

        Raises:
            ValueError, TypeError: what was asked is not as above; says what was got.
        """
        many = isinstance(user, Sequence | np.ndarray | pa.Array | pa.ChunkedArray) and not isinstance(
            user, str | bytes
        )
        if not many:
            user, place, time, utc_offset = [user], [place], [time], [utc_offset]
            history, candidates = (None if x is None else [x] for x in (history, candidates))
            own = {name: [value] for name, value in (own or {}).items()}
        given = {"place": place, "time": time, "history": history, "candidates": candidates, **(own or {})}
        if utc_offset is not None:
            given["utc_offset"] = utc_offset
        for name, values in given.items():
            if values is None and name not in ("place", "time"):
                continue
            got = 0 if values is None else len(values)
            if got != len(user):
                raise ValueError(f"{name}: got {got}, expected {len(user)}, one a request")
        columns: dict[str, Any] = {
            "user_id": pa.array(user, self.user_ids.type if not len(user) else None),
            "time": pa.array([seconds(t) for t in time], pa.int64()),
        }
        at = [(math.nan, math.nan) if p is None else _place(p) for p in place]
        columns |= {name: pa.array([p[i] for p in at], pa.float64()) for i, name in enumerate(("lat", "lon"))}
        if utc_offset is not None:
            columns["utc_offset"] = pa.array(utc_offset, pa.float32())
        if history is not None:
            visits = [_visits(h) for h in history]
            columns["history"] = _lists([v[0] for v in visits], self.item_ids.type)
            columns["history_time"] = _lists([v[1] for v in visits], pa.int64())
        if candidates is not None:
            columns["candidates"] = _lists(candidates, self.item_ids.type)
        clash = [name for name in own or {} if name in _COLUMNS]
        if clash:
            raise ValueError(f"own: got {clash[0]!r}, expected own columns of interactions")
        columns |= {name: pa.array(values) for name, values in (own or {}).items()}
        return self._ranked(pa.table(columns), within_km, k, by)

    def predict(
        self, requests: pa.Table | Path | str, within_km: float = 3.0, k: int = 10, *, by: str | None = None
    ) -> Iterator[pa.Table]:
        """Lists for a table of requests, a piece at a time, so that neither requests nor lists need fit in memory.

        Args:
            requests: a table, or a Parquet file, with a row a request: ``user_id``, ``time`` (whole seconds, or a
                timestamp with a time zone), and where known ``lat`` and ``lon``, ``utc_offset``, ``history`` and
                ``history_time`` (lists), ``candidates`` (lists), and own columns of interactions by their names.
            within_km, k, by: as in ``rank``.

        Yields:
            What ``rank`` returns; ``request`` counts from 0 over all pieces.

        Raises:
            ValueError, TypeError: as ``rank``.
        """
        first = 0
        for table in _pieces(requests):
            found = self._ranked(table, within_km, k, by)
            request = pc.add(found["request"], first)
            yield found.set_column(0, "request", request)
            first += len(table)

    def _ranked(self, asked: pa.Table, within_km: float, k: int, by: str | None) -> pa.Table:
        """Lists for requests in the columns of ``predict``."""
        names = self.exported.features.objectives
        if not _is_whole(k) or k < 1:
            raise ValueError(f"k={k!r}: expected a whole number of places, at least 1")
        if by is not None and by not in names:
            raise ValueError(f"by={by!r}: this ranker has {', '.join(names)}")
        asked = self._checked(asked)
        lat, lon = (_numbers(asked, c, np.float64) for c in ("lat", "lon"))
        offsets, rows = self._candidates(asked, lat, lon, within_km)
        logits = self._scored(asked, offsets, rows)
        request = np.repeat(np.arange(len(asked)), np.diff(offsets))
        order = np.lexsort((rows, -logits[:, 0 if by is None else names.index(by)], request))
        order = order[np.arange(len(order)) - offsets[request] < k]  # the order keeps each request's places together
        request, rows, outputs = request[order], rows[order], torch.from_numpy(logits[order])
        places = (torch.from_numpy(x) for x in (lat[request], lon[request], self.lat[rows], self.lon[rows]))
        columns: dict[str, Any] = {
            "request": request,
            "user_id": asked["user_id"].take(pa.array(request)),
            "item_id": self.item_ids.take(pa.array(rows)),
            "km": haversine_km(*places).float().numpy(),
        }
        probabilities = self.exported.probabilities(outputs if len(names) > 1 else outputs.squeeze(1))
        for i, name in enumerate(names):
            tail = f"_{name}" if len(names) > 1 else ""
            of = "expected" if name == self.exported.features.amount else "probability"
            columns |= {f"score{tail}": outputs[:, i].numpy(), f"{of}{tail}": probabilities[name].numpy()}
        return pa.table(columns)

    def _checked(self, asked: pa.Table) -> pa.Table:
        """With lat and lon, and whole seconds for times."""
        own = {n: c for n, c in self.exported.own.items() if c["of"] == "interactions"}
        for name in ("user_id", "time"):
            if name not in asked.column_names:
                raise ValueError(f"requests: no column {name}; expected user_id and time, and what else is known")
        for name in asked.column_names:
            if name not in _COLUMNS and name not in own:
                known = ", ".join((*_COLUMNS, *own))
                raise ValueError(f"requests: got a column {name!r}, expected some of {known}; leave it out")
        for one, other in (("lat", "lon"), ("history", "history_time")):
            if (one in asked.column_names) != (other in asked.column_names):
                raise ValueError(f"requests: got one of {one} and {other} alone; expected both or none")
        asked = asked.set_column(asked.column_names.index("time"), "time", _seconds(asked["time"], "time"))
        for name, most in (("lat", 90), ("lon", 180)):
            degrees = _numbers(asked, name, np.float64)
            wrong = np.isinf(degrees) | (np.abs(degrees) > most)
            if wrong.any():
                at = int(wrong.argmax())
                raise ValueError(f"request {at}: got {name} {degrees[at]:g}, expected degrees from -{most} to {most}")
        if "lat" in asked.column_names:
            half = np.isnan(_numbers(asked, "lat", np.float64)) != np.isnan(_numbers(asked, "lon", np.float64))
            if half.any():
                raise ValueError(f"request {int(half.argmax())}: got lat or lon alone; expected both or none")
        return asked

    def _candidates(
        self, asked: pa.Table, lat: NDArray[np.float64], lon: NDArray[np.float64], within_km: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Catalog rows to rank, [N], and where each request's are, [R+1]."""
        if "candidates" in asked.column_names:
            offsets, ids = _flat(asked["candidates"], "candidates")
            rows = self._items.rows(ids).numpy()
            request = np.repeat(np.arange(len(asked)), np.diff(offsets))
            if (rows == 0).any():
                at = int((rows == 0).argmax())
                raise ValueError(
                    f"candidates: {int((rows == 0).sum()):,} of {len(rows):,} are not in the catalog, such as "
                    f"{ids[at].as_py()!r} of request {request[at]}; leave them out, or export a ranker that knows them"
                )
            _, first = np.unique(request * len(self.item_ids) + rows, return_index=True)
            if len(first) < len(rows):
                at = int(np.setdiff1d(np.arange(len(rows)), first)[0])
                raise ValueError(f"candidates: request {request[at]} has {ids[at].as_py()!r} twice; expected each once")
            return offsets, rows
        if not within_km > 0:
            raise ValueError(f"within_km={within_km!r}: expected more than 0 km")
        if np.isnan(lat).any():
            at = int(np.isnan(lat).argmax())
            raise ValueError(f"request {at} has neither a place nor candidates; give one of both")
        allowed = self._reach(float(within_km)).within(lat, lon)
        return allowed.offsets.numpy(), allowed.items.numpy()

    def _reach(self, km: float) -> Near:
        if km not in self._near:
            if len(self._near) >= _REACHES:
                self._near.clear()
            known = np.arange(1, len(self.item_ids))  # row 0 is no item
            self._near[km] = Near(known, self.lat[1:], self.lon[1:], km)
        return self._near[km]

    def _scored(self, asked: pa.Table, offsets: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits of candidates, [N, K]; a request whose candidates are many is in several batches."""
        whole = self._samples(asked, offsets, rows)
        of_candidates = {feature.name for feature in self.exported.features.own if feature.of == "candidate"}
        parts = [torch.empty(0, len(self.exported.features.objectives))]
        for start in range(0, len(rows), _TOGETHER):
            outputs = self._logits(_part(whole, start, min(start + _TOGETHER, len(rows)), of_candidates))
            parts.append(outputs if outputs.dim() > 1 else outputs[:, None])
        found: NDArray[np.float32] = torch.cat(parts).numpy()
        return found

    def samples(self, asked: pa.Table) -> SampleBatch:
        """Requests with candidates, in the columns of ``predict``, as ``ExportedRanker`` takes them."""
        asked = self._checked(asked)
        lat, lon = (_numbers(asked, c, np.float64) for c in ("lat", "lon"))
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
        ends, visited, hours, visits = self._history(asked, time, request, rows)
        user = self._users.rows(one_array(asked["user_id"]))
        offset = _numbers(asked, "utc_offset", np.float32) if "utc_offset" in asked.column_names else None
        own = {}
        for feature in self.exported.features.own:
            if feature.of in ("request", "candidate"):
                own[feature.name] = self._own(asked, feature.name, feature.of, offsets, len(rows))
        return SampleBatch(
            request_id=torch.arange(requests),
            user=user,
            user_index=torch.full((requests,), -1),
            time=torch.from_numpy(time.copy()),
            lat=torch.from_numpy(_numbers(asked, "lat", np.float32)),
            lon=torch.from_numpy(_numbers(asked, "lon", np.float32)),
            offsets=torch.from_numpy(ends),
            history=torch.from_numpy(visited),
            history_hours=torch.from_numpy(hours),
            request=torch.from_numpy(request),
            item=torch.from_numpy(rows),
            label=torch.zeros(len(rows)),
            visits=torch.from_numpy(visits),
            probability=None,
            valid=len(rows),
            utc_offset=None if offset is None else torch.from_numpy(offset),
            own=own,
        )

    def _history(
        self, asked: pa.Table, time: NDArray[np.int64], request: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.int32]]:
        """Offsets [R+1], rows [T] and hours [T] of the last visits, and how often users were at candidates [N]."""
        if "history" not in asked.column_names:
            none = np.zeros(0, np.int64)
            return np.zeros(len(asked) + 1, np.int64), none, none.astype(np.float32), np.zeros(len(rows), np.int32)
        offsets, ids = _flat(asked["history"], "history")
        when_offsets, when = _flat(asked["history_time"], "history_time")
        if not np.array_equal(offsets, when_offsets):
            raise ValueError("history and history_time: got lists of different lengths, expected a time a visit")
        visited, moment = self._items.rows(ids).numpy(), _seconds(when, "history_time").to_numpy()
        of = np.repeat(np.arange(len(asked)), np.diff(offsets))
        late = moment >= time[of]
        if late.any():
            at = int(late.argmax())
            raise ValueError(
                f"request {of[at]}: got a visit at {moment[at]}, expected all before the request, {time[of[at]]}; "
                "leave out what came with it or after"
            )
        order = np.lexsort((visited, moment, of))  # of one moment by item, as prepared histories are
        pair, times = np.unique(of * len(self.item_ids) + visited, return_counts=True)
        wanted = request * len(self.item_ids) + rows
        found = np.minimum(np.searchsorted(pair, wanted), max(len(pair) - 1, 0))
        earlier = np.where(pair[found] == wanted, times[found], 0) if len(pair) else np.zeros(len(rows))
        kept = np.minimum(np.diff(offsets), self.history_length or len(of))
        order = order[ranges(offsets[1:] - kept, kept)]
        hours = ((time[of[order]] - moment[order]) / _HOUR).astype(np.float32)
        return np.concatenate([[0], np.cumsum(kept)]), visited[order], hours, earlier.astype(np.int32)

    def _own(self, asked: pa.Table, name: str, of: str, offsets: NDArray[np.int64], candidates: int) -> Tensor:
        """An own column as ``SampleBatch.own`` has it."""
        count = candidates if of == "candidate" else len(asked)
        values: pa.Array = pa.nulls(count, pa.string())
        if name in asked.column_names:
            values = one_array(asked[name])
            if of == "candidate":
                ends, values = _flat(values, name)
                if "candidates" not in asked.column_names or not np.array_equal(ends, offsets):
                    raise ValueError(f"{name}: is of candidates; expected a list a request, a value a candidate given")
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
        request=at,
        **{n: getattr(whole, n)[start:stop] for n in ("item", "label", "visits")},
        own={n: x[start:stop] if n in of_candidates else x[request] for n, x in whole.own.items()},
        valid=stop - start,
    )


def _index(name: str, ids: pa.Array) -> EmbeddingTable:
    """Raw ids to rows; a table without columns knows how."""
    return EmbeddingTable(name, 0, "fp32", ids, np.empty((len(ids), 0), np.float32))


def _is_whole(number: object) -> bool:
    return isinstance(number, numbers.Integral) and not isinstance(number, bool)


def seconds(time: Any) -> int:
    """A moment as whole seconds since 1970 UTC.

    Raises:
        ValueError, TypeError: a datetime without a time zone, or neither a datetime nor a whole number.
    """
    if isinstance(time, datetime):
        if time.tzinfo is None:
            raise ValueError(f"time: got {time} without a time zone; say which, as with replace(tzinfo=UTC)")
        return math.floor(time.timestamp())
    if not _is_whole(time):
        raise TypeError(f"time: got {time!r}, expected a datetime with a time zone, or whole seconds since 1970 UTC")
    return int(time)


def _seconds(column: pa.Array | pa.ChunkedArray, name: str) -> pa.Array:
    """Whole seconds of a column of times, int64 without nulls.

    Raises:
        ValueError: another type, a null, or numbers that are no seconds of 1990 to 2100.
    """
    column = one_array(column)
    if pa.types.is_timestamp(column.type):
        if column.type.tz is None:
            raise ValueError(f"{name}: got {column.type} without a time zone; say which, as with tz='UTC'")
        column = pc.floor_temporal(column, unit="second").cast(pa.timestamp("s", column.type.tz)).cast(pa.int64())
    if not pa.types.is_integer(column.type) or column.null_count:
        raise ValueError(
            f"{name}: got {column.type} with {column.null_count:,} nulls, expected whole seconds since 1970 UTC, or "
            "timestamps with a time zone"
        )
    found = column.cast(pa.int64()).to_numpy()
    wrong = (found < YEAR_1990) | (found >= _YEAR_2100)
    if wrong.any():
        number = int(found[wrong.argmax()])
        raise ValueError(
            f"{name}: got {number}, expected whole seconds since 1970 UTC, of the years 1990 to 2099; "
            f"it may be {looks_like(number) or 'of another unit'}"
        )
    return column.cast(pa.int64())


def _place(value: Any) -> tuple[float, float]:
    try:
        lat, lon = (float(x) for x in value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"place: got {value!r}, expected (latitude, longitude) in degrees, or None") from error
    if math.isnan(lat) or math.isnan(lon):
        raise ValueError(f"place: got {value!r}, expected degrees; None where it is unknown")
    return lat, lon


def _visits(history: Any) -> tuple[list[Any], list[int]]:
    """Items and times of (item, time) pairs."""
    pairs = list(history or ())
    try:
        items, times = [item for item, _ in pairs], [time for _, time in pairs]
    except (TypeError, ValueError) as error:
        raise ValueError(f"history: got {pairs[:1]}, expected (item id, time) pairs") from error
    return items, [seconds(time) for time in times]


def _lists(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Lists of ids, one a request."""
    if any(isinstance(x, str | bytes) or x is None for x in values):
        raise TypeError(f"got {next(x for x in values if x is None or isinstance(x, str | bytes))!r}, expected a list")
    arrays = [pa.array(x, kind if not len(x) else None) for x in values]
    filled = [x for x in arrays if len(x)]
    flat = pa.concat_arrays(filled) if filled else pa.array([], kind)
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *map(len, arrays)]), pa.int32()), flat)


def _flat(column: pa.Array | pa.ChunkedArray, name: str) -> tuple[NDArray[np.int64], pa.Array]:
    """Where each request's entries are, [R+1], and the entries; a null list is an empty one."""
    column = one_array(column)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise ValueError(f"{name}: got a column of {column.type}, expected a list a request")
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), column.flatten()


def _numbers(asked: pa.Table, name: str, kind: type) -> NDArray[Any]:
    """A column of numbers, NaN for null or where there is no such column."""
    if name not in asked.column_names:
        return np.full(len(asked), np.nan, kind)
    column = one_array(asked[name]).cast(pa.from_numpy_dtype(kind)).fill_null(float("nan"))
    return np.array(column.to_numpy())


def _pieces(requests: pa.Table | Path | str) -> Iterator[pa.Table]:
    if isinstance(requests, pa.Table):
        yield from (requests.slice(start, _REQUESTS) for start in range(0, len(requests), _REQUESTS))
        return
    with pq.ParquetFile(fetched(place(Path(requests)))) as file:
        for batch in file.iter_batches(_REQUESTS):
            yield pa.Table.from_batches([batch])
