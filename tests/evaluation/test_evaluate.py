"""evaluate: the folder it writes, the numbers in it, one rank or several, and what it refuses."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from placerank.data.manifest import read_manifest
from placerank.evaluation import evaluate as module
from placerank.evaluation.breakdown import ItemFacts
from placerank.evaluation.evaluate import EvaluateConfig, evaluate, measure
from placerank.rankers.dense import RankerConfig
from placerank.training.predictions import Outcomes, Predictions


def fake_load_ranker(*_):
    """Logits that follow from the true probability, as a good model would say."""
    return SimpleNamespace(
        score=lambda: lambda batch: torch.logit(batch.probability) * 0.8 + torch.sin(batch.item),
        inputs=SimpleNamespace(ranker=RankerConfig(), outcomes=Outcomes()),
        saved={"step": 30},
    )


def run_evaluate(run, data, out):
    module.load_ranker = fake_load_ranker
    return str(evaluate(EvaluateConfig(run=run, data=data, out=out, batch_size=999)))


@pytest.fixture(scope="module")
def evaluated(fabricated, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    before = module.load_ranker
    try:
        run_evaluate(run, fabricated.data, None)
    finally:
        module.load_ranker = before
    return run


def test_the_folder(evaluated):
    manifest = read_manifest(evaluated / "evaluation", "evaluation", verify=True)
    assert set(manifest["files"]) == {
        "predictions.parquet",
        "metrics.json",
        "report.html",
        "overview.png",
        "map.png",
        "slices.parquet",
    }
    assert manifest["config"]["split"] == "test" and manifest["step"] == 30
    assert sorted(p.name for p in evaluated.iterdir()) == ["evaluation"]


def test_the_numbers(evaluated):
    p = Predictions.read(evaluated / "evaluation" / "predictions.parquet")
    metrics = json.loads((evaluated / "evaluation" / "metrics.json").read_text())
    assert list(metrics["scorers"]) == ["model", "popularity", "visits", "nearest", "oracle"]
    assert metrics["scorers"]["model"]["auc"] == pytest.approx(roc_auc_score(p.label, p.logit))
    best = roc_auc_score(p.label, p.probability)
    assert metrics["scorers"]["oracle"]["auc"] == pytest.approx(best)
    share = (metrics["scorers"]["model"]["auc"] - 0.5) / (best - 0.5)
    assert metrics["share_of_oracle"]["auc"] == pytest.approx(share) and 0.5 < share < 1
    assert {"tauc", "cauc", "log_loss", "calibration", "ece"} <= set(metrics["scorers"]["model"])
    assert "log_loss" not in metrics["scorers"]["nearest"]
    for name, part in metrics["slices"].items():
        rows = [s["rows"] for s in part["scorers"]["model"]]
        if name == "tile":  # the largest alone
            assert len(rows) == 10 and 0.9 * len(p) < sum(rows) < len(p)
        else:
            assert sum(rows) == len(p) == metrics["rows"]
    assert len(metrics["worst_items"]) == 12


def test_several_ranks_equal_one(evaluated, fabricated, ranks, tmp_path):
    ranks(2, run_evaluate, evaluated, fabricated.data, tmp_path / "two")
    one, two = evaluated / "evaluation", tmp_path / "two"
    assert (one / "metrics.json").read_bytes() == (two / "metrics.json").read_bytes()
    for name, column in Predictions.read(one / "predictions.parquet").columns().items():
        np.testing.assert_array_equal(Predictions.read(two / "predictions.parquet").columns()[name], column)


def test_an_existing_folder_is_kept(evaluated):
    before = (evaluated / "evaluation" / "metrics.json").stat()
    with pytest.raises(FileExistsError, match="choose another folder with --out, or pass --overwrite"):
        evaluate(EvaluateConfig(run=evaluated))
    assert (evaluated / "evaluation" / "metrics.json").stat() == before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"split": "tset"}, "split='tset': expected one of train, valid, test"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"checkpoint": "newest"}, "checkpoint='newest': expected best, latest or a step number"),
    ],
)
def test_bad_settings_are_told(setting, message):
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(run=Path("run"), **setting)


def test_one_class_only(fabricated):
    p = fabricated.predictions
    items = ItemFacts.load(fabricated.data)
    got = measure(dataclasses.replace(p, label=np.zeros_like(p.label)), items)
    model = got["scorers"]["model"]
    assert model["auc"] is None and model["undefined"]["auc"] == "no positives" and model["log_loss"] > 0
    assert got["share_of_oracle"] == dict.fromkeys(("auc", "gauc", "tauc", "cauc"))
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_what_is_missing_is_noted(fabricated):
    p = fabricated.predictions
    nowhere = np.full_like(p.lat, math.nan)
    got = measure(dataclasses.replace(p, lat=nowhere, lon=nowhere, probability=None), ItemFacts.load(fabricated.data))
    assert list(got["scorers"]) == ["model", "popularity", "visits"] and got["share_of_oracle"] is None
    assert got["notes"] == [
        "No request has a place: the nearest-first baseline and the distance slices say nothing.",
        "The source does not know the true probabilities: there is no oracle.",
    ]


def test_an_empty_split_is_told(fabricated, tmp_path):
    empty = fabricated.predictions.take(np.arange(0))
    config = EvaluateConfig(run=tmp_path, split="valid")
    with pytest.raises(ValueError, match=r"the valid split of .* has no samples"):
        module.write_evaluation(tmp_path / "out", empty, fabricated.data, {}, config)
    assert not (tmp_path / "out").exists()
