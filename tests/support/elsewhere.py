"""A device that isn't there: its tensors lie on the CPU and say that they don't, and waits for it are noted.

What looks at ``device.type`` takes the way that it takes on a GPU, with real numbers, so that results can be compared
with the CPU's. Tensors that lie on the host stay plain ones: sizes taken from them are no waits, and an operator that
is given both is an error, as on a GPU. Operators of our own are one operator each: what they do inside isn't seen.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from host_waits import HostWaits, waits_for
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")  # the only one but the CPU that every build knows and autograd needs no driver for


class Elsewhere(Tensor):
    """A tensor of the device; ``here`` is where it really lies."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "Elsewhere":
        made = Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )
        made.here = here.detach()
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with _Device(HostWaits()):
            return func(*args, **(kwargs or {}))


class _Device(TorchDispatchMode):
    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        ours = any(isinstance(x, Elsewhere) for x in tensors)
        # a GPU takes single numbers of the host, and operators of ours say which tensors lie there
        both = len({isinstance(x, Elsewhere) for x in tensors if x.dim()}) == 2 and func.namespace != "placerank"
        if both and name != "copy_":
            raise RuntimeError(f"{name}: tensors of the host and of the device")
        to_device = torch.device(kwargs["device"]) == DEVICE if kwargs.get("device") is not None else ours
        args, kwargs = tree_map(lambda x: x.here if isinstance(x, Elsewhere) else x, (args, kwargs))
        if "device" in kwargs:
            kwargs["device"] = None
        copied = (name == "_to_copy" and ours != to_device) or (name == "copy_" and both)
        non_blocking = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        if (ours and waits_for(func, args, kwargs)) or (copied and not (to_device and non_blocking)):
            self.waits.note(name)
        out = func(*args, **kwargs)
        return tree_map(lambda x: Elsewhere(x) if isinstance(x, Tensor) and to_device else x, out)


class _Made(TorchFunctionMode):
    """``torch.tensor``, ``as_tensor`` and ``tolist`` copy, which operators of a build without a device don't show."""

    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.tolist and isinstance(args[0], Elsewhere):
            self.waits.note("tolist")
            return args[0].here.tolist()
        device = kwargs.get("device")
        if func not in (torch.tensor, torch.as_tensor) or device is None or torch.device(device) != DEVICE:
            return func(*args, **kwargs)
        self.waits.note(func.__name__)
        return Elsewhere(func(*args, **(kwargs | {"device": "cpu"})))


def moved(x: Tensor) -> Tensor:
    """The same numbers on the device."""
    return Elsewhere(x.detach().clone()).requires_grad_(x.requires_grad)


def move(module: nn.Module) -> None:
    """Parameters and buffers to the device."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(moved(parameter.detach())))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, moved(buffer))


@contextmanager
def elsewhere() -> Iterator[HostWaits]:
    """Within, the device is there; what would wait for it."""
    waits = HostWaits()
    off = patch.object(torch, "is_autocast_enabled", lambda *_: False)  # it knows no such device
    with off, _Made(waits), _Device(waits):
        yield waits
