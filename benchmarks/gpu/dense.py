"""The dense part's training step: every tower, TWIN and DIN with each plug-in, in fp32 and bf16.

Time is of forward, backward and optimizer. Bytes are those that the step's operators read and write, each counted
alone: what does not fuse moves so much at the least. Operations are PyTorch's own matrix products, so shares leave out
what kernels multiply.
"""

import math
import statistics
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..kernels.harness import peak_mib, seconds
from .report import Cases, Report
from .sides import Side, Trained, sides
from .speed import device_rates, profiled

SAMPLES, DRY_SAMPLES = 10_240, 32
STEPS, DRY_STEPS = 20, 2
DRY = ("twin", "din 10 candidates", "twin rest akt")


def cases(report: Report) -> Cases:
    rates = cache(partial(device_rates, report))
    chosen = [side for side in sides() if not report.dry or side.name in DRY]
    for side in chosen:
        for bf16 in (False, True):
            name = f"{side.name} {'bf16' if bf16 else 'fp32'}"
            yield name, partial(_measure, report, name, side, bf16, rates)


class _Bytes(TorchDispatchMode):
    """Sums what operators read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.total += sum(x.nbytes for x in torch.utils._pytree.tree_leaves((args, out)) if isinstance(x, Tensor))
        return out


def work(step: Callable[[], object]) -> tuple[int, int]:
    """Bytes that the operators of a step read and write, and operations of its matrix products."""
    with FlopCounterMode(display=False) as products, _Bytes() as moved:
        step()
    return moved.total, products.get_total_flops()


def _measure(report: Report, name: str, side: Side, bf16: bool, rates: Callable[[], dict[str, float]]) -> None:
    samples, steps = (DRY_SAMPLES, DRY_STEPS) if report.dry else (SAMPLES, STEPS)
    trained = Trained(side, samples, report.device, bf16)
    losses = [trained.step().item() for _ in range(3)]
    if not all(map(math.isfinite, losses)):
        raise FloatingPointError(f"losses {losses}")
    peak, _ = peak_mib(trained.step, report.device)
    ms = 1e3 * statistics.median(seconds(trained.step, report.device) for _ in range(steps))
    moved, products = work(trained.step)
    best = rates()
    launches, busy, top = profiled(trained.step, report.device)
    found = {
        "ms": (ms, "ms"),
        "kernels": (launches, ""),
        "device busy": (busy / ms, ""),
        "peak": (peak, "MiB"),
        "of copies": (moved / (ms / 1e3) / best["copy"], ""),
        "of matrix products": (products / (ms / 1e3) / best["bf16" if bf16 else "fp32"], ""),
    }
    for metric, (value, unit) in found.items():
        report.figure(name, metric, value, unit)
    note = f"{ms:.2f} ms, {launches} kernels, device busy {busy / ms:.0%}, {peak:.0f} MiB"
    report.record(case=name, note=note, top=top)
