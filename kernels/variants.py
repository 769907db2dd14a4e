"""What is compiled ahead of time: the kernels that the launchers start, taken down from the launchers themselves.

A launch is compiled for what Triton sees in its arguments: their types, whether an address or a whole number divides by
16, whether a number is 1, and on AMD whether a tensor lies within 2 GB. So a list written by hand would be a list of
other kernels. Here a launcher runs with tensors on the meta device, nothing starts, and what it asked for is kept.

That makes a list as long as the numbers that users bring are many, so the launchers leave Triton little to see: tensors
come ``aligned``, and sizes on which no address rests are not specialized.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

BIG = 1 << 28
"""Rows of a tensor that is beyond 2 GB, on the meta device."""


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. Triton's own takes 4 us a call, as it is for kernels too."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is at least n; n at least 1."""
    return 1 << (n - 1).bit_length()


def launch(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
    """What starts a kernel where its first argument is, a tensor; every kernel is started by this.

    By itself Triton starts kernels on the current device, and takes all addresses for that device's.
    """

    def start(*arguments: Any, **options: Any) -> None:
        with torch.cuda.device_of(arguments[0]):
            kernel[grid](*arguments, **options)

    return start


class Variant(NamedTuple):
    """One kernel as one launch has it compiled.

    Attributes:
        kernel: the ``triton.jit`` function.
        signature: type of each argument that is no constant, as Triton writes them: ``*fp32``, ``i64``, ``fp32``.
        constants: ``tl.constexpr`` arguments, and numbers that are 1.
        attributes: what Triton sees in the arguments that are specialized: D, divides by 16; S, on AMD, within 2 GB.
        options: ``num_warps``, ``num_stages`` and what else the launch sets.
    """

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[str, str]
    options: dict[str, Any]

    @property
    def num_warps(self) -> int:
        return int(self.options["num_warps"])

    @property
    def num_stages(self) -> int:
        return int(self.options["num_stages"])


class Variants(Mapping[str, Variant]):
    """What launchers start, by name of the kernel and the case; taken down when first looked at.

    Args:
        cases: by name, a call of a launcher with meta tensors. The second start of a kernel is ``kernel_case_2``.
    """

    def __init__(self, cases: Mapping[str, Callable[[], object]]) -> None:
        self.cases = cases
        self._found: dict[str, Variant] = {}

    def _all(self) -> dict[str, Variant]:
        if not self._found:
            for case, launch in self.cases.items():
                with launches() as started:
                    launch()
                count: dict[str, int] = {}
                for variant in started:
                    name = f"{variant.kernel.__name__.removeprefix('_').removesuffix('_kernel')}_{case}"
                    count[name] = count.get(name, 0) + 1
                    self._found[name if count[name] == 1 else f"{name}_{count[name]}"] = variant
        return self._found

    def __getitem__(self, name: str) -> Variant:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


@contextmanager
def launches() -> Iterator[list[Variant]]:
    """Within, kernels are not started: the list fills with what would have been, in order.

    Raises:
        RuntimeError: with ``TRITON_INTERPRET`` set, as kernels that are interpreted are never compiled.
    """
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set, so kernels are interpreted and never compiled: unset it")
    # AMD's eyes see all that NVIDIA's see.
    backend = make_backend(GPUTarget("hip", "gfx942", 64))
    found: list[Variant] = []

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        bound, specialization, options = create_function_from_signature(kernel.signature, kernel.params, backend)(
            *args, **options
        )
        kinds = dict(zip(bound, specialization, strict=True))
        found.append(
            Variant(
                kernel,
                {name: kind for name, (kind, _) in kinds.items() if kind != "constexpr"},
                {name: bound[name] for name, (kind, _) in kinds.items() if kind == "constexpr"},
                {name: "" if kind == "constexpr" else seen for name, (kind, seen) in kinds.items() if seen is not None},
                options,
            )
        )

    run, JITFunction.run = JITFunction.run, note
    try:
        yield found
    finally:
        JITFunction.run = run


def aligned(x: Tensor) -> Tensor:
    """x, or a copy if it is not contiguous or its first number not at an address that divides by 16.

    Triton would compile such a tensor another kernel.
    """
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()
