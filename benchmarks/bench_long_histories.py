"""TWIN-V2 over clusters of a life-long history, beside TWIN over its visits: AUC and time of a step.

    python -m placerank.benchmarks.bench_long_histories --visits 1000 10000 --seeds 0 1 --save
    python -m placerank.benchmarks.bench_long_histories --visits 100000 --seeds 0 --whole-steps 4 --save

For each seed and length one simulated city, whose requests are so many that a sample's history has so many visits on
average, and of whose last days ``--requests`` requests make samples: 7 of 10 for training, 3 for the test. All sides
see the same samples, a pass over them, a batch of each side in turn:

    twin_100        TWIN over the latest 100 visits
    twin_10000      TWIN over the latest 10,000; where there are 100,000
    twin            TWIN over all visits
    twin_clusters   TWIN over clusters of at most 20 visits, from whose number it learns what it will
    twin_v2         TWIN-V2 over the same clusters

``step`` is the median of the processor's seconds for a training step of 256 samples with the catalog's look-ups, and
``times_twin`` its ratio to TWIN's over all visits. AUC is of the test's candidates; ``lift`` is over ``twin``, or
where that trains on a few steps alone (``--whole-steps``: their time, no AUC), over ``twin_10000``.
Rankers know nothing of a user but the history (no user table, no count of earlier visits), as with users who are new
to them, unless ``--known-users``: what a long history tells, a table of so few users would learn, too. ``best`` is the
AUC of the probabilities that clicks were drawn with. ``--save`` writes results/long_histories.csv.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from placerank.benchmarks.results_file import keep
from placerank.data.batches.features import FeatureConfig
from placerank.data.batches.loader import SampleLoader
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.manifest import read_manifest
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.rankers.dense import RankerConfig
from placerank.training.inputs import read_inputs
from placerank.training.model import OptimizerConfig, assemble
from placerank.training.runtime import Runtime, runtime
from placerank.training.sharding import ShardingConfig

LIFE = 1_000_000  # visits, more than anybody has
CLUSTER_VISITS = 20
SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "twin_100": ("twin", {"history_length": 100}),
    "twin_10000": ("twin", {"history_length": 10_000}),
    "twin": ("twin", {"history_length": LIFE}),
    "twin_clusters": ("twin", {"history_length": LIFE, "cluster_visits": CLUSTER_VISITS}),
    "twin_v2": ("twin_v2", {"history_length": LIFE, "cluster_visits": CLUSTER_VISITS}),
}
USERS = {1_000: 200, 10_000: 60, 100_000: 24}
BATCH, DAYS, CLICKS = 256, 1_000, 3.16  # clicks of a request
ITEMS = 3_000


def city(folder: Path, visits: int, seed: int) -> tuple[Path, int]:
    """A simulated city and its requests: those who ask most have the longest histories, so users are weighed twice."""
    users = USERS[visits]
    share = 1 / (1 + np.arange(users) / max(users / 50, 1)) ** 0.9
    share /= share.sum()
    requests = round(visits / CLICKS / float((share**2).sum()))
    config = SimulateConfig(
        out=folder / "raw", cities=1, items=ITEMS, users=users, requests=requests, days=DAYS, seed=seed, overwrite=True
    )
    return simulate(config), requests


class Side:
    """A ranker in training on a prepared folder."""

    def __init__(self, data: Path, tower: str, known_users: bool, seed: int, rt: Runtime) -> None:
        features = FeatureConfig()
        if not known_users:
            features = FeatureConfig(pooled=["hour", "category_path"], dense=["distance"])
        config = RankerConfig(tower=tower)
        inputs = read_inputs(data, features, config)
        self.catalog = inputs.catalog(rt.device)
        torch.manual_seed(seed)
        self.trainee = assemble(inputs.features, config, ShardingConfig(), OptimizerConfig(), rt, BATCH, 100.0)
        self.trainee.model.train()
        self.data = data
        self.most: int | None = None  # steps; None: a pass
        self.seconds: list[float] = []
        self.entries: list[float] = []
        self.batches = iter(SampleLoader(data, "train", BATCH, seed=seed, shuffle=True, prefetch=0))

    def step(self) -> bool:
        """Trains on the next batch; False after the last."""
        sample = next(self.batches, None) if len(self.seconds) != self.most else None
        if sample is None:
            return False
        start = time.process_time()
        batch = self.catalog.expand(sample)
        loss, _ = self.trainee.model(batch).loss(batch.label)
        self.trainee.optimizer.zero_grad()
        loss.backward()
        self.trainee.optimizer.step()
        self.seconds.append(time.process_time() - start)
        self.entries.append(len(sample.history) / len(sample.time))
        return True

    @torch.no_grad()
    def test(self) -> tuple[float, float, int]:
        """AUC on the test split, that of the true probabilities, and how many samples these are."""
        self.trainee.model.eval()
        logit, label, truth = [], [], []
        for sample in SampleLoader(self.data, "test", BATCH, prefetch=0):
            logit.append(self.trainee.model(self.catalog.expand(sample)).logits[: sample.valid])
            label.append(sample.label[: sample.valid])
            assert sample.probability is not None
            truth.append(sample.probability[: sample.valid])
        of = torch.cat(label).numpy()
        found, best = (float(roc_auc_score(of, torch.cat(x).double().numpy())) for x in (logit, truth))
        return found, best, len(of)


def measure(
    folder: Path, visits: int, seed: int, requests: int, known_users: bool, whole_steps: int | None, rt: Runtime
) -> list[dict[str, Any]]:
    """A line a side."""
    sides = {name: side for name, side in SIDES.items() if name != "twin_10000" or visits > 10_000}
    raw, every = city(folder, visits, seed)
    folders, seconds = {}, {}
    for settings in {tuple(of.items()): 0 for _, of in sides.values()}:
        out = folder / "-".join(str(x) for _, x in settings)
        start = time.process_time()
        folders[settings] = prepare(
            PrepareConfig(
                input=raw, out=out, overwrite=True, sample_days=DAYS * requests / every, valid_fraction=0.0,
                test_fraction=0.3, row_group_rows=1024, **dict(settings),
            )
        )  # fmt: skip
        seconds[settings] = time.process_time() - start
    made = {name: Side(folders[tuple(of.items())], tower, known_users, seed, rt) for name, (tower, of) in sides.items()}
    made["twin"].most = whole_steps
    going = list(made.values())
    while going:
        going = [side for side in going if side.step()]
    lines: list[dict[str, Any]] = []
    for name, side in made.items():
        auc, best, rows = side.test() if side.most is None else (np.nan, np.nan, 0)
        files = read_manifest(side.data, "prepared")["files"]
        size = sum(f["bytes"] for n, f in files.items() if n.startswith(("train/", "test/")))
        lines.append(
            {
                "visits": visits, "users": USERS[visits], "known_users": known_users, "seed": seed, "side": name,
                "entries": round(statistics.mean(side.entries)), "steps": len(side.seconds), "test_samples": rows,
                "auc": f"{auc:.4f}", "best": f"{best:.4f}", "step_s": f"{statistics.median(side.seconds[1:]):.4f}",
                "samples_mib": f"{size / 2**20:.0f}",
                "prepare_s": f"{seconds[tuple(sides[name][1].items())]:.1f}",
            }
        )  # fmt: skip
    by_name = {line["side"]: line for line in lines}
    beside = by_name["twin" if whole_steps is None else "twin_10000"]
    for line in lines:
        line["lift"] = f"{float(line['auc']) - float(beside['auc']):+.4f}"
        line["times_twin"] = f"{float(line['step_s']) / float(by_name['twin']['step_s']):.3f}"
        print(line, flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visits", type=int, nargs="+", choices=sorted(USERS), default=[1_000, 10_000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--requests", type=int, default=4_000, help="that make samples")
    parser.add_argument("--known-users", action="store_true")
    parser.add_argument("--whole-steps", type=int, help="steps of TWIN over all visits (default: as many as others)")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for visits in args.visits:
        for seed in args.seeds:
            folder = Path(tempfile.mkdtemp(prefix="long-histories-"))
            try:
                with runtime(seed) as rt:
                    lines = measure(folder, visits, seed, args.requests, args.known_users, args.whole_steps, rt)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            if args.save:
                keep("long_histories.csv", lines, ("visits", "known_users", "seed", "side"))


if __name__ == "__main__":
    main()
