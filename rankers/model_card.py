"""The text of a model card: what an export holds, what it was trained on, and what its evaluation measured.

All figures are read from manifests and from ``metrics.json``; nothing is said of what was not measured.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..data.manifest import read_manifest
from ..embeddings.delta import CATALOG, USERS

_METRICS = {"auc": "AUC", "gauc": "GAUC", "ndcg@10": "NDCG@10", "log_loss": "log-loss", "calibration": "calibration"}
_NEEDS = 100  # rows that a slice has to have before it is named as one of the weakest
_WEAKEST = 3


def read_evaluation(folder: Path, export: dict[str, Any]) -> dict[str, Any]:
    """The metrics of the checkpoint that was exported.

    Raises:
        FileNotFoundError: not an evaluation folder.
        ValueError: it is of another checkpoint, or on other data than the ranker was trained on.
    """
    of = read_manifest(folder, "evaluation")
    _same("evaluation", folder, "step", of.get("step"), export.get("step"))
    _same("evaluation", folder, "data", of["made_from"].get("prepared"), export["made_from"].get("prepared"))
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def read_data(folder: Path, export: dict[str, Any]) -> dict[str, Any]:
    """The manifest of the prepared folder that the ranker was trained on.

    Raises:
        FileNotFoundError: not a prepared folder.
        ValueError: it is another one.
    """
    of = read_manifest(folder, "prepared")
    _same("data", folder, "data", of["content_hash"], export["made_from"].get("prepared"))
    return of


def _same(argument: str, folder: Path, what: str, got: Any, expected: Any) -> None:
    if got != expected:
        raise ValueError(
            f"{argument}={folder}: is of {what} {_short(got)}, the export of {_short(expected)}; give the one of this "
            "export, or leave it out"
        )


def _short(value: Any) -> str:
    return str(value)[:12]


def _table(head: list[str], rows: list[list[str]]) -> str:
    cell = lambda text: text.replace("|", "\\|")  # noqa: E731
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def card_text(folder: Path, metrics: dict[str, Any] | None, data: dict[str, Any] | None) -> str:
    """The card without its metadata, as Markdown.

    Args:
        folder: the export.
        metrics: of ``read_evaluation``; None: it was not measured, which the card then says.
        data: of ``read_data``; None: the card says of the data what the export knows.

    Raises:
        FileNotFoundError, ValueError: not an export folder, or not a whole one.
    """
    export = read_manifest(folder, "export")
    parts = [
        "# A ranker of places",
        _introduction(export),
        "## How to use it",
        'In Python, with placerank installed; `"owner/name"` is this repository:',
        "```python\nimport placerank\n\n"
        'ranker = placerank.Ranker.from_pretrained("owner/name")\n'
        "found = ranker.rank(user, (lat, lon), time, history=[(item, time_of_visit)], within_km=3, k=10)\n```",
        "It takes and gives raw ids; users and times that it has never seen are ranked for too.",
        "## What it was trained on",
        _data(folder, export, data),
        "## How good it is",
        _quality(metrics),
        "## Intended use",
        "Ordering places of this catalog for a person whose place, time and earlier visits are known, as a list or as "
        "one signal among others. Not for other areas than the catalog's, and not for conclusions about a person.",
        "## Limits",
        _limits(folder, metrics, data),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(export: dict[str, Any]) -> str:
    ranker = export.get("ranker") or {}
    kind = ranker.get("kind", "tower")
    what = f"Tower {ranker.get('tower')}" if kind == "tower" else f"Generative ranker of kind {kind}"
    plugins = [name for key, name in (("rest", "ReST"), ("akt", "AKT-Rec")) if (ranker.get(key) or {}).get("enabled")]
    labels = (ranker.get("objectives") or {}).get("labels") or ["label"]
    learned = f", of objectives {', '.join(labels)}" if kind == "tower" else ""
    visits = export.get("history_length")
    tables = export["tables"]
    numbers = sum(t["rows"] * t["dim"] for t in tables.values())
    return (
        f"{what}{', with ' + ' and '.join(plugins) if plugins else ''}{learned}, "
        f"over the last {visits or 'all'} visits; {len(tables)} embedding tables of {numbers:,} numbers "
        f"({', '.join(sorted({t['dtype'] for t in tables.values()}))}). Checkpoint of step {export.get('step')}, "
        f"placerank {export['environment']['packages'].get('placerank', '')}."
    )


def _days(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _data(folder: Path, export: dict[str, Any], data: dict[str, Any] | None) -> str:
    items = pq.read_table(folder / CATALOG, columns=["lat", "lon"]).slice(1)  # row 0 is that of unknown ids
    known = [f"{len(items):,} places", f"{pq.read_metadata(folder / USERS).num_rows - 1:,} users"]
    lines = [f"- {' and '.join(known)} have rows of their own."]
    box = [pc.min_max(items[name]).as_py() for name in ("lat", "lon")]
    if box[0]["min"] is not None:
        lat, lon = (f"{b['min']:.1f} to {b['max']:.1f}" for b in box)
        lines.append(f"- The places lie at latitudes {lat} and longitudes {lon}.")
    own = [f"{c['column']} of {c['of']}" for c in export.get("own", [])]
    if own:
        lines.append(f"- Columns besides the schema's: {', '.join(own)}.")
    if data is None:
        return "\n".join(lines)
    lines.append(f"- Source: {data['source']}.")
    rows = []
    for name, split in data["splits"].items():
        span = " to ".join(_days(t) for t in split["time"]) if split.get("time") else "–"
        rows.append([name, f"{split['rows']:,}", f"{split['positives']:,}", span])
    return "\n".join(lines) + "\n\n" + _table(["split", "samples", "positives", "days"], rows)


def _quality(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return "No evaluation came with the export: nothing is known."
    scorers = metrics["scorers"]
    of = f" of {metrics['objective']}" if "objective" in metrics else ""
    rows = [[s["title"], *(_number(s.get(name)) for name in _METRICS)] for s in scorers.values()]
    lead = (
        f"The {metrics['split']} split, {metrics['rows']:,} candidates with {metrics['positives']:,} positives{of}. "
        "Calibration is predicted over true positives: 1 is right."
    )
    slices = []
    for part in metrics["slices"].values():
        if len(part["scorers"]["model"]) < 2:
            continue
        for i, one in enumerate(part["scorers"]["model"]):
            rival = _best_rival(part["scorers"], i)
            error = one.get("auc_standard_error")
            auc = _number(one["auc"]) + (f" ± {1.96 * error:.3f}" if one["auc"] is not None and error else "")
            slices.append([f"{part['title']}: {one['label']}", f"{one['rows']:,}", auc, _number(rival)])
    text = f"{lead}\n\n{_table(['', *_METRICS.values()], rows)}"
    if slices:
        head = ["slice", "candidates", "AUC, 95 %", "best baseline's AUC"]
        text += f"\n\n{_table(head, slices)}"
    return "\n\n".join([text, *metrics["notes"]])


def _best_rival(scorers: dict[str, list[dict[str, Any]]], at: int) -> float | None:
    """The highest AUC of what needs no model, in a slice."""
    found = [s[at]["auc"] for name, s in scorers.items() if name not in ("model", "oracle")]
    return max((auc for auc in found if auc is not None), default=None)


def _limits(folder: Path, metrics: dict[str, Any] | None, data: dict[str, Any] | None) -> str:
    users = pq.read_metadata(folder / USERS).num_rows - 1
    lines = [
        f"- `users.parquet` and the tables hold the raw ids of {users:,} users and vectors learned from their visits: "
        "personal data, wherever the ids are of persons.",
        "- Places that opened later are not in the catalog and can't be ranked before the next export.",
    ]
    if data is not None and data["splits"]["train"].get("time"):
        last = _days(data["splits"]["train"]["time"][1])
        lines.append(f"- It has learned from nothing after {last}; habits and places change.")
    if metrics is None:
        return "\n".join([*lines, "- Its errors are unknown: it was not evaluated."])
    slices, beaten = [], []
    for part in metrics["slices"].values():
        for i, one in enumerate(part["scorers"]["model"]):
            name, rival = f"{part['title']}: {one['label']}", _best_rival(part["scorers"], i)
            if one["auc"] is not None and one["rows"] >= _NEEDS and len(part["scorers"]["model"]) > 1:
                slices.append((one["auc"], name))
                if rival is not None and rival > one["auc"]:
                    beaten.append(f"{name} ({_number(one['auc'])} against {_number(rival)})")
    if slices:
        named = "; ".join(f"{name} ({_number(auc)})" for auc, name in sorted(slices)[:_WEAKEST])
        lines.append(f"- Weakest slices of at least {_NEEDS} candidates, by AUC: {named}.")
    if beaten:
        lines.append(f"- A baseline without a model is better at: {'; '.join(beaten)}.")
    calibration = metrics["scorers"]["model"].get("calibration")
    if calibration is not None:
        lines.append(
            f"- Its probabilities add up to {calibration:.2f} times the positives there were; calibrate them anew "
            "before they are used as numbers."
        )
    return "\n".join(lines)
