"""What a run reads besides samples: the description of its tables, and the catalog with semantic IDs joined to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from ..data import LABEL
from ..data.batches.catalog import Catalog
from ..data.batches.features import (
    CLUSTER,
    USER_CLUSTER,
    FeatureConfig,
    Features,
    build_features,
    generative_features,
)
from ..data.batches.item_columns import catalog_columns, columns_to_read, with_columns
from ..data.batches.semantic_features import SemanticFeatures
from ..data.batches.sharded_catalog import ShardedCatalog
from ..data.manifest import MANIFEST, read_manifest
from ..data.one_copy import one_copy
from ..data.raw.hours import OPENING_HOURS
from ..data.requests import CLUSTER_VISITS
from ..data.urls import fetched
from ..rankers.dense import RankerConfig
from ..rankers.generative.index import Index
from ..rankers.generative.model import PlaceFacts
from ..rankers.generative_ranker import GenerativeRanker
from ..rankers.objectives import ObjectivesConfig
from ..rankers.ranker import Ranker
from .predictions import Outcomes

_ITEMS = "catalog.parquet"


@dataclass(frozen=True)
class Inputs:
    """Made by ``read_inputs``. Holds no table: those are read where they are needed, and dropped.

    Attributes:
        folder: the prepared folder.
        features: the resolved description of tables.
        manifest: of the prepared folder.
        lineage: hashes of the semantic IDs, the newest last; empty without.
        user_lineage: of users' semantic IDs.
        tokens, user_tokens, ngram_rows, ranker: what tables of semantic IDs follow from, as configured.
    """

    folder: Path
    features: Features
    manifest: dict[str, Any]
    lineage: tuple[str, ...]
    user_lineage: tuple[str, ...]
    tokens: Path | None
    user_tokens: Path | None
    ngram_rows: int
    ranker: RankerConfig

    @property
    def semantic_ids(self) -> str | None:
        """Hash of the semantic IDs that a run which starts now is trained with."""
        return self.lineage[-1] if self.lineage else None

    @property
    def user_semantic_ids(self) -> str | None:
        """The same of users' semantic IDs."""
        return self.user_lineage[-1] if self.user_lineage else None

    @property
    def outcomes(self) -> Outcomes:
        """What the samples know of candidates, and which of it the ranker predicts."""
        known = _outcomes(self.manifest)
        return Outcomes(self.features.objectives, (LABEL, *known["labels"]), known["amount"])

    def read_items(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The prepared ``catalog.parquet`` with a column for each table made of semantic IDs.

        Args:
            columns: of the file; default: all.

        Raises:
            FileNotFoundError, ValueError: the semantic IDs are damaged, or of other items.
        """
        items = pq.read_table(fetched(self.folder / _ITEMS), columns=columns and [*columns])
        if self.tokens is None:
            return items
        tables = _tables(SemanticFeatures.load(self.tokens, self.item_ids()), self.ngram_rows, self.ranker)
        return with_columns(items, {name: rows for name, (rows, _) in tables.items()})

    def item_ids(self) -> pa.ChunkedArray:
        """Raw ids by catalog row."""
        return pq.read_table(fetched(self.folder / _ITEMS), columns=["item_id"])["item_id"]

    def read_users(self) -> pa.Table:
        """The prepared ``users.parquet``, with a column for the table of clusters where users have semantic IDs.

        Raises:
            FileNotFoundError, ValueError: the semantic IDs are damaged, or of other users.
        """
        users = pq.read_table(fetched(self.folder / "users.parquet"))
        if self.user_tokens is None:
            return users
        semantic, akt = SemanticFeatures.load(self.user_tokens, users["user_id"], of="user"), self.ranker.akt
        return with_columns(users, {USER_CLUSTER: semantic.prefix_table(akt.prefix, akt.cluster_rows)[0]})

    def catalog(self, device: torch.device, cut: bool = False) -> Catalog:
        """The catalog, of which each machine's host holds one copy. All ranks call it.

        Args:
            device: where items lie, all of them, or this rank's part.
            cut: over the ranks; else each rank's device has all.

        Raises:
            FileNotFoundError, ValueError: as ``read_items``, on every rank.
        """
        columns = one_copy(self._columns)
        if not cut:
            return Catalog(columns, self.features, device)
        # a group of its own, as batches are made while ranks exchange rows of tables
        return ShardedCatalog(columns, self.features, device, dist.new_group())

    def _columns(self) -> dict[str, torch.Tensor]:
        needed = columns_to_read(self.features, pq.read_schema(fetched(self.folder / _ITEMS)).names)
        return catalog_columns(self.read_items(needed), self.read_users(), self.features)

    def places(self, items: pa.Table | None = None) -> tuple[PlaceFacts, Index]:
        """What a generative ranker knows of items, and their index.

        Args:
            items: item_id, lat, lon and positives by row; default: the catalog.

        Raises:
            FileNotFoundError, ValueError: as ``read_items``.
        """
        assert self.tokens is not None
        if items is None:
            items = self.read_places()
        semantic = SemanticFeatures.load(self.tokens, items["item_id"], suffix=self.ranker.suffixed)
        return PlaceFacts.of(items, semantic), Index.of_tokens(semantic)

    def read_places(self) -> pa.Table:
        """The catalog as ``places`` takes it."""
        return pq.read_table(fetched(self.folder / _ITEMS), columns=["item_id", "lat", "lon", "positives"])

    def read_hours(self) -> pa.ChunkedArray:
        """Opening hours of the items, by catalog row.

        Raises:
            ValueError: the source of the data had none.
        """
        file = fetched(self.folder / _ITEMS)
        if OPENING_HOURS not in pq.read_schema(file).names:
            raise ValueError(
                f"{self.folder} has no opening hours of items; prepare data whose items have a column {OPENING_HOURS} "
                "(docs/data.md)"
            )
        return pq.read_table(file, columns=[OPENING_HOURS])[OPENING_HOURS]

    def make_ranker(self) -> Ranker | GenerativeRanker:
        """The ranker, its tables on the meta device.

        Raises:
            FileNotFoundError, ValueError: as ``read_items``.
        """
        if self.ranker.generates:
            return GenerativeRanker(self.features, self.ranker, *self.places())
        ranker = Ranker(self.features, self.ranker)
        if self.features.amount is not None:
            of = _outcomes(self.manifest)["train"]["amount"]
            assert ranker.dense.scorer.heads is not None
            ranker.dense.scorer.heads.unit.fill_(of["sum"] / of["rows"])
        return ranker

    def check_semantic_ids(self, saved: Mapping[str, Any], where: str) -> None:
        """Raises ValueError if a checkpoint, by its manifest, was trained with semantic IDs that these are not, and
        don't go back to."""
        lineages = {"semantic_ids": self.lineage, "user_semantic_ids": self.user_lineage}
        for name, lineage in lineages.items():
            then, now = saved.get(name), lineage[-1] if lineage else None
            if then != now and then not in lineage:
                short = lambda value: (value or "none")[:12]  # noqa: E731
                of = "semantic IDs" if name == "semantic_ids" else "users' semantic IDs"
                raise ValueError(
                    f"{where} was trained with {of} {short(then)}, features.{name} has {short(now)}; expected the same "
                    "folder, or one that placerank tokenize --add made of it. Codes of another tokenizer mean other "
                    "things: use the folder of then, or train anew"
                )


def read_inputs(data: Path, features: FeatureConfig, ranker: RankerConfig) -> Inputs:
    """Read a prepared folder and, where the config names them, semantic IDs.

    Raises:
        FileNotFoundError, ValueError: folders that are not what they should be, or don't fit each other or the config.
    """
    manifest = read_manifest(data, "prepared")
    if lost := sorted(set(manifest["user_columns"]) - set(manifest["tables"])):
        raise ValueError(f"{data / MANIFEST}: no table of the user column {lost[0]!r}; make the folder again")
    sizes: dict[str, int] = {}
    lineage: tuple[str, ...] = ()
    if features.semantic_ids is not None:
        semantic = SemanticFeatures.of_no_items(features.semantic_ids)
        lineage = semantic.lineage
        sizes = {n: size for n, (_, size) in _tables(semantic, features.ngram_rows, ranker).items()}
        if ranker.akt.enabled and ranker.akt.users:
            sizes[USER_CLUSTER] = sizes[CLUSTER]
    user_lineage: tuple[str, ...] = ()
    if features.user_semantic_ids is not None:
        of_users, akt = SemanticFeatures.of_no_items(features.user_semantic_ids, "user"), ranker.akt
        user_lineage = of_users.lineage
        _, sizes[USER_CLUSTER] = of_users.prefix_table(akt.prefix, akt.cluster_rows)
    known, own = (features, manifest["tables"], manifest["user_columns"]), manifest.get("own", [])
    for c in own:
        if c["table"] not in manifest["tables"] and (c["kind"] != "number" or c["table"] is not None):
            raise ValueError(f"{data / MANIFEST}: no table of the own column {c['name']!r}; make the folder again")
    if ranker.generates:
        if CLUSTER_VISITS in manifest:
            raise ValueError(
                f"{data}: its histories are clusters of visits, and a generative ranker asks for the visits; prepare "
                "it without --cluster-visits"
            )
        resolved = generative_features(*known, sizes, getattr(ranker.generator, "user_tokens", None), own)
    else:
        adaptive = ranker.rest.enabled and ranker.rest.density_adaptive
        resolved = build_features(*known, ranker.uses_context, ranker.uses_traits, sizes, adaptive, own)
        resolved = replace(resolved, cluster_visits=manifest.get(CLUSTER_VISITS, 1))
    resolved = _with_objectives(resolved, ranker.objectives, manifest, data)
    if ranker.rest.enabled and ranker.rest.contrast:
        lat = pq.read_table(fetched(data / _ITEMS), columns=["lat"])["lat"]
        if lat.null_count == len(lat):
            raise ValueError(
                f"{data}: rest contrasts items by where they are, and none has coordinates; leave rest out"
            )
    tokens = features.semantic_ids, features.user_semantic_ids
    return Inputs(data, resolved, manifest, lineage, user_lineage, *tokens, features.ngram_rows, ranker)


def _outcomes(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a prepared folder says of labels beside the first, amount and weight; of an older one there are none."""
    nothing: dict[str, Any] = {"labels": [], "amount": None, "weight": None, "train": {}}
    found: dict[str, Any] = manifest.get("outcomes", nothing)
    return found


def _with_objectives(features: Features, config: ObjectivesConfig, manifest: dict[str, Any], data: Path) -> Features:
    """The description with what the ranker learns.

    Raises:
        ValueError: a label that the data doesn't have or that never happens, an amount alone, or for ESMM labels of
            which one happens where the one before it did not.
    """
    outcomes = _outcomes(manifest)
    amount, train = outcomes["amount"], outcomes["train"]
    known = [LABEL, *outcomes["labels"], *([amount] if amount else ())]
    for name in config.labels:
        if name not in known:
            raise ValueError(
                f"ranker.objectives.labels: got {name!r}, {data} has {', '.join(known)}; name the column with --labels "
                "or --amount of placerank prepare"
            )
        if name != LABEL and not (train["amount"]["rows"] if name == amount else train["positives"][name]):
            raise ValueError(f"ranker.objectives.labels: {name!r} is 0 all over the training split; leave it out")
    labels = [name for name in config.labels if name != amount]
    if not labels:
        raise ValueError(
            f"ranker.objectives.labels={config.labels}: an amount is learned beside a label; expected one of "
            f"{', '.join(known[:-1])} before it"
        )
    if config.esmm:
        for before, after in pairwise(labels):
            rows = train["outside"][after][before]
            if rows:
                raise ValueError(
                    f"ranker.objectives.esmm: {after!r} happens without {before!r} in {rows:,} rows of the training "
                    "split, so it is no conversion of it; order the labels as they follow each other, mend the column, "
                    "or leave esmm out"
                )
        if len(labels) < 2:
            raise ValueError(
                f"ranker.objectives.esmm: got one label ({labels[0]}) beside the amount, expected two or more"
            )
    of_those = amount if amount in config.labels else None
    return replace(features, objectives=tuple(config.labels), amount=of_those, weight=outcomes["weight"])


def _tables(semantic: SemanticFeatures, ngram_rows: int, ranker: RankerConfig) -> dict[str, tuple[torch.Tensor, int]]:
    """Rows and size of each table that is made of semantic IDs, by name."""
    if ranker.generates:  # it has a row of its own for each code
        return semantic.ngrams(ngram_rows, shortest=2) if getattr(ranker.generator, "ngrams", False) else {}
    tables, akt = semantic.tables(ngram_rows), ranker.akt
    if akt.enabled:
        tables[CLUSTER] = semantic.prefix_table(akt.prefix, akt.cluster_rows)
    return tables
