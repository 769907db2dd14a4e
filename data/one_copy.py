"""Tensors of which a machine holds one copy, however many ranks it runs."""

import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .leftovers import place, remove_leftovers, unfinished

Tensors = dict[str, Tensor]


def one_copy(make: Callable[[], Tensors]) -> Tensors:
    """What ``make`` returns, made by one rank of each machine and mapped into memory by the others.

    All ranks call it. The file that they map lies in the system's folder for temporary files (``TMPDIR``), and loses
    its name as soon as all have mapped it: the system frees it with the last rank, however that ends. Without process
    groups, or with one rank on a machine, it is a plain call.

    Args:
        make: gives tensors on the CPU, by name.

    Returns:
        The tensors. Whoever writes into one has a copy of what was written, others don't see it.

    Raises:
        ValueError, OSError: what ``make`` raised, or the file could not be written; on every rank.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return make()
    here = place()
    mine = [rank for rank, other in enumerate(_gathered(here)) if other == here]
    made: Tensors | None = None
    file: Path | None = None
    error: Exception | None = None
    try:
        if dist.get_rank() == mine[0]:
            try:
                made = make()
                if len(mine) > 1:
                    file, made = _written(made), None
            except (ValueError, OSError) as raised:
                error = raised
        told = _gathered((file, error))
        if error := next((e for _, e in told if e is not None), None):
            raise error
        if made is None:
            made = torch.load(told[mine[0]][0], mmap=True, weights_only=True)
        dist.barrier()  # all have mapped it
        return made
    finally:
        if file is not None:
            file.unlink(missing_ok=True)


def _written(tensors: Tensors) -> Path:
    folder = Path(tempfile.gettempdir())
    remove_leftovers(folder)
    file = unfinished(folder / "placerank", "tmp", uuid.uuid4().hex[:8])
    try:
        with open(file, "wb") as f:
            torch.save(tensors, f)
    except BaseException as error:
        file.unlink(missing_ok=True)
        if isinstance(error, RuntimeError):  # PyTorch's way to say that the disk is full
            size = sum(x.nbytes for x in tensors.values())
            raise OSError(
                f"{file}: {size:,} bytes can't be written ({error}); set TMPDIR to a larger folder"
            ) from error
        raise
    return file


def _gathered(value: Any) -> list[Any]:
    """What each rank gave, by rank."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
