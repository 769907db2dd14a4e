"""Does a score order places by distance: measures within lists, beside what a random order gets."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .locations import Lists


def list_measures(scores: Tensor, lists: Lists) -> dict[str, float]:
    """Measures of scores [n, k + 1] on n lists, the item's own place first; each is a mean over lists.

    * ``spearman``: rank correlation of score and nearness among the k other places. Chance: 0.
    * ``ndcg``: gains are the soft labels, of all k + 1 places. ``ndcg_chance``: expected of a random order.
    * ``auc_near_far``: chance that one of the nearest third of the others is above one of the farthest third; 0.5.
    * ``auc_own``: chance that the own place is above another; 0.5.

    A list whose others are all equally far says nothing about order and is left out of the first and the third.
    """
    score: NDArray[np.float64] = scores.double().numpy()
    labels, km = lists.labels, lists.km
    order = np.argsort(-score, axis=1, kind="stable")
    discount = 1 / np.log2(np.arange(2, score.shape[1] + 2))
    ideal = (np.sort(labels, axis=1)[:, ::-1] * discount).sum(1)
    return {
        "spearman": _mean(_spearman(score[:, 1:], -km[:, 1:])),
        "ndcg": _mean((np.take_along_axis(labels, order, 1) * discount).sum(1) / ideal),
        "ndcg_chance": _mean(labels.mean(1) * discount.sum() / ideal),
        "auc_near_far": _mean(_near_far(score[:, 1:], km[:, 1:])),
        "auc_own": _mean(_above(score[:, :1, None], score[:, None, 1:])),
    }


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's correlation of the ranks of each row; NaN where one is constant."""
    from scipy.stats import rankdata  # 1.6 s of processor time, which other steps of align need not pay

    x, y = (rankdata(values, axis=1) for values in (a, b))
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        result: NDArray[np.float64] = (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))
    # Scores without any order tell nothing; distances without order ask nothing.
    return np.where((np.ptp(a, axis=1) == 0) & (np.ptp(b, axis=1) > 0), 0.0, result)


def _near_far(score: NDArray[np.float64], km: NDArray[np.float64]) -> NDArray[np.float64]:
    third = max(1, score.shape[1] // 3)
    if score.shape[1] < 2:
        return np.full(len(score), np.nan)
    order = np.argsort(km, axis=1, kind="stable")
    ordered = np.take_along_axis(score, order, 1)
    result = _above(ordered[:, :third, None], ordered[:, None, -third:])
    return np.where(np.ptp(km, axis=1) > 0, result, np.nan)


def _above(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((a > b) + 0.5 * (a == b)).reshape(len(a), -1).mean(1)


def _mean(values: Any) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
