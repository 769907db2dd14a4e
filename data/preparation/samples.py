"""From a bucket of interactions to the rows of the sample files."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..arrays import first_of_run, ranges, sort_order, starts_run
from ..requests import ENCODING, PROBABILITY, SPLITS, Lists, Requests
from .buckets import Bucket
from .history import earlier_visits, history_ranges
from .negatives import Reach

_CANDIDATES = 1 << 20  # of the users handled together
_GROUPS_PER_FILE = 16
_HOUR = 3600
_SHUFFLE_BITS = 40  # beside 20 of the requests of a block; two candidates in 2**40 draw the same


@dataclass
class Positives:
    """All positives of some users, whether or not they make samples, as columns [P], in the order of histories.

    ``request`` is the number within the bucket, -1 for those without samples; the others are as in ``Samples``.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    time: NDArray[np.int64]
    request: NDArray[np.int64]
    lat: NDArray[np.float32]
    lon: NDArray[np.float32]
    visits: NDArray[np.int32]


@dataclass
class Samples:
    """Candidates of some users as columns [C], and the positives that their histories point into."""

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    label: NDArray[np.int8]
    time: NDArray[np.int64]
    request: NDArray[np.int64]
    lat: NDArray[np.float32]
    lon: NDArray[np.float32]
    visits: NDArray[np.int32]
    history_start: NDArray[np.int64]
    history_end: NDArray[np.int64]
    probability: NDArray[np.float32] | None
    positives: Positives


@dataclass
class CheckIns:
    """How candidates are made where the source holds visits alone.

    Attributes:
        lat, lon: places of the items in degrees, float64 [I].
        reach: the same places, to draw from.
        negatives: how many a request, by split.
        place_seconds: how old a visit may be to say where the user is.
        skipped: requests left out because nothing else is within reach, by split.
        known: requests with a known place, of those kept.
        given: requests for which the source gives a place.
        own_place: requests whose given place is the positive's own place.
    """

    lat: NDArray[np.float64]
    lon: NDArray[np.float64]
    reach: Reach
    negatives: NDArray[np.int64]
    place_seconds: float
    skipped: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SPLITS), np.int64))
    known: int = 0
    given: int = 0
    own_place: int = 0


def user_blocks(bucket: Bucket, weight: NDArray[np.int64]) -> Iterator[slice]:
    """Rows of whole users with about ``_CANDIDATES`` candidates together; ``weight``: candidates of each row."""
    block = np.cumsum(weight) // _CANDIDATES
    block = block[first_of_run(starts_run(bucket.user))]
    cuts = [*np.flatnonzero(starts_run(block)), len(block)]
    return (slice(a, b) for a, b in pairwise(cuts))


def impressions(bucket: Bucket, rows: slice, longest: int, with_probability: bool) -> Samples:
    """Samples of a source that says what was shown: one a row."""
    user, item, time, label = (getattr(bucket, n)[rows] for n in ("user", "item", "time", "label"))
    positive = label == 1
    start, end = history_ranges(user, time, positive, longest)
    request, lat, lon = (getattr(bucket, n)[rows] for n in ("request", "lat", "lon"))
    visits = earlier_visits(user, item, time, positive)
    return Samples(
        user=user,
        item=item,
        label=label,
        time=time,
        request=request,
        lat=lat,
        lon=lon,
        visits=visits,
        history_start=start,
        history_end=end,
        probability=bucket.probability[rows] if with_probability else None,
        positives=Positives(*(x[positive] for x in (user, item, time, request, lat, lon, visits))),
    )


