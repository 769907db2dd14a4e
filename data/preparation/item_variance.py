"""How much do places differ beyond what their features say? It tells whether the plug-ins for items will pay.

A ranker that sees category, brand, region, price, distance, hour and the user's own visits leaves open how much better
or worse each place does than these say. Its own row has to learn that, from its own visits, which few places have
many of. AKT-Rec and ReST's contrast lend a place what others know: they gained where there was much to learn, and
brought nothing where there was not (docs/papers.md, "What decides whether they pay").

The model: a candidate's label ~ Bernoulli(sigmoid(f + u)), with f a sum of one effect for each value of each feature
and u of its item, of mean 0 and variance v. f is fitted by Newton steps, feature by feature; v by moments: over pairs
of different candidates of the same item, E[(y - p)(y' - p')] = v p(1 - p) p'(1 - p') to first order. Items are weighted
as for a mean of random effects, so that heads don't decide alone.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...kernels.earth import EARTH_RADIUS_KM, on_sphere
from ..requests import Lists

SAMPLES = 200_000
"""Candidates that are looked at, at most; whole requests, from row groups all over the training split."""
PAYS = 0.25
"""From this variance on the plug-ins gained, over datasets; below it the mean was even (docs/papers.md)."""
_ROWS = ("category_row", "brand_row", "province_row", "city_row", "district_row", "price_row")
_OF_CANDIDATES = ("item_row", "label", "visits")
_SWEEPS, _PRIOR, _STEP = 4, 1.0, 2.0  # of the fit: passes, prior precision of an effect, longest step of one
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class ItemVariance(NamedTuple):
    """Variance of items beyond their features, in squared log-odds, its standard error, and of how many samples."""

    variance: float
    error: float
    samples: int


def item_variance(folder: Path, samples: int = SAMPLES) -> ItemVariance | None:
    """Of the training split of a prepared folder on a disk; None where no item has two samples, or labels don't differ.

    Costs a quarter of a second of processor time and some 40 MB at most.
    """
    requests = _requests(folder, samples)
    if requests is None:
        return None
    item, label, features = _features(folder, requests)
    if label.min() == label.max():
        return None
    return moments(item, label, fit_features(label, features))


def moments(item: Ints, label: Floats, p: Floats) -> ItemVariance | None:
    """The variance of item effects, given what the features expect.

    Args:
        item, label, p: of each sample its item, 0 or 1, and the expected probability of 1: [N].
    """
    rest, information = label - p, p * (1 - p)
    over = np.bincount(item, rest) ** 2 - np.bincount(item, rest**2)  # sums over ordered pairs of different samples
    under = np.bincount(item, information) ** 2 - np.bincount(item, information**2)
    of_item = np.bincount(item, information)[under > 0]
    over, under = over[under > 0], under[under > 0]
    if not len(under):
        return None
    found = 0.0
    for _ in range(20):  # the weights hang on what they lead to; this converges in a few rounds
        weight = 1 / (1 + max(found, 0.0) * of_item) ** 2
        found = float((weight * over).sum() / (weight * under).sum())
    error = np.sqrt(((weight * (over - found * under)) ** 2).sum()) / (weight * under).sum()
    return ItemVariance(found, float(error), len(label))


def fit_features(label: Floats, features: list[Ints]) -> Floats:
    """Expected probability of 1 for each sample, of an additive logistic model.

    Args:
        label: 0 or 1, [N], both there.
        features: of each its value's number from 0 on, [N].
    """
    logit = np.full(len(label), np.log(label.mean() / (1 - label.mean())))
    p = np.full(len(label), label.mean())
    effects = [np.zeros(int(feature.max()) + 1) for feature in features]
    for _ in range(_SWEEPS):
        for feature, effect in zip(features, effects, strict=True):
            gradient = np.bincount(feature, label - p, len(effect)) - _PRIOR * effect
            curvature = np.bincount(feature, p * (1 - p), len(effect)) + _PRIOR
            step = np.clip(gradient / curvature, -_STEP, _STEP)
            effect += step
            logit += step[feature]
            p = 1 / (1 + np.exp(-logit))
    return p


def _features(folder: Path, requests: pa.Table) -> tuple[Ints, Floats, list[Ints]]:
    """Item, label and features of each sample of some requests."""
    candidates = Lists.of_table(requests, _OF_CANDIDATES)
    items = pq.read_table(folder / "catalog.parquet", columns=["lat", "lon", "category_path", *_ROWS])
    item = candidates.values["item_row"].astype(np.int64)
    each = np.repeat(np.arange(len(requests)), np.diff(candidates.offsets))
    here = on_sphere(requests["lat"], requests["lon"])[each]
    there = on_sphere(items["lat"], items["lon"])[item]
    km = 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(np.linalg.norm(here - there, axis=1) / 2, 1))
    distance = np.nan_to_num(np.clip(2 * np.log2(km + 0.05) + 11, 1, 31), nan=0).astype(np.int64)
    visits = np.minimum(np.log2(candidates.values["visits"] + 1.0), 7).astype(np.int64)
    hour = requests["time"].to_numpy()[each] // 3600 % 24
    path = items["category_path"].combine_chunks()
    top = pc.fill_null(pc.list_element(pc.list_slice(path, 0, 1, return_fixed_size_list=True), 0), 0).to_numpy()
    rows = [items[name].to_numpy().astype(np.int64)[item] for name in _ROWS]
    return item, candidates.values["label"].astype(np.float64), [*rows, distance, visits, top[item] * 24 + hour]


def _requests(folder: Path, samples: int) -> pa.Table | None:
    """Whole requests of at most so many samples, from row groups all over the split; None: it has none."""
    files = [pq.ParquetFile(path) for path in sorted((folder / "train").glob("*.parquet"))]
    groups = [(file, n) for file in files for n in range(file.num_row_groups)]
    parts: list[pa.Table] = []
    found = 0
    for at in np.random.default_rng(0).permutation(len(groups)):
        file, n = groups[at]
        table = file.read_row_group(n, columns=["time", "lat", "lon", *_OF_CANDIDATES])
        ends = pc.cumulative_sum(pc.list_value_length(table["item_row"])).to_numpy()
        room = samples - found if parts else max(samples, int(ends[0]))
        whole = int(np.searchsorted(ends, room, side="right"))
        if not whole:
            break
        parts.append(table.slice(0, whole))
        found += int(ends[whole - 1])
    return pa.concat_tables(parts).combine_chunks() if parts else None
