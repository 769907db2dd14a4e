"""``placerank prepare``."""

from ..data.preparation.prepare import PrepareConfig, prepare
from .step import run_step


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    return run_step("prepare", PrepareConfig, prepare, argv)
