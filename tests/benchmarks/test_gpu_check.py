"""The check of a machine with a GPU, without one: every part at toy sizes, and how it ends what hangs and crashes."""

import csv
import json
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

from placerank.benchmarks import results_file
from placerank.benchmarks.gpu import check, dense, part, speed, waits
from placerank.benchmarks.gpu.report import Report
from placerank.benchmarks.kernels import bench_residual_encode
from placerank.cli.main import main
from placerank.kernels import threads

NAMES = [p.name for p in check.PARTS]
# A part that does what its name says. Arguments: name, folder, seconds.
TOY = """
import json, os, sys, time
name, out = sys.argv[1], sys.argv[2]
def record(**values):
    with open(f"{out}/records.jsonl", "a") as f:
        f.write(json.dumps({"part": name, **values}) + "\\n")
verdict = "missed" if name == "misses" else "met"
record(case="first", metric="speed", value=1.0, unit="x", target=">= 2", verdict=verdict)
if name == "hangs":
    child = os.fork()
    with open(f"{out}/hangs", "a") as f:
        f.write(f"{os.getpid()}\\n")
    time.sleep(60)
if name == "crashes":
    print("about to crash", flush=True)
    os.kill(os.getpid(), 11)
if name == "fails":
    record(case="second", error="ValueError: wrong")
    sys.exit(1)
if name == "skips":
    record(skipped="nothing to do")
"""


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Parts are toys; returns the folder of a run."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(check, "_START", (str(tmp_path / "toy.py"),))
    monkeypatch.setattr(check, "_GRACE", 0.5)
    monkeypatch.setattr(check, "_LEAST", 1.0)
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_what_hangs_or_crashes_stops_nothing_else(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [check.Part(n, 1.5, "toy") for n in ("hangs", "crashes", "fails", "skips", "misses", "passes")]
    outcomes = check.check(toys, parts, dry=False, total=60)
    assert [o.state for o in outcomes] == ["failed", "failed", "failed", "skipped", "ok", "ok"]
    assert [o.fine for o in outcomes] == [False, False, False, True, False, True]
    assert outcomes[0].why.startswith("ended after 2 s") and outcomes[0].records[0]["value"] == 1.0
    assert outcomes[1].why == "exit code -11: about to crash"
    assert outcomes[2].why == "second: ValueError: wrong"
    assert outcomes[3].why == "nothing to do"
    assert all(ended(int(pid)) for pid in (toys / "hangs").read_text().split())
    summary = json.loads((toys / check.SUMMARY).read_text())
    assert [p["state"] for p in summary["parts"]] == [o.state for o in outcomes]


def test_without_time_left_a_part_is_not_reached(toys: Path) -> None:
    outcomes = check.check(toys, [check.Part("hangs", 30, "toy"), check.Part("passes", 30, "toy")], False, total=2.0)
    assert [o.state for o in outcomes] == ["failed", "not reached"]
    assert not any(o.fine for o in outcomes)
    assert json.loads((toys / check.SUMMARY).read_text())["parts"][1]["state"] == "not reached"


def test_the_budgets_fit() -> None:
    assert sum(p.seconds for p in check.PARTS) <= check.TOTAL_SECONDS - check._GRACE <= 480 - check._GRACE


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("kernels", "dense")])
def test_dry_run_of_a_part(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_file, "RESULTS", tmp_path / "results")
    assert part.run(Report(name, tmp_path, dry=True, seconds=100))
    records = check._records(tmp_path)
    assert records[0]["part"] == name and len(records[0]["would_run"]) >= 3
    figures = {(r["case"], r["metric"]): r for r in records if "metric" in r}
    expected = {
        "waits": ("step twin", "waits"),
        "speed": ("hard_negatives city B=1024", "times as fast as eager"),
        "training": ("din steps", "first losses differ by"),
        "lists": ("beams", "times transformers' generate"),
    }
    if name in expected:
        assert figures[expected[name]]["verdict"] == ""  # not judged: these are no results
    assert not any("error" in r or "not_reached" in r for r in records)
    assert not (tmp_path / "results").exists()
    if name == "training":
        differ = [r["value"] for (_, metric), r in figures.items() if metric == "first losses differ by"]
        assert differ == [0.0] * 3
        scored = [r["value"] for (case, _), r in figures.items() if case == "export"]
        assert len(scored) == 2 and max(scored) < 1e-5
        assert figures["kept otherwise", "first losses differ by, sharded catalog"]["value"] == 0


