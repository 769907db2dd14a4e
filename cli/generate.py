"""``placerank generate``."""

from ..evaluation.generate import GenerateConfig, generate
from .step import run_step


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    return run_step("generate", GenerateConfig, generate, argv)
