"""Ranking metrics on NumPy arrays: AUC, GAUC, NDCG@K, Hit@K, log-loss, calibration; those of amounts.

Arrays of one length, one row per scored candidate. ``label`` is 0 or 1. ``score`` is any number that rises
with preference; only its order counts. A metric that the rows do not define (one class only, no rows) is NaN,
never an exception and never a made-up 0.5; ``summarize`` also says why. NaN in scores is an error.

Groups (users, requests, slices) are handled by sorting, without a Python loop, so 100 million rows with 10
million users cost a sort. Whatever is equal in score shares its ranks: AUC counts a tie as half, NDCG and
Hit are expected values over random orders of the ties, so a scorer that says the same for all gets what
chance gets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Array = NDArray[Any]

HIT_AT = (1, 5, 10)
NDCG_AT = 10
TOP = 10
CALIBRATION_BINS = 20
RANKING_METRICS = ("auc", "gauc", "request_auc", "ndcg@10", "hit@1", "hit@5", "hit@10")
PROBABILITY_METRICS = ("log_loss", "calibration", "ece")
ALL_METRICS = RANKING_METRICS + PROBABILITY_METRICS

_PROBABILITY_FLOOR = 1e-7


def _checked(label: Array, score: Array) -> tuple[NDArray[np.bool_], Floats]:
    """Labels as booleans and scores as float64, or an error that says what is wrong with them."""
    label, score = np.asarray(label), np.asarray(score, dtype=np.float64)
    if label.shape != score.shape or label.ndim != 1:
        raise ValueError(
            f"label has shape {label.shape}, score has shape {score.shape}; expected two equal 1-D shapes, "
            "one entry per candidate"
        )
    bad = np.flatnonzero((label != 0) & (label != 1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(label)} labels are neither 0 nor 1, the first is {label[bad[0]]} in row {bad[0]}; "
            "make labels binary before measuring"
        )
    bad = np.flatnonzero(np.isnan(score))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(score)} scores are NaN, the first in row {bad[0]}; expected numbers: "
            "the model diverged (lower the learning rate) or an input was NaN"
        )
    return label.astype(bool), score


def auc(label: Array, score: Array) -> float:
    """Chance that a random positive outscores a random negative, a tie being half; NaN with one class."""
    return grouped_auc(np.zeros(len(label), np.int8), label, score).mean()


def auc_standard_error(auc: float, positives: int, negatives: int) -> float:
    """Standard error of an AUC of independent rows (Hanley and McNeil 1982); NaN with one class."""
    if not positives or not negatives:
        return math.nan
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (q1 - auc * auc) + (negatives - 1) * (q2 - auc * auc)
    return math.sqrt(max(variance, 0.0) / (positives * negatives))


class GroupedAUC(NamedTuple):
    """AUC of every group; all arrays have one entry per distinct group, in ascending order of ``group``."""

    group: Array
    auc: Floats  # NaN where the group has one class
    rows: NDArray[np.int64]
    positives: NDArray[np.int64]

    def mean(self) -> float:
        """Mean over groups with both classes, weighted by rows (impressions); NaN if there is none."""
        defined = ~np.isnan(self.auc)
        return float(np.average(self.auc[defined], weights=self.rows[defined])) if defined.any() else math.nan

    def coverage(self) -> float:
        """Share of the rows that lie in groups with both classes; NaN without rows."""
        total = self.rows.sum()
        return float(self.rows[~np.isnan(self.auc)].sum() / total) if total else math.nan


def _starts(*sorted_keys: Array) -> NDArray[np.int64]:
    """First index of every run of equal keys; empty for empty keys."""
    if not len(sorted_keys[0]):
        return np.empty(0, np.int64)
    new = np.ones(len(sorted_keys[0]), bool)
    new[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in sorted_keys])
    return np.flatnonzero(new)


def _sums(values: Array, starts: NDArray[np.int64]) -> Array:
    """Sum of every run that begins at ``starts``."""
    return np.add.reduceat(values, starts) if len(starts) else np.empty(0, values.dtype)


def grouped_auc(group: Array, label: Array, score: Array) -> GroupedAUC:
    """AUC within every group from the rank sum (Mann-Whitney), ties at their average rank.

    Args:
        group: [N] integers; rows with the same one are compared with each other.
        label, score: [N].
    """
    positive, score = _checked(label, score)
    order = np.lexsort((score, group))
    group, score, positive = np.asarray(group)[order], score[order], positive[order]
    group_start, tie_start = _starts(group), _starts(group, score)
    rows = np.diff(group_start, append=len(group))
    # 1-based average rank of a tie within its group: the middle of the places that it takes
    tie_rows = np.diff(tie_start, append=len(group))
    tie_group = np.searchsorted(group_start, tie_start, side="right") - 1
    rank = tie_start - group_start[tie_group] + (tie_rows + 1) / 2
    tie_positives = _sums(positive.astype(np.int64), tie_start)
    rank_sum = np.bincount(tie_group, weights=rank * tie_positives, minlength=len(rows))
    positives = _sums(positive.astype(np.int64), group_start)
    pairs = positives * (rows - positives)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.where(pairs > 0, (rank_sum - positives * (positives + 1) / 2) / pairs, np.nan)
    return GroupedAUC(group[group_start], value, rows, positives)


def gauc(user: Array, label: Array, score: Array) -> float:
    """AUC within each user, averaged with impressions as weights (Zhou et al., DIN, 2018).

    Users with one class have no AUC and are left out; ``grouped_auc(...).coverage()`` says how many rows count.
    """
    return grouped_auc(user, label, score).mean()


def amount_auc(amount: Array, score: Array) -> float:
    """AUC weighted by amount: chance that a unit of it, drawn evenly over all amounts, is outscored by no random row
    without any, a tie being half; NaN where all rows have an amount, or none has.

    Args:
        amount: [N], 0 or more; rows of 0 are the negatives.
        score: [N].
    """
    amount = _checked_amount(amount)
    positive, score = _checked(amount > 0, score)
    order = np.argsort(score, kind="stable")
    amount, negative, score = amount[order], ~positive[order], score[order]
    start = _starts(score)
    negatives = _sums(negative.astype(np.int64), start)
    below = np.cumsum(negatives) - negatives + negatives / 2
    pairs = amount.sum() * negative.sum()
    return float((_sums(amount, start) * below).sum() / pairs) if pairs > 0 else math.nan


def amount_ratio(amount: Array, expected: Array) -> float:
    """Amount expected in all / amount that came: 1 is right, above 1 promises too much; NaN where none came."""
    total = float(_checked_amount(amount).sum())
    return float(np.asarray(expected, np.float64).sum() / total) if total else math.nan


def _checked_amount(amount: Array) -> Floats:
    amount = np.asarray(amount, np.float64)
    bad = np.flatnonzero(~(np.isfinite(amount) & (amount >= 0)))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(amount)} amounts are not 0 or more, the first is {amount[bad[0]]} in row {bad[0]}"
        )
    return amount


class First(NamedTuple):
    """What lies in the first places of requests: its mean over all places, and a request."""

    a_place: float
    a_request: float


def first_places(request: Array, score: Array, value: Array, places: int = TOP) -> First:
    """How much of a value the first places of each request have, by score; NaN without rows.

    Args:
        request: [N] integers, equal for the candidates of one request.
        score: [N]; ties share their places evenly.
        value: [N], of each candidate: 1 where it was ordered, its amount.
        places: a request of fewer candidates has as many places as those.
    """
    _, score = _checked(np.zeros(len(score)), score)
    if not len(score):
        return First(math.nan, math.nan)
    order = np.lexsort((-score, request))
    request, score, value = np.asarray(request)[order], score[order], np.asarray(value, np.float64)[order]
    request_start, tie_start = _starts(request), _starts(request, score)
    size = np.diff(tie_start, append=len(request))
    above = tie_start - request_start[np.searchsorted(request_start, tie_start, side="right") - 1]
    taken = np.clip(places - above, 0, size)
    total = float((_sums(value, tie_start) * taken / size).sum())
    return First(total / int(taken.sum()), total / len(request_start))


def request_ranking(
    request: Array, label: Array, score: Array, hit_at: Sequence[int] = HIT_AT, ndcg_at: int = NDCG_AT
) -> dict[str, float]:
    """NDCG@K and Hit@K over requests: how high the positives stand among the candidates of their request.

    Args:
        request: [N] integers, equal for the candidates of one request.
        label, score: [N].

    Returns:
        ``ndcg@K`` and ``hit@K`` (some positive among the first K), means over the requests that have both classes
        (the others are the same under every order), and ``requests``, the number of those. NaN if there is none.
    """
    each = ranking_of_requests(request, label, score, hit_at, ndcg_at)
    used = ~np.isnan(each[f"ndcg@{ndcg_at}"])
    means = {name: float(values[used].mean()) if used.any() else math.nan for name, values in each.items()}
    return {"requests": float(used.sum())} | means


def ranking_of_requests(
    request: Array, label: Array, score: Array, hit_at: Sequence[int] = HIT_AT, ndcg_at: int = NDCG_AT
) -> dict[str, Floats]:
    """What ``request_ranking`` takes the means of, by request in ascending order; NaN where one has one class.

    Ties: the expected value over random orders within each tie. For NDCG that is scikit-learn's ``ndcg_score``;
    for Hit@K a tie of m candidates with t positives that has s < m places left of K hits with the hypergeometric
    chance 1 - C(m-t, s) / C(m, s).
    """
    positive, score = _checked(label, score)
    order = np.lexsort((-score, request))
    request, score, positive = np.asarray(request)[order], score[order], positive[order]
    request_start, tie_start = _starts(request), _starts(request, score)
    rows = np.diff(request_start, append=len(request))
    positives = _sums(positive.astype(np.int64), request_start)
    used = (positives > 0) & (positives < rows)
    nothing = np.full(len(rows), math.nan)
    found = {name: nothing.copy() for name in (f"ndcg@{ndcg_at}", *(f"hit@{k}" for k in hit_at))}
    if not used.any():
        return found

    size = np.diff(tie_start, append=len(request))  # m
    tie_request = np.searchsorted(request_start, tie_start, side="right") - 1
    above = tie_start - request_start[tie_request]  # candidates strictly above the tie
    tie_positives = _sums(positive.astype(np.int64), tie_start)  # t

    # gain[i] = sum of the discounts of the first i places
    gain = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(ndcg_at) + 2))])
    expected = (gain[np.minimum(above + size, ndcg_at)] - gain[np.minimum(above, ndcg_at)]) / size
    dcg = np.bincount(tie_request, weights=expected * tie_positives, minlength=len(rows))
    ideal = gain[np.minimum(positives, ndcg_at)]
    found[f"ndcg@{ndcg_at}"][used] = dcg[used] / ideal[used]

    for k in hit_at:
        places = np.clip(k - above, 0, size)
        miss = np.ones(len(size))
        for j in range(k):  # drawing the places one by one: no positive among them
            draws = j < places
            miss = np.where(draws, miss * np.maximum(size - tie_positives - j, 0) / np.maximum(size - j, 1), miss)
        missed = np.multiply.reduceat(miss, np.searchsorted(tie_request, np.arange(len(rows))))
        found[f"hit@{k}"][used] = 1 - missed[used]
    return found


def inside(probability: Floats) -> Floats:
    """Probabilities clipped to [1e-7, 1 - 1e-7]: one wrong certainty costs 16 nats, not infinity."""
    found: Floats = np.clip(probability, _PROBABILITY_FLOOR, 1 - _PROBABILITY_FLOOR)
    return found


def nats(positive: NDArray[np.bool_], probability: Floats) -> Floats:
    """Negative log-likelihood of each row, [N], of probabilities as ``inside`` has them."""
    p = inside(probability)
    found: Floats = -np.log(np.where(positive, p, 1 - p))
    return found


def log_loss(label: Array, probability: Array) -> float:
    """Mean negative log-likelihood in nats, see ``nats``; NaN without rows."""
    positive, probability = _checked(label, probability)
    _check_probability(probability)
    return float(nats(positive, probability).mean()) if len(positive) else math.nan


def calibration_ratio(label: Array, probability: Array) -> float:
    """Predicted positives / true positives: 1 is right, above 1 promises too much; NaN without positives."""
    positive, probability = _checked(label, probability)
    _check_probability(probability)
    return float(probability.sum() / positive.sum()) if positive.any() else math.nan


class Reliability(NamedTuple):
    """Reliability curve; arrays have one entry per non-empty bin, in ascending order of probability."""

    predicted: Floats  # mean predicted probability
    observed: Floats  # share of positives
    rows: NDArray[np.int64]

    def error(self) -> float:
        """Expected calibration error: mean |predicted - observed| weighted by rows; NaN without rows."""
        if not len(self.rows):
            return math.nan
        return float(np.average(np.abs(self.predicted - self.observed), weights=self.rows))


def reliability(label: Array, probability: Array, bins: int = CALIBRATION_BINS) -> Reliability:
    """Mean prediction against share of positives in bins of equal mass (quantiles of the prediction).

    Equal predictions always share a bin, so there may be fewer bins than asked for.
    """
    positive, probability = _checked(label, probability)
    _check_probability(probability)
    if not len(positive):
        return Reliability(np.empty(0), np.empty(0), np.empty(0, np.int64))
    edges = np.quantile(probability, np.linspace(0, 1, bins + 1))[1:-1]
    index = np.searchsorted(edges, probability)
    rows = np.bincount(index, minlength=bins)
    full = rows > 0
    predicted = np.bincount(index, weights=probability, minlength=bins)[full] / rows[full]
    observed = np.bincount(index, weights=positive, minlength=bins)[full] / rows[full]
    return Reliability(predicted, observed, rows[full])


def _check_probability(probability: Floats) -> None:
    if len(probability) and not (probability.min() >= 0 and probability.max() <= 1):
        raise ValueError(
            f"probabilities range over [{probability.min():.4g}, {probability.max():.4g}], expected [0, 1]; "
            "apply the sigmoid to logits first"
        )


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Metrics of one scorer on one set of rows.

    Attributes:
        values: metric name -> value, NaN where the rows do not define it.
        undefined: metric name -> why it is NaN.
        rows, positives, users, requests: how much was measured; ``requests`` counts those with both classes.
        gauc_coverage: share of the rows that belong to users with both classes.
    """

    values: dict[str, float]
    undefined: dict[str, str] = field(default_factory=dict)
    rows: int
    positives: int
    users: int
    requests: int
    gauc_coverage: float

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: NaN as null, the reasons beside it."""
        counts = {"rows": self.rows, "positives": self.positives, "users": self.users, "requests": self.requests}
        values = {name: nan_to_none(value) for name, value in self.values.items()}
        return values | counts | {"gauc_coverage": nan_to_none(self.gauc_coverage), "undefined": self.undefined}


def nan_to_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _why_undefined(name: str, rows: int, positives: int) -> str:
    if not rows:
        return "no rows"
    if name in RANKING_METRICS or name == "calibration":
        if not positives:
            return "no positives"
        if positives == rows:
            return "no negatives"
    if name == "gauc":
        return "no user has both a positive and a negative"
    return "no request has both a positive and a negative"


def summarize(
    *,
    label: Array,
    score: Array,
    user: Array,
    request: Array,
    probability: Array | None = None,
    metrics: Sequence[str] = ALL_METRICS,
) -> Summary:
    """All metrics of one scorer.

    Args:
        label, score: [N].
        user, request: [N] integers: groups of GAUC and of NDCG/Hit.
        probability: [N] in [0, 1]; None for scores that are no probabilities: then log-loss and
            calibration are not measured.
        metrics: which ones, of ``ALL_METRICS``.
    """
    if unknown := set(metrics) - set(ALL_METRICS):
        raise ValueError(f"unknown metrics {sorted(unknown)}; expected some of {', '.join(ALL_METRICS)}")
    wanted = [m for m in metrics if probability is not None or m not in PROBABILITY_METRICS]
    label = np.asarray(label)
    by_user = grouped_auc(user, label, score)
    values: dict[str, float] = {}
    requests = 0
    if "auc" in wanted:
        values["auc"] = auc(label, score)
    if "gauc" in wanted:
        values["gauc"] = by_user.mean()
    if "request_auc" in wanted:
        values["request_auc"] = grouped_auc(request, label, score).mean()
    if any(m.startswith(("ndcg", "hit")) for m in wanted):
        ranking = request_ranking(request, label, score)
        requests = int(ranking["requests"])
        values |= {m: ranking[m] for m in wanted if m in ranking}
    if probability is not None:
        if "log_loss" in wanted:
            values["log_loss"] = log_loss(label, probability)
        if "calibration" in wanted:
            values["calibration"] = calibration_ratio(label, probability)
        if "ece" in wanted:
            values["ece"] = reliability(label, probability).error()
    rows, positives = len(label), int(np.count_nonzero(label))
    return Summary(
        values=values,
        undefined={m: _why_undefined(m, rows, positives) for m, v in values.items() if math.isnan(v)},
        rows=rows,
        positives=positives,
        users=len(by_user.group),
        requests=requests,
        gauc_coverage=by_user.coverage(),
    )
