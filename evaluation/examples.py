"""Single items and requests of an evaluation: those that the model is worst at, and lists as people saw them."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reports import page
from ..training.metrics import grouped_auc, inside, nats
from ..training.predictions import Predictions
from .breakdown import ItemFacts

ENOUGH = 30  # candidates of an item, to be among the worst
WORST = 12
EXAMPLES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of requests in the order of their AUC
LISTED = 12  # candidates of an example that are listed, at most


def calibrated(p: Predictions) -> NDArray[np.float64]:
    """[N] probabilities sigmoid(a + b logit), with a and b that fit these rows best (Platt): what is wrong with all
    predictions alike is then no item's own. Without both classes, the predictions as they are.
    """
    z, y = p.logit.astype(np.float64), p.label.astype(np.float64)
    if not 0 < y.sum() < len(y):
        return p.predicted()
    scale = z.std() or 1.0
    x = np.stack([np.ones_like(z), (z - z.mean()) / scale], axis=1)
    w = np.array([math.log(y.mean() / (1 - y.mean())), 0.0])
    for _ in range(25):  # Newton's; a ridge keeps it from running off where the classes part cleanly
        q = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        hessian = (x * (q * (1 - q))[:, None]).T @ x + 1e-6 * len(y) * np.eye(2)
        step = np.linalg.solve(hessian, x.T @ (q - y))
        w -= np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    found: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
    return found


def worst_items(p: Predictions, items: ItemFacts, count: int = WORST, enough: int = ENOUGH) -> list[dict[str, Any]]:
    """The items whose log-loss is farthest above what it would be if the calibrated predictions were right.

    Returns:
        For each, the worst first: ``row``, ``item`` (raw id), ``name``, ``category``, ``city``, ``candidates``,
        ``positives``, ``predicted`` (positives, by calibrated predictions), ``log_loss`` and ``expected`` (nats a
        candidate), and ``deviations``: by how many standard deviations of chance the loss is above. Items with fewer
        candidates than ``enough``, unknown items and those with less loss than expected are left out.
    """
    q, y, row, n = inside(calibrated(p)), p.label == 1, p.item_row, len(items)
    log_odds = np.log(q / (1 - q))
    loss, entropy = nats(y, q), -q * np.log(q) - (1 - q) * np.log(1 - q)
    seen = np.bincount(row, minlength=n)
    sums = {
        name: np.bincount(row, weights=values, minlength=n)
        for name, values in (("loss", loss), ("entropy", entropy), ("variance", q * (1 - q) * log_odds**2))
    }
    predicted, positives = np.bincount(row, weights=q, minlength=n), np.bincount(row, weights=y, minlength=n)
    with np.errstate(invalid="ignore", divide="ignore"):
        deviations = (sums["loss"] - sums["entropy"]) / np.sqrt(sums["variance"])
    known = (seen >= enough) & (deviations > 0) & (np.arange(n) > 0)
    order = np.lexsort((np.arange(n), -np.where(known, deviations, -np.inf)))[: min(count, int(known.sum()))]
    return [
        {
            "row": int(i),
            "item": str(items.id[i]),
            "name": str(items.name[i]),
            "category": items.categories[items.category[i]],
            "city": items.cities[items.city[i]],
            "candidates": int(seen[i]),
            "positives": int(positives[i]),
            "predicted": float(predicted[i]),
            "log_loss": float(sums["loss"][i] / seen[i]),
            "expected": float(sums["entropy"][i] / seen[i]),
            "deviations": float(deviations[i]),
        }
        for i in order
    ]


def example_requests(p: Predictions, shares: Sequence[float] = EXAMPLES) -> list[tuple[NDArray[np.int64], float]]:
    """Requests from those that the model puts in order badly to those that it does well.

    Args:
        p: the rows.
        shares: where in that order to take one: 0.5 is the median.

    Returns:
        Rows of each request, the highest score first, and its AUC. Requests of one class have none and are left out, as
        are those of fewer than five candidates where there are others; of equal ones that with the lowest number is
        taken.
    """
    by_request = grouped_auc(p.request, p.label, p.logit)
    defined = ~np.isnan(by_request.auc)
    if (defined & (by_request.rows >= 5)).any():
        defined &= by_request.rows >= 5
    which = np.flatnonzero(defined)
    if not len(which):
        return []
    which = which[np.argsort(by_request.auc[which], kind="stable")]
    taken = dict.fromkeys(which[min(int(share * len(which)), len(which) - 1)] for share in shares)
    found = []
    for i in taken:
        rows = np.flatnonzero(p.request == by_request.group[i])
        found.append((rows[np.argsort(-p.logit[rows], kind="stable")], float(by_request.auc[i])))
    return found


def worst_section(worst: Sequence[dict[str, Any]]) -> str:
    """The part of the report on ``worst_items``; empty where there are none."""
    if not worst:
        return ""
    lead = (
        f"Items with at least {ENOUGH} candidates whose log-loss is farthest above what it would be if the predictions "
        "were right, in standard deviations of chance. Predictions are calibrated on these rows first, so what is "
        "wrong with all of them alike is no item's own. Something that the features don't say sets such an item apart."
    )
    head = ["item", "id", "category", "city", "candidates", "positives", "predicted", "log-loss", "expected", "beyond"]
    rows: list[list[str | page.Cell]] = [
        [
            page.Cell(text=w["name"] or f"item {w['item']}", kind="strong wide"),
            w["item"],
            w["category"],
            w["city"],
            f"{w['candidates']:,}",
            f"{w['positives']:,}",
            f"{w['predicted']:.1f}",
            f"{w['log_loss']:.3f}",
            f"{w['expected']:.3f}",
            f"{w['deviations']:.1f} sd",
        ]
        for w in worst
    ]
    return page.section("Items that it is worst at", lead, page.table(head, rows, left=("id", "category", "city")))


def examples_section(p: Predictions, items: ItemFacts) -> str:
    """The part of the report with ``example_requests``; empty where there are none."""
    found = example_requests(p)
    if not found:
        return ""
    lead = (
        "Requests from those that the model puts in order worst to those it does best, by the AUC within them: their "
        "candidates by score, with what happened. Behind the last place shown, only candidates that were chosen."
    )
    km, predicted = items.distance_km(p), p.predicted()
    head = ["place", "item", "category", "km", "visits", "probability"]
    head += ["true one"] * (p.probability is not None) + ["chosen"]
    body = ""
    for rows, auc in found:
        first = rows[0]
        when = datetime.fromtimestamp(int(p.time[first]), UTC)
        who = "known user" if p.user_row[first] > 0 else "new user"
        title = f"Request {p.request[first]}: AUC {auc:.2f}, {len(rows)} candidates, {who}, {when:%Y-%m-%d %H:%M} UTC"
        lines: list[list[str | page.Cell]] = []
        for place, i in enumerate(rows, start=1):
            chosen = p.label[i] == 1
            if place > LISTED and not chosen:
                continue
            row = int(p.item_row[i])
            kind = "strong" if chosen else ""
            cells = [
                str(place),
                (items.name[row] or f"item {items.id[row]}") if row else "unknown item",
                items.categories[items.category[row]],
                "–" if math.isnan(km[i]) else f"{km[i]:.1f}",
                str(p.visits[i]),
                f"{predicted[i]:.3f}",
                *([] if p.probability is None else [f"{p.probability[i]:.3f}"]),
            ]
            mark = page.Cell(text="✓", kind="best") if chosen else ""
            lines.append([*(page.Cell(text=text, kind=kind) for text in cells), mark])
        body += page.unfolded(title, page.table(head, lines, left=("item", "category")), shown=not body)
    return page.section("Requests, from worst to best", lead, body)
