"""Scores without a model: what they are, their ties, and when one is left out."""

import dataclasses

import numpy as np
import pytest

from placerank.evaluation import baselines
from placerank.evaluation.breakdown import ItemFacts
from placerank.training.metrics import auc


@pytest.fixture(scope="module")
def items(fabricated):
    return ItemFacts.load(fabricated.data)


def test_popularity_is_the_items_training_positives(fabricated, items):
    p = fabricated.predictions
    np.testing.assert_array_equal(baselines.popularity(p, items), items.positives[p.item_row])


def test_nearest_orders_by_distance_and_ties_where_the_place_is_unknown(fabricated, items):
    p = fabricated.predictions
    score = baselines.nearest(p, items)
    unknown = np.isnan(p.lat)
    assert unknown.any() and len(set(score[unknown])) == 1 and score[unknown][0] < score[~unknown].min()
    order = np.argsort(-score[~unknown])
    assert (np.diff(items.distance_km(p)[~unknown][order]) >= 0).all()


def test_visit_counter_breaks_ties_by_popularity_and_never_beyond(fabricated, items):
    p = fabricated.predictions
    score = baselines.visit_counter(p, items)
    np.testing.assert_array_equal(np.floor(score), p.visits)
    once = p.visits == 1
    np.testing.assert_array_equal(np.argsort(score[once]), np.argsort(items.positives[p.item_row[once]] / 1e4))


def test_who_is_measured(fabricated, items):
    p = fabricated.predictions
    assert [s.name for s in baselines.baselines(p, items)] == ["popularity", "visits", "nearest"]
    blind = dataclasses.replace(p, lat=np.full_like(p.lat, np.nan), lon=np.full_like(p.lon, np.nan))
    assert [s.name for s in baselines.baselines(blind, items)] == ["popularity", "visits"]
    assert all(s.probability is None for s in baselines.baselines(p, items))
    assert baselines.oracle(dataclasses.replace(p, probability=None)) is None


def test_nobody_beats_the_oracle(fabricated, items):
    p = fabricated.predictions
    best = auc(p.label, baselines.oracle(p).score)
    others = [baselines.model(p), *baselines.baselines(p, items)]
    assert all(auc(p.label, s.score) < best for s in others)
