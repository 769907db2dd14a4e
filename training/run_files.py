"""What a run folder holds beside its checkpoints, read back: whole, or the file that is damaged is told."""

import json
import shutil
from pathlib import Path
from typing import Any

from ..data.plain import Count, read_json

CHECKPOINTS = "checkpoints"
CONFIG = "config.json"
"""The resolved settings."""
METRICS = "metrics.jsonl"
"""A line each time that numbers were logged."""
BEST = "best.json"
"""The step with the best validation AUC so far."""
ENVIRONMENT = "environment.json"
"""Versions and device."""


def read_object(file: Path, mend: str = "mend or remove it") -> dict[str, Any] | None:
    """A JSON file of names and values; None where there is none.

    Args:
        file: of a run folder.
        mend: what to do where it is damaged, for the message.

    Raises:
        ValueError: something else is in it.
    """
    return read_json(file, dict[str, Any], mend) if file.is_file() else None


def read_best(run: Path) -> int | None:
    """The step of the best checkpoint; None before the first validation.

    Raises:
        ValueError: the file is damaged.
    """
    file = run / BEST
    if not file.is_file():
        return None
    step: int = read_json(file, {"step": Count}, "remove it, and say --checkpoint latest or a step number")["step"]
    return step


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines that training logged; a last one that a killed run left unfinished is passed over.

    Raises:
        ValueError: another line is damaged; says which.
    """
    file = run / METRICS
    lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
    found = [_parsed(line) for line in lines]
    for i, values in enumerate(found[:-1]):
        if values is None:
            raise ValueError(f"{file}, line {i + 1} is not JSON of a step: {lines[i][:80]!r}; mend or remove it")
    return [values for values in found if values is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    """A line's values, if it is one that training writes: a step, a split, and numbers or null."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        return None
    numbers = (value for name, value in values.items() if name != "split")
    return values if all(value is None or isinstance(value, (int, float)) for value in numbers) else None


def empty(run: Path, *kept: str) -> None:
    """Remove what a run folder holds, but for what has one of these names."""
    for path in run.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
