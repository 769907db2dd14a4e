"""Sums over ranks, for statistics that each rank has of its own rows.

Everything here is the identity where no process group is open, so the same code runs in one process.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among those that work on one thing together."""

    rank: int = 0
    world: int = 1

    @classmethod
    def current(cls) -> "Ranks":
        """The default process group, or a single process where there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum_(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the ranks, in place; one exchange for all of one dtype and device."""
        if self.world == 1:
            return
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for alike in kinds.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            dist.all_reduce(flat)
            for tensor, part in zip(alike, flat.split([t.numel() for t in alike]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined(timeout: timedelta = timedelta(minutes=30)) -> Iterator[Ranks]:
    """The process group that torchrun describes, left at the end; a single process without torchrun."""
    if "RANK" not in os.environ or dist.is_initialized():
        yield Ranks.current()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=timeout)
    try:
        yield Ranks.current()
    finally:
        dist.destroy_process_group()


def rank_device(name: str) -> torch.device:
    """ "auto" is this rank's GPU where there is one, else the CPU; other names are torch's own.

    Raises:
        ValueError: no device's name, or a CUDA device on a machine without CUDA.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r}: {str(error).splitlines()[0]}; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name!r}: torch sees no CUDA here; use auto or cpu")
    return device
