"""``prepare``: tables of items and interactions become samples, vocabularies and a catalog.

The way: the interactions stream through the checks of ``schema`` into bucket files by a hash of the user; the
times in them decide the split; then each bucket is sorted and turned into samples alone. Memory holds the items,
the users' ids and one bucket, whatever the number of interactions.
"""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from ..batches.features import user_table
from ..manifest import content_hash, joint_hash, read_manifest, sha256_file, whole_folder, write_manifest
from ..plain import check_numbers
from ..raw.checks import BadRows, OnBadRows
from ..raw.columns import DataError
from ..raw.readers import convert
from ..raw.schema import has_column, inventory, iter_interactions, read_items, read_users
from ..raw.times import iso
from .buckets import MOST_FILES, Bucket, spread, times
from .negatives import Reach
from .samples import SPLITS, CheckIns, SplitWriter, check_ins, impressions, user_blocks
from .summary import Seen, Told, lines, summarize
from .vocabulary import item_vocabularies, rows_of, vocabulary

log = logging.getLogger(__name__)

Format = Literal["parquet", "csv", "foursquare", "gowalla", "yelp", "places"]

_BUCKET_ROWS = 2_000_000
_TIME_BINS = 1 << 22
_BUCKETS = "buckets"  # temporary, inside the unfinished folder
_NEVER = np.iinfo(np.int64).max
_HEAD, _MID = 0.1, 0.5  # the most popular tenth of the items is the head, the next 40 % the middle


@dataclass(kw_only=True)
class PrepareConfig:
    """Turn tables of items and interactions into training, validation and test samples."""

    input: Path
    """Folder (or file, for csv and the public formats) with the raw data."""
    out: Path
    """Folder to make; it appears when it is whole."""
    format: Format = "parquet"
    """parquet: a folder in placerank's schema; csv: the same tables as CSV (see columns); or a public dataset."""
    columns: dict[str, str] = field(default_factory=dict)
    """Only for csv: column names in the file, by name in the schema; others are taken as they are."""
    history_length: int = 50
    """The user's last so many positives before a sample make its history."""
    valid_fraction: float = 0.1
    """Share of the interactions, by time, for validation: those before the test's."""
    test_fraction: float = 0.1
    """Share of the interactions, by time, for the test: the latest."""
    min_user_positives: int = 2
    """Users with fewer positives in the training split share row 0 of the user table."""
    price_buckets: int = 8
    """Prices are cut into so many buckets of about equal numbers of items."""
    reach_km: float = 10.0
    """Check-ins only: negatives lie at most so far from the place of the request."""
    place_max_hours: float = 24.0
    """Check-ins only: a visit at most so old says where the user is."""
    train_negatives: int = 4
    """Check-ins only: negatives a visit in the training split."""
    eval_negatives: int = 49
    """Check-ins only: negatives a visit in the validation and test splits."""
    on_bad_rows: OnBadRows = "error"
    """error: stop at the first bad row; skip: set bad rows aside in OUT/rejected and count them."""
    row_group_rows: int = 65_536
    """Rows of a Parquet row group of samples: the unit that the loader reads."""
    seed: int = 0
    """Decides the negatives and the order of the training samples."""
    overwrite: bool = False
    """Replace the output folder if it exists."""

    def __post_init__(self) -> None:
        many = dict.fromkeys(("history_length", "price_buckets", "train_negatives", "eval_negatives"), 1_000_000)
        check_numbers(
            self,
            "prepare",
            endless=("place_max_hours",),
            least={
                "history_length": 1,
                "min_user_positives": 1,
                "price_buckets": 1,
                "train_negatives": 1,
                "eval_negatives": 1,
                "seed": 0,
            },
            **many,
        )
        self.input, self.out = Path(self.input), Path(self.out)
        for name in ("valid_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"prepare.{name}={getattr(self, name)}: expected a share in [0, 1)")
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"prepare.valid_fraction={self.valid_fraction} and test_fraction={self.test_fraction}: "
                "expected a sum below 1, so that training samples are left"
            )
        if not self.reach_km > 0:
            raise ValueError(f"prepare.reach_km={self.reach_km}: expected more than 0 km")
        if not self.place_max_hours >= 0:
            raise ValueError(f"prepare.place_max_hours={self.place_max_hours}: expected 0 hours or more")
        if not 1 <= self.row_group_rows <= 65_536:
            raise ValueError(f"prepare.row_group_rows={self.row_group_rows}: expected 1 to 65,536 rows")
        if self.columns and self.format != "csv":
            raise ValueError(f"prepare.columns is for format 'csv' alone; got format {self.format!r}: drop columns")
        if self.input.resolve() == self.out.resolve():
            raise ValueError(f"prepare.out={self.out} is the input; choose another folder")


