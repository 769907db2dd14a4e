"""Rankers to and from the hub, without a network: a fake of huggingface_hub's client, and folders made by hand."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard, hub_mixin

from placerank.data.manifest import read_manifest, write_json, write_manifest
from placerank.rankers import hub_folder, rank
from placerank.rankers.hub import OnTheHub

SPLIT = {"rows": 1_000, "positives": 200, "mean_history": 3.0, "row_groups": {}, "time": [1704067200, 1704153600]}


@dataclass
class Settings:
    """Of a step."""

    seed: int = 0


class Loaded(OnTheHub):
    """Stands for a ranker: it only knows where it was loaded from."""


class Other(OnTheHub):
    """Another kind."""


def loaded(folder: Path, verify: bool = True) -> Loaded:
    """As ``placerank.load``."""
    read_manifest(folder, "export", verify)
    found = Loaded()
    found.folder = folder
    return found


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "load", loaded)


def scored(auc: list[float]) -> list[dict[str, Any]]:
    return [
        {"label": label, "rows": rows, "auc": value, "auc_standard_error": 0.01}
        for label, rows, value in zip(("new", "known", "few"), (300, 700, 50), auc, strict=True)
    ]


@pytest.fixture
def made(tmp_path: Path) -> SimpleNamespace:
    """An export, its evaluation and its data: ``export``, ``evaluation``, ``data``."""
    folders = SimpleNamespace(**{name: tmp_path / name for name in ("export", "evaluation", "data")})
    for folder in vars(folders).values():
        folder.mkdir()
    tables = {"item": 3, "user": 3, "category": 2}
    extra = {"history_length": 50, "user_columns": [], "source": "impressions"}
    write_manifest(folders.data, "prepared", Settings(), tables=tables, splits={"train": SPLIT}, **extra)
    of = {"prepared": read_manifest(folders.data, "prepared")["content_hash"]}
    (folders.export / "tables").mkdir()
    (folders.export / "tables" / "item.parquet").write_bytes(b"rows")
    places = {"item_id": [None, "a", "b"], "lat": [None, 52.01, 52.52], "lon": [None, 4.0, 5.0]}
    pq.write_table(pa.table(places), folders.export / "catalog.parquet")
    pq.write_table(pa.table({"user_id": [None, 1, 2]}), folders.export / "users.parquet")
    table = {"rows": 3, "dim": 4, "format": "parquet", "dtype": "int8", "file": "item.parquet"}
    ranker = {"kind": "tower", "tower": "din", "rest": {"enabled": True}, "objectives": {"labels": ["label"]}}
    about = {"step": 7, "ranker": ranker, "history_length": 50}
    write_manifest(folders.export, "export", Settings(), of, tables={"item": table}, **about)
    model = {"title": "Model", "auc": 0.75, "gauc": None, "ndcg@10": 0.5, "log_loss": 0.4, "calibration": 1.25}
    metrics = {
        "split": "test",
        "rows": 1_000,
        "positives": 200,
        "scorers": {"model": model, "visits": {"title": "Most visited | often", "auc": 0.7}},
        "slices": {
            "user": {
                "title": "User",
                "scorers": {
                    "model": scored([0.6, 0.8, 0.1]),
                    "visits": scored([0.5, 0.9, 0.2]),
                    "oracle": scored([1] * 3),
                },
            },
            "city": {"title": "City", "scorers": {"model": scored([0.5, 0.5, 0.5])[:1]}},
        },
        "notes": ["There is no oracle."],
    }
    write_json(folders.evaluation / "metrics.json", metrics)
    write_manifest(folders.evaluation, "evaluation", Settings(), of, step=7, trained={"settings": {}})
    return folders


def test_saved_and_read_again(made: SimpleNamespace, tmp_path: Path) -> None:
    loaded(made.export).save_pretrained(tmp_path / "saved")
    again = Loaded.from_pretrained(tmp_path / "saved")
    assert again.folder == tmp_path / "saved"
    assert read_manifest(tmp_path / "saved", "export", True) == read_manifest(made.export, "export")
    with pytest.raises(ValueError, match=r"holds a Loaded, expected a Other; use placerank\.load"):
        Other.from_pretrained(tmp_path / "saved")
    about = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert about["library_name"] == "placerank" and about["ranker"]["tower"] == "din"


def test_the_card_tells_what_was_measured(made: SimpleNamespace, tmp_path: Path) -> None:
    loaded(made.export).save_pretrained(tmp_path / "saved", evaluation=made.evaluation, data=made.data)
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert card.data.to_dict()["library_name"] == "placerank"
    measured = {one.metric_type: one.metric_value for one in card.data.eval_results or []}
    assert measured == {"auc": 0.75, "ndcg@10": 0.5, "log_loss": 0.4}
    text = card.text
    assert "Tower din, with ReST, of objectives label, over the last 50 visits" in text
    assert "- 2 places and 2 users have rows of their own." in text
    assert "latitudes 52.0 to 52.5 and longitudes 4.0 to 5.0" in text
    assert "| train | 1,000 | 200 | 2024-01-01 to 2024-01-02 |" in text
    assert "| Model | 0.750 | – | 0.500 | 0.400 | 1.250 |" in text
    assert "| Most visited \\| often | 0.700 |" in text
    assert "| User: new | 300 | 0.600 ± 0.020 | 0.500 |" in text
    assert "City: new" not in text  # a slicing of one slice says nothing
    assert "at least 100 candidates, by AUC: User: new (0.600); User: known (0.800)." in text  # not the one of 50
    assert "A baseline without a model is better at: User: known (0.800 against 0.900)." in text
    assert "add up to 1.25 times" in text and "nothing after 2024-01-02" in text and "There is no oracle." in text


def test_without_an_evaluation_the_card_says_so(made: SimpleNamespace, tmp_path: Path) -> None:
    loaded(made.export).save_pretrained(tmp_path / "saved")
    text = (tmp_path / "saved" / "README.md").read_text()
    assert "No evaluation came with the export: nothing is known." in text
    assert "it was not evaluated" in text and "model-index" not in text


def test_figures_of_something_else_are_refused(made: SimpleNamespace, tmp_path: Path) -> None:
    ranker = loaded(made.export)
    of = read_manifest(made.export, "export")["made_from"]
    write_manifest(made.evaluation, "evaluation", Settings(), of, step=8, trained={"settings": {}})
    with pytest.raises(ValueError, match=r"evaluation=.*: is of step 8, the export of 7; give the one of this export"):
        ranker.save_pretrained(tmp_path / "saved", evaluation=made.evaluation)
    write_manifest(made.evaluation, "evaluation", Settings(), {"prepared": "0" * 64}, step=7, trained={"settings": {}})
    with pytest.raises(ValueError, match=r"is of data 000000000000, the export of"):
        ranker.save_pretrained(tmp_path / "saved", evaluation=made.evaluation)
    (made.data / "more").write_text("x")
    kept = {
        k: v for k, v in read_manifest(made.data, "prepared").items() if k in ("tables", "splits", "history_length")
    }
    write_manifest(made.data, "prepared", Settings(), **kept, user_columns=[], source="impressions")
    with pytest.raises(ValueError, match=r"data=.*: is of data"):
        ranker.save_pretrained(tmp_path / "saved", data=made.data)
    with pytest.raises(ValueError, match="was not loaded from an export folder"):
        Loaded().save_pretrained(tmp_path / "saved")


def test_a_card_of_another_export_does_not_stay(made: SimpleNamespace, tmp_path: Path) -> None:
    ranker, saved = loaded(made.export), tmp_path / "saved"
    ranker.save_pretrained(saved)
    (saved / "README.md").write_text("my own words")
    ranker.save_pretrained(saved)
    assert (saved / "README.md").read_text() == "my own words"
    other = tmp_path / "other"
    shutil.copytree(made.export, other)
    (other / "tables" / "item.parquet").write_bytes(b"other rows")
    about = read_manifest(made.export, "export")
    write_manifest(other, "export", Settings(), about["made_from"], tables=about["tables"], step=9)
    loaded(other).save_pretrained(saved)
    assert "Checkpoint of step 9" in (saved / "README.md").read_text()
    assert read_manifest(saved, "export", True)["step"] == 9


def test_the_export_itself_gets_the_card_alone(made: SimpleNamespace) -> None:
    before = read_manifest(made.export, "export", True)
    loaded(made.export).save_pretrained(made.export)
    assert read_manifest(made.export, "export", True) == before
    assert (made.export / "README.md").is_file()


def test_a_copy_that_broke_off_is_no_export(
    made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker, saved = loaded(made.export), tmp_path / "saved"
    ranker.save_pretrained(saved)

    def full(source: Path, to: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="no space left"):
        ranker.save_pretrained(saved)
    with pytest.raises(FileNotFoundError, match=r"manifest\.json not found"):
        Loaded.from_pretrained(saved)


class FakeApi:
    """Keeps what it is asked, and what is uploaded."""

    asked: dict[str, Any]
    files: set[str]

    def __init__(self, token: str | None = None) -> None:
        FakeApi.asked = {"token": token}

    def create_repo(self, **asked: Any) -> SimpleNamespace:
        FakeApi.asked |= {"create_repo": asked}
        return SimpleNamespace(repo_id=asked["repo_id"])

    def upload_folder(self, folder_path: Path, **asked: Any) -> str:
        FakeApi.asked |= {"upload_folder": asked}
        read_manifest(folder_path, "export", True)
        FakeApi.files = {p.relative_to(folder_path).as_posix() for p in folder_path.rglob("*") if p.is_file()}
        return "https://hub/commit/1"


def test_pushed(made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_mixin, "HfApi", FakeApi)
    ranker = loaded(made.export)
    assert ranker.push_to_hub("me/ranker", evaluation=made.evaluation, commit_message="new") == "https://hub/commit/1"
    assert FakeApi.asked["create_repo"] == {"repo_id": "me/ranker", "private": True, "exist_ok": True}
    assert FakeApi.asked["upload_folder"]["commit_message"] == "new"
    assert FakeApi.files == {
        *("README.md", "config.json", "manifest.json"),
        *("catalog.parquet", "users.parquet", "tables/item.parquet"),
    }
    ranker.push_to_hub("me/ranker", private=False)
    assert FakeApi.asked["create_repo"]["private"] is False


def test_got_from_the_hub(made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot is a folder of links to files that are kept elsewhere, with files of the hub's own."""
    snapshot = tmp_path / "snapshot"
    for path in [p for p in made.export.rglob("*") if p.is_file()]:
        link = snapshot / path.relative_to(made.export)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    (snapshot / ".gitattributes").write_text("*.pt2 filter=lfs")
    asked: dict[str, Any] = {}

    def download(name: str, **how: Any) -> str:
        asked.update(how, name=name)
        return str(snapshot)

    (snapshot / "config.json").write_text('{"library_name": "placerank"}')
    monkeypatch.setattr(hub_folder, "snapshot_download", download)
    monkeypatch.setattr(hub_mixin, "hf_hub_download", lambda **how: str(snapshot / how["filename"]))
    assert Loaded.from_pretrained("me/ranker", revision="v2").folder == snapshot
    assert asked["name"] == "me/ranker" and asked["revision"] == "v2"
    (made.export / "tables" / "item.parquet").write_bytes(b"rowz")
    with pytest.raises(ValueError, match="content differs from what was written"):
        Loaded.from_pretrained("me/ranker")
    assert Loaded.from_pretrained("me/ranker", verify=False).folder == snapshot
