"""What a run folder holds, read back: of an older or newer version, or damaged, always a line that names the file."""

import json
import logging
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from placerank.data.plain import from_plain
from placerank.training.run_files import read_best, read_metrics, read_object
from placerank.training.train import TrainConfig


def plain(**changes: Any) -> dict[str, Any]:
    """config.json as training writes it."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(TrainConfig(data=Path("d"), run=Path("r"))), default=str))
    return values | changes


def paths_of(node: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every setting, by the names on its way."""
    if not is_dataclass(node):
        return [prefix]
    own = [prefix] if prefix else []
    return own + [p for f in fields(node) for p in paths_of(getattr(node, f.name), (*prefix, f.name))]


def test_settings_come_back(caplog: pytest.LogCaptureFixture) -> None:
    config = TrainConfig(data=Path("d"), run=Path("r"), batch_size=7)
    assert from_plain(TrainConfig, plain(batch_size=7), "config.json") == config
    assert not caplog.text


def test_what_an_older_version_lacks_is_the_default_and_told(caplog: pytest.LogCaptureFixture) -> None:
    values = plain()
    del values["patience"], values["ranker"]["rest"]["align"], values["sharding"]
    with caplog.at_level(logging.WARNING):
        assert from_plain(TrainConfig, values, "old.json") == TrainConfig(data=Path("d"), run=Path("r"))
    assert all(name in caplog.text for name in ("old.json has no", "ranker.rest.align", "sharding", "patience"))


def test_what_a_newer_version_has_is_told() -> None:
    with pytest.raises(ValueError, match=r"new\.json: unknown setting 'warp'; .*another version of placerank wrote it"):
        from_plain(TrainConfig, plain(warp=9), "new.json")


@pytest.mark.parametrize("way", paths_of(TrainConfig(data=Path("d"), run=Path("r"))), ids=".".join)
def test_any_damage_of_a_setting_is_one_line(way: tuple[str, ...]) -> None:
    for wrong in (None, "x", "", -1, 0, 1.5, True, [], [None], ["x"], {}, {"x": None}, {"x": "y"}):
        values = plain()
        node = values
        for name in way[:-1]:
            node = node[name]
        node[way[-1]] = wrong
        try:
            from_plain(TrainConfig, values, "config.json")
        except ValueError as error:
            assert str(error).startswith("config.json: ") and "\n" not in str(error)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"config.json: got \[\], expected names and values"),
        ({"run": "r"}, "config.json: 'data' is missing"),
        (plain(batch_size="many"), "config.json: batch_size: got 'many', expected a whole number"),
        (plain(batch_size=0), "config.json: batch_size=0: expected at least 1"),
        (plain(ranker={"mlp": [8, None]}), r"config.json: ranker.mlp\[1\]: got None, expected a whole number"),
    ],
)
def test_damaged_settings_are_told(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_plain(TrainConfig, values, "config.json")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", "{}", '{"step": "7"}', '{"step": null}', '{"step": true}']
)
def test_a_damaged_best_is_told(text: str, tmp_path: Path) -> None:
    assert read_best(tmp_path) is None
    (tmp_path / "best.json").write_text('{"step": 7}')
    assert read_best(tmp_path) == 7
    (tmp_path / "best.json").write_text(text)
    with pytest.raises(ValueError, match=r"best\.json.*remove it, and say --checkpoint latest or a step"):
        read_best(tmp_path)


@pytest.mark.parametrize("line", ["", "{", "null", "[]", "5", "{}", '{"step": "1"}', '{"step": 1, "auc": "high"}'])
def test_a_damaged_line_of_metrics_is_told_by_number(line: str, tmp_path: Path) -> None:
    good = '{"step": 1, "epoch": 0, "split": "train", "loss": null}'
    (tmp_path / "metrics.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not JSON of a step: .*; mend or remove it"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(f"{good}\n{line}")
    assert len(read_metrics(tmp_path)) == 1, "a last one is what a killed run leaves"


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes(b'\xff\xfe\n{"step": 1}\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"config\.json is damaged.*mend or remove it"):
        read_object(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1"):
        read_metrics(tmp_path)
