"""The report of ``align``: what the encoder knew of places before and after, the curves, the held-out measures."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from matplotlib.figure import Figure
from torch.nn.functional import cosine_similarity

from ...data.manifest import write_json
from ...reports import figures, page
from ..text.store import EmbeddingStore
from .coverage import cluster_nmi, neighbour_coverage
from .measures import region_labels

_LETTER = {"province": "P", "city": "C", "district": "T"}
_ROWS = 20_000  # of which the cosine before and after is taken


def embedding_measures(
    before: EmbeddingStore, after: EmbeddingStore, items: pa.Table, queries: int, device: torch.device
) -> dict[str, Any]:
    """Similarity, coverage and NMI (see ``coverage``) before and after; and how far vectors have moved."""
    rows = torch.from_numpy(np.sort(np.random.default_rng(0).permutation(len(before))[:_ROWS]))
    moved = cosine_similarity(before.rows(rows), after.rows(rows), dim=1)
    found: dict[str, Any] = {"cosine_before_after": float(moved.mean())}
    if not queries:
        return found
    regions = {name: label for name, (label, _) in region_labels(items).items()}
    for name, store, reference in (("before", before, None), ("after", after, before)):
        measured = neighbour_coverage(store, regions, queries=queries, reference=reference, device=device)
        found[name] = {**measured, "nmi": cluster_nmi(store, regions)}
    return found


def measures_here(store: EmbeddingStore, items: pa.Table, queries: int, device: torch.device) -> dict[str, Any]:
    """The same of embeddings that nothing was trained for: ``here``; nothing without queries."""
    if not queries:
        return {}
    regions = {name: label for name, (label, _) in region_labels(items).items()}
    measured = neighbour_coverage(store, regions, queries=queries, device=device)
    return {"here": {**measured, "nmi": cluster_nmi(store, regions)}}


def write_align_report(folder: Path, report: dict[str, Any], curves: dict[str, list[dict[str, float]]]) -> Path:
    """Write ``report.json`` and ``report.html``; returns the page."""
    report = _json_ready(report)
    write_json(folder / "report.json", report)
    sections = [_prompts(report), _embeddings(report), _reward(report), _behaviour(report)]
    lines = {"reward": report.get("reward", {}).get("curve", []), **curves}
    if any(lines.values()):
        lead = "Thin lines are single steps, thick ones means over a twentieth of all steps."
        sections.append(page.section("Learning curves", lead, figures.svg(lambda: learning_curves(lines))))
    cards = []
    embeddings = report.get("embeddings", {})
    if "after" in embeddings:
        for name, letter in _LETTER.items():
            a, b = (embeddings[when].get(name, {}).get(5) for when in ("before", "after"))
            if a and b is not None:
                cards.append((f"{b / a - 1:+.0%}", f"{name} coverage of the 5 nearest ({letter}@5)"))
        a, b = (embeddings[when]["similarity"].get(5) for when in ("before", "after"))
        if a and b is not None:
            cards.append((f"{b / a - 1:+.1%}", "similarity of the 5 nearest"))
    for name, letter in _LETTER.items():
        if (b := embeddings.get("here", {}).get(name, {}).get(5)) is not None:
            cards.append((f"{b:.1%}", f"of an item's 5 nearest are in its {name} ({letter}@5)"))
    if report.get("reward", {}).get("held_out"):
        auc = report["reward"]["held_out"]["density"]["auc_near_far"]
        cards.append((_number(auc), "AUC of near against far, unseen items"))
    cards.append((f"{report['prompts']['same_tokens']:.1%}", "of the prompts read like another one to the encoder"))
    file = folder / "report.html"
    subtitle = f"{report['items']:,} items"
    page.write_page(file, f"placerank · align · {report['rung']}", subtitle, cards, sections)
    return file


def learning_curves(lines: dict[str, list[dict[str, float]]]) -> Figure:
    """A row a step that trained: its loss, and what it is about."""
    second = {
        "behaviour": ("cosine_of_pairs",),
        "reward": ("spearman_density", "spearman_uniform"),
        "gdpo": ("margin", "cosine_to_reference"),
    }
    title = {"behaviour": "behaviour", "reward": "reward model", "gdpo": "G-DPO"}
    drawn = [name for name in second if lines.get(name)]
    figure = Figure(figsize=(11, 2.9 * len(drawn)), layout="constrained")
    for row, name in enumerate(drawn):
        found = lines[name]
        x = np.array([line.get("step", line.get("epoch", 0)) for line in found])
        for column, names in enumerate((("loss",), second[name])):
            ax = figure.add_subplot(len(drawn), 2, 2 * row + column + 1)
            for colour, key in enumerate(n for n in names if n in found[0]):
                y = np.array([math.nan if line[key] is None else line[key] for line in found], float)
                width = max(1, len(y) // 20)
                if width > 1:
                    ax.plot(x, y, f"C{colour}", alpha=0.25, linewidth=0.7)
                    x_, y = x[width - 1 :], np.convolve(y, np.ones(width) / width, "valid")
                else:
                    x_ = x
                ax.plot(
                    x_, y, f"C{colour}", label=key.replace("_", " "), marker="o" if len(y) < 12 else "", markersize=4
                )
            ax.set_title(f"{title[name]}: {', '.join(n.replace('_', ' ') for n in names)}")
            ax.set_xlabel("epoch" if name == "reward" else "step")
            ax.grid(axis="y")
            if len(names) > 1:
                ax.legend()
    return figure


def _prompts(report: dict[str, Any]) -> str:
    found = report["prompts"]
    lead = (
        "Items whose prompts become the same tokens have the same vector. A token is unknown where the encoder's "
        "vocabulary has no piece for a word, as in scripts that it was not made for."
    )
    if "pictures" in report:
        lead += f" {report['pictures']:,} of {report['items']:,} items are shown with a picture."
    head = ["different prompts", "different rows of tokens", "same tokens as another", "with unknown tokens"]
    shares = [f"{found[name]:.1%}" for name in ("same_tokens", "unknown_tokens")]
    body = page.warning(found["warning"]) if found["warning"] else ""
    body += page.table(head, [[f"{found['texts']:,}", f"{found['tokens']:,}", *shares]])
    return page.section("What the encoder can tell apart", lead, body)


def _embeddings(report: dict[str, Any]) -> str:
    found = report.get("embeddings", {})
    measured = [when for when in ("before", "after", "here") if found.get(when, {}).get("similarity")]
    if not measured:
        return ""
    head = ["", *(f"K = {k}" for k in found[measured[0]]["similarity"]), "NMI of clusters"]
    body = ""
    for when in measured:
        one = found[when]
        rows = [["similarity", *map(_number, one["similarity"].values()), ""]]
        if "reference_similarity" in one:
            rows.append(["similarity by the encoder before", *map(_number, one["reference_similarity"].values()), ""])
        rows += [
            [f"{name} ({letter}@K)", *map(_number, one[name].values()), _number(one["nmi"].get(name))]
            for name, letter in _LETTER.items()
            if name in one
        ]
        body += page.table(["these embeddings" if when == "here" else when, *head[1:]], rows)
    lead = (
        "Of an item's K nearest by cosine: their mean cosine, and the share in its own province, city and district. "
        "NMI: k-means clusters of the embeddings against the region. "
    )
    if "here" in found:
        lead += "Nothing was trained: this is what the encoder knows of places as it is."
    else:
        moved = _number(found["cosine_before_after"])
        lead += f"The mean cosine of an item's own vectors before and after is {moved}."
    return page.section("What is near in the embeddings", lead, body)


def _reward(report: dict[str, Any]) -> str:
    held_out = report.get("reward", {}).get("held_out")
    if not held_out:
        return ""
    names = {"density": "places by neighbour rank", "uniform": "places anywhere"}
    head = ["lists of", "Spearman", "NDCG", "NDCG by chance", "AUC near, far", "AUC own place"]
    keys = ("spearman", "ndcg", "ndcg_chance", "auc_near_far", "auc_own")
    rows = [[names[name], *(_number(one[key]) for key in keys)] for name, one in held_out.items()]
    lead = (
        f"Does the reward order places by their distance to items that it has not been trained on "
        f"({report['reward']['held_out_items']:,} items)? By chance Spearman is 0 and both AUC are 0.5."
    )
    return page.section("The reward model on unseen items", lead, page.table(head, rows))


def _behaviour(report: dict[str, Any]) -> str:
    held_out = report.get("behaviour", {}).get("held_out")
    if not held_out:
        return ""
    keys = ("recall@10", "mrr", "median_rank", "recall_by_chance")
    head = ["", "recall@10", "MRR", "median rank", "recall by chance"]
    rows = [[when, *(_number(held_out[when][key]) for key in keys)] for when in held_out]
    lead = "Where the partner of an item stands among all items, for pairs that were not trained on."
    return page.section("What is visited together", lead, page.table(head, rows))


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4f}"


def _json_ready(value: Any) -> Any:
    """NaN becomes null."""
    if isinstance(value, dict):
        return {key: _json_ready(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
