"""Tables as files for serving, in row blocks: peak memory follows the block, not the table.

For a table ``item`` in format

    parquet       item.parquet: ``id``, ``vector``. fp32, fp16: a list of fixed length. int8, int4: the packed row
                  (``embeddings/quantize.py``) as binary of fixed length. A row group a block.
    safetensors   item.safetensors: tensor ``vector`` [rows, width]; item.ids.parquet: ``id``
    npy           item.npy [rows, width]; item.ids.parquet: ``id``
    faiss         item.faiss: inner product, fp32 or fp16; labels are the ids where they are integers, else row numbers
                  of item.ids.parquet. FAISS builds and writes an index as a whole, so here memory holds the table.
                  item.oov.npy [dim]: the vector of row 0, which the index leaves out. The id -1, FAISS's label for
                  "nothing found", is refused.
    faiss-hnsw    the same as a graph: answers a search from a few hundred rows. 32 neighbours a row, so 272 bytes more

Rows stand in the order of the table. Row 0 is the one of unknown values and has the id null; only a table without
vocabulary (the hours of the week) has an id in every row. ``width`` counts elements of a packed row.

In a table's file name, all but letters, digits, ``_``, ``-``, ``.`` and spaces is percent-encoded (``table_file``).
pandas reads integer ids as its nullable integers, since a null would else make them float64, which rounds long ones.
"""

import io
import json
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from ..reports.progress import Progress
from .quantize import pack, packed_layout
from .settings import check_format

IDS, OOV = ".ids.parquet", ".oov.npy"
_NEIGHBOURS, _EF_MADE, _EF_SEARCHED = 32, 80, 64  # of HNSW; benchmarks/bench_faiss.py shows what they give
_ATTRIBUTE_ROWS = 1 << 18  # a row group of items' or users' attributes


class TableSource(Protocol):
    """Tables that can be read in row blocks: those of a checkpoint (``CheckpointTables``), or computed ones."""

    def shape(self, name: str) -> tuple[int, int]:
        """Rows and columns of a table; ValueError if there is none such."""

    def blocks(self, name: str, block_rows: int) -> Iterator[Tensor]:
        """A table from first row to last, float32 [n, dim]; a block is valid until the next is asked for."""


@dataclass(frozen=True)
class RawIds:
    """The raw id of each row of a table: a column of a Parquet file, or, without a file, the row's number.

    Attributes:
        rows: how many there are.
        file, column: where they stand, in row order.
    """

    rows: int
    file: Path | None = None
    column: str = "value"

    @classmethod
    def read(cls, file: Path, column: str = "value") -> Self:
        """The ids in a column of a Parquet file.

        Raises:
            FileNotFoundError, ValueError: no such file or column.
        """
        with pq.ParquetFile(file) as f:
            if column not in f.schema_arrow.names:
                raise ValueError(f"{file} has no column {column!r}; it has {', '.join(f.schema_arrow.names)}")
            return cls(f.metadata.num_rows, file, column)

    @property
    def type(self) -> pa.DataType:
        return pa.int64() if self.file is None else pq.read_schema(self.file).field(self.column).type

    def blocks(self, block_rows: int) -> Iterator[pa.Array]:
        """The ids in blocks of ``block_rows`` (the last may have fewer)."""
        if self.file is None:
            for start in range(0, self.rows, block_rows):
                yield pa.array(np.arange(start, min(start + block_rows, self.rows)))
            return
        for block in row_blocks(self.file, block_rows, [self.column]):
            yield block.column(0)


