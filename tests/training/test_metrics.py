"""Every metric against scikit-learn, group by group; ties, one class, nothing, NaN."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss as sk_log_loss
from sklearn.metrics import ndcg_score, roc_auc_score

from placerank.training import metrics as m

# few distinct scores, groups and labels: ties, single rows and one-class groups are the rule
rows = st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(-3, 3)), min_size=1, max_size=60)


def columns(drawn):
    group, label, score = (np.array(c) for c in zip(*drawn, strict=True))
    return group, label.astype(np.float32), score / 4


def by_group(group, label, score, f):
    """{group: f(label, score)} over groups with both classes."""
    picked = {g: (label[group == g], score[group == g]) for g in np.unique(group)}
    return {g: f(*x) for g, x in picked.items() if 0 < x[0].sum() < len(x[0])}


@given(rows)
@settings(max_examples=150, deadline=None)
def test_auc_is_scikit_learn_in_all_and_per_group(drawn):
    group, label, score = columns(drawn)
    both = 0 < label.sum() < len(label)
    assert m.auc(label, score) == pytest.approx(
        roc_auc_score(label, score) if both else math.nan, abs=1e-12, nan_ok=True
    )
    want = by_group(group, label, score, roc_auc_score)
    got = m.grouped_auc(group, label, score)
    assert got.rows.sum() == len(label) and got.positives.sum() == label.sum()
    assert {g for g, x in zip(got.group, got.auc, strict=True) if not math.isnan(x)} == set(want)
    for g, x in zip(got.group, got.auc, strict=True):
        if g in want:
            assert x == pytest.approx(want[g], abs=1e-12)
    if want:
        weights = [np.sum(group == g) for g in want]
        assert m.gauc(group, label, score) == pytest.approx(np.average(list(want.values()), weights=weights))
        assert got.coverage() == pytest.approx(sum(weights) / len(label))
    else:
        assert math.isnan(m.gauc(group, label, score))


def shuffled_hit(label, score, k, rng, rounds=400):
    """Hit@K by really breaking ties at random, many times."""
    hits = 0
    for _ in range(rounds):
        order = np.lexsort((rng.random(len(score)), -score))
        hits += label[order][:k].any()
    return hits / rounds


@given(rows)
@settings(max_examples=100, deadline=None)
def test_ndcg_is_scikit_learn_with_ties(drawn):
    group, label, score = columns(drawn)
    want = by_group(group, label, score, lambda y, s: ndcg_score(y[None], s[None], k=10))
    got = m.request_ranking(group, label, score)
    assert got["requests"] == len(want)
    if want:
        assert got["ndcg@10"] == pytest.approx(np.mean(list(want.values())), abs=1e-12)
    else:
        assert all(math.isnan(got[name]) for name in ("ndcg@10", "hit@1", "hit@5", "hit@10"))


def test_hit_is_the_mean_over_random_orders_of_ties():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(6), 8)
    label, score = (rng.random(48) < 0.3).astype(int), rng.integers(0, 3, 48)
    got = m.request_ranking(group, label, score, hit_at=(1, 3, 5))
    for k in (1, 3, 5):
        want = by_group(group, label, score, lambda y, s, k=k: shuffled_hit(y, s, k, rng))
        assert got[f"hit@{k}"] == pytest.approx(np.mean(list(want.values())), abs=0.03)


def test_hit_without_ties():
    request = np.repeat([7, 3], 4)
    label, score = np.array([0, 1, 0, 0, 1, 0, 0, 1]), np.array([4, 3, 2, 1, 1, 2, 3, 0])
    got = m.request_ranking(request, label, score, hit_at=(1, 2, 3))
    assert (got["hit@1"], got["hit@2"], got["hit@3"]) == (0.0, 0.5, 1.0)


def test_a_constant_scorer_gets_what_chance_gets():
    requests, size = 50, 100
    request = np.repeat(np.arange(requests), size)
    label = np.tile(np.arange(size) == 0, requests).astype(float)  # the positive always comes first
    got = m.request_ranking(request, label, np.zeros(requests * size))
    assert got["hit@10"] == pytest.approx(0.1) and got["hit@1"] == pytest.approx(0.01)
    assert got["ndcg@10"] == pytest.approx(np.mean(1 / np.log2(np.arange(10) + 2)) * 0.1)
    assert m.auc(label, np.zeros(len(label))) == 0.5


@given(rows, st.randoms())
@settings(max_examples=50, deadline=None)
def test_order_of_rows_and_monotone_transforms_change_nothing(drawn, random):
    group, label, score = columns(drawn)
    order = np.array(random.sample(range(len(label)), len(label)))
    first = m.summarize(label=label, score=score, user=group, request=group)
    again = m.summarize(label=label[order], score=np.exp(score[order]) * 3, user=group[order], request=group[order])
    np.testing.assert_allclose(list(first.values.values()), list(again.values.values()), atol=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.1001, 0.5, 0.9, 1.0])), min_size=1, max_size=50))
@settings(max_examples=100, deadline=None)
def test_log_loss_and_calibration(drawn):
    label, p = (np.array(c, dtype=float) for c in zip(*drawn, strict=True))
    clipped = np.clip(p, 1e-7, 1 - 1e-7)
    assert m.log_loss(label, p) == pytest.approx(sk_log_loss(label, clipped, labels=[0, 1]))
    curve = m.reliability(label, p, bins=5)
    observed, predicted = calibration_curve(label, p, n_bins=5, strategy="quantile")
    np.testing.assert_allclose(curve.observed, observed)
    np.testing.assert_allclose(curve.predicted, predicted)
    assert curve.rows.sum() == len(label)
    assert curve.error() == pytest.approx(np.sum(np.abs(observed - predicted) * curve.rows) / len(label))


def test_calibration_ratio_and_equal_mass():
    rng = np.random.default_rng(1)
    p = rng.beta(1, 9, 20_000)
    label = rng.random(len(p)) < p
    assert m.calibration_ratio(label, p) == pytest.approx(1, abs=0.05)
    assert m.calibration_ratio(label, p / 2) == pytest.approx(0.5, abs=0.03)
    assert set(m.reliability(label, p).rows) == {1000}
    assert m.reliability(label, p).error() < 0.01 < m.reliability(label, p / 2).error()


def test_standard_error_of_auc_is_the_spread_over_samples():
    rng = np.random.default_rng(2)
    label = np.arange(400) < 100
    sample = [roc_auc_score(label, rng.normal(label * 1.0)) for _ in range(300)]
    assert m.auc_standard_error(float(np.mean(sample)), 100, 300) == pytest.approx(np.std(sample), rel=0.2)
    assert math.isnan(m.auc_standard_error(0.5, 0, 10))


@pytest.mark.parametrize(("label", "reason"), [([], "no rows"), ([0, 0], "no positives"), ([1, 1], "no negatives")])
def test_what_the_rows_do_not_define_is_nan_with_a_reason(label, reason):
    label = np.array(label, dtype=float)
    some = np.arange(len(label))
    got = m.summarize(label=label, score=label * 0, user=some, request=some, probability=label * 0 + 0.5)
    assert all(math.isnan(got.values[name]) and got.undefined[name] == reason for name in m.RANKING_METRICS)
    assert got.to_json()["auc"] is None
    if len(label):
        assert got.values["log_loss"] == pytest.approx(math.log(2))


def test_reason_names_the_group():
    got = m.summarize(label=np.array([0, 1]), score=np.zeros(2), user=np.arange(2), request=np.zeros(2, int))
    assert got.undefined == {"gauc": "no user has both a positive and a negative"}
    assert got.values["auc"] == 0.5 and got.gauc_coverage == 0 and got.requests == 1


def test_bad_input_is_told():
    one = np.ones(3)
    with pytest.raises(ValueError, match=r"2 of 3 scores are NaN, the first in row 1; .*diverged"):
        m.auc(one, np.array([0, np.nan, np.nan]))
    with pytest.raises(ValueError, match=r"1 of 3 labels are neither 0 nor 1, the first is 2.0 in row 2"):
        m.gauc(np.zeros(3), np.array([0, 1, 2.0]), one)
    with pytest.raises(ValueError, match=r"range over \[-1, 3\], expected \[0, 1\]; apply the sigmoid"):
        m.log_loss(one, np.array([-1.0, 3.0, 0.0]))
    with pytest.raises(ValueError, match=r"label has shape \(3,\), score has shape \(2,\)"):
        m.auc(one, np.ones(2))
    with pytest.raises(ValueError, match=r"unknown metrics \['map'\]; expected some of auc, gauc"):
        m.summarize(label=one, score=one, user=one, request=one, metrics=["map"])


def test_amount_auc_is_a_count_of_pairs() -> None:
    rng = np.random.default_rng(3)
    amount = np.where(rng.random(60) < 0.4, rng.lognormal(2, 1, 60), 0.0)
    score = np.round(rng.normal(size=60) + amount / 20, 1)  # with ties
    won = total = 0.0
    for a, s in zip(amount, score, strict=True):
        for b, t in zip(amount, score, strict=True):
            if a > 0 and b == 0:
                total += a
                won += a * (1.0 if s > t else 0.5 if s == t else 0.0)
    assert m.amount_auc(amount, score) == pytest.approx(won / total)
    assert m.amount_auc(np.minimum(amount, 1e-3) * 1000 > 0, score) == pytest.approx(m.auc(amount > 0, score))
    assert m.amount_auc(amount, np.zeros(60)) == 0.5
    for nothing in (np.zeros(3), np.ones(3), np.empty(0)):
        assert math.isnan(m.amount_auc(nothing, np.zeros(len(nothing))))
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"1 of 2 amounts are not 0 or more, the first is .* in row 1"):
            m.amount_auc(np.array([2.0, wrong]), np.zeros(2))
    assert m.amount_ratio(np.array([0.0, 4]), np.array([1.0, 2])) == 0.75
    assert math.isnan(m.amount_ratio(np.zeros(2), np.ones(2)))


def test_first_places_are_the_mean_over_random_orders_of_ties() -> None:
    rng = np.random.default_rng(4)
    request, score = rng.integers(0, 6, 40), rng.integers(0, 4, 40)
    value = rng.lognormal(0, 1, 40)
    by_place, by_request = [], []
    for _ in range(4000):
        order = np.lexsort((rng.random(40), -score))
        taken = [order[request[order] == r][:3] for r in np.unique(request)]
        total = sum(value[rows].sum() for rows in taken)
        by_place.append(total / sum(map(len, taken)))
        by_request.append(total / len(taken))
    got = m.first_places(request, score, value, places=3)
    assert got.a_place == pytest.approx(np.mean(by_place), rel=0.01)
    assert got.a_request == pytest.approx(np.mean(by_request), rel=0.01)
    assert m.first_places(np.array([7, 7]), np.array([1.0, 2]), np.array([5.0, 3])) == (4.0, 8.0), "of two candidates"
    assert all(math.isnan(x) for x in m.first_places(np.empty(0, int), np.empty(0), np.empty(0)))
