"""Clusters of visits against recursive k-means by lists; what every clustering holds; that none knows the future."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from raw_tables import impressions, requests, run, visits, write

from placerank.data.manifest import read_manifest
from placerank.data.preparation.prepare import PrepareConfig
from placerank.data.visit_clusters import REFRESH_DAYS, Clustering, cluster_visits, look_back

DAY = 86_400
Cluster = tuple[int, int, int]  # time, item, size


def town(items: int, categories: int, seed: int = 0) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64]]:
    """Categories and places of items; some share a spot, one is nowhere."""
    rng = np.random.default_rng(seed)
    lat, lon = 50 + 0.1 * rng.random(items), 4 + 0.2 * rng.random(items)
    lat[1::5], lon[1::5] = lat[0], lon[0]
    lat[-1] = np.nan
    return rng.integers(0, categories, items), lat, lon


def life(n: int, items: int, seed: int = 0, days: int = 60) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Visits of a user in order of time, some places far more often than others."""
    rng = np.random.default_rng(seed)
    item = (items * rng.random(n) ** 2).astype(np.int32)
    return item, np.sort(DAY * 1000 + rng.integers(0, days * DAY, n))


def by_lists(item: NDArray[Any], time: NDArray[np.int64], how: Clustering) -> list[Cluster]:
    """The clusters of one run of visits, in order of time, by recursion over lists of visits."""

    def parts(visits: list[int]) -> list[list[int]]:
        if len(visits) <= how.most:
            return [visits]
        where, n = how.place[item[visits]], len(visits)
        reach = where.max(0) - where.min(0)
        axis, k = int(np.argmax(reach)), max(2, int(n**0.3))
        if reach[axis] == 0:
            return parts(visits[: n // 2]) + parts(visits[n // 2 :])
        centres, label = np.tile(where.mean(0), (k, 1)), np.zeros(n, int)
        centres[:, axis] = where[:, axis].min() + reach[axis] * (np.arange(k) + 0.5) / k
        for _ in range(10):
            label = ((where[:, None] - centres) ** 2).sum(2).argmin(1)
            for j in set(label.tolist()):
                centres[j] = where[label == j].mean(0)
        found = [[visits[t] for t in np.flatnonzero(label == j)] for j in range(k)]
        return [p for part in found if part for p in parts(part)]

    out = []
    for group in set(how.group[item].tolist()):
        for of in parts([t for t in range(len(item)) if how.group[item[t]] == group]):
            where = how.place[item[of]]
            far = ((where - where.mean(0)) ** 2).sum(1)
            nearest = max(t for t in range(len(of)) if far[t] <= far.min() + 1e-18)
            out.append((int(time[of].sum() // len(of)), int(item[of[nearest]]), len(of)))
    return sorted(out)


def clusters_of(item: NDArray[Any], time: NDArray[np.int64], how: Clustering) -> list[Cluster]:
    _, found, when, size = cluster_visits(np.array([0]), np.array([len(item)]), item, time, how)
    return list(zip(when.tolist(), found.tolist(), size.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_equals_recursive_k_means_by_lists(seed: int) -> None:
    item, time = life(700, 40, seed)
    how = Clustering.of(7, *town(40, 3, seed))
    found = clusters_of(item, time, how)
    assert sorted(found) == by_lists(item, time, how)
    assert 100 < len(found) < 400, "clusters were made, and not of everything"


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(0, 120), items=st.integers(1, 30), categories=st.integers(1, 4), most=st.integers(2, 9),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_what_every_clustering_holds(n: int, items: int, categories: int, most: int, seed: int) -> None:
    item, time = life(n, items, seed)
    group, lat, lon = town(items, categories, seed)
    found = clusters_of(item, time, Clustering.of(most, group, lat, lon))
    assert sum(size for *_, size in found) == n and all(1 <= size <= most for *_, size in found)
    assert [when for when, *_ in found] == sorted(when for when, *_ in found)
    assert abs(sum(when * size for when, _, size in found) - time.sum()) <= n, "means, rounded down to seconds"
    for g in range(categories):
        assert sum(size for _, i, size in found if group[i] == g) == (group[item] == g).sum(), (
            "a cluster has one category"
        )
    assert found == clusters_of(item, time, Clustering.of(most, group, lat, lon))


def test_one_place_is_cut_by_time() -> None:
    how = Clustering.of(4, np.zeros(1), np.array([50.0]), np.array([4.0]))
    found = clusters_of(np.zeros(16, np.int32), np.arange(16) * 10, how)
    assert found == [(15, 0, 4), (55, 0, 4), (95, 0, 4), (135, 0, 4)]


def test_neighbours_share_a_cluster_and_places_far_apart_do_not() -> None:
    lat = np.array([50.0, 50.001, 50.002, 51.0, 51.001, 51.002])
    how = Clustering.of(3, np.zeros(6), lat, np.full(6, 4.0))
    found = clusters_of(np.array([0, 3, 1, 4, 2, 5]), np.arange(6) * 10, how)
    assert found == [(20, 1, 3), (30, 4, 3)], "the middle one stands for each"


@pytest.mark.parametrize("longest", [10_000, 25, 3])
def test_a_request_sees_clusters_of_before_the_refresh_and_then_visits(longest: int) -> None:
    item, time = life(400, 20)
    item, time = np.concatenate([item, item[::-1]]), np.concatenate([time, time])  # two users
    how, rng = Clustering.of(6, *town(20, 2)), np.random.default_rng(1)
    asked = time[rng.integers(0, 400, 50)]
    first = 400 * rng.integers(0, 2, 50)
    end = np.array([f + np.searchsorted(time[:400], t) for f, t in zip(first, asked, strict=True)])
    seen = look_back(first, end, asked, item, time, longest, how)
    for r in range(50):
        refresh = asked[r] // (REFRESH_DAYS * DAY) * REFRESH_DAYS * DAY
        mine = [t for t in range(first[r], end[r]) if time[t] < refresh][-longest:]
        recent = [(int(time[t]), int(item[t]), 1) for t in range(first[r], end[r]) if time[t] >= refresh]
        want = (clusters_of(item[mine], time[mine], how) + recent)[-longest:]
        at = np.concatenate([np.arange(s, s + n) for s, n in zip(seen.start[r], seen.length[r], strict=True)])
        got = zip(seen.time[at].tolist(), seen.item[at].tolist(), seen.size[at].tolist(), strict=True)
        assert list(got) == want
        assert all(when < refresh for when, _, size in want if size > 1)


def histories(folder: Path) -> dict[tuple[int, int], list[tuple[int, float, int]]]:
    """Of all requests by user and time; of those of one moment the last."""
    found = {}
    for split in ("train", "valid", "test"):
        for r in requests(folder, split):
            sizes = r.get("history_size") or [1] * len(r["history"])
            lists = zip(r["history"], r["history_hours"], sizes, strict=True)
            found[r["user_index"], r["time"]] = list(lists)
    return found


@pytest.mark.parametrize("source", [visits, impressions])
def test_prepared_histories_stand_for_all_visits_before(tmp_path: Path, source: Any) -> None:
    raw = write(tmp_path / "raw", source(600, users=3, moments=6000))
    plain = histories(run(raw, history_length=1000))
    found = histories(run(raw, history_length=1000, cluster_visits=5))
    assert plain.keys() == found.keys()
    for key, entries in found.items():
        assert sum(size for *_, size in entries) == len(plain[key])
        assert all(hours > 0 for _, hours, _ in entries) and max((n for *_, n in entries), default=1) <= 5
        hours = [hours for _, hours, _ in entries]
        assert hours == sorted(hours, reverse=True), "oldest first"
    assert sum(map(len, found.values())) < 0.6 * sum(map(len, plain.values()))
    assert read_manifest(tmp_path / "out", "prepared")["cluster_visits"] == 5


def test_no_history_knows_what_comes_later(tmp_path: Path) -> None:
    source = visits(600, users=3, moments=1500)
    time = source["timestamp"].cast(pa.int64()).to_numpy()
    cut = int(np.sort(time)[420])
    rng = np.random.default_rng(5)
    changed = dict(source)
    changed["item_id"] = [
        f"i{rng.integers(0, 12)}" if t >= cut else i for i, t in zip(source["item_id"], time, strict=True)
    ]
    of = histories(run(write(tmp_path / "raw", source), history_length=1000, cluster_visits=5))
    other = histories(run(write(tmp_path / "raw", changed), history_length=1000, cluster_visits=5))
    earlier = [key for key in of if key[1] <= cut]
    assert len(earlier) > 200 and all(of[key] == other[key] for key in earlier if key in other)
    assert any(of[key] != other[key] for key in of if key[1] > cut and key in other)


def test_the_last_days_alone_make_samples_and_earlier_ones_are_in_histories(tmp_path: Path) -> None:
    source = impressions(600, users=3, moments=3000)
    raw = write(tmp_path / "raw", source)
    every = histories(run(raw, history_length=1000))
    manifest = read_manifest(run(raw, history_length=1000, sample_days=10), "prepared")
    found = histories(tmp_path / "out")
    last = source["timestamp"].cast(pa.int64()).to_numpy().max()
    assert found == {key: h for key, h in every.items() if key[1] > last - 10 * DAY}
    sizes = [manifest["splits"][name]["rows"] for name in ("train", "valid", "test")]
    rows = sum(t > last - 10 * DAY for t in source["timestamp"].cast(pa.int64()).to_pylist())
    assert sum(sizes) == rows and abs(sizes[2] / rows - 0.1) < 0.05
    assert manifest["sequences"]["carried"] == source["label"].sum() - sum(
        manifest["splits"][name]["positives"] for name in ("train", "valid", "test")
    )


def test_refuses_what_cannot_be() -> None:
    folders = {"input": Path("a"), "out": Path("b")}
    with pytest.raises(ValueError, match=r"prepare\.cluster_visits=0: expected at least 1"):
        PrepareConfig(**folders, cluster_visits=0)
    with pytest.raises(ValueError, match=r"prepare\.sample_days=0: expected more than 0 days"):
        PrepareConfig(**folders, sample_days=0)
    with pytest.raises(ValueError, match="needs whole lives, and after carries 256 visits"):
        PrepareConfig(**folders, after=Path("c"), cluster_visits=20)
