"""The simulated city: the same for a seed, true to its probabilities, within reach, and hard enough."""

import filecmp
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

from placerank.data.city import simulate as module
from placerank.data.city.delivery import DEVICES, effect
from placerank.data.city.oracle import Oracle
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.city.words import LEAVES
from placerank.data.city.world import KM_PER_DEGREE, flat_km
from placerank.data.manifest import read_manifest
from placerank.data.raw.schema import iter_interactions, read_items
from placerank.kernels.haversine import haversine_km

SMALL: dict[str, Any] = {"items": 600, "users": 400, "requests": 4_000, "cities": 2, "days": 60}


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(SimulateConfig(out=tmp_path_factory.mktemp("city") / "raw", **SMALL))


@pytest.fixture(scope="module")
def tables(city: Path) -> tuple[pa.Table, pa.Table]:
    items = read_items(city)
    return items, pa.concat_tables(iter_interactions(city, items["item_id"]))


def column(table: pa.Table, name: str) -> np.ndarray:
    array: np.ndarray = table[name].to_numpy()
    return array


def test_the_schema_accepts_it(city: Path, tables: tuple[pa.Table, pa.Table]) -> None:
    items, shown = tables
    users = pq.read_table(city / "users.parquet")
    assert users.column_names == ["user_id", "age_group", "home_city"]
    assert len(users) == SMALL["users"] and column(users, "user_id").tolist() == list(range(1, SMALL["users"] + 1))
    assert column(items, "item_id").tolist() == list(range(1, SMALL["items"] + 1))
    assert all(items[name].null_count == 0 for name in ("name", "category", "price", "province", "city", "district"))
    assert set(map(tuple, items["category"].to_pylist())) <= set(LEAVES)
    manifest = read_manifest(city, "raw", verify=True)
    assert manifest["rows"] == {"items": len(items), "users": len(users), "interactions": len(shown)}
    assert len(np.unique(column(shown, "request_id"))) > 0.99 * SMALL["requests"]


def test_places_are_real_cities_with_chains(tables: tuple[pa.Table, pa.Table]) -> None:
    items, _ = tables
    assert set(items["city"].to_pylist()) == {"Rotterdam", "Amsterdam"}
    assert set(items["province"].to_pylist()) == {"South Holland", "North Holland"}
    centre = {"Rotterdam": (51.9225, 4.4792), "Amsterdam": (52.374, 4.8897)}
    lat0, lon0 = np.array([centre[c] for c in items["city"].to_pylist()]).T
    km = flat_km(lat0, lon0, column(items, "lat"), column(items, "lon"))
    assert np.median(km) < 8 and km.max() < 40
    brands = items["brand"].drop_null().value_counts().to_pylist()
    assert 0.3 < sum(b["counts"] for b in brands) / len(items) < 0.6 and max(b["counts"] for b in brands) >= 10
    rows = items.filter(items["brand"].is_valid()).to_pylist()
    assert all(r["name"] == f"{r['brand']} {r['city']} {r['district']}" for r in rows)
    one_leaf: dict[str, str] = {}
    assert all(one_leaf.setdefault(r["brand"], r["category"][1]) == r["category"][1] for r in rows)


def test_requests_are_one_user_at_one_moment_in_order(tables: tuple[pa.Table, pa.Table]) -> None:
    _, shown = tables
    request, time = column(shown, "request_id"), column(shown, "timestamp")
    assert (np.diff(time) >= 0).all() and (np.diff(request) >= 0).all()
    assert time.min() >= module.START and time.max() < module.START + SMALL["days"] * module.DAY
    first = np.concatenate([[True], np.diff(request) > 0])
    group = np.cumsum(first) - 1
    for name in ("user_id", "timestamp", "user_lat", "user_lon"):
        values = column(shown, name)
        assert (values == values[first][group]).all()
    pairs = request * (SMALL["items"] + 1) + column(shown, "item_id")
    assert len(np.unique(pairs)) == len(pairs)


