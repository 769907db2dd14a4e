"""Processes that work on one thing together, as torchrun starts them; all is the identity where there is one.

Everything here is for values and statistics that each rank has of its own rows. All ranks call a method, and the
methods in the same order. A single process doesn't wait for torch.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def _in_a_group() -> bool:
    """Whether this process has joined others; who hasn't imported torch has not."""
    dist = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_available() and dist.is_initialized()


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among those that work on one thing together."""

    rank: int = 0
    world: int = 1

    @classmethod
    def current(cls) -> "Ranks":
        """The default process group, or a single process where there is none."""
        if not _in_a_group():
            return cls()
        import torch.distributed as dist

        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum_(self, *tensors: "Tensor | NDArray[np.generic]") -> None:
        """Replace each tensor or array by its sum over the ranks, in place; one exchange for all of one dtype and
        device."""
        if self.world == 1:
            return
        import torch
        import torch.distributed as dist

        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in map(torch.as_tensor, tensors):
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for alike in kinds.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            dist.all_reduce(flat)
            for tensor, part in zip(alike, flat.split([t.numel() for t in alike]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def max_(self, tensor: "Tensor | NDArray[np.generic]") -> None:
        """Replace a tensor or array by its maximum over the ranks, in place."""
        if self.world > 1:
            import torch
            import torch.distributed as dist

            dist.all_reduce(torch.as_tensor(tensor), op=dist.ReduceOp.MAX)

    def each(self, call: Callable[[], T]) -> list[T]:
        """What ``call`` returns on each rank, by rank. An error of the data or of a file is raised on all."""
        if self.world == 1:
            return [call()]
        import torch.distributed as dist

        value: T | None = None
        error: Exception | None = None
        try:
            value = call()
        except (ValueError, OSError) as raised:
            error = raised
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, (value, error))
        if first := next((e for _, e in found if e is not None), None):
            raise first
        return [v for v, _ in found]

    def first(self, call: Callable[[], T]) -> T:
        """What ``call`` returns on the first rank, which alone calls it; errors as those of ``each``."""
        found: list[Any] = self.each(lambda: call() if self.is_first else None)
        value: T = found[0]
        return value

    def barrier(self) -> None:
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()


@contextmanager
def joined(timeout: timedelta = timedelta(minutes=30)) -> Iterator[Ranks]:
    """The process group that torchrun describes, left at the end; a single process without torchrun."""
    if "RANK" not in os.environ or _in_a_group():
        yield Ranks.current()
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=timeout)
    try:
        yield Ranks.current()
    finally:
        dist.destroy_process_group()
