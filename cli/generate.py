"""``placerank generate``."""

from pathlib import Path

from ..evaluation.settings import GenerateConfig
from .step import run_step


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    return run_step("generate", GenerateConfig, _generate, argv)


def _generate(config: GenerateConfig) -> Path:
    from ..evaluation.generate import generate

    return generate(config)
