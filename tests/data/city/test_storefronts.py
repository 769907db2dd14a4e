"""Storefronts: the rest of the city is as without them, and they show category, chain and price."""

import filecmp
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.city.storefronts import SIZE, draw
from placerank.data.city.words import COARSE, LEAVES
from placerank.data.manifest import read_manifest
from placerank.data.raw.schema import read_items

SMALL: dict[str, Any] = {"items": 300, "users": 100, "requests": 200, "cities": 1, "days": 20}


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(SimulateConfig(out=tmp_path_factory.mktemp("city") / "raw", pictures=True, **SMALL))


def pixels(city: Path) -> np.ndarray:
    """Of all items, [N, SIZE, SIZE, 3]."""
    return np.stack([np.asarray(Image.open(city / path)) for path in read_items(city)["image"].to_pylist()])


def test_the_rest_of_the_city_is_the_same(city: Path, tmp_path: Path) -> None:
    plain = simulate(SimulateConfig(out=tmp_path / "plain", **SMALL))
    assert pq.read_table(city / "items.parquet").drop_columns(["image"]).equals(pq.read_table(plain / "items.parquet"))
    for name in ("users.parquet", "interactions.parquet"):
        assert filecmp.cmp(city / name, plain / name, shallow=False)
    assert not (plain / "pictures").exists()
    again = simulate(SimulateConfig(out=tmp_path / "again", pictures=True, **SMALL))
    names = [path.name for path in (city / "pictures").iterdir()]
    assert filecmp.cmpfiles(city / "pictures", again / "pictures", names, shallow=False)[0] == names
    read_manifest(city, "raw", verify=True)


def test_they_show_category_chain_and_price(city: Path) -> None:
    items, x = read_items(city), pixels(city).astype(float)
    assert x.shape == (300, SIZE, SIZE, 3)
    coarse = np.array([COARSE.index(path[0]) for path in items["category"].to_pylist()])
    wall = x[:, 20:30, :4].mean((1, 2))
    wall /= np.linalg.norm(wall, axis=1, keepdims=True)
    means = np.stack([wall[coarse == c].mean(0) for c in range(len(COARSE))])
    assert (((wall[:, None] - means) ** 2).sum(2).argmin(1) == coarse).mean() > 0.8
    brand, awning = np.array(items["brand"].to_pylist(), object), x[:, 14:17].mean(1)
    awning /= awning.mean((1, 2), keepdims=True)  # without the light
    apart = ((awning[:, None] - awning[None]) ** 2).mean((2, 3))
    same = (brand[:, None] == brand[None]) & (brand[:, None] != None) & ~np.eye(300, dtype=bool)  # noqa: E711
    assert np.median(apart[same]) < 0.5 * np.median(apart[~same])
    rng, cheap_dear = np.random.default_rng(0), [-1.5, 1.5]
    cheap, dear = (np.mean([draw(0, rng.random(2), False, d, rng)[:12, :4] for _ in range(50)]) for d in cheap_dear)
    assert dear < 0.75 * cheap


def test_every_leaf_has_a_sign_of_its_own_in_its_category() -> None:
    signs = []
    for leaf in range(len(LEAVES)):
        mean = np.mean([draw(leaf, np.zeros(2), False, 0.0, np.random.default_rng(i)) for i in range(8)], 0)
        signs.append(mean[:13])
    for a in range(len(LEAVES)):
        for b in range(a):
            assert np.abs(signs[a] - signs[b]).mean() > 3, (LEAVES[a], LEAVES[b])
