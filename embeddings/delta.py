"""What changed from one export to the next, a delta; and the whole export, made of it and the one before.

The folder of a delta:

    manifest.json         ``base`` and ``result``: content hashes of the export before and of the one after. ``rows`` by
                          file: rows of the result, of the base (0 where all are told anew), in a block of the
                          result, changed; and ids that are gone
    result.json           the manifest of the export after, as it is
    tables/item.parquet   rows of the table that changed or are new: ``row`` (its number), ``id``, ``vector`` as in a
                          Parquet export of the same dtype. One file a table, whatever the format of the export
    gone/item.parquet     ``id``: what had a row before and has none now
    catalog.parquet       items' attributes that changed or are new: the row's number, then the columns
    users.parquet         users' attributes, likewise
    scorer.pt2, ...       other files that changed, whole

What did not change is not there. A row changed where its id or a bit of its vector did: rows are compared one by one.
A table of another width, dtype or type of ids is told anew, from its first row to its last.

A store of vectors by id drops what is in ``gone`` and then takes what is in ``tables``. ``apply_delta`` writes the
export after byte for byte, its manifest included. Parquet files have the bytes that one version of pyarrow gives them,
so another version is refused.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..data.arrays import rows_differ
from ..data.manifest import MANIFEST, read_manifest, sha256_file, verify_files, whole_folder, write_manifest
from ..data.plain import read_json
from ..data.urls import fetched, place
from .export import IDS, OOV, WRITERS, packed_rows, row_blocks, table_file, table_schema, write_blocks
from .reader import TABLES, table_blocks
from .settings import ApplyConfig

CATALOG, USERS = "catalog.parquet", "users.parquet"  # in an export folder: attributes by row
RESULT, GONE = "result.json", "gone"
_GROUP = 65_536  # rows of a row group of changed rows


def apply(config: ApplyConfig) -> Path:
    """``apply_delta`` as a step."""
    return apply_delta(config.base, config.delta, config.out, config.overwrite)


def apply_delta(base: Path, delta: Path, out: Path, overwrite: bool = False) -> Path:
    """Write the whole export that a delta leads to.

    Args:
        base: the export before; behind a URL it is fetched, and so is the delta.
        delta: what ``placerank export --since`` wrote.
        out: the folder to write, or a URL; may be ``base`` where ``overwrite`` is set.
        overwrite: replace it if it exists.

    Returns:
        out. Every file in it has the hash that it has in the export that the delta was made of.

    Raises:
        FileNotFoundError, ValueError: not a delta, a damaged one, one of another base or made with another pyarrow; a
            damaged base.
        FileExistsError: ``out`` exists and ``overwrite`` is False.
        OSError: the disk is full. On every error ``out`` is as it was before.
    """
    base, delta = fetched(place(base)), fetched(place(delta))
    told = read_manifest(delta, "delta")
    verify_files(delta, told["files"], "fetch the delta again")
    old = read_manifest(base, "export")
    if old["content_hash"] != told["base"]:
        why = "apply deltas in their order, each to what the one before made"
        if old["content_hash"] == told["result"]:
            why = "it was applied already"
        raise ValueError(f"{delta} is of the base {told['base'][:12]}, {base} is {old['content_hash'][:12]}: {why}")
    if (here := version("pyarrow")) != told["pyarrow"]:
        raise ValueError(
            f"{delta} was made with pyarrow {told['pyarrow']}, and pyarrow {here} writes other bytes; install pyarrow=="
            f"{told['pyarrow']}, or take the whole export"
        )
    with whole_folder(out, overwrite) as folder:
        try:
            _write_result(base, old, delta, told, folder)
        except Exception as error:
            verify_files(base, old["files"], "fetch it again, or take the whole export")
            if isinstance(error, OSError):
                raise
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{delta} does not lead to what it tells ({why}); take the whole export") from error
    return out


def make_delta(base: Path, new: Path, out: Path, overwrite: bool = False) -> Path:
    """Write what changed from one export to another. ``placerank export --since`` does so for one in the making.

    Args:
        base, new: whole exports; behind a URL they are fetched.
        out: the folder to write, or a URL.
        overwrite: replace it if it exists.

    Returns:
        out.

    Raises:
        FileNotFoundError, ValueError: not a whole export, or a damaged one.
        FileExistsError: ``out`` exists and ``overwrite`` is False.
    """
    base, new = fetched(place(base)), fetched(place(new))
    with whole_folder(out, overwrite) as folder:
        write_manifest(folder, "delta", {}, **write_changes(base, new, folder))
    return out


@dataclass(frozen=True)
class _Rows:
    """What of an export has rows: a table, or the attributes of items or users.

    Attributes:
        change: the file of a delta that its changed rows are in.
        table: the manifest's description of a table; None for attributes.
    """

    change: str
    table: dict[str, Any] | None = None

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> "list[_Rows]":
        """All that an export has."""
        tables = [cls(f"{TABLES}/{table_file(name, 'parquet')}", t) for name, t in manifest["tables"].items()]
        return [*tables, *(cls(name) for name in (CATALOG, USERS) if name in manifest["files"])]

    @property
    def files(self) -> list[str]:
        """Files of an export that it may be in."""
        if self.table is None:
            return [self.change]
        file = Path(TABLES, self.table["file"])
        return [file.as_posix(), file.with_suffix(IDS).as_posix(), file.with_suffix(OOV).as_posix()]

    def parquet(self, export: Path) -> Path:
        """The Parquet file that has the ids."""
        flat = self.table is not None and self.table["format"] != "parquet"
        return export / self.files[flat]

    def schema(self, export: Path) -> pa.Schema:
        schema = pq.read_schema(self.parquet(export))
        return schema if self.table is None else table_schema(schema.field("id").type, *self._kind(self.table))

    def blocks(self, export: Path, block_rows: int) -> Iterator[pa.RecordBatch]:
        if self.table is None:
            return row_blocks(export / self.change, block_rows)
        return table_blocks(export / TABLES, self.table, block_rows)

    def write(self, blocks: Iterable[pa.RecordBatch], schema: pa.Schema, export: Path) -> None:
        """Write it as the export step does, from blocks of as many rows."""
        if self.table is None:
            write_blocks(blocks, schema, export / self.change)
            return
        file, kind = export / TABLES / self.table["file"], self._kind(self.table)
        file.parent.mkdir(exist_ok=True)
        make = WRITERS[self.table["format"]]
        with make(file, self.table["rows"], *kind, schema.field("id").type) as writer:
            start = 0
            for block in blocks:
                writer.add(start, block["id"], packed_rows(block["vector"], *kind))
                start += len(block)

    @staticmethod
    def _kind(table: dict[str, Any]) -> tuple[int, str]:
        return table["dim"], table["dtype"]


def write_changes(base: Path, new: Path, folder: Path) -> dict[str, Any]:
    """The files of ``make_delta``, into an existing folder; returns the fields of its manifest."""
    old, result = (read_manifest(export, "export", verify=True) for export in (base, new))
    olds = {rows.change: rows for rows in _Rows.of(old)}
    with_rows = _Rows.of(result)
    told = {
        rows.change: _write_changes_of(olds.get(rows.change), base, rows, new, folder)
        for rows in with_rows
        if _hashes(rows.files, old) != _hashes(rows.files, result)
    }
    others = set(result["files"]).difference(*(rows.files for rows in with_rows))
    for name in others:
        if _hashes([name], old) != _hashes([name], result):
            _copy(name, new, folder)
    shutil.copyfile(new / MANIFEST, folder / RESULT)
    made_with = result.get("environment", {}).get("packages", {}).get("pyarrow", "?")
    return {"base": old["content_hash"], "result": result["content_hash"], "pyarrow": made_with, "rows": told}


def _hashes(names: Iterable[str], manifest: dict[str, Any]) -> list[str | None]:
    """Hashes of files by an export's manifest, None for those that it has not."""
    return [manifest["files"].get(name, {}).get("sha256") for name in names]


