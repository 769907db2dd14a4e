"""One harness for all kernel benchmarks: every peer of a case in turn, times beside what the machine can do at best.

A benchmark file declares a ``Suite``: cases, a function that makes a case's inputs, and peers that solve the same task.
In each round every peer is timed once, so that what disturbs the machine disturbs all of them.
"""

import ctypes
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..process_memory import process_memory, restart_peak

MIB = 2**20
# A peer is called again within a round until this many seconds are full, and is not called again in later rounds
# once it has had its budget: a slow peer of a large case gets fewer rounds, never none.
ROUND_SECONDS, BUDGET_SECONDS = 0.1, 20.0


class Case:
    """Sizes of one problem.

    Cases of one name are one curve of the plots; ``case.B`` is the size named B.
    """

    def __init__(self, name: str, *, quick: bool = False, **sizes: Any) -> None:
        self.name, self.quick, self.sizes = name, quick, sizes

    def __getattr__(self, size: str) -> Any:
        try:
            return self.__dict__["sizes"][size]
        except KeyError:
            raise AttributeError(f"case {self.__dict__.get('name')!r} has no size {size!r}") from None

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.sizes.items())])


class Work(NamedTuple):
    """What a case needs at the least: floating-point operations and bytes to and from memory."""

    flops: float
    bytes: float


Peer = Callable[[Any], Callable[[], object] | None]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One kernel's benchmark.

    Attributes:
        kernel: its name.
        cases: what is run; those marked quick with ``--quick``.
        setup: (case, device) to inputs.
        work: case to the least work.
        peers: name to a function that takes the inputs and returns what is timed, or None where it can't run that
            case; ImportError if its package is missing. The first one is ours.
        size: the size on the plots' x axis.
    """

    kernel: str
    cases: list[Case]
    setup: Callable[[Case, torch.device], Any]
    work: Callable[[Case], Work]
    peers: dict[str, Peer]
    size: str


class Ceilings(NamedTuple):
    """What the machine reached in this run: copying and fp32 matrix products."""

    copy_gb_s: float
    matmul_gflop_s: float


def synchronize(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def measure_ceilings(device: torch.device) -> Ceilings:
    """The best of several copies of 256 MiB and of fp32 products of square matrices."""
    source = torch.ones(64 * MIB, device=device)
    target = torch.empty_like(source)
    n = 2048 if device.type == "cpu" else 8192
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    out = torch.empty_like(a)
    copy = min(seconds(lambda: target.copy_(source), device) for _ in range(7))
    product = min(seconds(lambda: torch.mm(a, b, out=out), device) for _ in range(7))
    return Ceilings(2 * source.nbytes / copy / 1e9, 2 * n**3 / product / 1e9)


def peak_mib(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """MiB that a call takes at its peak above what was in use before (NaN where the system can't tell); its seconds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        took = seconds(call, device)
        return (torch.cuda.max_memory_allocated(device) - before) / MIB, took
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        restart_peak()
    except OSError:
        return math.nan, seconds(call, device)
    before = process_memory("VmRSS")
    took = seconds(call, device)
    return max(0, process_memory("VmHWM") - before) / MIB, took


def run_case(
    suite: Suite, case: Case, device: torch.device, rounds: int, ceilings: Ceilings
) -> Iterator[dict[str, Any]]:
    """Time every peer of a case; one line each, in milliseconds."""
    torch._dynamo.reset()  # past a number of shapes torch.compile would go on without compiling
    inputs = suite.setup(case, device)
    calls: dict[str, Callable[[], object]] = {}
    missing: dict[str, str] = {}
    for name, peer in suite.peers.items():
        try:
            call = peer(inputs)
        except ImportError as error:
            missing[name] = f"not installed: {error.name or error}"
            continue
        if call is not None:
            calls[name] = call
    peaks, once = {}, {}
    for name, call in calls.items():
        peaks[name], once[name] = peak_mib(call, device)
        if once[name] < BUDGET_SECONDS:  # the first call may have compiled, which matters little in a long one
            peaks[name], once[name] = peak_mib(call, device)
    times: dict[str, list[list[float]]] = {name: [[took]] for name, took in once.items()}
    for _ in range(rounds):
        for name, call in calls.items():
            if sum(map(sum, times[name])) < BUDGET_SECONDS:
                repeat = max(1, int(ROUND_SECONDS / max(once[name], 1e-6)))
                times[name].append([seconds(call, device) for _ in range(repeat)])
    work, (ours, *_) = suite.work(case), suite.peers
    for name in calls:
        p20, p50, p80 = quantiles([t for batch in times[name] for t in batch])
        # Rounds are paired: what a noisy neighbour does to one side of a ratio it does to the other.
        pairs = zip(times[name], times[ours], strict=False)
        ratio = statistics.median(statistics.median(peer) / statistics.median(own) for peer, own in pairs)
        yield {
            "kernel": suite.kernel,
            "case": case.name,
            "sizes": json.dumps(case.sizes),
            "axis": suite.size,
            "size": case.sizes[suite.size],
            "peer": name,
            "p20_ms": f"{p20 * 1e3:.4g}",
            "p50_ms": f"{p50 * 1e3:.4g}",
            "p80_ms": f"{p80 * 1e3:.4g}",
            "times_ours": f"{ratio:.3g}",
            "peak_mib": f"{peaks[name]:.4g}",
            "gb_s": f"{work.bytes / p50 / 1e9:.4g}",
            "of_copy": f"{work.bytes / p50 / 1e9 / ceilings.copy_gb_s:.3f}",
            "gflop_s": f"{work.flops / p50 / 1e9:.4g}",
            "of_matmul": f"{work.flops / p50 / 1e9 / ceilings.matmul_gflop_s:.3f}",
            "threads": torch.get_num_threads() if device.type == "cpu" else "",
        }
    for name, reason in missing.items():
        print(f"{suite.kernel} {case}: {name}: {reason}")


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """20th, 50th and 80th percentile."""
    p20, p50, p80 = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    )
    return p20.item(), p50.item(), p80.item()
