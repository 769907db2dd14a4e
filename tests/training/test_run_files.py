"""What a run folder holds, read back: of an older or newer version, or damaged, always a line that names the file."""

import json
import logging
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from placerank.training.run_files import read_best, read_metrics, read_object
from placerank.training.saved_config import from_json
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
    assert from_json(TrainConfig, plain(batch_size=7), Path("config.json")) == config
    assert not caplog.text


def test_what_an_older_version_lacks_is_the_default_and_told(caplog: pytest.LogCaptureFixture) -> None:
    values = plain()
    del values["patience"], values["ranker"]["rest"]["align"], values["sharding"]
    with caplog.at_level(logging.WARNING):
        assert from_json(TrainConfig, values, Path("old.json")) == TrainConfig(data=Path("d"), run=Path("r"))
    assert "old.json lacks ranker.rest.align, sharding, patience, as an older version's would" in caplog.text


def test_what_a_newer_version_has_is_told(caplog: pytest.LogCaptureFixture) -> None:
    values = plain(warp=9)
    values["optimizer"]["momentum"] = 0.9
    with caplog.at_level(logging.WARNING):
        from_json(TrainConfig, values, Path("new.json"))
    assert "new.json has settings that this version does not know: warp, optimizer.momentum; they are" in caplog.text


@pytest.mark.parametrize("way", paths_of(TrainConfig(data=Path("d"), run=Path("r"))), ids=".".join)
def test_any_damage_of_a_setting_is_one_line(way: tuple[str, ...]) -> None:
    for wrong in (None, "x", "", -1, 0, 1.5, True, [], [None], ["x"], {}, {"x": None}, {"x": "y"}):
        values = plain()
        node = values
        for name in way[:-1]:
            node = node[name]
        node[way[-1]] = wrong
        try:
            from_json(TrainConfig, values, Path("config.json"))
        except ValueError as error:
            assert "config.json can't be used: " in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"config.json can't be used: the whole is \[\], expected names and values"),
        ({"run": "r"}, "can't be used: data is missing"),
        (plain(batch_size="many"), "can't be used: batch_size is 'many', expected int; it is damaged or another"),
        (plain(batch_size=0), "can't be used: batch_size=0: expected at least 1"),
        (plain(ranker={"mlp": [8, None]}), r"can't be used: ranker.mlp\[1\] is None, expected int"),
    ],
)
def test_damaged_settings_are_told(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(TrainConfig, values, Path("config.json"))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", "{}", '{"step": "7"}', '{"step": null}', '{"step": true}']
)
def test_a_damaged_best_is_told(text: str, tmp_path: Path) -> None:
    assert read_best(tmp_path) is None
    (tmp_path / "best.json").write_text('{"step": 7}')
    assert read_best(tmp_path) == 7
    (tmp_path / "best.json").write_text(text)
    with pytest.raises(ValueError, match=r"best\.json is damaged .*remove it, and say --checkpoint latest or a step"):
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
    with pytest.raises(ValueError, match=r"config\.json is damaged .*mend or remove it"):
        read_object(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1"):
        read_metrics(tmp_path)
