"""Threads in each of which PyTorch runs on that thread alone.

Where a matrix product is one step of a longer task, tasks side by side with products of one thread are faster than one
task with products of several: nobody waits at each product's end, and what a product wrote is still in the cache of the
core that reads it. On 2 cores, products [256, 64] x [64, 1024] ran at 290 GFLOP/s so and at 40 to 280 on both cores.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # a forked child has the pools but not their threads


def run_on_workers(task: Callable[..., object], *args: Any, most: int) -> None:
    """Call ``task(*args)`` on as many threads as PyTorch uses, at most ``most``, and wait.

    The tasks share their arguments: let them draw pieces of work from an iterator, which the interpreter's lock guards.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        task(*args)
        return
    for done in [_pool(threads).submit(task, *args) for _ in range(max(1, min(threads, most)))]:
        done.result()


def _pool(threads: int) -> ThreadPoolExecutor:
    if threads not in _pools:
        ready = threading.Barrier(threads + 1)
        pool = ThreadPoolExecutor(threads, "placerank-worker", _alone, (ready,))
        for _ in range(threads):  # a pool starts its threads as work comes in
            pool.submit(int)
        ready.wait()
        torch.set_num_threads(threads)  # what threads that start later will have
        _pools[threads] = pool
    return _pools[threads]


def _alone(ready: threading.Barrier) -> None:
    torch.get_num_threads()  # a thread's first question copies the process's number, so ask before it is changed
    torch.set_num_threads(1)  # of this thread, and of those that have not asked yet
    ready.wait()
