"""``placerank adapt``."""

from pathlib import Path

from ..training.settings import AdaptConfig
from .step import run_step


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    return run_step("adapt", AdaptConfig, _adapt, argv)


def _adapt(config: AdaptConfig) -> Path:
    from ..training.adapt import adapt

    return adapt(config)