def _copy(name: str, source: Path, target: Path) -> None:
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / name, target / name)


def _write_changes_of(was: _Rows | None, base: Path, now: _Rows, new: Path, folder: Path) -> dict[str, int]:
    """Write changed rows and ids gone; returns what the manifest says of them."""
    schema, metadata = now.schema(new), pq.read_metadata(now.parquet(new))
    block_rows = metadata.row_group(0).num_rows if metadata.num_row_groups else 1
    old_schema = None if was is None else was.schema(base)
    same_kind = schema.equals(old_schema, check_metadata=True) if old_schema else False
    olds = iter(()) if was is None else was.blocks(base, block_rows)
    ids_before: list[pa.Array] = []  # of rows that changed
    ids_after: list[pa.Array] = []
    count = {"rows": metadata.num_rows, "base": 0, "block": block_rows, "changed": 0, "gone": 0}
    (folder / now.change).parent.mkdir(exist_ok=True)
    with _ChangeWriter(folder / now.change, schema) as writer:
        start = 0
        for block in now.blocks(new, block_rows):
            old = next(olds, None)
            differ = np.ones(max(len(block), len(old or ())), np.bool_)
            if old is not None and same_kind:
                both = min(len(block), len(old))
                columns = zip(old.columns, block.columns, strict=True)
                differ[:both] = np.logical_or.reduce([rows_differ(a[:both], b[:both]) for a, b in columns])
                count["base"] += len(old)
            changed = np.flatnonzero(differ[: len(block)])
            writer.add(start + changed, block.take(pa.array(changed)))
            count["changed"] += len(changed)
            if now.table is not None:
                ids_after.append(block["id"].take(pa.array(changed)))
                if old is not None:
                    ids_before.append(old["id"].filter(pa.array(differ[: len(old)])))
            start += len(block)
    ids_before += [old["id"] for old in olds if now.table is not None]  # past the end of the new table
    gone = _without(ids_before, ids_after)
    if gone is not None and len(gone):
        file = folder / GONE / Path(now.change).name
        file.parent.mkdir(exist_ok=True)
        count["gone"] = len(gone)
        pq.write_table(pa.table({"id": gone}), file, compression="zstd")
    return count


