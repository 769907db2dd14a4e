"""The generative ranker for ``bench_lists.py``: trained by ``placerank train``, and its scores of test visits."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from placerank.data.batches.features import FeatureConfig
from placerank.rankers.dense import RankerConfig
from placerank.rankers.generative_ranker import expand, gather
from placerank.reports.progress import tracked
from placerank.training.inference import load_ranker
from placerank.training.model import OptimizerConfig
from placerank.training.run_files import BEST
from placerank.training.runtime import runtime
from placerank.training.tasks import visit_loader
from placerank.training.train import TrainConfig, train

BATCH = 256  # visits that are scored together


def trained(prepared: Path, tokens: Path, seed: int, run: Path, kind: str = "generative", epochs: int = 12) -> Path:
    """The run folder, trained until validation gains no more; gone on with where it was cut off."""
    config = TrainConfig(
        data=prepared,
        run=run,
        features=FeatureConfig(semantic_ids=tokens),
        ranker=RankerConfig(kind=kind),
        optimizer=OptimizerConfig(dense_lr=2e-3),
        batch_size=512,
        epochs=epochs,
        seed=seed,
        keep_checkpoints=1,
        resume=True,
    )
    return run if (run / "done").exists() else _done(train(config))


def _done(run: Path) -> Path:
    (run / "done").write_bytes((run / BEST).read_bytes())
    return run


def scores(run: Path, wanted: Tensor, tokens: Path | None = None) -> NDArray[np.float32]:
    """Log p of every catalog row for the wanted test visits, bool [N]: [B, I], -inf for what can't be.

    Args:
        run: of ``trained``.
        wanted: which visits of the test split.
        tokens: semantic IDs with items that came since; default: those that it was trained with.
    """
    parts = []
    with runtime(0) as rt:
        ranker = load_ranker(run, rt, semantic_ids=tokens)
        model = ranker.model.module
        items = torch.from_numpy(model.dense.index.items).long()
        batches = visit_loader(ranker.inputs, "test", BATCH, rt, together=1)
        for batch, here in zip(tracked(batches, "lists", unit="batches"), wanted.split(BATCH), strict=True):
            found = torch.full((int(here.sum()), len(model.dense.facts.codes)), -torch.inf)
            found[:, items] = model.score(expand(ranker.catalog, gather(ranker.catalog, batch)), here)
            parts.append(found.numpy())
    return np.concatenate(parts)
