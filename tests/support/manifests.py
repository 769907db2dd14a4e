"""Prepared folders made by hand, with the manifest that readers expect of one."""

from pathlib import Path
from typing import Any

from placerank.data.manifest import write_manifest


def write_prepared(folder: Path, splits: dict[str, dict[str, Any]], **fields: Any) -> None:
    """The manifest of a folder whose splits have these rows; what a test says nothing of is there and empty."""
    whole = {
        name: {"rows": 0, "positives": 0, "mean_history": 0.0, "row_groups": {}, **split}
        for name, split in splits.items()
    }
    empty = {"tables": {"item": 1, "user": 1, "category": 1}, "user_columns": [], "history_length": 0}
    write_manifest(folder, "prepared", {}, splits=whole, **({**empty, "source": "impressions"} | fields))
