"""Small exports to serve."""

from pathlib import Path
from types import SimpleNamespace

from placerank.data.batches.features import FeatureConfig
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.rankers.settings import RankerConfig
from placerank.training.export import export
from placerank.training.settings import ExportConfig, TrainConfig
from placerank.training.train import train


def two_exports(folder: Path) -> SimpleNamespace:
    """``a`` and ``b``: exports of a ranker of a small city after one epoch and after two."""
    raw = simulate(SimulateConfig(out=folder / "raw", cities=1, items=200, users=60, requests=300, candidates=6))
    data = prepare(PrepareConfig(input=raw, out=folder / "data", history_length=6))
    run, features, ranker = folder / "run", FeatureConfig(embedding_dim=8), RankerConfig(mlp=[8])
    train(TrainConfig(data=data, run=run, features=features, ranker=ranker, epochs=2, batch_size=512, patience=0))
    steps = sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())
    made = (export(ExportConfig(run=run, out=folder / n, checkpoint=str(s))) for n, s in zip("ab", steps, strict=True))
    return SimpleNamespace(**dict(zip("ab", made, strict=True)))
