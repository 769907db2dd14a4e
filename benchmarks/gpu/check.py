"""Runs the parts of the check, each in a process of its own, and tells what they found.

    placerank bench gpu --out runs/gpu-check               # on a machine with a GPU, at most 8 minutes
    python -m placerank.benchmarks.gpu --out runs/gpu-check     # the same where only torch and Triton are installed
    placerank bench gpu --dry-run                          # without a GPU: everything at toy sizes

It needs the repository, torch 2.11 and Triton 3.6 on; what else a part needs and does not find is told as skipped. The
folder gets ``summary.json`` after each part, ``log.txt`` with all that the parts print, ``records.jsonl`` line by line,
and copies of the files in ``benchmarks/results`` that were written to, to carry home.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from placerank import __file__ as placerank_file

ROOT = Path(__file__).resolve().parents[2]
SUMMARY, LOG, RECORDS = "summary.json", "log.txt", "records.jsonl"
TOTAL_SECONDS = 480.0
_START = ("-P", "-m", "placerank.benchmarks.gpu.part")
_GRACE = 10.0  # seconds that a part has beyond its own, to end by itself
_LEAST = 10.0  # seconds under which no part starts that may take longer


class Part(NamedTuple):
    """A part of the check: its module's name, the seconds it may take, and what it does."""

    name: str
    seconds: float
    what: str


PARTS = (
    Part("kernels", 80, "the GPU's tests of every kernel: against references, ugly shapes, strides, gradients"),
    Part("waits", 45, "how often kernels, and a training step of each tower and plug-in, wait for the device"),
    Part("speed", 80, "kernels beside eager PyTorch, torch.compile and libraries"),
    Part("dense", 70, "the dense part's step at batch 10,240: time, kernels, memory, share of what the device can do"),
    Part("training", 110, "training on one rank, pipelined and plain; tables kept in each way; 200 steps"),
    Part("lists", 65, "generative rankers: beams beside transformers' generate; each kind trained, resumed, exported"),
    Part("findings", 20, "versions, driver, clocks, doctor"),
)


@dataclass
class Outcome:
    """How a part ended, and the records it left."""

    part: str
    state: str = "not reached"
    seconds: float = 0.0
    why: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def missed(self) -> list[dict[str, Any]]:
        return [r for r in self.records if r.get("verdict") == "missed"]

    @property
    def fine(self) -> bool:
        return self.state in ("ok", "skipped") and not self.missed