def prepare(config: PrepareConfig) -> Path:
    """Make the prepared folder; returns its path.

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

    The step ends with a summary in the log, which the manifest keeps as ``summary`` (see ``summary``).

    Raises:
        DataError: the input breaks the schema, holds no positive, has no time after 1990, or leaves a split empty.
        FileExistsError: ``out`` exists and ``overwrite`` is False.
    """
    if not config.input.exists():
        raise FileNotFoundError(f"prepare.input={config.input} not found; check the path")
    with whole_folder(config.out, config.overwrite) as folder:
        (folder / _BUCKETS).mkdir()
        with BadRows(config.on_bad_rows, folder / "rejected" if config.on_bad_rows == "skip" else None) as bad_rows:
            raw, source = config.input, {}
            if config.format != "parquet":
                raw = convert(config.input, config.format, config.columns, folder / _BUCKETS / "raw", bad_rows)
                source = read_manifest(raw, "raw")
            items = read_items(raw, bad_rows).sort_by("item_id")
            users = read_users(raw, bad_rows)
            rows, unused, notes = inventory(raw)
            total = rows["interactions.parquet"]
            buckets, seen = _spill(config.input, raw, total, items, bad_rows, folder / _BUCKETS)
        job = _Job(config, folder, items, users, seen, has_column(raw, "probability"))
        job.cut(buckets)
        with tqdm(total=seen.rows, desc="samples", unit="row", unit_scale=True, disable=None) as progress:
            for number, path in enumerate(buckets):
                job.bucket(number, path, progress)
                path.unlink()
        extra = job.finish()
        told = Told(
            rows_in=source.get("rows", rows),
            unused=source.get("unused_columns", unused),
            notes=notes + job.notes(),
            rejected=bad_rows.summary(),
            left_out=source.get("left_out", {}),
            items=items,
            positives=job.positives,
            users=users,
            users_known=job.users_known,
            vocabulary_ids=job.vocabulary_ids,
            user_tables=job.user_tables,
            check_ins=job.how is not None,
            lost=0 if job.how is None else int(job.how.skipped.sum()),
            reach_km=config.reach_km,
            splits=extra["splits"],
            user_count=job.user_count,
        )
        extra |= {"rejected": told.rejected, "left_out": told.left_out, "summary": summarize(seen, told)}
        shutil.rmtree(folder / _BUCKETS)
        write_manifest(folder, "prepared", config, {"raw": _fingerprint(config.input)}, **extra)
    log.info("%s\n%s", config.out, "\n".join(lines(extra["summary"])))
    for warning in extra["summary"]["warnings"]:
        log.warning("warning: %s", warning)
    return config.out


def _fingerprint(path: Path) -> str:
    """The input's content hash: from its manifest, or of its files."""
    if known := content_hash(path):
        return known
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return joint_hash((p.name, sha256_file(p)) for p in files)


