"""``placerank tokenize``: runs in this process, or on ``--nproc`` ranks."""

from pathlib import Path

from ..tokenization.settings import TokenizeConfig
from .step import run_step_on_ranks


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    return run_step_on_ranks("tokenize", TokenizeConfig, _tokenize, argv)


def _tokenize(config: TokenizeConfig) -> Path:
    from ..tokenization.tokenize import tokenize

    return tokenize(config)
