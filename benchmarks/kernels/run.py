"""Runs the kernels' suites, prints a table a case, keeps the lines and draws the pictures."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ..results_file import conditions, keep
from .harness import Suite, measure_ceilings, run_case
from .plots import draw
from .settings import BenchKernelsConfig

RESULTS = "kernels.csv"


def load(kernel: str) -> Suite:
    """The suite of ``bench_<kernel>.py``."""
    suite: Suite = importlib.import_module(f".bench_{kernel}", __package__).SUITE
    return suite


def bench_kernels(config: BenchKernelsConfig) -> Path | None:
    """Run the suites; returns the file written, if any."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: got cuda, but torch sees no CUDA device; placerank doctor tells more")
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
