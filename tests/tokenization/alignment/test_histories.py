"""Histories know the training split alone; co-occurrence against counting by hand."""

import json
import tracemalloc
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placerank.tokenization.alignment.histories import (
    Histories,
    UserVisits,
    cooccurrence,
    count_threshold,
    read_histories,
)


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


@settings(max_examples=60, deadline=None)
@given(visits=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 6)), max_size=60), block=st.integers(1, 12))
def test_threshold_that_follows_the_data_by_trying_all(visits: list[tuple[int, int]], block: int) -> None:
    visits = sorted(visits, key=lambda v: v[0])
    user, item = (np.array([v[i] for v in visits], np.int64) for i in (0, 1))
    histories = Histories(user, item, np.arange(len(visits)), 9)
    every = len(cooccurrence(histories, 0)[0])
    least = next(t for t in range(10) if len(cooccurrence(histories, t)[0]) * 20 <= every)
    assert count_threshold(histories, block=block) == least


def test_latest_keeps_order_of_last_visits() -> None:
    histories = Histories(np.array([1, 1, 1, 1, 4]), np.array([7, 3, 7, 5, 7]), np.array([1, 2, 3, 4, 0]), 9)
    last = histories.latest(2)
    assert (last.user.tolist(), last.item.tolist(), last.time.tolist()) == ([1, 1, 4], [7, 5, 7], [3, 4, 0])


def test_no_samples_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no samples; make them with placerank prepare"):
        read_histories(tmp_path, 3)


def made_up(folder: Path, users: int, visits: int, seed: int = 0, group: int = 64) -> Path:
    """A prepared folder's training samples, all of them positive; users lie together, as ``prepare`` writes them."""
    rng = np.random.default_rng(seed)
    user = np.sort(rng.integers(0, users, visits))
    row = np.where(user % 5 == 0, 0, user - user // 5)  # every fifth shares row 0
    one_each = pa.array(np.arange(visits + 1), pa.int32())
    item, label = rng.integers(1, 51, visits).astype(np.int32), np.ones(visits, np.int8)
    columns = {"user_index": user, "user_row": row.astype(np.int32), "time": rng.integers(0, 10**6, visits)}
    columns |= {n: pa.ListArray.from_arrays(one_each, x) for n, x in (("item_row", item), ("label", label))}
    (folder / "train").mkdir(parents=True)
    table = pa.table(columns)
    for number in range(3):
        some = table.slice(number * visits // 3, (number + 1) * visits // 3 - number * visits // 3)
        pq.write_table(some, folder / "train" / f"part-{2 - number:05}.parquet", row_group_size=group)
    return folder


def triples(histories: Histories) -> list[tuple[int, int, int]]:
    return list(zip(histories.user.tolist(), histories.time.tolist(), histories.item.tolist(), strict=True))


@pytest.mark.parametrize("most", [4_000, 2_100, 130, 3])
def test_a_sample_of_users_has_their_whole_histories(tmp_path: Path, most: int) -> None:
    whole = read_histories(made_up(tmp_path / "a", 400, 4_000), 50)
    some = read_histories(tmp_path / "a", 50, most)
    assert len(whole.user) == 4_000 and whole.share == 1 and len(some.user) <= most
    assert triples(some) == [v for v in triples(whole) if v[0] in set(some.user.tolist())]
    assert (some.share < 1) == (most < 4_000)
    if most >= 130:  # a user has 10 visits: one halving fewer would not have fitted
        twice = read_histories(tmp_path / "a", 50, 4 * most)
        assert set(twice.user) >= set(some.user) and len(some.user) > most / 6
        assert abs(len(np.unique(some.user)) / 400 - some.share) < 0.05


def test_another_order_of_files_gives_the_same_sample(tmp_path: Path) -> None:
    first = read_histories(made_up(tmp_path / "a", 100, 3_000), 50, 700)
    for i, path in enumerate(sorted((tmp_path / "a/train").iterdir())):
        path.rename(path.with_name(f"z-{3 - i}.parquet"))
    assert triples(read_histories(tmp_path / "a", 50, 700)) == triples(first)


def test_what_is_read_is_bounded(tmp_path: Path) -> None:
    prepared = made_up(tmp_path / "a", 4_000, 400_000, group=4_096)
    peaks = []
    for most in (400_000, 20_000):
        tracemalloc.start()
        held = len(read_histories(prepared, 50, most).user)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert most / 4 < held <= most
    assert peaks[0] < 400_000 * 64 and peaks[1] < 20_000 * 64 + 4_096 * 200


def test_visits_of_users_by_their_rows(tmp_path: Path) -> None:
    prepared = made_up(tmp_path / "a", 60, 1_000)
    table = pa.concat_tables([pq.read_table(f) for f in sorted((prepared / "train").iterdir())]).to_pylist()
    visits = UserVisits(prepared, 50)
    known = {r["user_row"] for r in table for good in r["label"] if good} - {0}
    assert visits.known().tolist() == sorted(known) and known < set(range(1, 61))
    for rows in (range(1, 48), range(10, 11), range(7, 30), range(48, 90)):
        expected = sorted(
            (r["user_row"], r["time"], i - 1) for r in table if r["user_row"] in rows for i in r["item_row"]
        )
        assert sorted(triples(visits.of(rows))) == expected
        assert triples(visits.of(rows)) == expected


def test_cooccurrence_knows_items_by_their_rows() -> None:
    """Rows far apart, as in a catalog of a hundred million, cost nothing."""
    user, item = np.repeat(np.arange(4), 2), np.array([3, 99_999_999] * 4)
    a, b, count = cooccurrence(Histories(user, item, np.arange(8), 100_000_000), 2)
    assert (a.tolist(), b.tolist(), count.tolist()) == ([3], [99_999_999], [4])
    none = Histories(*np.zeros((3, 0), np.int64), 10)
    assert [len(x) for x in cooccurrence(none, 0)] == [0, 0, 0]
