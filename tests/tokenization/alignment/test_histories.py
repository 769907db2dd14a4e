"""Histories know the training split alone; co-occurrence against counting by hand."""

import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placerank.tokenization.alignment.histories import Histories, cooccurrence, read_histories


def test_only_what_was_before_the_validation_split(prepared: Path) -> None:
    catalog = pq.read_table(prepared / "catalog.parquet")
    histories = read_histories(prepared, len(catalog) - 1)
    train = json.loads((prepared / "manifest.json").read_text())["splits"]["train"]
    assert len(histories.user) == train["positives"] > 500
    assert histories.time.max() <= train["time"][1] < pq.read_table(prepared / "valid")["time"].to_numpy().min()
    # The catalog counts the same visits, in its own rows.
    counts = np.bincount(histories.item, minlength=len(catalog) - 1)
    assert (counts == catalog["positives"].to_numpy()[1:]).all()
    same_user = np.diff(histories.user) == 0
    assert (np.diff(histories.user) >= 0).all() and (np.diff(histories.time)[same_user] >= 0).all()


@settings(max_examples=60, deadline=None)
@given(
    visits=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), max_size=60),
    threshold=st.integers(0, 3),
    most=st.integers(1, 10),
    block=st.integers(1, 12),
)
def test_cooccurrence_by_counting(visits: list[tuple[int, int]], threshold: int, most: int, block: int) -> None:
    visits = sorted(visits, key=lambda v: v[0])
    user, item = (np.array([v[i] for v in visits], np.int64) for i in (0, 1))
    histories = Histories(user, item, np.arange(len(visits)), 9)
    counts: Counter[tuple[int, int]] = Counter()
    for u in set(user.tolist()):
        newest_first = dict.fromkeys(i for v, i in reversed(visits) if v == u)
        counts.update(combinations(sorted(list(newest_first)[:most]), 2))
    expected = sorted((a, b, n) for (a, b), n in counts.items() if n > threshold)
    got = list(zip(*(x.tolist() for x in cooccurrence(histories, threshold, most, block)), strict=True))
    assert got == expected


def test_latest_keeps_order_of_last_visits() -> None:
    histories = Histories(np.array([1, 1, 1, 1, 4]), np.array([7, 3, 7, 5, 7]), np.array([1, 2, 3, 4, 0]), 9)
    last = histories.latest(2)
    assert (last.user.tolist(), last.item.tolist(), last.time.tolist()) == ([1, 1, 4], [7, 5, 7], [3, 4, 0])


def test_no_samples_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no samples; make them with placerank prepare"):
        read_histories(tmp_path, 3)
