"""Training on one rank, where TorchRec and fbgemm are: the whole step on a small city, and 200 steps at batch 4,096.

Each of them pipelined and plain, which must give the same losses: to the last digit on a CPU; a GPU adds gradients up
in any order, so there the first steps are compared, before that grows.
"""

import json
import statistics
import time
from collections.abc import Iterator
from functools import partial
from itertools import cycle, islice, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from .dense import work
from .report import Cases, Report, Skip
from .speed import device_rates
from .waits import counted

STEPS, DRY_STEPS = 200, 3
COMPARED = 10  # of the first steps
SAME = 1e-4  # of a loss; what a few steps of sums in any order may change
SIDES = ("din", "twin_akt")  # of benchmarks/bench_steps.py
WAYS = ("pipelined", "plain")


def cases(report: Report) -> Cases:
    yield "placerank train", partial(_whole, report)
    for side in SIDES[:1] if report.dry else SIDES:
        yield f"{side} steps", partial(_steps, report, side)


def _whole(report: Report) -> None:
    """Simulate, prepare, train with validation and checkpoints, resume: pipelined and plain."""
    try:
        from placerank.data.city.simulate import SimulateConfig, simulate
        from placerank.data.preparation.prepare import PrepareConfig, prepare
        from placerank.training.train import TrainConfig, train
    except ImportError as error:
        raise Skip(f"{error}") from None
    city = (1, 100, 50, 150) if report.dry else (3, 3_000, 2_000, 8_000)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cities, items, users, requests = city
        raw = folder / "raw"
        simulate(SimulateConfig(out=raw, cities=cities, items=items, users=users, requests=requests, days=30))
        data = prepare(PrepareConfig(input=raw, out=folder / "data", history_length=10))
        found: dict[str, list[dict[str, Any]]] = {}
        for way in WAYS:
            run = folder / way
            config: dict[str, Any] = dict(data=data, run=run, batch_size=256, log_every=1, pipelined=way == "pipelined")
            train(TrainConfig(**config, epochs=1))
            train(TrainConfig(**config, epochs=2, resume=True))
            found[way] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {way: [x["loss"] for x in lines if x["split"] == "train"] for way, lines in found.items()}
    auc = {way: [x["auc"] for x in lines if x["split"] == "valid"][-1] for way, lines in found.items()}
    _compare(report, "placerank train", losses)
    for way in WAYS:
        report.figure("placerank train", f"AUC, {way}", auc[way], "")
    report.figure("placerank train", "steps", len(losses["plain"]), "")


def _compare(report: Report, case: str, losses: dict[str, list[float]]) -> None:
    pairs = list(zip(losses["pipelined"], losses["plain"], strict=True))[:COMPARED]
    apart = max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs)
    report.figure(case, "first losses differ by", apart, "", most=SAME)


def _steps(report: Report, name: str) -> None:
    """Steps on batches in memory, the catalog's look-ups included, as ``bench_steps.py`` makes them."""
    try:
        import numpy as np

        from placerank.data.batches.batch import RankingBatch
        from placerank.training.runtime import runtime
        from placerank.training.steps import pipelined_steps, plain_steps

        from .. import bench_steps
    except ImportError as error:
        raise Skip(f"{error}") from None
    rng = np.random.default_rng(0)
    items, users, share = bench_steps.make_tables(rng)
    samples = [bench_steps.make_samples(rng, share, longest=50) for _ in range(2)]
    count = DRY_STEPS if report.dry else STEPS
    losses: dict[str, list[float]] = {}
    rate: dict[str, float] = {}
    with runtime(0) as rt:
        for way, steps in zip(WAYS, (pipelined_steps, plain_steps), strict=True):
            side = bench_steps.Side(*bench_steps.sides()[name], items, users, rt)

            def forward(batch: RankingBatch, side: Any = side) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
                loss, cross_entropy = side.trainee.model(batch).loss(batch.label)
                return loss, {"loss": cross_entropy.detach()}

            def batches(side: Any = side) -> Iterator[RankingBatch]:
                return (side.catalog.expand(sample) for sample in islice(cycle(samples), count))

            found, ends = [], []
            for logged in steps(side.trainee, forward, batches()):
                found.append(logged["loss"])
                if len(found) % 10 == 0:  # not at each step, which would wait for the device
                    losses.setdefault(way, []).extend(torch.stack(found[-10:]).tolist())
                    ends.append(time.perf_counter())
            rest = found[len(losses.get(way, [])) :]
            losses.setdefault(way, []).extend(x.item() for x in rest)
            if len(ends) > 1:  # the first ten steps compile
                tens = [b - a for a, b in pairwise(ends)]
                rate[way] = 10 * len(samples[0]) / statistics.median(tens)
                report.figure(f"{name} steps", f"throughput, {way}", rate[way], "samples/s")
            last = losses[way][-10:]
            report.figure(f"{name} steps", f"last losses, {way}", sum(last) / len(last), "")
        _compare(report, f"{name} steps", losses)
        with counted(report.dry) as waits:
            side.step(samples[0])
        report.figure(f"{name} steps", "waits", len(waits), "", most=1)
        moved, products = work(lambda: side.step(samples[0]))
    if "plain" in rate:
        rates = device_rates(report)
        seconds = len(samples[0]) / rate["plain"]
        report.figure(f"{name} steps", "of copies", moved / seconds / rates["copy"], "")
        report.figure(f"{name} steps", "of matrix products", products / seconds / rates["fp32"], "")
        note = ", ".join(f"{rate[way]:,.0f} samples/s {way}" for way in WAYS)
        report.record(case=f"{name} steps", note=note)
