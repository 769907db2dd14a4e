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
from torch.utils._pytree import tree_map_only

from .dense import work
from .report import Cases, Report, needed
from .speed import device_rates
from .waits import counted, show

STEPS, DRY_STEPS = 200, 3
COMPARED = 10  # of the first steps
SAME = 1e-4  # of a loss; what a few steps of sums in any order may change
SIDES = ("din", "twin_akt")  # of benchmarks/bench_steps.py
WAYS = ("pipelined", "plain")


def cases(report: Report) -> Cases:
    yield "placerank train", partial(_whole, report)
    for side in SIDES[:1] if report.dry else SIDES:
        yield f"{side} steps", partial(_steps, report, side)
    yield "kept otherwise", partial(_kept, report)


def city(report: Report, folder: Path) -> Path:
    """A prepared city."""
    with needed():
        from placerank.data.city.simulate import SimulateConfig, simulate
        from placerank.data.preparation.prepare import PrepareConfig, prepare
    cities, items, users, requests = (1, 100, 50, 150) if report.dry else (3, 3_000, 2_000, 8_000)
    raw = folder / "raw"
    simulate(SimulateConfig(out=raw, cities=cities, items=items, users=users, requests=requests, days=30))
    return prepare(PrepareConfig(input=raw, out=folder / "data", history_length=10))


def _train(run: Path, epochs: list[int], **config: Any) -> tuple[list[float], float]:
    """Losses and the last validation's AUC of a training that is resumed before each further number of epochs."""
    with needed():
        from placerank.training.train import TrainConfig, train
    for upto in epochs:
        train(TrainConfig(run=run, batch_size=256, log_every=1, epochs=upto, resume=upto != epochs[0], **config))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [x["loss"] for x in lines if x["split"] == "train"], [x["auc"] for x in lines if x["split"] == "valid"][-1]


def _whole(report: Report) -> None:
    """Simulate, prepare, train with validation and checkpoints, resume, both ways; export, and score there."""
    from placerank.rankers.dense import RankerConfig
    from placerank.rankers.plugins.rest import RestConfig

    case = "placerank train"
    with TemporaryDirectory() as scratch:
        data = city(report, Path(scratch))
        for name, ranker in {"": RankerConfig(), " rest": RankerConfig(rest=RestConfig(enabled=True))}.items():
            losses, auc = {}, {}
            for way in WAYS:
                run = Path(scratch) / f"{way}{name}"
                found = _train(run, [1, 2], data=data, ranker=ranker, pipelined=way == "pipelined")
                losses[way], auc[way] = found
                report.figure(case + name, f"AUC, {way}", auc[way], "")
            _compare(report, case + name, losses)
            report.figure(case + name, "steps", len(losses["plain"]), "")
        _exported(report, data, Path(scratch) / "plain rest", Path(scratch) / "export")


def _exported(report: Report, data: Path, run: Path, out: Path) -> None:
    """What a run scores on the device, beside its export, on the CPU and with the program moved to the device."""
    from torch.export.passes import move_to_device_pass

    from placerank.data.batches.loader import SampleLoader
    from placerank.rankers.exported import SCORER, ExportedRanker
    from placerank.training.export import ExportConfig, export
    from placerank.training.inference import load_scorer
    from placerank.training.runtime import runtime

    with runtime(0) as rt:
        score, _, _ = load_scorer(run, rt)
        wanted = torch.cat([score(sample).cpu() for sample in SampleLoader(data, "test", 300, shuffle=False)])
    ranker = ExportedRanker.load(export(ExportConfig(run=run, out=out)))
    program = move_to_device_pass(torch.export.load(out / SCORER), str(report.device)).module()

    class OnDevice(torch.nn.Module):
        def forward(self, *given: Any) -> torch.Tensor:
            logits: torch.Tensor = program(*tree_map_only(torch.Tensor, lambda x: x.to(report.device), given))
            return logits.cpu()

    moved = ExportedRanker(ranker.features, ranker.catalog, ranker.tables, OnDevice())
    for name, served in {"on the CPU": ranker, "moved to the device": moved}.items():
        got = torch.cat([served.score(sample) for sample in SampleLoader(data, "test", 300, shuffle=False)])
        report.figure("export", f"logits differ {name} by", (got - wanted).abs().max().item(), "", most=1e-3)


def _kept(report: Report) -> None:
    """Tables and catalog kept in other ways train as the default does, a checkpoint between."""
    with needed():
        from placerank.training.sharding import ShardingConfig
    ways = {
        "data_parallel": ShardingConfig(default="data_parallel"),
        "sharded catalog": ShardingConfig(catalog="sharded"),
    }
    if not report.dry:
        ways |= {kernel: ShardingConfig(kernel=kernel) for kernel in ("fused_uvm", "fused_uvm_caching")}
        ways["bf16 rows"] = ShardingConfig(forward_comms="bf16", backward_comms="bf16")
    with TemporaryDirectory() as scratch:
        data = city(report, Path(scratch))
        want, wanted_auc = _train(Path(scratch) / "default", [1, 2], data=data)
        for name, sharding in ways.items():
            losses, auc = _train(Path(scratch) / name, [1, 2], data=data, sharding=sharding)
            apart = _apart(losses, want)  # a table that is made elsewhere starts from other random numbers
            report.figure("kept otherwise", f"first losses differ by, {name}", apart, "")
            report.figure("kept otherwise", f"AUC below the default's, {name}", wanted_auc - auc, "", most=0.02)


def _apart(losses: list[float], others: list[float]) -> float:
    """The largest relative difference of the first steps."""
    pairs = list(zip(losses, others, strict=True))[:COMPARED]
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs)


def _compare(report: Report, case: str, losses: dict[str, list[float]]) -> None:
    report.figure(case, "first losses differ by", _apart(losses["pipelined"], losses["plain"]), "", most=SAME)


def _steps(report: Report, name: str) -> None:
    """Steps on batches in memory, the catalog's look-ups included, as ``bench_steps.py`` makes them."""
    with needed():
        import numpy as np

        from placerank.data.batches.batch import RankingBatch
        from placerank.training.runtime import runtime
        from placerank.training.steps import pipelined_steps, plain_steps

        from .. import bench_steps
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
                loss, logged = side.trainee.model(batch).loss(batch.label)
                return loss, {"loss": logged["loss"].detach()}

            gathered = [side.catalog.gather(sample) for sample in samples]  # in training a thread of its own does so
            gathered = gathered if report.dry else [x.pin_memory() for x in gathered]

            def batches(side: Any = side, gathered: Any = gathered) -> Iterator[RankingBatch]:
                return (side.catalog.expand(x) for x in islice(cycle(gathered), count))

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
            side.step(gathered[0])
        report.figure(f"{name} steps", "waits", len(waits), "", most=2)  # TorchRec's own, one a collection
        show(waits)
        moved, products = work(lambda: side.step(samples[0]))
    if "plain" in rate:
        rates = device_rates(report)
        seconds = len(samples[0]) / rate["plain"]
        report.figure(f"{name} steps", "of copies", moved / seconds / rates["copy"], "")
        report.figure(f"{name} steps", "of matrix products", products / seconds / rates["fp32"], "")
        note = ", ".join(f"{rate[way]:,.0f} samples/s {way}" for way in WAYS)
        report.record(case=f"{name} steps", note=note)