def test_nothing_beyond_reach(tmp_path: Path) -> None:
    config = SimulateConfig(out=tmp_path / "raw", **{**SMALL, "requests": 500}, reach_km=1.5)
    items = read_items(simulate(config))
    shown = pa.concat_tables(iter_interactions(config.out, items["item_id"]))
    at = column(shown, "item_index")
    places = [column(items, name)[at] for name in ("lat", "lon")]
    km = haversine_km(
        *(torch.from_numpy(x.copy()) for x in (column(shown, "user_lat"), column(shown, "user_lon"), *places))
    )
    assert 1.0 < km.max() <= 1.5


def test_labels_follow_the_probabilities(tables: tuple[pa.Table, pa.Table]) -> None:
    _, shown = tables
    p, label = column(shown, "probability").astype(float), column(shown, "label")
    assert p.min() > 0 and p.max() < 1
    assert abs(p.mean() - 0.18) < 0.01
    for low, high in ((0, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 1)):
        rows = (p >= low) & (p < high)
        error = np.sqrt((p[rows] * (1 - p[rows])).sum()) / rows.sum()
        assert abs(label[rows].mean() - p[rows].mean()) < 4 * error


def test_popularity_has_a_long_tail(tables: tuple[pa.Table, pa.Table]) -> None:
    _, shown = tables
    for name, size in (("item_id", SMALL["items"]), ("user_id", SMALL["users"])):
        counts = np.sort(np.bincount(column(shown, name) - 1, minlength=size))[::-1]
        assert counts[: size // 10].sum() > 2.5 * size // 10 * counts.mean()
        assert counts[0] > 4 * np.median(counts)


def test_distance_and_popularity_get_less_than_half_way(tables: tuple[pa.Table, pa.Table]) -> None:
    items, shown = tables
    at, label, n = column(shown, "item_index"), column(shown, "label"), len(shown)
    train, test = np.arange(n) < 0.8 * n, np.arange(n) >= 0.8 * n
    km = flat_km(
        column(shown, "user_lat"), column(shown, "user_lon"), column(items, "lat")[at], column(items, "lon")[at]
    )
    clicks = np.bincount(at[train], label[train], minlength=len(items))
    oracle = roc_auc_score(label[test], column(shown, "probability")[test])
    assert 0.8 < oracle < 0.9
    for score in (-km, clicks[at]):
        assert 0.5 < roc_auc_score(label[test], score[test]) < 0.5 + (oracle - 0.5) / 2


def test_same_seed_same_bytes(city: Path, tmp_path: Path) -> None:
    again = simulate(SimulateConfig(out=tmp_path / "again", **SMALL))
    names = ["items.parquet", "users.parquet", "interactions.parquet"]
    assert filecmp.cmpfiles(city, again, names, shallow=False) == (names, [], [])
    other = simulate(SimulateConfig(out=tmp_path / "other", seed=1, **SMALL))
    assert filecmp.cmpfiles(city, other, names, shallow=False)[1] == names


def test_blocks_stream_as_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 300)
    config = SimulateConfig(out=tmp_path / "raw", **{**SMALL, "requests": 1_000})
    simulate(config)
    file = pq.ParquetFile(config.out / "interactions.parquet")
    assert file.num_row_groups == 4
    time = column(file.read(), "timestamp")
    assert (np.diff(time) >= np.timedelta64(0)).all()


@pytest.mark.parametrize("country", ["US", "LU"])
def test_other_countries_and_tiny_cities(tmp_path: Path, country: str) -> None:
    config = SimulateConfig(
        out=tmp_path / "raw", country=country, cities=1, items=60, users=5, requests=40, candidates=3, days=1
    )
    items = read_items(simulate(config))
    shown = pa.concat_tables(iter_interactions(config.out, items["item_id"]))
    assert 0 < len(shown) <= 120
    assert items["province"][0].as_py() == {"US": "New York", "LU": "LU.LU"}.get(country)


def test_bad_configs(tmp_path: Path) -> None:
    config = SimulateConfig(out=tmp_path / "raw")
    for changes, message in [
        ({"items": 0}, "items: got 0, expected at least 1"),
        ({"reach_km": 0.0}, "reach_km: got 0.0, expected more than 0"),
        ({"click_rate": 1.0}, "click_rate: got 1.0, expected more than 0 and less than 1"),
        ({"seed": -1}, "seed: got -1, expected 0 or more"),
    ]:
        with pytest.raises(ValueError, match=message):
            replace(config, **changes)
    with pytest.raises(ValueError, match="country: got 'nl', expected an ISO 3166 code of two capital letters"):
        simulate(replace(config, country="nl"))
    with pytest.raises(ValueError, match=r"cities: got 900, but LU has \d+ of over 15,000 people; ask for fewer"):
        simulate(replace(config, country="LU", cities=900))
    (tmp_path / "raw").mkdir()
    with pytest.raises(FileExistsError, match="raw exists; choose another folder, or pass --overwrite"):
        simulate(config)