def row_blocks(file: Path, block_rows: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file in blocks of ``block_rows`` (the last may have fewer), however its row groups lie."""
    held: list[pa.RecordBatch] = []
    count = 0
    with pq.ParquetFile(file) as f:
        for batch in f.iter_batches(block_rows, columns=columns):
            held.append(batch)
            count += len(batch)
            if count >= block_rows:
                whole = pa.concat_batches(held)
                yield whole.slice(0, block_rows)
                held, count = [whole.slice(block_rows)], count - block_rows
    if count:
        yield pa.concat_batches(held)


def table_file(name: str, ending: str) -> str:
    """A file name for a table of any name: in one folder, no two names share one; urllib's ``unquote`` undoes it."""
    return re.sub(r"[^\w\-. ]", lambda match: quote(match[0], safe=""), name) + f".{ending}"


def for_pandas(schema: pa.Schema, *columns: str) -> pa.Schema:
    """The schema with a note to pandas: these columns, where integers, are nullable ones (Int64), not float64."""
    told = []
    for name in columns:
        if pa.types.is_integer(schema.field(name).type):
            kind = str(schema.field(name).type)
            nullable = kind.replace("uint", "UInt").replace("int", "Int")
            types = {"pandas_type": kind, "numpy_type": nullable, "metadata": None}
            told.append({"name": name, "field_name": name, **types})
    note = json.dumps({"index_columns": [], "column_indexes": [], "columns": told})
    return schema.with_metadata({**(schema.metadata or {}), "pandas": note}) if told else schema


def save_attributes(table: pa.Table, key: str, file: Path) -> None:
    """Write attributes of items or users, whose ids are the column ``key``, as Parquet."""
    read_back = io.BytesIO()  # Parquet renames the elements of lists: the file has those names from the start
    pq.write_table(for_pandas(table.schema, key).empty_table(), read_back)
    told = table.cast(pq.read_schema(read_back))
    pieces = (told.slice(start, _ATTRIBUTE_ROWS) for start in range(0, len(told), _ATTRIBUTE_ROWS))
    write_blocks((batch for piece in pieces for batch in piece.combine_chunks().to_batches()), told.schema, file)


def write_blocks(blocks: Iterable[pa.RecordBatch], schema: pa.Schema, file: Path) -> None:
    """Write Parquet, a row group a block: the same blocks give the same bytes."""
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for block in blocks:
            writer.write_batch(block, row_group_size=max(len(block), 1))


def vector_type(dim: int, dtype: str) -> pa.DataType:
    """What a packed row is in Parquet: a list of fixed length, or binary of fixed length where codes are in it."""
    kind, width = packed_layout(dim, dtype)
    if kind == np.uint8:
        return pa.binary(width)
    return pa.list_(pa.field("element", pa.from_numpy_dtype(kind), nullable=False), width)


def table_schema(ids: pa.DataType, dim: int, dtype: str) -> pa.Schema:
    """Columns of a table in Parquet, for raw ids of that type."""
    fields = [pa.field("id", ids), pa.field("vector", vector_type(dim, dtype), nullable=False)]
    return for_pandas(pa.schema(fields), "id")


def vector_column(packed: NDArray, dim: int, dtype: str) -> pa.Array:
    """Packed rows [n, width], row after row in memory, as a column of ``vector_type``; shares their memory."""
    kind = vector_type(dim, dtype)
    if packed.dtype == np.uint8:
        return pa.FixedSizeBinaryArray.from_buffers(kind, len(packed), [None, pa.py_buffer(packed)])
    return pa.FixedSizeListArray.from_arrays(pa.array(packed.reshape(-1)), type=kind)


def packed_rows(column: pa.Array, dim: int, dtype: str) -> NDArray:
    """What ``vector_column`` was made of; shares memory.

    Raises:
        ValueError: a column of other vectors.
    """
    kind, width = packed_layout(dim, dtype)
    held = getattr(column.type, "byte_width" if kind == np.uint8 else "list_size", None)
    if held != width:
        raise ValueError(f"got vectors as {column.type}, expected {vector_type(dim, dtype)}")
    if kind == np.uint8:
        values = np.frombuffer(column.buffers()[1], np.uint8)[column.offset * width :]
    else:
        values = column.flatten().to_numpy()
    return values[: len(column) * width].reshape(-1, width)


class TableWriter(ABC):
    """Takes a table block by block: ``add`` for each, then ``close``; a context manager that closes."""

    def __init__(self, file: Path, rows: int, dim: int, dtype: str, ids: pa.DataType) -> None:
        self.kind, self.width = packed_layout(dim, dtype)
        self.rows, self.dim, self.dtype = rows, dim, dtype
        self.open(file, ids)

    @abstractmethod
    def open(self, file: Path, ids: pa.DataType) -> None: ...

    @abstractmethod
    def add(self, start: int, ids: pa.Array, packed: NDArray) -> None:
        """Rows ``start`` on: their ids, and vectors [n, width] as ``pack`` gives them."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _ParquetWriter(TableWriter):
    def open(self, file: Path, ids: pa.DataType) -> None:
        self.schema = table_schema(ids, self.dim, self.dtype)
        self.writer = pq.ParquetWriter(
            file,
            self.schema,
            use_dictionary=False,
            compression={"id": "zstd", "vector": "none"},
            write_statistics=["id"],
        )

    def add(self, start: int, ids: pa.Array, packed: NDArray) -> None:
        vector = vector_column(packed, self.dim, self.dtype)
        self.writer.write_batch(pa.record_batch([ids, vector], schema=self.schema), row_group_size=max(len(ids), 1))

    def close(self) -> None:
        self.writer.close()


class _IdsFile:
    """``<table>.ids.parquet`` beside a format that has no place for ids."""

    def __init__(self, file: Path, ids: pa.DataType) -> None:
        self.schema = for_pandas(pa.schema([pa.field("id", ids)]), "id")
        self.writer = pq.ParquetWriter(file.with_suffix(IDS), self.schema, compression="zstd")

    def add(self, ids: pa.Array) -> None:
        self.writer.write_batch(pa.record_batch([ids], schema=self.schema), row_group_size=max(len(ids), 1))

    def close(self) -> None:
        self.writer.close()


class _FlatWriter(TableWriter):
    """A header, then rows: npy and safetensors."""

    def open(self, file: Path, ids: pa.DataType) -> None:
        self.ids = _IdsFile(file, ids)
        self.file = open(file, "wb", buffering=0)  # noqa: SIM115  closed by close()
        self.header()

    @abstractmethod
    def header(self) -> None: ...

    def add(self, start: int, ids: pa.Array, packed: NDArray) -> None:
        rest = packed.data.cast("B")
        while rest:  # a raw file may take less than it is given
            rest = rest[self.file.write(rest) :]
        self.ids.add(ids)

    def close(self) -> None:
        self.file.close()
        self.ids.close()


class _NpyWriter(_FlatWriter):
    def header(self) -> None:
        shape = (self.rows, self.width)
        description = {"descr": self.kind.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, description)


class _SafetensorsWriter(_FlatWriter):
    def header(self) -> None:
        kind = {"f4": "F32", "f2": "F16", "u1": "U8"}[self.kind.str[1:]]
        end = self.rows * self.width * self.kind.itemsize
        vector = {"dtype": kind, "shape": [self.rows, self.width], "data_offsets": [0, end]}
        text = json.dumps({"__metadata__": {"placerank_dtype": self.dtype}, "vector": vector}).encode()
        text += b" " * (-len(text) % 8)
        self.file.write(struct.pack("<Q", len(text)) + text)


class _FaissWriter(TableWriter):
    def open(self, file: Path, ids: pa.DataType) -> None:
        import faiss  # here: it starts a thread pool of its own

        self.path = file
        self.ids = _IdsFile(file, ids)
        self.index = faiss.IndexIDMap2(self.make())
        self.save = faiss.write_index

    def make(self) -> Any:
        """The index of rows."""
        import faiss

        if self.dtype == "fp32":
            return faiss.IndexFlatIP(self.dim)
        return faiss.IndexScalarQuantizer(self.dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)

    def add(self, start: int, ids: pa.Array, packed: NDArray) -> None:
        self.ids.add(ids)
        vectors = packed.astype(np.float32, copy=False)
        labels: NDArray[np.int64] = np.arange(start, start + len(ids))
        if start == 0 and ids[0].as_py() is None:
            np.save(self.path.with_suffix(OOV), vectors[0])
            ids, vectors, labels = ids[1:], vectors[1:], labels[1:]
        if pa.types.is_integer(ids.type):
            labels = ids.cast(pa.int64()).to_numpy(zero_copy_only=False)
        self.index.add_with_ids(vectors, labels)

    def close(self) -> None:
        self.save(self.index, str(self.path))
        self.ids.close()


class _HnswWriter(_FaissWriter):
    def make(self) -> Any:
        import faiss

        product = faiss.METRIC_INNER_PRODUCT
        index: Any = faiss.IndexHNSWFlat(self.dim, _NEIGHBOURS, product)
        if self.dtype == "fp16":
            half: Any = faiss.ScalarQuantizer.QT_fp16
            index = faiss.IndexHNSWSQ(self.dim, half, _NEIGHBOURS, product)
        index.hnsw.efConstruction, index.hnsw.efSearch = _EF_MADE, _EF_SEARCHED  # the file keeps them
        return index


WRITERS: dict[str, type[TableWriter]] = {
    "parquet": _ParquetWriter,
    "safetensors": _SafetensorsWriter,
    "npy": _NpyWriter,
    "faiss": _FaissWriter,
    "faiss-hnsw": _HnswWriter,
}


def _check_labels(name: str, ids: RawIds) -> None:
    """Raises ValueError for an integer id that a search would not tell from "nothing found"."""
    if not pa.types.is_signed_integer(ids.type):
        return
    row = 0
    for block in ids.blocks(1 << 20):
        if (at := pc.index(block, pa.scalar(-1, ids.type)).as_py()) >= 0:
            raise ValueError(
                f"table {name!r}, row {row + at}: the id -1 is what a FAISS index answers for 'nothing found'; give "
                "that row another id, or export as parquet, npy or safetensors"
            )
        row += len(block)


def export_tables(
    tables: TableSource,
    ids: dict[str, RawIds],
    folder: Path,
    format: str = "parquet",
    dtype: str = "fp32",
    block_rows: int = 65_536,
) -> dict[str, Any]:
    """Write tables into an existing folder.

    Args:
        tables: where they are.
        ids: the tables to write, and the raw ids of their rows.
        folder: gets one file a table, and one of ids where the format has no place for them.
        format: parquet, safetensors, npy, faiss or faiss-hnsw; see above.
        dtype: fp32, fp16, int8 or int4 (both of faiss: fp32, fp16).
        block_rows: rows in memory at a time.

    Returns:
        For the manifest: table name -> rows, dim, format, dtype, file (relative to the folder).

    Raises:
        ValueError: a table that is not there, or with another number of rows than ids, or with ids that the format
            can't take; nothing is written then. Blocks that are not those of their ids; remove the folder.
        OSError: the disk is full; remove the folder.
    """
    check_format(format, dtype)
    if block_rows < 1:
        raise ValueError(f"block_rows={block_rows}: expected at least 1")
    written: dict[str, Any] = {}
    for name, raw in ids.items():
        rows, dim = tables.shape(name)
        if raw.rows != rows:
            source = raw.file or "the range of its rows"
            raise ValueError(f"table {name!r} has {rows} rows, {source} {raw.rows} ids; use the data it was trained on")
        packed_layout(dim, dtype)
        if format.startswith("faiss"):
            _check_labels(name, raw)
        file_name = table_file(name, format)
        written[name] = {"rows": rows, "dim": dim, "format": format, "dtype": dtype, "file": file_name}
    with Progress("export", sum(t["rows"] for t in written.values()), "rows") as progress:
        for name, table in written.items():
            progress.note(name)
            file = folder / table["file"]
            with WRITERS[format](file, table["rows"], table["dim"], dtype, ids[name].type) as writer:
                start = 0
                for raw_ids, block in zip(ids[name].blocks(block_rows), tables.blocks(name, block_rows), strict=True):
                    got, want = tuple(block.shape), (len(raw_ids), table["dim"])
                    if got != want:
                        raise ValueError(f"table {name!r}, row {start}: got a block {got}, expected {want}")
                    writer.add(start, raw_ids, pack(block, dtype))
                    start += len(block)
                    progress.update(len(block))
    return written
