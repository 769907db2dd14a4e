"""``placerank compare``: evaluated runs side by side."""

from pathlib import Path

from ..evaluation.settings import CompareConfig
from .step import run_step, with_first_as


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    return run_step("compare", CompareConfig, _compare, with_first_as("--runs", argv))


def _compare(config: CompareConfig) -> Path | None:
    from ..evaluation.compare import compare

    return compare(config)
