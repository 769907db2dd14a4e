"""``placerank apply``."""

from ..embeddings.delta import ApplyConfig, apply
from .step import run_step


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    return run_step("apply", ApplyConfig, apply, argv)
