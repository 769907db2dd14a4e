"""What own columns gain: a delivery service's ratings, dishes, fees and devices, in the simulated city that knows them.

    python -m placerank.benchmarks.bench_own_features --seeds 0 1 2 --save

Clicks of ``placerank simulate --delivery`` depend on columns that the schema doesn't name. For each seed one city, one
prepared folder, and the default ranker twice: with all own columns as ``prepare`` took them, nothing declared, and
without them (``features.own`` empty). AUC on the test split, beside two that nobody trains: ``oracle``, the probability
that clicks were drawn with, and ``blind``, the same without what the columns add. What leaving the columns out costs is
oracle - blind; the share of it that the columns give back is (with - without) / (oracle - blind). ``--save`` writes
results/own_features.csv.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from sklearn.metrics import roc_auc_score

from placerank.benchmarks.results_file import keep
from placerank.data.batches.features import FeatureConfig
from placerank.data.batches.loader import SampleLoader
from placerank.data.city.delivery import DEVICES, effect
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.manifest import read_manifest
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.training.inference import load_scorer
from placerank.training.runtime import runtime
from placerank.training.train import TrainConfig, train

HISTORY = 20


def oracles(raw: Path, data: Path) -> tuple[float, float, int]:
    """AUC of the true probability on the test split, of the same without the columns, and how many rows these are."""
    rows = pq.read_table(raw / "interactions.parquet")
    first = read_manifest(data, "prepared")["splits"]["test"]["time"][0]
    rows = rows.filter(pc.greater_equal(rows["timestamp"].cast(pa.timestamp("s", "UTC")).cast(pa.int64()), first))
    items, users = (pq.read_table(raw / f"{name}.parquet") for name in ("items", "users"))
    item, user = rows["item_id"].to_numpy() - 1, rows["user_id"].to_numpy() - 1  # ids are 1 to N, in order
    dishes = items["dishes"].to_pylist()
    wanted = users["looks_for"].to_pylist()
    fits = np.array([wanted[u] is not None and wanted[u] in dishes[i] for u, i in zip(user, item, strict=True)])
    device = np.array([DEVICES.index(d) for d in rows["device"].to_pylist()])
    rating = items["rating"].to_numpy()[item]
    p, label = rows["probability"].to_numpy().astype(np.float64), rows["label"].to_numpy()
    logit = np.log(p / (1 - p)) - effect(rating, fits, rows["fee"].to_numpy(), device)
    return roc_auc_score(label, p), roc_auc_score(label, logit), len(rows)


def trained_auc(data: Path, run: Path, own: list[str] | None, seed: int, epochs: int) -> tuple[float, int]:
    """Test AUC of the default ranker, and of how many rows."""
    train(TrainConfig(data=data, run=run, features=FeatureConfig(own=own), seed=seed, epochs=epochs, overwrite=True))
    with runtime(0) as rt:
        score, _, _ = load_scorer(run, rt)
        batches = list(SampleLoader(data, "test", 4096))
        logit = torch.cat([score(b)[: b.valid].cpu() for b in batches]).double()
    label = torch.cat([b.label[: b.valid] for b in batches])
    return float(roc_auc_score(label, logit)), len(label)


def measure(folder: Path, seed: int, requests: int, epochs: int) -> dict[str, Any]:
    """A line of one seed."""
    raw = simulate(SimulateConfig(out=folder / "raw", requests=requests, seed=seed, delivery=True, overwrite=True))
    data = prepare(PrepareConfig(input=raw, out=folder / "data", history_length=HISTORY, seed=seed, overwrite=True))
    oracle, blind, rows = oracles(raw, data)
    without, n = trained_auc(data, folder / "without", [], seed, epochs)
    with_, m = trained_auc(data, folder / "with", None, seed, epochs)
    assert rows == n == m, "the test split is that of the raw table"
    return {
        "seed": seed,
        "requests": requests,
        "rows": rows,
        "oracle": round(oracle, 5),
        "blind": round(blind, 5),
        "without": round(without, 5),
        "with": round(with_, 5),
        "share_of_cost": round((with_ - without) / (oracle - blind), 4),
        "share_of_gap": round((with_ - without) / (oracle - without), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--requests", type=int, default=16_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="own-features-"))
    lines = []
    try:
        for seed in args.seeds:
            lines.append(measure(folder, seed, args.requests, args.epochs))
            print(lines[-1], flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    shares = np.array([line["share_of_cost"] for line in lines])
    print(
        f"share of what leaving the columns out costs: {shares.mean():.3f} ({shares.min():.3f} to {shares.max():.3f})"
    )
    if args.save:
        keep("own_features.csv", lines, ("seed", "requests"))


if __name__ == "__main__":
    main()
