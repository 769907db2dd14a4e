"""``prepare --after``: what today's folder takes over from yesterday's, so that only today's interactions are read.

Vocabularies grow and nobody's row moves: yesterday's values keep their rows, new ones get those after them. Visits are
carried over as rows of the buckets that make no samples (``kept``), so histories, counts of earlier visits and users'
positives are those of all days. All of it is in every prepared folder: the catalog, users, vocabularies, sequences, and
in ``next/`` the ids of all users and what the days' validation and test splits say of the items.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..arrays import hash_ids, one_array, starts_run
from ..batches.features import form_of
from ..batches.line_loader import RowGroups, visit_groups
from ..manifest import read_manifest
from ..raw.columns import DataError
from ..raw.outcomes import Outcomes
from ..raw.own import Declaration, Declared, OwnColumn
from ..raw.schema import has_rows
from ..raw.times import iso
from ..requests import OFFSET, SEQUENCES, Sequences, sequences_to_read
from ..urls import fetched, place
from .buckets import rows_schema
from .own_plan import OwnPlan, Then
from .settings import RECENT

NEXT = "next"
_ITEMS, _USERS = f"{NEXT}/items.parquet", f"{NEXT}/users.parquet"
LISTED = "listed"
"""Column of the items: whether today's table has them."""
COUNTS = ("positives", "impressions", "last_positive")
"""What is counted of items: so they are called in the catalog, and in ``next/items.parquet`` with the later splits."""


def write_next(folder: Path, users: pa.ChunkedArray, counts: dict[str, NDArray[np.int64]]) -> None:
    """Write what the next day takes beside the rest of the folder.

    Args:
        users: ids of all users in the order of their numbers (``user_index``).
        counts: ``COUNTS`` of the items over all splits and days, [I].
    """
    (folder / NEXT).mkdir()
    pq.write_table(pa.table({"user_id": users}), folder / _USERS, compression="zstd")
    pq.write_table(pa.table(counts), folder / _ITEMS, compression="zstd")


