"""What the machine is: versions, driver, clocks, and what ``placerank doctor`` says."""

import subprocess
import sys
from functools import partial

import torch

from ..results_file import conditions
from .report import Cases, Report, Skip

FIELDS = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"


def cases(report: Report) -> Cases:
    yield "versions", partial(_versions, report)
    yield "clocks", partial(_command, report, "clocks", ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv"])
    yield "nvidia-smi", partial(_command, report, "", ["nvidia-smi"])
    if not report.dry:  # takes longer than all else of a dry run
        yield "doctor", partial(_command, report, "", [sys.executable, "-P", "-m", "placerank.cli", "doctor"])


def _versions(report: Report) -> None:
    about = conditions(report.device)
    cuda = f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} devices"
    report.record(case="versions", note=f"{about['device']}; {cuda}; {about['versions']}; commit {about['commit']}")


def _command(report: Report, note: str, command: list[str]) -> None:
    """Into the log, and as a note if it has a name. What a command finds wrong is no failure of the check."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, report.left()))
    except FileNotFoundError:
        raise Skip(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired as late:
        raise Skip(f"it did not end in {late.timeout:.0f} s") from None
    print(run.stdout, run.stderr, sep="", flush=True)
    if note:
        report.record(case=note, note=run.stdout.strip())
