"""Slices hold the rows that they say, and their metrics are those of the rows taken out by hand."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from placerank.evaluation import breakdown as b
from placerank.training.metrics import request_ranking


@pytest.fixture(scope="module")
def items(fabricated):
    return b.ItemFacts.load(fabricated.data)


@pytest.fixture(scope="module")
def parts(fabricated, items):
    return {s.name: s for s in b.slicings(fabricated.predictions, items)}


def labels_of(slicing):
    return np.array(slicing.labels)[slicing.code]


def test_every_row_is_in_one_slice_of_each(fabricated, parts):
    assert set(parts) == {
        "popularity",
        "appearances",
        "place",
        "user",
        "visit",
        "category",
        "distance",
        "period",
        "city",
        "tile",
    }
    for slicing in parts.values():
        assert slicing.code.shape == (len(fabricated.predictions),)
        assert slicing.code.min() >= 0 and slicing.code.max() < len(slicing.labels)


def test_slices_say_what_they_hold(fabricated, items, parts):
    p = fabricated.predictions
    i = 1234
    row = p.item_row[i]
    assert labels_of(parts["popularity"])[i] == ("head", "mid", "tail")[items.popularity_bucket[row]]
    np.testing.assert_array_equal(labels_of(parts["appearances"]) == "< 3 in training", items.positives[p.item_row] < 3)
    never = items.impressions[p.item_row] == 0
    np.testing.assert_array_equal(labels_of(parts["place"]) == "never in training", never)
    assert never.any() and not never.all()
    assert labels_of(parts["category"])[i] == ("Cibo", "Negozi")[row % 2] and labels_of(parts["tile"])[i] != "unknown"
    np.testing.assert_array_equal(labels_of(parts["user"]) == "new", p.user_row == 0)
    np.testing.assert_array_equal(labels_of(parts["visit"]) == "first visit", p.visits == 0)
    assert set(labels_of(parts["city"])) == {"unknown", "Pisa", "Livorno"}


def test_distance_buckets(items, fabricated):
    p = fabricated.predictions
    # one degree of latitude is 111.195 km: requests due south of their items
    km = np.array([0.5, 2, 5, 20, 40, np.nan])
    few = p.take(np.arange(6))
    few = dataclasses.replace(
        few,
        lat=(items.lat[few.item_row] - km / 111.195).astype(np.float32),
        lon=items.lon[few.item_row].astype(np.float32),
    )
    np.testing.assert_allclose(items.distance_km(few)[:5], km[:5], atol=0.01)
    distance = next(s for s in b.slicings(few, items) if s.name == "distance")
    assert labels_of(distance).tolist() == ["0-1 km", "1-3 km", "3-10 km", "10-30 km", "> 30 km", "unknown"]


@pytest.mark.parametrize(
    ("hour", "period"),
    [(0, "night"), (4.9, "night"), (5, "breakfast"), (10, "lunch"), (14, "afternoon"), (17, "dinner"), (21, "night")],
)
def test_periods_are_local_to_the_item(fabricated, items, hour, period):
    one = fabricated.predictions.take(np.arange(1))
    east = dataclasses.replace(items, lon=np.full(len(items), 139.7))  # Tokyo: nine hours ahead
    at = dataclasses.replace(one, time=np.array([int((hour - 9) % 24 * 3600)]))
    slicing = next(s for s in b.slicings(at, east) if s.name == "period")
    assert labels_of(slicing).tolist() == [period]


def test_slice_metrics_are_those_of_its_rows(fabricated, parts):
    p = fabricated.predictions
    found = {s["label"]: s for s in b.slice_metrics(parts["popularity"], p, p.logit, p.predicted())}
    assert list(found) == ["head", "mid", "tail"]
    assert sum(s["rows"] for s in found.values()) == len(p)
    for name, got in found.items():
        inside = labels_of(parts["popularity"]) == name
        assert got["positives"] == p.label[inside].sum()
        assert got["auc"] == pytest.approx(roc_auc_score(p.label[inside], p.logit[inside]))
        # its positives among every negative: other positives are taken out of the lists
        listed = inside | (p.label == 0)
        want = request_ranking(p.request[listed], p.label[listed], p.logit[listed])
        assert got["hit@1"] == want["hit@1"] and got["ndcg@10"] == want["ndcg@10"]
        assert 0 < got["auc_standard_error"] < 0.05
        assert got["calibration"] == pytest.approx(p.predicted()[inside].sum() / p.label[inside].sum())


def test_weighted_auc_is_the_mean_over_slices(fabricated, parts):
    p = fabricated.predictions
    for name in ("period", "city"):
        code = parts[name].code
        want = np.average(
            [roc_auc_score(p.label[code == c], p.logit[code == c]) for c in np.unique(code)],
            weights=[np.sum(code == c) for c in np.unique(code)],
        )
        assert b.weighted_auc(parts[name], p.label, p.logit) == pytest.approx(want)


def test_too_small_slices_say_so(fabricated, parts):
    p = fabricated.predictions
    few = p.take(np.arange(60))
    slicing = dataclasses.replace(parts["visit"], code=parts["visit"].code[:60])
    for got in b.slice_metrics(slicing, few, few.logit, few.predicted()):
        assert got["auc"] is None and got["note"] == "too few" and got["rows"] > 0


def test_only_the_largest_are_shown(fabricated, parts):
    p = fabricated.predictions
    shown = b.slice_metrics(dataclasses.replace(parts["city"], shown=2), p, p.logit)
    assert [s["label"] for s in shown] == ["Pisa", "Livorno"] and "log_loss" not in shown[0]


def with_categories(columns):
    """The columns as a table, their lists of categories as texts, empty ones too."""
    return pa.table(columns | {"category": pa.array(columns["category"], pa.list_(pa.string()))})


def test_categories_and_tiles(tmp_path):
    """The largest first, nameless and placeless ones as unknown; a tile has the name of most of its items."""
    lat = [math.nan, 43.71, 43.79, 43.70, -33.05, -0.01, math.nan]
    lon = [math.nan, 10.41, 10.49, 10.40, -71.6, 0.01, 10.4]
    table = {
        "item_id": [None, *range(1, 7)],
        "name": [None] * 7,
        "category": [None, ["food", "pizza"], ["shop"], ["food"], [], None, ["food", "sushi"]],
        "positives": [0] * 7,
        "impressions": [0, 5, 0, 1, 1, 1, 1],
        "popularity_bucket": [2] * 7,
        "lat": lat,
        "lon": lon,
        "city": [None, "Pisa", "Pisa", "Calci", "Valparaiso", None, "Pisa"],
        "province": pa.nulls(7, pa.string()),
    }
    pq.write_table(with_categories(table), tmp_path / "catalog.parquet")
    items = b.ItemFacts.load(tmp_path)
    assert [items.categories[c] for c in items.category] == [
        "unknown",
        "food",
        "shop",
        "food",
        "unknown",
        "unknown",
        "food",
    ]
    assert items.categories == ["unknown", "food", "shop"]
    pisa = "Pisa 43.75°N 10.45°E"
    assert [items.tiles[t] for t in items.tile] == [
        "unknown",
        *[pisa] * 3,
        "Valparaiso 33.05°S 71.55°W",
        "0.05°S 0.05°E",
        "unknown",
    ]
    assert items.tiles[:2] == ["unknown", pisa]
    assert items.id.tolist() == ["", "1", "2", "3", "4", "5", "6"]


def test_cities_of_one_name_are_told_apart(tmp_path):
    """By their province, which is shown only where the name alone is not enough."""
    city = [None, "Springfield", "Springfield", "Springfield", "Boston", "Springfield", None]
    table = {
        "item_id": [None, *range(1, 7)],
        "name": city,
        "category": [[]] * 7,
        "positives": [0] * 7,
        "impressions": [0] * 7,
        "popularity_bucket": [2] * 7,
        "lat": [0.0] * 7,
        "lon": [0.0] * 7,
        "city": city,
        "province": [None, "Illinois", "Illinois", "Ohio", "Massachusetts", None, "Ohio"],
    }
    pq.write_table(with_categories(table), tmp_path / "catalog.parquet")
    items = b.ItemFacts.load(tmp_path)
    got = [items.cities[c] for c in items.city]
    assert got == [
        "unknown",
        *["Springfield (Illinois)"] * 2,
        "Springfield (Ohio)",
        "Boston",
        "Springfield",
        "unknown",
    ]
    assert items.cities[:2] == ["unknown", "Springfield (Illinois)"]  # the largest first
