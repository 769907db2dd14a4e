"""Training runs: killed and resumed, at other numbers of ranks, early stopping, and what is told."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import metrics, small, train_and_die, train_here

from placerank.data.batches.features import FeatureConfig
from placerank.data.batches.loader import SampleLoader
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.training.checkpoint import _WholeFolderWriter, saved_steps
from placerank.training.inference import load_scorer, read_config
from placerank.training.model import OptimizerConfig
from placerank.training.run_files import find_checkpoint
from placerank.training.run_lock import run_lock
from placerank.training.runtime import runtime
from placerank.training.sharding import ShardingConfig
from placerank.training.train import TrainConfig, train

AnyRanks = Callable[..., list[Any]]


@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_and_resumed_has_the_losses_of_an_undisturbed_run(
    world_size: int, prepared: Path, tmp_path: Path, ranks: AnyRanks
) -> None:
    whole, broken = (small(prepared, tmp_path / name, newcomers=0.2) for name in ("whole", "broken"))
    ranks(world_size, train_here, whole)
    ranks(world_size, train_and_die, broken, 16, killed=True)
    assert saved_steps(broken.run / "checkpoints")[-1] == 14
    assert metrics(broken.run, "train")[-1]["step"] == 16
    ranks(world_size, train_here, replace(broken, resume=True))
    for split in ("train", "valid"):
        assert metrics(broken.run, split) == metrics(whole.run, split)
    assert json.loads((broken.run / "best.json").read_text()) == json.loads((whole.run / "best.json").read_text())


@pytest.mark.parametrize("world_size", [1, 4])
def test_a_run_of_two_ranks_goes_on_with_another_number(
    world_size: int, prepared: Path, tmp_path: Path, ranks: AnyRanks
) -> None:
    config = small(prepared, tmp_path, sharding=ShardingConfig(tables={"item": "row_wise", "user": "row_wise"}))
    ranks(2, train_and_die, config, 16, killed=True)
    manifest = json.loads((tmp_path / "checkpoints/step-00000014/manifest.json").read_text())
    left = sum(b - a for a, b in manifest["loader"]["remaining"])
    ranks(world_size, train_here, replace(config, resume=True))
    steps = [line["step"] for line in metrics(tmp_path, "train")]
    assert steps == list(range(1, len(steps) + 1))
    rows = json.loads((prepared / "manifest.json").read_text())["splits"]["train"]["rows"]
    assert left + 14 * 2 * 256 == rows, "14 steps of two ranks are done"
    per_step = world_size * 256
    assert len(steps) == 14 + -(-left // per_step) + -(-rows // per_step), "the rest of epoch 0 and all of epoch 1"


def test_training_learns_and_stops_early(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small(prepared, tmp_path / "run", epochs=40, patience=2, checkpoint_every=0, keep_checkpoints=1)
    train(replace(config, optimizer=OptimizerConfig(table_lr=0.1, dense_lr=0.01)))
    assert len(list((config.run / "tensorboard").iterdir())) == 1, "one file of events a start"
    losses = [line["loss"] for line in metrics(config.run, "train")]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    aucs = [line["auc"] for line in metrics(config.run, "valid")]
    best = json.loads((config.run / "best.json").read_text())
    told = capsys.readouterr().out.splitlines()
    assert [re.search(r"AUC (0\.\d+)  GAUC", line)[1] for line in told[:-1]] == [f"{x:.4f}" for x in aucs]  # type: ignore[index]
    assert re.match(r"step +\d+  epoch 1/40  log-loss 0\.\d+ .* samples/s  .* left  best so far$", told[0])
    assert told[-2].endswith(f"best {best['auc']:.4f} at step {best['step']}")
    assert told[-1] == "stopped: 2 validations in a row were not better (patience)"
    assert len(aucs) < 40 and best["auc"] == max(aucs) == aucs[-3], "stopped two validations after the best"
    assert saved_steps(config.run / "checkpoints")[0] == best["step"], "the best is kept besides the newest"
    assert find_checkpoint(config.run, "best").name.endswith(f"{best['step']:08d}")
    assert read_config(config.run).batch_size == 256


def score_all(run: Path) -> torch.Tensor:
    config = read_config(run)
    with runtime(0) as rt:
        score, _, _ = load_scorer(run, rt)
        loader = SampleLoader(config.data, "valid", 100, rank=rt.rank, world_size=rt.world_size)
        return torch.cat([score(batch)[: batch.valid] for batch in loader])


def test_scores_do_not_depend_on_the_number_of_ranks(prepared: Path, tmp_path: Path, ranks: AnyRanks) -> None:
    train(small(prepared, tmp_path, epochs=1))
    alone = torch.cat(ranks(1, score_all, tmp_path))
    for world_size in (2, 3):
        torch.testing.assert_close(torch.cat(ranks(world_size, score_all, tmp_path)), alone, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_told(prepared: Path, tmp_path: Path) -> None:
    config = small(prepared, tmp_path / "run", epochs=1)
    train(config)
    with pytest.raises(FileExistsError, match="holds a run; pass --resume to go on with it, or --overwrite"):
        train(config)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="holds files that are no run of placerank train; choose another folder"):
        train(replace(config, run=tmp_path / "mine", overwrite=True))
    for settings in (
        {"data": "d", "run": "r", "student": {}},
        {"model_type": "bert"},
    ):  # of placerank adapt; of a model
        (tmp_path / "mine" / "config.json").write_text(json.dumps(settings))
        for how in ("overwrite", "resume"):
            with pytest.raises(FileExistsError, match="no run of placerank train; choose another folder"):
                train(replace(config, run=tmp_path / "mine", **{how: True}))
    assert (tmp_path / "mine" / "thesis.tex").exists()
    with pytest.raises(ValueError, match=r"tables.item.dim: saved 8, now 12"):
        train(replace(config, resume=True, features=FeatureConfig(embedding_dim=12, pooled_dim=4)))
    assert read_config(config.run).features.embedding_dim == 8, "the run keeps its own config"
    raw = Path(json.loads((prepared / "manifest.json").read_text())["config"]["input"])
    other = prepare(PrepareConfig(input=raw, out=tmp_path / "other", history_length=5))
    with pytest.raises(ValueError, match=r"was trained on other data .*prepare the same data again"):
        train(replace(config, resume=True, data=other))
    with pytest.raises(FileNotFoundError, match=r"has no checkpoint of step 3; it has"):
        find_checkpoint(config.run, "3")
    with pytest.raises(ValueError, match=r"checkpoint='newest': expected best, latest or a step number"):
        find_checkpoint(config.run, "newest")
    with pytest.raises(ValueError, match="precision=bf16 needs CUDA, this rank runs on cpu; use fp32"):
        train(replace(config, run=tmp_path / "bf16", precision="bf16"))
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step \d+; lower optimizer.dense_lr"):
        train(replace(config, run=tmp_path / "nan", optimizer=OptimizerConfig(table_lr=1e30, dense_lr=1e30)))


def test_settings_are_checked() -> None:
    paths = {"data": Path("d"), "run": Path("r")}
    for change, message in [
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"patience": -1}, "patience=-1: expected 0 or more"),
        ({"precision": "fp16"}, "precision='fp16': expected fp32 or bf16"),
        ({"resume": True, "overwrite": True}, "resume and overwrite are both set; choose one"),
    ]:
        with pytest.raises(ValueError, match=message):
            TrainConfig(**paths, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"features.embedding_dim=10: fbgemm needs a positive multiple of 4"):
        FeatureConfig(embedding_dim=10)
    with pytest.raises(ValueError, match=r"features.pooled is empty: name one or more, such as user"):
        FeatureConfig(pooled=[])
    with pytest.raises(ValueError, match=r"optimizer.table_lr=0: expected a positive number"):
        OptimizerConfig(table_lr=0)


def dead_owner() -> str:
    """Owner of unfinished files whose process has ended."""
    code = "from placerank.data.leftovers import owner; print(owner())"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_a_run_killed_before_its_first_checkpoint_starts_anew_and_what_it_left_is_removed(
    prepared: Path, tmp_path: Path, ranks: AnyRanks, caplog: pytest.LogCaptureFixture
) -> None:
    config = small(prepared, tmp_path / "run", epochs=1)
    ranks(1, train_and_die, config, 3, killed=True)
    for left in (
        "checkpoints/.step-00000003.partial/__0_0.distcp",
        ".validation/part-00001.parquet",
        f".best.json.tmp-{dead_owner()}-0a1b2c3d",
    ):
        (config.run / left).parent.mkdir(parents=True, exist_ok=True)
        (config.run / left).touch()
    (config.run / "metrics.jsonl").write_text("null\n" + (config.run / "metrics.jsonl").read_text() + '{"step": 4, "l')
    with caplog.at_level(logging.INFO):
        train(replace(config, resume=True))
    assert "was left locked by process" in caplog.text and "1 damaged lines are dropped" in caplog.text
    assert "has no checkpoint yet: starting at step 0" in caplog.text
    steps = [line["step"] for line in metrics(config.run, "train")]
    assert steps == list(range(1, len(steps) + 1))
    assert not [p for p in config.run.rglob(".*") if p.name != ".metadata"]


@pytest.mark.parametrize("ends", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_interrupted_while_a_checkpoint_is_written(
    ends: signal.Signals, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for a full disk, leaves no half of a checkpoint, and the one before is gone on from."""
    config = small(prepared, tmp_path / "run", checkpoint_every=5)
    write, written = _WholeFolderWriter.write_data, []

    def interrupted(self: Any, *args: Any) -> Any:
        result = write(self, *args)
        written.append(self.partial)
        if len(written) == 2:
            os.kill(os.getpid(), ends)
            while not self.given_up:
                time.sleep(0.01)
        return result

    def end(*_: Any) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(_WholeFolderWriter, "write_data", interrupted)
    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(KeyboardInterrupt if ends is signal.SIGINT else SystemExit):
            train(config)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert saved_steps(config.run / "checkpoints") == [5] and len(written) == 2
    assert not [p for p in config.run.rglob(".*") if p.name != ".metadata"], "no lock, no partial checkpoint"
    monkeypatch.undo()
    train(replace(config, resume=True))
    assert [line["step"] for line in metrics(config.run, "train")][:7] == list(range(1, 8))


def test_two_trainings_do_not_share_a_run(prepared: Path, tmp_path: Path, ranks: AnyRanks) -> None:
    config = small(prepared, tmp_path / "run", epochs=1)
    with run_lock(config.run):
        for told in ranks(2, train_and_be_told, replace(config, overwrite=True)):
            assert f"run is being trained into by process {os.getpid()} on " in told
    assert not config.run.exists()


def train_and_be_told(config: TrainConfig) -> str:
    with pytest.raises(FileExistsError) as error:
        train(config)
    return str(error.value)
