"""Sharded embedding tables, their export and the reader of what was exported."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .delta import apply_delta, make_delta
    from .reader import EmbeddingTable, load_table

__all__ = ["EmbeddingTable", "apply_delta", "load_table", "make_delta"]


def __getattr__(name: str) -> Any:
    """The reader, imported when it is asked for: the dense part imports this folder and runs without fbgemm."""
    if name in __all__:
        from . import delta, reader

        return getattr(delta if name.endswith("_delta") else reader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
