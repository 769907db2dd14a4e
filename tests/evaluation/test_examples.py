"""The worst items and example requests are those that a reader would pick by hand."""

import dataclasses
import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from placerank.evaluation.breakdown import ItemFacts
from placerank.evaluation.examples import (
    calibrated,
    example_requests,
    examples_section,
    worst_items,
    worst_section,
)


@pytest.fixture(scope="module")
def items(fabricated):
    return ItemFacts.load(fabricated.data)


def test_calibration_is_the_best_line_in_the_logit(fabricated):
    p = fabricated.predictions
    shifted = dataclasses.replace(p, logit=3 * p.logit - 5)
    z = p.logit[:, None].astype(np.float64)
    want = LogisticRegression(C=1e9, tol=1e-9).fit(z, p.label).predict_proba(z)[:, 1]
    np.testing.assert_allclose(calibrated(p), want, atol=1e-4)
    np.testing.assert_allclose(calibrated(shifted), want, atol=1e-4)
    assert calibrated(p).sum() == pytest.approx(p.label.sum(), rel=1e-4)


def test_one_class_equal_scores_and_classes_that_part_cleanly(fabricated):
    p = fabricated.predictions.take(np.arange(100))
    ones = dataclasses.replace(p, label=np.ones(100, np.float32))
    np.testing.assert_array_equal(calibrated(ones), ones.predicted())
    equal = dataclasses.replace(p, logit=np.zeros(100, np.float32))
    np.testing.assert_allclose(calibrated(equal), p.label.mean(), rtol=1e-4)
    clean = calibrated(dataclasses.replace(p, logit=p.label * 2 - 1))
    assert np.isfinite(clean).all() and (clean[p.label == 1] > 0.5).all() and (clean[p.label == 0] < 0.5).all()


def test_the_worst_item_is_the_one_that_was_spoiled(fabricated, items):
    p = fabricated.predictions
    row = int(np.bincount(p.item_row).argmax())
    at = p.item_row == row
    spoiled = dataclasses.replace(p, label=np.where(at, (p.logit < -1).astype(np.float32), p.label))
    worst = worst_items(spoiled, items)
    first = worst[0]
    assert (first["row"], first["item"], first["name"]) == (row, str(items.id[row]), f"Trattoria <{row}> & Co")
    assert first["category"] in ("Cibo", "Negozi") and first["city"] in items.cities
    assert first["candidates"] == at.sum() and first["positives"] == spoiled.label[at].sum()
    q = calibrated(spoiled)[at]
    assert first["predicted"] == pytest.approx(q.sum())
    loss = -np.log(np.where(spoiled.label[at] == 1, q, 1 - q))
    entropy = -q * np.log(q) - (1 - q) * np.log(1 - q)
    deviation = math.sqrt(np.sum(q * (1 - q) * np.log(q / (1 - q)) ** 2))
    assert first["log_loss"] == pytest.approx(loss.mean()) and first["expected"] == pytest.approx(entropy.mean())
    assert first["deviations"] == pytest.approx((loss - entropy).sum() / deviation)
    assert [w["deviations"] for w in worst] == sorted((w["deviations"] for w in worst), reverse=True)
    assert len(worst) == 12 and all(w["candidates"] >= 30 for w in worst)
    assert f"Trattoria &lt;{row}&gt; &amp; Co" in worst_section(worst)


def test_deviations_are_those_of_chance(fabricated, items):
    """Where labels follow from the calibrated predictions, hardly any item lies beyond three."""
    p = fabricated.predictions
    drawn = (np.random.default_rng(0).random(len(p)) < p.predicted()).astype(np.float32)
    worst = worst_items(dataclasses.replace(p, label=drawn), items, count=1000, enough=20)
    beyond = np.array([w["deviations"] for w in worst])
    assert 100 < len(beyond) < 300 and (beyond > 3).mean() < 0.05 and 0.5 < np.median(beyond) < 0.9


def test_too_few_candidates_and_unknown_items_are_left_out(fabricated, items):
    p = fabricated.predictions.take(np.arange(20))
    assert worst_items(p, items) == [] and worst_section([]) == ""
    nobody = dataclasses.replace(fabricated.predictions, item_row=np.zeros(20_000, np.int32))
    assert worst_items(nobody, items) == []


def test_examples_go_from_worst_to_best(fabricated):
    p = fabricated.predictions
    found = example_requests(p)
    assert [auc for _, auc in found] == sorted(auc for _, auc in found) and len(found) == 5
    assert found[0][1] < 0.5 < found[-1][1]
    for rows, _ in found:
        assert len(set(p.request[rows])) == 1 and len(rows) == 10
        assert (np.diff(p.logit[rows]) <= 0).all() and 0 < p.label[rows].sum() < 10
    assert example_requests(p.take(np.arange(0))) == []
    first = p.take(np.flatnonzero(p.request == p.request[found[0][0][0]]))
    assert len(example_requests(first)) == 1, "one request is one example"


def test_the_section(fabricated, items):
    p = fabricated.predictions
    text = examples_section(p, items)
    assert text.count("<details") == 5 and text.count("<details open>") == 1 and "true one" in text
    assert text.count("✓") == sum(int(p.label[rows].sum()) for rows, _ in example_requests(p))
    assert "new user" in text or "known user" in text
    unknown = dataclasses.replace(
        p, probability=None, item_row=np.zeros(len(p), np.int32), lat=np.full_like(p.lat, math.nan)
    )
    text = examples_section(unknown, items)
    assert "unknown item" in text and "true one" not in text
    assert examples_section(p.take(np.arange(0)), items) == ""
