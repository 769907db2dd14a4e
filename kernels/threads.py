"""Work on as many threads as PyTorch uses: compiled loops over rows, and tasks that PyTorch runs on one thread each.

CPU loops that PyTorch has no vectorised form of are compiled by numba, without the interpreter's lock, and called from
plain threads: numba's own thread pools need a libgomp on the system, or abort when two threads call them at once.

Where a matrix product is one step of a longer task, tasks side by side with products of one thread are faster than one
task with products of several: nobody waits at each product's end, and what a product wrote is still in the cache of the
core that reads it. On 2 cores, products [256, 64] x [64, 1024] ran at 290 GFLOP/s so and at 40 to 280 on both cores.
"""

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

try:
    numba: Any = import_module("numba")
except ImportError as error:  # who computes on a GPU alone needs none
    numba, _why = None, str(error)


def _not_compiled(**_: Any) -> Callable[..., Any]:
    """``jit`` without numba: a loop that tells so when it is called."""

    def loop(*_: Any) -> None:
        raise ImportError(f"numba compiles the loops of the CPU's paths, and it can't be imported: {_why}")

    return lambda _: loop


def drop_stale(folder: Path) -> None:
    """Remove numba's indices of compiled loops that are older than any source file of the folder.

    numba compiles a loop again when its own file has changed, not when the file of what it inlines has: after an update
    of one file of a checkout the others' loops went on with the old code. A folder that can't be written to is left.
    """
    newest = max(source.stat().st_mtime for source in folder.glob("*.py"))
    for index in (folder / "__pycache__").glob("*.nbi"):
        with suppress(OSError):
            if index.stat().st_mtime < newest:
                index.unlink()


if numba:
    drop_stale(Path(__file__).parent)
    events: Any = import_module("numba.core.event")

    class _Tell(events.Listener):
        """Says once, when a loop of this package is compiled, why the first step takes so long."""

        told = False

        def on_start(self, event: Any) -> None:
            ours = event.data["dispatcher"].py_func.__module__.startswith("placerank.")
            if ours and not self.told:
                self.told = True
                log.info("compiling the CPU's loops for these widths: up to a minute or two, once on this machine")

        def on_end(self, event: Any) -> None:
            """Nothing is told."""

    events.register("numba:compile", _Tell())

jit = partial(numba.njit, nogil=True, cache=True, error_model="numpy") if numba else _not_compiled
"""``@jit()`` compiles a loop; ``@jit(fastmath={...})`` names what LLVM may assume, "reassoc" for sums say."""
inlined = partial(jit, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""``@inlined()`` compiles what such loops call, and nothing else can: an eighth less to compile. What is called and not
inlined is compiled alone and once more with its caller; fresh code runs the one, code from the cache the other, and
with "reassoc" they may round differently: the first run after an installation had other losses than the second."""

_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # a forked child has the pools but not their threads


def parallel_rows(loop: Callable[..., Any], rows: int, *args: Any, grain: int = 1) -> None:
    """Call ``loop(start, stop, *args)`` so that the ranges cover 0 .. rows, one range a thread.

    Args:
        loop: compiled by ``jit``; writes its results into ``args``, each range its own rows.
        grain: rows below which a second thread does not pay.
    """
    threads = max(1, min(torch.get_num_threads(), rows // max(grain, 1)))
    if threads == 1:
        loop(0, rows, *args)
        return
    pool = _pool(torch.get_num_threads())
    cuts = [rows * i // threads for i in range(threads + 1)]
    others = [pool.submit(loop, cuts[i], cuts[i + 1], *args) for i in range(1, threads)]
    loop(cuts[0], cuts[1], *args)
    for other in others:
        other.result()


def run_on_workers(task: Callable[..., object], *args: Any, most: int) -> None:
    """Call ``task(*args)`` on as many threads as PyTorch uses, at most ``most``, and wait.

    The tasks share their arguments: let them draw pieces of work from an iterator, which the interpreter's lock guards.
    """
    threads = torch.get_num_threads()
    if threads == 1 or most <= 1:
        task(*args)
        return
    pool = _pool(threads)
    for done in [pool.submit(task, *args) for _ in range(min(threads, most))]:
        done.result()


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads in each of which PyTorch runs on that thread alone."""
    if threads not in _pools:
        ready = threading.Barrier(threads + 1)
        pool = ThreadPoolExecutor(threads, "placerank-worker", _alone, (ready,))
        for _ in range(threads):  # a pool starts its threads as work comes in; none is done before all have started
            pool.submit(int)
        ready.wait()
        torch.set_num_threads(threads)  # what threads that start later will have
        _pools[threads] = pool
    return _pools[threads]


def _alone(ready: threading.Barrier) -> None:
    torch.get_num_threads()  # a thread's first question copies the process's number, so ask before it is changed
    torch.set_num_threads(1)  # of this thread, and of those that have not asked yet
    ready.wait()
