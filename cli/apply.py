"""``placerank apply``."""

from pathlib import Path

from ..embeddings.settings import ApplyConfig
from .step import run_step


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    return run_step("apply", ApplyConfig, _apply, argv)


def _apply(config: ApplyConfig) -> Path:
    from ..embeddings.delta import apply

    return apply(config)
