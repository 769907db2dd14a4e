"""Generative rankers on the device: beams beside transformers' generate, and each kind trained, resumed and asked.

``beams`` needs transformers alone. Weights are a T5's of TIGER's size with random values, the same on both sides; the
dictionary of prefixes is made before the clock starts, lists and order are compared first. A kind that was trained
there is exported, and its export on the CPU has to give the same log p of every item. The first kind is aligned with a
ranker that is trained there too.
"""

import json
import statistics
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ..kernels.harness import peak_mib, seconds
from ..t5 import TIGER, T5Tokens, small_t5
from .report import Cases, Report, needed
from .speed import profiled
from .training import city

KINDS = ("generative", "tiger", "onerec")
TINY: dict[str, Any] = {"columns": 16, "heads": 2, "hidden": 32, "layers": 1}
SMALL = {"columns": 16, "heads": 2, "head_columns": 8, "hidden": 32, "layers": 1}
LEAST = 8  # times transformers' generate


def cases(report: Report) -> Cases:
    yield "beams", partial(_beams, report)
    with TemporaryDirectory() as scratch:
        for kind in KINDS[:1] if report.dry else KINDS:
            yield f"{kind} trained", partial(_trained, report, kind, Path(scratch))
        yield "aligned", partial(_aligned, report, Path(scratch))


def _beams(report: Report) -> None:
    """16 users, 200 tokens, 200 beams, 5,000 items of 3 x 256 codes; and exact scores of all items."""
    with needed():
        import transformers  # noqa: F401

        from placerank.rankers.generative.decoding import beam, score
        from placerank.rankers.generative.index import Index
    users, length, beams, items, K = (2, 12, 4, 60, 8) if report.dry else (16, 200, 200, 5_000, 256)
    rng = np.random.default_rng(0)
    made = small_t5(vocabulary=1 + 3 * K, **(SMALL if report.dry else TIGER), seed=0).to(report.device)
    model = T5Tokens(made, levels=3, codes=K)
    codes = np.unique(rng.integers(0, K, (items, 3)), axis=0)
    index = Index(np.arange(len(codes)), codes, K)
    tokens = torch.from_numpy(rng.integers(1, 1 + 3 * K, (users, length))).to(report.device)
    prefix = model.prefix_function(codes)

    def ours() -> Any:
        return beam(model, model.memory(tokens), index, beams=beams, k=beams)

    def theirs() -> Any:
        return model.generate(tokens, codes, beams, prefix)

    got, want = ours(), theirs()
    same = np.mean([tuple(codes[i]) == ids for i, (ids, _) in zip(got.items.tolist(), want, strict=True)])
    apart = max(abs(a - b) for a, (_, b) in zip(got.log_p.tolist(), want, strict=True))
    report.figure("beams", "of the places in the lists the same", float(same), "", least=0.99)  # ties within rounding
    report.figure("beams", "log p apart by", apart, "", most=1e-3)
    own, other = [], []
    for _ in range(1 if report.dry else 5):
        own += [seconds(ours, report.device) for _ in range(3)]
        other.append(seconds(theirs, report.device))
    times = [statistics.median(side) for side in (own, other)]
    report.figure("beams", "ours", 1e3 * times[0] / users, "ms a user")
    report.figure("beams", "times transformers' generate", times[1] / times[0], "x", least=LEAST)
    launches, busy, top = profiled(ours, report.device)
    report.figure("beams", "kernels", launches, "")
    report.figure("beams", "device busy", busy / (1e3 * times[0]), "")

    def every() -> Any:
        return score(model, model.memory(tokens), index)

    peak, _ = peak_mib(every, report.device)
    report.figure("beams", "all items exactly", 1e3 * seconds(every, report.device) / users, "ms a user")
    report.figure("beams", "peak of all items", peak, "MiB")
    report.record(case="beams", note=f"{times[1] / times[0]:.1f} times generate, {launches} kernels", top=top)


