"""Runs the kernels' suites, prints a table a case, keeps the lines and draws the pictures."""

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ...data.plain import check_numbers
from ..results_file import conditions, keep
from .harness import Suite, measure_ceilings, run_case
from .plots import draw

KERNELS = (
    "pairwise_within", "hard_negatives", "residual_encode", "residual_lookup", "target_attention", "search_attention",
    "gru", "trie_topk", "tree_attention",
)  # fmt: skip
RESULTS = "kernels.csv"


@dataclass(kw_only=True)
class BenchKernelsConfig:
    """Time the kernels beside what else does the same work, in turn, on this machine."""

    kernel: tuple[str, ...] = KERNELS
    """Which kernels."""
    device: str = "auto"
    """cpu, cuda, or auto: CUDA where there is one."""
    quick: bool = False
    """Small cases only, a minute in all."""
    rounds: int = 7
    """How often every peer of a case is timed, in turn."""
    json: Path | None = None
    """Also write the lines and their conditions to this file."""
    save: bool = False
    """Keep the lines in the checkout's benchmarks/results/kernels.csv and draw its pictures anew."""

    def __post_init__(self) -> None:
        check_numbers(self, "")
        unknown = set(self.kernel) - set(KERNELS)
        if unknown:
            raise ValueError(f"kernel: got {', '.join(sorted(unknown))}, expected some of {', '.join(KERNELS)}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device: got {self.device!r}, expected auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: got cuda, but torch sees no CUDA device; placerank doctor tells more")
        if self.rounds < 1:
            raise ValueError(f"rounds: got {self.rounds}, expected at least 1")
        if self.save and self.quick:
            raise ValueError("save keeps the figures that are quoted, so it goes without quick")


def load(kernel: str) -> Suite:
    """The suite of ``bench_<kernel>.py``."""
    suite: Suite = importlib.import_module(f".bench_{kernel}", __package__).SUITE
    return suite


def bench_kernels(config: BenchKernelsConfig) -> Path | None:
    """Run the suites; returns the file written, if any."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if cuda else "cpu")
    ceilings = measure_ceilings(device)
    console.print(
        f"{conditions(device)['device']}: copies {ceilings.copy_gb_s:.0f} GB/s, "
        f"fp32 matrix products {ceilings.matmul_gflop_s:.0f} GFLOP/s"
    )
    lines: list[dict[str, Any]] = []
    for kernel in config.kernel:
        suite = load(kernel)
        for case in suite.cases:
            if case.quick or not config.quick:
                with console.status(f"{kernel}: {case}"):
                    found = list(run_case(suite, case, device, config.rounds, ceilings))
                console.print(_table(f"{kernel}: {case}", found))
                lines += found
        if config.save:  # after each kernel, so that what is done is kept when the rest is stopped
            path = keep(RESULTS, [line for line in lines if line["kernel"] == kernel], ("kernel", "device"), device)
            draw(path)
    if config.json is not None:
        config.json.write_text(json.dumps({**conditions(device), **ceilings._asdict(), "lines": lines}, indent=1))
        return config.json
    return None


def _table(title: str, lines: list[dict[str, Any]]) -> Table:
    shown = ["peer", "p20_ms", "p50_ms", "p80_ms", "times_ours", "peak_mib", "of_copy", "of_matmul"]
    table = Table(title=title, title_justify="left")
    for name in shown:
        table.add_column(name, no_wrap=True)
    for line in lines:
        table.add_row(*(str(line[name]) for name in shown))
    return table
