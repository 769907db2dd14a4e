"""Where this process stands: its rank, its device, its process groups."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Runtime:
    """One process of a run.

    Attributes:
        rank, world_size: in the whole run.
        local_world_size: processes on this machine.
        device: its GPU, or the CPU.
        background: a gloo group of its own for checkpoints, which are written while training goes on.
    """

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    background: dist.ProcessGroup

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def keep_freed_memory() -> None:
    """Let glibc hold on to large buffers between steps; does nothing where there is no glibc.

    It gives freed ones back to the system, which hands them out again page by page, zeroed: 15 ms of a step of 195 on
    one CPU core, at batch 4,096.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return
    trim_threshold, mmap_threshold = -1, -3
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)  # before 2.36 more than that is refused


@contextmanager
def runtime(seed: int, timeout: timedelta = timedelta(minutes=30)) -> Iterator[Runtime]:
    """Join the process groups that torchrun describes, or make one of a single process; leave them at the end."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    try:
        torch.manual_seed(seed + rank)
        yield Runtime(
            rank=rank,
            world_size=world_size,
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
            device=device,
            background=dist.new_group(backend="gloo", timeout=timeout),
        )
    finally:
        dist.destroy_process_group()


def on_first_rank(make: Callable[[], T]) -> T:
    """What ``make`` returns on the first rank, on all of them: for what one has to look at or do for all.

    All ranks call it. Without process groups it is a plain call.

    Raises:
        ValueError, OSError: what ``make`` raised; on every rank, so that none waits for the others.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return make()
    found: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            found[0] = make()
        except (ValueError, OSError) as error:
            found[1] = error
    dist.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise found[1]
    value: T = found[0]
    return value
