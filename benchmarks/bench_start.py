"""What a command costs before it does its work: processor time of this tree beside an earlier commit's, in turn.

    python benchmarks/bench_start.py --against 2c054df             # prints medians, spreads and ratios
    python benchmarks/bench_start.py --against 2c054df --save      # also writes results/start.csv

On a small simulated city: ``train`` to the end of its first step, ``evaluate`` in all (with its report), help, a wrong
setting; and ``import torch``, which no side can be below. Processor time of each process (user and system), so that
what else the machine does hardly counts. Each side runs once before, so that code and loops are compiled.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from placerank.benchmarks.results_file import save

HERE = Path(__file__).resolve().parents[1]
FIRST_STEP = """
import os, sys
import torch
steps, backward = [], torch.Tensor.backward
def counted(*args, **kwargs):
    if steps:
        sys.stdout.flush()
        os._exit(0)
    steps.append(1)
    return backward(*args, **kwargs)
torch.Tensor.backward = counted
from placerank.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
COMMAND = "import sys; from placerank.cli.main import main; sys.exit(main(sys.argv[1:]))"
CITY = ["--cities", "2", "--items", "300", "--users", "200", "--requests", "700", "--days", "30"]


def seconds(source: Path, code: str, arguments: list[str], expected: int = 0) -> float:
    """Processor time of a process that runs code on a side's package."""
    env = os.environ | {"PYTHONPATH": str(source / "src"), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read().decode()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != expected:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}, expected {expected}:\n{said}")
    return used.ru_utime + used.ru_stime


def study(sides: dict[str, Path], folder: Path, repeats: int) -> list[dict[str, object]]:
    """Seconds by case and side."""
    here = sides["here"]
    seconds(here, COMMAND, ["simulate", "--out", str(folder / "raw"), *CITY])
    seconds(here, COMMAND, ["prepare", "--input", str(folder / "raw"), "--out", str(folder / "data")])
    lines: list[dict[str, object]] = []
    training = ["train", "--data", str(folder / "data"), "--batch-size", "256", "--overwrite"]
    for name in sides:
        seconds(sides[name], COMMAND, [*training, "--epochs", "1", "--run", str(folder / name)])
    cases = {
        "import torch": ("import torch", lambda name: [], 0),
        "train to its first step": (FIRST_STEP, lambda name: [*training, "--run", str(folder / f"{name}-begun")], 0),
        "evaluate": (COMMAND, lambda name: ["evaluate", "--run", str(folder / name), "--overwrite"], 0),
        "train --help": (COMMAND, lambda name: ["train", "--help"], 0),
        "a wrong setting": (COMMAND, lambda name: [*training, "--run", "r", "--epochs", "0"], 2),
    }
    for case, (code, arguments, expected) in cases.items():
        found: dict[str, list[float]] = {name: [] for name in sides}
        for repeat in range(repeats + 1):
            for name in sides:
                spent = seconds(sides[name], code, arguments(name), expected)
                if repeat:  # the first compiles
                    found[name].append(spent)
        medians = {name: statistics.median(times) for name, times in found.items()}
        for name, times in found.items():
            line: dict[str, object] = {"case": case, "side": name, "runs": repeats}
            line |= {"seconds": f"{medians[name]:.2f}", "least": f"{min(times):.2f}", "most": f"{max(times):.2f}"}
            line["ratio"] = f"{medians[name] / medians['before']:.2f}"
            lines.append(line)
            print(
                f"{case:24} {name:7} {line['seconds']:>6} s ({line['least']} to {line['most']})  {line['ratio']}",
                flush=True,
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True, help="a commit of this repository")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/start.csv")
    args = parser.parse_args()
    with TemporaryDirectory() as scratch:
        before = Path(scratch) / "source"
        before.mkdir()
        archive = subprocess.run(["git", "-C", HERE, "archive", args.against], check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", before], input=archive.stdout, check=True)
        lines = study({"before": before, "here": HERE}, Path(scratch), args.repeats)
    if args.save:
        save("start.csv", [{"against": args.against} | line for line in lines])


if __name__ == "__main__":
    main()
