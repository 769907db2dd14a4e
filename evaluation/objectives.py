"""Several objectives: what an amount's prediction is worth, and what the first places of each request bring."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reports import page
from ..training.metrics import TOP, amount_auc, amount_ratio, first_places, nan_to_none
from ..training.predictions import Outcomes, Predictions
from .baselines import Scorer

_BINS = 20


def measure_amount(p: Predictions, scorers: Sequence[Scorer], outcomes: Outcomes) -> dict[str, Any]:
    """What ``metrics.json`` says of the amount; null where undefined.

    Returns:
        ``name``; ``auc``: by scorer, the AUC weighted by the amount; where the ranker predicts it also ``calibration``,
        expected over true amounts, and ``curve``, the mean of both in twenty parts of equal size by prediction.
    """
    assert p.amount is not None
    auc = {name: nan_to_none(amount_auc(p.amount, score)) for name, _, score in _orders(p, scorers, outcomes)}
    found: dict[str, Any] = {"name": outcomes.amount, "auc": auc}
    if p.log_amount is not None:
        expected = np.exp(p.log_amount.astype(np.float64))
        parts = np.array_split(np.argsort(expected, kind="stable"), min(_BINS, max(len(p), 1)))
        found["calibration"] = nan_to_none(amount_ratio(p.amount, expected))
        found["curve"] = {
            "predicted": [float(expected[rows].mean()) for rows in parts if len(rows)],
            "observed": [float(p.amount[rows].mean()) for rows in parts if len(rows)],
        }
    return found


def measure_first(p: Predictions, scorers: Sequence[Scorer], outcomes: Outcomes) -> dict[str, Any]:
    """What the first ten places of a request bring, by the order that candidates are put in.

    Returns:
        ``places``; ``orders``: by name, ``title``, the share of places with each label, and the amount a request.
    """
    values = {outcomes.predicted[0]: p.label} | p.labels
    found = {}
    for name, title, score in _orders(p, scorers, outcomes):
        row = {label: nan_to_none(first_places(p.request, score, of).a_place) for label, of in values.items()}
        if p.amount is not None:
            row |= {str(outcomes.amount): nan_to_none(first_places(p.request, score, p.amount).a_request)}
        found[name] = {"title": title, **row}
    return {"places": TOP, "orders": found}


def _orders(
    p: Predictions, scorers: Sequence[Scorer], outcomes: Outcomes
) -> list[tuple[str, str, NDArray[np.float64] | NDArray[np.float32]]]:
    """Name, title and score of each way to order candidates: by every prediction, and by what needs no model."""
    found: list[Any] = [(f"model by {outcomes.predicted[0]}", f"Model, by {outcomes.predicted[0]}", p.logit)]
    found += [(f"model by {name}", f"Model, by {name}", logit) for name, logit in p.logits.items()]
    if p.log_amount is not None:
        found.append((f"model by {outcomes.amount}", f"Model, by {outcomes.amount}", p.log_amount))
    return found + [(s.name, s.title, s.score) for s in scorers if s.name != "model"]


def first_section(first: dict[str, Any], amount: dict[str, Any] | None) -> str:
    """The part of the report that puts all orders side by side."""
    orders = first["orders"]
    columns = [name for name in next(iter(orders.values())) if name != "title"]
    of_amount = amount["name"] if amount else None
    head = [f"{name} a request" if name == of_amount else f"{name} rate" for name in columns]
    body = []
    for name, row in orders.items():
        cells: list[str | page.Cell] = [page.Cell(text=row["title"], kind="strong" if name.startswith("model") else "")]
        for column in columns:
            digits = 2 if column == of_amount else 4
            rivals = [x[column] for n, x in orders.items() if n != "oracle" and x[column] is not None]
            best = name != "oracle" and rivals and row[column] == max(rivals)
            cells.append(page.Cell(text=_text(row[column], digits), kind="best" if best else ""))
        if amount:
            cells.append(_text(amount["auc"][name], 4))
        body.append(cells)
    told = ""
    if amount:
        head.append(f"AUC weighted by {of_amount}")
        told = (
            f" AUC weighted by {of_amount}: the chance that a unit of it is put above a random candidate without any. "
        )
        if "calibration" in amount:
            told += f"Expected over true {of_amount}: {_text(amount['calibration'], 3)}; 1 is right."
    lead = (
        f"What lies in the first {first['places']} places of each request, by what candidates are put in order by. The "
        f"oracle's order is that of the true click, not of what follows it.{told}"
    )
    return page.section(f"The first {first['places']} places", lead, page.table(["", *head], body))


def _text(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
