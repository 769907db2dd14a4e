"""From a bucket of interactions to requests with their candidates; nothing here reads or writes a file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import first_of_run, ranges, sort_order, starts_run
from ..requests import SIZE, Lists, Requests, Sequences
from ..visit_clusters import Clustering, Entries, look_back
from .buckets import Bucket
from .history import earlier_visits, history_ranges
from .negatives import Reach

SPLITS = ("train", "valid", "test")
_CANDIDATES = 1 << 20  # of the users handled together
_PIECE = 65_536  # candidates whose histories are laid out together
_ENTRIES = 1 << 24  # of the histories that are laid out together
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
    utc_offset: NDArray[np.float32]
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
    extra: dict[str, NDArray[Any]]  # of ``requests.EXTRA``, those that there are, and columns of one's own
    of_candidates: set[str]  # which of them are of candidates
    positives: Positives
    clustered: Entries | None = None  # of each candidate, where histories hold clusters

    def entries(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of these candidates' histories, how many."""
        if self.clustered is not None:
            return self.clustered.length[rows].sum(1)
        return self.history_end[rows] - self.history_start[rows]

    def cluster(self, longest: int, how: Clustering) -> None:
        """Let histories hold clusters of what was before the last refresh."""
        p = self.positives
        first = np.searchsorted(p.user, self.user)
        self.clustered = look_back(first, self.history_end, self.time, p.item, p.time, longest, how)


@dataclass
class CheckIns:
    """How candidates are made where the source holds visits alone.

    Attributes:
        lat, lon: places of the items in degrees, float64 [I].
        reach: the same places, to draw from.
        negatives: how many a request, by split.
        place_seconds: how old a visit may be to say where the user is.
    """

    lat: NDArray[np.float64]
    lon: NDArray[np.float64]
    reach: Reach
    negatives: NDArray[np.int64]
    place_seconds: float


def user_blocks(bucket: Bucket, weight: NDArray[np.int64]) -> Iterator[slice]:
    """Rows of whole users with about ``_CANDIDATES`` candidates together; ``weight``: candidates of each row."""
    block = np.cumsum(weight) // _CANDIDATES
    block = block[first_of_run(starts_run(bucket.user))]
    cuts = [*np.flatnonzero(starts_run(block)), len(block)]
    return (slice(a, b) for a, b in pairwise(cuts))


Extras = Mapping[str, NDArray[Any]]
"""Further columns of the samples by name, an entry a row of the bucket."""


def impressions(
    bucket: Bucket, rows: slice, longest: int, extra: Extras, of_candidates: set[str], split: NDArray[np.int64]
) -> Samples:
    """Samples of a source that says what was shown: one a row, but for those carried over (split -1);
    ``of_candidates``: which of ``extra`` are."""
    user, item, time, label = (getattr(bucket, n)[rows] for n in ("user", "item", "time", "label"))
    positive = label == 1
    start, end = history_ranges(user, time, positive, longest)
    request, lat, lon, offset = (getattr(bucket, n)[rows] for n in ("request", "lat", "lon", "utc_offset"))
    visits = earlier_visits(user, item, time, positive, bucket.folded[rows])
    own = split[rows] >= 0
    of_visit = np.where(own, request, -1)
    return Samples(
        user=user[own],
        item=item[own],
        label=label[own],
        time=time[own],
        request=request[own],
        lat=lat[own],
        lon=lon[own],
        visits=visits[own],
        history_start=start[own],
        history_end=end[own],
        extra={name: x[rows][own] for name, x in extra.items()},
        of_candidates=of_candidates,
        positives=Positives(*(x[positive] for x in (user, item, time, of_visit, lat, lon, offset, visits))),
    )


