"""Small exports to serve."""

import socket
from pathlib import Path
from types import SimpleNamespace

from placerank.data.batches.features import FeatureConfig
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.rankers.dense import RankerConfig
from placerank.training.export import ExportConfig, export
from placerank.training.train import TrainConfig, train


def two_exports(folder: Path) -> SimpleNamespace:
    """``a`` and ``b``: exports of two rankers of one city."""
    raw = simulate(SimulateConfig(out=folder / "raw", cities=1, items=200, users=60, requests=300, candidates=6))
    data = prepare(PrepareConfig(input=raw, out=folder / "data", history_length=6))
    found = {}
    for seed, name in enumerate("ab"):
        run, ranker = folder / f"run-{name}", RankerConfig(mlp=[8])
        features = FeatureConfig(embedding_dim=8)
        train(TrainConfig(data=data, run=run, features=features, ranker=ranker, epochs=1, seed=seed))
        found[name] = export(ExportConfig(run=run, out=folder / name))
    return SimpleNamespace(**found)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
