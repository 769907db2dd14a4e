"""Metrics of a run with its requests drawn anew many times; every run of a comparison meets the same draws.

A draw gives each request a number of times that it is there. AUC, GAUC and the AUC of slices are ranks over all rows,
so they are computed anew for each draw, by one pass over rows that are sorted once; what is a mean over requests is a
matrix product.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.threads import jit, parallel_rows
from ..training.metrics import nats, ranking_of_requests
from ..training.predictions import Predictions
from .breakdown import MIN_OF_A_CLASS, MIN_ROWS, Slicing

METRICS = {
    "auc": "AUC",
    "gauc": "GAUC",
    "ndcg@10": "NDCG@10",
    "hit@1": "Hit@1",
    "hit@10": "Hit@10",
    "log_loss": "log-loss",
}
"""What is compared, with its headings."""
_BLOCK = 8_000_000  # counts of requests held at once


@jit()
def _auc_loop(start, stop, request, positive, ends, groups, weights, mean, out):  # type: ignore[no-untyped-def]
    """AUC of each group for each draw; ``mean``: their mean, weighted by rows, into out[:, 0]."""
    for b in range(start, stop):
        total, rows = 0.0, 0.0
        for g in range(len(groups) - 1):
            above, negatives, positives, tied_positives, tied_negatives = 0.0, 0.0, 0.0, 0.0, 0.0
            for i in range(groups[g], groups[g + 1]):
                w = weights[b, request[i]]
                if positive[i]:
                    tied_positives += w
                else:
                    tied_negatives += w
                if ends[i]:
                    above += tied_positives * (negatives + 0.5 * tied_negatives)
                    negatives += tied_negatives
                    positives += tied_positives
                    tied_positives, tied_negatives = 0.0, 0.0
            pairs = positives * negatives
            auc = above / pairs if pairs > 0 else np.nan
            if not mean:
                out[b, g] = auc
            elif pairs > 0:
                total += auc * (positives + negatives)
                rows += positives + negatives
        if mean:
            out[b, 0] = total / rows if rows > 0 else np.nan


class _Ranks:
    """Rows sorted by group and score, once.

    Args:
        group: [N], 0 to groups - 1, negative = in none.
        request: [N], 0 to requests - 1.
        mean: whether the groups' mean is wanted, not each.
    """

    def __init__(
        self,
        group: NDArray[np.int64],
        groups: int,
        request: NDArray[np.int64],
        label: NDArray[Any],
        score: NDArray[Any],
        mean: bool = False,
    ) -> None:
        order = np.lexsort((score, group))
        order = order[np.searchsorted(group[order], 0) :]
        group, score = group[order], score[order]
        self.groups, self.mean = np.searchsorted(group, np.arange(groups + 1)), mean
        self.request, self.positive = request[order].astype(np.int32), label[order] == 1
        self.ends = np.ones(len(order), bool)
        self.ends[:-1] = (group[1:] != group[:-1]) | (score[1:] != score[:-1])

    def auc(self, weights: NDArray[np.uint8]) -> NDArray[np.float64]:
        """[B, groups], or [B, 1] of the mean; NaN where a draw has one class."""
        out = np.empty((len(weights), 1 if self.mean else len(self.groups) - 1))
        rows = self.request, self.positive, self.ends, self.groups
        parallel_rows(_auc_loop, len(weights), *rows, weights, self.mean, out)
        return out


def draws(requests: int, count: int, seed: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Blocks [B, requests] of how often each request is in a draw; ``count`` draws in all, the same for each caller.

    The first draw is not one: every request is there once.
    """
    rng, size = np.random.default_rng(seed), max(_BLOCK // max(requests, 1), 1)
    block = [np.ones(requests, np.uint8)]
    for _ in range(count):
        if len(block) == size:
            yield np.stack(block)
            block = []
        counts = np.bincount(rng.integers(0, requests, requests), minlength=requests)
        block.append(np.minimum(counts, 255).astype(np.uint8))
    yield np.stack(block)


@dataclass(frozen=True)
class Measured:
    """Metrics of one run.

    Attributes:
        overall: by name of ``METRICS``, [1 + draws]: of all requests as they are, then of each draw.
        slices: by slicing, [1 + draws, labels] the AUC within each slice; NaN where it is too small.
    """

    overall: dict[str, NDArray[np.float64]]
    slices: dict[str, NDArray[np.float64]]


def measure_draws(p: Predictions, slicings: list[Slicing], count: int, odds: bool = True) -> Measured:
    """Measure a run's rows for each draw of ``draws``.

    Args:
        p: its rows.
        slicings: of them.
        count: number of draws.
        odds: whether the model's logits are log-odds of a positive; else there is no log-loss.
    """
    request = np.unique(p.request, return_inverse=True)[1]
    requests, everywhere = int(request.max(initial=-1)) + 1, np.zeros(len(p), np.int64)
    user = np.unique(p.user_index, return_inverse=True)[1]
    ranks = {
        "auc": _Ranks(everywhere, 1, request, p.label, p.logit),
        "gauc": _Ranks(user, int(user.max(initial=-1)) + 1, request, p.label, p.logit, mean=True),
    }
    of_slices = {s.name: _Ranks(_large_enough(s, p.label), len(s.labels), request, p.label, p.logit) for s in slicings}
    ranking = ranking_of_requests(request, p.label, p.logit)
    known = ~np.isnan(ranking["ndcg@10"])
    # sums and counts a request, whose ratio over all requests a metric is
    ratios = {name: (np.where(known, ranking[name], 0.0), known.astype(float)) for name in ranking if name in METRICS}
    if odds:
        loss = nats(p.label == 1, p.predicted())
        rows = np.bincount(request, minlength=requests).astype(float)
        ratios["log_loss"] = (np.bincount(request, weights=loss, minlength=requests), rows)
    overall: dict[str, list[NDArray[np.float64]]] = {name: [] for name in METRICS if name in ranks or name in ratios}
    slices: dict[str, list[NDArray[np.float64]]] = {name: [] for name in of_slices}
    for weights in draws(requests, count):
        for name, of_name in ranks.items():
            overall[name].append(of_name.auc(weights)[:, 0])
        for name, (total, each) in ratios.items():
            with np.errstate(invalid="ignore", divide="ignore"):
                overall[name].append((weights @ total) / (weights @ each))
        for name, of_slice in of_slices.items():
            slices[name].append(of_slice.auc(weights))
    return Measured(
        {name: np.concatenate(values) for name, values in overall.items()},
        {name: np.concatenate(values) for name, values in slices.items()},
    )


def _large_enough(slicing: Slicing, label: NDArray[Any]) -> NDArray[np.int64]:
    """The codes of a slicing, -1 for slices that are too small to say anything and for those that aren't shown."""
    inside = slicing.code >= 0
    size = np.bincount(slicing.code[inside], minlength=len(slicing.labels))
    positives = np.bincount(slicing.code[inside], weights=label[inside] == 1, minlength=len(slicing.labels))
    enough = (size >= MIN_ROWS) & (np.minimum(positives, size - positives) >= MIN_OF_A_CLASS)
    shown = np.zeros(len(size), bool)
    shown[np.argsort(-size, kind="stable")[: slicing.shown]] = True
    return np.where(inside & (enough & shown)[slicing.code], slicing.code, -1)
