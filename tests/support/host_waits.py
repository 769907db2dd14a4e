"""What would make the host wait for a GPU, counted on the CPU.

A GPU runs behind the host, which waits where it asks for a number or a size: ``.item()``, ``bool()``, ``tolist()``, a
copy to the host, ``nonzero``, a mask as an index, ``unique``, ``repeat_interleave`` without its size. On the CPU the
same calls are seen as operators, so that a test can count them. Tensors that lie on the host on purpose are not told
apart: what is computed with them belongs outside of the counted block, or in ``on_host``.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_SIZED_BY_DATA = {
    "nonzero",
    "masked_select",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "unique_dim_consecutive",
    "bincount",
    "histc",
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "argwhere",
    "isin",  # sorts by unique where there is much to compare with
}
_TO_HOST = {"tolist", "numpy", "cpu", "__array__"}  # on the CPU these are no operators


@dataclass
class HostWaits:
    """The waits of a block, in order: operator and the lines of ours that led to it."""

    found: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.found)

    def __str__(self) -> str:
        return "\n".join(self.found)

    def note(self, what: str) -> None:
        if not _HOST:
            ours = [f for f in traceback.extract_stack() if "placerank" in f.filename and "/tests/" not in f.filename]
            self.found.append(" < ".join([what, *(f"{f.name}:{f.lineno}" for f in ours[:-5:-1])]))


_HOST: list[None] = []


@contextmanager
def on_host() -> Iterator[None]:
    """Within, tensors lie on the host on purpose."""
    _HOST.append(None)
    try:
        yield
    finally:
        _HOST.pop()


def waits_for(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operator's answer has a size, or is a number, that follows from numbers on the device."""
    name = func.overloadpacket.__name__
    if name == "repeat_interleave":  # by then only the operator that makes rows of counts
        return kwargs.get("output_size") is None
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    return name in _SIZED_BY_DATA


class _Operators(TorchDispatchMode):
    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if waits_for(func, args, kwargs or {}):
            self.waits.note(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _TO_HOST and isinstance(args[0], Tensor):
            self.waits.note(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def host_waits() -> Iterator[HostWaits]:
    """Count what would wait within the block, its backward too."""
    waits = HostWaits()
    with _Functions(waits), _Operators(waits):
        yield waits
