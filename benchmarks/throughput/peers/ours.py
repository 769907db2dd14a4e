"""placerank's DIN on the same arrays: what the trainer steps (sharded tables on one gloo rank, fused row-wise Adagrad).

The step starts from the samples that the loader yields, so it holds the catalog's lookups (category of every item,
hours and kilometres of every visit), which the peers find done in their batches, or don't have.
"""

from __future__ import annotations

import logging
import warnings
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from worker import ATTENTION, LEARNING_RATE, MLP, Arrays, Case, Side, serve

from placerank.data.batches.batch import SampleBatch
from placerank.data.batches.catalog import Catalog
from placerank.data.batches.features import FeatureConfig, Features, build_features
from placerank.data.batches.loader import SampleLoader
from placerank.data.manifest import write_manifest
from placerank.data.requests import ENCODING, Lists, Requests
from placerank.rankers.dense import RankerConfig
from placerank.rankers.towers.din import DIN
from placerank.rankers.towers.tower import register_tower
from placerank.training.model import OptimizerConfig, assemble
from placerank.training.runtime import Runtime, runtime
from placerank.training.sharding import ShardingConfig

ROW_GROUP = 65_536


def _catalog(case: Case, arrays: Arrays, features: Features) -> Catalog:
    rng = np.random.default_rng(0)
    none = np.zeros(case.items, dtype=np.int32)
    offsets = pa.array(np.arange(case.items + 1, dtype=np.int32))
    columns = {
        "item_id": np.arange(case.items),
        "lat": rng.uniform(40.5, 40.9, case.items),
        "lon": rng.uniform(-74.2, -73.7, case.items),
        "category_row": arrays.category.astype(np.int32),
        "category_path": pa.ListArray.from_arrays(offsets, pa.array(arrays.category.astype(np.int32))),
        **{f"{name}_row": none for name in ("brand", "price", "province", "city", "district")},
    }
    return Catalog.of(pa.table(columns), pa.table({"user_id": np.arange(case.users)}), features, torch.device("cpu"))


def _sample(arrays: Arrays, rows: slice, hours: np.ndarray) -> SampleBatch:
    size, lengths = rows.stop - rows.start, arrays.length[rows]
    there = np.arange(arrays.history.shape[1])[None, :] < lengths[:, None]
    rows_of = torch.arange(size)
    return SampleBatch(
        request_id=rows_of,
        user=torch.from_numpy(arrays.user[rows]),
        user_index=torch.from_numpy(arrays.user[rows]),
        time=torch.zeros(size, dtype=torch.int64),
        lat=torch.full((size,), torch.nan),
        lon=torch.full((size,), torch.nan),
        offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)])),
        history=torch.from_numpy(arrays.history[rows][there]),
        history_hours=torch.from_numpy(hours[rows][there]),
        request=rows_of,  # the peers take samples one by one, so each is a request of its own here
        item=torch.from_numpy(arrays.item[rows]),
        label=torch.from_numpy(arrays.label[rows]),
        visits=torch.zeros(size, dtype=torch.int32),
        probability=None,
        valid=size,
    )


def _prepared(folder: Path, arrays: Arrays, hours: np.ndarray) -> Path:
    """The training split of a prepared folder, as the loader reads it."""
    samples = len(arrays.user)
    there = np.arange(arrays.history.shape[1])[None, :] < arrays.length[:, None]
    nowhere = np.full(samples, np.nan, dtype=np.float32)
    requests = Requests(
        {
            "request": np.arange(samples),
            "user_row": arrays.user.astype(np.int32),
            "user_index": arrays.user,
            "time": np.zeros(samples, dtype=np.int64),
            "lat": nowhere,
            "lon": nowhere,
        },
        Lists(
            np.concatenate([[0], np.cumsum(arrays.length)]),
            {"history": arrays.history[there].astype(np.int32), "history_hours": hours[there]},
        ),
        Lists(
            np.arange(samples + 1),
            {
                "item_row": arrays.item.astype(np.int32),
                "label": arrays.label.astype(np.int8),
                "visits": np.zeros(samples, dtype=np.int32),
            },
        ),
    )
    (folder / "train").mkdir(parents=True, exist_ok=True)
    path = folder / "train" / "part-00000.parquet"
    pq.write_table(requests.table(), path, row_group_size=ROW_GROUP, **ENCODING)
    groups = [min(ROW_GROUP, samples - at) for at in range(0, samples, ROW_GROUP)]
    train = {
        "rows": samples,
        "positives": int(arrays.label.sum()),
        "mean_history": float(arrays.length.mean()),
        "row_groups": {path.name: groups},
    }
    length, tables = arrays.history.shape[1], dict.fromkeys(("item", "user", "category"), 1)
    about = {"tables": tables, "user_columns": [], "source": "impressions", "history_length": length}
    write_manifest(folder, "prepared", {}, splits={"train": train}, **about)
    return folder


def make(rt: Runtime, case: Case, arrays: Arrays, scratch: Path) -> Side:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    register_tower("din-of-the-comparison", lambda dim, gaps: DIN(dim, gaps, hidden=ATTENTION))
    tables = {"item": case.items, "user": case.users, "category": case.categories}
    config = FeatureConfig(
        embedding_dim=case.dim, pooled_dim=case.dim, history_attributes=["category"], pooled=["user"], dense=[]
    )
    features = build_features(config, tables, [])
    trainee = assemble(
        features,
        RankerConfig(tower="din-of-the-comparison", mlp=list(MLP)),
        ShardingConfig(),
        OptimizerConfig(dense_lr=LEARNING_RATE),
        rt,
        case.batch,
        float(arrays.length.mean()),
    )
    trainee.model.train()
    catalog = _catalog(case, arrays, features)
    hours = np.random.default_rng(1).exponential(200.0, arrays.history.shape).astype(np.float32)

    loader = SampleLoader(_prepared(scratch / "prepared", arrays, hours), "train", case.batch, shuffle=True)

    def step(sample: SampleBatch) -> torch.Tensor:
        batch = catalog.expand(sample)
        loss = binary_cross_entropy_with_logits(trainee.model(batch).logits, batch.label)
        trainee.optimizer.zero_grad()
        loss.backward()
        trainee.optimizer.step()
        trainee.scheduler.step()
        return loss

    def fit() -> None:
        for sample in loader:
            step(sample)

    try:
        release = version("placerank")
    except PackageNotFoundError:
        release = "source tree"
    return Side(
        version=release,
        settings="DistributedModelParallel on one gloo rank, fused row-wise Adagrad for tables, AdamW for the rest; "
        "Dice in attention and MLP; catalog lookups and history gaps included in the step",
        batches=[_sample(arrays, rows, hours) for rows in arrays.slices(case.batch)],
        step=step,
        fit=fit,
        parameters=sum(t.rows * t.dim for t in features.tables)
        + sum(value.numel() for name, value in trainee.model.named_parameters() if name.startswith("scorer.")),
    )


if __name__ == "__main__":
    with runtime(seed=0) as single:
        serve(partial(make, single))
