"""Lists: distinct places, drawn by neighbour rank; labels by distance."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placerank.tokenization.alignment.locations import Lists, Locations
from placerank.tokenization.text.prompts import PromptConfig, Prompts, build_prompts


def grid(n: int, per: int, seed: int = 0) -> tuple[Prompts, np.ndarray, np.ndarray]:
    """n items on a line eastwards along the equator, ``per`` in a row share a district."""
    lon = np.arange(n) * 0.01
    table = pa.table({"name": [f"item {i}" for i in range(n)], "district": [f"d{i // per}" for i in range(n)]})
    return build_prompts(table, PromptConfig()), np.zeros(n), lon


@settings(max_examples=30, deadline=None)
@given(n=st.integers(4, 60), per=st.integers(1, 2), k=st.integers(1, 20), density=st.booleans(), seed=st.integers(0, 9))
def test_no_two_candidates_of_a_list_read_the_same(n: int, per: int, k: int, density: bool, seed: int) -> None:
    prompts, lat, lon = grid(n, per)
    places = Locations(prompts, lat, lon)
    items = np.arange(n)
    lists = places.lists(items, k, density, np.random.default_rng(seed))
    assert lists.items.shape == (n, 1 + min(k, len(places) - 1))
    assert (lists.items[:, 0] == items).all()
    assert all(len(set(places.code[row])) == len(row) for row in lists.items)
    np.testing.assert_allclose(
        lists.km, np.abs(lon[lists.items] - lon[items, None]) * np.pi / 180 * 6371.0088, rtol=1e-6
    )


def test_labels_by_hand() -> None:
    lists = Lists(np.zeros((2, 4), np.int64), np.array([[0, 5.0, 1.0, 9.0], [0, 2.0, 2.0, 0.0]]))
    np.testing.assert_allclose(lists.labels, [[1, 1 / 3, 2 / 3, 0], [1, 1 / 3, 1 / 3, 1]])


def test_density_aware_draws_are_log_uniform_in_neighbour_rank() -> None:
    """Against the probabilities of a single draw, worked out rank by rank."""
    prompts, lat, lon = grid(64, 1)
    places = Locations(prompts, lat, lon)
    drawn = places.lists(np.zeros(40_000, np.int64), 1, True, np.random.default_rng(0)).items[:, 1]
    counts = np.bincount(drawn, minlength=64)
    rank = np.arange(1, 64)  # on the line, the j-th item is the j-th neighbour of item 0
    expected = np.log((rank + 1) / rank) / np.log(64)
    np.testing.assert_allclose(counts[1:] / len(drawn), expected, atol=4 * np.sqrt(0.1 / len(drawn)))
    assert counts[0] == 0


def test_dense_centres_yield_nearer_places_than_sparse_suburbs() -> None:
    rng = np.random.default_rng(0)
    lat = np.concatenate([rng.normal(0, 0.01, 500), rng.normal(0, 0.3, 100)])
    lon = np.concatenate([rng.normal(0, 0.01, 500), rng.normal(1.5, 0.3, 100)])
    table = pa.table({"name": ["x"] * 600, "district": [f"d{i}" for i in range(600)]})
    places = Locations(build_prompts(table, PromptConfig()), lat, lon)
    km = {d: places.lists(np.arange(600), 15, d, rng).km[:, 1:] for d in (True, False)}
    nearest = {d: x.min(1) for d, x in km.items()}
    assert np.median(nearest[True][:500]) < 0.2 * np.median(nearest[True][500:])
    assert np.median(nearest[True]) < 0.5 * np.median(nearest[False])


def test_elsewhere_is_elsewhere() -> None:
    prompts, lat, lon = grid(30, 10)
    places = Locations(prompts, lat, lon)
    a, b = np.arange(30), (np.arange(30) + 10) % 30
    drawn = places.elsewhere(a, b, rng=np.random.default_rng(0))
    assert (places.code[drawn] == (places.code[a] + 2) % 3).all()
    two = Locations(*grid(20, 10))
    assert (two.elsewhere(np.array([0]), np.array([15]), rng=np.random.default_rng(0)) == -1).all()


def test_items_without_place_are_left_out_and_nothing_to_learn_is_told() -> None:
    prompts, lat, lon = grid(20, 2)
    lat[3] = np.nan
    places = Locations(prompts, lat, lon)
    assert 3 not in places.known and places.code[3] == -1 and places.count[1] == 1
    lists = places.lists(places.known, 9, True, np.random.default_rng(0))
    assert 3 not in lists.items
    with pytest.raises(
        ValueError, match=r"the 20 items have 1 different location texts, expected at least 2.*--districts"
    ):
        Locations(*grid(20, 20))
    with pytest.raises(ValueError, match=r"all 20 items lie at one point \(0.0, 0.0\)"):
        Locations(prompts, np.zeros(20), np.zeros(20))
