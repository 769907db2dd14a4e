"""The report of an evaluation: one HTML page with its pictures inside, which opens without a network."""

import base64
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from ..training.predictions import Predictions
from ..training.run_files import CONFIG, ENVIRONMENT, read_best, read_metrics, read_object
from . import maps, pictures
from .breakdown import ItemFacts

TEMPLATE = Path(__file__).with_name("report.html")
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
        _comparison(metrics),
        _maps(folder, predictions, items),
        _slices(metrics),
        _learning_curve(log, read_best(run)),
        _calibration(metrics, predictions),
        _what_was_run(metrics, run),
    ]
    known = "" if metrics.get("step") is None else f" · checkpoint of step {metrics['step']:,}"
    page = Template(TEMPLATE.read_text()).substitute(
        title=html.escape(f"placerank · {run.resolve().name}"),
        subtitle=html.escape(
            f"{metrics['split']} split · {metrics['rows']:,} candidates, {metrics['positives']:,} positives · "
            f"{metrics['scorers']['model']['users']:,} users{known}"
        ),
        cards=_cards(metrics),
        sections="\n".join(filter(None, sections)),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    pictures.save_png(lambda: maps.overview(metrics, log, items), folder / "overview.png")
    return path


def _number(name: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.3f}" if name == "calibration" else f"{value:.4f}"


def _section(title: str, lead: str, body: str) -> str:
    return f'<section>\n<h2>{html.escape(title)}</h2>\n<p class="lead">{lead}</p>\n{body}\n</section>'


def _cards(metrics: dict[str, Any]) -> str:
    model, share = metrics["scorers"]["model"], metrics["share_of_oracle"]
    cards = []
    if share and share["auc"] is not None:
        cards.append(("main", f"{share['auc']:.0%}", "of the way from chance to the oracle, in AUC"))
    cards += [
        ("main", _number("auc", model["auc"])[:6], "AUC"),
        ("", _number("gauc", model["gauc"]), "GAUC: AUC within each user"),
        ("", _number("ndcg@10", model["ndcg@10"]), "NDCG@10 within requests"),
        ("", _number("tauc", model["tauc"]), "TAUC: mean over times of day"),
        ("", _number("cauc", model["cauc"]), "CAUC: mean over cities"),
    ]
    return "".join(f'<div class="card {kind}"><b>{value}</b><span>{text}</span></div>' for kind, value, text in cards)


def _comparison(metrics: dict[str, Any]) -> str:
    scorers = metrics["scorers"]
    rivals = {name: s for name, s in scorers.items() if name != "oracle"}
    best = {}
    for column in COLUMNS:
        values = [s[column] for s in rivals.values() if s.get(column) is not None]
        if len(values) > 1:
            best[column] = min(values) if column in _SMALLER_IS_BETTER else max(values)
    rows = []
    for name, scorer in scorers.items():
        cells = [f'<td><span class="dot" style="background:var(--{name})"></span>{html.escape(scorer["title"])}</td>']
        for column in COLUMNS:
            value = scorer.get(column)
            mark = ' class="best"' if name != "oracle" and value is not None and value == best.get(column) else ""
            why = scorer["undefined"].get(column)
            tip = f' title="{html.escape(why)}"' if why else ""
            cells.append(f"<td{mark}{tip}>{_number(column, value)}</td>")
        rows.append(f'<tr class="{name}">{"".join(cells)}</tr>')
    head = "".join(f"<th>{title}</th>" for title in COLUMNS.values())
    table = f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
    model = scorers["model"]
    coverage = "" if model["gauc_coverage"] is None else f" ({model['gauc_coverage']:.0%} of the rows)"
    lead = (
        "All score the same rows. AUC is the chance that a random positive is put above a random negative; GAUC is "
        f"that within each user who has both{coverage}. NDCG and Hit@K ask how high a request's positives stand among "
        f"its candidates ({model['requests']:,} requests with both). Calibration is predicted over true positives: "
        "1 is right. The best without the oracle is in colour."
    )
    notes = "".join(f'<p class="muted">{html.escape(note)}</p>' for note in metrics["notes"])
    picture = ""
    if model["auc"] is not None:
        picture = f"<figure>{pictures.themed_svg(lambda: pictures.ladder(scorers))}</figure>"
    return _section("Model against scores that need no model", lead, table + notes + picture)


def _image(png: bytes, text: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<figure class="map"><img alt="{html.escape(text)}" src="data:image/png;base64,{data}"></figure>'


def _maps(folder: Path, predictions: Predictions, items: ItemFacts) -> str:
    if not maps.frames(items):
        return _section("Map of the items", "No item has coordinates: there is nothing to draw.", "")
    popular = maps.png(lambda: maps.popularity_map(items))
    (folder / "map.png").write_bytes(popular)
    error, _ = maps.item_error(predictions, items)
    body = _image(popular, "map of the items by popularity")
    body += (
        "<h3>Where the model is wrong</h3>"
        '<p class="lead">Predicted minus true positives of each item, in standard deviations of what pure chance would '
        "leave. Orange: the model promises too much; blue: too little; grey: within chance. If every prediction were "
        f"right, one item in twenty would still lie beyond ±2. Items with fewer than {maps.MIN_SEEN} candidates are "
        f"left out: {np.count_nonzero(~np.isnan(error)):,} of {len(items) - 1:,} are shown.</p>"
    )
    body += _image(maps.png(lambda: maps.error_map(predictions, items)), "map of the items by error of the prediction")
    lead = "Every point is an item; the brighter and larger, the more positives it had in training."
    return _section("Map of the items", lead, body)


def _slices(metrics: dict[str, Any]) -> str:
    names = list(metrics["scorers"])
    parts = [part for part in metrics["slices"].values() if len(part["scorers"]["model"]) > 1]
    if not parts:
        return ""
    legend = "".join(
        f'<span><i style="color:var(--{name})">{_MARKS.get(name, "▬")}</i>{html.escape(scorer["title"])}</span>'
        for name, scorer in metrics["scorers"].items()
    )
    lead = (
        "AUC among the rows of each slice alone, positives and negatives; the line on a bar is its 95 % interval for "
        "independent rows. A bar that ends left of a mark is beaten there. Head items are the top 10 % by positives in "
        "training, mid the next 40 %, tail the rest; local time comes from the item's longitude."
    )
    picture = pictures.themed_svg(lambda: pictures.slices(parts, names))
    return _section(
        "Where it is good, and where not", lead, f'<div class="legend">{legend}</div><figure>{picture}</figure>'
    )


def _learning_curve(log: Sequence[dict[str, Any]], best: int | None) -> str:
    if not log:
        return ""
    lead = "The vertical line is the step with the best validation AUC, which is the checkpoint called best."
    picture = pictures.themed_svg(lambda: pictures.learning_curve(log, best))
    return _section("Learning curve", lead, f"<figure>{picture}</figure>")


def _calibration(metrics: dict[str, Any], predictions: Predictions) -> str:
    error = _number("ece", metrics["scorers"]["model"]["ece"])
    lead = (
        "Left: candidates in bins of equal size by predicted probability; on the dashed line, a prediction of 20 % "
        "comes true one time in five. Above it the model promises too little, below too much. Right: how far the "
        f"predictions of positives stand from those of negatives. Expected calibration error: {error}."
    )
    picture = pictures.themed_svg(
        lambda: pictures.calibration(metrics["reliability"], predictions.predicted(), predictions.label)
    )
    return _section("Calibration", lead, f"<figure>{picture}</figure>")


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
    listed = "".join(f"<dt>{k}</dt><dd>{html.escape(str(v))}</dd>" for k, v in facts.items() if v)
    body = f"<dl>{listed}</dl>"
    if config:
        body += f"<details><summary>config</summary><pre>{html.escape(json.dumps(config, indent=2))}</pre></details>"
    numbers = {k: v for k, v in metrics.items() if k not in ("slices", "reliability")}
    body += f"<details><summary>all numbers</summary><pre>{html.escape(json.dumps(numbers, indent=2))}</pre></details>"
    return _section(
        "What was run", "predictions.parquet and metrics.json beside this page hold the rows and numbers.", body
    )