def _tokens(data: Path, folder: Path) -> Path:
    """Semantic IDs of vectors that say an item's category, with noise."""
    import pyarrow.parquet as pq

    from placerank.tokenization.codes.tokenizers import TokenizerConfig
    from placerank.tokenization.text.store import write_embeddings
    from placerank.tokenization.tokenize import TokenizeConfig, tokenize

    items = pq.read_table(data / "catalog.parquet", columns=["item_id", "category_row"])[1:]
    g = torch.Generator().manual_seed(0)
    category = torch.from_numpy(items["category_row"].to_numpy().astype(np.int64))
    vectors = torch.randn(int(category.max()) + 1, 16, generator=g)[category]
    vectors += 0.5 * torch.randn(vectors.shape, generator=g)
    write_embeddings(folder / "vectors", items["item_id"], vectors)
    return tokenize(
        TokenizeConfig(
            data=data, embeddings=folder / "vectors", out=folder / "tokens", tokenizer="res_kmeans",
            codebook=TokenizerConfig(codes=8),
        )
    )  # fmt: skip


def _trained(report: Report, kind: str, scratch: Path) -> None:
    """Two passes with a checkpoint between, and log p of all items on the device and of its export on the CPU."""
    with needed():
        from placerank.data.batches.features import FeatureConfig
        from placerank.rankers.dense import RankerConfig
        from placerank.rankers.exported_generator import ExportedGenerator
        from placerank.rankers.generative.config import SETTINGS
        from placerank.rankers.generative_ranker import expand, gather
        from placerank.training.export import ExportConfig, export
        from placerank.training.inference import load_ranker
        from placerank.training.runtime import runtime
        from placerank.training.tasks import visit_loader
        from placerank.training.train import TrainConfig, train
    data = scratch / "data"
    if not data.exists():
        city(report, scratch)
        _tokens(data, scratch)
    ranker = RankerConfig(kind=kind, **{kind: SETTINGS[kind](**(TINY if report.dry else {}))})
    features = FeatureConfig(semantic_ids=scratch / "tokens")
    run = scratch / kind
    for epochs in (1, 2):
        config = TrainConfig(
            data=data, run=run, features=features, ranker=ranker, batch_size=256, epochs=epochs, log_every=1,
            resume=epochs > 1,
        )  # fmt: skip
        train(config)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    nll = [x["nll"] for x in lines if x["split"] == "valid"]
    case = f"{kind} trained"
    report.figure(case, "nats a visit after a pass", nll[0], "")
    report.figure(case, "and after the next, less", nll[0] - nll[-1], "", least=0)
    with runtime(0) as rt:
        loaded = load_ranker(run, rt)
        batch = next(iter(visit_loader(loaded.inputs, "test", 64, rt)))
        there = loaded.model.module.score(expand(loaded.catalog, gather(loaded.catalog, batch)))
    exported = ExportedGenerator.load(export(ExportConfig(run=run, out=scratch / f"{kind} export")))
    apart = (there - exported.score(batch)).abs().max().item()
    report.figure(case, "log p differs from its export's, on the CPU, by", apart, "", most=1e-2)


def _aligned(report: Report, scratch: Path) -> None:
    """A pass of alignment: what the reward model thinks of the ten best places, before and after."""
    with needed():
        from placerank.data.batches.features import FeatureConfig
        from placerank.rankers.dense import RankerConfig
        from placerank.rankers.generative.config import GeneratorConfig, PreferenceConfig
        from placerank.training.model import OptimizerConfig
        from placerank.training.train import TrainConfig, train
    data, judge = scratch / "data", scratch / "ranker"
    train(TrainConfig(data=data, run=judge, epochs=1, batch_size=1024))
    config = TrainConfig(
        data=data,
        run=scratch / "aligned",
        features=FeatureConfig(semantic_ids=scratch / "tokens"),
        ranker=RankerConfig(kind=KINDS[0], generative=GeneratorConfig(**(TINY if report.dry else {}))),
        warm_start=scratch / KINDS[0],
        preference=PreferenceConfig(ranker=judge),
        optimizer=OptimizerConfig(dense_lr=1e-3, table_lr=0.01),
        batch_size=256,
        epochs=1,
    )
    lines = [json.loads(line) for line in (train(config) / "metrics.jsonl").read_text().splitlines()]
    reward = [x["reward"] for x in lines if x["split"] == "valid"]
    report.figure("aligned", "reward before", reward[0], "")
    report.figure("aligned", "and after, more", reward[-1] - reward[0], "", least=0)
