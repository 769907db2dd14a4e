"""Semantic IDs on disk: ``semantic_ids.parquet``, a row an item in the order of arrival, and the hash that names them.

    item_id    integer or string; user_id where the IDs are of users
    codes      fixed_size_list<int32>[L], coarse to fine, each in [0, K)
    suffix     int32, 0 for the first item with these codes, then 1, 2, ...

**The hash.** A ranker must refuse IDs that it was not trained with, and must go on working when items were added. So
the table has a hash for each time that it grew, like commits: the first is of the codebooks and the first items' rows,
each later one of the hash before it and the rows that were added. The last is ``semantic_ids_hash``, all are the
``lineage``. A ranker keeps the hash it was trained with and takes every table whose lineage has it: nobody's ID has
changed since.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...data.manifest import read_manifest
from ...data.urls import fetched
from .collisions import assign_suffixes

FILE = "semantic_ids.parquet"
KINDS = {"item": "tokens", "user": "user_tokens"}
"""Kind of the folder by whose IDs it holds: those of users are refused where items' are expected, and the reverse."""
_BLOCK = 65_536  # ids made Python text at a time


@dataclass(frozen=True)
class SemanticIds:
    """The IDs of N items, or users.

    Attributes:
        ids: raw ids [N], integers or strings, in the order of arrival.
        codes: int32 [N, L].
        suffixes: int64 [N].
        codes_per_level: K.
        lineage: hash after each time that items arrived, the newest last.
    """

    ids: pa.Array
    codes: NDArray[np.int32]
    suffixes: NDArray[np.int64]
    codes_per_level: int
    lineage: tuple[str, ...]
    of: str = "item"

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def hash(self) -> str:
        """``semantic_ids_hash``."""
        return self.lineage[-1]

    @property
    def suffix_count(self) -> int:
        """How many different suffixes there are: the size of the last token's vocabulary."""
        return int(self.suffixes.max(initial=0)) + 1

    @classmethod
    def first(
        cls, ids: pa.Array, codes: NDArray[np.integer], codes_per_level: int, tokenizer_hash: str, of: str = "item"
    ) -> "SemanticIds":
        """The first items (or users) that a tokenizer was given. ``tokenizer_hash``: content hash of its folder."""
        none = cls(ids[:0], np.zeros((0, codes.shape[1]), np.int32), np.zeros(0, np.int64), codes_per_level, (), of)
        return none._with(ids, codes, tokenizer_hash)

    def added(self, ids: pa.Array, codes: NDArray[np.integer]) -> "SemanticIds":
        """These IDs and those of new items after them; nobody's ID changes.

        Raises:
            ValueError: an item that is there already, another type of ids or number of levels.
        """
        if not len(ids):
            return self
        if ids.type != self.ids.type:
            raise ValueError(f"new {self.of}s: got ids of type {ids.type}, expected {self.ids.type} as before")
        both = pa.concat_arrays([self.ids, ids])
        if len(both.unique()) != len(both):
            raise ValueError(
                f"new {self.of}s: some have an ID already, or come twice; expected {self.of}s that are not there yet"
            )
        return self._with(ids, codes, self.hash)

    def _with(self, ids: pa.Array, codes: NDArray[np.integer], parent: str) -> "SemanticIds":
        suffixes = assign_suffixes(codes, self.codes, self.suffixes)
        narrow = codes.astype(np.int32, copy=False)
        some = len(self) > 0  # the first items are not copied
        return replace(
            self,
            ids=pa.concat_arrays([self.ids, ids]) if some else ids,
            codes=np.concatenate([self.codes, narrow]) if some else narrow,
            suffixes=np.concatenate([self.suffixes, suffixes]) if some else suffixes,
            lineage=(*self.lineage, _rows_hash(parent, ids, narrow, suffixes)),
        )

    def write(self, file: Path) -> None:
        """Write the table; lineage and K are the manifest's."""
        levels = self.codes.shape[1]
        kind = pa.list_(pa.field("element", pa.int32(), nullable=False), levels)
        codes = pa.FixedSizeListArray.from_arrays(pa.array(self.codes.reshape(-1)), type=kind)
        table = pa.table(
            {f"{self.of}_id": self.ids, "codes": codes, "suffix": pa.array(self.suffixes.astype(np.int32))}
        )
        pq.write_table(table, file, compression="zstd")

    @classmethod
    def read(cls, folder: Path, of: str = "item") -> "SemanticIds":
        """The IDs of a folder that ``placerank tokenize`` made.

        Args:
            of: whose IDs are expected there.

        Raises:
            FileNotFoundError, ValueError: no whole folder of tokens, or a damaged file.
        """
        folder = fetched(folder)
        manifest = read_manifest(folder, KINDS[of], verify=True)
        table = pq.read_table(folder / FILE).combine_chunks()
        flat = table["codes"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return cls(
            ids=_one(table[f"{of}_id"]),
            codes=flat.astype(np.int32).reshape(-1, manifest["levels"]),
            suffixes=table["suffix"].to_numpy().astype(np.int64),
            codes_per_level=manifest["codes"],
            lineage=tuple(manifest["lineage"]),
            of=of,
        )


def _one(column: pa.ChunkedArray) -> pa.Array:
    found = column.combine_chunks()
    return pa.concat_arrays(found.chunks) if isinstance(found, pa.ChunkedArray) else found


def _rows_hash(parent: str, ids: pa.Array, codes: NDArray[np.int32], suffixes: NDArray[np.int64]) -> str:
    """SHA-256 of the parent, the number and size of rows, and the rows; the same on every platform."""
    digest = hashlib.sha256(f"{parent}\0{codes.shape[0]}\0{codes.shape[1]}\0{ids.type}\0".encode())
    if pa.types.is_integer(ids.type):
        digest.update(np.ascontiguousarray(ids.to_numpy(), "<i8").data)
    else:  # lengths first: "a", "bc" are not "ab", "c"
        blocks = [ids.slice(start, _BLOCK) for start in range(0, len(ids), _BLOCK)]
        for block in blocks:
            digest.update(pc.binary_length(block).to_numpy().astype("<i8").tobytes())
        for block in blocks:
            digest.update("".join(block.to_pylist()).encode())
    digest.update(np.ascontiguousarray(codes, "<i4").data)
    digest.update(np.ascontiguousarray(suffixes, "<i8").data)
    return digest.hexdigest()


def check_trained_with(folder: Path, trained_with: str) -> SemanticIds:
    """The IDs of a folder, if a ranker that was trained with the hash ``trained_with`` may use them.

    Raises:
        ValueError: other IDs.
    """
    ids = SemanticIds.read(folder)
    if trained_with not in ids.lineage:
        raise ValueError(
            f"{folder} has semantic IDs {ids.hash[:12]}, which do not come from {trained_with[:12]}, those that the "
            "ranker was trained with: expected the same, or with items added by placerank tokenize --add; give those, "
            "or train anew"
        )
    return ids
