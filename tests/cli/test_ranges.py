"""Every number of every setting of every step: what can't be computed with is refused by name, and nothing crashes."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest

from placerank.benchmarks.kernels.run import BenchKernelsConfig
from placerank.cli.settings import Options, SettingsError, parse
from placerank.data.city.simulate import SimulateConfig
from placerank.data.preparation.prepare import PrepareConfig
from placerank.evaluation.evaluate import EvaluateConfig
from placerank.rankers.towers.tower import InterestTower, find_tower
from placerank.tokenization.align import AlignConfig
from placerank.tokenization.ranks import rank_device
from placerank.tokenization.tokenize import TokenizeConfig
from placerank.training.export import ExportConfig
from placerank.training.settings import AdaptConfig
from placerank.training.train import TrainConfig

STEPS = (
    SimulateConfig,
    PrepareConfig,
    AlignConfig,
    TokenizeConfig,
    TrainConfig,
    AdaptConfig,
    EvaluateConfig,
    ExportConfig,
    BenchKernelsConfig,
)
ENDLESS = {
    "RestConfig.positive_km",
    "RestConfig.negative_km",
    "PrepareConfig.place_max_hours",
    "PrepareConfig.sample_days",
    "PreferenceConfig.within_km",
}
"""Infinity means that there is no limit."""
TOO_LARGE = {  # widths and counts of which 10 ** 9 can only end in a lack of memory
    *("FeatureConfig.embedding_dim", "FeatureConfig.pooled_dim", "RankerConfig.mlp", "RewardConfig.hidden"),
    *("RQVAEOptions.hidden", "RQVAEOptions.latent", "LoraSettings.rank", "TokenizerConfig.codes"),
    *("TokenizerConfig.levels", "TrainConfig.batch_size", "EvaluateConfig.batch_size", "SimulateConfig.candidates"),
    *("AdaptConfig.batch_size", "LanguageConfig.columns", "LanguageConfig.layers", "AdapterConfig.history"),
    *("SimulateConfig.days", "PrepareConfig.history_length", "RestConfig.centres", "RestConfig.negatives"),
}
VALUES = (math.inf, -math.inf, math.nan, 1e309, 10**30, -(10**30), 10**9, -1, 0)


def configs(config_type: type) -> Iterator[type]:
    """A config and all that it holds."""
    yield config_type
    for hint in get_type_hints(config_type).values():
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from configs(hint)


def numbers() -> Iterator[tuple[type, str, Any]]:
    """Each field that holds numbers, and how a value is put into it."""
    for config_type in sorted({c for step in STEPS for c in configs(step)}, key=lambda c: c.__name__):
        for name, hint in get_type_hints(config_type).items():
            args = [a for a in get_args(hint) if a not in (NoneType, Ellipsis)]
            if hint in (int, float) or (NoneType in get_args(hint) and args[0] in (int, float)):
                yield config_type, name, lambda value: value
            elif args and args[-1] in (int, float):
                yield config_type, name, (lambda v: {"a": v}) if args[0] is str else (lambda v: [v])


NUMBERS = list(numbers())


@pytest.mark.parametrize(("config_type", "name", "put"), NUMBERS, ids=[f"{c.__name__}.{n}" for c, n, _ in NUMBERS])
def test_a_number_that_cannot_be_computed_with_is_refused_by_name(config_type: type, name: str, put: Any) -> None:
    whole, required = f"{config_type.__name__}.{name}", {}
    for f in dataclasses.fields(config_type):
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            required[f.name] = Path(f.name)
    for value in VALUES:
        try:
            config_type(**required, **{name: put(value)})
            refused = False
        except (ValueError, TypeError) as error:  # TypeError: infinity where a whole number is wanted
            refused = True
            assert name in str(error) and "\n" not in str(error), f"{whole}={value}: {error}"
        if not math.isfinite(value) and not (value == math.inf and whole in ENDLESS):
            assert refused, f"{whole}={value} is taken"
        if isinstance(value, int) and (abs(value) == 10**30 or (value == 10**9 and whole in TOO_LARGE)):
            assert refused or get_type_hints(config_type)[name] is float, f"{whole}={value} is taken"


def test_the_sweep_sees_all() -> None:
    found = {f"{c.__name__}.{n}" for c, n, _ in NUMBERS}
    assert len(found) > 90 and found >= ENDLESS | TOO_LARGE


@pytest.mark.parametrize(
    "flags",
    [
        ["--optimizer.table-lr", "inf"],
        ["--optimizer.table-lr", "1e309"],
        ["--optimizer.table-lr", ""],
        ["--ranker.mlp", "1000000000"],
        ["--batch-size", "nan"],
        ["--seed", "-1"],
        ["--ranker.tower-options", "heads", "inf"],
    ],
)
def test_flags_are_refused_with_code_2_and_no_traceback(flags: list[str]) -> None:
    with pytest.raises((SettingsError, SystemExit)) as end:
        parse("placerank train", TrainConfig, Options, ["--data", "d", "--run", "r", *flags])
    assert isinstance(end.value, SettingsError) or end.value.code == 2


@pytest.mark.parametrize(
    "name", ["os:path", "math:pi", "", ":", "x:", ":x", ".a:b", "placerank.rankers.towers.tower:InterestTower"]
)
def test_what_is_no_tower_is_told(name: str) -> None:
    with pytest.raises(ValueError, match="tower"):
        find_tower(name)
    assert issubclass(find_tower("placerank.rankers.towers.din:DIN"), InterestTower)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "gpu", "cpu:x", "12"])
def test_what_is_no_device_is_told(name: str) -> None:
    with pytest.raises(ValueError, match=f"device='{name}'"):
        rank_device(name)
