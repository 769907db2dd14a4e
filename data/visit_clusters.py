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

from ..kernels.earth import on_sphere
from .arrays import Ints, ranges, sort_order, starts_run

REFRESH_DAYS = 14
"""Days from one clustering to the next; the paper's two weeks."""
_REFRESH = REFRESH_DAYS * 86_400


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
        return cls(most, np.ascontiguousarray(group, np.int64), np.nan_to_num(on_sphere(lat, lon)))


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
    from .visit_cluster_loops import cluster

    length = high - low
    order, run = ranges(low, length), np.repeat(np.arange(len(low)), length)
    by_group = sort_order(run, how.group[item[order]], order)  # a group's visits stay in order of time
    order, run, group = order[by_group], run[by_group], how.group[item[order[by_group]]]
    starts = np.flatnonzero(starts_run(run, group))
    ends = np.append(starts[1:], len(order))[: len(starts)]
    of, nearest, when = (np.empty(len(order), np.int64) for _ in range(3))
    size = np.empty(len(order), np.int32)
    made = cluster(starts, ends, how.most, order, item.astype(np.int64), time, how.place, of, nearest, when, size)
    run = run[starts[of[:made]]]
    # in order of time; at one moment by item, as visits are
    by_time = np.lexsort((nearest[:made], when[:made], run))
    offsets = np.searchsorted(run, np.arange(len(low) + 1))  # runs came one after the other
    return offsets, nearest[by_time].astype(item.dtype), when[by_time], size[by_time]


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
    from .visit_cluster_loops import before

    middle = np.empty(len(first), np.int64)
    before(first, end, time, asked // _REFRESH * _REFRESH, middle)
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
