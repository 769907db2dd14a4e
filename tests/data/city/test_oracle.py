"""The oracle against the probabilities that were drawn with."""

from pathlib import Path

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


def test_other_data_has_no_oracle(tmp_path: Path) -> None:
    write_manifest(tmp_path, "raw", {"path": "visits.csv"})
    with pytest.raises(ValueError, match="expected a folder that placerank simulate wrote"):
        Oracle(tmp_path)
