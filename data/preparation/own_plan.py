"""What own columns become, once the training split is known: vocabularies, buckets, columns of catalog and samples.

Every column ends as rows of a table or as a standardised number.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..arrays import one_array
from ..batches.features import table_name
from ..raw.columns import DataError
from ..raw.own import FILE, OwnColumn
from ..requests import OWN
from .buckets import hashed, is_known
from .own import Extra, OwnSeen, bucket_of, quantile_edges
from .vocabulary import rows_of, vocabulary

BUCKETS = 16
"""Numbers are cut into so many buckets, unless declared."""
HASHED = 1 << 18
"""Rows that a column of interactions is hashed into where it has too many values."""
LEAK = 0.95
"""AUC of a column alone from which a warning says that it gives away the label."""
AFTERWARDS = 0.05
"""Share of the chosen rows, of whose values no other row has one, from which it says so too."""
_UNLIKE = 0.5  # different texts a row from which text is taken for names and notes


@dataclass
class OwnPlan:
    """What own columns become; made by ``plan``.

    Attributes:
        features: for the manifest: of each feature name, of, column, kind, table (None of numbers), joins, width, of
            numbers mean and scale, and of buckets edges (bucket i begins at edge i - 1).
        vocabularies: of the tables that have one.
        hashed: rows of the tables that have none.
        extras: what samples get.
        items, users: columns that the catalog and the users' table get, an entry a row of theirs, row 0 left out.
        told: what each was taken for, in words.
        left: by table and column, why it makes no feature.
        edges: of the tables of buckets.
        warnings: columns that give away the label.
    """

    features: list[dict[str, Any]]
    vocabularies: dict[str, pa.Table]
    hashed: dict[str, int]
    extras: tuple[Extra, ...]
    items: dict[str, pa.Array]
    users: dict[str, pa.Array]
    told: list[str]
    left: dict[str, dict[str, str]]
    warnings: list[str]
    edges: dict[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class Then:
    """What own columns became on the day before.

    Attributes:
        features: as in ``OwnPlan``.
        vocabularies: by name.
    """

    features: list[dict[str, Any]]
    vocabularies: dict[str, pa.Table]

    def of(self, c: OwnColumn) -> dict[str, Any]:
        """A column's entry of ``features``."""
        return next(f for f in self.features if (f["of"], f["column"]) == (c.of, c.column))

    def mean_and_scale(self, c: OwnColumn) -> tuple[float, float]:
        """Of a column of numbers."""
        entry = self.of(c)
        return entry["mean"], entry["scale"]


def plan(
    columns: Sequence[OwnColumn],
    items: pa.Table,
    users: pa.Table | None,
    seen: OwnSeen | None,
    values: dict[str, pa.Array | None],
    visits_alone: bool,
    taken: Collection[str] = (),
    then: Then | None = None,
) -> OwnPlan:
    """What own columns become.

    Args:
        columns: of the raw tables.
        items, users: those tables, with these columns.
        seen: of interactions in all buckets; None where they have no own columns.
        values: different texts of interactions' columns; None where there are too many.
        visits_alone: whether negatives are drawn, which have no columns of interactions.
        taken: names that tables have already.
        then: what they became on the day before.

    Raises:
        DataError: a declaration that can't be.
    """
    left: dict[str, dict[str, str]] = {}
    kept = []
    order = {"users": 0, "items": 1, "interactions": 2}  # users' columns had names of their own before others had any
    for c in sorted(columns, key=lambda c: order[c.of]):
        if then is None and (why := _says_nothing(c, items, users, seen)):
            left.setdefault(c.of, {})[c.column] = why
        else:
            kept.append(c)
    names = _names(kept, taken) if then is None else {c: then.of(c)["name"] for c in kept}
    joins = {c: _joins(c, seen, visits_alone) for c in kept}
    tables = _tables(kept, names, joins, taken)
    made = OwnPlan([], {}, {}, (), {}, {}, [], left, [])
    for shared, members in tables.items():
        known = None if then is None else then.vocabularies.get(shared)
        _add_table(made, shared, members, items, users, seen, values, known)
    extras = []
    for c in kept:
        table: str | None = next((t for t, members in tables.items() if c in members), None)
        entry: dict[str, Any] = {
            "name": names[c],
            "of": c.of,
            "column": c.column,
            "kind": c.kind,
            "table": table,
            "joins": joins[c],
        }
        entry["width"] = c.declared.width
        if table in made.edges:
            entry["edges"] = made.edges[table].tolist()
        extra = _extra(c, names[c], joins[c], table, made, seen, then)
        if c.kind == "number":
            entry |= {"mean": extra.mean, "scale": extra.scale} if c.of == "interactions" else {}
        if c.of == "interactions":
            extras.append(extra)
        else:
            rows = items if c.of == "items" else users
            assert rows is not None
            into = made.items if c.of == "items" else made.users
            if c.kind == "number":
                number = _numbers(rows[c.key])
                mean, scale = _mean_and_scale(number) if then is None else then.mean_and_scale(c)
                entry |= {"mean": mean, "scale": scale}
                into[f"{names[c]}_number"] = pa.array(((number - mean) / scale).astype(np.float32))
            elif c.kind == "list":
                lists = one_array(rows[c.key])
                flat = _rows(lists.flatten(), table, made)
                into[f"{names[c]}_rows"] = pa.ListArray.from_arrays(_offsets(lists), pa.array(flat, pa.int32()))
            else:
                into[f"{names[c]}_row"] = pa.array(_rows_of(c, rows[c.key], table, made, extra), pa.int32())
        made.features.append(entry)
        made.told.append(_in_words(c, entry, made))
    made.extras = tuple(extras)
    if seen is not None and not visits_alone:
        made.warnings = [*_leaks(kept, items, users, seen)]
    return made


