"""Embeddings on disk: Parquet shards in the order of the items table, written one by one, read in blocks.

A store is a folder with ``store.json`` (whose vectors these are, how many rows and dimensions, rows a shard, what made
them) and the shards ``part-00000.parquet`` and on, each with the columns ``item_id`` (of users' vectors: ``user_id``)
and ``embedding`` (fixed_size_list<float>[D]). A shard appears when it is whole and covers rows that follow from its
number alone, so an encoder that is killed writes the missing ones when it starts again, and several ranks write one
store without speaking to each other.

Every page has a checksum (Parquet's own CRC32), which every read verifies, for half a second a gigabyte; what the
shard's footer says is compared with ``store.json``. A damaged file is an error that names it, never other numbers.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...data.leftovers import remove_leftovers
from ...data.manifest import whole_file, write_json
from ...data.plain import read_json
from ...data.urls import fetched, place

INFO = "store.json"
ITEM, USER, PROMPT = "item", "user", "prompt"  # whose vectors a store holds
_INFO = {
    "of": Literal["item", "user", "prompt"],
    "ids": str,
    **dict.fromkeys(("rows", "dim", "shard_rows"), Annotated[int, 1]),
    "made_from": dict[str, Any],
}
_MOST_TEXT = 2**31 - 1  # bytes of ids
_GROUP_BYTES = 8 << 20  # of a Parquet row group: what reading holds besides the block it makes
_GROUP_ROWS = 2048  # random rows of a shuffled reader cost one row group each: not larger


class EmbeddingWriter:
    """Writes the shards of a store; several writers (ranks, restarts) may share a folder.

    Args:
        folder: where the store is or will be.
        ids: item ids in row order, [N]; integers or strings.
        dim: numbers an embedding, D.
        shard_rows: rows a shard; the last one may have fewer.
        made_from: JSON-ready; a store that was started with other values is refused.
        of: whose vectors these are, "item", "user" or "prompt".

    Raises:
        ValueError: no ids, or the folder holds shards of another store, or a damaged ``store.json``.
    """

    def __init__(
        self,
        folder: Path,
        ids: pa.Array | pa.ChunkedArray,
        dim: int,
        shard_rows: int = 65_536,
        made_from: dict[str, Any] | None = None,
        of: str = ITEM,
    ) -> None:
        if len(ids) == 0:
            raise ValueError(f"{folder}: got no item ids, expected at least one")
        if dim < 1 or shard_rows < 1:
            raise ValueError(f"{folder}: got dim={dim} and shard_rows={shard_rows}, expected at least 1 of each")
        self.folder, self.dim = place(folder), dim
        self.ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
        self.shard_rows, self.of = shard_rows, of
        facts = {"of": of, "ids": str(self.ids.type), "rows": len(ids), "dim": dim, "shard_rows": shard_rows}
        # Through JSON and back, so that it compares equal to what is read from the file.
        info = json.loads(json.dumps({**facts, "made_from": made_from or {}}))
        path = self.folder / INFO
        if path.is_file():
            old = read_json(path, _INFO, "choose another folder, or remove this one")
            differs = sorted(name for name in info if info[name] != old.get(name))
            if differs:
                told = "; ".join(f"{name}: {old.get(name)!r}, now {info[name]!r}" for name in differs)
                raise ValueError(f"{self.folder} was started with other settings ({told}); choose another folder")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, info)
        remove_leftovers(self.folder)

    @property
    def shards(self) -> int:
        """How many shards the store has when it is whole."""
        return -(-len(self.ids) // self.shard_rows)

    def rows_of(self, shard: int) -> slice:
        """The rows that a shard holds."""
        return slice(shard * self.shard_rows, min(len(self.ids), (shard + 1) * self.shard_rows))

    def missing(self) -> list[int]:
        """Shards that nobody has written yet."""
        return [shard for shard in range(self.shards) if not _part(self.folder, shard).is_file()]

    def write(self, shard: int, embeddings: Tensor) -> None:
        """Write one shard: embeddings [rows of the shard, D] of any float type; stored as float32.

        Raises:
            ValueError: another shape, or a number that is not finite.
        """
        rows = self.rows_of(shard)
        want = (rows.stop - rows.start, self.dim)
        if tuple(embeddings.shape) != want:
            raise ValueError(f"shard {shard}: got embeddings {tuple(embeddings.shape)}, expected {want}")
        values = embeddings.detach().to("cpu", torch.float32).contiguous()
        bad = (~values.isfinite()).any(1).nonzero().flatten()
        if len(bad):
            first = self.ids[rows.start + int(bad[0])].as_py()
            raise ValueError(
                f"shard {shard}: {len(bad)} of {len(values)} embeddings hold NaN or infinity, the first is of item "
                f"{first!r}; check the encoder, or encode in fp32"
            )
        flat = pa.array(values.numpy().reshape(-1))
        field = pa.field("embedding", pa.list_(pa.field("element", pa.float32(), nullable=False), self.dim), False)
        column = pa.FixedSizeListArray.from_arrays(flat, type=field.type)
        schema = pa.schema([pa.field(f"{self.of}_id", self.ids.type), field])
        table = pa.Table.from_arrays([self.ids[rows], column], schema=schema)
        group = max(1, min(_GROUP_ROWS, _GROUP_BYTES // (4 * self.dim)))
        with whole_file(_part(self.folder, shard)) as tmp:
            pq.write_table(
                table, tmp, row_group_size=group, compression="none", use_dictionary=False, write_page_checksum=True
            )


def write_embeddings(folder: Path, ids: pa.Array | pa.ChunkedArray, embeddings: Tensor) -> "EmbeddingStore":
    """A store from a tensor [N, D] and ids [N], for embeddings made elsewhere."""
    if embeddings.dim() != 2 or len(embeddings) != len(ids):
        raise ValueError(f"got {len(ids)} ids and embeddings {tuple(embeddings.shape)}, expected [{len(ids)}, D]")
    writer = EmbeddingWriter(folder, ids, embeddings.shape[1])
    for shard in range(writer.shards):
        writer.write(shard, embeddings[writer.rows_of(shard)])
    return EmbeddingStore.open(folder)


class EmbeddingStore:
    """Embeddings [N, D] on disk. ``open`` reads no embedding; ``chunks`` and ``rows`` hold a block at a time.

    Whatever reads a shard raises a ValueError that names the file if it is damaged.
    """

    def __init__(self, folder: Path, info: dict[str, Any]) -> None:
        self.folder = folder
        self.of: str = info["of"]
        self._id_type: str = info["ids"]
        self.dim: int = info["dim"]
        self.made_from: dict[str, Any] = info["made_from"]
        self._rows: int = info["rows"]
        self._shard_rows: int = info["shard_rows"]

    @classmethod
    def open(cls, folder: Path, *of: str) -> "EmbeddingStore":
        """The store in a folder, or in the folder ``embeddings/`` of an align run.

        Args:
            of: whose vectors are expected there, "item", "user" or "prompt", or one of several; default: items'.

        Raises:
            FileNotFoundError: no store there.
            ValueError: vectors of something else, a damaged ``store.json``, or shards that are not there (yet).
        """
        folder = fetched(place(folder))
        if not (folder / INFO).is_file() and (folder / "embeddings" / INFO).is_file():
            folder = folder / "embeddings"
        if not (folder / INFO).is_file():
            raise FileNotFoundError(
                f"{folder / INFO} not found: expected embeddings that placerank align or write_embeddings wrote"
            )
        store = cls(folder, read_json(folder / INFO, _INFO, "copy it again, or make the embeddings again"))
        wanted = of or (ITEM,)
        if store.of not in wanted:
            of_those = " or ".join(f"{x}s" for x in wanted)
            raise ValueError(f"{folder} holds vectors of {store.of}s, expected those of {of_those}; check the path")
        shards = store._files()
        missing = [path for path in shards if not path.is_file()]
        if missing:
            raise ValueError(
                f"{folder}: {len(missing)} of {len(shards)} shards are missing, the first is {missing[0].name}; if the "
                "encoding has not finished, start it again with --resume, else copy or make the folder again"
            )
        return store

    def __len__(self) -> int:
        return self._rows

    @cached_property
    def ids(self) -> pa.Array:
        """Ids of the items (or users) in row order, [N], held from then on.

        Raises:
            ValueError: text of more than 2 GiB, the most that an Arrow array of strings holds.
        """
        parts = list(self.id_blocks())
        size = sum(pc.sum(pc.binary_length(part)).as_py() or 0 for part in parts) if self._id_type == "string" else 0
        if size > _MOST_TEXT:
            raise ValueError(
                f"{self.folder}: the ids of {self._rows:,} {self.of}s are {size:,} bytes of text, expected at most "
                f"{_MOST_TEXT:,}; number them, with integers"
            )
        return pa.concat_arrays(parts)

    def id_blocks(self) -> Iterator[pa.Array]:
        """The same, a row group at a time."""
        for shard in range(len(self._files())):
            with self._shard(shard) as file:
                for group in range(file.num_row_groups):
                    yield self._column(file, group, self._ids)

    def chunks(self, rows: int) -> Iterator[Tensor]:
        """Blocks float32 [rows, D] in row order; the last one may be shorter. Each is a new tensor."""
        if rows < 1:
            raise ValueError(f"chunks: got rows={rows}, expected at least 1")
        block, filled, done = np.empty((min(rows, self._rows), self.dim), np.float32), 0, 0
        for shard in range(len(self._files())):
            with self._shard(shard) as file:
                for group in range(file.metadata.num_row_groups):
                    values = self._group(file, group)
                    while len(values):
                        take = min(len(values), len(block) - filled)
                        block[filled : filled + take] = values[:take]
                        values, filled, done = values[take:], filled + take, done + take
                        if filled == len(block):
                            yield torch.from_numpy(block)
                            block, filled = np.empty((min(rows, self._rows - done), self.dim), np.float32), 0

    def rows(self, indices: Tensor | NDArray[np.int64]) -> Tensor:
        """Some rows, in the order asked for, float32 [n, D]; an index may repeat.

        Reads each row group that holds one of them once: near rows are cheap, scattered ones cost a group each.

        Raises:
            IndexError: an index outside of [0, N).
        """
        wanted = np.asarray(indices, np.int64).reshape(-1)
        out = np.empty((len(wanted), self.dim), np.float32)
        if len(wanted) == 0:
            return torch.from_numpy(out)
        if wanted.min() < 0 or wanted.max() >= self._rows:
            raise IndexError(f"got rows {wanted.min()} to {wanted.max()}, expected 0 to {self._rows - 1}")
        order = np.argsort(wanted, kind="stable")
        ordered = wanted[order]
        for shard in np.unique(ordered // self._shard_rows):
            start = int(shard) * self._shard_rows
            with self._shard(int(shard)) as file:
                for group in range(file.metadata.num_row_groups):
                    stop = start + file.metadata.row_group(group).num_rows
                    first, last = np.searchsorted(ordered, [start, stop])
                    if first < last:
                        out[order[first:last]] = self._group(file, group)[ordered[first:last] - start]
                    start = stop
        return torch.from_numpy(out)

    def tensor(self) -> Tensor:
        """All of it, float32 [N, D]: for stores that fit in memory."""
        return next(self.chunks(self._rows))

    def _files(self) -> list[Path]:
        return [_part(self.folder, shard) for shard in range(-(-self._rows // self._shard_rows))]

    @property
    def _ids(self) -> str:
        return f"{self.of}_id"

    @contextmanager
    def _shard(self, shard: int) -> Iterator[pq.ParquetFile]:
        """A shard, open, with the rows and columns that it is to have; each page that is read is checked."""
        path = _part(self.folder, shard)
        rows = min(self._shard_rows, self._rows - shard * self._shard_rows)
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                schema, groups = file.schema_arrow, range(file.num_row_groups)
                column = schema.field("embedding").type
                if (
                    sum(file.metadata.row_group(group).num_rows for group in groups) != rows
                    or not (pa.types.is_fixed_size_list(column) and column.value_type == pa.float32())
                    or column.list_size != self.dim
                    or str(schema.field(self._ids).type) != self._id_type
                ):
                    raise ValueError(f"got {file.metadata.num_rows} rows of {schema.names}, {schema.types}")
                yield file
        except (pa.ArrowException, OSError, LookupError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path} cannot be read whole ({' '.join(str(error).split())}): it is damaged or not all there; copy "
                "it again, or make the embeddings again"
            ) from error

    def _group(self, file: pq.ParquetFile, group: int) -> NDArray[np.float32]:
        column = self._column(file, group, "embedding")
        values: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dim)
        return values

    def _column(self, file: pq.ParquetFile, group: int, name: str) -> pa.Array:
        column = file.read_row_group(group, columns=[name])[name].combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        if len(column) != file.metadata.row_group(group).num_rows:
            raise ValueError(f"got {len(column)} rows of {name}")
        return column


def embedding_chunks(source: Tensor | EmbeddingStore, rows: int) -> Iterator[Tensor]:
    """Blocks float32 [rows, D] in row order, of a tensor [N, D] or of a store."""
    return source.chunks(rows) if isinstance(source, EmbeddingStore) else (x.float() for x in source.split(rows))


def embedding_rows(source: Tensor | EmbeddingStore, indices: Tensor) -> Tensor:
    """Some rows [n, D], float32, of a tensor [N, D] or of a store."""
    return source.rows(indices) if isinstance(source, EmbeddingStore) else source[indices].float()


def _part(folder: Path, shard: int) -> Path:
    return folder / f"part-{shard:05d}.parquet"
