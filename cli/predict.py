"""``placerank predict``."""

from pathlib import Path

from ..evaluation.settings import PredictConfig
from .step import run_step


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    return run_step("predict", PredictConfig, _predict, argv)


def _predict(config: PredictConfig) -> Path:
    from ..evaluation.predict import predict

    return predict(config)
