"""``prepare``: tables of items and interactions become samples, vocabularies and a catalog.

The way: the interactions stream through the checks of ``schema`` into bucket files by a hash of the user; the
times in them decide the split; each bucket is sorted and counted, so that its users and requests can be numbered after
those of the buckets before it; then it is turned into samples alone. Memory holds the items, the users' ids and one
bucket, whatever the number of interactions.

**Threads** of this process share the row groups of the interactions and the buckets (``nproc``), and so do **ranks**,
as torchrun starts them, each with one thread. All meet after each pass. Ranks leave to each other what is large as
files in the unfinished folder, so that has to be on a disk that all see. How many buckets there are, what a bucket
becomes and where it is written depends on neither, so no byte of the output does.
"""

import logging
import math
import shutil
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...reports.progress import Progress
from ..manifest import fingerprint, whole_folder, write_manifest
from ..ranks import Ranks, joined
from ..raw.checks import BadRows, merge_rejected
from ..raw.columns import DataError
from ..raw.lookup import IdIndex
from ..raw.outcomes import columns_of
from ..raw.own import normal_type
from ..raw.schema import check_not_all_bad, iter_interactions
from ..raw.times import iso
from ..requests import CLUSTER_VISITS, OWN, PROBABILITY, SEQUENCES, SPLITS
from ..urls import check_seen
from ..visit_clusters import Clustering
from .before import COUNTS, Before, write_next
from .buckets import MOST_FILES, BucketWriter, by_number, part, sharing
from .inputs import USERS_FILE, WORK, Raw, of_table, read_tables
from .inputs import extra_columns as extra_columns
from .item_variance import item_variance
from .negatives import Reach
from .outcomes import described, extras, in_words
from .own import SAMPLED, OwnSeen
from .own_plan import OwnPlan, plan
from .per_bucket import BucketCounts, BucketSize, Context, split_starts, time_bins
from .samples import CheckIns
from .settings import PrepareConfig as PrepareConfig
from .summary import Seen, Told, lines, summarize
from .tables import by_row, write_catalog, write_users
from .tasks import ITEMS_FILE, Written, count_bucket, going, histogram, on_threads, read_table, write_samples
from .vocabulary import category_rows, item_vocabularies

log = logging.getLogger(__name__)
T = TypeVar("T")
K = TypeVar("K")

_BUCKET_ROWS = 1_000_000
_NUMBERED = ("users", "requests", "known_users")
_PATIENCE = timedelta(days=7)  # with other ranks; one that died is noticed at once


def prepare(config: PrepareConfig, nproc: int = 1) -> Path:
    """Make the prepared folder; returns its path.

    ``nproc`` threads share the work, or ranks that torchrun started.

    No sample knows its future. The history is the user's last positives strictly before the sample's time
    (positives of the same moment, and other candidates of the request, are not in it); ``visits`` counts the
    user's positives on the item strictly before; the counts of the catalog, the popularity buckets and the
    vocabulary of users come from the training split alone. The splits are cut at whole timestamps, so no moment
    lies on both sides.

    **Requests.** Candidates that were shown together share a request: rows of one user with one ``request_id``,
    or else of one user and one timestamp. All take the first known place of the request's rows.

    **Check-ins.** Where no interaction has label 0, each visit is a request, and negatives are drawn uniformly,
    without replacement, among the items within ``reach_km``, the same for every model. The place of the request
    must not be the place of the visit itself, because distance 0 would tell the label. It is ``user_lat``,
    ``user_lon`` if given, or else the place of the user's previous visit, if that is at most
    ``place_max_hours`` old. A visit farther than ``reach_km`` from there would be told from its negatives by
    distance alone; its place is unknown (NaN for all its candidates), and so it is for users who were nowhere
    before. Then negatives are drawn around the visited item. Fewer items within reach make fewer negatives; a
    visit with none cannot be ranked and makes no samples (the summary counts them), but it is in histories. A
    negative may be an item that the user visits at another time. Candidates of a request are in random order.

    **Repeated rows.** Visits of one user to one item in the same second count once. Impressions that are repeated are
    kept and told: an item may be shown twice.

    **After** another folder (``after``) the input is what came since. Values and ids of that folder keep their rows,
    its users' visits are in histories and counts, and the split is of today's interactions alone, by the same shares.
    So training samples see all days before, and validation and test are the end of today.

    The step ends with a summary in the log, which the manifest keeps as ``summary`` (see ``summary``).

    Raises:
        DataError: the input breaks the schema, holds no positive, has no time after 1990, or leaves a split empty; or
            it doesn't go on from ``after``.
        FileExistsError: ``out`` exists and ``overwrite`` is False.
    """
    kind = Job
    if config.engine == "ray":
        from .on_ray import RayJob

        kind = RayJob
    if not config.input.exists():
        raise FileNotFoundError(f"prepare.input={config.input} not found; check the path")
    with joined(_PATIENCE) as ranks, ExitStack() as stack:
        folder = ranks.first(lambda: stack.enter_context(whole_folder(config.out, config.overwrite)))
        summary = _prepare(config, folder, ranks, nproc, kind)
        ranks.first(stack.close)  # the folder gets its name
    if ranks.is_first:
        log.info("%s\n%s", config.out, "\n".join(lines(summary)))
        for warning in summary["warnings"]:
            log.warning("warning: %s", warning)
    return config.out