def _numbers(values: pa.ChunkedArray) -> NDArray[np.float64]:
    return values.cast(pa.float64()).fill_null(np.nan).to_numpy().astype(np.float64)


def _mean_and_scale(values: NDArray[Any]) -> tuple[float, float]:
    known = values[~np.isnan(values)].astype(np.float64)
    mean, scale = (float(known.mean()), float(known.std())) if len(known) else (0.0, 1.0)
    return mean, scale if scale > 1e-12 else 1.0


def _offsets(lists: pa.ListArray) -> pa.Array:
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def _says_nothing(c: OwnColumn, items: pa.Table, users: pa.Table | None, seen: OwnSeen | None) -> str | None:
    """Why a column that nobody declared a kind for makes no feature; None where it does."""
    if c.of == "interactions":
        assert seen is not None
        column, rows = seen.sample[c.key].to_numpy(), len(seen.sample)
        known = is_known(column)
        distinct = len(np.unique(column[known]))
        if distinct + (not known.all()) < 2:
            return "the same in all training rows" if known.any() else "empty in training"
    else:
        table = items if c.of == "items" else users
        assert table is not None
        column, rows = table[c.key], len(table)
        if c.kind == "list":
            return None if len(pc.unique(one_array(column).flatten())) else "empty"
        distinct = len(pc.unique(column.drop_null()))
        if distinct + (column.null_count > 0) < 2:
            return "the same in all rows" if distinct else "empty"
    if c.kind == "category" and c.declared.kind is None and not c.declared.rows and distinct > max(100, _UNLIKE * rows):
        return f'text that differs from row to row; {FILE} can say kind = "category"'
    return None


def _names(columns: Sequence[OwnColumn], taken: Collection[str]) -> dict[OwnColumn, str]:
    """A feature's name for each: the column's own wherever that can be."""
    names: dict[OwnColumn, str] = {}
    for c in columns:
        name = table_name(c.column, c.of)
        if name in names.values() or name in taken:
            name = table_name(c.column, c.of, always=True)
        names[c] = name
    return names


def _joins(c: OwnColumn, seen: OwnSeen | None, visits_alone: bool) -> str:
    if c.of == "items":
        return c.declared.joins or "target"
    if c.of == "users":
        return "user"
    assert seen is not None
    if visits_alone and c.declared.joins == "candidate":
        raise DataError(
            f"{FILE}: [interactions.{c.column}]: joins = 'candidate', but all interactions are visits, and the "
            "negatives that are drawn beside them have no such column; let it join the request, or leave it out"
        )
    return c.declared.joins or ("candidate" if c.key in seen.varies and not visits_alone else "request")


