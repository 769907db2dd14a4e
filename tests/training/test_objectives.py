"""Several objectives from raw tables to scores outside of training: losses, checkpoints, metrics, exports, refusals."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from runs import metrics, small, train_and_die, train_here
from sklearn.metrics import roc_auc_score
from tokens import K, make_codes, write_tokens
from torch import Tensor

from placerank.data.batches.features import FeatureConfig
from placerank.data.batches.loader import SampleLoader
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.evaluation.evaluate import EvaluateConfig, evaluate
from placerank.rankers.dense import RankerConfig
from placerank.rankers.exported import ExportedRanker
from placerank.rankers.objectives import ObjectivesConfig
from placerank.rankers.plugins.akt import AktConfig
from placerank.rankers.plugins.rest import RestConfig
from placerank.tokenization.codes.semantic_ids import SemanticIds
from placerank.training.export import ExportConfig, export
from placerank.training.inference import load_scorer
from placerank.training.predictions import Outcomes, Predictions, shifted
from placerank.training.runtime import runtime
from placerank.training.train import TrainConfig, train

THREE = ["label", "order", "gmv"]
AnyRanks = Callable[..., list[Any]]


def objectives(**changes: Any) -> RankerConfig:
    settings: dict[str, Any] = {"labels": THREE, "heads": "ple", "experts": 2, "esmm": True}
    return RankerConfig(mlp=[16, 8], objectives=ObjectivesConfig(**(settings | changes)))


@pytest.fixture(scope="module")
def ordered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small city with orders, prepared."""
    folder = tmp_path_factory.mktemp("ordered")
    simulate(SimulateConfig(out=folder / "raw", cities=2, items=300, users=200, requests=700, days=30, orders=0.4))
    config = PrepareConfig(input=folder / "raw", out=folder / "data", history_length=10, labels=["order"], amount="gmv")
    return prepare(config)


