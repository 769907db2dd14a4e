"""``placerank train``: runs in this process, or on ``--nproc`` ranks."""

from pathlib import Path

from ..training.settings import TrainConfig
from .step import run_step_on_ranks


def main(argv: list[str]) -> int:
    """Run the step with settings from defaults, file and flags; returns the exit code."""
    return run_step_on_ranks("train", TrainConfig, _train, argv)


def _train(config: TrainConfig) -> Path:
    from ..training.train import train

    return train(config)
