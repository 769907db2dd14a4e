"""The schema of items, interactions and users, and the checks that every row passes before it is used.

A raw folder holds

    items.parquet          item_id, name, category, brand?, price?, lat, lon, province?, city?, district?,
                           description?, image?
    interactions.parquet   user_id, item_id, timestamp, label, user_lat?, user_lon?, request_id?, probability?
                           (or a folder ``interactions/`` of Parquet files, read in the order of their names)
    users.parquet?         user_id and any categorical columns

``?`` columns may be missing or null; ``name`` and ``category`` must be there and may be null. Ids are integers
or strings. Columns that are not listed are ignored. ``read_items``, ``iter_interactions`` and ``read_users``
return the listed columns in this order and in the types of ``ITEMS`` and ``INTERACTIONS``, whatever Arrow type
the file chose. Rows that break a rule raise ``DataError``, or are set aside by ``BadRows("skip", folder)``.
"""

import difflib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .checks import BadRows, Block, OnBadRows, as_mask, check_type, is_text
from .columns import INTERACTIONS, ITEMS, Column, DataError, key_column, text_column

__all__ = [
    "INTERACTIONS",
    "ITEMS",
    "BadRows",
    "DataError",
    "OnBadRows",
    "has_column",
    "interaction_files",
    "iter_interactions",
    "open_parquet",
    "read_items",
    "read_users",
]


def open_parquet(file: Path) -> pq.ParquetFile:
    """A Parquet file that can be read, or an error that says what is wrong with it."""
    if not file.is_file():
        beside = sorted(p.name for p in file.parent.iterdir())[:20] if file.parent.is_dir() else []
        raise FileNotFoundError(f"{file} not found; expected a Parquet file; {file.parent} holds {beside or 'nothing'}")
    if file.stat().st_size == 0:
        raise DataError(f"{file}: the file is empty (0 bytes), expected Parquet; write it again")
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(_unreadable(file, error)) from error


def _unreadable(file: Path, error: Exception) -> str:
    return (
        f"{file}: not a whole Parquet file ({file.stat().st_size:,} bytes; Arrow says: {error}); "
        "it is truncated or of another format; write or copy it again"
    )


def interaction_files(path: Path) -> list[Path]:
    """Parquet files of interactions: ``path`` itself, or those in the folder ``path``, or those of a raw folder."""
    if path.is_dir():
        single, parts = path / "interactions.parquet", path / "interactions"
        if single.is_file() and parts.is_dir():
            raise DataError(f"{path}: got both {single.name} and {parts.name}/, expected one of them; remove the other")
        if single.is_file() or parts.is_dir():
            return interaction_files(single if single.is_file() else parts)
        files = [] if (path / "items.parquet").exists() else sorted(path.glob("*.parquet"))
        if not files:
            raise FileNotFoundError(
                f"{path}: got no interactions, expected interactions.parquet or interactions/*.parquet"
            )
        return files
    return [path]


def _check_columns(file: Path, schema: pa.Schema, columns: Sequence[Column]) -> None:
    """Required columns are there, types fit, and misspelt optional columns are told."""
    found, known = schema.names, [c.name for c in columns]
    for column in columns:
        if column.name in found:
            check_type(file, column, schema.field(column.name).type)
            continue
        near = difflib.get_close_matches(column.name, [f for f in found if f not in known], 1, cutoff=0.75)
        if column.required:
            hint = f"did you mean '{near[0]}'? Rename it to '{column.name}'" if near else f"add '{column.name}'"
            raise DataError(f"{file}: column '{column.name}' is missing; found {found}; {hint}")
        if near:
            warnings.warn(f"{file}: column '{near[0]}' is ignored; did you mean '{column.name}'?", stacklevel=4)


def _wanted(source: pq.ParquetFile, columns: Sequence[Column], bad_rows: BadRows) -> list[str] | None:
    """Columns to read: the known ones, or all where bad rows are set aside as they were."""
    return None if bad_rows.policy == "skip" else [c.name for c in columns if c.name in source.schema_arrow.names]


