"""``placerank prepare``: runs in this process, on ``--nproc`` of its threads."""

from pathlib import Path

from ..data.preparation.settings import PrepareConfig
from .step import run_step_on_threads


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    return run_step_on_threads("prepare", PrepareConfig, _prepare, argv)


def _prepare(config: PrepareConfig, nproc: int) -> Path:
    from ..data.preparation.prepare import prepare

    return prepare(config, nproc)