def run_part(part: Part, out: Path, dry: bool, seconds: float) -> Outcome:
    """Start a part and wait for its end, or end it when its time is over."""
    outcome, start = Outcome(part.name), time.monotonic()
    path = os.pathsep.join([str(Path(placerank_file).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    # Threads that spin while they wait take the core from whoever they wait for, see cli/main.py.
    env = {"OMP_WAIT_POLICY": "passive", **({"OMP_NUM_THREADS": "1"} if dry else {}), **env}
    command = [sys.executable, *_START, part.name, str(out), f"{seconds:.1f}"]
    with open(out / LOG, "a") as log:
        log.write(f"\n=== {part.name}\n")
        log.flush()
        process = subprocess.Popen(
            [*command, "--dry-run"] if dry else command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=ROOT,
            process_group=0,
        )
        try:
            code: int | None = process.wait(seconds + _GRACE)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    outcome.seconds = time.monotonic() - start
    outcome.records = [r for r in _records(out) if r["part"] == part.name]
    skipped = [r["skipped"] for r in outcome.records if "skipped" in r and "case" not in r]
    errors = [f"{r['case']}: {r['error']}" for r in outcome.records if "error" in r]
    late = [r["case"] for r in outcome.records if r.get("not_reached")]
    if code is None:
        outcome.state, outcome.why = "failed", f"ended after {outcome.seconds:.0f} s; its last lines are in {LOG}"
    elif code != 0:
        outcome.state, outcome.why = "failed", "; ".join(errors) or f"exit code {code}: {_last_line(out / LOG)}"
    elif skipped:
        outcome.state, outcome.why = "skipped", skipped[0]
    else:
        outcome.state = "ok"
        outcome.why = f"no time for {', '.join(late)}" if late else ""
    return outcome


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a part with all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _records(out: Path) -> list[dict[str, Any]]:
    """What the parts wrote; a line that was cut off is left out."""
    path, found = out / RECORDS, []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _last_line(path: Path) -> str:
    return next((line for line in reversed(path.read_text(errors="replace").splitlines()) if line.strip()), "")


def check(out: Path, parts: list[Part], dry: bool, total: float) -> list[Outcome]:
    """Run the parts in order while there is time; ``summary.json`` is written anew after each."""
    start, outcomes = time.monotonic(), [Outcome(part.name) for part in parts]
    for i, part in enumerate(parts):
        left = total - (time.monotonic() - start) - _GRACE
        if left >= min(part.seconds, _LEAST):
            print(f"{part.name}: {part.what} (at most {min(part.seconds, left):.0f} s)", flush=True)
            outcomes[i] = run_part(part, out, dry, min(part.seconds, left))
        about = {"dry_run": dry, "seconds": round(time.monotonic() - start, 1)}
        (out / SUMMARY).write_text(json.dumps(about | {"parts": [asdict(o) for o in outcomes]}, indent=1))
        print(f"  {outcomes[i].state} {outcomes[i].why}", flush=True)
    return outcomes


def _tell(outcome: Outcome) -> None:
    """A part in the table at the end: how it ended, figures that have a target, and what else it wants to be told."""
    print(f"{outcome.part:10} {outcome.state:12} {outcome.seconds:6.1f} s  {outcome.why}".rstrip())
    for r in outcome.records:
        if r.get("target"):
            verdict = r["verdict"] or "not judged"
            print(f"    {r['case']}: {r['metric']} {r['value']:g} {r['unit']} (target {r['target']}: {verdict})")
        elif "skipped" in r and "case" in r:
            print(f"    {r['case']}: skipped: {r['skipped']}")
        elif "would_run" in r:
            print(f"    a real run: {', '.join(r['would_run'])}")
        elif "note" in r:
            print(f"    {r['case']}: {r['note']}")


def main(argv: list[str] | None = None) -> int:
    """The command; 0 where all went well, 1 where a part failed or a target is missed, 2 where it can't run."""
    parser = argparse.ArgumentParser(
        prog="placerank bench gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"), help="folder; what it holds is removed")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU, everything at toy sizes")
    parser.add_argument("--parts", nargs="+", choices=[p.name for p in PARTS], help="some of them only")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="for all parts (default: 480)")
    args = parser.parse_args(argv)
    for needed in ("torch", "triton"):
        if importlib.util.find_spec(needed) is None:
            print(f"placerank bench gpu: {needed} is not installed", file=sys.stderr)
            return 2
    if not args.dry_run and not _sees_gpu():
        print("placerank bench gpu: torch sees no GPU here; --dry-run runs what can be without one", file=sys.stderr)
        return 2
    out = args.out.absolute()
    if out.exists() and any(out.iterdir()) and not (out / SUMMARY).exists() and not (out / LOG).exists():
        print(f"placerank bench gpu: {out} holds files that are no check's; choose another --out", file=sys.stderr)
        return 2
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    outcomes = check(out, [p for p in PARTS if not args.parts or p.name in args.parts], args.dry_run, args.seconds)
    print(f"\n{out}: {SUMMARY}, {LOG}")
    for outcome in outcomes:
        _tell(outcome)
    return 0 if all(outcome.fine for outcome in outcomes) else 1


def _sees_gpu() -> bool:
    """Whether torch does; asked in another process, so that this one holds no memory of the device."""
    code = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 1)"
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True).returncode == 0
