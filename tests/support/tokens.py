"""Folders of semantic IDs drawn at random."""

from pathlib import Path

import numpy as np

from placerank.data.manifest import write_manifest
from placerank.tokenization.codes.semantic_ids import KINDS, SemanticIds

K, LEVELS = 4, 3


def write_tokens(folder: Path, ids: SemanticIds, lookup: str = "codes") -> Path:
    folder.mkdir()
    ids.write(folder / "semantic_ids.parquet")
    about = {f"{ids.of}s": len(ids), "levels": LEVELS, "codes": ids.codes_per_level, "lookup": lookup}
    write_manifest(folder, KINDS[ids.of], {}, **about, lineage=list(ids.lineage))
    return folder


def make_codes(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, K, (count, LEVELS))
