"""Exported tables, read back: raw ids to vectors."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..data.manifest import read_manifest
from .quantize import packed_layout, unpack


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
        self._sorted: tuple[NDArray, NDArray[np.int64]] | None = None

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

        The first call sorts the ids of the table; later ones search in them.

        Raises:
            TypeError: ids of another type than the table's.
            KeyError: an unknown id, and the table has no row for those.
        """
        try:
            wanted = pa.array(ids).cast(self.ids.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise TypeError(f"table {self.name!r} has ids of type {self.ids.type}: {error}") from error
        known, order = self._order()
        missing = wanted.is_null().to_numpy(zero_copy_only=False)
        keys = _keys(wanted.drop_null())
        place = np.searchsorted(known, keys)
        place[place == len(known)] = 0
        found = known[place] == keys if len(known) else np.zeros(len(keys), bool)
        if not self.has_oov and (missing.any() or not found.all()):
            unknown = "null" if found.all() else keys[~found][0]
            raise KeyError(f"table {self.name!r} has no id {unknown}, and no row for unknown ids")
        rows = np.zeros(len(wanted), np.int64)
        rows[np.flatnonzero(~missing)[found]] = order[place[found]]
        return torch.from_numpy(rows)

    def lookup(self, ids: ArrayLike | pa.Array) -> Tensor:
        """Vectors of raw ids, float32 [n, dim]; see ``rows`` for unknown ones."""
        return self.vectors(self.rows(ids))

    def _order(self) -> tuple[NDArray, NDArray[np.int64]]:
        if self._sorted is None:
            keys = _keys(self.ids[1:] if self.has_oov else self.ids)
            order = np.argsort(keys, kind="stable")
            self._sorted = keys[order], order + self.has_oov
        return self._sorted


def _keys(ids: pa.Array) -> NDArray:
    """Ids without nulls, as an array that NumPy can sort."""
    values = ids.to_numpy(zero_copy_only=False)
    text = pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)
    return values.astype(np.dtypes.StringDType()) if text else values


def load_table(folder: Path, name: str) -> EmbeddingTable:
    """A table of an export folder. Memory-mapped in npy and safetensors; Parquet and FAISS are read into memory.

    Raises:
        FileNotFoundError, ValueError: not a whole export folder, or a table that it does not have.
    """
    folder = Path(folder)
    tables: dict[str, Any] = read_manifest(folder, "export")["tables"]
    if name not in tables:
        raise ValueError(f"{folder} has no table {name!r}; it has {', '.join(tables)}")
    return open_table(folder / "tables", name, tables[name])


def open_table(folder: Path, name: str, table: dict[str, Any]) -> EmbeddingTable:
    """A table from what ``export_tables`` wrote into ``folder`` and returned for the table."""
    file, dim, dtype = folder / table["file"], table["dim"], table["dtype"]
    if table["format"] == "parquet":
        columns = pq.read_table(file)
        ids, packed = columns["id"].combine_chunks(), _from_parquet(columns["vector"], dim, dtype)
    else:
        ids = pq.read_table(file.with_suffix(".ids.parquet"))["id"].combine_chunks()
        packed = {"npy": _map_npy, "safetensors": _map_safetensors, "faiss": _from_faiss}[table["format"]](file)
    kind, width = packed_layout(dim, dtype)
    if packed.shape != (table["rows"], width) or packed.dtype != kind or len(ids) != table["rows"]:
        raise ValueError(
            f"{file} holds {packed.dtype} {packed.shape} and {len(ids)} ids; the manifest says {kind} "
            f"{(table['rows'], width)}; export again"
        )
    return EmbeddingTable(name, dim, dtype, ids, packed)


def _from_parquet(column: pa.ChunkedArray, dim: int, dtype: str) -> NDArray:
    kind, width = packed_layout(dim, dtype)
    out = np.empty((len(column), width), kind)
    start = 0
    for chunk in column.chunks:
        if kind == np.uint8:
            values = np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * width :]
        else:
            values = chunk.flatten().to_numpy()
        out[start : start + len(chunk)] = values[: len(chunk) * width].reshape(-1, width)
        start += len(chunk)
    return out


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
    oov = file.with_suffix(".oov.npy")
    vectors = np.concatenate([np.load(oov)[None], vectors]) if oov.is_file() else vectors
    return vectors.astype("<f2") if isinstance(flat, faiss.IndexScalarQuantizer) else vectors
