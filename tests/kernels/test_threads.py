"""Compiled loops: what all of them must be for their results not to depend on when they were compiled."""

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

from placerank import kernels
from placerank.kernels.threads import drop_stale

MODULES = [m.name for m in pkgutil.iter_modules(kernels.__path__) if "triton" not in m.name]


@pytest.mark.parametrize("name", MODULES)
def test_a_loop_calls_inlined_functions_alone(name: str) -> None:
    module = vars(importlib.import_module(f"{kernels.__name__}.{name}"))
    for loop in (x for x in module.values() if isinstance(x, Dispatcher)):
        called = {
            n: x for n in loop.py_func.__code__.co_names if isinstance(x := loop.py_func.__globals__.get(n), Dispatcher)
        }
        bare = [n for n, x in called.items() if not x.targetoptions.get("forceinline")]
        assert not bare, (
            f"{loop.py_func.__qualname__} calls {bare}: decorate them with inlined(), see kernels/threads.py"
        )


def test_loops_compiled_before_a_source_changed_are_compiled_again(tmp_path: Path) -> None:
    (tmp_path / "__pycache__").mkdir()
    for when, name in ((10, "loops.py"), (20, "inlined.py"), (15, "__pycache__/old.nbi"), (25, "__pycache__/new.nbi")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (when, when))
    drop_stale(tmp_path)
    assert [x.name for x in (tmp_path / "__pycache__").iterdir()] == ["new.nbi"]


def test_compiling_is_told_once(tmp_path: Path) -> None:
    """Where a loop is compiled, and not where it is found on disk."""
    code = """
import logging
logging.basicConfig(format="%(message)s", level=logging.INFO)
import torch
from placerank.kernels.jagged import segment_topk
for k in (1, 2):
    segment_topk(torch.rand(9), torch.tensor([0, 4, 9]), k)
"""
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    first, second = (
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stderr
        for _ in range(2)
    )
    assert first.count("compiling the CPU's loops for these widths") == 1
    assert "compiling" not in second