def _tables(
    columns: Sequence[OwnColumn], names: dict[OwnColumn, str], joins: dict[OwnColumn, str], taken: Collection[str]
) -> dict[str, list[OwnColumn]]:
    """The columns that have rows of each table."""
    tables: dict[str, list[OwnColumn]] = {}
    for c in columns:
        if c.kind == "number":
            continue
        table = c.declared.table or names[c]
        where = f"{FILE}: [{c.of}.{c.column}]: table = {table!r}"
        if c.declared.table and (table_name(table, c.of) != table or table in taken):
            raise DataError(f"{where}: the name is taken, or can't be a file's; choose another")
        tables.setdefault(table, []).append(c)
    for table, members in tables.items():
        if len(members) == 1:
            continue
        where = f"{FILE}: table {table!r} of {', '.join(f'{c.of}.{c.column}' for c in members)}"
        if any(joins[c] == "history" for c in members):
            raise DataError(f"{where}: what joins histories has a table of its own; name another")
        if len({c.kind == "buckets" for c in members}) > 1:
            raise DataError(
                f"{where}: got kinds {', '.join(c.kind for c in members)}, expected categories and lists, or buckets"
            )
        for name in ("width", "rows"):
            said = {getattr(c.declared, name) for c in members} - {None}
            if len(said) > 1:
                raise DataError(f"{where}: got {name} {', '.join(map(str, sorted(said)))}, expected one")
    return tables


def _add_table(
    made: OwnPlan,
    table: str,
    members: Sequence[OwnColumn],
    items: pa.Table,
    users: pa.Table | None,
    seen: OwnSeen | None,
    values: dict[str, pa.Array | None],
    before: pa.Table | None,
) -> None:
    """The vocabulary of a table, which goes on from ``before``, or how many rows it is hashed into."""
    rows = next((c.declared.rows for c in members if c.declared.rows), None)
    if members[0].kind == "buckets" and before is not None:
        made.vocabularies[table], made.edges[table] = before, before["low"].to_numpy()[2:]
        return
    if members[0].kind == "buckets":
        found = [_column(c, items, users, seen) for c in members]
        edges = quantile_edges(np.concatenate(found), rows or BUCKETS)
        bounds = [-np.inf, *edges, np.inf]
        names = [f"{low:.9g} to {high:.9g}" for low, high in pairwise(bounds)]
        columns = {"low": [None, *bounds[:-1]], "high": [None, *bounds[1:]]}
        bounded = {name: pa.array(x, pa.float64()) for name, x in columns.items()}
        made.vocabularies[table] = pa.table({"value": pa.array([None, *names], pa.string())} | bounded)
        made.edges[table] = edges
        return
    if rows:
        made.hashed[table] = rows
        return
    texts = []
    for c in members:
        if c.of != "interactions":
            column = one_array((items if c.of == "items" else users)[c.key])  # type: ignore[index]
            texts.append(column.flatten() if c.kind == "list" else column)
            continue
        assert seen is not None
        known = values[c.key]
        if known is None and before is not None:
            continue  # too many to take any
        if known is None:
            made.hashed[table] = HASHED
            return
        own = hashed(pa.chunked_array([known]))
        texts.append(known.filter(pa.array(np.isin(own, seen.values[c.key]))))
    made.vocabularies[table] = vocabulary(pa.chunked_array(texts, pa.string()), before)


def _column(c: OwnColumn, items: pa.Table, users: pa.Table | None, seen: OwnSeen | None) -> NDArray[np.float64]:
    if c.of == "interactions":
        assert seen is not None
        return seen.sample[c.key].to_numpy().astype(np.float64)
    table = items if c.of == "items" else users
    assert table is not None
    return _numbers(table[c.key])


def _extra(
    c: OwnColumn,
    name: str,
    joins: str,
    table: str | None,
    made: OwnPlan,
    seen: OwnSeen | None,
    then: Then | None,
) -> Extra:
    """How values of a column become rows or a number."""
    about: dict[str, Any] = {"name": OWN + name, "column": c.key}
    about["of"] = "candidate" if joins == "candidate" else "request"
    if table is None:
        if c.of != "interactions":
            return Extra(form="number", **about)
        assert seen is not None
        mean, scale = _mean_and_scale(seen.sample[c.key].to_numpy()) if then is None else then.mean_and_scale(c)
        return Extra(form="number", mean=mean, scale=scale, **about)
    if table in made.edges:
        return Extra(form="buckets", edges=made.edges[table], **about)
    if table in made.hashed:
        return Extra(form="hashed", size=made.hashed[table], **about)
    hashes = hashed(made.vocabularies[table]["value"])[1:]
    order = np.argsort(hashes)
    return Extra(form="vocabulary", hashes=hashes[order], rows=(1 + order).astype(np.int32), **about)


def _rows(values: pa.Array | pa.ChunkedArray, table: str | None, made: OwnPlan) -> NDArray[np.int32]:
    """Rows of texts."""
    assert table is not None
    if table in made.vocabularies:
        return rows_of(values, made.vocabularies[table])
    own = hashed(values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values]))
    return Extra(name="", column="", of="request", form="hashed", size=made.hashed[table]).of_values(own)


