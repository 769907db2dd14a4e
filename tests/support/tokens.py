"""Folders of semantic IDs drawn at random."""

from pathlib import Path

import numpy as np

from placerank.data.manifest import write_manifest
from placerank.tokenization.codes.semantic_ids import SemanticIds

K, LEVELS = 4, 3


def write_tokens(folder: Path, ids: SemanticIds, lookup: str = "codes") -> Path:
    folder.mkdir()
    ids.write(folder / "semantic_ids.parquet")
    write_manifest(
        folder, "tokens", {}, items=len(ids), levels=LEVELS, codes=K, lookup=lookup, lineage=list(ids.lineage)
    )
    return folder


def make_codes(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, K, (count, LEVELS))
