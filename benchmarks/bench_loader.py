"""Loader throughput beside the trainer's: samples a second of the processor's time, one thread.

    python benchmarks/bench_loader.py                   # a simulated city, about 280,000 samples, made and removed here
    python benchmarks/bench_loader.py --data PREPARED   # the training split of your own
    python benchmarks/bench_loader.py --save            # also writes results/loader.csv
    python benchmarks/bench_loader.py --s3              # streamed from an S3 server on this machine, beside local files

A figure is a whole epoch after the first one (files in the page cache), every batch taken and dropped. Time is the
processor's, so that what others do on the machine does not count. The sides take turns. The trainer's side is the
training step (TWIN, default settings) on batches in memory: what the loader has to keep up with. With ``--s3`` both
the processor's time of this process and what the clock shows are told, for the server takes time too.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from placerank.benchmarks.results_file import save
from placerank.benchmarks.s3_server import s3_server
from placerank.data.batches.catalog import Catalog
from placerank.data.batches.features import FeatureConfig, build_features
from placerank.data.batches.loader import SampleLoader
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.manifest import read_manifest
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.data.urls import place, put_files
from placerank.rankers.dense import RankerConfig
from placerank.training.model import OptimizerConfig, assemble
from placerank.training.runtime import Runtime, runtime
from placerank.training.sharding import ShardingConfig

TRAINER = "trainer"


def simulated(folder: Path) -> Path:
    """A prepared city with full histories."""
    raw = simulate(SimulateConfig(out=folder / "raw", users=400, requests=20_000))
    return prepare(PrepareConfig(input=raw, out=folder / "prepared"))


def loader_side(data: Path, batch_size: int, shuffle: bool, prefetch: int) -> Callable[[], float]:
    """One epoch of batches; returns rows a second."""
    loader = SampleLoader(data, "train", batch_size, shuffle=shuffle, prefetch=prefetch)

    def epoch() -> float:
        start = time.process_time()
        rows = sum(len(batch) for batch in loader)
        return rows / (time.process_time() - start)

    return epoch


def streamed(data: Path, batch_size: int, repeats: int) -> None:
    """An epoch from an S3 server and one from local files, in turn; prints the ratios of each pair."""
    with s3_server() as url:
        names = [path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file()]
        there = place(f"{url}/bench-loader-{data.parent.name}")
        put_files(data, names, there)
        loaders = [SampleLoader(at, "train", batch_size, shuffle=True) for at in (data, there)]
        rates: list[list[tuple[float, float]]] = []
        for _ in range(repeats + 1):
            rates.append([])
            for loader in loaders:
                begun, used = time.perf_counter(), time.process_time()
                rows = sum(len(batch) for batch in loader)
                rates[-1].append((rows / (time.perf_counter() - begun), rows / (time.process_time() - used)))
    for of, what in enumerate(("by the clock", "of this process' time")):
        local, remote = ([pair[side][of] for pair in rates[1:]] for side in (0, 1))
        ratio = sorted(r / x for x, r in zip(local, remote, strict=True))
        print(
            f"{what:<22} local {statistics.median(local):>12,.0f}, S3 {statistics.median(remote):>12,.0f} rows/s, "
            f"ratio {statistics.median(ratio):.2f} ({ratio[0]:.2f} to {ratio[-1]:.2f})"
        )


def trainer_side(data: Path, batch_size: int, rt: Runtime, steps: int = 40) -> Callable[[], float]:
    """Some training steps on samples in memory, catalog lookups included; returns rows a second."""
    manifest = read_manifest(data, "prepared")
    features = build_features(FeatureConfig(), manifest["tables"], manifest["user_columns"])
    history = manifest["splits"]["train"]["mean_history"]
    trainee = assemble(features, RankerConfig(), ShardingConfig(), OptimizerConfig(), rt, batch_size, history)
    catalog = Catalog.load(data, features, rt.device)
    samples = list(islice(SampleLoader(data, "train", batch_size, shuffle=True, prefetch=0), steps))

    def run() -> float:
        start = time.process_time()
        for sample in samples:
            batch = catalog.expand(sample)
            loss = binary_cross_entropy_with_logits(trainee.model(batch).logits, batch.label)
            trainee.optimizer.zero_grad()
            loss.backward()
            trainee.optimizer.step()
        return sum(map(len, samples)) / (time.process_time() - start)

    return run


def sides(data: Path, batch_size: int, rt: Runtime) -> dict[str, Callable[[], float]]:
    """What is compared: name to a function that runs it once and returns rows a second."""
    return {
        "loader, shuffled": loader_side(data, batch_size, shuffle=True, prefetch=0),
        "loader, shuffled, read ahead": loader_side(data, batch_size, shuffle=True, prefetch=8),
        "loader, in file order": loader_side(data, batch_size, shuffle=False, prefetch=0),
        TRAINER: trainer_side(data, batch_size, rt),
    }


def measure(data: Path, batch_size: int, repeats: int, rt: Runtime) -> list[dict[str, Any]]:
    """Rows of the table: one a side."""
    functions = sides(data, batch_size, rt)
    figures: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            figure = function()
            if repeat:  # the first is to warm up
                figures[name].append(figure)
    manifest = read_manifest(data, "prepared")
    split = manifest["splits"]["train"]
    size = sum(file["bytes"] for name, file in manifest["files"].items() if name.startswith("train/"))
    return [
        {
            "side": name,
            "rows_per_s": round(statistics.median(values)),
            "times_trainer": round(statistics.median(values) / statistics.median(figures[TRAINER]), 2),
            "slowest": round(min(values)),
            "fastest": round(max(values)),
            "repeats": repeats,
            "batch_size": batch_size,
            "rows": split["rows"],
            "requests": split["requests"],
            "mean_history": round(split["mean_history"], 1),
            "bytes_a_row": round(size / split["rows"], 1),
        }
        for name, values in figures.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared folder; default: a simulated city")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--s3", action="store_true", help="from an S3 server beside local files, and nothing else")
    parser.add_argument("--save", action="store_true", help="write results/loader.csv")
    args = parser.parse_args()
    pa.set_cpu_count(1)
    torch.set_num_threads(1)
    if args.s3:
        with tempfile.TemporaryDirectory() as folder:
            streamed(args.data or simulated(Path(folder)), args.batch_size, args.repeats)
        return
    with tempfile.TemporaryDirectory() as folder, runtime(seed=0) as rt:
        lines = measure(args.data or simulated(Path(folder)), args.batch_size, args.repeats, rt)
    for line in lines:
        spread = f"({line['slowest']:,} to {line['fastest']:,})"
        print(f"{line['side']:<30} {line['rows_per_s']:>12,} rows/s  {spread}, {line['times_trainer']} x the trainer's")
    print(
        f"{lines[0]['rows']:,} samples of {lines[0]['requests']:,} requests, mean history {lines[0]['mean_history']}, "
        f"{lines[0]['bytes_a_row']} bytes a sample, batches of {args.batch_size:,}"
    )
    if args.save:
        save("loader.csv", lines)


if __name__ == "__main__":
    main()
