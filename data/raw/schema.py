"""The schema of items, interactions and users, and the checks that every row passes before it is used.

A raw folder holds

    items.parquet          item_id, name, category, brand?, price?, lat, lon, province?, city?, district?,
                           opening_hours?, description?, image?
    interactions.parquet   user_id, item_id, timestamp, label, user_lat?, user_lon?, request_id?, probability?,
                           utc_offset?
    users.parquet?         user_id

each a file or a folder of that name, with or without ``.parquet``, as ``parts`` reads it. ``?`` columns may be missing
or null; ``name`` and ``category`` must be there and may be null. Ids are integers or strings; "" and white space alone
are null in all text. Of columns that are not listed those are read that are asked for (``own``). ``read_items``,
``iter_interactions`` and ``read_users`` return the listed columns in this order and in the types of ``ITEMS`` and
``INTERACTIONS``, whatever Arrow type the file chose. Rows that break a rule raise ``DataError``, or are set aside by
``BadRows("skip", folder)``.
"""

import difflib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..arrays import hash_ids, wide_ids
from ..urls import UrlError, told
from .checks import BadRows, Block, OnBadRows, as_mask, check_type
from .columns import INTERACTIONS, ITEMS, Column, DataError, key_column
from .lookup import IdIndex
from .outcomes import NO_OUTCOMES, Outcomes, columns_of, renamed
from .own import OwnColumn, check_fits, normal, normal_type
from .parts import Part, open_parquet, parts, table_files, unreadable

__all__ = [
    "INTERACTIONS",
    "ITEMS",
    "BadRows",
    "DataError",
    "OnBadRows",
    "has_column",
    "has_rows",
    "inventory",
    "iter_interactions",
    "no_items",
    "read_items",
    "read_users",
]


def _check_columns(part: Part, columns: Sequence[Column], tell: bool = True) -> None:
    """Required columns are there, types fit, and misspelt optional columns are told, if that is wanted."""
    found, known = part.schema.names, [c.name for c in columns]
    for column in columns:
        if column.name in found:
            check_type(part.file, column, part.schema.field(column.name).type)
            continue
        near = difflib.get_close_matches(column.name, [f for f in found if f not in known], 1, cutoff=0.75)
        if column.required:
            hint = f"did you mean '{near[0]}'? Rename it to '{column.name}'" if near else f"add '{column.name}'"
            raise DataError(f"{part.file}: column '{column.name}' is missing; found {found}; {hint}")
        if near and tell:
            warnings.warn(
                f"{part.file}: column '{near[0]}' is not the schema's; did you mean '{column.name}'?", stacklevel=4
            )


def _wanted(
    part: Part, columns: Sequence[Column], bad_rows: BadRows, own: Sequence[OwnColumn] = ()
) -> list[str] | None:
    """Columns to read: the known ones and own ones, or all where bad rows are set aside as they were."""
    if bad_rows.policy == "skip":
        return None
    return [name for name in (*(c.name for c in columns), *(c.column for c in own)) if name in part.stored]


def _add_own(block: Block, own: Sequence[OwnColumn], with_time: bool = False) -> None:
    """Own columns in normal form beside the schema's; null where a part lacks one."""
    time = block.columns["timestamp"] if with_time else None
    for column in own:
        if column.column not in block.raw.column_names:
            block.columns[column.key] = pa.chunked_array([pa.nulls(len(block.raw), normal_type(column))])
            continue
        values = block.raw[column.column]
        check_fits(block.file, column, values.type)
        block.columns[column.key] = normal(column, values, time)


def _with_rows(path: Path, name: str) -> list[Part]:
    """The parts of a table that have rows. What writes empty parts often gives them columns of no type."""
    every = parts(path, name)
    found = [part for part in every if part.rows]
    if not found:
        raise DataError(f"{every[0].file}: the file has no rows, expected at least one; check the step that wrote it")
    return found


def _read_whole(part: Part, columns: Sequence[Column], own: Sequence[OwnColumn], bad_rows: BadRows) -> Block:
    _check_columns(part, columns)
    try:
        with open_parquet(part.file) as source, told(part.file):
            table = source.read(columns=_wanted(part, columns, bad_rows, own))
    except UrlError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(unreadable(part.file, error)) from error
    block = Block(part.file, part.with_values(table), np.arange(part.rows), columns)
    _add_own(block, own)
    return block


def mark_duplicates(block: Block | Sequence[Block], key: str) -> None:
    """Of rows with the same id, all good ones after the first are bad; blocks are the parts of one table."""
    blocks = [block] if isinstance(block, Block) else block
    good = [np.flatnonzero(b.fault == 0) for b in blocks]
    ids = pa.chunked_array(
        [c for b, g in zip(blocks, good, strict=True) for c in b.columns[key].take(pa.array(g)).chunks]
    )
    array = wide_ids(ids)
    hashed = np.sort(hash_ids(array))
    if not (hashed[1:] == hashed[:-1]).any():  # which is quicker to see than which ids are the same
        return
    codes = array.dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    if len(first) == len(codes):
        return
    of, row = np.repeat(np.arange(len(blocks)), [len(g) for g in good]), np.concatenate(good)
    again = np.ones(len(codes), bool)
    again[first] = False
    for number, b in enumerate(blocks):
        mine = np.flatnonzero(again & (of == number))
        if len(mine) == 0:
            continue
        bad = np.zeros(len(b.fault), bool)
        bad[row[mine]] = True
        earlier = first[codes[mine[0]]]
        other = blocks[of[earlier]]
        where = "" if other is b else f" of {other.file.name}"
        b.notes[int(row[mine[0]])] = f", which {b.unit} {other.rows[row[earlier]]}{where} has too"
        b.mark(key, "an id that no earlier row has", bad)


