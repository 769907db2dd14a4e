"""The items of a step as a file that is mapped: what a hundred million take is the system's to keep or to drop.

Every rank of a machine reads the same pages of one file. What a process holds of it are the rows that it takes.
"""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...data.manifest import read_manifest, whole_file
from ...data.raw.own import own_columns, read_declaration
from ...data.raw.schema import read_items
from ...data.requests import OWN
from ...data.urls import fetched

BLOCK_ROWS = 65_536


def item_blocks(data: Path, columns: tuple[str, ...]) -> Iterator[pa.Table]:
    """The items of a prepared folder, block by block; those of a raw one, which is checked whole in memory first.

    Args:
        data: a prepared folder, or one with items.parquet (or that file).
        columns: those of them that are there; own ones, whose names begin with ``OWN``, have to be.

    Raises:
        ValueError: an own column that is not there, or has no text.
    """
    catalog = data / "catalog.parquet"
    named = [name.removeprefix(OWN) for name in columns if name.startswith(OWN)]
    if not catalog.is_file():
        own = own_columns(data, read_declaration(None, data))[0] if named else []
        found = {c.column: c for c in own if c.of == "items" and c.kind in _TEXTS}
        _check_own(data, named, found)
        table = read_items(data, own=[found[name] for name in named]).select(columns)
        yield from (table.slice(start, BLOCK_ROWS) for start in range(0, len(table), BLOCK_ROWS))
        return
    texts = _own_texts(data, named) if named else {}
    skipped = 1  # row 0 stands for unknown items
    with pq.ParquetFile(fetched(catalog)) as file:
        there = [name for name in columns if name in file.schema_arrow.names]
        for batch in file.iter_batches(BLOCK_ROWS, columns=[*there, *(rows for rows, _ in texts.values())]):
            table = pa.Table.from_batches([batch])
            for name, (rows, values) in texts.items():
                table = table.append_column(OWN + name, _named(table[rows].combine_chunks(), values))
            yield table.select([*there, *(OWN + name for name in texts)]).slice(skipped)
            skipped = 0


_TEXTS = {"category", "list"}


def _check_own(data: Path, named: list[str], found: Collection[str]) -> None:
    for name in named:
        if name not in found:
            raise ValueError(
                f"{data}: got no items' own column {name!r} of texts, expected some of {', '.join(found) or 'none'}"
            )


def _own_texts(data: Path, named: list[str]) -> dict[str, tuple[str, pa.Array]]:
    """By name of an own column of a prepared folder, which column of the catalog has its rows, and their texts."""
    manifest = read_manifest(data, "prepared")
    own = {c["name"]: c for c in manifest.get("own", []) if c["of"] == "items" and c["kind"] in _TEXTS}
    files = {name: f"vocab/{c['table']}.parquet" for name, c in own.items()}
    own = {name: c for name, c in own.items() if files[name] in manifest["files"]}  # the others are hashed
    _check_own(data, named, own)
    ends = {name: "_rows" if own[name]["kind"] == "list" else "_row" for name in named}
    texts = {name: pq.read_table(fetched(data / files[name]))["value"].combine_chunks() for name in named}
    return {name: (name + ends[name], texts[name]) for name in named}


def _named(rows: pa.Array, texts: pa.Array) -> pa.Array:
    """Rows, or lists of them, as the texts that they stand for."""
    if isinstance(rows, pa.ListArray):
        return pa.ListArray.from_arrays(rows.offsets, texts.take(rows.values))
    return texts.take(rows)


def same_order(a: Iterator[pa.Array], b: Iterator[pa.Array]) -> bool:
    """Whether two streams of blocks hold the same values in the same order."""
    left: pa.Array | None = pa.array([])
    right: pa.Array | None = pa.array([])
    while True:
        while left is not None and len(left) == 0:
            left = next(a, None)
        while right is not None and len(right) == 0:
            right = next(b, None)
        if left is None or right is None:
            return left is None and right is None
        n = min(len(left), len(right))
        if not left.slice(0, n).equals(right.slice(0, n)):
            return False
        left, right = left.slice(n), right.slice(n)


