"""``placerank doctor``: do the versions fit, what can this machine do, and how to mend what is wrong.

Versions go in threes: torchrec 1.x = fbgemm 1.x = torch 2.(x+5). It must run where torch, torchrec or fbgemm cannot be
imported, so it reads versions from the packages' metadata and loads the libraries in a process of its own.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..training.memory import memory_limit


class Three(NamedTuple):
    """Versions that go together."""

    torch: str
    torchrec: str
    fbgemm: str


THREES = (Three("2.13.0", "1.8.0", "1.8.0"), Three("2.14.1", "1.9.2", "1.9.0"))
"""What placerank is tested with; the first is what a machine gets that has none."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "triton")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was found.

    Attributes:
        versions: of the packages that are installed.
        extras: extra of placerank -> its packages that are not installed.
        errors: library -> error when loading it and calling it, "" when that worked.
        nvidia: the machine has an NVIDIA driver (nvidia-smi).
        cuda_build: CUDA (or ROCm) version that torch was built for; None for a CPU build.
        devices: one text for each device that torch sees.
        fbgemm_on_devices: error when calling it there, "" when that worked or there is none.
        gloo, nccl: whether torch has these communication libraries.
        threads: CPU threads that torch uses in one process.
        cores: cores that this process may use.
        memory_gib, disk_gib: memory that processes here may use; free disk in the current folder.
    """

    versions: dict[str, str]
    errors: dict[str, str]
    extras: dict[str, list[str]] = field(default_factory=dict)
    nvidia: bool = False
    cuda_build: str | None = None
    devices: list[str] = field(default_factory=list)
    fbgemm_on_devices: str = ""
    gloo: bool = False
    nccl: bool = False
    threads: int = 0
    cores: int = 0
    memory_gib: float = 0.0
    disk_gib: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something to mend, and the commands that mend it."""

    what: str
    mend: tuple[str, ...]


def minor(version: str) -> tuple[int, int]:
    """Major and minor number: "2.13.0+cpu" is (2, 13). (-1, -1) for what is not a version."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (-1, -1)


def fits(torch: str, partner: str) -> bool:
    """Whether torchrec or fbgemm of version ``partner`` belongs to ``torch``: 1.x to 2.(x+5)."""
    (torch_major, torch_minor), (major, x) = minor(torch), minor(partner)
    return torch_major == 2 and major == 1 and torch_minor == x + 5


def three_for(torch: str | None) -> Three:
    """The tested three that an installed torch belongs to; the first where it belongs to none."""
    return next((three for three in THREES if torch and minor(three.torch) == minor(torch)), THREES[0])


def install_three(nvidia: bool, three: Three = THREES[0]) -> tuple[str, ...]:
    """The pip commands that install three versions that fit, for a machine with or without CUDA."""
    pip = f"{sys.executable} -m pip install"
    if nvidia:
        return (f"{pip} torch=={three.torch} torchrec=={three.torchrec} fbgemm-gpu=={three.fbgemm}",)
    return (
        f"{pip} torch=={three.torch} --index-url {CPU_INDEX}",
        f"{pip} fbgemm-gpu-cpu=={three.fbgemm} && {pip} --no-deps torchrec=={three.torchrec}",
    )


def problems(facts: Facts) -> list[Problem]:
    """What has to be mended, the causes first."""
    torch, torchrec = facts.versions.get("torch"), facts.versions.get("torchrec")
    kinds = [name for name in ("fbgemm-gpu", "fbgemm-gpu-cpu") if name in facts.versions]
    three = three_for(torch)
    found: list[Problem] = []
    missing = [name for name, v in (("torch", torch), ("torchrec", torchrec), ("fbgemm", kinds)) if not v]
    if missing:
        found.append(Problem(what=f"not installed: {', '.join(missing)}", mend=install_three(facts.nvidia, three)))
    if len(kinds) == 2:
        remove = f"{sys.executable} -m pip uninstall --yes fbgemm-gpu fbgemm-gpu-cpu"
        what = "fbgemm-gpu and fbgemm-gpu-cpu are both installed, over each other in the same folder"
        found.append(Problem(what=what, mend=(remove, *install_three(facts.nvidia, three))))
    partners = {name: facts.versions[name] for name in ("torchrec", *kinds) if name in facts.versions}
    wrong = {name: v for name, v in partners.items() if torch and not fits(torch, v)}
    if torch and wrong:
        names = " and ".join(f"{name} {v}" for name, v in wrong.items())
        what = f"{names} {'do' if len(wrong) > 1 else 'does'} not fit torch {torch}: 1.x goes with 2.(x+5)"
        mend = install_three(facts.nvidia, three)
        major, number = minor(torch)
        if major == 2 and number >= 5 and number != minor(three.torch)[1]:
            keep = f"1.{number - 5}.0"
            one = install_three(facts.nvidia, Three(torch.partition("+")[0], keep, keep))[-1]
            mend = (*mend, f"# or, to keep this torch (placerank is not tested with it): {one}")
        found.append(Problem(what=what, mend=mend))
    if not found:
        found.extend(_load_problems(facts))
    return found


def _load_problems(facts: Facts) -> list[Problem]:
    """Problems of versions that fit: a library that does not load, or one built for another machine."""
    three = three_for(facts.versions.get("torch"))
    found = [
        Problem(
            what=f"{name} does not load: {error}",
            mend=tuple(
                c.replace("pip install", "pip install --force-reinstall") for c in install_three(facts.nvidia, three)
            ),
        )
        for name, error in facts.errors.items()
        if error
    ]
    if found or not facts.nvidia:
        return found[:1]  # one that fails takes the next with it
    if facts.cuda_build is None:
        what = "this machine has an NVIDIA driver but torch is a CPU build"
        return [
            Problem(what=what, mend=(f"{sys.executable} -m pip uninstall --yes torch", *install_three(True, three)))
        ]
    if "fbgemm-gpu-cpu" in facts.versions:
        remove = f"{sys.executable} -m pip uninstall --yes fbgemm-gpu-cpu"
        return [Problem(what="fbgemm-gpu-cpu has no CUDA operators", mend=(remove, *install_three(True, three)))]
    if facts.fbgemm_on_devices:
        what = f"fbgemm-gpu does not run on {'; '.join(facts.devices)}: {facts.fbgemm_on_devices}"
        why = (
            "# PyPI's fbgemm-gpu has code for sm_8x, sm_9x and sm_10x alone: use such a GPU, or build fbgemm for yours"
        )
        return [Problem(what=what, mend=(why,))]
    if not facts.devices:
        what = f"torch is built for CUDA {facts.cuda_build} but sees no device"
        return [Problem(what=what, mend=("nvidia-smi   # is the driver new enough for it? CUDA_VISIBLE_DEVICES set?",))]
    return []


def missing_of_extras() -> dict[str, list[str]]:
    """Extra -> its packages that are not installed, for those that add something to do (not cpu, gpu or dev)."""
    try:
        needs = [Requirement(text) for text in importlib.metadata.requires("placerank") or []]
        names: list[str] = importlib.metadata.metadata("placerank").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:  # run from a folder on the path
        return {}
    return {
        extra: [n.name for n in needs if n.marker and n.marker.evaluate({"extra": extra}) and not _installed(n.name)]
        for extra in names
        if not re.fullmatch(r"(cpu|gpu)\d*|dev", extra)
    }


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def gather() -> Facts:
    """Look at this machine; loads the libraries in another process."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        # -P: the current folder stays off the import path
        probe = [sys.executable, "-P", "-m", "placerank.cli.probe"]
        run = subprocess.run(probe, capture_output=True, text=True, timeout=300)
        seen = json.loads(run.stdout.splitlines()[-1]) if run.returncode == 0 else {}
        died = f"the process ended with code {run.returncode}" + "".join(run.stderr.splitlines()[-1:])
    except subprocess.TimeoutExpired:
        seen, died = {}, "loading torch, fbgemm and torchrec did not end within 300 s"
    return Facts(
        versions=versions,
        errors=seen.pop("errors", {"one of torch, fbgemm, torchrec": died}),
        extras=missing_of_extras(),
        nvidia=shutil.which("nvidia-smi") is not None,
        cores=len(os.sched_getaffinity(0)),
        memory_gib=memory_limit() / 2**30,
        disk_gib=shutil.disk_usage(Path.cwd()).free / 2**30,
        **seen,
    )