def _places(
    bucket: Bucket, rows: slice, how: CheckIns, carried: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where the user is when a request is made, degrees [R]; NaN = unknown. Of what was carried over it is known."""
    user, item, time = bucket.user[rows], bucket.item[rows], bucket.time[rows]
    lat, lon = bucket.lat[rows].astype(np.float64), bucket.lon[rows].astype(np.float64)
    given = ~np.isnan(lat)
    previous = first_of_run(starts_run(user, time)) - 1
    recent = (previous >= first_of_run(starts_run(user))) & (time - time[previous] <= how.place_seconds) & ~carried
    before = item[previous]
    lat = np.where(given, lat, np.where(recent, how.lat[before], np.nan))
    lon = np.where(given, lon, np.where(recent, how.lon[before], np.nan))
    known = how.reach.within(lat, lon, item) | (given & carried)
    return np.where(known, lat, np.nan).astype(np.float32), np.where(known, lon, np.nan).astype(np.float32)


def check_ins(
    bucket: Bucket,
    rows: slice,
    longest: int,
    extra: Extras,
    of_candidates: set[str],
    split: NDArray[np.int64],
    how: CheckIns,
    rng: np.random.Generator,
) -> Samples:
    """Samples of a source of visits: each visit is a request, with negatives drawn within reach (see ``prepare``).

    What is of candidates (``of_candidates``) only visits have; negatives have 0.
    """
    user, item, time = bucket.user[rows], bucket.item[rows], bucket.time[rows]
    start, end = history_ranges(user, time, np.ones(len(user), bool), longest)
    lat, lon = _places(bucket, rows, how, split[rows] < 0)
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
    folded = bucket.folded[rows][event] * label_of
    visits = earlier_visits(user[event], item_of, time[event], label_of == 1, folded)
    alone = np.bincount(event, minlength=len(user)) == 1
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
        extra={
            name: np.where(label_of[order] == 1, x[rows][event], x.dtype.type(0))
            if name in of_candidates
            else x[rows][event]
            for name, x in extra.items()
        },
        of_candidates=of_candidates,
        positives=Positives(
            user, item, time, np.where(alone, -1, request), lat, lon, bucket.utc_offset[rows], visits[: len(user)]
        ),
    )


def mixed(s: Samples, rows: NDArray[np.int64], requests_too: bool, rng: np.random.Generator) -> NDArray[np.int64]:
    """Candidates with those of a request side by side, in random order; the requests in theirs, or in random order."""
    first = int(s.request[0]) if len(s.request) else 0
    order = s.request - first
    if requests_too and len(order):
        order = rng.permutation(int(order[-1]) + 1)[order]
    draws = rng.integers(0, 1 << _SHUFFLE_BITS, len(rows))
    return rows[sort_order(order[rows], draws, last_is_random=True)]


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
    length, seen = s.entries(of), s.positives
    if s.clustered is None:
        at = ranges(s.history_start[of], length)
        item, time, sizes = seen.item[at], seen.time[at], {}
    else:
        clustered = s.clustered
        at = ranges(clustered.start[of].ravel(), clustered.length[of].ravel())
        item, time, sizes = clustered.item[at], clustered.time[at], {SIZE: clustered.size[at]}
    hours = (np.repeat(s.time[of], length) - time) / _HOUR
    columns: dict[str, NDArray[Any]] = {
        "item_row": s.item[rows] + np.int32(1),
        "label": s.label[rows],
        "visits": s.visits[rows],
    }
    flat: dict[str, NDArray[Any]] = {
        "request": s.request[of] + requests,
        "user_row": user_row[s.user[of]],
        "user_index": s.user[of].astype(np.int64) + users,
        "time": s.time[of],
        "lat": s.lat[of],
        "lon": s.lon[of],
    }
    for name, values in s.extra.items():
        if name in s.of_candidates:
            columns[name] = values[rows]
        else:
            flat[name] = values[of]
    return Requests(
        flat,
        Lists(
            np.concatenate([[0], np.cumsum(length)]),
            {"history": item + np.int32(1), "history_hours": hours.astype(np.float32), **sizes},
        ),
        Lists(np.append(new, len(rows)), columns),
    )


def sequences_of(
    p: Positives, split: NDArray[np.int64], user_row: NDArray[np.int32], users: int, requests: int
) -> Sequences:
    """Positives by user.

    Args:
        p: of whole users, sorted by user and time.
        split: of each, -1 where it was carried over.
        user_row: vocabulary row of each user of the bucket.
        users, requests: how many came before this bucket.
    """
    new = np.flatnonzero(starts_run(p.user))
    of = p.user[new]
    columns: dict[str, NDArray[Any]] = {
        "item_row": p.item + np.int32(1),
        "time": p.time,
        "lat": p.lat,
        "lon": p.lon,
        "utc_offset": p.utc_offset,
        "visits": p.visits,
        "split": split.astype(np.int8),
        "request": np.where(p.request < 0, -1, p.request + requests),
    }
    return Sequences(
        {"user_row": user_row[of], "user_index": of.astype(np.int64) + users},
        Lists(np.append(new, len(p.user)), columns),
    )


def pieces(s: Samples, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Samples, those of a request side by side, in pieces of whole requests, each of about ``_PIECE`` candidates, or
    ``_ENTRIES`` entries of their histories if that is less."""
    if len(rows) == 0:
        return []
    starts = np.flatnonzero(starts_run(s.request[rows]))
    entries = np.cumsum(s.entries(rows[starts]))
    return np.split(rows, starts[1:][(np.diff(starts // _PIECE) > 0) | (np.diff(entries // _ENTRIES) > 0)])
