"""``placerank prepare``: runs in this process, or on ``--nproc`` ranks."""

from ..data.preparation.prepare import PrepareConfig, prepare
from .step import run_step_on_ranks


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    return run_step_on_ranks("prepare", PrepareConfig, prepare, argv)