def _prepare(config: PrepareConfig, folder: Path, ranks: Ranks, threads: int, kind: type["Job"]) -> dict[str, Any]:
    """Fill the folder; returns the summary."""
    raw = ranks.first(lambda: read_tables(config, folder))
    ranks.each(lambda: check_seen(folder))
    job = kind(config, folder, raw, ranks, threads)
    job.run()
    ranks.each(job.let_go)
    return ranks.first(job.finish)


def context_of(
    config: PrepareConfig,
    items: pa.Table,
    starts: tuple[int, int],
    visits_alone: bool,
    extra: Collection[str],
    before: Before | None = None,
) -> Context:
    """What the samples of all buckets depend on; see ``per_bucket``.

    Args:
        items: lat, lon in degrees, float64, in the order of the ids; for clusters category, too.
        starts: of ``per_bucket.split_starts``.
        visits_alone: whether no interaction has label 0.
        extra: of ``extra_columns``.
        before: the day before, if there was one.
    """
    how = None
    if visits_alone:
        lat, lon = (items[c].to_numpy() for c in ("lat", "lon"))
        counts = np.array([config.train_negatives, config.eval_negatives, config.eval_negatives])
        how = CheckIns(lat, lon, Reach(lat, lon, config.reach_km), counts, config.place_max_hours * 3600)
    made = Context(
        starts=starts,
        history_length=config.history_length,
        min_user_positives=config.min_user_positives,
        seed=config.seed,
        extra=tuple(name for name in extra if name != PROBABILITY or not visits_alone),
        check_ins=how,
    )
    if config.cluster_visits > 1:
        category = category_rows(items["category"])[1]
        where = (items[c].to_numpy() for c in ("lat", "lon"))
        made = replace(made, clusters=Clustering.of(config.cluster_visits, category, *where))
    if before is None:
        return made
    return replace(made, since=before.until + 1, known_users=len(before.users) - 1)


