"""Scores that need no model, and the oracle: what a ranker has to beat, and what it cannot.

They score the same rows as the model, so that every metric and slice of them can be put beside the model's.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..training.predictions import Predictions
from .breakdown import ItemFacts

FARTHEST_KM = 20_037.6  # half of the equator: no place is farther


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A named column of scores.

    Attributes:
        name: key in ``metrics.json``.
        title: for people.
        score: [N], higher = better; only its order counts.
        probability: [N] in [0, 1], None for scores that are no probabilities.
    """

    name: str
    title: str
    score: NDArray[np.float64]
    probability: NDArray[np.float64] | None = None


def popularity(predictions: Predictions, items: ItemFacts) -> NDArray[np.float64]:
    """[N] positives of the item in training."""
    return items.positives[predictions.item_row].astype(np.float64)


def nearest(predictions: Predictions, items: ItemFacts) -> NDArray[np.float64]:
    """[N] minus the distance from the request to the item in km.

    Where the request has no place all its candidates tie; an item without one is behind all others.
    """
    return -np.nan_to_num(items.distance_km(predictions), nan=FARTHEST_KM)


def visit_counter(predictions: Predictions, items: ItemFacts) -> NDArray[np.float64]:
    """[N] the user's earlier visits of the item; equal counts are ordered by popularity."""
    popular = popularity(predictions, items)
    return predictions.visits + popular / (popular.max(initial=0.0) + 1.0)


def model(predictions: Predictions) -> Scorer:
    """The ranker itself."""
    return Scorer(
        name="model",
        title="Model",
        score=predictions.logit.astype(np.float64),
        probability=predictions.predicted(),
    )


def oracle(predictions: Predictions) -> Scorer | None:
    """The true probability, the best that any scorer can do; None where the source does not know it."""
    if predictions.probability is None or np.isnan(predictions.probability).any():
        return None
    true = predictions.probability.astype(np.float64)
    return Scorer(name="oracle", title="Oracle (true probability)", score=true, probability=true)


def baselines(predictions: Predictions, items: ItemFacts) -> list[Scorer]:
    """The scorers that need no model; "nearest" only where some request has a place."""
    found = [
        Scorer(name="popularity", title="Most popular", score=popularity(predictions, items)),
        Scorer(name="visits", title="Most visited by the user", score=visit_counter(predictions, items)),
    ]
    if not np.isnan(predictions.lat).all():
        found.append(Scorer(name="nearest", title="Nearest", score=nearest(predictions, items)))
    return found
