"""placerank's DIN: what the trainer steps (sharded tables on one gloo rank, fused row-wise Adagrad, AdamW), on the same arrays.

The step starts from the samples that the loader yields, so it holds the catalog's lookups (category of every item, hours
and kilometres of every visit) which the peers find done in their batches, or don't have.
"""

from __future__ import annotations

import logging
import warnings
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from worker import ATTENTION, LEARNING_RATE, MLP, Arrays, Case, Side, serve

from placerank.data.batch import SampleBatch
from placerank.data.catalog import Catalog
from placerank.data.features import FeatureConfig, Features, build_features
from placerank.rankers.din import DIN
from placerank.rankers.ranker import RankerConfig
from placerank.rankers.tower import register_tower
from placerank.training.model import OptimizerConfig, assemble
from placerank.training.runtime import Runtime, runtime
from placerank.training.sharding import ShardingConfig


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
    return Catalog(pa.table(columns), pa.table({"user_id": np.arange(case.users)}), features, torch.device("cpu"))


def _sample(arrays: Arrays, rows: slice, hours: np.ndarray) -> SampleBatch:
    size, lengths = rows.stop - rows.start, arrays.length[rows]
    there = np.arange(arrays.history.shape[1])[None, :] < lengths[:, None]
    one = np.ones(size, dtype=lengths.dtype)
    values = np.concatenate([arrays.user[rows], arrays.item[rows], arrays.history[rows][there]])
    ids = KeyedJaggedTensor(
        keys=["user", "item", "history"],
        values=torch.from_numpy(values),
        lengths=torch.from_numpy(np.concatenate([one, one, lengths])).int(),
    )
    return SampleBatch(
        ids=ids,
        history_hours=torch.from_numpy(hours[rows][there]),
        label=torch.from_numpy(arrays.label[rows]),
        request=torch.arange(size),
        user_index=torch.from_numpy(arrays.user[rows]),
        time=torch.zeros(size, dtype=torch.int64),
        lat=torch.full((size,), torch.nan),
        lon=torch.full((size,), torch.nan),
        visits=torch.zeros(size, dtype=torch.int32),
        probability=None,
        valid=size,
    )


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

    def step(sample: SampleBatch) -> torch.Tensor:
        ids = sample.ids  # a batch is used many times here and once in training: drop what it cached about its offsets
        sample.ids = KeyedJaggedTensor(keys=ids.keys(), values=ids.values(), lengths=ids.lengths())
        batch = catalog.expand(sample)
        loss = binary_cross_entropy_with_logits(trainee.model(batch), batch.label)
        trainee.optimizer.zero_grad()
        loss.backward()
        trainee.optimizer.step()
        trainee.scheduler.step()
        return loss

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
        fit=None,
        parameters=sum(t.rows * t.dim for t in features.tables)
        + sum(value.numel() for name, value in trainee.model.named_parameters() if name.startswith("scorer.")),
    )


if __name__ == "__main__":
    with runtime(seed=0) as single:
        serve(partial(make, single))
