"""Trackers: TensorBoard as it is; MLflow's and W&B's packages by modules that note what they are told."""

import json
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest

from placerank.data.plain import flat
from placerank.training import trackers
from placerank.training.trackers import open_tracker

CONFIG = {"batch_size": 8, "ranker": {"tower": "din", "mlp": [8], "tower_options": {}}}


class FakeError(Exception):
    pass


@pytest.fixture
def mlflow(monkeypatch):
    """A module mlflow whose client writes down all calls."""
    told: list[tuple] = []

    class Client:
        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            told.append(("experiment", name))
            return "7"

        def create_run(self, experiment, run_name):
            told.append(("run", experiment, run_name))
            return SimpleNamespace(info=SimpleNamespace(run_id="abc"))

        def update_run(self, run_id, status):
            told.append(("update", run_id, status))

        def log_batch(self, run_id, metrics=(), params=()):
            if any(m.key == "valid/gone" for m in metrics):
                raise FakeError("no server")
            told.append(
                ("batch", run_id, [(p.key, p.value) for p in params], [(m.key, m.value, m.step) for m in metrics])
            )

        def set_terminated(self, run_id, status):
            told.append(("end", run_id, status))

    names = {
        "mlflow": {"MlflowClient": Client},
        "mlflow.entities": {
            "Metric": lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step),
            "Param": lambda key, value: SimpleNamespace(key=key, value=value),
        },
        "mlflow.exceptions": {"MlflowException": FakeError},
    }
    for name, content in names.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return told


def test_mlflow(mlflow, tmp_path, caplog):
    run = tmp_path / "mine"
    run.mkdir()
    with open_tracker("mlflow", run, CONFIG, 0) as tracking:
        tracking.log(5, "valid", {"auc/my label!": 0.5, "gauc": math.nan})
        tracking.log(6, "valid", {"gone": 1.0})
    assert mlflow == [
        ("experiment", "placerank"),
        ("run", "7", "mine"),
        (
            "batch",
            "abc",
            [("batch_size", "8"), ("ranker.tower", "din"), ("ranker.mlp", "[8]"), ("ranker.tower_options", "{}")],
            [],
        ),
        ("batch", "abc", [], [("valid/auc/my label_", 0.5, 5)]),
        ("end", "abc", "FINISHED"),
    ]
    assert "MLflow: no server; metrics.jsonl has all numbers" in caplog.text
    mlflow.clear()
    with pytest.raises(ValueError), open_tracker("mlflow", run, CONFIG, 5):
        raise ValueError("it went wrong")
    assert mlflow == [("update", "abc", "RUNNING"), ("end", "abc", "FAILED")], "a run that goes on is the same one"


def test_no_more_than_a_hundred_settings_at_once(mlflow, tmp_path):
    open_tracker("mlflow", tmp_path, {str(i): i for i in range(250)}, 0)
    assert [len(call[2]) for call in mlflow if call[0] == "batch"] == [100, 100, 50]


def test_wandb(monkeypatch, tmp_path):
    told: list[tuple] = []

    class Run:
        id = "xyz"

        def log(self, values, step):
            told.append(("log", values, step))

        def finish(self, exit_code):
            told.append(("finish", exit_code))

    module = ModuleType("wandb")
    module.init = lambda **given: told.append(("init", given)) or Run()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("WANDB_PROJECT", "places")
    with open_tracker("wandb", tmp_path, CONFIG, 0) as tracking:
        tracking.log(5, "train", {"loss": 0.5, "other": math.inf})
    with pytest.raises(ValueError), open_tracker("wandb", tmp_path, CONFIG, 5):
        raise ValueError("it went wrong")
    of = {"project": "places", "name": tmp_path.name, "dir": str(tmp_path), "config": CONFIG}
    assert told == [
        ("init", of | {"id": None, "resume": None}),
        ("log", {"train/loss": 0.5}, 5),
        ("finish", 0),
        ("init", of | {"id": "xyz", "resume": "allow"}),
        ("finish", 1),
    ]
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"run_id": "xyz"}


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_told(name, monkeypatch, tmp_path):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"track={name} needs the package {name}, .*pip install {name}; or leave out"):
        open_tracker(name, tmp_path, CONFIG, 0)


def test_an_unknown_name_is_told(tmp_path):
    with pytest.raises(ValueError, match="track='neptune': expected one of tensorboard, mlflow, wandb"):
        open_tracker("neptune", tmp_path, CONFIG, 0)


def test_settings_by_dotted_names():
    assert list(flat(CONFIG)) == [
        ("batch_size", 8),
        ("ranker.tower", "din"),
        ("ranker.mlp", [8]),
        ("ranker.tower_options", {}),
    ]
