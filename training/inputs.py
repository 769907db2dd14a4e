"""What a run reads besides samples: the description of its tables, and the catalog with semantic IDs joined to it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ..data.batches.catalog import Catalog, with_columns
from ..data.batches.features import CLUSTER, USER_CLUSTER, FeatureConfig, Features, build_features
from ..data.batches.semantic_features import SemanticFeatures
from ..data.manifest import MANIFEST, read_manifest
from ..rankers.dense import RankerConfig


@dataclass(frozen=True)
class Inputs:
    """Made by ``read_inputs``.

    Attributes:
        folder: the prepared folder.
        features: the resolved description of tables.
        items, users: the catalog; items with a column for each table made of semantic IDs.
        manifest: of the prepared folder.
        lineage: hashes of the semantic IDs, the newest last; empty without.
    """

    folder: Path
    features: Features
    items: pa.Table
    users: pa.Table
    manifest: dict[str, Any]
    lineage: tuple[str, ...]

    @property
    def semantic_ids(self) -> str | None:
        """Hash of the semantic IDs that a run which starts now is trained with."""
        return self.lineage[-1] if self.lineage else None

    def catalog(self, device: torch.device) -> Catalog:
        return Catalog(self.items, self.users, self.features, device)

    def check_semantic_ids(self, trained_with: str | None, where: str) -> None:
        """Raises ValueError if a checkpoint was trained with semantic IDs that these are not, and don't go back to."""
        if trained_with != self.semantic_ids and trained_with not in self.lineage:
            short = lambda value: (value or "none")[:12]  # noqa: E731
            raise ValueError(
                f"{where} was trained with semantic IDs {short(trained_with)}, features.semantic_ids has "
                f"{short(self.semantic_ids)}; expected the same folder, or one that placerank tokenize --add made "
                "of it. Codes of another tokenizer mean other things: use the folder of then, or train anew"
            )


def read_inputs(data: Path, features: FeatureConfig, ranker: RankerConfig) -> Inputs:
    """Read a prepared folder and, where the config names them, semantic IDs.

    Raises:
        FileNotFoundError, ValueError: folders that are not what they should be, or don't fit each other or the config.
    """
    manifest = read_manifest(data, "prepared")
    if lost := sorted(set(manifest["user_columns"]) - set(manifest["tables"])):
        raise ValueError(f"{data / MANIFEST}: no table of the user column {lost[0]!r}; make the folder again")
    items, users = (pq.read_table(data / name) for name in ("catalog.parquet", "users.parquet"))
    rows: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    lineage: tuple[str, ...] = ()
    if features.semantic_ids is not None:
        semantic = SemanticFeatures.load(features.semantic_ids, items["item_id"])
        lineage = semantic.lineage
        tables = semantic.tables(features.ngram_rows)
        if ranker.akt.enabled:
            tables[CLUSTER] = semantic.prefix_table(ranker.akt.prefix, ranker.akt.cluster_rows)
        rows = {name: values for name, (values, _) in tables.items()}
        sizes = {name: size for name, (_, size) in tables.items()}
        if ranker.akt.enabled and ranker.akt.users:
            sizes[USER_CLUSTER] = sizes[CLUSTER]
    resolved = build_features(
        features,
        manifest["tables"],
        manifest["user_columns"],
        ranker.uses_context,
        ranker.uses_traits,
        sizes,
        adaptive=ranker.rest.enabled and ranker.rest.density_adaptive,
    )
    if ranker.rest.enabled and ranker.rest.contrast and not items["lat"].is_valid().to_numpy().any():
        raise ValueError(f"{data}: rest contrasts items by where they are, and none has coordinates; leave rest out")
    return Inputs(data, resolved, with_columns(items, rows), users, manifest, lineage)
