"""``placerank prepare``: runs in this process, or on ``--nproc`` ranks."""

from pathlib import Path

from ..data.preparation.settings import PrepareConfig
from .step import run_step_on_ranks


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    return run_step_on_ranks("prepare", PrepareConfig, _prepare, argv)


def _prepare(config: PrepareConfig) -> Path:
    from ..data.preparation.prepare import prepare

    return prepare(config)
