"""The oracle against the probabilities that were drawn with."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from placerank.data.city.oracle import Oracle
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.manifest import write_manifest


def test_what_was_shown_has_the_probability_it_was_drawn_with(tmp_path: Path) -> None:
    raw = simulate(SimulateConfig(out=tmp_path / "raw", items=600, users=400, requests=500, cities=2, days=60, seed=3))
    shown = pq.read_table(raw / "interactions.parquet")
    user, item, lat, lon = (shown[name].to_numpy() for name in ("user_id", "item_id", "user_lat", "user_lon"))
    time = shown["timestamp"].to_numpy().astype("datetime64[s]").astype(np.int64)
    oracle = Oracle(raw)
    found = oracle.probability(user, item, time, lat, lon)
    np.testing.assert_allclose(found, shown["probability"].to_numpy(), atol=5e-5)  # places are kept to 0.1 m
    assert len(oracle.probability([], [], [], [], [])) == 0


def test_orders_and_amounts_are_what_the_oracle_expects(tmp_path: Path) -> None:
    size: dict[str, Any] = {"items": 600, "users": 400, "requests": 6_000, "cities": 2, "days": 60, "seed": 3}
    plain = simulate(SimulateConfig(out=tmp_path / "plain", **size))
    raw = simulate(SimulateConfig(out=tmp_path / "raw", orders=0.3, **size))
    shown = pq.read_table(raw / "interactions.parquet")
    assert shown.drop(["order", "gmv"]).equals(pq.read_table(plain / "interactions.parquet")), (
        "clicks stay what they were"
    )
    for name in ("items.parquet", "users.parquet"):
        assert (raw / name).read_bytes() == (plain / name).read_bytes()
    label, order, gmv = (shown[name].to_numpy().astype(float) for name in ("label", "order", "gmv"))
    assert ((order == 0) | (label == 1)).all() and ((gmv > 0) == (order == 1)).all()
    assert abs(order.sum() / label.sum() - 0.3) < 0.02
    user, item, lat, lon = (shown[name].to_numpy() for name in ("user_id", "item_id", "user_lat", "user_lon"))
    oracle = Oracle(raw)
    conversion, amount = oracle.conversion(user, item, lat, lon), oracle.amount(user, item)
    clicked, ordered = label == 1, order == 1
    z = (order - conversion)[clicked].sum() / np.sqrt((conversion * (1 - conversion))[clicked].sum())
    assert abs(z) < 4, "as many orders as expected"
    middle = np.median(conversion[clicked])
    for part in (conversion <= middle, conversion > middle):
        assert abs(order[clicked & part].mean() - conversion[clicked & part].mean()) < 0.02
    assert abs(gmv[ordered].sum() / amount[ordered].sum() - 1) < 0.03
    assert conversion[clicked].mean() > 1.1 * conversion.mean(), "clicked places convert better than those shown"
    assert amount.min() > 0 and len(oracle.amount([], [])) == 0 == len(oracle.conversion([], [], [], []))
    with pytest.raises(ValueError, match="nobody orders in this city; simulate one with --orders"):
        Oracle(plain).conversion(user, item, lat, lon)
    with pytest.raises(ValueError, match=r"orders: got 1.0, expected 0 \(none\), or less than 1"):
        SimulateConfig(out=tmp_path, orders=1.0)


def test_other_data_has_no_oracle(tmp_path: Path) -> None:
    write_manifest(tmp_path, "raw", {"path": "visits.csv"})
    with pytest.raises(ValueError, match="expected a folder that placerank simulate wrote"):
        Oracle(tmp_path)