@dataclass(frozen=True)
class Before:
    """The folder of the day before; made by ``open``.

    Attributes:
        folder: where it is.
        manifest: its own.
    """

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Raises FileNotFoundError or ValueError where it is no prepared folder, or one of an older placerank."""
        manifest = read_manifest(folder, "prepared")
        if _USERS not in manifest["files"] or "until" not in manifest:
            raise ValueError(
                f"prepare.after={folder} lacks {NEXT}/, since an older placerank made it; prepare that day again"
            )
        return cls(folder, manifest)

    @property
    def until(self) -> int:
        """Its last interaction, unix seconds."""
        return int(self.manifest["until"])

    @property
    def check_ins(self) -> bool:
        """Whether its interactions are visits alone."""
        return bool(self.manifest["source"] == "check-ins")

    @property
    def visits(self) -> int:
        """How many it has, those carried over to it too, or more."""
        return int(self.manifest["sequences"]["carried"] + self.manifest["sequences"]["visits"])

    def _read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        return pq.read_table(fetched(self.folder / name), columns=columns)

    def vocabularies(self) -> dict[str, pa.Table]:
        """By name, each in row order."""
        files = [name for name in self.manifest["files"] if name.startswith("vocab/")]
        return {Path(name).stem: self._read(name) for name in files}

    @property
    def item_type(self) -> pa.DataType:
        """Of ids of items."""
        return self._read("catalog.parquet", ["item_id"])["item_id"].type

    def item_ids(self, today: pa.DataType) -> pa.Array:
        """Ids of its items; raises DataError where today's are of another type."""
        ids = one_array(self._read("catalog.parquet", ["item_id"])["item_id"]).slice(1)
        self._check_item_ids(ids.type, today)
        return ids

    def _check_item_ids(self, was: pa.DataType, now: pa.DataType) -> None:
        if was != now:
            raise DataError(f"items: item_id is {now}, in {self.folder} it is {was}; expected the same ids")

    def items(self, today: pa.Table) -> pa.Table:
        """Yesterday's items in their rows, with what today says of them, and then today's new ones by id.

        Items that today doesn't list keep their row and what was known of them; the column ``LISTED`` tells.

        Args:
            today: in the columns of ``schema.ITEMS``, by id.

        Raises:
            DataError: ids of another type.
        """
        catalog = self._read("catalog.parquet").slice(1)
        self._check_item_ids(catalog["item_id"].type, today["item_id"].type)
        for field in today.schema:
            if field.name not in catalog.column_names:
                catalog = catalog.append_column(field, pa.nulls(len(catalog), field.type))
        before = catalog.select(today.column_names).cast(today.schema)
        at = pc.index_in(before["item_id"], value_set=one_array(today["item_id"])).fill_null(-1).to_numpy()
        new = np.setdiff1d(np.arange(len(today)), at)
        rows = np.concatenate([np.where(at < 0, np.arange(len(at)), len(at) + at), len(at) + new])
        merged = pa.concat_tables([before, today]).combine_chunks().take(pa.array(rows)).combine_chunks()
        return merged.append_column(LISTED, pa.array(rows >= len(at)))

    def counts(self, items: int) -> dict[str, NDArray[np.int64]]:
        """``COUNTS`` to the end of its last day, [items], 0 for new ones."""
        table = self._read(_ITEMS)
        return {name: np.pad(table[name].to_numpy(), (0, items - len(table))) for name in COUNTS}

    @cached_property
    def users(self) -> pa.Table:
        """Its users' table, row 0 included."""
        return self._read("users.parquet")

    @cached_property
    def user_ids(self) -> pa.Array:
        """Ids of all its users, in the order of their numbers."""
        return one_array(self._read(_USERS)["user_id"])

    @cached_property
    def own(self) -> Then:
        """What own columns became."""
        return Then(self.manifest["own"], self.vocabularies())

    def kinds(self) -> Declaration:
        """What ``own`` says of columns in text, which has no types and may hold nothing today."""
        found: Declaration = {}
        for f in self.own.features:
            found.setdefault(f["of"], {})[f["column"]] = Declared(kind=f["kind"])
        return found

    def declaration(self, raw: Path) -> Declaration:
        """What ``own`` says of the columns of a raw folder; of items and users only where it has some."""
        found: Declaration = {}
        tables, vocabularies = self.manifest["tables"], self.own.vocabularies
        without = [of for of in ("items", "users") if not has_rows(raw, of)]
        for f in self.own.features:
            if f["of"] in without:
                continue
            name = f["table"]
            hashed = tables[name] - 1 if name is not None and name not in vocabularies else None
            shared = name if name != f["name"] else None
            joins = None if f["of"] == "users" else f["joins"]
            says = Declared(kind=f["kind"], joins=joins, table=shared, width=f["width"], rows=hashed)
            found.setdefault(f["of"], {})[f["column"]] = says
        return found

    def known_alone(
        self, own: list[OwnColumn], left: dict[str, dict[str, str]]
    ) -> tuple[list[OwnColumn], dict[str, dict[str, str]]]:
        """Of ``own_columns`` those that were features then, in the order of then; the others are left out."""
        order = {(f["of"], f["column"]): i for i, f in enumerate(self.own.features)}
        left = {of: dict(columns) for of, columns in left.items()}
        for c in own:
            if (c.of, c.column) not in order:
                left.setdefault(c.of, {})[c.column] = f"no feature in {self.folder}"
        known = [c for c in own if (c.of, c.column) in order]
        return sorted(known, key=lambda c: order[c.of, c.column]), left

    def completed(self, made: OwnPlan, items: pa.Table) -> OwnPlan:
        """With the features of users or items where today has none of these, and of items what was known of those not
        listed today."""
        catalog = self._read("catalog.parquet").slice(1)
        listed = items[LISTED].to_numpy()
        for name, values in made.items.items():
            made.items[name] = carried_on(values, listed, catalog[name], 0)
        today = {(f["of"], f["column"]) for f in made.features}
        for f in self.own.features:
            if (f["of"], f["column"]) in today:
                continue
            made.features.append(f)
            table = f["table"]
            if table in self.own.vocabularies:
                made.vocabularies.setdefault(table, self.own.vocabularies[table])
            elif table is not None:
                made.hashed[table] = self.manifest["tables"][table] - 1
            name = f"{f['name']}_{form_of(f['kind'])}"
            if f["of"] == "items":
                made.items[name] = one_array(catalog[name])
            else:
                made.users[name] = pa.array([], self.users[name].type)
        order = [(f["of"], f["column"]) for f in self.own.features]
        made.features.sort(key=lambda f: order.index((f["of"], f["column"])))
        return made

    def check_outcomes(self, today: Outcomes) -> None:
        """Raises ValueError where today leaves out a label, the amount or the weight of then."""
        then = self.manifest.get("outcomes", {"labels": [], "amount": None, "weight": None})
        now = {"labels": today.labels, "amount": today.amount, "weight": today.weight}
        lost = [f"labels {name}" for name in then["labels"] if name not in today.labels]
        lost += [f"{what} {then[what]}" for what in ("amount", "weight") if then[what] not in (None, now[what])]
        if lost:
            raise ValueError(
                f"prepare.after={self.folder} has {', '.join(lost)}, which prepare isn't told of today: rankers "
                "of then could not go on; name the same columns with --labels, --amount and --weight"
            )

    def check_users(self, ids: pa.ChunkedArray) -> None:
        """Raises ValueError where users of a vocabulary, by row without row 0, don't begin with those of then."""
        then = self.users["user_id"].slice(1)
        if not ids.slice(0, len(then)).equals(then):
            lost = pc.sum(pc.invert(pc.is_in(then, value_set=one_array(ids)))).as_py() or 0
            raise ValueError(
                f"{self.folder}: {SEQUENCES}/ and users.parquet don't fit each other: {lost:,} users are in the "
                "latter alone; prepare that day again"
            )

    def check_interactions(self, first: int, negatives: int, raw: Path) -> None:
        """Of today's: when the first one was, and how many have label 0.

        Raises:
            DataError: they begin before the others end, or are of another kind.
        """
        if first <= self.until:
            raise DataError(
                f"{raw}: interactions begin at {iso(first)} UTC, those of {self.folder} end at {iso(self.until)}: some "
                "would count twice; give only those that came after"
            )
        if self.check_ins and negatives:
            raise DataError(
                f"{raw}: {negatives:,} interactions have label 0, and {self.folder} has visits alone; expected the "
                "same kind of source"
            )

    def carried(
        self, buckets: int, own: Sequence[tuple[str, pa.DataType]] = (), share: tuple[int, int] = (0, 1)
    ) -> Iterator[pa.Table]:
        """Visits as rows of ``buckets.rows_schema``, their own columns unknown.

        Args:
            buckets: how many there are.
            own: own columns of interactions, as ``buckets.rows_schema`` takes them.
            share: of so many equal ones, by number.
        """
        schema = rows_schema(self.user_ids.type, own)
        known = visit_groups(self.folder)
        every = {f: [1] * len(of) for f, of in known.items()}  # those without a visit of that day, too
        groups = RowGroups(place(self.folder) / SEQUENCES, every)
        for found in groups.read(range(share[0], len(groups.sizes), share[1]), sequences_to_read):
            with found.named():
                users = Sequences.of_table(found.table)
            yield _rows(users, self.user_ids, buckets, schema)


