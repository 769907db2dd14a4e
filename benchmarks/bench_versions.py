"""Training steps of this checkout beside those of another, in turns: whether a change made them slower.

    git worktree add ../before v0.1.0
    python benchmarks/bench_versions.py --beside ../before                 # every side of bench_steps.py
    python benchmarks/bench_versions.py --beside ../before --sides din twin --rounds 25

Each checkout runs in a process of its own, in this environment, on the same made-up samples. In a round both make their
steps, who is first by chance; a ratio is this one's processor time over the other's in that round, so above 1 this one
is slower. The other checkout has to have ``bench_steps.py`` with the sides that are asked for.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

WORKER = "--worker"


def work() -> None:
    """Answer each line of the input with seconds: "side NAME" makes it ready, "go" takes its steps."""
    import numpy as np
    import torch

    from placerank.benchmarks import bench_steps
    from placerank.training.runtime import runtime

    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    torch.set_num_threads(1)
    items, users, share = bench_steps.make_tables(np.random.default_rng(0))
    with runtime(0) as rt:
        rng = np.random.default_rng(1)
        samples = [bench_steps.make_samples(rng, share, 50) for _ in range(bench_steps.BATCHES)]
        for line in sys.stdin:
            what, *name = line.split()
            if what == "side":
                side = bench_steps.Side(*bench_steps.sides()[name[0]], items, users, rt)
            start = time.process_time()
            for sample in samples:
                side.step(sample)
            answers.write(f"{time.process_time() - start}\n")
            answers.flush()


class Checkout:
    """A process that makes steps with the package of a folder."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "src/placerank").is_dir():
            raise SystemExit(f"{folder}: no checkout of placerank, it has no src/placerank")
        self.process = subprocess.Popen(
            [sys.executable, __file__, WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
        )

    def ask(self, line: str) -> float:
        """Seconds of processor time for what ``work`` does at the line."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the process of {self.process.args!r} ended with {self.process.wait()} at {line!r}")
        return float(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, required=True, help="the other checkout")
    parser.add_argument("--sides", nargs="+", help="default: all of bench_steps.py")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    from placerank.benchmarks.bench_steps import BATCHES, sides

    here, other = Checkout(Path(__file__).resolve().parents[1]), Checkout(args.beside.resolve())
    print(f"{'side':24}   ratio, quartiles         ms here, ms there")
    for side in args.sides or sides():
        for checkout in (here, other):
            checkout.ask(f"side {side}")
        times: dict[Checkout, list[float]] = {here: [], other: []}
        for _ in range(args.rounds):
            for checkout in random.sample([here, other], 2):
                times[checkout].append(checkout.ask("go"))
        ratios = [a / b for a, b in zip(times[here], times[other], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        ms = [statistics.median(times[checkout]) * 1e3 / BATCHES for checkout in (here, other)]
        print(
            f"{side:24}   {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})   {ms[0]:.1f}, {ms[1]:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    work() if WORKER in sys.argv else main()
