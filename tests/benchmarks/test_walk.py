"""What walking forward compares: pairs in order against a loop, and what is dropped before a place opens."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from placerank.benchmarks.bench_walk import GAPS, Auc, Rows, Walk, gaps
from placerank.training.metrics import auc


def some_rows(seed: int = 0, n: int = 300) -> Rows:
    """Some requests have one class, some no new place, some one row; many scores are equal."""
    rng = np.random.default_rng(seed)
    request = np.unique(np.sort(rng.integers(0, 60, n)), return_inverse=True)[1]
    label, logit = rng.integers(0, 2, n).astype(np.float32), rng.integers(0, 4, n).astype(np.float32)
    return Rows(request, label, logit, rng.random(n) < 0.2)


def in_order(x: Rows, i: int, j: int) -> float:
    return 1.0 if x.logit[i] > x.logit[j] else 0.5 * float(x.logit[i] == x.logit[j])


def test_pairs_in_order_are_those_of_a_loop() -> None:
    x = some_rows()
    for clicked, other in ((x.new, ~x.new), (~x.new, x.new)):
        pairs = [
            (i, j)
            for i, j in product(range(300), repeat=2)
            if x.request[i] == x.request[j] and x.label[i] == 1 and x.label[j] == 0 and clicked[i] and other[j]
        ]
        share, count = x.pairs_in_order(clicked, other)
        assert count == len(pairs) > 20
        np.testing.assert_allclose(share, np.mean([in_order(x, i, j) for i, j in pairs]))


def test_requests_that_count_twice_are_as_if_they_were_there_twice() -> None:
    x = Rows.together([some_rows(1), some_rows(2)])
    assert x.request[0] == 0 and set(np.diff(x.request)) == {0, 1} and len(x.request) == 600
    weight = np.random.default_rng(3).integers(0, 3, x.request[-1] + 1)
    for kind, rows in (("all", x.new | True), ("known", ~x.new), ("new", x.new)):
        at = np.repeat(np.flatnonzero(rows), weight[x.request[rows]])
        np.testing.assert_allclose(Auc(x, kind)(weight.astype(float)), auc(x.label[at], x.logit[at]))


def test_gaps_are_of_the_side_with_the_known_start() -> None:
    x = some_rows(4)
    better = replace(x, logit=x.logit + 3 * x.label * x.new)
    walk = {"known": better, "random": x, "anew": better, "none": x}
    found = gaps([walk, {**walk, "known": better}])
    assert list(found) == [g for g in GAPS if {g[1], g[3]} <= {*walk, "new"}], "those whose sides there are"
    assert found["new", "known", "-", "random"].low > 0 and found["all", "known", "-", "none"].low > 0
    assert found["new", "known", "-", "anew"] == (0, 0, 0) and found["all", "known", "/", "anew"] == (1, 1, 1)
    known, new = (auc(x.label[w], better.logit[w]) for w in (~x.new, x.new))
    np.testing.assert_allclose(found["known", "known", "-", "new"].mean, known - new)


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
        assert (opens >= 0).sum() == 17 + (source == "impressions")  # three in ten of 59 round down to 17
        visited = {(i, d) for i, d in zip(rows.tolist(), of.tolist(), strict=True)}
        on_a_visit = [(i, d) in visited for i, d in enumerate(opens.tolist()) if d >= 0]
        assert source == "impressions" or all(on_a_visit)
        assert (of >= opens[rows]).all()
        dropped = (np.maximum(day - 6, -1) < opens[item]).sum()
        assert len(kept) == 2_000 - dropped and dropped > 0
        pq.write_table(pa.table(shown | {"label": np.ones_like(item)}), tmp_path / "interactions.parquet")
