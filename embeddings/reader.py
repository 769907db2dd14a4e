"""Exported tables, read back: raw ids to vectors."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..data.arrays import hash_ids, starts_run
from ..data.manifest import read_manifest, verify_files
from ..data.urls import fetched, place
from .export import IDS, OOV, RawIds, packed_rows, row_blocks, table_schema, vector_column
from .quantize import packed_layout, unpack

TABLES = "tables"  # in an export folder
_BLOCK = 16_384  # ids hashed at a time


class EmbeddingTable:
    """One exported table.

    Rows are kept packed, as in the file, and turned into float32 when asked for.

    Args:
        name, dim, dtype: of the table.
        ids: raw id of each row; null in row 0 where that is the row of unknown ids.
        packed: [rows, width], in memory or mapped.

    Example:
        >>> table = load_table(Path("runs/demo/export"), "item")      # doctest: +SKIP
        >>> table.lookup(["place-17", "never seen"])                  # doctest: +SKIP
    """

    def __init__(self, name: str, dim: int, dtype: str, ids: pa.Array, packed: NDArray) -> None:
        self.name, self.dim, self.dtype, self.ids = name, dim, dtype, ids
        self._packed = packed
        self.has_oov = len(ids) > 0 and not ids[0].is_valid
        self._index: tuple[NDArray[np.uint64], NDArray[np.int64], int] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def vectors(self, rows: Tensor | None = None) -> Tensor:
        """Vectors of rows, float32 [*rows.shape, dim]; of all rows by default.

        Raises:
            IndexError: a row that the table does not have.
        """
        if rows is None:
            return unpack(np.array(self._packed), self.dtype)
        flat = rows.reshape(-1).numpy()
        if flat.size and not 0 <= flat.min() <= flat.max() < len(self):
            raise IndexError(f"table {self.name!r} has {len(self)} rows, asked for rows {flat.min()} to {flat.max()}")
        return unpack(self._packed[flat], self.dtype).view(*rows.shape, self.dim)

    def rows(self, ids: ArrayLike | pa.Array) -> Tensor:
        """Rows of raw ids, int64 [n]; unknown ids and null: row 0.

        The first call hashes the ids of the table and sorts the hashes (16 bytes an id; 0.4 s a million of 24
        characters); later ones search in them and compare the ids that they find (0.1 ms for one, 0.2 ms for 100).

        Raises:
            TypeError: ids of another type than the table's, or floating-point numbers, in which long ids lose digits.
            KeyError: an unknown id, and the table has no row for those.
        """
        wanted = self._as_ids(ids)
        keys = wanted.drop_null()
        found = np.full(len(wanted), -1)
        parts = [self._find(keys.slice(start, _BLOCK)) for start in range(0, len(keys), _BLOCK)]
        found[wanted.is_valid().to_numpy(zero_copy_only=False)] = np.concatenate([np.zeros(0, np.int64), *parts])
        if not self.has_oov and (found < 0).any():
            unknown = wanted[int((found < 0).argmax())]
            raise KeyError(f"table {self.name!r} has no id {unknown}, and no row for unknown ids")
        return torch.from_numpy(found.clip(0))

    def lookup(self, ids: ArrayLike | pa.Array) -> Tensor:
        """Vectors of raw ids, float32 [n, dim]; see ``rows`` for unknown ones."""
        return self.vectors(self.rows(ids))

    def _as_ids(self, ids: ArrayLike | pa.Array) -> pa.Array:
        """What was asked for in the type of the table's ids."""
        wrong = f"table {self.name!r} has ids of type {self.ids.type}"
        if isinstance(ids, (str, bytes)):
            raise TypeError(f"{wrong}: got one string {ids!r}, expected a list of ids")
        try:
            wanted = pa.array(ids)
            if pa.types.is_floating(wanted.type) and len(wanted):
                raise TypeError(f"{wrong}: got {wanted.type}, in which long ids lose digits; pass them as they were")
            wanted = wanted.cast(self.ids.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OverflowError) as error:
            raise TypeError(f"{wrong}: {error}") from error
        return wanted.combine_chunks() if isinstance(wanted, pa.ChunkedArray) else wanted

    def _find(self, keys: pa.Array) -> NDArray[np.int64]:
        """Rows of ids without nulls, -1 for those that the table does not have."""
        known, rows, sharing = self._hashes()
        place = np.searchsorted(known, hash_ids(keys))
        found = np.full(len(keys), -1)
        for nth in range(sharing):  # once, unless two ids of the table have one hash
            row = rows[np.minimum(place + nth, len(rows) - 1)]
            same = pc.equal(self.ids.take(pa.array(row)), keys).to_numpy(zero_copy_only=False)
            found[same] = row[same]
        return found

    def _hashes(self) -> tuple[NDArray[np.uint64], NDArray[np.int64], int]:
        """Hashes of the ids in order, the row of each, and how many ids share one hash at most."""
        if self._index is None:
            blocks = [hash_ids(self.ids.slice(s, _BLOCK)) for s in range(self.has_oov, len(self.ids), _BLOCK)]
            hashes = np.concatenate([np.zeros(0, np.uint64), *blocks])
            order = np.argsort(hashes, kind="stable")
            hashes = hashes[order]
            starts = np.flatnonzero(starts_run(hashes))
            sharing = np.diff(starts, append=len(hashes)).max(initial=0)
            self._index = hashes, order + self.has_oov, int(sharing)
        return self._index