def carried_on(values: pa.Array, said: NDArray[np.bool_], before: pa.ChunkedArray, skip: int = 1) -> pa.Array:
    """Values today, and where nothing was ``said`` of a row those of the day before.

    Args:
        values: by row, [N].
        said: bool [N].
        before: by row, [M + skip], M of them are there; of the others values stay.
        skip: rows of ``before`` that are none: row 0.
    """
    old = one_array(before).slice(skip).cast(values.type)
    row = np.arange(len(values))
    from_old = ~said & (row < len(old))
    return pa.concat_arrays([old, values]).take(pa.array(np.where(from_old, row, len(old) + row)))


def kept(users: Sequences) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The visits that another day needs: each user's last ``RECENT``, and the latest of each item.

    Visits of one moment are kept or left together. Whatever histories (of at most ``RECENT`` visits), earlier visits
    and positives are made of these is as if all were there.

    Returns:
        Which visits, rising, int64 [K], and ``Bucket.folded`` of each, int32 [K].
    """
    offsets, of = users.visits.offsets, users.visits.values
    user = np.repeat(np.arange(len(users)), np.diff(offsets))
    item, time = of["item_row"], of["time"]
    first = np.maximum(offsets[1:] - RECENT, offsets[:-1])[user]
    recent = time >= time[first] if len(time) else np.zeros(0, bool)
    order = np.lexsort((time, item, user))
    pair = np.cumsum(starts_run(user[order], item[order])) - 1
    latest = np.zeros(len(time), np.int64)
    np.maximum.at(latest, pair, time[order])
    keep = recent.copy()
    keep[order] |= time[order] == latest[pair]
    order = order[keep[order]]
    new = starts_run(user[order], item[order])
    folded = np.zeros(len(time), np.int32)
    folded[order[new]] = of["visits"][order[new]]
    return np.flatnonzero(keep), folded[keep]


def _rows(users: Sequences, ids: pa.Array, buckets: int, schema: pa.Schema) -> pa.Table:
    rows, folded = kept(users)
    user = np.repeat(np.arange(len(users)), np.diff(users.visits.offsets))[rows]
    of = {name: x[rows] for name, x in users.visits.values.items()}
    raw = ids.take(pa.array(users.flat["user_index"]))
    bucket = (hash_ids(raw) % np.uint64(buckets)).astype(np.int32)
    known = {
        "bucket": bucket[user],
        "user": raw.take(pa.array(user)),
        "item": of["item_row"] - np.int32(1),
        "time": of["time"],
        "label": np.ones(len(rows), np.int8),
        "request": rows + 1,  # each its own, in their order
        "lat": of["lat"],
        "lon": of["lon"],
        OFFSET: of[OFFSET],
        "user_row": users.flat["user_row"][user],
        "folded": folded,
    }
    nothing = {f.name: np.full(len(rows), np.nan if pa.types.is_floating(f.type) else 0) for f in schema}
    return pa.table(nothing | known).select(schema.names).cast(schema)
