"""From a run to a folder that serves: tables keyed by raw ids, the dense part, and what both need."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from ..data.batches.features import CLUSTER, HOURS_PER_WEEK, LEVEL, NGRAM, USER_CLUSTER, USER_TOKEN, Features
from ..data.manifest import MANIFEST, read_manifest, sha256_file, whole_folder, write_manifest
from ..data.urls import fetched
from ..embeddings.delta import CATALOG, USERS, write_changes
from ..embeddings.export import RawIds, export_tables, save_attributes
from ..embeddings.reader import TABLES
from ..embeddings.shards import CheckpointTables
from ..rankers.dense import RankerConfig, Scorer
from ..rankers.exported import FEATURES, SCORER, export_scorer, save_features
from ..rankers.exported_generator import export_generator, with_codes
from ..rankers.final_vectors import ITEM_FINAL, USER_FINAL, FinalVectors, final_tables
from ..rankers.generative.kinds import AnyGenerator
from ..rankers.generative_ranker import GenerativeRanker
from .checkpoint import load
from .identity import Identity
from .inference import open_checkpoint, read_config
from .inputs import Inputs, read_inputs
from .settings import ExportConfig

FINAL = (ITEM_FINAL, USER_FINAL)


def export(config: ExportConfig) -> Path:
    """Write the export folder; returns it. One process is enough, whatever number of ranks trained.

    Raises:
        FileNotFoundError: no such run, checkpoint or data.
        FileExistsError: the folder exists and ``overwrite`` is not set.
        ValueError: an unknown table, a damaged checkpoint, data with other ids than the run was trained on, or an
            earlier export that is damaged or of another format.
        OSError: the disk is full. On every error the folder is as it was before.
    """
    base = None if config.since is None else fetched(config.since)
    if base is not None:
        for name, table in read_manifest(base, "export")["tables"].items():
            if (table["format"], table["dtype"]) != (config.format, config.dtype):
                raise ValueError(
                    f"since: {base} has the table {name!r} as {table['format']} {table['dtype']}, got format="
                    f"{config.format} dtype={config.dtype}; give those of the earlier export, or export the whole"
                )
    trained = read_config(config.run, config.data, config.semantic_ids, config.user_semantic_ids)
    data = trained.data
    inputs = read_inputs(data, trained.features, trained.ranker)
    features, prepared = inputs.features, inputs.manifest
    checkpoint, saved = open_checkpoint(config.run, config.checkpoint, Identity.of(inputs, trained.ranker))
    generates = trained.ranker.generates
    dense = load_generator(checkpoint, inputs) if generates else load_dense(checkpoint, features, trained.ranker)
    names = [t.name for t in features.tables]
    if isinstance(dense, Scorer):
        names += final_tables(dense)
    for name in config.tables or ():
        if name not in names:
            raise ValueError(f"tables: got {name!r}, this ranker has {', '.join(names)}")
    ids = {name: raw_ids(data, features, name) for name in names if config.tables is None or name in config.tables}
    raw = CheckpointTables(checkpoint, {t.name: raw_ids(data, features, t.name).rows for t in features.tables})
    how = config.format, config.dtype, config.block_rows
    with whole_folder(config.out, config.overwrite) as folder:
        whole = folder if base is None else folder / "whole"
        (whole / TABLES).mkdir(parents=True)
        tables = export_tables(raw, {n: x for n, x in ids.items() if n not in FINAL}, whole / TABLES, *how)
        items = inputs.read_items()
        if not isinstance(dense, Scorer):
            export_generator(dense, trained.ranker.kind, inputs.lineage, whole)
            items = with_codes(items, dense.facts.codes.cpu())
        else:
            export_scorer(dense, features, whole / SCORER)
            if computed := {n: x for n, x in ids.items() if n in FINAL}:
                final = FinalVectors(raw, dense, inputs.catalog(torch.device("cpu")), data)
                tables |= export_tables(final, computed, whole / TABLES, *how)
        save_features(features, whole / FEATURES)
        save_attributes(items, "item_id", whole / CATALOG)
        save_attributes(inputs.read_users(), "user_id", whole / USERS)
        made_from = {"checkpoint": sha256_file(checkpoint / MANIFEST), "prepared": prepared["content_hash"]}
        own = [c for c in prepared.get("own", []) if c["name"] in {o.name for o in features.own}]
        about = {"ranker": trained.ranker, "history_length": prepared["history_length"]}
        write_manifest(whole, "export", config, made_from, step=saved["step"], tables=tables, own=own, **about)
        if base is not None:
            told = write_changes(base, whole, folder)
            shutil.rmtree(whole)
            write_manifest(folder, "delta", config, made_from, **told)
    return config.out


def raw_ids(data: Path, features: Features, table: str) -> RawIds:
    """Where the raw ids of a table's rows stand in a prepared folder.

    Args:
        data: the prepared folder.
        features: the tables.
        table: name of one of them, or of final vectors.
    """
    if table == "hour":
        return RawIds(HOURS_PER_WEEK)
    if table in ("item", ITEM_FINAL):
        return RawIds.read(fetched(data / "catalog.parquet"), "item_id")
    if table in ("user", USER_FINAL):
        return RawIds.read(fetched(data / "users.parquet"), "user_id")
    if table in (CLUSTER, USER_CLUSTER, USER_TOKEN) or table.startswith((LEVEL, NGRAM)):
        return RawIds(next(t.rows for t in features.tables if t.name == table))  # the row is 1 + the code, or a hash
    vocabulary = "category" if table == "category_path" else table
    if not (data / "vocab" / f"{vocabulary}.parquet").is_file():  # an own column's that is hashed
        return RawIds(next(t.rows for t in features.tables if t.name == table))
    return RawIds.read(fetched(data / "vocab" / f"{vocabulary}.parquet"))


def load_generator(checkpoint: Path, inputs: Inputs) -> AnyGenerator:
    """The dense part of a generative ranker's checkpoint, without its tables, in a single process.

    Raises:
        ValueError: the checkpoint holds another dense part.
    """
    ranker = inputs.make_ranker()
    assert isinstance(ranker, GenerativeRanker)
    _load(checkpoint, {"dense": ranker.dense.state_dict()})
    return ranker.dense.eval()


def load_dense(checkpoint: Path, features: Features, config: RankerConfig) -> Scorer:
    """The dense part of a checkpoint, without its tables, in a single process.

    Raises:
        ValueError: the checkpoint holds another dense part.
    """
    scorer = Scorer(features, config)
    _load(checkpoint, {"dense": {"scorer": scorer.state_dict()}})
    return scorer.eval()


def _load(checkpoint: Path, model: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a single process is what is meant
        load(checkpoint, {"model": model})
