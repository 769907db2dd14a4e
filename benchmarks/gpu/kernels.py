"""The GPU's tests of kernels and generative rankers, a process a file, all at once: which pass, and why others don't.

A dry run takes one file's tests that run in Triton's interpreter. Compiling the kernels is most of the time, and
several processes do it on several cores. A test has a minute, a file what the part has.
"""

import os
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from .check import ROOT
from .report import Cases, Report, Skip

TESTS = ROOT / "tests/kernels"
OTHERS = [ROOT / "tests/rankers/generative/test_devices.py"]
WORKERS = 3  # of a file, where there is pytest-xdist, which also goes on without a test that hangs
WHICH, DRY_FILE, DRY_WHICH = ["-m", "gpu"], "test_search_attention", ["-k", "triton_in_halves"]


def cases(report: Report) -> Cases:
    """A case a file."""
    if not TESTS.exists():
        raise Skip(f"there are no tests of the repository here: no {TESTS}")
    if missing := [name for name in ("pytest", "pytest_timeout", "hypothesis") if find_spec(name) is None]:
        raise Skip(f"the tests of kernels need {', '.join(missing)}")
    files = [path for path in [*sorted(TESTS.glob("test_*.py")), *OTHERS] if "pytest.mark.gpu" in path.read_text()]
    if report.dry:
        files = [path for path in files if path.stem == DRY_FILE]
    with TemporaryDirectory() as folder:
        tests = _Tests(files, Path(folder), DRY_WHICH if report.dry else WHICH)
        try:
            for path in files:
                yield path.stem, partial(_finish, report, tests, path)
        finally:
            tests.end()


class _Tests:
    """The files' tests, running; they start when the first is waited for."""

    def __init__(self, files: list[Path], folder: Path, which: list[str]) -> None:
        self.files, self.folder, self.which = files, folder, which
        self.running: dict[Path, subprocess.Popen[bytes]] = {}

    def of(self, path: Path) -> "subprocess.Popen[bytes]":
        for file in self.files if not self.running else []:
            options = ["-q", "-p", "no:cacheprovider", "--timeout", "60", "--timeout-method", "thread", *self.which]
            options += ["-n", str(WORKERS)] if len(self.files) > 1 and find_spec("xdist") else []
            command = [sys.executable, "-m", "pytest", *options, "--junitxml", str(self.results(file)), str(file)]
            self.running[file] = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
        return self.running[path]

    def results(self, path: Path) -> Path:
        return self.folder / f"{path.stem}.xml"

    def end(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()


def _finish(report: Report, tests: _Tests, path: Path) -> None:
    """Wait for a file's tests and count them.

    Raises:
        RuntimeError: some failed, or the process ended before it could say.
        TimeoutError: they took longer than the part has.
    """
    process = tests.of(path)
    while process.poll() is None:
        if report.left() < 0:
            raise TimeoutError(f"its tests did not end in {report.seconds:.0f} s")
        time.sleep(0.05)
    if not tests.results(path).exists():
        raise RuntimeError(f"its tests ended with code {process.returncode} and no results: a crash, or one that hung")
    found = list(ElementTree.parse(tests.results(path)).iter("testcase"))
    skipped = [t for t in found if t.find("skipped") is not None]
    failed = [t for t in found if t.find("failure") is not None or t.find("error") is not None]
    report.figure(path.stem, "tests passed", len(found) - len(failed) - len(skipped), "")
    report.figure(path.stem, "tests failed", len(failed), "", most=0)
    if failed or process.returncode:
        names = ", ".join(t.get("name", "") for t in failed[:5]) + (", ..." if len(failed) > 5 else "")
        raise RuntimeError(f"{len(failed)} of {len(found)} tests failed (code {process.returncode}): {names}")
