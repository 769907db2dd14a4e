"""Steps as functions: what they refuse, what they print, and ranks that they start."""

import stat
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import placerank as pr


def in_place_of_python(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Whoever starts this Python starts a shell script instead."""
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(file))


def settings(folder: Path) -> "pr.PrepareConfig":
    return pr.PrepareConfig(input=folder / "raw", out=folder / "data", history_length=7)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"train: got PrepareConfig.*placerank\.train\(placerank\.TrainConfig"):
        pr.train(settings(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"prepare: got 'my_data'"):
        pr.prepare("my_data")  # type: ignore[arg-type]


def test_settings_of_wrong_types_are_told(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    for name, value, text in (
        ("epochs", 2.5, r"epochs: got 2.5, expected a whole number"),
        ("epochs", "3", r"epochs: got '3', expected a whole number"),
        ("ranker", pr.RankerConfig(), r"ranker.tower: got None, expected a text"),
    ):
        config = pr.TrainConfig(data=data, run=run)
        if name == "ranker":
            value.tower = None  # type: ignore[assignment, attr-defined]
        with pytest.raises(TypeError, match=f"^{text}"):
            pr.TrainConfig(data=data, run=run, **{name: value})  # type: ignore[arg-type]
        setattr(config, name, value)  # and so are those that were changed since
        with pytest.raises(TypeError, match=f"^train.{text}"):
            pr.train(config)
    with pytest.raises(TypeError, match=r"ranker: got 'din', expected settings, a RankerConfig\(\.\.\.\)"):
        pr.TrainConfig(data=data, run=run, ranker="din")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"prepare.format: got 'xls', expected one of parquet, csv"):
        pr.prepare(pr.PrepareConfig(input=data, out=run, format="xls"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nproc: got '2', expected at least 1"):
        pr.prepare(settings(tmp_path), nproc="2")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="raw not found"):  # and so NumPy's numbers and text for paths pass
        pr.prepare(
            pr.PrepareConfig(
                input=str(tmp_path / "raw"), out="x", history_length=np.int64(7), test_fraction=np.float32(0.25)
            )
        )


def test_ranks_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="nproc: got 0, expected at least 1"):
        pr.prepare(settings(tmp_path), nproc=0)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="nproc: got 2 under torchrun"):
        pr.prepare(settings(tmp_path), nproc=2)


def test_two_threads_do_the_same(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    city = pr.simulate(pr.SimulateConfig(out=tmp_path / "raw", cities=1, items=50, users=30, requests=200))
    one = pr.prepare(pr.PrepareConfig(input=city.folder, out=tmp_path / "one", history_length=7))
    two = pr.prepare(pr.PrepareConfig(input=city.folder, out=tmp_path / "two", history_length=7), nproc=2)
    assert two.folder == tmp_path / "two"
    assert two.manifest["content_hash"] == one.manifest["content_hash"]
    assert two.manifest["config"]["history_length"] == 7
    assert capfd.readouterr().out == ""


def test_settings_arrive_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_python(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/asked; cp "$5" {tmp_path}/settings.json')
    config = pr.TrainConfig(data=tmp_path / "data", run=tmp_path / "run", patience=0, pipelined=None)
    assert pr.train(config, nproc=3).folder == tmp_path / "run"
    asked = (tmp_path / "asked").read_text().split()
    assert asked[:3] == ["-m", "placerank.cli", "train"] and asked[-2:] == ["--nproc", "3"]
    from placerank.cli.settings import Options, parse

    got, _ = parse("train", pr.TrainConfig, Options, ["--config", str(tmp_path / "settings.json")])
    assert got == config


def test_what_a_rank_says_is_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_place_of_python(tmp_path, monkeypatch, "echo working; echo 'placerank: error: rank 1: no data' >&2; exit 3")
    asked = pr.EvaluateConfig(run=tmp_path / "run")
    with pytest.raises(RuntimeError, match=r"^placerank evaluate on 2 ranks: rank 1: no data$"):
        pr.evaluate(asked, nproc=2)
    assert capsys.readouterr().out == ""
    with pytest.raises(RuntimeError, match="rank 1: no data"):
        pr.train(pr.TrainConfig(data=tmp_path, run=tmp_path / "run"), nproc=2)
    assert capsys.readouterr().out.startswith("working\n")
    in_place_of_python(tmp_path, monkeypatch, "echo Traceback; exit 3")
    with pytest.raises(RuntimeError, match=r"exit code 3\nTraceback"):
        pr.evaluate(asked, nproc=2)


def test_an_interrupt_ends_the_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_python(tmp_path, monkeypatch, "echo started; exec sleep 60")

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", interrupt)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pr.train(pr.TrainConfig(data=tmp_path, run=tmp_path / "run"), nproc=2)
    assert time.monotonic() - start < 30