def load_table(folder: Path, name: str, verify: bool = True) -> EmbeddingTable:
    """A table of an export folder. Memory-mapped in npy and safetensors; Parquet and FAISS are read into memory.

    Args:
        folder: what ``placerank export`` wrote; one behind a URL is fetched.
        name: of the table.
        verify: compare the hash of the table's files with the manifest's first. That reads them once from end to end,
            0.7 s a GB on a core of its own where they are in the page cache, else at the disk's speed. Without
            it sizes alone are compared, and a mapped table opens at once: for files that were verified on this
            machine before, as by another worker.

    Raises:
        FileNotFoundError, ValueError: not a whole export folder, a damaged one, or a table that it does not have.
    """
    folder = fetched(place(folder))
    manifest = read_manifest(folder, "export")
    tables: dict[str, Any] = manifest["tables"]
    if name not in tables:
        raise ValueError(f"{folder} has no table {name!r}; it has {', '.join(tables)}")
    file = Path(TABLES, tables[name]["file"])
    if verify:
        own = {path.as_posix() for path in (file, file.with_suffix(IDS), file.with_suffix(OOV))}
        verify_files(folder, {n: f for n, f in manifest["files"].items() if n in own}, "export again")
    return open_table(folder / TABLES, name, tables[name])


def open_table(folder: Path, name: str, table: dict[str, Any]) -> EmbeddingTable:
    """A table from what ``export_tables`` wrote into ``folder`` and returned for the table.

    Raises:
        ValueError: files that can't be read, or not those that the description is of. Contents are not compared.
    """
    file, dim, dtype = folder / table["file"], table["dim"], table["dtype"]
    try:
        if table["format"] == "parquet":
            columns = pq.read_table(file)
            ids, packed = columns["id"].combine_chunks(), columns["vector"]
            packed = np.concatenate([packed_rows(chunk, dim, dtype) for chunk in packed.chunks])
        else:
            ids = pq.read_table(file.with_suffix(IDS))["id"].combine_chunks()
            packed = _FLAT[table["format"]](file)
    except Exception as error:  # each format's library has errors of its own
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file} can't be read as {table['format']} ({why}); export again") from error
    kind, width = packed_layout(dim, dtype)
    if packed.shape != (table["rows"], width) or packed.dtype != kind or len(ids) != table["rows"]:
        raise ValueError(
            f"{file} holds {packed.dtype} {packed.shape} and {len(ids)} ids; the manifest says {kind} "
            f"{(table['rows'], width)}; export again"
        )
    return EmbeddingTable(name, dim, dtype, ids, packed)


def table_blocks(folder: Path, table: dict[str, Any], block_rows: int) -> Iterator[pa.RecordBatch]:
    """A table that ``export_tables`` wrote, in blocks of ``block_rows`` rows: ``id``, and ``vector``, packed.

    Args:
        folder: where it lies.
        table: the manifest's description.
        block_rows: rows in memory at a time (FAISS: all).
    """
    file, dim, dtype = folder / table["file"], table["dim"], table["dtype"]
    if table["format"] == "parquet":
        yield from row_blocks(file, block_rows, ["id", "vector"])
        return
    packed, start = _FLAT[table["format"]](file), 0
    for ids in RawIds.read(file.with_suffix(IDS), "id").blocks(block_rows):
        vectors = vector_column(packed[start : start + len(ids)], dim, dtype)
        yield pa.record_batch([ids, vectors], schema=table_schema(ids.type, dim, dtype))
        start += len(ids)


def _map_npy(file: Path) -> NDArray:
    mapped: NDArray = np.load(file, mmap_mode="r")
    return mapped


def _map_safetensors(file: Path) -> NDArray:
    with open(file, "rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        vector = json.loads(f.read(length))["vector"]
    kind = {"F32": "<f4", "F16": "<f2", "U8": "u1"}[vector["dtype"]]
    offset = 8 + length + vector["data_offsets"][0]
    return np.memmap(file, kind, "r", offset, tuple(vector["shape"]))


def _from_faiss(file: Path) -> NDArray:
    import faiss

    index: Any = faiss.read_index(str(file))
    flat = faiss.downcast_index(index.index)
    vectors: NDArray[np.float32] = flat.reconstruct_n(0, flat.ntotal)
    oov = file.with_suffix(OOV)
    vectors = np.concatenate([np.load(oov)[None], vectors]) if oov.is_file() else vectors
    halves = faiss.IndexScalarQuantizer, faiss.IndexHNSWSQ
    return vectors.astype("<f2") if isinstance(flat, halves) else vectors


_FLAT = {"npy": _map_npy, "safetensors": _map_safetensors, "faiss": _from_faiss, "faiss-hnsw": _from_faiss}
