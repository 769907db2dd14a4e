"""``placerank compare``: evaluated runs side by side."""

from pathlib import Path

from ..evaluation.settings import CompareConfig
from .step import run_step


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    if argv and not argv[0].startswith("-"):
        argv = ["--runs", *argv]
    return run_step("compare", CompareConfig, _compare, argv)


def _compare(config: CompareConfig) -> Path | None:
    from ..evaluation.compare import compare

    return compare(config)
