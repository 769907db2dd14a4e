"""Embedding tables inside a checkpoint, read in row blocks: no model, no process group, no whole table in memory.

torch.distributed.checkpoint writes each shard of a table as one ``torch.save`` archive somewhere in a ``.distcp``
file. Such an archive is a zip that keeps a tensor's bytes uncompressed, so once it is known where in it they begin, any
rows of the shard are one read away. (safetensors would tell by its header; what stands in the way is in
docs/decisions.md.)
"""

import io
import re
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

_KEY = re.compile(r"model\.embeddings\.(?:sequence\.embeddings|pooled\.embedding_bags)\.(?P<table>.+)\.weight")


@dataclass(frozen=True)
class _Shard:
    """Rows ``row`` on, columns ``column`` on, of a table: rows x columns numbers from byte ``offset`` of a file."""

    file: Path
    offset: int
    row: int
    column: int
    rows: int
    columns: int


@dataclass(frozen=True)
class _Stored:
    rows: int
    dim: int
    dtype: torch.dtype
    shards: tuple[_Shard, ...]


class CheckpointTables:
    """The tables of a checkpoint that any number of ranks wrote, cut by table, rows or columns.

    Args:
        checkpoint: a ``step-...`` folder.
        used: of tables with spare rows, how many rows are somebody's; the others are left out.

    Raises:
        ValueError: not a readable checkpoint, or shards that do not make up their table.
    """

    def __init__(self, checkpoint: Path, used: Mapping[str, int] | None = None) -> None:
        self.checkpoint, self.used = checkpoint, used or {}
        try:
            metadata = FileSystemReader(checkpoint).read_metadata()
        except Exception as error:
            raise ValueError(f"{checkpoint} can't be read as a checkpoint ({error}); expected step-...") from error
        self._tables: dict[str, _Stored] = {}
        for key, stored in metadata.state_dict_metadata.items():
            match = _KEY.fullmatch(key)
            if not match or not isinstance(stored, TensorStorageMetadata):
                continue
            rows, dim = stored.size
            shards = []
            for chunk in stored.chunks:
                info = metadata.storage_data[MetadataIndex(key, chunk.offsets)]
                (row, column), (height, width) = chunk.offsets, chunk.sizes
                offset = _first_byte(checkpoint, key, info, (height, width), stored.properties.dtype)
                shards.append(_Shard(checkpoint / info.relative_path, offset, row, column, height, width))
            if sum(s.rows * s.columns for s in shards) != rows * dim:
                raise ValueError(f"{checkpoint}: the shards of {key!r} do not make up a table of {rows} x {dim}")
            self._tables[match["table"]] = _Stored(rows, dim, stored.properties.dtype, tuple(shards))

    @property
    def names(self) -> list[str]:
        return sorted(self._tables)

    def shape(self, name: str) -> tuple[int, int]:
        """Rows and columns of a table.

        Raises:
            ValueError: no such table; lists those that there are.
        """
        stored = self._stored(name)
        return min(stored.rows, self.used.get(name, stored.rows)), stored.dim

    def blocks(self, name: str, block_rows: int) -> Iterator[Tensor]:
        """A table from first row to last in blocks of ``block_rows`` rows (the last may have fewer), float32 [n, dim].

        The blocks share one buffer: a block is valid until the next is asked for.

        Raises:
            ValueError: no such table, or a file that ends too early.
        """
        stored = self._stored(name)
        rows = self.shape(name)[0]
        buffer = torch.empty(min(block_rows, rows), stored.dim, dtype=stored.dtype)
        with ExitStack() as stack:
            files = {f: stack.enter_context(open(f, "rb", buffering=0)) for f in {s.file for s in stored.shards}}
            for start in range(0, rows, block_rows):
                block = buffer[: min(block_rows, rows - start)]
                for shard in stored.shards:
                    _read_rows(files[shard.file], shard, start, block)
                yield block.float()

    def _stored(self, name: str) -> _Stored:
        if name not in self._tables:
            raise ValueError(f"there is no table {name!r} in {self.checkpoint}; it has {', '.join(self.names)}")
        return self._tables[name]


class _Part(io.RawIOBase):
    """``length`` bytes of a file from ``offset`` on, as a file."""

    def __init__(self, file: io.BufferedReader, offset: int, length: int) -> None:
        self.file, self.offset, self.length, self.at = file, offset, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.length}[whence]
        return self.at

    def readinto(self, buffer: Any) -> int:
        self.file.seek(self.offset + self.at)
        wanted = memoryview(buffer)[: max(0, min(len(buffer), self.length - self.at))]
        done = self.file.readinto(wanted)
        self.at += done
        return done


def _first_byte(checkpoint: Path, key: str, info: Any, size: tuple[int, int], dtype: torch.dtype) -> int:
    """Where a shard's numbers begin in its file, after checks that they lie there plain, in rows, in full."""
    file = checkpoint / info.relative_path
    if info.transform_descriptors:
        raise ValueError(f"{file}: {key!r} is stored through {info.transform_descriptors}; expected plain torch.save")
    if sys.byteorder != "little":
        raise ValueError("tables can be read in blocks on little-endian machines only")
    try:
        with open(file, "rb") as f:
            part = cast(io.BytesIO, _Part(f, info.offset, info.length))
            tensor: Tensor = torch.load(part, map_location="meta", weights_only=True)  # meta: the numbers stay there
            with zipfile.ZipFile(part) as archive:
                (data,) = (record for record in archive.infolist() if "/data/" in record.filename)
            if data.compress_type != zipfile.ZIP_STORED or data.file_size != tensor.untyped_storage().nbytes():
                raise ValueError(f"{data.filename} has {data.file_size} bytes, compressed by {data.compress_type}")
            part.seek(data.header_offset + 26)  # of a local header of 30 bytes, a name and padding: their lengths
            inside = data.header_offset + 30 + sum(struct.unpack("<HH", part.read(4)))
    except Exception as error:
        raise ValueError(f"{file}: {key!r} can't be read ({error}); the checkpoint is damaged") from error
    if tuple(tensor.shape) != size or tensor.dtype != dtype or not tensor.is_contiguous():
        raise ValueError(
            f"{file}: {key!r} is stored as {tensor.dtype} {tuple(tensor.shape)} with strides {tensor.stride()}; "
            f"expected {dtype} {size}, row after row"
        )
    return int(info.offset) + inside + int(tensor.storage_offset()) * tensor.element_size()


def _read_rows(file: io.FileIO, shard: _Shard, start: int, block: Tensor) -> None:
    """Fill the part of ``block`` (rows ``start`` on of the table) that lies in this shard."""
    first, last = max(start, shard.row), min(start + block.shape[0], shard.row + shard.rows)
    if first >= last:
        return
    target = block[first - start : last - start, shard.column : shard.column + shard.columns]
    rows = target if target.is_contiguous() else torch.empty(target.shape, dtype=target.dtype)
    memory = rows.view(-1).view(torch.uint8).numpy().data
    file.seek(shard.offset + (first - shard.row) * shard.columns * block.element_size())
    done = 0
    while done < len(memory):
        read = file.readinto(memory[done:])
        if not read:
            raise ValueError(f"{shard.file} ends before row {last} of its table; the checkpoint is damaged")
        done += read
    if rows is not target:
        target.copy_(rows)
