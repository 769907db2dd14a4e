"""The variance of items beyond their features: against pairs one by one, worlds of known variance, and ugly inputs."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.manifest import read_manifest
from placerank.data.preparation.item_variance import SAMPLES, fit_features, item_variance, moments
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.data.preparation.summary import lines

ITEMS, EACH = 4000, 60


def test_moments_are_of_all_pairs() -> None:
    r = np.random.default_rng(0)
    item = r.integers(0, 9, 60)
    item[0] = 11  # met once: says nothing
    label, p = (r.random(60) < 0.4).astype(float), r.uniform(0.05, 0.9, 60)
    over, under, h = np.zeros(12), np.zeros(12), np.zeros(12)
    for a in range(60):
        h[item[a]] += p[a] * (1 - p[a])
        for b in range(60):
            if a != b and item[a] == item[b]:
                over[item[a]] += (label[a] - p[a]) * (label[b] - p[b])
                under[item[a]] += p[a] * (1 - p[a]) * p[b] * (1 - p[b])
    found = moments(item, label, p)
    assert found is not None and found.samples == 60
    weight = 1 / (1 + max(found.variance, 0) * h) ** 2
    np.testing.assert_allclose(found.variance, (weight * over).sum() / (weight * under).sum(), rtol=1e-6, atol=1e-9)
    error = np.sqrt((weight**2 * (over - found.variance * under) ** 2).sum()) / (weight * under).sum()
    np.testing.assert_allclose(found.error, error, rtol=1e-6)


@pytest.mark.parametrize("variance", [0.0, 0.15, 0.5])
def test_known_worlds(variance: float) -> None:
    """Items of different numbers of samples, a feature of items and one of samples; moments are of first order in u."""
    r = np.random.default_rng(1)
    item = np.repeat(np.arange(ITEMS), r.geometric(1 / EACH, ITEMS))
    category, distance = r.integers(0, 40, ITEMS)[item], r.integers(0, 12, len(item))
    u = np.sqrt(variance) * r.standard_normal(ITEMS)
    logit = -1.5 + r.standard_normal(40)[category] * 0.7 - 0.15 * distance + u[item]
    label = (r.random(len(item)) < 1 / (1 + np.exp(-logit))).astype(float)
    found = moments(item, label, fit_features(label, [category, distance]))
    assert found is not None
    assert abs(found.variance - variance) < 3 * found.error + 0.15 * variance
    assert 0 < found.error < 0.03
    blind = moments(item, label, fit_features(label, [distance]))  # what categories say counts as the items' own then
    assert blind is not None and blind.variance > found.variance + 0.2


def test_effects_are_those_of_the_likelihood() -> None:
    """At the maximum each value of a feature has as many positives as are expected; the prior holds rare ones back."""
    r = np.random.default_rng(2)
    a, b = r.integers(0, 5, 5000), r.integers(0, 3, 5000)
    label = (r.random(5000) < np.array([0.1, 0.3, 0.5, 0.7, 0.9])[a] * (0.5 + 0.2 * b)).astype(float)
    p = fit_features(label, [a, b])
    for feature in (a, b):
        np.testing.assert_allclose(np.bincount(feature, p), np.bincount(feature, label), rtol=0.03)


def test_nothing_to_tell() -> None:
    one_each, p = np.arange(8), np.full(8, 0.5)
    assert moments(one_each, np.tile([0.0, 1.0], 4), p) is None


def test_of_a_prepared_folder(tmp_path: Path) -> None:
    simulate(SimulateConfig(out=tmp_path / "raw", cities=2, items=150, users=200, requests=1500, seed=3))
    data = prepare(PrepareConfig(input=tmp_path / "raw", out=tmp_path / "data", row_group_rows=300))
    summary = read_manifest(data, "prepared")["summary"]
    told = summary["item_variance"]
    whole = item_variance(data)
    assert whole is not None and told == whole._asdict() and whole.samples < SAMPLES
    rows = read_manifest(data, "prepared")["splits"]["train"]["rows"]
    assert whole.samples == rows and 0.02 < whole.variance < 1.5
    part = item_variance(data, samples=rows // 2)
    assert part is not None and part.samples <= rows // 2 < part.samples + 20  # whole requests
    assert abs(part.variance - whole.variance) < 4 * part.error
    assert any(line.split()[0] == "differ" for line in lines(summary))


def test_one_label_and_unknown_places(tmp_path: Path) -> None:
    simulate(SimulateConfig(out=tmp_path / "raw", cities=1, items=60, users=60, requests=400, seed=3))
    rows = pq.read_table(tmp_path / "raw" / "interactions.parquet")
    nowhere = rows.drop_columns(["user_lat", "user_lon"])
    pq.write_table(nowhere, tmp_path / "raw" / "interactions.parquet")
    data = prepare(PrepareConfig(input=tmp_path / "raw", out=tmp_path / "data"))
    found = item_variance(data)
    assert found is not None and np.isfinite(found.variance)
