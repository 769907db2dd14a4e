"""What becomes of a bucket of users, as pure functions that any engine can call, for each bucket alone, anywhere.

Interactions become samples in three steps, of which two look at a bucket at a time:

1. ``buckets.bucket_rows`` makes checked interactions small and says which bucket they belong to. All rows of a user,
   and so of a request, are in one bucket; which one depends on the user's id alone.
2. ``bucket_counts`` counts a bucket. From the counts of all of them ``Context.numbered`` knows how users and requests
   are numbered, and the catalog how often each item was shown and chosen.
3. ``bucket_samples`` makes a bucket's samples, ``bucket_sequences`` its users' whole sequences.

They take all rows of one bucket, in any order, and the same context for every bucket. They read and write no file and
keep nothing; what they return depends on their arguments alone, to the last bit. A bucket is held in memory whole, so
there should be one for about each million rows.

``prepare`` runs the same steps, streaming: ``count`` and ``pieces_of_bucket`` are what these functions are made of.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..raw.outcomes import NO_OUTCOMES, Outcomes
from ..requests import (
    EXTRA,
    OF_CANDIDATES,
    OF_HISTORY,
    OF_REQUEST,
    OF_USER,
    OF_VISITS,
    SIZE,
    SPLITS,
    Requests,
    Sequences,
)
from ..visit_clusters import Clustering
from .buckets import Bucket, Sorted, sort_rows
from .outcomes import counts as count_outcomes
from .own import Extra, OwnSeen
from .samples import CheckIns, check_ins, impressions, mixed, pieces, requests_of, sequences_of, user_blocks
from .summary import busiest

_TIME_BINS = 1 << 22
_ALWAYS, _NEVER = np.iinfo(np.int64).min, np.iinfo(np.int64).max
_ITEM_COUNTS = ("item", "shown", "positives", "last_positive", "later_shown", "later_positives", "later_last_positive")
_USER_COUNTS = ("user_id", "user_positives", "user_last_positive")


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the samples of a bucket depend on beside its rows: the same for all buckets. It can be pickled.

    ``prepare.context_of`` makes one of the settings.

    Attributes:
        starts: unix seconds at which the validation and the test split begin, of ``split_starts``.
        history_length, min_user_positives, seed: as in ``PrepareConfig``.
        extra: which of ``requests.EXTRA`` samples have; visits have no probability.
        own: further columns of the samples, made of the buckets' own columns.
        of_request: own columns of the buckets of which a request has one value, the first known one of its rows.
        sampled: rows that ``count`` takes of a bucket as a sample, with what it sees of own columns; 0: neither.
        clusters: how visits of long ago become entries of histories; None: each is one.
        outcomes: further labels, amount and weight, which are own columns of the buckets, too.
        check_ins: how candidates are made where all interactions are visits; None where they are impressions.
        since: unix seconds from which on rows make samples; those before are visits that were carried over from a
            folder before (``carried``), or older than ``sample_days``: they are in histories and counts of users, and
            in no split.
        known_users: users that the vocabulary had before; new ones get the rows after theirs.
        before: by bucket, how many users, requests and users of the vocabulary the buckets before it have;
            ``bucket_samples`` alone needs it.
    """

    starts: tuple[int, int]
    history_length: int
    min_user_positives: int
    seed: int
    extra: tuple[str, ...]
    check_ins: CheckIns | None
    since: int = _ALWAYS
    known_users: int = 0
    own: tuple[Extra, ...] = ()
    of_request: tuple[str, ...] = ()
    sampled: int = 0
    outcomes: Outcomes = NO_OUTCOMES
    clusters: Clustering | None = None
    before: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)

    def splits(self, time: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the split that each moment is in, -1 for those before ``since``."""
        return np.searchsorted(np.array((self.since, *self.starts)), time, "right") - 1

    def numbered(self, counts: pa.Table) -> "Context":
        """With numbers for the users and requests of each bucket, in the order of the buckets' numbers.

        Args:
            counts: bucket, users, requests, known_users: of ``bucket_counts`` of all buckets, in any order.

        Raises:
            ValueError: a bucket is there twice.
        """
        counts = counts.select(["bucket", "users", "requests", "known_users"]).sort_by("bucket")
        bucket, *sizes = (column.to_numpy() for column in counts.columns)
        if (again := bucket[1:][bucket[1:] == bucket[:-1]]).size:
            raise ValueError(
                f"counts: got bucket {again[0]} twice, expected a row a bucket; count all rows of a bucket together"
            )
        users, requests, known = ((np.cumsum(size) - size).tolist() for size in sizes)
        before = zip(users, requests, known, strict=True)
        return replace(self, before=dict(zip(bucket.tolist(), before, strict=True)))


def time_bins(first: int, last: int) -> tuple[int, int]:
    """How many seconds wide the bins are in which times are counted for the split, and how many there are.

    A 4-millionth of the whole time, at least a second: memory is bounded.
    """
    width = (last - first) // _TIME_BINS + 1
    return width, (last - first) // width + 1


def split_starts(
    bins: NDArray[np.int64], first: int, last: int, valid_fraction: float, test_fraction: float
) -> tuple[int, int]:
    """Where validation and test start: the first moments that leave enough interactions before them.

    Args:
        bins: interactions in each of ``time_bins``; bin i begins at first + i * width.
        first, last: of their times, unix seconds.
    """
    width, _ = time_bins(first, last)
    rows, before = int(bins.sum()), np.cumsum(bins) - bins
    starts = [_NEVER, _NEVER]
    for i, share in enumerate((valid_fraction + test_fraction, test_fraction)):
        if share > 0:
            starts[i] = first + int(np.searchsorted(before, round(rows * (1 - share)))) * width
    return (starts[0] if valid_fraction else starts[1]), starts[1]


@dataclass
class BucketSize:
    """What numbering and the summary need of a bucket.

    Attributes:
        rows: how many, of visits without those that are repeated; without what was carried over.
        users, requests, known_users: how many, and how many of the users are new in the vocabulary.
        repeated, both_labels: see ``buckets.Sorted``.
        top: the user with most rows, and how many.
        markers: ids that read as a missing value, with their rows.
        by_split: of check-ins, the requests of each split.
        given, own_place: of check-ins, requests for which the source gives a place, and those of them whose given
            place is the visited item's own.
        own: what is seen of own columns, where ``Context.sampled`` asks for it.
        outcomes: counts of ``outcomes.counts``.
    """

    rows: int
    users: int
    requests: int
    known_users: int
    repeated: int
    both_labels: int
    top: tuple[Any, int]
    markers: dict[str, int]
    by_split: NDArray[np.int64]
    given: int
    own_place: int
    own: OwnSeen | None = None
    outcomes: Counter[tuple[str, ...]] = field(default_factory=Counter)


@dataclass
class BucketCounts:
    """What is counted in a bucket.

    Attributes:
        size: see ``BucketSize``.
        items: of each item in the bucket, in any order: item (row of the items); in the training split shown,
            positives, last_positive (unix seconds, 0 = none), and the same in the later splits.
        users: of each user of the vocabulary, in the order of the ids: user_id, positives, last_positive, both with
            what was carried over, and user_row, the row so far, 0 for new ones.
        ids: of all users, in order.
    """

    size: BucketSize
    items: dict[str, NDArray[Any]]
    users: pa.Table
    ids: pa.Array

    def table(self, number: int) -> pa.Table:
        """As ``bucket_counts`` returns it."""
        size = {name: np.array([getattr(self.size, name)]) for name in ("users", "requests", "known_users")}
        items = {name: _one_list(pa.array(x)) for name, x in self.items.items()}
        columns = self.users.columns[: len(_USER_COUNTS)]
        users = {name: _one_list(x.combine_chunks()) for name, x in zip(_USER_COUNTS, columns, strict=True)}
        return pa.table({"bucket": pa.array([number], pa.int32()), **size, **items, **users})


def _one_list(values: pa.Array) -> pa.ListArray:
    values = pa.concat_arrays(values.chunks) if isinstance(values, pa.ChunkedArray) else values
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def bucket_counts(table: pa.Table, context: Context) -> pa.Table:
    """Count a bucket.

    Args:
        table: all rows of one bucket, in any order, with the columns of ``buckets.bucket_rows``.
        context: ``before`` is not used.

    Returns:
        One row (``counts_schema``); none for no rows. bucket; users, requests and known_users, int64: how many, and how
        many of the users are in the vocabulary, with ``min_user_positives`` positives in the training split. Then
        lists: of each item of the bucket item, and in the training split shown, positives and last_positive (unix
        seconds, 0 = none), in the later ones later_shown and so on; of each user of the vocabulary user_id,
        user_positives and user_last_positive. An item's are
        to be added over the buckets, and its latest positive is the latest of all; a user is in one bucket alone.

    Raises:
        ValueError: rows of several buckets.
        DataError: a request_id has rows of several moments.
    """
    if len(table) == 0:
        return counts_schema(table.schema.field("user").type).empty_table()
    return count(_sorted(table, context), context).table(_number(table))


def bucket_samples(table: pa.Table, context: Context) -> pa.Table:
    """Make the samples of a bucket.

    Args:
        table: all rows of one bucket, in any order, with the columns of ``buckets.bucket_rows``.
        context: one that is ``numbered``.

    Returns:
        A row a request (``samples_schema``): split (0 training, 1 validation, 2 test), and the columns of
        ``data/requests.py``. Within a split they are in the order in which ``prepare`` writes them: by user and time
        in validation and test, in random order in the training split, by the seed and the bucket's number, as are the
        candidates of each request. No rows for no rows, and none for visits with nothing else within reach.

    Raises:
        ValueError: rows of several buckets, or of one that was not counted.
        DataError: a request_id has rows of several moments.
    """
    schema = samples_schema(context.extra, context.own, context.clusters is not None)
    if len(table) == 0:
        return schema.empty_table()
    made = []
    for piece in pieces_of_bucket(_sorted(table, context).bucket, _number(table), context):
        if not isinstance(piece, Sequences):
            split, requests = piece
            column = pa.array(np.full(len(requests), split, np.int8))
            made.append(requests.table().add_column(0, schema.field("split"), column))
    return pa.concat_tables([schema.empty_table(), *made])


def bucket_sequences(table: pa.Table, context: Context) -> pa.Table:
    """Make the whole sequences of a bucket's users.

    Args:
        table, context: as for ``bucket_samples``.

    Returns:
        A row a user with a positive (``sequences_schema``), in the order of the ids: the columns of
        ``data/requests.py``. A visit's request is that of the samples, -1 where nothing else was within reach.

    Raises:
        ValueError, DataError: as ``bucket_samples``.
    """
    if len(table) == 0:
        return sequences_schema().empty_table()
    every = pieces_of_bucket(_sorted(table, context).bucket, _number(table), context)
    made = [piece.table() for piece in every if isinstance(piece, Sequences)]
    return pa.concat_tables([sequences_schema().empty_table(), *made])


def samples_schema(extra: Collection[str], own: Collection[Extra] = (), clusters: bool = False) -> pa.Schema:
    """Of what ``bucket_samples`` returns, with those of ``requests.EXTRA``, own columns, and sizes of clusters."""
    flat, lists = {"split": np.int8, **OF_REQUEST}, {**OF_HISTORY, **OF_CANDIDATES}
    for name in {*EXTRA, SIZE} - {*extra, *((SIZE,) if clusters else ())}:
        flat.pop(name, None)
        lists.pop(name, None)
    flat |= {e.name: e.dtype for e in own if e.of == "request"}
    return _schema(flat, lists | {e.name: e.dtype for e in own if e.of == "candidate"})


def sequences_schema() -> pa.Schema:
    """Of what ``bucket_sequences`` returns."""
    return _schema(OF_USER, OF_VISITS)


def _schema(flat: Mapping[str, Any], lists: Mapping[str, Any]) -> pa.Schema:
    return pa.schema(
        [(name, pa.from_numpy_dtype(of)) for name, of in flat.items()]
        + [(name, pa.list_(pa.from_numpy_dtype(of))) for name, of in lists.items()]
    )


def counts_schema(user_id: pa.DataType) -> pa.Schema:
    """Of what ``bucket_counts`` returns, where ids of users are of that type."""
    numbers = [("users", pa.int64()), ("requests", pa.int64()), ("known_users", pa.int64())]
    types = [pa.int32(), *[pa.int64()] * 6, user_id, *[pa.int64()] * 2]
    lists = [(n, pa.list_(of)) for n, of in zip((*_ITEM_COUNTS, *_USER_COUNTS), types, strict=True)]
    return pa.schema([("bucket", pa.int32()), *numbers, *lists])


def _number(table: pa.Table) -> int:
    """The number of the bucket that all rows are of."""
    numbers = np.unique(table["bucket"].to_numpy())
    if len(numbers) > 1:
        raise ValueError(
            f"table: got rows of buckets {numbers[0]}, {numbers[1]} and so on, expected those of one; group by bucket"
        )
    return int(numbers[0])


def _sorted(table: pa.Table, context: Context) -> Sorted:
    return sort_rows(table, context.check_ins is not None, context.of_request)


def _vocabulary(b: Bucket, split: NDArray[np.int64], context: Context) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Of each user: positives in the training split and before; and the row in the vocabulary, -1 for one that is new
    there, 0 for who isn't in it. [U] each."""
    positive = (split <= 0) & (b.label == 1)
    users = int(b.user[-1]) + 1
    count = np.bincount(b.user[positive], minlength=users)
    if (carried := split < 0).any():
        count += np.bincount(b.user[carried], b.folded[carried], minlength=users).astype(np.int64)
    row = np.zeros(users, np.int32)
    if b.user_row.any():
        np.maximum.at(row, b.user, b.user_row)
    return count, np.where((row == 0) & (count >= context.min_user_positives), np.int32(-1), row)


def count(found: Sorted, context: Context) -> BucketCounts:
    """Count a bucket that is sorted."""
    b = found.bucket
    split = context.splits(b.time)
    own = np.flatnonzero(split >= 0)
    items = pa.array(b.item[own]).dictionary_encode()
    n, at = len(items.dictionary), items.indices.to_numpy()
    counts = []
    for later in (False, True):
        which = (split[own] > 0) == later
        positive = which & (b.label[own] == 1)
        last = np.zeros(n, np.int64)
        np.maximum.at(last, at[positive], b.time[own[positive]])
        counts += [np.bincount(at[which], minlength=n), np.bincount(at[positive], minlength=n), last]
    positives, row = _vocabulary(b, split, context)
    known = row != 0
    last_of_user = np.zeros(len(known), np.int64)
    positive = (split <= 0) & (b.label == 1)
    last_of_user[b.user[positive]] = b.time[positive]  # in their order, so the last one stays
    top, markers = busiest(b.user[own], found.users)
    size = BucketSize(
        rows=len(own),
        users=len(known),
        requests=int(b.request[-1]) + 1,
        known_users=int((row < 0).sum()),
        repeated=found.repeated,
        both_labels=found.both_labels,
        top=top,
        markers=markers,
        by_split=np.zeros(len(SPLITS), np.int64),
        given=0,
        own_place=0,
        outcomes=count_outcomes(context.outcomes, b, split == 0),
    )
    if context.sampled:
        size.own = OwnSeen.of(b, found.users, split == 0, context.sampled)
    if (how := context.check_ins) is not None:
        size.by_split = np.bincount(split[own], minlength=len(SPLITS))
        given = np.flatnonzero(~np.isnan(b.lat) & (split >= 0))
        apart = [np.abs(own[given] - of[b.item[given]]) for own, of in ((b.lat, how.lat), (b.lon, how.lon))]
        size.given, size.own_place = len(given), int((np.maximum(*apart) < 1e-5).sum())
    return BucketCounts(
        size=size,
        items=dict(zip(_ITEM_COUNTS, (items.dictionary.to_numpy(), *counts), strict=True)),
        users=pa.table(
            {
                "user_id": found.users.filter(pa.array(known)),
                "positives": positives[known],
                "last_positive": last_of_user[known],
                "user_row": np.maximum(row[known], 0),
            }
        ),
        ids=found.users,
    )


def pieces_of_bucket(b: Bucket, number: int, context: Context) -> Iterator[tuple[int, Requests] | Sequences]:
    """What a bucket that is sorted becomes: split and some requests, piece by piece, and the sequences of some users;
    those of a split, and the users, in their order.

    Held in memory are the samples of some users, with about a million candidates together, and one piece.

    Raises:
        ValueError: the bucket was not counted.
    """
    if number not in context.before:
        raise ValueError(
            f"bucket {number}: got a context without its numbers, expected one of Context.numbered with the counts of "
            "all buckets (bucket_counts)"
        )
    users, requests, known_users = context.before[number]
    split = context.splits(b.time)
    _, row = _vocabulary(b, split, context)
    new = row < 0
    user_row = np.where(new, context.known_users + known_users + np.cumsum(new), row).astype(np.int32)
    how = context.check_ins
    extra: dict[str, NDArray[Any]] = {name: getattr(b, name) for name in context.extra}
    extra |= {e.name: e.of_values(b.own[e.column]) for e in context.own}
    of_candidates = {n for n in extra if n in OF_CANDIDATES} | {e.name for e in context.own if e.of == "candidate"}
    weight = np.ones(len(b), np.int64) if how is None else 1 + np.where(split < 0, 0, how.negatives[split])
    for block, rows in enumerate(user_blocks(b, weight)):
        rng = np.random.default_rng([context.seed, number, block])
        if how is None:
            samples = impressions(b, rows, context.history_length, extra, of_candidates, split)
        else:
            samples = check_ins(b, rows, context.history_length, extra, of_candidates, split, how, rng)
        if context.clusters is not None:
            samples.cluster(context.history_length, context.clusters)
        of = context.splits(samples.time)
        for i in range(len(SPLITS)):
            mine = mixed(samples, np.flatnonzero(of == i), requests_too=i == 0, rng=rng)
            for piece in pieces(samples, mine):
                yield i, requests_of(samples, piece, user_row, users, requests)
        times = samples.positives.time
        yield sequences_of(samples.positives, context.splits(times), user_row, users, requests)
