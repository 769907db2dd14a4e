"""What a run folder holds beside its checkpoints, read back: whole, or the file that is damaged is told."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from ..data.manifest import MANIFEST
from ..data.plain import Count, read_json
from ..data.urls import Url, fetched, place
from .checkpoint import checkpoint_path, saved_steps, verify

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


def holds_run(run: Path, part: str) -> bool:
    """Whether a folder, or what lies behind a URL, holds a run of a step; one whose settings are damaged is taken for
    it, so that it can be replaced.

    Args:
        run: the folder.
        part: a setting that the step's runs have and others have not: "ranker" of train, "student" of adapt.
    """
    if not (run / CONFIG).is_file():
        return False
    try:
        settings = json.loads((run / CONFIG).read_bytes())
    except ValueError:
        return True
    return isinstance(settings, dict) and {"data", "run", part} <= set(settings)


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


def found_folder(folder: Path, run: Path, run_then: Path, flag: str) -> Path:
    """A folder that a run was made of."""
    moved = folder
    if not any(isinstance(path, Url) for path in (folder, run, run_then)):
        moved = Path(os.path.normpath(run.absolute() / os.path.relpath(folder, run_then)))
    for path in (folder, moved):
        if (path / MANIFEST).is_file():
            return path
    also = f" nor in {moved}" if moved != folder else ""
    raise FileNotFoundError(f"{run} was made of {folder}, which is not there{also}; say where it is with {flag}")


def find_checkpoint(run: Path, which: str) -> Path:
    """The folder of a run's checkpoint: "best" (by validation AUC), "latest", or a step number.

    Raises:
        FileNotFoundError: there is none such; lists the steps that there are.
    """
    folder = run / CHECKPOINTS
    steps = saved_steps(folder)
    if not steps:
        raise FileNotFoundError(f"{folder} holds no whole checkpoint; train first")
    best = read_best(run) if which == "best" else None
    if best is not None:
        step = best
    elif which in ("best", "latest"):
        step = steps[-1]
    elif which.isdecimal():
        step = int(which)
    else:
        raise ValueError(f"checkpoint={which!r}: expected best, latest or a step number")
    if step not in steps:
        raise FileNotFoundError(f"{run} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    return checkpoint_path(folder, step)


def whole_checkpoint(run: Path, which: str) -> tuple[Path, dict[str, Any]]:
    """A checkpoint of a run that is whole: its folder on this disk, and its manifest.

    Args:
        run: the run folder.
        which: see ``find_checkpoint``.

    Raises:
        FileNotFoundError: there is none such.
        ValueError: it is damaged.
    """
    path = find_checkpoint(run, which)
    try:
        saved = verify(copy := fetched(path))
    except ValueError as error:
        steps = [str(step) for step in saved_steps(path.parent) if checkpoint_path(path.parent, step) != path]
        others = f"choose another with --checkpoint: {', '.join(steps)}" if steps else "there is no other: train again"
        raise ValueError(f"checkpoint {path} can't be used: {error}; {others}") from error
    return copy, saved


def trained_on(run: Path) -> Path:
    """The prepared folder that a run was trained on, where it is now.

    Raises:
        FileNotFoundError: not a run folder, or that folder is gone.
        ValueError: the config is damaged.
    """
    file = run / CONFIG
    config = read_json(file, {"data": str, "run": str}, "mend it or train again")
    return found_folder(place(Path(config["data"])), run, place(Path(config["run"])), "--data")


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
