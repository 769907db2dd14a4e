"""``placerank rank``."""

from pathlib import Path

from ..evaluation.settings import RankConfig
from .step import run_step


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    return run_step("rank", RankConfig, _rank, argv)


def _rank(config: RankConfig) -> Path | None:
    from ..evaluation.rank import rank

    return rank(config)
