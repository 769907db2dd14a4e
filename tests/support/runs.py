"""Runs on ranks of their own, some of which are killed, and what they logged."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from placerank.data.batches.features import FeatureConfig
from placerank.rankers.dense import RankerConfig
from placerank.training import train as train_module
from placerank.training.train import TrainConfig, train


def small(data: Path, run: Path, **changes: Any) -> TrainConfig:
    """A run of seconds on the ``prepared`` fixture."""
    config = TrainConfig(
        data=data,
        run=run,
        features=FeatureConfig(embedding_dim=8, pooled_dim=4),
        ranker=RankerConfig(mlp=[8]),
        batch_size=256,
        epochs=2,
        checkpoint_every=7,
        log_every=1,
        patience=0,
    )
    return replace(config, **changes)


def metrics(run: Path, split: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "samples_per_s"} for line in lines if line["split"] == split]


def train_here(config: TrainConfig) -> None:
    train(config)


def train_and_die(config: TrainConfig, last_step: int) -> None:
    """Train, and be killed in the middle of the step after ``last_step``, on every rank."""
    forward = train_module._Loop._forward

    def deadly(self: Any, batch: Any) -> Any:
        if self.step == last_step:
            self.checkpoints.wait()  # else the kill may come before the newest checkpoint is on disk
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(self, batch)

    train_module._Loop._forward = deadly  # type: ignore[method-assign]
    train(config)
