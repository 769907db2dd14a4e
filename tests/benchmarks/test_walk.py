"""What walking forward compares: pairs in order against a loop, and what is dropped before a place opens."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from placerank.benchmarks.bench_walk import Walk, pairs_in_order
from placerank.training.predictions import Predictions


def test_pairs_in_order_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    n = 300
    request = np.sort(rng.integers(0, 60, n))  # some have one class, some no new place, some one row
    label, logit = rng.integers(0, 2, n).astype(np.float32), rng.integers(0, 4, n).astype(np.float32)
    new, none = rng.random(n) < 0.2, np.zeros(n, np.float32)
    rows = np.zeros(n, np.int32)
    p = Predictions(
        request=request, user_index=request, user_row=rows, item_row=rows, label=label, logit=logit, time=request,
        visits=rows, lat=none, lon=none,
    )  # fmt: skip
    expected = []
    for r in np.unique(request):
        here = np.flatnonzero(request == r)
        pairs = [(i, j) for i in here for j in here if label[i] == 1 and label[j] == 0 and (new[i] or new[j])]
        if pairs:
            expected.append(np.mean([1.0 if logit[i] > logit[j] else 0.5 * (logit[i] == logit[j]) for i, j in pairs]))
    assert 0 < len(expected) < 60
    np.testing.assert_allclose(pairs_in_order(p, new), expected)


def test_nothing_is_known_of_a_place_before_it_opens(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    day, item = np.sort(rng.integers(0, 10, 2_000)), rng.integers(0, 60, 2_000)
    day[item == 7] = 9  # opens on the last day by itself; 60 is never shown
    shown = {"item_id": item, "timestamp": pa.array(day * 86_400, pa.timestamp("s", "UTC")), "label": item % 2}
    pq.write_table(pa.table(shown), tmp_path / "interactions.parquet")
    pq.write_table(pa.table({"item_id": np.arange(61)}), tmp_path / "items.parquet")
    for source in ("impressions", "check-ins"):
        kept, items, of, opens = Walk(tmp_path, tmp_path, 4, seed=0).tables
        rows = kept["item_id"].to_numpy()
        assert len(items) == len(opens) == 61
        assert opens[60] == -1 and (opens[7] == 3) == (source == "impressions")
        assert (opens >= 0).sum() == 5 + (source == "impressions")  # a tenth of 59 or 60 rounds down to 5 or 6
        assert (of >= opens[rows]).all()
        dropped = (np.maximum(day - 6, -1) < opens[item]).sum()
        assert len(kept) == 2_000 - dropped and dropped > 0
        pq.write_table(pa.table(shown | {"label": np.ones_like(item)}), tmp_path / "interactions.parquet")
