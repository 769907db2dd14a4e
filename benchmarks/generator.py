"""Generative rankers for benchmarks, trained by ``placerank train``: scores of test visits, and beams."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from placerank.data.batches.features import FeatureConfig
from placerank.data.manifest import whole_file
from placerank.rankers.dense import RankerConfig
from placerank.rankers.generative.reach import everything
from placerank.rankers.generative_ranker import expand, gather
from placerank.reports.progress import tracked
from placerank.training.inference import load_ranker
from placerank.training.model import OptimizerConfig
from placerank.training.run_files import BEST
from placerank.training.runtime import runtime
from placerank.training.tasks import visit_loader
from placerank.training.train import TrainConfig, train

BATCH = 256  # visits that are scored together
RANKER = RankerConfig(kind="generative")


def some_users(data: Path, folder: Path, share: float) -> Path:
    """A dataset of a share of the users, drawn once, and of all items."""
    raw = folder / "raw"
    if not (raw / "interactions.parquet").exists():
        raw.mkdir(parents=True, exist_ok=True)
        visits = pq.read_table(data / "interactions.parquet")
        users = np.sort(pc.unique(visits["user_id"]).to_numpy(zero_copy_only=False))
        some = np.random.default_rng(0).choice(users, round(share * len(users)), replace=False)
        with whole_file(raw / "items.parquet") as tmp:
            tmp.write_bytes((data / "items.parquet").read_bytes())
        with whole_file(raw / "interactions.parquet") as tmp:
            pq.write_table(visits.filter(pc.is_in(visits["user_id"], pa.array(some))), tmp)
    return raw


def trained(
    prepared: Path,
    tokens: Path,
    seed: int,
    run: Path,
    ranker: RankerConfig = RANKER,
    batch: int = 512,
    epochs: int = 12,
) -> Path:
    """The run folder, trained until validation gains no more; gone on with where it was cut off."""
    config = TrainConfig(
        data=prepared,
        run=run,
        features=FeatureConfig(semantic_ids=tokens),
        ranker=ranker,
        optimizer=OptimizerConfig(dense_lr=2e-3),
        batch_size=batch,
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


def with_beams(run: Path, beams: int, batches: int = 8, together: int = 64, k: int = 10) -> dict[str, float]:
    """Lists of k of all items by beams beside those of exact scores, in turn, for the first test visits.

    Args:
        run: of ``trained``.
        beams: how many.
        batches, together: so many batches of so many requests, after one that warms up.

    Returns:
        ``requests``; ``exact_ms``, ``beams_ms``: processor time a request; ``ratio``, ``ratio_low``, ``ratio_high``: of
        exact by beams, median and range over batches; ``equal``: share of lists that are the same; ``shared``: of
        places that are in both.
    """
    seconds: dict[int, list[float]] = {0: [], beams: []}
    equal, shared = [], []
    with runtime(0) as rt:
        torch.set_num_threads(1)
        ranker = load_ranker(run, rt)
        model = ranker.model.module
        allowed = everything(model.dense.index.items, together)
        of_test = visit_loader(ranker.inputs, "test", together, rt, together=1)
        for number, batch in zip(range(batches + 1), of_test, strict=False):
            asked, found = expand(ranker.catalog, gather(ranker.catalog, batch)), {}
            for how, of_batches in seconds.items():
                start = time.process_time()
                found[how] = model.lists(asked, None, allowed, k, beams=how).items.view(-1, k)
                if number:
                    of_batches.append(time.process_time() - start)
            if number:
                exact, quick = found[0], found[beams]
                equal.append((exact == quick).all(1).double().mean())
                shared.append((exact[:, :, None] == quick[:, None]).any(2).double().mean())
    ratio = np.divide(seconds[0], seconds[beams])
    ms = {how: 1000 * float(np.median(x)) / together for how, x in seconds.items()}
    return {
        "requests": len(equal) * together,
        "exact_ms": round(ms[0], 3),
        "beams_ms": round(ms[beams], 3),
        "ratio": round(float(np.median(ratio)), 3),
        "ratio_low": round(float(ratio.min()), 3),
        "ratio_high": round(float(ratio.max()), 3),
        "equal": round(float(torch.stack(equal).mean()), 5),
        "shared": round(float(torch.stack(shared).mean()), 5),
    }
