"""What results show, of folders made by hand; docs/tour.ipynb shows those of real ones."""

import json
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import placerank as pr
from placerank.data.manifest import write_json, write_manifest


@dataclass
class Settings:
    """Of a step."""

    rung: str = "none"


class Tags(HTMLParser):
    """Counts what is opened, and wants it closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_run(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"step": 10, "epoch": 0, "split": "train", "loss": 0.5, "lr": 0.1, "samples_per_s": 100.0},
        {"step": 20, "epoch": 1, "split": "valid", "auc": 0.7, "gauc": None, "log_loss": 0.4},
        {"step": 40, "epoch": 2, "split": "valid", "auc": 0.6, "gauc": 0.5, "log_loss": 0.45},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(tmp_path / "best.json", {"step": 20, "auc": 0.7, "without_gain": 1})
    run = pr.Trained(tmp_path)
    assert [line["step"] for line in run.validation] == [20, 40] and run.best["auc"] == 0.7
    assert run.summary == {
        "steps": 40,
        "validations": 2,
        "best step": 20,
        "best auc": 0.7,
        "best gauc": None,
        "best log_loss": 0.4,
    }
    assert repr(run).splitlines() == [
        f"Trained {tmp_path}",
        "  steps          40",
        "  validations    2",
        "  best step      20",
        "  best auc       0.7000",
        "  best log_loss  0.4000",
    ]
    assert Tags(run._repr_html_()).seen.count("svg") == 1


def test_a_run_before_its_first_line(tmp_path: Path) -> None:
    run = pr.Trained(tmp_path)
    assert (run.log, run.validation, run.best) == ([], [], {})
    assert repr(run).splitlines()[1:] == ["  steps        0", "  validations  0"]
    assert "svg" not in Tags(run._repr_html_()).seen


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a finished 'prepared' folder"):
        pr.Prepared(tmp_path).summary  # noqa: B018
    with pytest.raises(FileNotFoundError, match="expected a finished 'export' folder"):
        repr(pr.Exported(tmp_path))
    with pytest.raises(FileNotFoundError, match="expected a finished 'evaluation' folder"):
        pr.Evaluated(str(tmp_path)).metrics  # type: ignore[arg-type]  # noqa: B018


def test_lists(tmp_path: Path) -> None:
    table = pa.table(
        {
            "request": [0, 0, 2],
            "place": [1, 2, 1],
            "item_id": ["<b>", "y", "z"],
            "probability": [0.5, 0.25, 0.1],
            "km": [1.0, 2.0, 3.0],
        }
    )
    pq.write_table(table, tmp_path / "lists.parquet")
    found = pr.Generated(tmp_path)
    assert found.table.equals(table) and found.summary == {"lists": 2, "places": 3}
    assert [line.split() for line in repr(found).splitlines()[-2:]] == [
        ["1", "<b>", "0.5000", "1.0000"],
        ["2", "y", "0.2500", "2.0000"],
    ]
    assert "&lt;b&gt;" in found._repr_html_() and "z" not in repr(found).splitlines()[-1]
    pq.write_table(table.slice(0, 0), tmp_path / "lists.parquet")
    assert found.summary == {"lists": 0, "places": 0} and "place" in repr(found)


def test_semantic_ids_and_embeddings(tmp_path: Path) -> None:
    ids, vectors = tmp_path / "tokens", tmp_path / "align"
    ids.mkdir()
    vectors.mkdir()
    measures = {"reconstruction": {"explained": [0.5, 0.75]}, "collisions": {"before": {"collision_rate": 0.125}}}
    write_json(ids / "measures.json", measures)
    about = {"lineage": ["x"], "items": 9, "levels": 2, "codes": 64, "lookup": "codes"}
    write_manifest(ids, "tokens", Settings(), **about)
    write_manifest(vectors, "align", Settings(), encoder={"model": "tiny"}, prompts={}, items=9)
    found = pr.Tokenized(ids)
    assert found.measures == measures and found.report == ids / "report.html"
    assert list(found.summary.values()) == [9, 2, 64, 0.75, 0.125]
    assert pr.Aligned(vectors).summary == {"items": 9, "encoder": "tiny", "rung": "none"}
    for one in (found, pr.Aligned(vectors)):
        Tags(one._repr_html_())


def test_what_changed_between_exports(tmp_path: Path) -> None:
    rows = {"item": {"rows": 1_200, "base": 1_000, "block": 10, "changed": 250, "gone": 50}}
    write_manifest(tmp_path, "delta", Settings(), base="b" * 64, result="r" * 64, pyarrow="1", rows=rows)
    found = pr.Exported(tmp_path)
    assert found.summary["what changed since"] == "b" * 12
    assert repr(found).splitlines()[-1].split() == ["item", "1,200", "250", "50"]


def test_more_labels_than_one(tmp_path: Path) -> None:
    """A table each; where nothing is known of a metric, nothing is shown."""
    scorers = {"model": {"title": "Model", "auc": None, "log_loss": 0.5}}
    one = {"scorers": scorers, "positives": 3, "slices": {}}
    metrics = {
        **one,
        "split": "test",
        "step": 5,
        "rows": 10,
        "share_of_oracle": None,
        "objective": "label",
        "notes": ["No oracle."],
    }
    write_json(tmp_path / "metrics.json", {**metrics, "objectives": {"order": one}})
    found = pr.Evaluated(tmp_path)
    text = repr(found)
    assert text.index("\nlabel\n") < text.index("\norder\n")
    assert "No oracle." in text
    shown = Tags(found._repr_html_()).seen
    assert shown.count("table") == 2 and shown.count("h4") == 2 and "svg" not in shown