def report(facts: Facts, found: list[Problem], console: Console) -> None:
    """Print a table of what was found, then what to mend."""

    def version(name: str) -> str:
        return facts.versions.get(name, "[red]not installed[/]")

    def loads(name: str) -> str:
        error = facts.errors.get(name)
        return "" if error is None else "loads" if not error else f"[red]{error}[/]"

    kinds: list[str] = [name for name in ("fbgemm-gpu", "fbgemm-gpu-cpu") if name in facts.versions] or ["fbgemm"]
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    build = f"CUDA {facts.cuda_build}" if facts.cuda_build else "CPU build"
    table.add_row("python", platform.python_version(), sys.executable)
    table.add_row("torch", version("torch"), loads("torch") and f"{loads('torch')}, {build}")
    table.add_row("torchrec", version("torchrec"), loads("torchrec"))
    for kind in kinds:
        table.add_row(kind, version(kind), loads("fbgemm") and f"{loads('fbgemm')}, operator called")
    table.add_row("triton", facts.versions.get("triton", "not installed"), "kernels on a GPU; else for tests")
    for extra, missing in facts.extras.items():
        how = escape(f"pip install 'placerank[{extra}]'") if missing else ""
        table.add_row(f"extra {extra}", "not installed" if missing else "installed", how)
    table.add_row("devices", str(len(facts.devices)), "; ".join(facts.devices) or "no CUDA: runs on CPU")
    have = [name for name, there in (("gloo", facts.gloo), ("nccl", facts.nccl)) if there]
    table.add_row("several ranks", ", ".join(have) or "no", "gloo for CPU, nccl for CUDA")
    table.add_row("cores", str(facts.cores), f"torch uses {facts.threads} threads in one process")
    table.add_row("memory", f"{facts.memory_gib:.1f} GiB", f"{facts.disk_gib:.0f} GiB free disk in this folder")
    console.print(table)
    if not found:
        console.print("\n[green]All fits.[/]")
    for problem in found:
        console.print(f"\n[red]To mend:[/] {problem.what}", soft_wrap=True)
        for command in problem.mend:
            console.print(f"  {command}", soft_wrap=True, markup=False, highlight=False)


def main(argv: list[str]) -> int:
    """Print what was found; returns 1 if something needs mending."""
    argparse.ArgumentParser(prog="placerank doctor", description=__doc__.split("\n", 1)[0]).parse_args(argv)
    facts = gather()
    found = problems(facts)
    report(facts, found, Console(highlight=False))
    return 1 if found else 0
