"""Training throughput of DIN: placerank against FuxiCTR, DeepCTR-Torch, RecBole and torch-rechub from PyPI.

    python benchmarks/bench_throughput.py                # all cases, 5 rounds
    python benchmarks/bench_throughput.py --quick        # one case, 2 rounds
    python benchmarks/bench_throughput.py --peers fuxictr --cases full-4096

Each side is a process in an environment of its own (made here, under --cache), on the same arrays, with the same
batch, widths, history length, table sizes and threads. The processes stay alive and take turns: one is timed at a time,
A, B, C, ..., A, B, C, ..., so that a slow minute of the machine hits all. A figure is training steps on batches in
memory, no loader; "fit" is an epoch of each side's own loop with its own loader.

Every peer gets what is best for it: Adam fused=True, its regularizers off, its own default activations.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from placerank.benchmarks.results_file import keep
from placerank.benchmarks.throughput.dataset import DatasetConfig, make_dataset
from placerank.benchmarks.throughput.environments import PEERS, environment

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks" / "throughput"
OURS = "placerank"
PERCENTILES = (20, 50, 80)


@dataclass(frozen=True)
class Case:
    """One setting: samples a step, columns of every table, and history lengths "skewed" or "full"."""

    batch: int
    dim: int
    lengths: str

    @property
    def name(self) -> str:
        return f"{self.lengths}-{self.batch}-{self.dim}"


CASES = (Case(4096, 16, "skewed"), Case(1024, 16, "skewed"), Case(4096, 32, "skewed"), Case(4096, 16, "full"))


class Worker:
    """One side in its own process.

    Args:
        name: of the side.
        python: of its environment.
        case, data, config: what it trains.
        cache: for its scratch files and its log.
        threads: of its tensor operations.
    """

    def __init__(
        self, name: str, python: Path, case: Case, data: Path, config: DatasetConfig, cache: Path, threads: int
    ) -> None:
        self.name = name
        script = HERE / "peers" / (PEERS[name].script if name in PEERS else "ours.py")
        sizes = {key: value for key, value in asdict(config).items() if key != "seed"}
        command = [str(python), str(script), "--data", str(data), "--scratch", str(cache / "scratch" / name)]
        command += ["--threads", str(threads), "--case", json.dumps({**asdict(case), **sizes})]
        limits = {key: str(threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        self.log = cache / f"{name}.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # waits that spin starve the other thread on machines with as many threads as cores, for every side
                env={**os.environ, **limits, "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""},
            )
        self.hello = self._answer()

    def ask(self, command: str) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        stdin: IO[str] | None = self.process.stdin
        assert stdin is not None
        stdin.write(command + "\n")
        stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()  # the end of its input ends it
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        """The next line that is JSON; a peer may print other things (DeepCTR-Torch tells of newer versions)."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        tail = "\n".join(self.log.read_text().splitlines()[-20:])
        raise RuntimeError(f"the worker of {self.name} ended, code {self.process.wait()}; its log {self.log}:\n{tail}")


def run_case(
    case: Case, pythons: dict[str, Path], data: Path, config: DatasetConfig, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Time all sides in turn; one row a side."""
    workers: list[Worker] = []
    try:
        for name, python in pythons.items():
            workers.append(Worker(name, python, case, data, config, arguments.cache, arguments.threads))
            workers[-1].ask(f"warm {arguments.warm}")
            print(f"{case.name}: {name} is warm", file=sys.stderr)
        rates: dict[str, list[float]] = {worker.name: [] for worker in workers}
        losses: dict[str, float] = {}
        for _ in range(arguments.rounds):
            for worker in workers:
                answer = worker.ask(f"step {arguments.seconds}")
                rates[worker.name].append(answer["samples_per_s"])
                losses[worker.name] = answer["loss"]
        fits: dict[str, list[float]] = {worker.name: [] for worker in workers}
        for _ in range(arguments.fits):
            for worker in workers:
                rate = worker.ask("fit")["samples_per_s"]
                fits[worker.name] += [] if rate is None else [rate]
    finally:
        for worker in workers:
            worker.close()
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    fastest = max((value for name, value in medians.items() if name != OURS), default=float("nan"))
    rows = []
    for worker in workers:
        name = worker.name
        low, middle, high = np.percentile(rates[name], PERCENTILES)
        rows.append(
            {
                "peer": name,
                "version": worker.hello["version"],
                "case": case.name,
                "batch": case.batch,
                "dim": case.dim,
                "history": config.history,
                "lengths": case.lengths,
                "samples_per_s_p20": round(low),
                "samples_per_s_p50": round(middle),
                "samples_per_s_p80": round(high),
                "rounds": len(rates[name]),
                "ours_over_it": round(medians[OURS] / middle, 3) if OURS in medians else "",
                "ours_over_fastest_peer": round(medians[OURS] / fastest, 3) if name == OURS else "",
                "fit_samples_per_s_p50": round(float(np.median(fits[name]))) if fits[name] else "",
                "last_loss": round(losses[name], 4),
                "parameters": worker.hello["parameters"],
                "torch": worker.hello["torch"],
                "settings": worker.hello["settings"],
                "threads": arguments.threads,
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print one table a case, fastest first."""
    for case in dict.fromkeys(row["case"] for row in rows):
        print(f"\n{case}: samples/s, steps on batches in memory (median, 20 % - 80 %)")
        for row in sorted((row for row in rows if row["case"] == case), key=lambda row: -row["samples_per_s_p50"]):
            spread = f"{row['samples_per_s_p20']:>7,} - {row['samples_per_s_p80']:<7,}"
            fit = f"{row['fit_samples_per_s_p50']:,}" if row["fit_samples_per_s_p50"] != "" else "-"
            print(
                f"  {row['peer']:<14} {row['version']:<12} {row['samples_per_s_p50']:>8,}  {spread}"
                f"  ours/it {row['ours_over_it']}  fit() {fit}  loss {row['last_loss']}"
            )
    for row in {row["peer"]: row for row in rows}.values():
        print(f"{row['peer']}: {row['settings']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument(
        "--quick", action="store_true", help="first case only, 2 short rounds, no fit(), nothing written"
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--seconds", type=float, default=4.0, help="at least so long a turn")
    parser.add_argument("--warm", type=int, default=12, help="untimed steps before the first turn")
    parser.add_argument("--fits", type=int, default=1, help="epochs of each side's own loop, with its loader")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "peers", help="environments, data, logs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.warm, arguments.fits = 2, 2.0, 4, 0
        arguments.cases = arguments.cases[:1]
    arguments.cache = arguments.cache.resolve()
    pythons = {OURS: Path(sys.executable), **{name: environment(name, arguments.cache) for name in arguments.peers}}
    config = DatasetConfig()
    data = make_dataset(arguments.cache / "dataset", config)
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if case.name in arguments.cases:
            rows += run_case(case, pythons, data, config, arguments)
    if not arguments.quick:
        path = keep("throughput.csv", rows, ("case",))
        print(f"wrote {path}", file=sys.stderr)
    show(rows)


if __name__ == "__main__":
    main()
