"""What holds of every variant that is compiled ahead of time."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import triton

SCRIPT = Path(__file__).with_name("triton_aot.py")
ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "src/placerank/kernels").glob("*_triton.py"))
MODULES = tuple(f"placerank.kernels.{path.stem}" for path in FILES if "\nVARIANTS = " in path.read_text())
# Bytes of shared memory (LDS) that one block may take.
LIMITS = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
# What is compiled: modules with a list, and for how many of the targets each variant.
OF_KERNELS, OF_RANKERS = (MODULES, len(LIMITS)), (("ranker_launches",), 1)
# What compiling with this version of Triton gave; a version without such a file compiles all of it.
KEPT = SCRIPT.with_name(f"compiled-triton-{triton.__version__}.csv")
SECONDS = 900  # half a minute of work where KEPT has all, minutes where it hasn't


def run_aot(modules: Iterable[str], each: int) -> list[list[str]]:
    """The words of each line of ``triton_aot.py``, for ``OF_KERNELS`` or ``OF_RANKERS``, in a process of its own.

    In this one the kernels may be interpreted, and such a kernel cannot be compiled.
    """
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, SCRIPT, *modules, "--each", str(each)]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=SECONDS)
    assert run.returncode == 0, run.stderr
    return [line.split() for line in run.stdout.splitlines()[1:]]


def check_compiled(lines: list[list[str]], what: str) -> None:
    """Variants are there for every target, fit its shared memory and spill no register."""
    assert {target for _, _, target, *_ in lines} == set(LIMITS), f"{what} has no variant for some target"
    new = [f"{name} for {target}" for _, name, target, *_, how in lines if how == "compiled"]
    assert not new or not KEPT.exists(), (
        f"{KEPT.name} lacks {', '.join(new[:3])}, {len(new)} in all: run tests/support/{SCRIPT.name} --update, look at "
        "the diff and commit it"
    )
    for _, name, target, _, spills, shared, tensor_memory, *_ in lines:
        assert int(spills) == 0, f"{name} spills {spills} on {target}"
        assert int(shared) <= LIMITS[target], f"{name} takes {shared} bytes of shared memory on {target}"
        assert int(tensor_memory) <= 512, f"{name} takes {tensor_memory} columns of tensor memory on {target}"
