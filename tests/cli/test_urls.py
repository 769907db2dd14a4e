"""The commands with URLs as inputs and outputs, on an S3 server: from a raw folder to an export and back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from at_urls import names, work_folder
from runs import metrics, small

from placerank.cli.main import main
from placerank.data.manifest import content_hash, read_manifest
from placerank.data.urls import UrlError, at_work, delete_files, fetched, place, put_files
from placerank.embeddings.reader import load_table
from placerank.training import train as train_module
from placerank.training.train import train


@pytest.fixture(scope="module", autouse=True)
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("work")
    with work_folder(folder):
        yield folder


@pytest.fixture(scope="module")
def data(s3: str, prepared: Path, work: Path) -> str:
    """The prepared folder, made there."""
    url = f"{s3}/commands/data"
    assert main(["prepare", "--input", str(prepared.parent / "raw"), "--out", url, "--history-length", "10"]) == 0
    assert content_hash(place(url)) == content_hash(prepared)
    return url


def command(*argv: str) -> None:
    assert main(list(argv)) == 0, argv


def test_from_embeddings_to_an_export(s3: str, data: str, prepared: Path, tmp_path: Path, work: Path) -> None:
    import pyarrow.parquet as pq

    from placerank.tokenization.text.store import write_embeddings

    ids = pq.read_table(prepared / "catalog.parquet")["item_id"].slice(1)
    write_embeddings(tmp_path / "vectors", ids, torch.randn(len(ids), 8))
    put_files(tmp_path / "vectors", [p.name for p in (tmp_path / "vectors").iterdir()], place(f"{s3}/commands/vectors"))
    tokens, run, export = (f"{s3}/commands/{name}" for name in ("tokens", "run", "export"))
    fast = ["--tokenizer", "res_kmeans", "--codebook.codes", "8", "--report.queries", "0", "--report.points", "100"]
    command("tokenize", "--data", data, "--embeddings", f"{s3}/commands/vectors", "--out", tokens, *fast)
    dims = ["--features.embedding-dim", "8", "--features.pooled-dim", "4", "--batch-size", "256"]
    command("train", "--data", data, "--run", run, "--features.semantic-ids", tokens, "--epochs", "1", *dims)
    config = json.loads((place(run) / "config.json").read_text())
    assert (config["data"], config["run"], config["features"]["semantic_ids"]) == (data, run, tokens)
    command("evaluate", "--run", run)
    read_manifest(fetched(place(run) / "evaluation"), "evaluation", verify=True)
    command("export", "--run", run, "--out", export)
    assert len(load_table(place(export), "item").lookup(ids.to_pylist()[:3])) == 3
    later, delta, applied, whole = (f"{s3}/commands/{name}" for name in ("later", "delta", "applied", "whole"))
    more = ["--features.semantic-ids", tokens, "--epochs", "1", *dims]
    command("train", "--data", data, "--run", later, "--warm-start", run, *more)
    command("export", "--run", later, "--out", delta, "--since", export)
    command("apply", "--base", export, "--delta", delta, "--out", applied)
    command("export", "--run", later, "--out", whole)
    hashes = [read_manifest(fetched(place(url)), "export", verify=True)["files"] for url in (applied, whole, export)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert not names(place(delta) / "whole")
    assert not list((work / "work").rglob("*")), "nothing is left of what was made here"


def test_a_run_goes_on_where_another_machine_left_it(
    s3: str, data: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = place(f"{s3}/commands/cut")
    train(small(prepared, tmp_path / "whole"))
    advance, dead = train_module._Loop._forward, []

    def deadly(self: Any, batch: Any) -> Any:
        if self.step == 24 and not dead:
            self.checkpoints.wait()
            self.checkpoints.before_prune()
            dead.append(True)
            raise UrlError("the machine is gone")
        return advance(self, batch)

    monkeypatch.setattr(train_module._Loop, "_forward", deadly)
    with pytest.raises(UrlError, match="the machine is gone"):
        train(small(place(data), url))
    for path in sorted(at_work(url).rglob("*"), reverse=True):  # as on another one
        path.unlink() if path.is_file() else path.rmdir()
    # A checkpoint that was being put is none.
    newest = max(name.split("/")[1] for name in names(url) if name.endswith("/manifest.json"))
    half = [name for name in names(url) if newest in name and name.endswith("manifest.json")]
    delete_files(url, half)
    with pytest.raises(FileExistsError, match="holds a run; pass --resume to go on, or --overwrite"):
        train(small(place(data), url))
    train(small(place(data), url, resume=True))
    assert metrics(url, "valid") == metrics(tmp_path / "whole", "valid")
    steps = {name.split("/")[1] for name in names(url) if name.startswith("checkpoints/")}
    assert steps == {path.name for path in (tmp_path / "whole/checkpoints").iterdir()}
    assert not any(part.startswith(".") for name in names(url) for part in name.split("/") if part != ".metadata")


def test_what_is_no_run_stays(s3: str, data: str, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("mine")
    url = place(f"{s3}/commands/own")
    put_files(tmp_path, ["own.txt"], url)
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="holds files that are no run"):
            train(small(place(data), url, overwrite=overwrite))
    assert names(url) == ["own.txt"]


def test_errors_are_one_line(data: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["prepare", "--input", "s3://no-such-bucket/x", "--out", "out"]) == 1
    assert "prepare.input=s3://no-such-bucket/x not found; check the path" in capsys.readouterr().err
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert main(["prepare", "--input", data, "--out", "out"]) == 1
    told = capsys.readouterr().err.strip()
    assert told.startswith(f"placerank: error: {data}: the server can't be reached") and len(told.splitlines()) == 1
