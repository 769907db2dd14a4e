"""Runs on ranks of their own, some of which are killed, and what they logged."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from placerank.data.batches.features import FeatureConfig
from placerank.data.manifest import write_json
from placerank.rankers.dense import RankerConfig
from placerank.training import train as train_module
from placerank.training.checkpoint import local_pieces
from placerank.training.run_files import BEST
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


def begin(config: TrainConfig, save: bool = False) -> dict[str, Any]:
    """What training starts with: this rank's pieces of tables and of their states, and the dense part.

    With ``save`` it is a checkpoint, too, the run's best.
    """
    found: dict[str, Any] = {}

    def look(self: Any) -> None:
        state = self.trainee.state()
        for kind, node in (("model", state["model"]), ("state", state["optimizer"]["state"])):
            for key, value in node.items():
                for name, x in value.items() if isinstance(value, dict) else [("", value)]:
                    pieces = [(at, p.detach().clone()) for at, p in local_pieces(x)]
                    found[f"{kind} {key} {name}"] = (tuple(x.size()), pieces)
        if save:
            with self.checkpoints:
                self._save()
            if self.rt.is_first:
                write_json(config.run / BEST, self.best)

    with mock.patch.object(train_module._Loop, "run", look):
        train(config)
    return found


def together(by_rank: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Tables of ``begin`` of all ranks, whole."""
    out = {}
    for found in by_rank:
        for key, (size, pieces) in found.items():
            whole = out.setdefault(key, torch.full(size, float("nan")))
            for at, piece in pieces:
                whole[tuple(slice(a, a + n) for a, n in zip(at, piece.shape, strict=True))] = piece
    assert not any(x.isnan().any() for x in out.values())
    return out
