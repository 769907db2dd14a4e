"""Lists of places by raw ids: what rankers of all kinds do alike.

Shapes: R requests, N candidates of all of them together, T visits of their histories, K objectives.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.arrays import one_array, ranges
from ..embeddings.reader import EmbeddingTable
from ..kernels.haversine import haversine_km
from .generative.reach import Near, everything
from .hub import OnTheHub
from .rank_requests import REQUESTS, as_table, checked, flat, is_whole, numbers_of, pieces, seconds_of

_REACHES = 8  # that are kept
_FIRST = 16  # requests of a table that are ranked together until it is known how many candidates they have
_CANDIDATES = 1 << 19  # of the requests that are then ranked together: what bounds the memory


class Visits(NamedTuple):
    """Earlier visits of requests, in order of time; of one moment by item, as prepared histories are.

    Attributes:
        offsets: request r's are offsets[r] to offsets[r+1], int64 [R+1].
        rows: of the catalog, int64 [T].
        time: unix seconds, int64 [T].
        earlier: how often the users were at each candidate, int32 [N].
    """

    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]
    time: NDArray[np.int64]
    earlier: NDArray[np.int32]


class Found(NamedTuple):
    """Places of all lists, each request's together and best first.

    Attributes:
        request: int64 [N].
        rows: of the catalog, int64 [N].
        outputs: as the ranker gives them, a column an objective, float32 [N, K].
    """

    request: NDArray[np.int64]
    rows: NDArray[np.int64]
    outputs: NDArray[np.float32]


class Ranker(OnTheHub, ABC):
    """Ranks places on the CPU, by raw ids; ``placerank.load`` makes one.

    Args:
        items: columns item_id, lat and lon by catalog row; row 0 is that of unknown items.
        users: raw ids by row; row 0 is that of unknown users.
        history_length: visits that it looks back on, at most; None: all that there are.

    Attributes:
        objectives: what it predicts, the first orders lists.
        amount: which of them is an amount; None: all are labels.
        own: own columns of interactions that requests may have, by name, as the manifest has them.
    """

    objectives: tuple[str, ...]
    amount: str | None
    own: dict[str, dict[str, Any]]

    def __init__(self, items: pa.Table, users: pa.Array, history_length: int | None) -> None:
        self.history_length = history_length
        self.item_ids, self.user_ids = one_array(items["item_id"]), users
        self.lat, self.lon = (items[c].to_numpy().astype(np.float64) for c in ("lat", "lon"))
        self._items, self._users = _index("item_id", self.item_ids), _index("user_id", users)
        self._near: dict[float, Near] = {}

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
            within_km: the reach, more than 0; inf: all items, wherever the place. Without meaning where there are
                candidates.
            k: places of a list, at most.
            by: the objective that orders the list; default: the first.
            utc_offset: of the request, and of its visits, in minutes east of UTC; None: unknown, as for a ranker that
                was trained without it.
            own: own columns of interactions by name, raw values; of candidates a list in their order. Unknown without.

        Returns:
            A row a place, each request's best first and of equal ones that of the lower catalog row: ``request`` (from
            0), ``user_id``, ``item_id``, ``km`` from the place (NaN = unknown, float32), ``score`` and
            ``probability``, float32. Of a ranker of candidates they are the logit and the probability of a click there;
            of several objectives there are ``score_NAME`` and ``probability_NAME`` of each, ``expected_NAME`` for an
            amount. Of a generative ranker they are log p and p of this place as the next visit, among all places
            (OneRec: as the next of the list, in whose order they come); places that can't be are not listed. A
            request with nothing in reach has no rows.

        Raises:
            ValueError, TypeError: what was asked is not as above; says what was got.
        """
        asked = as_table(
            user, place, time, history, candidates, utc_offset, own or {}, self.user_ids.type, self.item_ids.type
        )
        return self._ranked(asked, within_km, k, by)[0]

    def predict(
        self,
        requests: pa.Table | Path | str,
        within_km: float = 3.0,
        k: int = 10,
        *,
        by: str | None = None,
        asked: Callable[[int], object] | None = None,
    ) -> Iterator[pa.Table]:
        """Lists for a table of requests, a piece at a time, so that neither requests nor lists need fit in memory.

        Args:
            requests: a table, or a Parquet file, with a row a request: ``user_id``, ``time`` (whole seconds, or a
                timestamp with a time zone), and where known ``lat`` and ``lon``, ``utc_offset``, ``history`` and
                ``history_time`` (lists), ``candidates`` (lists), and own columns of interactions by their names.
            within_km, k, by: as in ``rank``.
            asked: told of each piece how many requests it was, for a progress bar.

        Yields:
            What ``rank`` returns; ``request`` counts from 0 over all pieces.

        Raises:
            ValueError, TypeError: as ``rank``.
        """
        first, size = 0, _FIRST
        for table in pieces(requests):
            start = 0
            while start < len(table):
                some = table.slice(start, size)
                try:
                    found, candidates = self._ranked(some, within_km, k, by)
                except (ValueError, TypeError) as error:
                    raise type(error)(f"counted from request {first}: {error}" if first else error) from error
                yield found.set_column(0, "request", pc.add(found["request"], first))
                first, start = first + len(some), start + len(some)
                if asked is not None:
                    asked(len(some))
                size = max(1, min(_CANDIDATES * len(some) // max(candidates, 1), REQUESTS))

    def _ranked(self, asked: pa.Table, within_km: float, k: int, by: str | None) -> tuple[pa.Table, int]:
        """Lists for requests in the columns of ``predict``, and how many candidates there were."""
        names = self.objectives
        if not is_whole(k) or k < 1:
            raise ValueError(f"k={k!r}: expected a whole number of places, at least 1")
        if by is not None and by not in names:
            raise ValueError(f"by={by!r}: this ranker has {', '.join(names)}")
        asked = checked(asked, self._own_names())
        lat, lon = (numbers_of(asked, c, np.float64) for c in ("lat", "lon"))
        offsets, rows = self._candidates(asked, lat, lon, within_km)
        found = self._found(asked, offsets, rows, k, 0 if by is None else names.index(by))
        request, rows, outputs = found.request, found.rows, torch.from_numpy(found.outputs)
        places = (torch.from_numpy(x) for x in (lat[request], lon[request], self.lat[rows], self.lon[rows]))
        columns: dict[str, Any] = {
            "request": request,
            "user_id": asked["user_id"].take(pa.array(request)),
            "item_id": self.item_ids.take(pa.array(rows)),
            "km": haversine_km(*places).float().numpy(),
        }
        probabilities = self._probabilities(outputs)
        for i, name in enumerate(names):
            tail = f"_{name}" if len(names) > 1 else ""
            of = "expected" if name == self.amount else "probability"
            columns |= {f"score{tail}": outputs[:, i].numpy(), f"{of}{tail}": probabilities[i].numpy()}
        return pa.table(columns), int(offsets[-1])

    def _own_names(self) -> list[str]:
        return [name for name, column in self.own.items() if column["of"] == "interactions"]

    @abstractmethod
    def _found(self, asked: pa.Table, offsets: NDArray[np.int64], rows: NDArray[np.int64], k: int, by: int) -> Found:
        """The best k of each request's candidates, rows[offsets[r]] to rows[offsets[r+1]], by an objective's number."""

    @abstractmethod
    def _probabilities(self, outputs: Tensor) -> list[Tensor]:
        """Of each objective, what the outputs [N, K] mean: a probability, or what is expected of an amount; [N]."""

    def _candidates(
        self, asked: pa.Table, lat: NDArray[np.float64], lon: NDArray[np.float64], within_km: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Catalog rows to rank, [N], and where each request's are, [R+1]."""
        if "candidates" in asked.column_names:
            if asked["candidates"].null_count:
                at = int(asked["candidates"].is_null().to_numpy().argmax())
                raise ValueError(
                    f"candidates: request {at} has null; expected a list, or [] for none; those that are to be ranked "
                    "among all places within reach go in a table without this column"
                )
            offsets, ids = flat(asked["candidates"], "candidates")
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
        try:
            reaches = within_km > 0
        except TypeError:  # text, None
            reaches = False
        if not reaches:
            raise ValueError(f"within_km={within_km!r}: expected more than 0 km")
        if math.isinf(within_km):
            allowed = everything(self._listed(), len(asked))
            return allowed.offsets.numpy(), allowed.items.numpy()
        if np.isnan(lat).any():
            at = int(np.isnan(lat).argmax())
            raise ValueError(f"request {at} has neither a place nor candidates; give one of both")
        allowed = self._reach(float(within_km)).within(lat, lon)
        return allowed.offsets.numpy(), allowed.items.numpy()

    def _reach(self, km: float) -> Near:
        if km not in self._near:
            if len(self._near) >= _REACHES:
                self._near.clear()
            known = self._listed()
            self._near[km] = Near(known, self.lat[known], self.lon[known], km)
        return self._near[km]

    def _listed(self) -> NDArray[np.int64]:
        """Catalog rows that lists are made of, where no candidates are given."""
        return np.arange(1, len(self.item_ids))  # row 0 is no item

    def _visits(self, asked: pa.Table, offsets: NDArray[np.int64], rows: NDArray[np.int64]) -> Visits:
        """The last visits of requests, and how often their users were at candidates, which lie as in ``_found``."""
        time = asked["time"].to_numpy()
        if "history" not in asked.column_names:
            none = np.zeros(0, np.int64)
            return Visits(np.zeros(len(asked) + 1, np.int64), none, none, np.zeros(len(rows), np.int32))
        visit_offsets, ids = flat(asked["history"], "history")
        when_offsets, when = flat(asked["history_time"], "history_time")
        if not np.array_equal(visit_offsets, when_offsets):
            raise ValueError("history and history_time: got lists of different lengths, expected a time a visit")
        visited, moment = self._items.rows(ids).numpy(), seconds_of(when, "history_time").to_numpy()
        of = np.repeat(np.arange(len(asked)), np.diff(visit_offsets))
        late = moment >= time[of]
        if late.any():
            at = int(late.argmax())
            raise ValueError(
                f"request {of[at]}: got a visit at {moment[at]}, expected all before the request, {time[of[at]]}; "
                "leave out what came with it or after"
            )
        order = np.lexsort((visited, moment, of))
        pair, times = np.unique(of * len(self.item_ids) + visited, return_counts=True)
        wanted = np.repeat(np.arange(len(asked)), np.diff(offsets)) * len(self.item_ids) + rows
        found = np.minimum(np.searchsorted(pair, wanted), max(len(pair) - 1, 0))
        earlier = np.where(pair[found] == wanted, times[found], 0) if len(pair) else np.zeros(len(rows))
        kept = np.minimum(np.diff(visit_offsets), self.history_length or len(of))
        order = order[ranges(visit_offsets[1:] - kept, kept)]
        upto = np.concatenate([[0], np.cumsum(kept)])
        return Visits(upto, visited[order], moment[order], earlier.astype(np.int32))


def _index(name: str, ids: pa.Array) -> EmbeddingTable:
    """Raw ids to rows; a table without columns knows how."""
    return EmbeddingTable(name, 0, "fp32", ids, np.empty((len(ids), 0), np.float32))


def vocabularies(folder: Path) -> tuple[pa.Table, pa.Array]:
    """Of an export folder, what ``Ranker`` takes as items and users."""
    items = pq.read_table(folder / "catalog.parquet", columns=["item_id", "lat", "lon"])
    return items, one_array(pq.read_table(folder / "users.parquet", columns=["user_id"])["user_id"])
