"""``placerank simulate``."""

from pathlib import Path

from ..data.city.settings import SimulateConfig
from .step import run_step


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    return run_step("simulate", SimulateConfig, _simulate, argv)


def _simulate(config: SimulateConfig) -> Path:
    from ..data.city.simulate import simulate

    return simulate(config)