def _finish(
    path: Path, found: list[Part], blocks: list[Block], columns: Sequence[Sequence[Column]], key: str, bad_rows: BadRows
) -> list[pa.Table]:
    """The good rows of a table's parts, each id once."""
    types: dict[str, pa.DataType] = {}
    for part in found:
        _check_families(part, types, (key,))
    mark_duplicates(blocks, key)
    tables = [b.finish(c, bad_rows, p.label) for p, b, c in zip(found, blocks, columns, strict=True)]
    check_not_all_bad(path, sum(len(t) for t in tables))
    return tables


def check_not_all_bad(file: Path, rows: int) -> None:
    """Raises DataError where no row is left."""
    if rows == 0:
        raise DataError(f"{file}: no row is left, all were set aside as bad; see the rejected files for the reasons")


def read_items(path: Path, bad_rows: BadRows | None = None, own: Sequence[OwnColumn] = ()) -> pa.Table:
    """The items of a raw folder (or of one Parquet file), whole and in normal form.

    Returns:
        The columns of ``ITEMS``, in that order, then those of ``own`` as ``own.normal`` gives them; ``item_id`` is
        int64 or string, unique and not null.

    Raises:
        DataError, FileNotFoundError: see the module.
    """
    table = _read_table(path, "items", ITEMS, own, bad_rows or BadRows())
    assert table is not None
    return table


def read_users(path: Path, bad_rows: BadRows | None = None, own: Sequence[OwnColumn] = ()) -> pa.Table | None:
    """The users of a raw folder (or of one Parquet file); None where the folder has no users.parquet.

    Returns:
        ``user_id`` (int64 or string, unique), then the columns of ``own``.

    Raises:
        DataError: see the module.
    """
    if not table_files(path, "users"):
        return None
    return _read_table(path, "users", (key_column("user_id"),), own, bad_rows or BadRows())


def _read_table(
    path: Path, name: str, columns: tuple[Column, ...], own: Sequence[OwnColumn], bad_rows: BadRows
) -> pa.Table:
    found = _with_rows(path, name)
    blocks = [_read_whole(part, columns, own, bad_rows) for part in found]
    tables = _finish(path, found, blocks, [columns] * len(found), columns[0].name, bad_rows)
    return pa.concat_tables(tables, promote_options="default")


def has_rows(path: Path, name: str) -> bool:
    """Whether a raw folder has that table, with any row in it."""
    return bool(table_files(path, name)) and any(part.rows for part in parts(path, name))


def no_items(ids: pa.DataType) -> pa.Table:
    """What ``read_items`` would return of no items."""
    return pa.table({c.name: pa.array([], ids if c.name == "item_id" else c.type) for c in ITEMS})


def has_column(path: Path, name: str) -> bool:
    """Whether the interactions of a raw folder have the column ``name``, in any part."""
    return any(name in part.schema.names for part in parts(path, "interactions"))


def inventory(path: Path) -> tuple[dict[str, int], list[str]]:
    """What the tables of a raw folder hold, from their files' footers alone.

    Returns:
        Rows by table ("items.parquet"), and what is told of columns that only some of a table's parts have.
    """
    rows: dict[str, int] = {}
    told = []
    for name in ("items", "interactions", "users"):
        if not table_files(path, name):
            continue
        every = parts(path, name)
        rows[f"{name}.parquet"] = sum(part.rows for part in every)
        found = Counter(column for part in every if part.rows for column in part.schema.names)
        count = sum(part.rows > 0 for part in every)
        told += [
            f"{name}.parquet: column '{c}' is in {n:,} of {count:,} parts and null in the others; write all parts alike"
            for c, n in found.items()
            if n < count
        ]
    return rows, told


