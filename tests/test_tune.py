"""docs/tune.py, the search with Optuna, on trials that stand in for Optuna's, which is no dependency."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import placerank as pr

FILE = Path(__file__).resolve().parents[1] / "docs" / "tune.py"


class Trial:
    """Suggests the last of the choices, and the highest number."""

    number = 3

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        return choices[-1]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        assert low < high
        return high

    def set_user_attr(self, name: str, value: Any) -> None:
        self.attributes[name] = value


def test_a_trial_trains_what_was_suggested(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("tune", FILE)
    assert spec is not None and spec.loader is not None
    tune = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tune)
    asked: list[Any] = []

    def train(config: pr.TrainConfig, nproc: int) -> SimpleNamespace:
        asked.extend((config, nproc))
        return SimpleNamespace(best={"auc": 0.8})

    monkeypatch.setattr(pr, "train", train)
    trial = Trial()
    assert tune.objective(trial, tmp_path / "data", tmp_path / "out", 2) == 0.8
    config, nproc = asked
    assert isinstance(config, pr.TrainConfig) and nproc == 2
    assert (config.ranker.tower, config.batch_size, config.optimizer.dense_lr) == ("din", 2048, 1e-2)
    assert config.data == tmp_path / "data" and config.run == tmp_path / "out" / "trial-003"
    assert trial.attributes == {"run": str(config.run)}
