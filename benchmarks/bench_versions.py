"""Training steps of this checkout beside those of another, in turns: whether a change made them slower.

    git worktree add ../before v0.1.0
    python benchmarks/bench_versions.py --beside ../before                 # every side of bench_steps.py
    python benchmarks/bench_versions.py --beside ../before --sides din twin --rounds 25 --histories 50 500 \\
        --candidates 1 10 50

A batch has 4,096 candidates. Each checkout runs in a process of its own, in this environment, on the same made-up
samples. In a round both make their steps, who is first by chance; a ratio is this one's processor time over the other's
in that round, so above 1 this one is slower. The other checkout has to have ``bench_steps.py`` with the sides that are
asked for.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

WORKER = "--worker"


def work() -> None:
    """Answer each line of the input with seconds: "samples LONGEST CANDIDATES" makes them, "side NAME" makes it ready,
    "go" takes its steps."""
    import numpy as np
    import torch

    from placerank.benchmarks import bench_steps
    from placerank.training.runtime import runtime

    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    torch.set_num_threads(1)
    items, users, share = bench_steps.make_tables(np.random.default_rng(0))
    with runtime(0) as rt:
        samples: list[Any] = []
        for line in sys.stdin:
            what, *arguments = line.split()
            if what == "samples":
                longest, candidates = map(int, arguments)
                rng = np.random.default_rng(1)
                samples = [make_samples(rng, share, longest, candidates) for _ in range(bench_steps.BATCHES)]
            elif what == "side":
                side = bench_steps.Side(*bench_steps.sides()[arguments[0]], items, users, rt)
            start = time.process_time()
            if what != "samples":
                for sample in samples:
                    side.step(sample)
            answers.write(f"{time.process_time() - start}\n")
            answers.flush()


def make_samples(rng: Any, share: Any, longest: int, candidates: int) -> Any:
    """A batch of ``bench_steps.BATCH`` candidates for this process's package, the same in all checkouts.

    Those of before a sample knew its request have a row a candidate, with a history of its own.
    """
    from dataclasses import fields

    import numpy as np
    import torch

    from placerank.benchmarks import bench_steps
    from placerank.benchmarks.skewed import history_lengths
    from placerank.data.batches.batch import SampleBatch

    size, items, users = bench_steps.BATCH, bench_steps.ITEMS, bench_steps.USERS
    requests = -(-size // candidates)
    lengths = history_lengths(rng, requests, longest)
    visits, request = int(lengths.sum()), np.arange(size) // candidates
    met = 1 + rng.choice(items - 1, size + visits, p=share)
    user, hours = rng.integers(0, users, requests), rng.exponential(200, visits)
    label, (lat, lon) = rng.random(size) < 0.2, rng.uniform(0, 20, (2, requests))
    history, offsets = met[size:], np.concatenate([[0], np.cumsum(lengths.numpy())])
    whole, real = (lambda x, t=t: torch.from_numpy(np.ascontiguousarray(x)).to(t) for t in (torch.int64, torch.float32))
    time, none = np.full(requests, bench_steps.NOW), torch.zeros(size, dtype=torch.int32)
    candidate: dict[str, Any] = {"label": real(label), "visits": none, "probability": None, "valid": size}
    if "ids" not in {f.name for f in fields(SampleBatch)}:
        return SampleBatch(
            request_id=torch.arange(requests), user=whole(user), user_index=whole(user), time=whole(time),
            lat=real(lat), lon=real(lon), offsets=whole(offsets), history=whole(history), history_hours=real(hours),
            request=whole(request), item=whole(met[:size]), **candidate,
        )  # fmt: skip
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    rows = np.concatenate([np.arange(offsets[r], offsets[r + 1]) for r in request])
    one = np.ones(size, np.int64)
    ids = KeyedJaggedTensor(
        keys=["user", "item", "history"],
        values=whole(np.concatenate([user[request], met[:size], history[rows]])),
        lengths=whole(np.concatenate([one, one, lengths.numpy()[request]])),
    )
    old: Any = SampleBatch
    return old(
        ids=ids, history_hours=real(hours[rows]), request=whole(request), user_index=whole(user[request]),
        time=whole(time[request]), lat=real(lat[request]), lon=real(lon[request]), **candidate,
    )  # fmt: skip


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
    parser.add_argument("--histories", nargs="+", type=int, default=[50], help="longest ones (default: 50)")
    parser.add_argument("--candidates", nargs="+", type=int, default=[1], help="of each request (default: 1)")
    args = parser.parse_args()
    from placerank.benchmarks.bench_steps import BATCHES, sides

    here, other = Checkout(Path(__file__).resolve().parents[1]), Checkout(args.beside.resolve())
    print(f"{'side':24} {'history':>8} {'candidates':>10}   ratio, quartiles         ms here, ms there")
    for longest, candidates in product(args.histories, args.candidates):
        for checkout in (here, other):
            checkout.ask(f"samples {longest} {candidates}")
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
                f"{side:24} {longest:8,} {candidates:10,}   "
                f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})   {ms[0]:.1f}, {ms[1]:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    work() if WORKER in sys.argv else main()
