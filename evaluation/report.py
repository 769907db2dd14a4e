"""The report of an evaluation: one HTML page with its pictures inside, which opens without a network."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..reports import figures, page
from ..training.predictions import Predictions
from ..training.run_files import CONFIG, ENVIRONMENT, read_best, read_metrics, read_object
from . import maps, pictures
from .breakdown import ItemFacts
from .examples import examples_section, worst_section
from .list_report import list_section
from .objectives import first_section

COLUMNS = {
    "auc": "AUC",
    "gauc": "GAUC",
    "ndcg@10": "NDCG@10",
    "hit@1": "Hit@1",
    "hit@5": "Hit@5",
    "hit@10": "Hit@10",
    "log_loss": "log-loss",
    "calibration": "calibration",
}
"""Metrics of the main table with their headings, in this order."""
_SMALLER_IS_BETTER = {"log_loss"}
_MARKS = {"popularity": "▲", "visits": "■", "nearest": "▼", "oracle": "◆"}


def write_report(
    folder: Path, *, metrics: dict[str, Any], predictions: Predictions, items: ItemFacts, run: Path
) -> Path:
    """Write ``report.html``, and the pictures ``overview.png`` and ``map.png`` beside it; returns the page.

    Args:
        folder: where; it exists.
        metrics: what ``metrics.json`` holds.
        predictions, items: what it was measured on.
        run: the run folder; its config.json, environment.json, metrics.jsonl and best.json are shown if they are there.
    """
    log = read_metrics(run)
    sections = [
        *([list_section(metrics["lists"])] if "lists" in metrics else []),
        *([first_section(metrics["first"], metrics.get("amount"))] if "first" in metrics else []),
        _comparison(metrics),
        _maps(folder, predictions, items),
        _slices(metrics),
        worst_section(metrics["worst_items"]),
        examples_section(predictions, items),
        _learning_curve(log, read_best(run)),
        _calibration(metrics, predictions),
        *_others(metrics, predictions),
        _what_was_run(metrics, run),
    ]
    known = "" if metrics.get("step") is None else f" · checkpoint of step {metrics['step']:,}"
    path = folder / "report.html"
    page.write_page(
        path,
        f"placerank · {run.resolve().name}",
        f"{metrics['split']} split · {metrics['rows']:,} candidates, {metrics['positives']:,} positives · "
        f"{metrics['scorers']['model']['users']:,} users{known}",
        _cards(metrics),
        sections,
    )
    figures.save(lambda: maps.overview(metrics, log, items), folder / "overview.png")
    return path


def _others(metrics: dict[str, Any], predictions: Predictions) -> list[str]:
    """Of each further label that the model predicts, what there is of the first one."""
    found = []
    for name, own in metrics.get("objectives", {}).items():
        parts = _comparison(own, name), _slices(own, name), _calibration(own, predictions.of(name), name)
        found += [part for part in parts if part]
    return found


def _of(title: str, label: str | None) -> str:
    return f"{label}: {title[0].lower()}{title[1:]}" if label else title


def _number(name: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.3f}" if name == "calibration" else f"{value:.4f}"


def _cards(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    model, share = metrics["scorers"]["model"], metrics["share_of_oracle"]
    cards = []
    if share and share["auc"] is not None:
        cards.append((f"{share['auc']:.0%}", "of the way from chance to the oracle, in AUC"))
    names = {
        "auc": "AUC",
        "gauc": "GAUC: AUC within each user",
        "ndcg@10": "NDCG@10 within requests",
        "tauc": "TAUC: mean over times of day",
        "cauc": "CAUC: mean over cities",
    }
    return cards + [(_number(name, model[name]), text) for name, text in names.items()]


def _comparison(metrics: dict[str, Any], label: str | None = None) -> str:
    scorers = metrics["scorers"]
    rivals = {name: s for name, s in scorers.items() if name != "oracle"}
    best = {}
    for column in COLUMNS:
        values = [s[column] for s in rivals.values() if s.get(column) is not None]
        if len(values) > 1:
            best[column] = min(values) if column in _SMALLER_IS_BETTER else max(values)
    line = {"model": "strong", "oracle": "muted"}
    rows = []
    for name, scorer in scorers.items():
        kind = line.get(name, "")
        cells = [page.Cell(text=scorer["title"], kind=kind, colour=pictures.COLOURS[name])]
        for column in COLUMNS:
            value, why = scorer.get(column), scorer["undefined"].get(column) or ""
            is_best = name != "oracle" and value is not None and value == best.get(column)
            cells.append(page.Cell(text=_number(column, value), kind="best" if is_best else kind, tip=why))
        rows.append(cells)
    table = page.table(["", *COLUMNS.values()], rows)
    model = scorers["model"]
    coverage = "" if model["gauc_coverage"] is None else f" ({model['gauc_coverage']:.0%} of the rows)"
    lead = (
        "All score the same rows. AUC is the chance that a random positive is put above a random negative; GAUC is "
        f"that within each user who has both{coverage}. NDCG and Hit@K ask how high a request's positives stand among "
        f"its candidates ({model['requests']:,} requests with both). Calibration is predicted over true positives: "
        "1 is right. The best without the oracle is in colour."
    )
    notes = "".join(map(page.lead, metrics["notes"]))
    picture = "" if model["auc"] is None else figures.svg(lambda: pictures.ladder(scorers))
    return page.section(_of("Model against scores that need no model", label), lead, table + notes + picture)


def _maps(folder: Path, predictions: Predictions, items: ItemFacts) -> str:
    if not maps.frames(items):
        return page.section("Map of the items", "No item has coordinates: there is nothing to draw.", "")
    error, _ = maps.item_error(predictions, items)
    explained = (
        "Predicted minus true positives of each item, in standard deviations of what pure chance would leave. Orange: "
        "the model promises too much; blue: too little; grey: within chance. If every prediction were right, one item "
        f"in twenty would still lie beyond ±2. Items with fewer than {maps.MIN_SEEN} candidates are left out: "
        f"{np.count_nonzero(~np.isnan(error)):,} of {len(items) - 1:,} are shown."
    )
    body = figures.png(lambda: maps.popularity_map(items), "map of the items by popularity", folder / "map.png")
    body += page.lead(explained, "Where the model is wrong")
    body += figures.png(lambda: maps.error_map(predictions, items), "map of the items by error of the prediction")
    lead = "Every point is an item; the brighter and larger, the more positives it had in training."
    return page.section("Map of the items", lead, body)


def _slices(metrics: dict[str, Any], label: str | None = None) -> str:
    names = list(metrics["scorers"])
    parts = [part for part in metrics["slices"].values() if len(part["scorers"]["model"]) > 1]
    if not parts:
        return ""
    marks = [(_MARKS.get(name, "▬"), pictures.COLOURS[name], s["title"]) for name, s in metrics["scorers"].items()]
    lead = (
        "AUC among the rows of each slice alone, positives and negatives; the line on a bar is its 95 % interval for "
        "independent rows. A bar that ends left of a mark is beaten there. Head items are the top 10 % by positives in "
        "training, mid the next 40 %, tail the rest; local time comes from the item's longitude."
    )
    picture = figures.svg(lambda: pictures.slices(parts, names))
    return page.section(_of("Where it is good, and where not", label), lead, page.legend(marks) + picture)


def _learning_curve(log: Sequence[dict[str, Any]], best: int | None) -> str:
    if not log:
        return ""
    lead = "The vertical line is the step with the best validation AUC, which is the checkpoint called best."
    return page.section("Learning curve", lead, figures.svg(lambda: pictures.learning_curve(log, best)))


def _calibration(metrics: dict[str, Any], predictions: Predictions, label: str | None = None) -> str:
    error = _number("ece", metrics["scorers"]["model"]["ece"])
    lead = (
        "Left: candidates in bins of equal size by predicted probability; on the dashed line, a prediction of 20 % "
        "comes true one time in five. Above it the model promises too little, below too much. Right: how far the "
        f"predictions of positives stand from those of negatives. Expected calibration error: {error}."
    )
    picture = figures.svg(
        lambda: pictures.calibration(metrics["reliability"], predictions.predicted(), predictions.label)
    )
    return page.section(_of("Calibration", label), lead, picture)


def _what_was_run(metrics: dict[str, Any], run: Path) -> str:
    config, where = read_object(run / CONFIG) or {}, read_object(run / ENVIRONMENT) or {}
    packages = where.get("packages")
    packages = ", ".join(f"{k} {v}" for k, v in packages.items()) if isinstance(packages, dict) else packages
    facts = {
        "run": run,
        "data": config.get("data"),
        "trained on": where.get("device"),
        "ranks": where.get("world_size"),
        "python": where.get("python"),
        "packages": packages,
        "commit": where.get("commit"),
    }
    body = page.facts(facts)
    if config:
        body += page.folded("config", config)
    body += page.folded(
        "all numbers", {k: v for k, v in metrics.items() if k not in ("slices", "reliability", "lists", "objectives")}
    )
    lead = "predictions.parquet and metrics.json beside this page hold the rows and numbers."
    return page.section("What was run", lead, body)
