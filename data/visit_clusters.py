"""Visits of long ago as clusters: what a life-long history is compressed to (TWIN-V2).

Si et al., TWIN V2: Scaling Ultra-Long User Behavior Sequence Modeling for Enhanced CTR Prediction at Kuaishou, CIKM
2024 (arXiv 2407.16357). Written from its abstract and what is generally known of its section on clustering, whose text
was not at hand.

There, items of a user's life are parted by how much of the video was played, then clustered by k-means over and over,
into the 0.3th power of their number each time, until no cluster has more than 20. A cluster is a virtual item: the mean
of what are numbers and, for what are ids, the item nearest to its centre. Clusters are made anew every two weeks.

Here a visit has no playing time, and what a place is worth depends on where it is. So visits are parted by category,
which is what tastes are about, and clustered by where they were: a cluster is "Thai food in this neighbourhood". No
trained vectors are needed, so clusters are made with the data, once for all rankers. The number of a cluster is its
time, the mean of its visits'; the place that stands for it is the visited one nearest to the centre.

**No cluster knows the future.** Clusters seen at a moment were made at the last multiple of ``REFRESH_DAYS`` since
1970, of what was strictly before it. Visits since then are seen as they are: entries of size 1.

Shapes: R requests, P visits, I items, J runs of rows (clusters, then visits).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..kernels.threads import inlined, jit
from .arrays import Ints, ranges, sort_order, starts_run

REFRESH_DAYS = 14
"""Days from one clustering to the next; the paper's two weeks."""
_REFRESH = REFRESH_DAYS * 86_400
_POWER = 0.3  # n visits are parted into n ** 0.3, the paper's
_ROUNDS = 10  # of k-means, at most


@dataclass(frozen=True)
class Clustering:
    """How visits become clusters.

    Attributes:
        most: visits of a cluster, at most, 2 or more; the paper's 20.
        group: of the items; visits of different ones share no cluster, integers [I].
        place: unit vectors of the items, float64 [I, 3].
    """

    most: int
    group: NDArray[Any]
    place: NDArray[np.float64]

    @classmethod
    def of(cls, most: int, group: NDArray[Any], lat: NDArray[np.float64], lon: NDArray[np.float64]) -> "Clustering":
        """Places in degrees; unknown ones, NaN, all lie together."""
        phi, lam = np.radians(lat), np.radians(lon)
        place = np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=1)
        return cls(most, np.ascontiguousarray(group, np.int64), np.nan_to_num(place))


class Entries(NamedTuple):
    """What requests look back on.

    Attributes:
        start, length: runs of rows of the arrays below that each request sees, oldest first, int64 [R, J].
        item: rows of the items as the visits have them, [P'].
        time: unix seconds, of a cluster their mean, int64 [P'].
        size: visits of each entry, int32 [P'].
    """

    start: NDArray[np.int64]
    length: NDArray[np.int64]
    item: NDArray[Any]
    time: NDArray[np.int64]
    size: NDArray[np.int32]


@inlined()
def _part(order: Any, a: int, b: int, item: Any, place: Any, k: int, label: Any, centre: Any, count: Any) -> int:
    """label[a:b] of visits order[a:b]: the nearest of up to k centres, of which two at least have some; returns k.

    k-means from centres evenly along the axis on which the visits reach farthest; visits of one place are halved by
    time.
    """
    axis, widest, start = 0, -1.0, 0.0
    for d in range(3):
        low = high = place[item[order[a]], d]
        total = 0.0
        for t in range(a, b):
            x = place[item[order[t]], d]
            low, high, total = min(low, x), max(high, x), total + x
        for j in range(k):
            centre[j, d] = total / (b - a)
        if high - low > widest:
            axis, widest, start = d, high - low, low
    if widest == 0:
        for t in range(a, b):
            label[t] = t >= (a + b) // 2
        return 2
    for j in range(k):
        centre[j, axis] = start + widest * (j + 0.5) / k
    label[a:b] = -1
    for _ in range(_ROUNDS):
        moved = 0
        for t in range(a, b):
            best, nearest = 0, np.inf
            for j in range(k):
                far = 0.0
                for d in range(3):
                    far += (place[item[order[t]], d] - centre[j, d]) ** 2
                if far < nearest:
                    best, nearest = j, far
            moved += label[t] != best
            label[t] = best
        if moved == 0:
            break
        count[:k] = 0
        for t in range(a, b):
            count[label[t]] += 1
        for j in range(k):
            if count[j] > 0:
                centre[j] = 0
        for t in range(a, b):
            for d in range(3):
                centre[label[t], d] += place[item[order[t]], d] / count[label[t]]
    return k