def iter_interactions(
    path: Path,
    item_ids: IdIndex | pa.ChunkedArray | pa.Array,
    bad_rows: BadRows | None = None,
    block_rows: int = 131_072,
    share: tuple[int, int] = (0, 1),
    own: Sequence[OwnColumn] = (),
    outcomes: Outcomes = NO_OUTCOMES,
    encoded: bool = False,
) -> Iterator[pa.Table]:
    """Stream the interactions of a raw folder (or file, or folder of files) in normal form.

    Args:
        path: the raw folder, one Parquet file, or a folder of them (see ``parts``).
        item_ids: the ids of ``read_items``, or an index of them; other ids are bad rows.
        bad_rows: what to do with bad rows; default: raise.
        block_rows: rows held at once.
        share: (i, n): only the i-th of n about equal shares of the row groups, in their order; it may be empty.
        own: columns that the schema doesn't name, which are wanted too.
        outcomes: further labels, amount and weight.
        encoded: ids that are text may be Arrow's dictionaries, as Parquet has most of them: nothing is hashed then.

    Yields:
        Tables with the columns of ``INTERACTIONS`` in that order (timestamp int64 unix seconds UTC, label int8,
        places float64, probability and utc_offset float32; missing ones null), then ``item_index`` int32, the row in
        ``item_ids``, then those of ``own`` by their ``key``, as ``own.normal`` gives them. Outcomes are called ``OWN``
        and their name, and come before ``item_index``: int8 and float64.
    """
    columns = (*INTERACTIONS, *columns_of(outcomes))
    bad_rows = bad_rows or BadRows()
    items = item_ids if isinstance(item_ids, IdIndex) else IdIndex(item_ids)
    found = [part for part in parts(path, "interactions") if part.rows]
    if not found:
        raise DataError(f"{path}: the interactions have no rows, expected at least one; check the step that wrote them")
    types: dict[str, pa.DataType] = {"item_id": items.type}
    for part in found:
        _check_columns(part, columns, tell=share[0] == 0)
        _check_families(part, types, ("item_id", "user_id", "request_id"))
    good = 0
    for part, groups, first_row in _shared(found, *share):
        many = ("user_id", "item_id") if items.repeated_in(block_rows) else ("user_id",)
        text = [n for n in many if n in part.stored and pa.types.is_string(part.schema.field(n).type)]
        ids = text if encoded and bad_rows.policy == "error" else []  # what is set aside is as it was
        for batch in _batches(part, block_rows, _wanted(part, columns, bad_rows, own), groups, ids):
            raw = part.with_values(batch)
            block = Block(part.file, raw, np.arange(first_row, first_row + len(batch)), columns, encoded=ids)
            first_row += len(batch)
            mark_interactions(block, items)
            _add_own(block, own, with_time=True)
            table = renamed(block.finish(columns, bad_rows, part.label), columns_of(outcomes))
            good += len(table)
            if len(table):
                yield table
        bad_rows.close_file(part.label)
    if share == (0, 1):
        check_not_all_bad(path, good)


def _shared(found: list[Part], which: int, shares: int) -> Iterator[tuple[Part, list[int], int]]:
    """The parts that have row groups of a share, with those, and the row at which they begin."""
    total, before = sum(part.rows for part in found), 0
    for part in found:
        rows = np.array(part.groups, np.int64)
        starts = np.cumsum(rows) - rows
        of = (before + starts + rows // 2) * shares // total
        groups = np.flatnonzero(of == which).tolist()
        if groups:
            yield part, groups, int(starts[groups[0]])
        before += part.rows


def _batches(
    part: Part, rows: int, columns: list[str] | None, groups: list[int], dictionaries: Sequence[str]
) -> Iterator[pa.Table]:
    with open_parquet(part.file, dictionaries) as source:
        batches = source.iter_batches(batch_size=rows, row_groups=groups, columns=columns)
        while True:
            try:
                with told(part.file):
                    batch = next(batches, None)
            except UrlError:
                raise
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(unreadable(part.file, error)) from error
            if batch is None:
                return
            yield pa.Table.from_batches([batch])


def _check_families(part: Part, types: dict[str, pa.DataType], names: Sequence[str]) -> None:
    """Ids are integers everywhere or strings everywhere: item ids as in the items, others as in the first file."""
    for name in names:
        if name not in part.schema.names:
            continue
        type_ = part.schema.field(name).type
        got = pa.int64() if pa.types.is_integer(type_) else pa.string()
        if pa.types.is_null(type_):
            continue
        expected = types.setdefault(name, got)
        if got != expected:
            other = "the items table" if name == "item_id" and len(names) > 1 else "the first file"
            raise DataError(
                f"{part.file}: column '{name}': got type {type_}, expected {expected} as in {other}; cast one of them"
            )


def mark_interactions(block: Block, items: IdIndex) -> None:
    """Rules beyond single columns: known items (adds ``item_index``), and places whole or not at all."""
    index = items.find(block.columns["item_id"])
    block.columns["item_index"] = pa.chunked_array([pa.array(index, mask=index < 0)])
    unknown = index < 0
    if unknown.any():
        unknown &= as_mask(block.columns["item_id"].is_valid())
        block.mark("item_id", "an item_id that is in the items table", unknown)
    if not any(block.columns[name].null_count for name in ("user_lat", "user_lon")):
        return
    lat, lon = as_mask(block.columns["user_lat"].is_valid()), as_mask(block.columns["user_lon"].is_valid())
    for name, other, bad in (("user_lat", "user_lon", ~lat & lon), ("user_lon", "user_lat", lat & ~lon)):
        if bad.any() and name not in block.raw.column_names:
            raise DataError(f"{block.file}: column '{name}' is missing, but '{other}' is there; add it, or drop both")
        block.mark(name, f"a value, because the row has a {other}", bad)
