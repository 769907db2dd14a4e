"""What is compiled ahead of time: each Triton kernel with the settings it is launched with."""

from typing import Any, NamedTuple


class Variant(NamedTuple):
    """One kernel with one setting, enough to compile it without data or a device.

    Attributes:
        kernel: the ``triton.jit`` function.
        signature: type of each argument that is no constant, as Triton writes them: ``*fp32``, ``i64``, ``fp32``.
        constants: ``tl.constexpr`` arguments.
        num_warps, num_stages: as at launch.
    """

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2
