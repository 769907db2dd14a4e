"""A generative ranker outside of training: exported tables, weights and semantic IDs.

Its export folder holds what that of a ranker of candidates does (``exported.py``), but for the dense part:

    catalog.parquet         has besides ``codes``, the semantic ID of each item: the index is made of it, in a second
                            for 2.3 million items; null where an item has none
    generator.safetensors   weights
    generator.json          which kind it is, its settings, codes a level, lineage of the semantic IDs

There is no program of it: a list is a walk over a tree of its own, which ``torch.export`` has no form for. What reads
it is ``placerank.rankers``, without training's code and without the folders that it was made of.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from ..data.batches.batch import SampleBatch
from ..data.batches.catalog import Catalog
from ..data.batches.features import Features
from ..data.batches.semantic_features import SemanticFeatures
from ..data.batches.sequences import SequenceBatch
from ..data.manifest import read_manifest, write_json
from ..data.plain import from_plain
from ..data.raw.hours import OPENING_HOURS
from ..data.urls import fetched, place
from ..embeddings.reader import TABLES, EmbeddingTable, open_table
from .exported import FEATURES, load_features
from .generative.config import SETTINGS as SETTINGS_OF
from .generative.decoding import Lists
from .generative.index import Index
from .generative.kinds import AnyGenerator, lists_of, make
from .generative.model import PlaceFacts, Questions
from .generative.reach import Allowed, Near, OpeningHours, local_seconds, open_now
from .generative_ranker import gather

WEIGHTS, SETTINGS, CODES = "generator.safetensors", "generator.json", "codes"


def export_generator(generator: AnyGenerator, kind: str, lineage: tuple[str, ...], folder: Path) -> None:
    """Write weights and settings."""
    save_file({name: x.contiguous() for name, x in generator.state_dict().items()}, folder / WEIGHTS)
    settings = {
        "kind": kind,
        "settings": asdict(generator.config),
        "codes_per_level": generator.codes_per_level,
        "lineage": list(lineage),
    }
    write_json(folder / SETTINGS, settings)


def with_codes(items: pa.Table, codes: Tensor) -> pa.Table:
    """The catalog with a column of semantic IDs, int64 [I, L]; null where an item has none.

    Lists of no fixed size: pyarrow before 26 does not read fixed ones from Parquet if one of them is null.
    """
    there = (codes >= 0).all(1)
    offsets = F.pad(there.cumsum(0) * codes.shape[1], (1, 0)).int()
    values, mask = pa.array(codes[there].int().flatten().numpy()), pa.array(~there.numpy())
    return items.append_column(CODES, pa.ListArray.from_arrays(pa.array(offsets.numpy()), values, mask=mask))


class ExportedGenerator:
    """Lists and probabilities of places on the CPU from an export folder alone.

    Args:
        features: which tables serve which features.
        catalog: attributes by row.
        tables: exported tables by name.
        generator: the dense part.
        lat, lon: of the items in degrees, float64 [I].
        hours: when items are open; None: nobody knows.
    """

    def __init__(
        self,
        features: Features,
        catalog: Catalog,
        tables: dict[str, EmbeddingTable],
        generator: AnyGenerator,
        lat: np.ndarray,
        lon: np.ndarray,
        hours: OpeningHours | None = None,
    ) -> None:
        self.features, self.catalog, self.tables, self.generator = features, catalog, tables, generator
        self.lat, self.lon, self.hours = lat, lon, hours

    @classmethod
    def load(cls, folder: Path, verify: bool = True) -> Self:
        """Read an export folder.

        Args:
            folder: what ``placerank export`` wrote of a generative ranker; one behind a URL is fetched.
            verify: see ``ExportedRanker.load``.

        Raises:
            FileNotFoundError, ValueError: not an export folder, one of another ranker, not a whole one, or damaged.
        """
        folder = fetched(place(folder))
        exported: dict[str, Any] = read_manifest(folder, "export", verify)["tables"]
        if not (folder / SETTINGS).is_file():
            raise ValueError(f"{folder} has no {SETTINGS}: its ranker scores candidates; read it with ExportedRanker")
        told = json.loads((folder / SETTINGS).read_text())
        features = load_features(folder / FEATURES)
        tables = {n: open_table(folder / TABLES, n, table) for n, table in exported.items()}
        if missing := [t.name for t in features.tables if t.name not in tables]:
            raise ValueError(f"{folder} leaves out the tables {', '.join(missing)}; export all tables")
        wanted = {"lat", "lon", "positives", CODES, OPENING_HOURS}
        known = pq.read_schema(folder / "catalog.parquet").names
        items = pq.read_table(folder / "catalog.parquet", columns=[n for n in known if n in wanted])
        hours = OpeningHours.of_column(items[OPENING_HOURS]) if OPENING_HOURS in items.column_names else None
        column = items[CODES].combine_chunks()
        there = column.is_valid().to_numpy(zero_copy_only=False)
        levels = len(column.flatten()) // max(int(there.sum()), 1)
        codes = np.full((len(items), levels), -1, np.int64)
        codes[there] = column.flatten().to_numpy().reshape(-1, levels)
        semantic = SemanticFeatures(codes, told["codes_per_level"], tuple(told["lineage"]), "codes")
        kind = told["kind"]
        settings = from_plain(SETTINGS_OF[kind], told["settings"], str(folder / SETTINGS))
        generator = make(
            kind,
            settings,
            PlaceFacts.of(items, semantic),
            Index.of_tokens(semantic),
            features.query_dim,
            features.pooled_dim,
        )
        generator.load_state_dict(load_file(folder / WEIGHTS))
        lat, lon = (items[c].to_numpy().astype(np.float64) for c in ("lat", "lon"))
        return cls(features, Catalog.load(folder, features), tables, generator.eval(), lat, lon, hours)

    def near(self, km: float) -> Near:
        """The items that are listed, by place: make it once, and ask it what each request is allowed."""
        items = self.generator.index.items
        return Near(items, self.lat[items], self.lon[items], km)

    def open_now(self, batch: SequenceBatch, allowed: Allowed) -> Allowed:
        """Of what the requests of a batch are allowed, what is open at their local time, as ``generate --open-now``.

        Raises:
            ValueError: the export has no opening hours.
        """
        if self.hours is None:
            raise ValueError("the export has no opening hours: prepare data whose items have a column opening_hours")
        lon = torch.from_numpy(self.lon)
        return open_now(allowed, self.hours, local_seconds(allowed, batch.target_time, batch.target_offset, lon))

    def _asked(self, batch: SequenceBatch | SampleBatch) -> tuple[Questions, Tensor, Tensor]:
        """What the generator takes: questions, rows of the visited items, and of the users."""
        host = gather(self.catalog, batch)
        found = self.catalog.rows(host.questions.items)
        rows = [torch.empty(len(host.questions.items), 0)]  # TIGER has no tables of items
        for t in self.features.sequence:
            rows.append(self.tables[t.name].vectors(host.questions.items if t.name == "item" else found.rows(t.name)))
        users = [self.tables[t.name].vectors(host.users[t.name]) for t in self.features.pooled]
        return host.questions, torch.cat(rows, dim=1), torch.cat(users, dim=1)

    @torch.no_grad()
    def score(self, batch: SequenceBatch | SampleBatch, allowed: Allowed | None = None) -> Tensor:
        """Exact log p of items for each request of a batch; see ``decoding.score``.

        Args:
            batch: of ``SequenceLoader``, ``SampleLoader``, or ``data.batches.sequences.ask``.
            allowed: items of each; None: all, in the order of ``generator.index.items``.
        """
        return self.generator.score(*self._asked(batch), allowed=allowed)

    @torch.no_grad()
    def lists(self, batch: SequenceBatch, allowed: Allowed, k: int, beams: int = 0) -> Lists:
        """The lists that ``placerank generate`` writes: up to k items of what each request is allowed, best first.

        With ``beams`` not all that is allowed is scored, see ``kinds.lists_of``.
        """
        return lists_of(self.generator, *self._asked(batch), allowed, k, beams=beams)