@jit()
def _cluster(
    starts: Any, ends: Any, most: int, order: Any, item: Any, time: Any, place: Any, of: Any, out_item: Any,
    out_time: Any, out_size: Any,
) -> int:  # fmt: skip
    """Clusters of each group of visits order[starts[g]] to order[ends[g]], one after the other; how many there are.

    ``of`` says which group each is of.
    """
    label, fresh, done = np.empty(len(order), np.int64), np.empty(len(order), np.int64), 0
    centre, count = np.empty((len(order), 3)), np.empty(len(order), np.int64)
    stack = np.empty((len(order) + 1, 2), np.int64)
    for g in range(len(starts)):
        stack[0, 0], stack[0, 1], waiting = starts[g], ends[g], 1
        while waiting > 0:
            waiting -= 1
            a, b = stack[waiting, 0], stack[waiting, 1]
            if b - a > most:
                k = _part(order, a, b, item, place, max(2, int((b - a) ** _POWER)), label, centre, count)
                at = a
                for j in range(k):
                    began = at
                    for t in range(a, b):
                        if label[t] == j:
                            fresh[at] = order[t]
                            at += 1
                    if at > began:
                        stack[waiting, 0], stack[waiting, 1] = began, at
                        waiting += 1
                order[a:b] = fresh[a:b]
                continue
            seconds = 0
            centre[0] = 0
            for t in range(a, b):
                seconds += time[order[t]] - time[order[a]]
                for d in range(3):
                    centre[0, d] += place[item[order[t]], d] / (b - a)
            nearest = np.inf
            for t in range(a, b):
                far = 0.0
                for d in range(3):
                    far += (place[item[order[t]], d] - centre[0, d]) ** 2
                if far <= nearest:  # of equally near ones the latest
                    nearest, out_item[done] = far, item[order[t]]
            of[done], out_time[done], out_size[done] = g, time[order[a]] + seconds // (b - a), b - a
            done += 1
    return done


def cluster_visits(
    low: Ints, high: Ints, item: NDArray[Any], time: Ints, how: Clustering
) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.int64], NDArray[np.int32]]:
    """Clusters of runs of visits.

    Args:
        low, high: run p is visits low[p] to high[p], in order of time, int64 [N].
        item, time: of all visits: rows of the items and unix seconds, [P].
        how: see ``Clustering``.

    Returns:
        Where the clusters of each run are, int64 [N+1]; and of the clusters, in order of time: the item that is nearest
        to the centre, the mean time (rounded down to seconds) and how many visits they have, which are those of the run
        in all and at most ``how.most`` in each.
    """
    length = high - low
    order, run = ranges(low, length), np.repeat(np.arange(len(low)), length)
    by_group = sort_order(run, how.group[item[order]], order)  # a group's visits stay in order of time
    order, run, group = order[by_group], run[by_group], how.group[item[order[by_group]]]
    starts = np.flatnonzero(starts_run(run, group))
    ends = np.append(starts[1:], len(order))[: len(starts)]
    of, nearest, when = (np.empty(len(order), np.int64) for _ in range(3))
    size = np.empty(len(order), np.int32)
    made = _cluster(starts, ends, how.most, order, item.astype(np.int64), time, how.place, of, nearest, when, size)
    run = run[starts[of[:made]]]
    # in order of time; at one moment by item, as visits are
    by_time = np.lexsort((nearest[:made], when[:made], run))
    offsets = np.searchsorted(run, np.arange(len(low) + 1))  # runs came one after the other
    return offsets, nearest[by_time].astype(item.dtype), when[by_time], size[by_time]


@jit()
def _before(first: Any, end: Any, time: Any, moment: Any, out: Any) -> None:
    """out[r]: the first of visits first[r] to end[r] that is not before the moment, or end[r]."""
    for r in range(len(first)):
        a, b = first[r], end[r]
        while a < b:
            middle = (a + b) // 2
            if time[middle] < moment[r]:
                a = middle + 1
            else:
                b = middle
        out[r] = a


def look_back(
    first: Ints, end: Ints, asked: Ints, item: NDArray[Any], time: NDArray[np.int64], longest: int, how: Clustering
) -> Entries:
    """What requests see of their users' visits: clusters up to the last refresh, and the visits since then.

    Args:
        first, end: the request's user has visits first[r] to end[r] strictly before the request, int64 [R].
        asked: unix seconds of the requests, int64 [R].
        item, time: of the visits, each user's in order of time, [P].
        longest: the last so many visits before the refresh are clustered, and a request sees the last so many entries.
        how: see ``Clustering``.
    """
    middle = np.empty(len(first), np.int64)
    _before(first, end, time, asked // _REFRESH * _REFRESH, middle)
    # a user's requests of a fortnight share their clusters
    pairs, which = np.unique(first * (len(item) + 1) + middle, return_inverse=True)
    begin, upto = np.divmod(pairs, len(item) + 1)
    offsets, *clusters = cluster_visits(np.maximum(begin, upto - longest), upto, item, time, how)
    recent = np.minimum(end - middle, longest)
    long_ago = np.minimum(offsets[which + 1] - offsets[which], longest - recent)
    start = np.stack([offsets[which + 1] - long_ago, offsets[-1] + end - recent], axis=1)
    of_visits = item, time, np.ones(len(item), np.int32)
    columns = [np.concatenate([a, b]) for a, b in zip(clusters, of_visits, strict=True)]
    return Entries(start, np.stack([long_ago, recent], axis=1), *columns)