def test_flat_distance_is_near_the_sphere() -> None:
    lat = np.array([52.0, -33.0, 0.0])
    got = flat_km(lat, np.zeros(3), lat + 0.05, np.full(3, 0.05))
    want = haversine_km(*(torch.from_numpy(x) for x in (lat, np.zeros(3), lat + 0.05, np.full(3, 0.05))))
    np.testing.assert_allclose(got, want, rtol=1e-3)
    assert abs(KM_PER_DEGREE - np.pi / 180 * 6371.0088) < 1e-3


def test_delivery_leaves_the_rest_of_the_city_as_it_is(tmp_path: Path) -> None:
    """The same places, people and offers; clicks follow the probability that the columns move as told."""
    plain, with_ = (simulate(SimulateConfig(out=tmp_path / str(on), delivery=on, **SMALL)) for on in (False, True))
    for name, more in (("items", ["rating", "dishes"]), ("users", ["looks_for"]), ("interactions", ["fee", "device"])):
        one, two = (pq.read_table(folder / f"{name}.parquet") for folder in (plain, with_))
        assert two.column_names == one.column_names + more
        same = [c for c in one.column_names if c not in ("label", "probability")]
        assert two.select(same).equals(one.select(same))
    rows, before = two.to_pydict(), column(one, "probability")
    items, users = (pq.read_table(with_ / f"{n}.parquet").to_pylist() for n in ("items", "users"))
    item, user = ([table[i - 1] for i in rows[f"{n}_id"]] for n, table in (("item", items), ("user", users)))
    rating = np.array([np.nan if i["rating"] is None else i["rating"] for i in item])
    fits = np.array([u["looks_for"] in i["dishes"] for i, u in zip(item, user, strict=True)])
    device = np.array([DEVICES.index(d) for d in rows["device"]])
    moved = np.log(rows["probability"]) - np.log1p(-np.array(rows["probability"])) - np.log(before) + np.log1p(-before)
    of_columns = effect(rating, fits, np.array(rows["fee"]), device)
    shift = moved - of_columns  # of the intercept, which keeps the click rate
    assert np.abs(shift - np.median(shift)).max() < 1e-3
    assert abs(np.mean(rows["label"]) - np.mean(rows["probability"])) < 0.01
    by_request = {(r, d) for r, d in zip(rows["request_id"], rows["device"], strict=True)}
    assert len(by_request) == len(set(rows["request_id"])) and {d for _, d in by_request} == set(DEVICES)
    with pytest.raises(ValueError, match="user, place and time alone have no probability"):
        Oracle(with_)


def test_villages_are_sparser_and_people_there_go_farther(tmp_path: Path) -> None:
    config = SimulateConfig(out=tmp_path / "raw", reach_km=30.0, countryside=0.4, **SMALL)
    items = read_items(simulate(config))
    shown = pa.concat_tables(iter_interactions(config.out, items["item_id"]))
    village = np.char.endswith(column(items, "city").astype(str), " Land")
    assert village.mean() == pytest.approx(0.4, abs=0.08)
    lat, lon = (torch.from_numpy(column(items, name)) for name in ("lat", "lon"))
    km = haversine_km(lat[:, None], lon[:, None], lat, lon).fill_diagonal_(torch.inf).sort(dim=1).values[:, 19]
    assert km[village].median() > 4 * km[~village].median()
    row = np.searchsorted(column(items, "item_id"), column(shown, "item_id"))
    far = haversine_km(
        *(torch.from_numpy(column(shown, name)) for name in ("user_lat", "user_lon")), lat[row], lon[row]
    ).numpy()
    clicked = column(shown, "label") == 1
    assert np.median(far[clicked & village[row]]) > 2 * np.median(far[clicked & ~village[row]])