def _without(before: list[pa.Array], after: list[pa.Array]) -> pa.Array | None:
    """Those of some ids that are not among others; None of none."""
    if not before:
        return None
    ids = pa.concat_arrays(before).drop_null()
    if after and after[0].type == ids.type:
        ids = ids.filter(pc.invert(pc.is_in(ids, pa.concat_arrays(after))))
    return ids


class _ChangeWriter:
    """Writes rows and their numbers, in row groups of about ``_GROUP``."""

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self.schema = schema.insert(0, pa.field(_row_column(schema), pa.int64(), nullable=False))
        names = set(schema.names)
        self.writer = pq.ParquetWriter(
            file,
            self.schema,
            use_dictionary=sorted(names - {"id", "vector"}),
            compression=dict.fromkeys(self.schema.names, "zstd") | ({"vector": "none"} if "vector" in names else {}),
            column_encoding={self.schema.names[0]: "DELTA_BINARY_PACKED"},
        )
        self.held: list[pa.RecordBatch] = []

    def add(self, rows: NDArray[np.int64], block: pa.RecordBatch) -> None:
        self.held.append(pa.record_batch([pa.array(rows), *block.columns], schema=self.schema))
        if sum(map(len, self.held)) >= _GROUP:
            self.flush()

    def flush(self) -> None:
        if sum(map(len, self.held)):
            self.writer.write_table(pa.Table.from_batches(self.held).combine_chunks())
        self.held = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self.writer.close()


def _row_column(schema: pa.Schema) -> str:
    """The column of row numbers: ``row``, with dashes below where attributes have a column of that name."""
    name = "row"
    while name in schema.names:
        name += "_"
    return name


def _write_result(base: Path, old: dict[str, Any], delta: Path, told: dict[str, Any], folder: Path) -> None:
    """The export after, into an empty folder.

    Raises:
        ValueError: it is not what the delta tells; and whatever readers raise where files are damaged.
    """
    result = read_json(delta / RESULT, dict[str, Any], "")
    olds = {rows.change: rows for rows in _Rows.of(old)}
    made = set()
    for rows in _Rows.of(result):
        if of := told["rows"].get(rows.change):
            schema = pq.read_schema(delta / rows.change).remove(0)
            before = olds[rows.change].blocks(base, of["block"]) if of["base"] else iter(())
            changes = row_blocks(delta / rows.change, of["block"])
            rows.write(_after(before, changes, schema, of["rows"], of["block"]), schema, folder)
            made.update(rows.files)
    for name in result["files"]:
        if name not in made:
            whole = name in told["files"] and name not in told["rows"]
            _copy(name, delta if whole else base, folder)
    for name, want in result["files"].items():
        if sha256_file(folder / name) != want["sha256"]:
            raise ValueError(f"{name} comes out with other bytes")
    shutil.copyfile(delta / RESULT, folder / MANIFEST)
    if (got := read_manifest(folder, "export")["content_hash"]) != told["result"]:
        raise ValueError(f"{RESULT} is of the export {got[:12]}, expected {told['result'][:12]}")


def _after(
    before: Iterator[pa.RecordBatch], changes: Iterator[pa.RecordBatch], schema: pa.Schema, rows: int, block_rows: int
) -> Iterator[pa.RecordBatch]:
    """The rows of the export after, in blocks: those of the base, also in blocks, with changed ones in their place."""
    change, nothing = next(changes, None), pa.record_batch([pa.array([], kind) for kind in schema.types], schema=schema)
    for start in range(0, rows, block_rows):
        end = min(start + block_rows, rows)
        old = next(before, nothing)
        here = []
        while change is not None:
            count = int(np.searchsorted(change.column(0).to_numpy(), end))
            here.append(change.slice(0, count))
            change = change.slice(count)
            if len(change):
                break
            change = next(changes, None)
        source, number = np.arange(end - start), len(old)
        for some in here:
            source[some.column(0).to_numpy() - start] = range(number, number + len(some))
            number += len(some)
        columns = zip(old.columns, *(some.columns[1:] for some in here), strict=True)
        taken = [pa.concat_arrays(parts).take(pa.array(source)) for parts in columns]
        yield pa.record_batch(taken, schema=schema)