def _rows_of(
    c: OwnColumn, values: pa.ChunkedArray, table: str | None, made: OwnPlan, extra: Extra
) -> NDArray[np.int32]:
    return _rows(values, table, made) if c.kind == "category" else extra.of_values(_numbers(values))


def _in_words(c: OwnColumn, entry: dict[str, Any], made: OwnPlan) -> str:
    table = entry["table"]
    if table is None:
        what = f"number, standardised by mean {entry['mean']:.4g} and deviation {entry['scale']:.4g}"
    elif table in made.hashed:
        what = f"{c.kind} hashed into {made.hashed[table]:,} rows"
    else:
        n = len(made.vocabularies[table]) - 1
        what = f"{n:,} buckets" if c.kind == "buckets" else f"{c.kind} of {n:,} values"
    shared = "" if table in (None, entry["name"]) else f", table {table}"
    renamed = "" if entry["name"] == c.column else f" as {entry['name']}"
    return f"{c.of}.{c.column}{renamed} ({c.why}): {what}{shared}, joins {_WHERE[entry['joins']]}"


_WHERE = {
    "target": "the target",
    "history": "target and history",
    "user": "the user",
    "request": "the request",
    "candidate": "each candidate",
}


def _leaks(columns: Sequence[OwnColumn], items: pa.Table, users: pa.Table | None, seen: OwnSeen) -> Iterator[str]:
    """Warnings of columns that alone tell the label: AUC of the rate of each value, learned on half of the rows."""
    label = seen.sample["label"].to_numpy()
    for c in columns:
        if c.kind == "list":
            continue
        if c.of == "interactions":
            column = seen.sample[c.key].to_numpy()
        elif c.of == "items":
            column = _codes(items[c.key])[seen.sample["item"].to_numpy()]
        else:
            assert users is not None
            ids, known = seen.sample["user"], users["user_id"]
            if ids.type != known.type:
                ids, known = ids.cast(pa.string()), known.cast(pa.string())
            at = pc.index_in(ids, value_set=one_array(known)).fill_null(-1).to_numpy()
            codes = _codes(users[c.key])
            column = np.where(at < 0, codes.dtype.type(0), codes[at])
        if column.dtype.kind == "f":
            column = bucket_of(column, quantile_edges(column, 4 * BUCKETS))
        auc = auc_alone(column, label)
        if auc > LEAK:
            yield (
                f"{c.of}.{c.column} alone tells the label (AUC {auc:.3f} in training): if it is known only after the "
                f"choice, leave it out ([{c.of}.{c.column}] use = false in {FILE})"
            )
        elif c.of == "interactions" and (share := only_chosen(column, label)) > AFTERWARDS:
            yield (
                f"{c.of}.{c.column}: {share:.0%} of the chosen rows have values of it that no other row has, as what "
                f"happens after a choice does: leave it out ([{c.of}.{c.column}] use = false in {FILE}), or name it "
                "with --labels, --amount or --weight"
            )


def _codes(values: pa.ChunkedArray) -> NDArray[Any]:
    return hashed(values) if pa.types.is_string(values.type) else _numbers(values)


def only_chosen(values: NDArray[Any], label: NDArray[Any]) -> float:
    """Share of the rows with label 1 whose values [n] no row of label 0 has, and not by chance (one in a million)."""
    positives = int(label.sum())
    if not 0 < positives < len(label):
        return 0.0
    _, code = np.unique(values, return_inverse=True)
    shown, chosen = np.bincount(code), np.bincount(code, label)
    least = np.log(1e-6) / np.log(positives / len(label))
    return float(chosen[(shown == chosen) & (shown >= least)].sum() / positives)


def auc_alone(values: NDArray[Any], label: NDArray[Any]) -> float:
    """AUC of a label, 0 or 1 [n], by the rate of its values [n]: rates of even rows, judged on odd ones; 0.5 for values
    that are on odd rows alone, or where one label is missing."""
    _, code = np.unique(values, return_inverse=True)
    learn, judge = slice(0, None, 2), slice(1, None, 2)
    shown = np.bincount(code[learn], minlength=code.max(initial=0) + 1)
    chosen = np.bincount(code[learn], label[learn], minlength=len(shown))
    prior = label[learn].mean() if len(label) else 0.0
    score, y = ((chosen + prior) / (shown + 1))[code[judge]], label[judge]
    positives, negatives = int(y.sum()), int(len(y) - y.sum())
    if not positives or not negatives:
        return 0.5
    _, rank, count = np.unique(score, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count - 1) / 2
    return float((middle[rank][y == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))
