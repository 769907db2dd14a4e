"""The kernels beside eager PyTorch, torch.compile and the libraries that are there, in the cases that have targets.

The suites are those of ``placerank bench kernels``; a line a peer goes into ``kernels.csv``. A dry run takes the
smallest cases, once, and of the peers eager PyTorch alone.
"""

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from ..kernels.harness import Case, Ceilings, Suite, measure_ceilings, run_case, seconds
from .report import Cases, Report

ROUNDS = 3
TOP = 5  # kernels named
EAGER = {"eager PyTorch", "nn.Embedding sums"}
PLANES = 6  # bfloat16 products that one exact float32 product is made of, kernels/codebook_triton.py


class Wanted(NamedTuple):
    """A case of a suite, and what it is to reach.

    Attributes:
        kernel: names the suite.
        case: its name.
        sizes: those that tell it from the others of that name.
        eager: times as fast as eager PyTorch, at least.
        of_products: share of the device's bfloat16 products, at least.
    """

    kernel: str
    case: str
    sizes: dict[str, int]
    eager: float | None = None
    of_products: float | None = None


WANTED = [
    Wanted("hard_negatives", "city", {"B": 16_384}, eager=10),
    Wanted("residual_encode", "levels", {"N": 100_000}, of_products=0.6),
    Wanted("target_attention", "step_skewed", {"B": 4_096}, eager=3),
    Wanted("target_attention", "forward_skewed", {"B": 4_096}, eager=3),
    Wanted("search_attention", "step_skewed", {"B": 2_048}),
    Wanted("residual_lookup", "full", {"N": 10_240}),
    Wanted("pairwise_within", "city", {"B": 16_384}),
    Wanted("gru", "step_skewed", {"B": 1_024}),
]
DRY = [Wanted("hard_negatives", "city", {"B": 1_024}, eager=10), Wanted("residual_encode", "tiny", {}, of_products=0.6)]


def device_rates(report: Report) -> dict[str, float]:
    """What the device does at best, measured now: bytes copied ("copy"), operations of fp32 and bf16 products a second.

    In a dry run it is made up.
    """
    if report.dry:
        return dict.fromkeys(("copy", "fp32", "bf16"), 1e12)
    ceilings, n = measure_ceilings(report.device), 8192
    a, b = (torch.randn(n, n, device=report.device, dtype=torch.bfloat16) for _ in range(2))
    bf16 = 2 * n**3 / min(seconds(lambda: a @ b, report.device) for _ in range(7))
    rates = {"copy": ceilings.copy_gb_s * 1e9, "fp32": ceilings.matmul_gflop_s * 1e9, "bf16": bf16}
    report.figure("device", "copies", rates["copy"] / 1e9, "GB/s")
    report.figure("device", "fp32 products", rates["fp32"] / 1e12, "TFLOP/s")
    report.figure("device", "bf16 products", rates["bf16"] / 1e12, "TFLOP/s")
    return rates


def cases(report: Report) -> Cases:
    rates, kept = cache(partial(device_rates, report)), dict[str, list[dict[str, Any]]]()
    for wanted in DRY if report.dry else WANTED:
        sizes = [f"{name} {size:,}" for name, size in wanted.sizes.items()]
        yield " ".join([wanted.kernel, wanted.case, *sizes]), partial(_measure, report, wanted, rates, kept)


def _measure(
    report: Report, wanted: Wanted, rates: Callable[[], dict[str, float]], kept: dict[str, list[dict[str, Any]]]
) -> None:
    """Time a case; ``kept`` holds the lines by kernel, as a file of results takes all of a kernel's together."""
    suite: Suite = importlib.import_module(f"placerank.benchmarks.kernels.bench_{wanted.kernel}").SUITE
    (case,) = [c for c in suite.cases if c.name == wanted.case and wanted.sizes.items() <= c.sizes.items()]
    if report.dry:
        ours, *_ = suite.peers
        suite = replace(suite, peers={n: peer for n, peer in suite.peers.items() if n == ours or n in EAGER})
    best = rates()
    ceilings = Ceilings(best["copy"] / 1e9, best["fp32"] / 1e9)
    lines = list(run_case(suite, case, report.device, 1 if report.dry else ROUNDS, ceilings))
    kept.setdefault(wanted.kernel, []).extend(lines)
    report.keep("kernels.csv", kept[wanted.kernel], ("kernel", "device"))
    name = f"{wanted.kernel} {case}"
    for line in lines:
        peer, times = line["peer"], float(line["times_ours"])
        print(f"{name}: {peer} {line['p50_ms']} ms, {times} x ours, {line['peak_mib']} MiB", flush=True)
        if peer in EAGER:
            report.figure(name, "times as fast as eager", times, "x", least=wanted.eager)
        if peer == "torch.compile":
            report.figure(name, "times as fast as torch.compile", times, "x", least=1.0)
    ours = next(iter(suite.peers))
    alone = {peer: _device_ms(wanted, suite, case, peer, report) for peer in (ours, *sorted(EAGER), "torch.compile")}
    for peer, ms in alone.items():
        if ms and alone[ours] and peer != ours:
            kind = "eager" if peer in EAGER else peer
            report.figure(name, f"times as fast as {kind}, kernels alone", ms / alone[ours], "x")
    if wanted.of_products is not None:
        rate = PLANES * suite.work(case).flops / (float(lines[0]["p50_ms"]) / 1e3)
        report.figure(name, "of bf16 products", rate / best["bf16"], "", least=wanted.of_products)


def _device_ms(wanted: Wanted, suite: Suite, case: Case, peer: str, report: Report) -> float:
    """Milliseconds of a call that the device computes, 0 for a peer that there isn't; else it waits for the host."""
    call = suite.peers[peer](suite.setup(case, report.device)) if peer in suite.peers else None
    if call is None:
        return 0.0
    for _ in range(2):
        call()
    _, ms, _ = profiled(call, report.device)
    report.figure(f"{wanted.kernel} {case}", f"kernels of {peer}", ms, "ms")
    return ms


def profiled(call: Callable[[], object], device: torch.device) -> tuple[int, float, list[str]]:
    """Kernels of a call (operators on a CPU), their milliseconds together, and the ones that take most."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as found:
        call()
        if cuda:
            torch.cuda.synchronize()
    kind = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    events = [e for e in found.key_averages() if e.device_type == kind and not getattr(e, "is_user_annotation", False)]
    took = {e.key: (e.self_device_time_total if cuda else e.self_cpu_time_total) / 1e3 for e in events}
    most = sorted(took, key=lambda key: -took[key])[:TOP]
    total = sum(took.values())
    top = [f"{key[:80]}: {took[key]:.3f} ms ({took[key] / max(total, 1e-9):.0%})" for key in most]
    print("\n".join(f"    {line}" for line in top))
    return sum(e.count for e in events), total, top
