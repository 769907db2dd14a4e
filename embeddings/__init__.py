"""Sharded embedding tables, their export and the reader of what was exported."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .reader import EmbeddingTable, load_table

__all__ = ["EmbeddingTable", "load_table"]


def __getattr__(name: str) -> Any:
    """The reader, imported when it is asked for: the dense part imports this folder and runs without fbgemm."""
    if name in __all__:
        from . import reader

        return getattr(reader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