@pytest.fixture(scope="module")
def trained(ordered: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """``data``, ``run`` and ``out``, an export."""
    folder = tmp_path_factory.mktemp("trained")
    train(small(ordered, folder / "run", ranker=objectives()))
    out = export(ExportConfig(run=folder / "run", out=folder / "export"))
    return SimpleNamespace(data=ordered, run=folder / "run", out=out)


def test_losses_fall_and_each_objective_is_logged(trained: SimpleNamespace) -> None:
    lines = metrics(trained.run, "train")
    assert {"loss", "loss/label", "loss/order", "loss/gmv"} <= set(lines[0])
    for line in lines:
        assert line["loss"] == pytest.approx(sum(line[f"loss/{n}"] for n in THREE), rel=1e-5)
    for name in ("loss/label", "loss/order", "loss/gmv"):
        assert np.mean([x[name] for x in lines[-5:]]) < np.mean([x[name] for x in lines[:5]])
    valid = metrics(trained.run, "valid")[-1]
    assert valid["auc"] == pytest.approx((valid["auc/label"] + valid["auc/order"]) / 2)
    assert valid["auc/order"] > 0.5 and valid["auc/gmv"] > 0.5 and 0.3 < valid["calibration/gmv"] < 3
    best = json.loads((trained.run / "best.json").read_text())
    assert best["auc"] == max(line["auc"] for line in metrics(trained.run, "valid"))


def trainer_scores(run: Path, data: Path) -> Tensor:
    with runtime(0) as rt:
        score, _, _ = load_scorer(run, rt)
        loader = SampleLoader(data, "test", 97, rank=rt.rank, world_size=rt.world_size)
        return torch.cat([score(sample)[: sample.valid] for sample in loader])


def test_exports_give_what_the_trainer_gives(trained: SimpleNamespace) -> None:
    want = trainer_scores(trained.run, trained.data)
    ranker = ExportedRanker.load(trained.out)
    samples = list(SampleLoader(trained.data, "test", 120))
    got = torch.cat([ranker.score(sample) for sample in samples])
    assert got.shape == (len(want), 3) and ranker.features.objectives == tuple(THREE)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for sample in samples:  # who serves knows no outcome
        sample.own.clear()
    torch.testing.assert_close(torch.cat([ranker.score(sample) for sample in samples]), got)
    named = ranker.predict(samples[0])
    assert [*named] == THREE and (named["order"] <= named["label"]).all()
    first = got[: len(samples[0])]
    torch.testing.assert_close(named["order"], first[:, 1].sigmoid())
    torch.testing.assert_close(named["gmv"], first[:, 2].exp())


def test_evaluation_measures_each(trained: SimpleNamespace, tmp_path: Path) -> None:
    out = evaluate(EvaluateConfig(run=trained.run, out=tmp_path / "evaluation"))
    found = json.loads((out / "metrics.json").read_text())
    p = Predictions.read(out / "predictions.parquet")
    assert p.amount is not None and p.log_amount is not None and [*p.labels] == ["order"] == [*p.logits]
    assert found["objective"] == "label" and [*found["objectives"]] == ["order"]
    of_order = found["objectives"]["order"]
    assert of_order["scorers"]["model"]["auc"] == pytest.approx(roc_auc_score(p.labels["order"], p.logits["order"]))
    assert of_order["positives"] == int(p.labels["order"].sum()) and "oracle" not in of_order["scorers"]
    assert {"slices", "reliability"} <= set(of_order) and of_order["slices"]["popularity"]["scorers"]["model"]
    amount, first = found["amount"], found["first"]
    assert amount["name"] == "gmv" and amount["calibration"] == pytest.approx(
        np.exp(p.log_amount).sum() / p.amount.sum()
    )
    assert set(amount["auc"]) == set(first["orders"]) >= {"model by label", "model by order", "model by gmv", "oracle"}
    brought = []
    for request in np.unique(p.request):
        rows = np.flatnonzero(p.request == request)
        brought.append(p.amount[rows[np.argsort(-p.logits["order"][rows], kind="stable")][:10]].sum())
    assert first["orders"]["model by order"]["gmv"] == pytest.approx(np.mean(brought), rel=0.02), "but for ties"
    page = (out / "report.html").read_text()
    assert "The first 10 places" in page and "order: calibration" in page and "AUC weighted by gmv" in page


def test_single_models_are_as_they_always_were(ordered: Path, prepared: Path, tmp_path: Path) -> None:
    """Of the click: the run of a folder with outcomes is that of one without. Of an order: its metrics are its own."""
    manifest = json.loads((ordered / "manifest.json").read_text())
    plain = tmp_path / "plain"
    prepare(
        PrepareConfig(
            input=Path(manifest["config"]["input"]), out=plain, history_length=10, features=_no_orders(tmp_path)
        )
    )
    runs = [small(folder, tmp_path / name, epochs=1) for folder, name in ((ordered, "with"), (plain, "without"))]
    for config in runs:
        train(config)
    assert metrics(runs[0].run, "train") == metrics(runs[1].run, "train")
    assert metrics(runs[0].run, "valid") == metrics(runs[1].run, "valid")
    order = small(ordered, tmp_path / "order", epochs=1, ranker=objectives(labels=["order"], esmm=False))
    train(order)
    assert {"auc", "gauc", "log_loss"} <= set(metrics(order.run, "valid")[0]), "as of one label"
    out = evaluate(EvaluateConfig(run=order.run, out=tmp_path / "of_order"))
    found = json.loads((out / "metrics.json").read_text())
    assert found["objective"] == "order" and found["share_of_oracle"] is None and found["objectives"] == {}
    assert set(found["first"]["orders"]["model by order"]) == {"title", "order", "label", "gmv"}


def _no_orders(folder: Path) -> Path:
    file = folder / "features.toml"
    file.write_text("[interactions.order]\nuse = false\n[interactions.gmv]\nuse = false\n")
    return file


def test_plugins_are_as_with_one_label_and_the_pipeline_changes_nothing(ordered: Path, tmp_path: Path) -> None:
    """ReST and AKT-Rec beside several objectives, exported too; TorchRec's pipeline gives the plain loop's losses."""
    items = pq.read_table(ordered / "catalog.parquet")["item_id"].combine_chunks()[1:]
    tokens = write_tokens(tmp_path / "tokens", SemanticIds.first(items, make_codes(len(items), 0), K, "tokenizer"))
    plugins: dict[str, Any] = {
        "rest": RestConfig(enabled=True, centres=5, positive_km=300, negative_km=300),
        "akt": AktConfig(enabled=True, users=True),
    }
    features = FeatureConfig(embedding_dim=8, pooled_dim=4, semantic_ids=tokens)
    plain = small(ordered, tmp_path / "plain", features=features, ranker=replace(objectives(), **plugins), epochs=1)
    plain = replace(plain, batch_size=1024, checkpoint_every=0)
    piped = replace(plain, run=tmp_path / "piped", pipelined=True)
    train(plain)
    train(piped)
    lines = metrics(plain.run, "train")
    assert {"loss/order", "loss/gmv", "rest_loss", "akt_items_loss", "akt_users_loss"} <= set(lines[0])
    assert lines == metrics(piped.run, "train") and metrics(plain.run, "valid") == metrics(piped.run, "valid")
    ranker = ExportedRanker.load(export(ExportConfig(run=plain.run, out=tmp_path / "export")))
    got = torch.cat([ranker.score(sample) for sample in SampleLoader(ordered, "test", 120)])
    torch.testing.assert_close(got, trainer_scores(plain.run, ordered), rtol=1e-5, atol=1e-5)


def test_killed_and_resumed_at_other_ranks(ordered: Path, tmp_path: Path, ranks: AnyRanks) -> None:
    whole = small(ordered, tmp_path / "whole", ranker=objectives(heads="mmoe"))
    broken = replace(whole, run=tmp_path / "broken")
    ranks(1, train_here, whole)
    ranks(1, train_and_die, broken, 10, killed=True)
    ranks(1, train_here, replace(broken, resume=True))
    assert metrics(broken.run, "train") == metrics(whole.run, "train")
    assert metrics(broken.run, "valid") == metrics(whole.run, "valid")
    two = torch.cat(ranks(2, trainer_scores, whole.run, ordered))
    torch.testing.assert_close(two, trainer_scores(whole.run, ordered), rtol=1e-5, atol=1e-5)


def test_weights_of_samples_decide_what_is_learned(ordered: Path, tmp_path: Path) -> None:
    """With a weight of 0 for all that was not clicked, the model says that everything is."""
    raw = tmp_path / "raw"
    shutil.copytree(Path(json.loads((ordered / "manifest.json").read_text())["config"]["input"]), raw)
    shown = pq.read_table(raw / "interactions.parquet")
    shown = shown.append_column("sure", pa.array(shown["label"].to_numpy().astype(float)))
    pq.write_table(shown, raw / "interactions.parquet")
    (raw / "manifest.json").unlink()
    data = prepare(
        PrepareConfig(
            input=raw, out=tmp_path / "data", history_length=10, labels=["order"], amount="gmv", weight="sure"
        )
    )
    train(small(data, tmp_path / "run"))
    assert (trainer_scores(tmp_path / "run", data).sigmoid() > 0.6).float().mean() > 0.95
    train(small(data, tmp_path / "both", ranker=objectives(labels=["label", "order"], esmm=False)))
    found = trainer_scores(tmp_path / "both", data).sigmoid().mean(0)
    assert found[0] > 0.8 and 0.3 < found[1] < 0.55, "an order of a click is one of 0.4"


def test_what_does_not_fit_is_told(ordered: Path, prepared: Path, tmp_path: Path, trained: SimpleNamespace) -> None:
    def refused(message: str, data: Path = ordered, **changes: Any) -> None:
        with pytest.raises(ValueError, match=message):
            train(TrainConfig(data=data, run=tmp_path / "no", ranker=objectives(**changes)))

    refused("got 'sale', .* has label, order, gmv; name the column with --labels", labels=["label", "sale"])
    refused("got 'order', .* has label; name the column with --labels or --amount", data=prepared)
    refused("'label' happens without 'order' in [0-9,]+ rows of the training split", labels=["order", "label"])
    refused("an amount is learned beside a label; expected one of label, order", labels=["gmv"], esmm=False)
    refused(r"esmm: got one label \(label\) beside the amount", labels=["label", "gmv"])
    with pytest.raises(ValueError, match=r"ranker.objectives.heads: saved ple, now mmoe"):
        config = small(ordered, trained.run, ranker=objectives(heads="mmoe"))
        train(replace(config, resume=True))


def test_shifted_scores_follow_the_click() -> None:
    """With other negatives a click's odds change, a conversion and an order's amount don't."""
    outcomes = Outcomes(("order", "label", "gmv"), ("label", "order"), "gmv")
    click, conversion, amount = (
        torch.tensor([0.3, 0.01, 0.9]),
        torch.tensor([0.5, 0.99, 0.1]),
        torch.tensor([9.0, 1, 30]),
    )
    found = shifted(
        torch.stack([torch.logit(click * conversion), torch.logit(click), torch.log(click * conversion * amount)], 1),
        outcomes,
        math.log(0.1),
    )
    odds = click / (1 - click) * 0.1
    p = odds / (1 + odds)
    torch.testing.assert_close(found[:, 1].sigmoid(), p)
    torch.testing.assert_close(found[:, 0].sigmoid(), p * conversion)
    torch.testing.assert_close(found[:, 2].exp(), p * conversion * amount)
    one = torch.randn(4, 1)
    assert torch.equal(shifted(one, Outcomes(), 0.3), one + 0.3)