def _read_whole(source: pq.ParquetFile, file: Path, columns: Sequence[Column], wanted: list[str] | None) -> Block:
    _check_columns(file, source.schema_arrow, columns)
    if source.metadata.num_rows == 0:
        raise DataError(f"{file}: the file has no rows, expected at least one; check the step that wrote it")
    try:
        return Block(file, source.read(columns=wanted), np.arange(source.metadata.num_rows), columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(_unreadable(file, error)) from error


def mark_duplicates(block: Block, key: str) -> None:
    """Of rows with the same id, all good ones after the first are bad."""
    good = np.flatnonzero(block.fault == 0)
    ids = block.columns[key].take(pa.array(good)).combine_chunks()
    if isinstance(ids, pa.ChunkedArray):
        ids = pa.concat_arrays(ids.chunks) if ids.num_chunks else pa.array([], ids.type)
    codes = ids.dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    if len(first) < len(good):
        bad = np.zeros(len(block.fault), bool)
        bad[good] = True
        bad[good[first]] = False
        row = int(np.flatnonzero(bad)[0])
        earlier = int(good[first[codes[np.searchsorted(good, row)]]])
        block.notes[row] = f", which {block.unit} {block.rows[earlier]} has too"
        block.mark(key, "an id that no earlier row has", bad)


def _not_all_bad(file: Path, rows: int) -> None:
    if rows == 0:
        raise DataError(f"{file}: no row is left, all were set aside as bad; see the rejected files for the reasons")


def read_items(path: Path, bad_rows: BadRows | None = None) -> pa.Table:
    """The items of a raw folder (or of one Parquet file), whole and in normal form.

    Returns:
        The columns of ``ITEMS``, in that order; ``item_id`` is int64 or string, unique and not null.

    Raises:
        DataError, FileNotFoundError: see the module.
    """
    bad_rows = bad_rows or BadRows()
    file = path / "items.parquet" if path.is_dir() else path
    source = open_parquet(file)
    block = _read_whole(source, file, ITEMS, _wanted(source, ITEMS, bad_rows))
    mark_duplicates(block, "item_id")
    table = block.finish(ITEMS, bad_rows, file.stem)
    _not_all_bad(file, table.num_rows)
    return table


def read_users(path: Path, bad_rows: BadRows | None = None) -> pa.Table | None:
    """The users of a raw folder (or of one Parquet file); None where the folder has no users.parquet.

    Returns:
        ``user_id`` (int64 or string, unique), then every other column of the file as string, nulls kept.

    Raises:
        DataError: also for a column that is not categorical (string, integer or boolean).
    """
    bad_rows = bad_rows or BadRows()
    file = path / "users.parquet" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        return None
    columns = [key_column("user_id")]
    source = open_parquet(file)
    block = _read_whole(source, file, columns, None)
    for field in source.schema_arrow:
        if field.name == "user_id":
            continue
        if not (is_text(field.type) or pa.types.is_integer(field.type) or pa.types.is_boolean(field.type)):
            raise DataError(
                f"{file}: column '{field.name}': got type {field.type}, expected a categorical one (string, integer or "
                "boolean); put numbers in buckets, or drop the column"
            )
        columns.append(text_column(field.name))
        array = block.raw[field.name]
        if pa.types.is_dictionary(field.type):
            array = array.cast(field.type.value_type)
        block.columns[field.name] = array.cast(pa.string())
    mark_duplicates(block, "user_id")
    table = block.finish(columns, bad_rows, file.stem)
    _not_all_bad(file, table.num_rows)
    return table


def has_column(path: Path, name: str) -> bool:
    """Whether the interactions of a raw folder have the column ``name`` (in their first file)."""
    return name in open_parquet(interaction_files(path)[0]).schema_arrow.names


def iter_interactions(
    path: Path, item_ids: pa.ChunkedArray | pa.Array, bad_rows: BadRows | None = None, block_rows: int | None = None
) -> Iterator[pa.Table]:
    """Stream the interactions of a raw folder (or file, or folder of files) in normal form.

    Args:
        path: the raw folder, one Parquet file, or a folder of them (read in the order of their names).
        item_ids: the ids of ``read_items``; other ids are bad rows.
        bad_rows: what to do with bad rows; default: raise.
        block_rows: rows held at once; default: four times the items, between 65,536 and 1,048,576, because each
            block hashes the item ids once.

    Yields:
        Tables with the columns of ``INTERACTIONS`` in that order (timestamp int64 unix seconds UTC, label int8,
        places float64, probability float32; missing ones null), then ``item_index`` int32, the row in ``item_ids``.
    """
    bad_rows = bad_rows or BadRows()
    item_ids = pa.chunked_array([item_ids]) if isinstance(item_ids, pa.Array) else item_ids
    rows = block_rows or min(max(4 * len(item_ids), 65_536), 1 << 20)
    files = interaction_files(path)
    total = good = 0
    types: dict[str, pa.DataType] = {"item_id": item_ids.type}
    for file in files:
        source = open_parquet(file)
        _check_columns(file, source.schema_arrow, INTERACTIONS)
        _check_families(file, source.schema_arrow, types)
        wanted = _wanted(source, INTERACTIONS, bad_rows)
        name = file.stem if len(files) == 1 else f"interactions-{file.stem}"
        first_row = 0
        batches = source.iter_batches(batch_size=rows, columns=wanted)
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(_unreadable(file, error)) from error
            if batch is None:
                break
            block = Block(
                file, pa.Table.from_batches([batch]), np.arange(first_row, first_row + batch.num_rows), INTERACTIONS
            )
            first_row += batch.num_rows
            mark_interactions(block, item_ids)
            table = block.finish(INTERACTIONS, bad_rows, name)
            total += batch.num_rows
            good += table.num_rows
            if table.num_rows:
                yield table
    if total == 0:
        raise DataError(f"{path}: the interactions have no rows, expected at least one; check the step that wrote them")
    _not_all_bad(path, good)


def _check_families(file: Path, schema: pa.Schema, types: dict[str, pa.DataType]) -> None:
    """Ids are integers everywhere or strings everywhere: item ids as in the items, others as in the first file."""
    for name in ("item_id", "user_id", "request_id"):
        if name not in schema.names:
            continue
        got = pa.int64() if pa.types.is_integer(schema.field(name).type) else pa.string()
        expected = types.setdefault(name, got)
        if got != expected and not pa.types.is_null(schema.field(name).type):
            other = "the items table" if name == "item_id" else "the first file"
            raise DataError(
                f"{file}: column '{name}': got type {schema.field(name).type}, expected {expected} as in {other}; "
                "cast one of them"
            )


def mark_interactions(block: Block, item_ids: pa.ChunkedArray) -> None:
    """Rules beyond single columns: known items (adds ``item_index``), and places whole or not at all."""
    index = pc.index_in(block.columns["item_id"], value_set=item_ids)
    block.columns["item_index"] = index
    unknown = as_mask(index.is_null()) & as_mask(block.columns["item_id"].is_valid())
    block.mark("item_id", "an item_id that is in the items table", unknown)
    lat, lon = as_mask(block.columns["user_lat"].is_valid()), as_mask(block.columns["user_lon"].is_valid())
    for name, other, bad in (("user_lat", "user_lon", ~lat & lon), ("user_lon", "user_lat", lat & ~lon)):
        if bad.any() and name not in block.raw.column_names:
            raise DataError(f"{block.file}: column '{name}' is missing, but '{other}' is there; add it, or drop both")
        block.mark(name, f"a value, because the row has a {other}", bad)
