"""The committed figures: one CSV a benchmark in ``results/``, each line with the conditions it was measured under."""

import csv
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from placerank.data.manifest import environment, whole_file

if TYPE_CHECKING:  # who writes files need not wait for torch
    import torch

RESULTS = Path(__file__).parent / "results"


def conditions(device: "torch.device | None" = None) -> dict[str, str]:
    """Device (the GPU where there is one, unless told), versions, commit and date."""
    about = environment()
    if device is not None and device.type == "cpu":
        about["device"] = f"cpu ({os.cpu_count()} cores)"
    models = [x for x in _cpuinfo() if x.startswith("model name")]
    cpu = models[0].split(":", 1)[1].strip() + ", " if models and about["device"].startswith("cpu") else ""
    return {
        "device": cpu + about["device"],
        "versions": " ".join(f"{name} {version}" for name, version in about["packages"].items()),
        "commit": about["commit"] or "unknown",
        "date": datetime.now(UTC).date().isoformat(),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def save(name: str, lines: list[dict[str, Any]]) -> Path:
    """Write lines (dicts with equal keys) and their conditions to ``results/name``; returns the path."""
    about = conditions()
    return _write(RESULTS / name, [line | about for line in lines])


def keep(name: str, lines: list[dict[str, Any]], key: tuple[str, ...], device: "torch.device | None" = None) -> Path:
    """As ``save``, but beside the lines that are there: those with the key of a new one give way to it."""
    about = conditions(device)
    new = [line | about for line in lines]
    replaced = {tuple(str(line[field]) for field in key) for line in new}  # as the file has them
    path = RESULTS / name
    old: list[dict[str, Any]] = []
    if path.exists():
        with open(path, newline="") as f:
            old = [line for line in csv.DictReader(f) if tuple(line[field] for field in key) not in replaced]
    return _write(path, [*old, *new])


def _write(path: Path, lines: list[dict[str, Any]]) -> Path:
    """Whole or not at all: what is there stays until the new file is written."""
    RESULTS.mkdir(exist_ok=True)
    with whole_file(path) as beside, open(beside, "w", newline="") as f:
        writer = csv.DictWriter(f, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return path
