"""``placerank align``: runs in this process, or on ``--nproc`` ranks."""

from pathlib import Path

from ..tokenization.settings import AlignConfig
from .step import run_step_on_ranks


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    return run_step_on_ranks("align", AlignConfig, _align, argv)


def _align(config: AlignConfig) -> Path:
    from ..tokenization.align import align

    return align(config)
