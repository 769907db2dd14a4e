"""Semantic IDs as ranking features: for every item of a catalog, rows of tables a level and of prefix n-grams.

I catalog rows (row 0 stands for unknown items), L levels, K codes a level. A semantic ID is (s1, ..., sL), coarse to
fine. A ranker sees it in two ways:

* a table a level: row 1 + s_l, of K + 1 rows;
* prefix n-grams, the lookup of "RQ-VAE n-gram" in LGSID's table 1 (Zheng et al. 2025): (s1), (s1, s2), (s1, s2, s3),
  each in a table of its own. Where all K^n prefixes fit the table each has its own row, else they are hashed.

A cluster of AKT-Rec is a prefix too, of items and, where they have IDs of their own, of users. Rows follow from the
codes alone, so items that are added later (``placerank tokenize --add``) change nobody's row. Row 0 is that of items
without an ID. The paper gives neither table sizes nor the hash: both are ours.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..arrays import hash_ids
from ..manifest import read_manifest
from ..urls import fetched
from .features import LEVEL, NGRAM

log = logging.getLogger(__name__)
_FILE = "semantic_ids.parquet"  # as placerank tokenize writes it
_KINDS = {"item": "tokens", "user": "user_tokens"}
NGRAMS = 3
"""Longest prefix with a table of its own."""
_LEAST_SHARED = 0.5  # of either side's items; below, the IDs are of another dataset


@dataclass(frozen=True)
class SemanticFeatures:
    """The semantic IDs of a catalog's items, or of its users.

    Attributes:
        codes: int64 [I, L]; -1 from the first level on that an item has no code for, whole rows for items without ID.
        codes_per_level: K.
        lineage: hash after each time that items were added, the newest last. A ranker that was trained with any of
            these hashes may use the IDs.
        lookup: what the tokenizer was made for: "codes" (a table a level) or "prefix_ngrams".
    """

    codes: NDArray[np.int64]
    codes_per_level: int
    lineage: tuple[str, ...]
    lookup: str

    @classmethod
    def load(
        cls, tokens: Path, ids: pa.Array | pa.ChunkedArray, *, suffix: bool = False, of: str = "item"
    ) -> "SemanticFeatures":
        """The IDs of a folder that ``placerank tokenize`` made, in the order of a catalog.

        Args:
            tokens: the folder.
            ids: raw ids by row of the catalog, or of the users, [I]; null in row 0.
            suffix: the suffix, which tells items of one ID apart, as one more level at the end. If it needs more than K
                codes, the next power of two is K for all levels, so that there is room for items that are added.
            of: whose IDs these are: "item" or "user".

        Raises:
            FileNotFoundError: no finished folder of tokens.
            ValueError: another kind of folder, a damaged one, or one of other items.
        """
        here = fetched(tokens)
        manifest = read_manifest(here, _KINDS[of], verify=True)
        table, told = pq.read_table(here / _FILE), manifest[f"{of}s"]
        known, levels, width = table[f"{of}_id"], manifest["levels"], table.schema.field("codes").type.list_size
        if (len(table), width) != (told, levels):
            raise ValueError(
                f"{tokens / _FILE}: got {len(table):,} IDs of {width} levels, the manifest says "
                f"{told:,} of {levels}; make the folder again"
            )
        if known.type != ids.type:
            raise ValueError(
                f"{tokens} has semantic IDs of {of}s with {known.type} ids, the data's are {ids.type}: expected "
                f"those of the same {of}s; tokenize the data that the ranker is trained on"
            )
        rows = pc.index_in(ids, value_set=known, skip_nulls=True)
        at = rows.fill_null(-1).to_numpy(zero_copy_only=False)
        found, wanted = int((at >= 0).sum()), len(ids) - ids.null_count
        # of users only those have an ID who visited something, which may be few
        if found < _LEAST_SHARED * (max(wanted, len(known)) if of == "item" else len(known)):
            raise ValueError(
                f"{tokens} has {len(known):,} semantic IDs, the data has {wanted:,} {of}s, and they share {found:,}: "
                f"expected IDs of the same {of}s; tokenize the data that the ranker is trained on"
            )
        if found < wanted:
            log.warning(f"{wanted - found:,} of {wanted:,} {of}s have no semantic ID: they share row 0 of its tables")
        flat = pa.concat_arrays([chunk.flatten() for chunk in table["codes"].chunks])
        of_tokens = flat.to_numpy().astype(np.int64).reshape(-1, levels)
        if of_tokens.max(initial=-1) >= manifest["codes"]:
            raise ValueError(
                f"{tokens / _FILE}: got code {of_tokens.max()}, expected codes below {manifest['codes']} as the "
                "manifest says; make the folder again"
            )
        per_level = manifest["codes"]
        if suffix:
            of_tokens = np.column_stack([of_tokens, table["suffix"].to_numpy().astype(np.int64)])
            largest = int(of_tokens[:, -1].max(initial=0))
            per_level = per_level if largest < per_level else 1 << largest.bit_length()
        codes = np.where(at[:, None] >= 0, of_tokens[at], -1)
        codes = np.where(np.logical_or.accumulate(codes < 0, axis=1), -1, codes)  # nothing below a level without code
        return cls(codes, per_level, tuple(manifest["lineage"]), manifest["lookup"])

    @classmethod
    def of_no_items(cls, tokens: Path, of: str = "item") -> "SemanticFeatures":
        """What the manifest of a folder of tokens tells: which tables there are, and their sizes, without any ID.

        Raises:
            FileNotFoundError, ValueError: no finished folder of tokens, or a damaged manifest.
        """
        manifest = read_manifest(tokens, _KINDS[of])
        none = np.empty((0, manifest["levels"]), np.int64)
        return cls(none, manifest["codes"], tuple(manifest["lineage"]), manifest["lookup"])

    @property
    def levels(self) -> int:
        """L."""
        return self.codes.shape[1]

    @property
    def hash(self) -> str:
        """What a ranker keeps of the IDs that it is trained with: ``semantic_ids_hash``."""
        return self.lineage[-1]

    def level_table(self, level: int) -> tuple[Tensor, int]:
        """Rows of level 1 to L: int64 [I], and how many rows the table has, K + 1."""
        self._check(level)
        return torch.from_numpy(self.codes[:, level - 1] + 1), self.codes_per_level + 1

    def prefix_table(self, length: int, most: int) -> tuple[Tensor, int]:
        """Rows of the prefixes (s1, ..., s_length): int64 [I], and how many rows the table has.

        Args:
            length: 1 to L.
            most: rows of the table, at most, row 0 besides. If all K^length prefixes fit, each has its own.

        Raises:
            ValueError: a length or a size that can't be.
        """
        self._check(length)
        if most < 1:
            raise ValueError(f"prefix tables: got at most {most} rows, expected at least 1")
        codes, exact = self.codes[:, :length], self.codes_per_level**length <= most
        known = codes[:, -1] >= 0
        prefix = np.zeros(len(codes), np.int64)
        for column in codes[known].T:
            if exact:
                prefix[known] = prefix[known] * self.codes_per_level + column
            else:  # hashed level by level: K^length may not fit 64 bits
                prefix[known] = hash_ids(pa.array(prefix[known] ^ (column + 1))).view(np.int64)
        size = self.codes_per_level**length if exact else most
        rows = np.where(known, 1 + (prefix.view(np.uint64) % np.uint64(size)).astype(np.int64), 0)
        return torch.from_numpy(rows), size + 1

    def ngrams(self, ngram_rows: int, shortest: int = 1) -> dict[str, tuple[Tensor, int]]:
        """Rows int64 [I] of the first three prefixes, and their tables' sizes, by name.

        Args:
            ngram_rows: rows of a table, at most.
            shortest: codes of the shortest one.
        """
        lengths = range(shortest, min(self.levels, NGRAMS) + 1)
        return {f"{NGRAM}{n}": self.prefix_table(n, ngram_rows) for n in lengths}

    def tables(self, ngram_rows: int) -> dict[str, tuple[Tensor, int]]:
        """The tables that a ranker gets from the IDs, as the tokenizer means them to be looked up.

        Args:
            ngram_rows: rows of a table of n-grams, at most.

        Returns:
            By name, rows int64 [I] and the table's size: a table a level, or one for each of the first three prefixes.
        """
        if self.lookup == "prefix_ngrams":
            return self.ngrams(ngram_rows)
        return {f"{LEVEL}{level}": self.level_table(level) for level in range(1, self.levels + 1)}

    def _check(self, level: int) -> None:
        if not 1 <= level <= self.levels:
            raise ValueError(f"semantic IDs have levels 1 to {self.levels}, got {level}")
