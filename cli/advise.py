"""``placerank advise``; the folder may be named first, without its flag."""

from ..evaluation.settings import AdviseConfig
from .step import run_step, with_first_as


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    return run_step("advise", AdviseConfig, _advise, with_first_as("--advisor", argv))


def _advise(config: AdviseConfig) -> None:
    from ..evaluation.advise import advise

    advise(config)
