"""Step time and memory of every tower beside plain DIN, at histories of 50, 500 and 5,000 visits.

    python benchmarks/bench_towers.py                 # small batches, three rounds, prints
    python benchmarks/bench_towers.py --full          # more samples and rounds, and writes results/towers.csv
    python benchmarks/bench_towers.py --towers twin eta

A step is forward and backward of the tower alone, all gradients included, on histories in memory. Lengths are skewed
(log-normal, a median of a third of the longest, cut there) or all full. In each round DIN runs before each tower, so
the ratio is of neighbours in time: the median over rounds, and its range. Memory is the peak above the inputs.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import placerank.rankers  # noqa: F401  (registers the towers)
from placerank.benchmarks.kernels.harness import peak_mib
from placerank.benchmarks.results_file import save
from placerank.data.features import HISTORY_GAPS, HOURS_PER_WEEK
from placerank.rankers.tower import TOWERS, Context, History

DIM = 48
BASELINE = "din"
LONGEST = (50, 500, 5000)
CATEGORIES = 50


def make_batch(longest: int, visits: int, skewed: bool) -> tuple[Tensor, History, Context]:
    """About so many visits in histories of up to ``longest``."""
    g = torch.Generator().manual_seed(0)
    if skewed:
        lengths = (torch.randn(visits, generator=g).exp() * longest / 3).long().clamp(max=longest)
        lengths = lengths[: int((lengths.cumsum(0) < visits).sum()) + 1]
    else:
        lengths = torch.full((max(1, visits // longest),), longest)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    B, T = lengths.numel(), int(offsets[-1])
    query, keys = (torch.randn(n, DIM, generator=g).mul(0.3).requires_grad_() for n in (B, T))
    gaps = torch.rand(T, HISTORY_GAPS, generator=g) * 9

    def rows(n: int, end: int) -> Tensor:
        return torch.randint(0, end, (n,), generator=g)

    def places(n: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(n, 3, generator=g) * 0.01 + torch.tensor([0.6, 0.0, 0.8]))

    context = Context(
        rows(B, CATEGORIES), rows(B, HOURS_PER_WEEK), places(B), places(B), rows(T, CATEGORIES),
        rows(T, HOURS_PER_WEEK), places(T),
    )  # fmt: skip
    return query, History(keys, offsets, gaps), context


def step_of(name: str, query: Tensor, history: History, context: Context) -> Callable[[], object]:
    """A step of one tower in training."""
    torch.manual_seed(0)
    tower = TOWERS[name](DIM, HISTORY_GAPS).train()
    leaves = [query, history.keys, *tower.parameters()]

    def step() -> object:
        interest, loss = tower.forward_with_loss(query, history, context)
        total = interest.sum() if loss is None else interest.sum() + loss
        return torch.autograd.grad(total, leaves, allow_unused=True)

    return step


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(longest: int, visits: int, skewed: bool, towers: list[str], rounds: int) -> list[dict[str, Any]]:
    """One line a tower: its time over DIN's of the same round."""
    batch = make_batch(longest, visits, skewed)
    steps = {name: step_of(name, *batch) for name in [BASELINE, *towers]}
    for step in steps.values():
        step()  # compiles
    peaks = {name: peak_mib(step, torch.device("cpu"))[0] for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in towers}
    ratios: dict[str, list[float]] = {name: [] for name in towers}
    for _ in range(rounds):
        for name in towers:
            base, own = seconds(steps[BASELINE]), seconds(steps[name])
            times[name].append(own)
            ratios[name].append(own / base)
    B, T = batch[0].shape[0], batch[1].keys.shape[0]
    return [
        {
            "tower": name,
            "longest": longest,
            "lengths": "skewed" if skewed else "full",
            "samples": B,
            "visits": T,
            "rounds": rounds,
            "times_din": f"{statistics.median(ratios[name]):.2f}",
            "times_din_min": f"{min(ratios[name]):.2f}",
            "times_din_max": f"{max(ratios[name]):.2f}",
            "ms": f"{statistics.median(times[name]) * 1e3:.1f}",
            "ns_a_visit": f"{statistics.median(times[name]) / T * 1e9:.0f}",
            "peak_mib": f"{peaks[name]:.0f}",
            "peak_times_din": f"{peaks[name] / max(peaks[BASELINE], 1e-9):.2f}",
            "threads": torch.get_num_threads(),
        }
        for name in towers
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more samples and rounds; writes results/towers.csv")
    parser.add_argument("--towers", nargs="+", choices=sorted(TOWERS), help="default: all but the baseline")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    towers = args.towers or [name for name in TOWERS if name != BASELINE]
    visits, rounds = (300_000, 5) if args.full else (100_000, 3)
    lines = []
    for longest in LONGEST:
        for skewed in (True, False):
            for line in measure(longest, visits, skewed, towers, rounds):
                lines.append(line)
                print(
                    f"{line['tower']:9} up to {longest:>5,} {line['lengths']:6} ({line['samples']:,} samples) "
                    f"{line['times_din']:>6} x DIN ({line['times_din_min']} to {line['times_din_max']}), "
                    f"{line['ns_a_visit']} ns a visit, memory {line['peak_times_din']} x"
                )
    if args.full:
        save("towers.csv", lines)


if __name__ == "__main__":
    main()