class Job:
    """The passes over the interactions, and what samples and catalog are made of. All ranks call all methods."""

    def __init__(self, config: PrepareConfig, folder: Path, raw: Raw, ranks: Ranks, threads: int = 1) -> None:
        self.config, self.folder, self.raw, self.ranks, self.threads = config, folder, raw, ranks, threads
        self.work = folder / WORK
        self.before = None if config.after is None else Before.open(config.after)
        self.items = read_table(self.work / ITEMS_FILE, mapped=not ranks.is_first)
        self.users = (
            read_table(self.work / USERS_FILE) if ranks.is_first and (self.work / USERS_FILE).exists() else None
        )
        self.seen = Seen()
        self.rejected: list[dict[str, str | int]] = []
        self.files: dict[int, list[Path]] = {}  # of each bucket that has rows
        self.starts = (0, 0)  # of the validation and of the test split
        self.positives = np.zeros(len(self.items), np.int64)
        self.shown = np.zeros(len(self.items), np.int64)
        self.last_positive = np.zeros(len(self.items), np.int64)
        self.later = np.zeros((3, len(self.items)), np.int64)  # the same three of the validation and test splits
        self.written = Written.into(folder, config.row_group_rows)
        self.counted: dict[int, BucketSize] = {}
        self.context: Context | None = None
        self.own: OwnPlan | None = None

    def run(self) -> None:
        """All passes."""
        self.spread()
        self.cut()
        self.sort()
        self.make_samples()

    def _progress(self, of: str, total: int) -> Progress:
        """Of the first rank's part."""
        return Progress(of, total // self.ranks.world, "rows", shown=self.ranks.is_first)

    def _each(
        self,
        numbers: Sequence[int],
        call: Callable[[int], T],
        then: Callable[[int, T], K],
        within: AbstractContextManager[Any] | None = None,
    ) -> dict[int, K]:
        """Deal numbers to ranks, and on each to its threads; what ``then`` returns for what ``call`` did, of all ranks.

        ``then`` is called on the rank that called ``call``, by one thread alone. ``within`` is left before ranks meet.
        When a rank has an error all come to hear of it early.
        """

        def mine() -> dict[int, K]:
            kept: dict[int, K] = {}

            def keep(number: int, found: T) -> None:
                kept[number] = then(number, found)

            with within or nullcontext():
                on_threads(numbers[self.ranks.rank :: self.ranks.world], call, keep, self.threads, self.work)
            return kept

        return {number: kept for of_rank in self.ranks.each(mine) for number, kept in of_rank.items()}

    def spread(self) -> None:
        """First pass: check every interaction and put it into the bucket of its user."""
        buckets, own = self.bucket_count(), of_table("interactions", self.raw.own)
        of_rows = [(OWN + c.name, c.type) for c in columns_of(self.config.outcomes)]
        of_rows += [(c.key, normal_type(c)) for c in own]
        shares, index = self.ranks.world * self.threads, IdIndex(self.items["item_id"])

        def read(share: int) -> tuple[Seen, BadRows]:
            aside = self.work / f"rejected-{share:05d}" if self.config.on_bad_rows == "skip" else None
            seen, bad_rows = Seen(), BadRows(self.config.on_bad_rows, aside)
            with bad_rows:
                of_all, outcomes = (share, shares), self.config.outcomes
                found = iter_interactions(
                    self.raw.path, index, bad_rows, share=of_all, own=own, outcomes=outcomes, encoded=True
                )
                for block in going(found, self.work):
                    seen.add_block(block)
                    self._check_user_type(block)
                    writer.write(block)
                    progress.update(len(block))
                if self.before is not None:
                    for rows in going(self.before.carried(buckets, of_rows, of_all), self.work):
                        writer.add(rows)
            return seen, bad_rows

        folder, total = self.work / f"spread-{self.ranks.rank:05d}", self.raw.rows["interactions.parquet"]
        writer = BucketWriter(folder, buckets, sharing(buckets))
        with self._progress("interactions", total) as progress:
            by_share = self._each(range(shares), read, lambda _, found: found, writer)
        in_order = [by_share[share] for share in range(shares)]
        self.seen = Seen.joined([seen for seen, _ in in_order])
        self.ranks.first(lambda: self.check_seen([bad_rows for _, bad_rows in in_order]))
        self.files = self._bucket_files("spread")
        if sharing(buckets) > 1:
            parted = self.work / f"parted-{self.ranks.rank:05d}"
            self._each(list(self.files), lambda n: part(self.files[n], parted, buckets), lambda *_: None)
            self.files = self._bucket_files("parted")

    def _bucket_files(self, folder: str) -> dict[int, list[Path]]:
        """Of all ranks, by bucket."""
        of_rank = self.ranks.each(lambda: list(self.work.glob(f"{folder}-{self.ranks.rank:05d}/*.arrow")))
        return by_number(file for files in of_rank for file in files)

    def _check_user_type(self, block: pa.Table) -> None:
        ids = block.schema.field("user_id").type
        ids = ids.value_type if pa.types.is_dictionary(ids) else ids
        if self.before is not None and ids != self.before.user_ids.type:
            raise DataError(
                f"interactions: user_id is {ids}, in {self.before.folder} it is "
                f"{self.before.user_ids.type}; expected the same ids"
            )

    @property
    def check_ins(self) -> bool:
        """Whether the interactions are visits alone, those of the day before too."""
        return self.seen.negatives == 0 if self.before is None else self.before.check_ins

    def bucket_count(self) -> int:
        """How many buckets there are, by the rows that the input has, and what is carried over at most."""
        rows = self.raw.rows["interactions.parquet"]
        rows += 0 if self.before is None else self.before.visits
        return min(max(1, -(-rows // _BUCKET_ROWS)), MOST_FILES**2)

    def check_seen(self, bad_rows: list[BadRows]) -> None:
        """Of what the first pass saw, on one rank; ``bad_rows`` are of all, closed."""
        if self.config.on_bad_rows == "skip":
            self.rejected = merge_rejected(bad_rows, self.folder / "rejected")
        check_not_all_bad(self.raw.path, self.seen.rows)
        if self.seen.negatives == self.seen.rows:
            raise DataError(
                f"{self.config.input}: all {self.seen.rows:,} interactions have label 0, expected some with label 1 "
                "(clicked or visited); check the label column"
            )
        self.seen.check_times(self.config.input)
        if self.before is not None:
            self.before.check_interactions(self.seen.first, self.seen.negatives, self.config.input)

    def cut(self) -> None:
        """Choose where validation and test start."""
        mine = list(self.files)[self.ranks.rank :: self.ranks.world]
        files = (file for number in mine for file in self.files[number])
        bins = histogram(files, self.seen.first, self.seen.last)
        self.ranks.sum_(bins)
        self.choose(bins)

    def choose(self, bins: NDArray[np.int64]) -> None:
        """From the counts of all times."""
        config, seen = self.config, self.seen
        since = None
        if math.isfinite(config.sample_days):
            width, count = time_bins(seen.first, seen.last)
            old = min(max(count - math.ceil(config.sample_days * 86_400 / width), 0), count)
            since, bins[:old] = seen.first + old * width, 0
        self.starts = split_starts(bins, seen.first, seen.last, config.valid_fraction, config.test_fraction)
        context = context_of(config, self.items, self.starts, self.check_ins, self.raw.extra, self.before)
        if since is not None:
            context = replace(context, since=since)
        own = of_table("interactions", self.raw.own)
        shared = tuple(c.key for c in own if c.declared.joins == "request")
        some = -(-SAMPLED // len(self.files)) if self.raw.own else 0
        self.context = replace(context, of_request=shared, sampled=some, outcomes=config.outcomes)

    def sort(self) -> None:
        """Second pass: sort each bucket, and count its users, requests and what its training rows say of the items."""

        def counts(number: int) -> BucketCounts:
            assert self.context is not None
            return count_bucket(self.work, number, self.files[number], self.context)

        def keep(number: int, found: BucketCounts) -> BucketSize:
            self.add_items(found)
            for file in self.files[number]:
                file.unlink()
            return found.size

        counted = self._each(list(self.files), counts, keep)
        self.ranks.sum_(self.shown, self.positives, *self.later[:2])
        for last in (self.last_positive, self.later[2]):
            self.ranks.max_(last)
        self.number(counted)

    def add_items(self, counts: BucketCounts) -> None:
        """Add a bucket's counts of items."""
        item = counts.items["item"]
        self.shown[item] += counts.items["shown"]
        self.positives[item] += counts.items["positives"]
        self.last_positive[item] = np.maximum(self.last_positive[item], counts.items["last_positive"])
        self.later[0, item] += counts.items["later_shown"]
        self.later[1, item] += counts.items["later_positives"]
        self.later[2, item] = np.maximum(self.later[2, item], counts.items["later_last_positive"])

    def number(self, counted: dict[int, BucketSize]) -> None:
        """Users and requests after those of the buckets before; and what the summary tells of all buckets."""
        assert self.context is not None
        self.counted = {number: counted[number] for number in sorted(counted)}
        columns = {name: [getattr(c, name) for c in self.counted.values()] for name in _NUMBERED}
        self.context = self.context.numbered(pa.table({"bucket": list(self.counted), **columns}))
        seen = [c.own for c in self.counted.values() if c.own is not None]
        self.own = self.ranks.first(lambda: self._plan(OwnSeen.joined(seen) if seen else None))
        of_outcomes = extras(self.config.outcomes, self.seen.negatives == 0)
        self.context = replace(self.context, own=(*self.own.extras, *of_outcomes), sampled=0)
        for c in self.counted.values():
            self.seen.repeated += c.repeated
            self.seen.both_labels += c.both_labels
            self.seen.top_user = max(self.seen.top_user, c.top, key=lambda top: top[1])
            self.seen.marker_users.update(c.markers)

    def _plan(self, seen: OwnSeen | None) -> OwnPlan:
        """What own columns become, on one rank."""
        values = {name: found.values() for name, found in self.seen.values.items()}
        then = None if self.before is None else self.before.own
        made = plan(self.raw.own, self.items, self.users, seen, values, self.check_ins, then=then)
        return made if self.before is None else self.before.completed(made, self.items)

    def make_samples(self) -> None:
        """Third pass: samples of each bucket, in files of its own, numbered after those of the buckets before it."""

        def samples(number: int) -> Written:
            assert self.context is not None
            return write_samples(self.work, number, self.context, self.config.row_group_rows)

        def keep(number: int, written: Written) -> Written:
            (self.work / f"sorted-{number:05d}").unlink()
            progress.update(self.counted[number].rows)
            return written

        with self._progress("samples", self.seen.rows) as progress:
            written = self._each(list(self.counted), samples, keep)
        if self.ranks.is_first:
            self.take_over(written)

    def take_over(self, written: dict[int, Written]) -> None:
        """Let the files of the buckets be those of the splits, in the order of the buckets' numbers."""
        for number in sorted(written):
            self.written.take_over(written[number])

    def let_go(self) -> None:
        """Of files that others than the first rank have mapped: network disks can't remove those."""
        if not self.ranks.is_first:
            self.items, self.context = self.items.schema.empty_table(), None

    def finish(self) -> dict[str, Any]:
        """Write catalog, users, vocabularies and the manifest, on one rank; returns the summary."""
        check_ins, before = self.check_ins, self.before
        users = sum(c.users for c in self.counted.values())
        skipped = self._skipped()
        self._check_splits(skipped)
        known = {} if before is None else before.vocabularies()
        vocabularies, columns = item_vocabularies(self.items, self.config.price_buckets, known)
        own = self.own
        assert own is not None
        columns |= own.items
        vocabularies |= own.vocabularies
        today = int(self.shown.sum())
        if before is not None:
            then = before.counts(len(self.items))
            self.positives += then["positives"]
            self.shown += then["impressions"]
            self.last_positive = np.maximum(self.last_positive, then["last_positive"])
        counts = {"positives": self.positives, "impressions": self.shown, "last_positive": self.last_positive}
        write_catalog(self.folder / "catalog.parquet", self.items, columns, counts)
        beside = ThreadPoolExecutor(1)  # numpy and Arrow let others run
        variance = beside.submit(item_variance, self.folder)
        beside.shutdown(wait=False)
        shown, positives, last = self.later
        every = self.positives + positives, self.shown + shown, np.maximum(self.last_positive, last)
        everybody = [read_table(self.work / f"ids-{number:05d}") for number in self.counted]
        write_next(self.folder, pa.concat_tables(everybody)["user_id"], dict(zip(COUNTS, every, strict=True)))
        user_counts = by_row([read_table(self.work / f"users-{number:05d}") for number in self.counted])
        ids = user_counts["user_id"]
        if before is not None:
            before.check_users(ids)
        tables = {"item": self._table_rows("item", len(self.items) + 1), "user": self._table_rows("user", len(ids) + 1)}
        tables |= {name: rows + 1 for name, rows in own.hashed.items()}
        users_known = write_users(self.folder / "users.parquet", user_counts, self.users, own.users, before)
        user_tables = {f["column"]: f["name"] for f in own.features if f["of"] == "users" and f["kind"] == "category"}
        of_users = [f["name"] for f in own.features if f["of"] == "users" and "list" != f["kind"] != "number"]
        (self.folder / "vocab").mkdir()
        for name, table in vocabularies.items():
            pq.write_table(table, self.folder / "vocab" / f"{name}.parquet", compression="zstd")
            tables[name] = self._table_rows(name, len(table))
        extra: dict[str, Any] = {
            "tables": tables,
            "splits": {name: w.summary() for name, w in zip(SPLITS, self.written.splits, strict=True) if w.rows},
            SEQUENCES: self.written.sequences.summary(),
            "history_length": self.config.history_length,
            "users": users,
            "user_columns": [name for name in of_users if name in tables],
            "own": own.features,
            "source": "check-ins" if check_ins else "impressions",
            "until": self.seen.last,
        }
        if self.config.cluster_visits > 1:
            extra[CLUSTER_VISITS] = self.config.cluster_visits
        extra |= described(self.config.outcomes, (c.outcomes for c in self.counted.values()))
        lost = int(skipped.sum())
        if check_ins:
            kept, placed = (sum(getattr(w, n) for w in self.written.splits) for n in ("requests", "placed"))
            extra["check_ins"] = {"requests": kept, "known_place": placed, "no_negatives": lost}
        source = self.raw.source
        told = Told(
            rows_in=source.get("rows", self.raw.rows),
            unused=source.get("unused_columns", {}) | self._left(own),
            own=own.told + in_words(extra, today),
            notes=self.raw.notes + self._notes() + own.warnings,
            rejected=self.raw.rejected + self.rejected,
            left_out=source.get("left_out", {}),
            items=self.items,
            positives=self.positives,
            users=self.users,
            users_known=users_known,
            vocabulary_ids=ids,
            user_tables=user_tables,
            check_ins=check_ins,
            lost=lost,
            reach_km=self.config.reach_km,
            splits=extra["splits"],
            user_count=users,
            item_variance=variance.result(),
        )
        summary = summarize(self.seen, told)
        extra |= {"rejected": told.rejected, "left_out": told.left_out, "summary": summary}
        shutil.rmtree(self.work)
        made_from = {"raw": fingerprint(self.config.input)}
        if before is not None:
            made_from["after"] = before.manifest["content_hash"]
        write_manifest(self.folder, "prepared", self.config, made_from, **extra)
        return summary

    def _table_rows(self, name: str, ids: int) -> int:
        """Rows of a table of so many ids, row 0 included: those of then, or where ids don't fit, with spare ones."""
        then = 0 if self.before is None else int(self.before.manifest["tables"].get(name, 0))
        if ids <= max(then, 1):  # an attribute that nothing has makes no table
            return max(then, ids)
        return math.ceil(ids * (1 + self.config.spare_rows))

    def _left(self, own: OwnPlan) -> dict[str, list[str]]:
        """Columns that are not used, with the reason, by table."""
        every = {of: self.raw.left.get(of, {}) | own.left.get(of, {}) for of in ("items", "interactions", "users")}
        return {of: [f"{name} ({why})" for name, why in columns.items()] for of, columns in every.items() if columns}

    def _notes(self) -> list[str]:
        """What looks wrong in the visits."""
        given, own_place = (sum(getattr(c, name) for c in self.counted.values()) for name in ("given", "own_place"))
        if own_place <= given / 2:
            return []
        return [
            f"user_lat, user_lon are the visited item's own place in {own_place:,} of {given:,} "
            "visits: distance 0 tells the label; drop the two columns, unless they are where the user was before"
        ]

    def _skipped(self) -> NDArray[np.int64]:
        """Visits without samples, since nothing else is within reach, by split."""
        counted = np.sum([c.by_split for c in self.counted.values()], 0)
        made = [w.requests for w in self.written.splits]
        return counted - made if self.check_ins else np.zeros_like(counted)

    def _check_splits(self, skipped: NDArray[np.int64]) -> None:
        train = self.written.splits[0]
        span = f"interactions run from {iso(self.seen.first)} to {iso(self.seen.last)} UTC"
        wanted = (True, self.config.valid_fraction > 0, self.config.test_fraction > 0)
        for i, (name, writer) in enumerate(zip(SPLITS, self.written.splits, strict=True)):
            if not wanted[i] or writer.rows:
                continue
            if lost := int(skipped[i]):
                raise DataError(
                    f"the {name} split is empty: its {lost:,} visits (of {skipped.sum():,} in all) were left "
                    f"out, because no other item is within reach_km={self.config.reach_km:g} of them; "
                    "raise --reach-km, or check lat and lon"
                )
            raise DataError(
                f"the {name} split is empty: {self.seen.rows:,} {span}, and one moment is never cut in two; "
                "give more data, check the timestamps, or change valid_fraction and test_fraction"
            )
        if train.positives == 0:
            raise DataError(
                f"the train split has {train.rows:,} samples and no positive, expected some with label 1; {span}: "
                "check the labels by time, or lower valid_fraction and test_fraction"
            )
