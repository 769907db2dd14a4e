"""``placerank evaluate``: runs in this process, or on ``--nproc`` ranks."""

from pathlib import Path

from ..evaluation.settings import EvaluateConfig
from .step import run_step_on_ranks


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    return run_step_on_ranks("evaluate", EvaluateConfig, _evaluate, argv)


def _evaluate(config: EvaluateConfig) -> Path:
    from ..evaluation.evaluate import evaluate

    return evaluate(config)