def test_dry_run_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernels' part, whose tests run in Triton's interpreter, in a process of its own."""
    out = tmp_path / "out"
    assert main(["bench", "gpu", "--dry-run", "--parts", "kernels", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "a real run: test_codebook, test_hard_negatives, test_on_gpu" in told
    assert "test_search_attention: tests failed 0  (target <= 0: not judged)" in told
    passed = [r for r in check._records(out) if r.get("metric") == "tests passed"]
    assert passed[0]["value"] >= 1


def test_where_there_is_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["bench", "gpu", "--out", str(tmp_path / "out")]) == 2
    assert "torch sees no GPU here; --dry-run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine.txt").touch()
    assert main(["bench", "gpu", "--dry-run", "--out", str(tmp_path)]) == 2
    assert "holds files that are no check's" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").exists()


def broken(report: Report) -> Any:
    def fail() -> None:
        raise ValueError("wrong\nin detail")

    yield "one", fail
    yield "two", lambda: report.figure("two", "speed", 3.0, "x", least=4)
    report.seconds = -1
    yield "three", fail


def test_a_case_that_fails_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose figures are judged and kept, but for where they are measured."""
    monkeypatch.setattr(results_file, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(Report, "device", torch.device("cpu"))
    monkeypatch.setattr("placerank.benchmarks.gpu.findings.cases", broken)
    assert not part.run(Report("findings", tmp_path, dry=False, seconds=100))
    error, slow, late = check._records(tmp_path)
    assert error["error"] == "ValueError: wrong" and error["case"] == "one"
    assert (slow["value"], slow["target"], slow["verdict"]) == (3.0, ">= 4", "missed")
    assert late == {"part": "findings", "case": "three", "not_reached": True}
    for path in (tmp_path / "results/gpu.csv", tmp_path / "gpu.csv"):
        with open(path, newline="") as f:
            (line,) = csv.DictReader(f)
        assert (line["part"], line["metric"], line["value"], line["verdict"]) == ("findings", "speed", "3.0", "missed")


def test_speed_keeps_lines_and_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, but for rates, sizes and peers."""
    (tmp_path / "results").mkdir()
    before = (Path(results_file.__file__).parent / "results/kernels.csv").read_text()
    (tmp_path / "results/kernels.csv").write_text(before)
    monkeypatch.setattr(results_file, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(
        results_file, "conditions", lambda _: dict.fromkeys(("device", "versions", "commit", "date"), "x")
    )
    monkeypatch.setattr(Report, "device", torch.device("cpu"))
    monkeypatch.setattr(speed, "device_rates", lambda _: {"copy": 1e10, "fp32": 1e11, "bf16": 1e15})
    wanted = [speed.Wanted("residual_encode", "tiny", {}, eager=1e-3, of_products=0.6)]
    monkeypatch.setattr(speed, "WANTED", wanted)
    suite = bench_residual_encode.SUITE
    slow: Any = lambda inputs: lambda: time.sleep(0.05)  # noqa: E731
    peers = {
        "placerank": suite.peers["placerank"],
        "eager PyTorch": suite.peers["eager PyTorch"],
        "torch.compile": slow,
    }
    monkeypatch.setattr(bench_residual_encode, "SUITE", replace(suite, peers=peers))
    assert part.run(Report("speed", tmp_path, dry=False, seconds=100))
    found = {r["metric"]: r for r in check._records(tmp_path)}
    assert {"kernels of placerank", "times as fast as eager, kernels alone"} <= set(found)
    verdicts = {metric: r["verdict"] for metric, r in found.items() if r["target"]}
    assert verdicts == {
        "times as fast as eager": "met",
        "times as fast as torch.compile": "met",
        "of bf16 products": "missed",
    }
    after = (tmp_path / "results/kernels.csv").read_text()
    assert after.startswith(before)
    assert [line.split(",")[0] for line in after[len(before) :].splitlines()] == ["residual_encode"] * 3
    assert (tmp_path / "kernels.csv").read_text() == after


def test_waits_that_a_device_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with waits.counted(dry=False) as found:
        assert modes == ["warn"]
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation (Triggered internally at ...)", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert modes == ["warn", "default"]
    assert len(found) == 2 and Path(__file__).name in found[0]


# Where only torch, NumPy and Triton are installed; numba too, as on a CPU its loops stand in for the GPU's kernels.
ALONE = """
import sys
missing = ["torchrec", "fbgemm_gpu", "pyarrow", "tyro", "rich", "scipy", "sklearn", "matplotlib", "pandas", "tqdm"]
sys.modules |= dict.fromkeys(missing)
from pathlib import Path
from placerank.benchmarks.gpu import part
from placerank.benchmarks.gpu.report import Report
out = Path(sys.argv[1])
assert part.run(Report("dense", out, dry=True, seconds=100))
assert part.run(Report("training", out, dry=True, seconds=100))
"""


def test_the_dense_part_runs_without_torchrec(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", ALONE, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    records = check._records(tmp_path)
    assert len(records[0]["would_run"]) > 30 and not any("error" in r for r in records)
    steps = {r["case"] for r in records if r.get("metric") == "kernels" and r["value"] > 100 and r["verdict"] == ""}
    assert steps == {f"{side} {precision}" for side in dense.DRY for precision in ("fp32", "bf16")}
    assert {r["case"] for r in records if "skipped" in r} == {"placerank train", "din steps", "kept otherwise"}


def test_loops_without_numba_tell_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    spec = spec_from_file_location("threads_without_numba", threads.__file__)
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(ImportError, match="numba compiles the loops of the CPU's paths, and it can't be imported"):
        module.jit(fastmath={"reassoc"})(len)([])
