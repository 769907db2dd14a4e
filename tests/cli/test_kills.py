"""A step that is ended by a signal leaves nothing, and the run after a killed one ends as if nothing had been."""

import subprocess
import sys


def test_prepare_ended_at_random_moments() -> None:
    """The harness itself, small; it runs all steps by ``python -m placerank.benchmarks.kills``."""
    command = [sys.executable, "-P", "-m", "placerank.benchmarks.kills", "--steps", "prepare", "--tries", "1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = run.stdout.splitlines()
    assert [row.split()[:2] for row in rows] == [["prepare", "TERM"], ["prepare", "INT"], ["prepare", "KILL"]]
