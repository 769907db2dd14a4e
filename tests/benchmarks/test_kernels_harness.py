"""The harness of the kernel benchmarks, on a toy suite."""

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from placerank.benchmarks import results_file
from placerank.benchmarks.kernels import plots, run, settings
from placerank.benchmarks.kernels.harness import Case, Ceilings, Suite, Work, measure_ceilings, peak_mib, run_case
from placerank.cli.main import main

CPU = torch.device("cpu")


def missing(inputs: int) -> Callable[[], object]:
    raise ImportError("No module named 'rival'", name="rival")


SUITE = Suite(
    kernel="nap",
    cases=[Case("short", quick=True, ms=1), Case("short", ms=2), Case("other", ms=2)],
    setup=lambda case, device: case.ms,
    work=lambda case: Work(flops=case.ms * 1e6, bytes=case.ms * 1e6),
    peers={
        "placerank": lambda ms: lambda: time.sleep(ms / 1e3),
        "slow": lambda ms: lambda: time.sleep(ms * 4 / 1e3),
        "never": lambda ms: None,
        "rival": missing,
    },
    size="ms",
)


def lines() -> list[dict[str, Any]]:
    return [line for case in SUITE.cases for line in run_case(SUITE, case, CPU, 2, Ceilings(1.0, 1.0))]


def test_ratio_and_shares(capsys: pytest.CaptureFixture[str]) -> None:
    ours, slow = run_case(SUITE, SUITE.cases[1], CPU, 3, Ceilings(copy_gb_s=10.0, matmul_gflop_s=5.0))
    assert (ours["peer"], slow["peer"]) == ("placerank", "slow")
    assert float(ours["times_ours"]) == 1
    assert 2 < float(slow["times_ours"]) < 6
    assert float(ours["p20_ms"]) <= float(ours["p50_ms"]) <= float(ours["p80_ms"])
    rate = 2e6 / (float(ours["p50_ms"]) / 1e3) / 1e9
    assert float(ours["of_copy"]) == pytest.approx(rate / 10, abs=2e-3)
    assert float(ours["of_matmul"]) == pytest.approx(rate / 5, abs=2e-3)
    assert "rival: not installed: rival" in capsys.readouterr().out


def test_peak_memory_sees_what_is_freed_again() -> None:
    mib, took = peak_mib(lambda: torch.ones(16 * 2**20).sum(), CPU)
    assert 60 < mib < 80
    assert took > 0


def test_ceilings_are_plausible() -> None:
    ceilings = measure_ceilings(CPU)
    assert ceilings.copy_gb_s > 0.5
    assert ceilings.matmul_gflop_s > 1


def test_a_size_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="case 'short' has no size 'B'"):
        _ = SUITE.cases[0].B


def test_lines_of_a_kernel_give_way_to_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    first, other = {"kernel": "a", "x": "1"}, {"kernel": "b", "x": "1"}
    results_file.keep("k.csv", [first, first, other], ("kernel", "device"), CPU)
    path = results_file.keep("k.csv", [{"kernel": "a", "x": "2"}], ("kernel", "device"), CPU)
    with open(path, newline="") as f:
        found = [(line["kernel"], line["x"], line["device"]) for line in csv.DictReader(f)]
    device = results_file.conditions(CPU)["device"]
    assert found == [("b", "1", device), ("a", "2", device)]
    assert [path.name for path in tmp_path.iterdir()] == ["k.csv"]


def test_command_writes_json_table_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "load", lambda kernel: SUITE)
    monkeypatch.setattr(settings, "KERNELS", ("nap",))
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    config = run.BenchKernelsConfig(kernel=("nap",), device="cpu", rounds=1, json=tmp_path / "out.json", save=True)
    run.bench_kernels(config)
    written = json.loads((tmp_path / "out.json").read_text())
    assert [(line["case"], line["size"], line["peer"]) for line in written["lines"]] == [
        (case.name, case.ms, peer) for case in SUITE.cases for peer in ("placerank", "slow")
    ]
    assert written["matmul_gflop_s"] > 0
    assert "nap: short ms=1" in capsys.readouterr().out
    assert (tmp_path / "nap_cpu.png").stat().st_size > 10_000
    assert plots.draw(tmp_path / "kernels.csv") == [tmp_path / "nap_cpu.png"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["tables"], "what to benchmark: got 'tables', expected: placerank bench kernels"),
        ([], "what to benchmark: nothing said"),
        (["kernels", "--kernel", "sort"], "kernel: got sort, expected some of"),
        (["kernels", "--device", "tpu"], "device: got 'tpu', expected auto, cpu or cuda"),
        (["kernels", "--rounds", "0"], "rounds: got 0"),
        (["kernels", "--quick", "--save"], "goes without quick"),
    ],
)
def test_bad_settings(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_line_gives_way_to_one_of_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    for x in ("old", "new"):
        path = results_file.keep("k.csv", [{"side": "din", "longest": 50, "x": x}], ("side", "longest"), CPU)
    with open(path, newline="") as f:
        assert [line["x"] for line in csv.DictReader(f)] == ["new"]
