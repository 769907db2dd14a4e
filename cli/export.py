"""``placerank export``."""

from pathlib import Path

from ..training.settings import ExportConfig
from .step import run_step


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    return run_step("export", ExportConfig, _export, argv)


def _export(config: ExportConfig) -> Path:
    from ..training.export import export

    return export(config)
