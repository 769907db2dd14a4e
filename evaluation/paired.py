"""Is one better than the other, on the same seeds and the same requests?"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

RESAMPLES = 2_000


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval; NaN where there is none."""

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of 0, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1); the spread of one value is NaN."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def paired_t(differences: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval for the mean of paired differences, one a seed. One seed has no interval.

    It answers for other seeds (initial weights, order of samples, codebooks), on these requests.
    """
    mean, spread = mean_and_spread(differences)
    count = len(differences)
    half = math.nan if count < 2 else stats.t.ppf((1 + level) / 2, count - 1) * spread / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def paired_bootstrap(
    differences: ArrayLike, resamples: int = RESAMPLES, seed: int = 0, level: float = 0.95
) -> Interval:
    """Percentile interval for the mean of paired differences [N], one a request, by drawing requests anew.

    It answers for other requests, with these models.
    """
    values: NDArray[np.float64] = np.asarray(differences, np.float64)
    if not len(values):
        return Interval(math.nan, math.nan, math.nan)
    means = [values[drawn].mean() for drawn in _drawn(len(values), resamples, seed)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def ratio_bootstrap(over: ArrayLike, under: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The ratio of two means over the same requests [N], with a 95 % percentile interval by drawing requests anew.

    It answers for other requests, with these models. NaN where ``under`` has a mean of 0, or nothing in it.
    """
    a, b = np.asarray(over, np.float64), np.asarray(under, np.float64)
    if not len(b) or not b.mean():
        return Interval(math.nan, math.nan, math.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = [a[drawn].mean() / b[drawn].mean() for drawn in _drawn(len(b), resamples, seed)]
        low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(float(a.mean() / b.mean()), float(low), float(high))


def _drawn(count: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Requests drawn anew, as many as there are, with replacement."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, count, count) for _ in range(resamples))