def write_mapped(file: Path, blocks: Iterator[pa.Table]) -> pa.Table:
    """Write blocks (at least one) to a file as they come, and map it."""
    first = next(blocks)
    with whole_file(file) as tmp, pa.OSFile(str(tmp), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
        writer.write_table(first)
        for block in blocks:
            writer.write_table(block)
    return read_mapped(file)


def read_mapped(file: Path) -> pa.Table:
    """A file of ``write_mapped``: no row is read before it is used."""
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def take_rows(items: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """Some rows in the order asked for; a row may repeat. Arrow's own ``take`` joins all blocks of a column first."""
    if len(rows) and (np.diff(rows) == 1).all():
        return items.slice(rows[0], len(rows))
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    parts, start, done = [], 0, 0
    for batch in items.to_batches():
        stop = start + len(batch)
        if done < len(ordered) and ordered[done] < stop:
            upto = int(np.searchsorted(ordered, stop))
            parts.append(batch.take(pa.array(ordered[done:upto] - start)))
            done = upto
        start = stop
    found = pa.Table.from_batches(parts, items.schema).combine_chunks()
    del parts
    if (np.diff(order) == 1).all():
        return found
    back = np.empty(len(rows), np.int64)
    back[order] = np.arange(len(rows))
    return found.take(pa.array(back))


def in_order(file: Path, blocks: Iterator[pa.Table], rows: NDArray[np.int64] | None) -> pa.Table:
    """The blocks' rows as a mapped file: as they come, or these rows of them, by way of a second file."""
    if rows is None:
        return write_mapped(file, blocks)
    every = file.with_name(f"{file.name}.unordered")
    table = write_mapped(every, blocks)
    starts = range(0, len(rows), BLOCK_ROWS)
    found = write_mapped(file, (take_rows(table, rows[start : start + BLOCK_ROWS]) for start in starts))
    every.unlink()
    return found


def with_column(items: pa.Table, name: str, file: Path, made: Callable[[pa.Table], pa.Array]) -> pa.Table:
    """The items with a column that is made block by block and lies in a mapped file of its own."""
    starts = range(0, len(items), BLOCK_ROWS)
    blocks = (items.slice(start, BLOCK_ROWS) for start in starts)
    column = write_mapped(file, (pa.table({name: made(block)}) for block in blocks))[name]
    if name not in items.column_names:
        return items.append_column(name, column)
    return items.set_column(items.column_names.index(name), name, column)


def user_blocks(data: Path) -> Iterator[pa.Table]:
    """The ids of a prepared folder's users as a table of the one column ``user_id``, block by block.

    Raises:
        ValueError: not a prepared folder.
    """
    if not (data / "catalog.parquet").is_file():
        raise ValueError(f"{data}: users are known by their visits; expected the folder that placerank prepare made")
    skipped = 1  # row 0 stands for everybody else
    with pq.ParquetFile(fetched(data / "users.parquet")) as file:
        for batch in file.iter_batches(BLOCK_ROWS, columns=["user_id"]):
            yield pa.Table.from_batches([batch]).slice(skipped)
            skipped = 0


def rows_in(blocks: Iterator[pa.Table], ids: pa.Array) -> tuple[NDArray[np.int64], int]:
    """The rows of these ids in the first column of a data folder's blocks, int64 [n], -1 where it has none; and how
    many rows it has. Holds the ids of both."""
    known = pa.chunked_array([chunk for block in blocks for chunk in block.column(0).chunks])
    if known.type != ids.type:
        return np.full(len(ids), -1), len(known)
    found: NDArray[np.int64] = pc.index_in(ids, value_set=known).fill_null(-1).to_numpy(zero_copy_only=False)
    return found.astype(np.int64), len(known)
