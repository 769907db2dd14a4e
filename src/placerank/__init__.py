"""placerank: ranking models for places, on TorchRec sharded tables."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """What takes seconds to import is imported when it is first asked for."""
    if name == "load":
        from .rankers.rank import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
