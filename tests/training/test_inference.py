"""A run as others use it: moved, damaged, or on other data. Each consumer of a checkpoint refuses the same things."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import metrics, small

from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.evaluation.evaluate import EvaluateConfig, evaluate
from placerank.training.checkpoint import _SEAL, _seal
from placerank.training.export import ExportConfig, export
from placerank.training.inference import load_scorer, read_config
from placerank.training.predictions import sampling_shift
from placerank.training.run_files import find_checkpoint
from placerank.training.runtime import runtime
from placerank.training.train import train


@pytest.fixture(scope="module")
def check_ins(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """``raw``: the simulated city's visits alone; ``data``, ``run``: prepared and trained on."""
    folder = tmp_path_factory.mktemp("trained")
    simulated = Path(json.loads((prepared / "manifest.json").read_text())["config"]["input"])
    raw = Path(shutil.copytree(simulated, folder / "raw", ignore=shutil.ignore_patterns("manifest.json")))
    interactions = pq.read_table(raw / "interactions.parquet", filters=[("label", "==", 1)])
    pq.write_table(interactions.drop_columns("request_id"), raw / "interactions.parquet")
    data = prepare(PrepareConfig(input=raw, out=folder / "data", history_length=10))
    run = train(small(data, folder / "run", epochs=1, checkpoint_every=0))
    return SimpleNamespace(raw=raw, data=data, run=run)


def consumers(run: Path, data: Path, out: Path) -> dict[str, Callable[[], Any]]:
    """Everything that reads a checkpoint, on this data."""

    def score() -> None:
        with runtime(0) as rt:
            load_scorer(run, rt, data)

    resumed = replace(small(data, run, epochs=2), resume=True)
    return {
        "load_scorer": score,
        "evaluate": lambda: evaluate(EvaluateConfig(run=run, data=data, out=out / "evaluation")),
        "export": lambda: export(ExportConfig(run=run, data=data, out=out / "export")),
        "resume": lambda: train(resumed),
    }


def refused(run: Path, data: Path, out: Path, message: str) -> None:
    before = (run / "config.json").read_text()
    for name, use in consumers(run, data, out).items():
        with pytest.raises(ValueError, match=message):
            use()
        assert not any(out.iterdir()), name
    assert (run / "config.json").read_text() == before


def test_rows_of_other_ids_are_found_or_refused(
    check_ins: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One place closed and one opened: as many, but every row between the two is another's."""
    other = Path(shutil.copytree(check_ins.raw, tmp_path / "raw"))
    first = pq.read_table(other / "items.parquet")["item_id"].to_pylist()[0]
    for name in ("items", "interactions"):
        table = pq.read_table(other / f"{name}.parquet")
        ids = table["item_id"]
        new = pa.array([first + 10**6 if x == first else x for x in ids.to_pylist()], ids.type)
        pq.write_table(table.set_column(table.column_names.index("item_id"), "item_id", new), other / f"{name}.parquet")
    data = prepare(PrepareConfig(input=other, out=tmp_path / "data", history_length=10))
    (tmp_path / "out").mkdir()
    use = consumers(check_ins.run, data, tmp_path / "out")
    for name in ("export", "resume"):
        with pytest.raises(ValueError, match=r"trained on other ids than .*: item \(300 ids, now 300 others\)"):
            use[name]()
    with caplog.at_level("INFO"):
        use["evaluate"]()
    assert "was trained on other ids: item: 1 new beside 299 known, 1 gone" in caplog.text


def test_other_samples_over_the_same_ids_are_fine(check_ins: SimpleNamespace, tmp_path: Path) -> None:
    data = prepare(PrepareConfig(input=check_ins.raw, out=tmp_path / "data", history_length=5, eval_negatives=9))
    (tmp_path / "out").mkdir()
    use = consumers(check_ins.run, data, tmp_path / "out")
    for name in ("load_scorer", "evaluate", "export"):
        use[name]()
    with pytest.raises(ValueError, match=r"was trained on other data .*prepare the same data again"):
        use["resume"]()  # where it stood in the samples means nothing in these


@pytest.mark.parametrize("damage", ["tables", "manifest", "older", "newer"])
def test_a_damaged_checkpoint_is_refused(damage: str, check_ins: SimpleNamespace, tmp_path: Path) -> None:
    run = Path(shutil.copytree(check_ins.run, tmp_path / "run"))
    checkpoint = find_checkpoint(run, "latest")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    message = r"differs from what was written \(sha256\)"
    if damage == "tables":
        with open(next(checkpoint.glob("*.distcp")), "r+b") as f:
            f.seek(-500, 2)
            f.write(b"damage")
    elif damage == "manifest":
        manifest["loader"]["epoch"] = 0
    else:
        message = r"manifest.json has format (None|9), this version of placerank reads 2: use the version that wrote it"
        del manifest[_SEAL]
        manifest = {k: v for k, v in manifest.items() if k != "format"} | ({"format": 9} if damage == "newer" else {})
        manifest[_SEAL] = _seal(manifest)
    if damage != "tables":
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "out").mkdir()
    refused(run, check_ins.data, tmp_path / "out", message)


def test_validation_and_evaluate_measure_the_same(check_ins: SimpleNamespace, tmp_path: Path) -> None:
    manifest = json.loads((check_ins.data / "manifest.json").read_text())
    assert sampling_shift(manifest, "valid") < -1, "so there is something to be forgotten"
    out = evaluate(EvaluateConfig(run=check_ins.run, out=tmp_path / "out", split="valid", batch_size=256))
    model = json.loads((out / "metrics.json").read_text())["scorers"]["model"]
    (logged,) = metrics(check_ins.run, "valid")
    assert {n: model[n] for n in ("auc", "gauc", "log_loss")} == {n: logged[n] for n in ("auc", "gauc", "log_loss")}


def test_a_run_is_found_from_anywhere_and_moves_with_its_data(
    check_ins: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    for name in ("data", "run"):
        shutil.copytree(getattr(check_ins, name), here / name)
    monkeypatch.chdir(here)
    train(replace(small(Path("data"), Path("run"), epochs=2), resume=True))
    monkeypatch.chdir(tmp_path)
    assert read_config(Path("here/run")).data == here / "data"
    here.rename(tmp_path / "there")
    config = read_config(Path("there/run"))
    assert (config.data, config.run) == (tmp_path / "there/data", Path("there/run"))
    evaluate(EvaluateConfig(run=Path("there/run"), out=Path("out")))
    Path("there/data").rename("lost")
    told = r"there/run was made of .*here/data, which is not there nor in .*there/data; say where it is with --data"
    with pytest.raises(FileNotFoundError, match=told):
        evaluate(EvaluateConfig(run=Path("there/run"), out=Path("again")))
    assert read_config(Path("there/run"), Path("lost")).data == Path("lost")


def test_damaged_files_of_a_run_are_told_before_it_is_scored(check_ins: SimpleNamespace, tmp_path: Path) -> None:
    for name, text in (
        ("config.json", "config.json is damaged"),
        ("best.json", "best.json is damaged, .*say --checkpoint latest"),
        ("environment.json", "environment.json is damaged"),
        ("metrics.jsonl", "metrics.jsonl, line 1 is not JSON"),
    ):
        run = Path(shutil.copytree(check_ins.run, tmp_path / name))
        whole = (run / name).read_text()
        (run / name).write_text("[\n" + whole)
        with pytest.raises(ValueError, match=text):
            evaluate(EvaluateConfig(run=run))
        assert not (run / "evaluation").exists()
