"""The committed figures: one CSV a benchmark in ``results/``, each line with the conditions it was measured under."""

import csv
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from placerank.data.manifest import environment

RESULTS = Path(__file__).parent / "results"


def conditions() -> dict[str, str]:
    """Device, versions, commit and date."""
    about = environment()
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
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / name, "w", newline="") as f:
        writer = csv.DictWriter(f, [*lines[0], *about], lineterminator="\n")
        writer.writeheader()
        writer.writerows(line | about for line in lines)
    return RESULTS / name