def _places(bucket: Bucket, rows: slice, how: CheckIns) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where the user is when a request is made, degrees [R]; NaN = unknown."""
    user, item, time = bucket.user[rows], bucket.item[rows], bucket.time[rows]
    lat, lon = bucket.lat[rows].astype(np.float64), bucket.lon[rows].astype(np.float64)
    given = ~np.isnan(lat)
    how.given += int(given.sum())
    how.own_place += int((given & (np.abs(lat - how.lat[item]) < 1e-5) & (np.abs(lon - how.lon[item]) < 1e-5)).sum())
    previous = first_of_run(starts_run(user, time)) - 1
    recent = (previous >= first_of_run(starts_run(user))) & (time - time[previous] <= how.place_seconds)
    before = item[previous]
    lat = np.where(given, lat, np.where(recent, how.lat[before], np.nan))
    lon = np.where(given, lon, np.where(recent, how.lon[before], np.nan))
    known = how.reach.within(lat, lon, item)
    return np.where(known, lat, np.nan).astype(np.float32), np.where(known, lon, np.nan).astype(np.float32)


def check_ins(
    bucket: Bucket, rows: slice, longest: int, split: NDArray[np.int64], how: CheckIns, rng: np.random.Generator
) -> Samples:
    """Samples of a source of visits: each visit is a request, with negatives drawn within reach (see ``prepare``)."""
    user, item, time = bucket.user[rows], bucket.item[rows], bucket.time[rows]
    start, end = history_ranges(user, time, np.ones(len(user), bool), longest)
    lat, lon = _places(bucket, rows, how)
    known = ~np.isnan(lat)
    centre_lat, centre_lon = np.where(known, lat, how.lat[item]), np.where(known, lon, how.lon[item])
    of_event, candidate, label = [np.arange(len(user))], [item], [np.ones(len(user), np.int8)]
    for which, k in enumerate(how.negatives):
        of = np.flatnonzero(split[rows] == which)
        drawn = how.reach.draw(centre_lat[of], centre_lon[of], item[of], int(k), rng)
        found = drawn >= 0
        of_event.append(np.repeat(of, found.sum(1)))
        candidate.append(drawn[found].astype(np.int32))
        label.append(np.zeros(len(candidate[-1]), np.int8))
    event = np.concatenate(of_event)
    item_of, label_of = np.concatenate(candidate), np.concatenate(label)
    visits = earlier_visits(user[event], item_of, time[event], label_of == 1)
    alone = np.bincount(event, minlength=len(user)) == 1
    how.skipped += np.bincount(split[rows][alone], minlength=len(SPLITS))
    how.known += int((known & ~alone).sum())
    order = np.argsort(event, kind="stable")
    order = order[~alone[event[order]]]
    event = event[order]
    request = bucket.request[rows]
    return Samples(
        user=user[event],
        item=item_of[order],
        label=label_of[order],
        time=time[event],
        request=request[event],
        lat=lat[event],
        lon=lon[event],
        visits=visits[order],
        history_start=start[event],
        history_end=end[event],
        probability=None,
        positives=Positives(user, item, time, np.where(alone, -1, request), lat, lon, visits[: len(user)]),
    )


def mixed(s: Samples, rows: NDArray[np.int64], requests_too: bool, rng: np.random.Generator) -> NDArray[np.int64]:
    """Candidates with those of a request side by side, in random order; the requests in theirs, or in random order."""
    first = int(s.request[0]) if len(s.request) else 0
    order = s.request - first
    if requests_too and len(order):
        order = rng.permutation(int(order[-1]) + 1)[order]
    return rows[sort_order(order[rows], rng.integers(0, 1 << _SHUFFLE_BITS, len(rows)))]


def requests_of(
    s: Samples, rows: NDArray[np.int64], user_row: NDArray[np.int32], users: int, requests: int
) -> Requests:
    """Some samples by request.

    Args:
        rows: which samples, those of a request side by side, in the order wanted.
        user_row: vocabulary row of each user of the bucket.
        users, requests: how many came before this bucket.
    """
    new = np.flatnonzero(starts_run(s.request[rows]))
    of = rows[new]
    start, length = s.history_start[of], s.history_end[of] - s.history_start[of]
    at = ranges(start, length)
    hours = (np.repeat(s.time[of], length) - s.positives.time[at]) / _HOUR
    columns: dict[str, NDArray[Any]] = {
        "item_row": s.item[rows] + np.int32(1),
        "label": s.label[rows],
        "visits": s.visits[rows],
    }
    if s.probability is not None:
        columns[PROBABILITY] = s.probability[rows]
    return Requests(
        {
            "request": s.request[of] + requests,
            "user_row": user_row[s.user[of]],
            "user_index": s.user[of].astype(np.int64) + users,
            "time": s.time[of],
            "lat": s.lat[of],
            "lon": s.lon[of],
        },
        Lists(
            np.concatenate([[0], np.cumsum(length)]),
            {"history": s.positives.item[at] + np.int32(1), "history_hours": hours.astype(np.float32)},
        ),
        Lists(np.append(new, len(rows)), columns),
    )


def row_groups(candidates: NDArray[np.int64], most: int) -> list[int]:
    """How many requests each row group takes, in their order: as many as have ``most`` candidates together, at least
    one; what is left at the end, which more requests may follow, is in none.

    Args:
        candidates: of each request, [R].
        most: at most so many a group, unless one request has more.
    """
    upto = np.concatenate([[0], np.cumsum(candidates)])
    taken, first = [], 0
    while upto[-1] - upto[first] >= most:
        stop = max(int(np.searchsorted(upto, upto[first] + most, "right")) - 1, first + 1)
        taken.append(stop - first)
        first = stop
    return taken


@dataclass
class SplitWriter:
    """Writes the shards of one split: full row groups, so many to a file, and counts what it wrote.

    A row group has at most ``row_group_rows`` candidates, and whole requests: one with more than that has its own.
    """

    folder: Path
    row_group_rows: int
    rows: int = 0
    requests: int = 0
    positives: int = 0
    history: int = 0
    first: int | None = None
    last: int | None = None
    row_groups: dict[str, list[int]] = field(default_factory=dict)
    _files: int = 0
    _groups: int = 0
    _pending: list[Requests] = field(default_factory=list)
    _waiting: int = 0  # candidates of those
    _writer: pq.ParquetWriter | None = None

    def write(
        self, s: Samples, rows: NDArray[np.int64], user_row: NDArray[np.int32], users: int, requests: int
    ) -> None:
        """Append samples; see ``requests_of``."""
        if len(rows) == 0:
            return
        time = s.time[rows]
        self.rows += len(rows)
        self.positives += int(s.label[rows].sum())
        self.history += int((s.history_end[rows] - s.history_start[rows]).sum())
        self.first = int(time.min()) if self.first is None else min(self.first, int(time.min()))
        self.last = int(time.max()) if self.last is None else max(self.last, int(time.max()))
        starts = np.flatnonzero(starts_run(s.request[rows]))
        self.requests += len(starts)
        for piece in np.split(rows, starts[1:][np.diff(starts // self.row_group_rows) > 0]):
            self._pending.append(requests_of(s, piece, user_row, users, requests))
            self._waiting += len(piece)
            self._flush(last=False)

    def _flush(self, last: bool) -> None:
        if not self._pending or not (last or self._waiting >= self.row_group_rows):
            return
        waiting = Requests.join(self._pending)
        candidates = np.diff(waiting.candidates.offsets)
        takes = row_groups(candidates, self.row_group_rows)
        done = sum(takes)
        if last and done < len(waiting):
            takes.append(len(waiting) - done)
        done = 0
        for requests in takes:
            self._write_group(waiting.take(np.arange(done, done + requests)))
            done += requests
        self._pending = [waiting.take(np.arange(done, len(waiting)))] if done < len(waiting) else []
        self._waiting = int(candidates[done:].sum())

    def _write_group(self, group: Requests) -> None:
        table = group.table()
        if self._writer is None:
            self.folder.mkdir(exist_ok=True)
            name = f"part-{self._files:05d}.parquet"
            self.row_groups[name] = []
            self._writer = pq.ParquetWriter(self.folder / name, table.schema, **ENCODING)
            self._files += 1
        self._writer.write_table(table, row_group_size=len(table))
        self.row_groups[f"part-{self._files - 1:05d}.parquet"].append(int(group.candidates.offsets[-1]))
        self._groups += 1
        if self._groups % _GROUPS_PER_FILE == 0:
            self._close_file()

    def _close_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def close(self) -> None:
        """Write what is left; the split is whole after this."""
        self._flush(last=True)
        self._close_file()

    def summary(self) -> dict[str, Any]:
        """Of the split, for the manifest: ``rows`` are candidates, and so are the numbers of ``row_groups``."""
        return {
            "rows": self.rows,
            "requests": self.requests,
            "positives": self.positives,
            "mean_history": self.history / max(self.rows, 1),
            "time": [self.first, self.last],
            "row_groups": self.row_groups,
        }