def _spill(
    source: Path, raw: Path, total: int, items: pa.Table, bad_rows: BadRows, folder: Path
) -> tuple[list[Path], Seen]:
    """First pass: check every one of ``total`` interactions and put it into the bucket of its user."""
    seen = Seen()

    def blocks() -> Iterator[pa.Table]:
        with tqdm(total=total, desc="interactions", unit="row", unit_scale=True, disable=None) as progress:
            for block in iter_interactions(raw, items["item_id"], bad_rows):
                seen.add_block(block)
                yield block
                progress.update(len(block))

    buckets = spread(blocks(), folder, min(max(1, -(-total // _BUCKET_ROWS)), MOST_FILES**2))
    if seen.negatives == seen.rows:
        raise DataError(
            f"{source}: all {seen.rows:,} interactions have label 0, expected some with label 1 (clicked or visited); "
            "check the label column"
        )
    seen.check_times(source)
    return buckets, seen


class _Job:
    """The second pass: bucket by bucket, what the samples and the catalog are made of."""

    def __init__(
        self,
        config: PrepareConfig,
        folder: Path,
        items: pa.Table,
        users: pa.Table | None,
        seen: Seen,
        with_probability: bool,
    ) -> None:
        self.config, self.folder, self.items, self.users, self.seen = config, folder, items, users, seen
        self.with_probability = with_probability
        self.longest = config.history_length
        self.starts = np.array([_NEVER, _NEVER])  # of the validation and of the test split
        self.positives = np.zeros(len(items), np.int64)
        self.shown = np.zeros(len(items), np.int64)
        self.last_positive = np.zeros(len(items), np.int64)
        self.writers = [SplitWriter(folder / name, config.row_group_rows) for name in SPLITS]
        self.user_count = self.request_count = self.known_users = 0
        self.user_parts: list[pa.Table] = []
        self.user_tables: dict[str, str] = {}  # column -> table
        self.users_known = 0  # of the vocabulary, in the users table
        self.vocabulary_ids = pa.chunked_array([pa.array([], pa.string())])
        self.how: CheckIns | None = None
        if seen.negatives == 0:
            lat, lon = (items[c].to_numpy() for c in ("lat", "lon"))
            counts = np.array([config.train_negatives, config.eval_negatives, config.eval_negatives])
            reach = Reach(lat, lon, config.reach_km)
            self.how = CheckIns(lat, lon, reach, counts, config.place_max_hours * 3600)

    def cut(self, buckets: list[Path]) -> None:
        """Choose where validation and test start: the first moments that leave enough interactions before them.

        Counted in bins of a 4-millionth of the whole time, at least a second, so memory is bounded.
        """
        seen, config = self.seen, self.config
        width = (seen.last - seen.first) // _TIME_BINS + 1
        bins = np.zeros((seen.last - seen.first) // width + 1, np.int64)
        for path in buckets:
            for moments in times(path):
                np.add.at(bins, (moments - seen.first) // width, 1)
        before = np.cumsum(bins) - bins
        for i, share in enumerate((config.valid_fraction + config.test_fraction, config.test_fraction)):
            if share > 0:
                at = np.searchsorted(before, round(seen.rows * (1 - share)))
                self.starts[i] = seen.first + int(at) * width
        if config.valid_fraction == 0:
            self.starts[0] = self.starts[1]

    def bucket(self, number: int, path: Path, progress: tqdm) -> None:
        """Samples, counts and users of one bucket."""
        b = Bucket(path, each_row_a_request=self.how is not None)
        self.seen.add_bucket(b)
        progress.update(b.repeated if self.how is not None else 0)
        split = np.searchsorted(self.starts, b.time, "right")
        user_row = self._count(b, (split == 0) & (b.label == 1), split == 0)
        weight = np.ones(len(b), np.int64) if self.how is None else 1 + self.how.negatives[split]
        for block, rows in enumerate(user_blocks(b, weight)):
            rng = np.random.default_rng([self.config.seed, number, block])
            if self.how is None:
                samples = impressions(b, rows, self.longest, self.with_probability)
            else:
                samples = check_ins(b, rows, self.longest, split, self.how, rng)
            of = np.searchsorted(self.starts, samples.time, "right")
            key = rng.random(len(of))
            for i, writer in enumerate(self.writers):
                mine = np.flatnonzero(of == i)
                mixed = np.argsort(key[mine]) if i == 0 else np.lexsort((key[mine], samples.request[mine]))
                writer.write(samples, mine[mixed], user_row, self.user_count, self.request_count)
            progress.update(rows.stop - rows.start)
        self.user_count += len(b.users)
        self.request_count += int(b.request[-1]) + 1

    def _count(self, b: Bucket, positive: NDArray[np.bool_], train: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Add the bucket's training rows to the counts; returns the vocabulary row of each of its users."""
        np.add.at(self.shown, b.item[train], 1)  # not by bincount, which goes over all items
        np.add.at(self.positives, b.item[positive], 1)
        np.maximum.at(self.last_positive, b.item[positive], b.time[positive])
        count = np.bincount(b.user[positive], minlength=len(b.users))
        last = np.zeros(len(b.users), np.int64)
        np.maximum.at(last, b.user[positive], b.time[positive])
        known = count >= self.config.min_user_positives
        self.user_parts.append(
            pa.table(
                {
                    "user_id": b.users.filter(pa.array(known)),
                    "positives": count[known],
                    "last_positive": last[known],
                }
            )
        )
        row = np.where(known, self.known_users + np.cumsum(known), 0).astype(np.int32)
        self.known_users += int(known.sum())
        return row

    def finish(self) -> dict[str, Any]:
        """Close the shards, write catalog, users and vocabularies; returns the manifest's fields."""
        for writer in self.writers:
            writer.close()
        self._check_splits()
        vocabularies, columns = item_vocabularies(self.items, self.config.price_buckets)
        self._write_catalog(columns)
        tables = {"item": len(self.items) + 1, "user": self.known_users + 1}
        user_columns = self._write_users(vocabularies)
        (self.folder / "vocab").mkdir()
        for name, table in vocabularies.items():
            pq.write_table(table, self.folder / "vocab" / f"{name}.parquet", compression="zstd")
            tables[name] = len(table)
        extra: dict[str, Any] = {
            "tables": tables,
            "splits": {name: w.summary() for name, w in zip(SPLITS, self.writers, strict=True) if w.rows},
            "history_length": self.longest,
            "users": self.user_count,
            "user_columns": user_columns,
            "source": "impressions" if self.how is None else "check-ins",
        }
        if self.how is not None:
            kept = sum(w.requests for w in self.writers)
            lost = int(self.how.skipped.sum())
            extra["check_ins"] = {"requests": kept, "known_place": self.how.known, "no_negatives": lost}
        return extra

    def notes(self) -> list[str]:
        """What looks wrong in the visits."""
        if self.how is None or self.how.own_place <= self.how.given / 2:
            return []
        return [
            f"user_lat, user_lon are the visited item's own place in {self.how.own_place:,} of {self.how.given:,} "
            "visits: distance 0 tells the label; drop the two columns, unless they are where the user was before"
        ]

    def _check_splits(self) -> None:
        train = self.writers[0]
        span = f"interactions run from {iso(self.seen.first)} to {iso(self.seen.last)} UTC"
        wanted = (True, self.config.valid_fraction > 0, self.config.test_fraction > 0)
        for i, (name, writer) in enumerate(zip(SPLITS, self.writers, strict=True)):
            if not wanted[i] or writer.rows:
                continue
            if self.how is not None and (lost := int(self.how.skipped[i])):
                raise DataError(
                    f"the {name} split is empty: its {lost:,} visits (of {self.how.skipped.sum():,} in all) were left "
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

    def _write_catalog(self, columns: dict[str, pa.Array]) -> None:
        n = len(self.items)
        by_popularity = np.argsort(-self.positives, kind="stable")
        bucket = np.full(n, 2, np.int8)
        bucket[by_popularity[: int(np.ceil(_MID * n))]] = 1
        bucket[by_popularity[: int(np.ceil(_HEAD * n))]] = 0
        raw = ("item_id", "name", "category", "brand", "price", "lat", "lon", "province", "city", "district")
        rows = {**columns, "positives": self.positives, "impressions": self.shown, "last_positive": self.last_positive}
        table = self.items.select(raw)
        for name, column in {**rows, "popularity_bucket": bucket}.items():
            table = table.append_column(name, pa.array(column))
        missing = {"popularity_bucket": 2, "category_path": [], "lat": np.nan, "lon": np.nan}
        first = {f.name: [missing.get(f.name, None if f.name in raw else 0)] for f in table.schema}
        table = pa.concat_tables([pa.table(first, schema=table.schema), table])
        pq.write_table(table.combine_chunks(), self.folder / "catalog.parquet", compression="zstd")

    def _write_users(self, vocabularies: dict[str, pa.Table]) -> list[str]:
        """Write users.parquet and add the vocabularies of the users' columns; returns their names."""
        table = pa.concat_tables(self.user_parts).combine_chunks()
        self.vocabulary_ids = table["user_id"]
        if self.users is not None:
            self.user_tables = {c: user_table(c) for c in self.users.column_names if c != "user_id"}
            ids, known = table["user_id"], self.users["user_id"]
            if ids.type != known.type:  # 7 here and "7" there are the same user
                ids, known = ids.cast(pa.string()), known.cast(pa.string())
            at = rows_of(ids, pa.table({"value": _after_null(known)}))
            self.users_known = int((at > 0).sum())
            for column, name in self.user_tables.items():
                vocabularies[name] = vocabulary(self.users[column])
                rows = np.concatenate([[0], rows_of(self.users[column], vocabularies[name])]).astype(np.int32)
                table = table.append_column(f"{name}_row", pa.array(rows[at]))
        first = {f.name: [None if f.name == "user_id" else 0] for f in table.schema}
        table = pa.concat_tables([pa.table(first, schema=table.schema), table])
        pq.write_table(table.combine_chunks(), self.folder / "users.parquet", compression="zstd")
        return list(self.user_tables.values())


def _after_null(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(1, values.type), *values.chunks])
