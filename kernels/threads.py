"""Row ranges of a compiled loop on as many threads as PyTorch uses.

CPU loops that PyTorch has no vectorised form of are compiled by numba, without the interpreter's lock, and called from
plain threads: numba's own thread pools need a libgomp on the system, or abort when two threads call them at once.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numba
import torch

jit = partial(numba.njit, nogil=True, cache=True, error_model="numpy")
"""``@jit()`` compiles a loop; ``@jit(fastmath={...})`` names what LLVM may assume, "reassoc" for sums say."""

_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # a forked child has the pool but not its threads


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
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads - 1, thread_name_prefix="placerank-rows")
    cuts = [rows * i // threads for i in range(threads + 1)]
    others = [_pools[threads].submit(loop, cuts[i], cuts[i + 1], *args) for i in range(1, threads)]
    loop(cuts[0], cuts[1], *args)
    for other in others:
        other.result()
