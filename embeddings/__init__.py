"""Sharded embedding tables, their export and the reader of what was exported."""

from .reader import EmbeddingTable, load_table

__all__ = ["EmbeddingTable", "load_table"]
