"""How often the host waits for the device: in each public function of the kernels, and in a step of each dense part.

On a GPU PyTorch counts (``torch.cuda.set_sync_debug_mode``); a dry run counts the operators that would wait, which on
the CPU are some more, as some code asks only there. The first call compiles and is not counted.
"""

import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from .check import ROOT
from .report import Cases, Report, Skip
from .sides import Side, Trained, sides

SUPPORT = ROOT / "tests/support"
SAMPLES = 256
DRY = ("twin", "twin 10 candidates", "din rest akt")


def cases(report: Report) -> Cases:
    chosen = [side for side in sides() if not report.dry or side.name in DRY]
    for side in chosen:
        yield f"step {side.name}", partial(_side, report, side)
    yield "kernels", partial(_kernels, report)


def _side(report: Report, side: Side) -> None:
    trained = Trained(side, SAMPLES, report.device)
    for _ in range(3):
        trained.step()
    with counted(report.dry) as found:
        trained.step()
    report.figure(f"step {side.name}", "waits", len(found), "", most=1)
    show(found)


def _kernels(report: Report) -> None:
    """Valid calls of tests/support, without the look at numbers where there is a function that leaves it out.

    Raises:
        RuntimeError: a function raised; the others are counted all the same.
    """
    kernel_calls = _support("kernel_calls")
    failed = []
    for name, call in kernel_calls.calls([33, 0, 70, 0, 1]).items():
        module = sys.modules[call.function.__module__]
        unchecked = f"{name}unchecked_" if name.endswith("_") else f"{name}_unchecked"
        function: Callable[..., Any] = getattr(module, unchecked, call.function)
        moved = partial(kernel_calls.with_tensors, lambda x: x.to(report.device))
        given = {n: moved(argument.value) for n, argument in call.arguments.items()}
        try:
            function(**given)
            with counted(report.dry) as found:
                function(**given)
        except Exception as error:
            traceback.print_exc()
            failed.append(f"{function.__name__}: {error}")
            continue
        report.figure(function.__name__, "waits", len(found), "")
        show(found)
    if failed:
        raise RuntimeError("; ".join(failed))


def _support(name: str) -> Any:
    if not SUPPORT.exists():
        raise Skip(f"there are no tests of the repository here: no {SUPPORT}")
    sys.path.insert(0, str(SUPPORT))
    try:
        return __import__(name)
    except ImportError as error:
        raise Skip(f"tests/support/{name}.py: {error}") from None
    finally:
        sys.path.remove(str(SUPPORT))


@contextmanager
def counted(dry: bool) -> Iterator[list[str]]:
    """Fills with the waits of the block, when it has ended: where in the code each was."""
    found: list[str] = []
    if dry:
        with _support("host_waits").host_waits() as waits:
            yield found
        found += waits.found
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found += [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message)]


def show(found: list[str]) -> None:
    """Print where the waits were."""
    for where, times in Counter(found).items():
        print(f"    {times} x {where}")
