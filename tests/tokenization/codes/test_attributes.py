"""Features of HGIT's first level: what is near what, what drops out, and values never seen."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from placerank.tokenization.codes.attributes import AttributeFeatures, raw_blocks

EVEN = {"admin": 1.0, "geo": 1.0, "category": 1.0, "brand": 1.0}


def table(**columns: list) -> pa.Table:
    types = {"category": pa.list_(pa.string()), "lat": pa.float64(), "lon": pa.float64()}
    return pa.table({k: pa.array(v, types.get(k, pa.string())) for k, v in columns.items()})


def items(rows: int = 200) -> pa.Table:
    rng = np.random.default_rng(0)
    district = rng.integers(0, 12, rows)
    return table(
        province=[f"p{d // 6}" for d in district],
        city=[f"c{d // 3}" for d in district],
        district=[f"d{d}" for d in district],
        lat=list(30 + district / 10 + rng.normal(0, 0.01, rows)),
        lon=list(120 + district / 7 + rng.normal(0, 0.01, rows)),
        category=[["Dining", f"k{k}", "deep"] for k in rng.integers(0, 5, rows)],
        brand=[None if b > 3 else f"b{b}" for b in rng.integers(0, 8, rows)],
    )


def distance(x: Tensor, i: int, j: int) -> float:
    return float((x[i] - x[j]).square().sum())


def test_items_come_closer_with_every_level_they_share() -> None:
    x, known = raw_blocks(
        table(
            province=["p", "p", "p", "p", "q"],
            city=["c", "c", "c", "e", "c"],
            district=["d", "d", "f", "d", "d"],
        )
    )["admin"]
    assert known.all() and distance(x, 0, 1) == 0
    assert 0 < distance(x, 0, 2) < distance(x, 0, 3) < distance(x, 0, 4)


def test_one_name_in_two_cities_is_two_districts() -> None:
    x, _ = raw_blocks(table(city=["c", "e"], district=["d", "d"]))["admin"]
    only_city, _ = raw_blocks(table(city=["c", "e"]), admin_scale=(1, 1, 1))["admin"]
    assert distance(x, 0, 1) > 1.5 * distance(only_city, 0, 1)


def test_different_values_lie_about_equally_far_apart() -> None:
    x, _ = raw_blocks(table(brand=[f"brand {i}" for i in range(300)]))["brand"]
    torch.testing.assert_close(x.square().sum(1), torch.ones(300))
    off = torch.pdist(x).square()
    assert abs(float(off.mean()) - 2) < 0.05 and float(off.min()) > 0.3


def test_hashes_are_the_same_in_every_version() -> None:
    """IDs of new items depend on it: these are the signs of "Ramen" under no parent, written down once."""
    x, _ = raw_blocks(table(brand=["Ramen"]))["brand"]
    word = sum(int(v > 0) << i for i, v in enumerate(x[0].tolist()))
    assert word == 1431834890


def test_every_block_has_variance_one_times_its_weight() -> None:
    weights = {"admin": 2.0, "geo": 1.0, "category": 0.5, "brand": 3.0}
    features = AttributeFeatures.fit(items(), weights, chunk_rows=64)
    x = features(items()).double()
    assert x.shape == (200, features.dim) == (200, 32 + 3 + 32 + 32)
    start = 0
    known = torch.tensor([b is not None for b in items()["brand"].to_pylist()])
    for name, dim in (("admin", 32), ("geo", 3), ("category", 32), ("brand", 32)):
        block = x[:, start : start + dim]
        block = block[known] if name == "brand" else block
        torch.testing.assert_close(block.mean(0), torch.zeros(dim).double(), atol=1e-5, rtol=0)
        assert float(block.square().sum(1).mean()) == pytest.approx(weights[name] ** 2, rel=1e-4)
        start += dim
    assert (x[~known, -32:] == 0).all(), "an item without a brand lies at the mean of the brands"


@pytest.mark.parametrize("name", ["admin", "geo", "category", "brand"])
def test_what_is_missing_or_alike_drops_out(name: str) -> None:
    columns = {"admin": ["province", "city", "district"], "geo": ["lat", "lon"]}.get(name, [name])
    whole = AttributeFeatures.fit(items(), EVEN)
    less = AttributeFeatures.fit(items().drop_columns(columns), EVEN)
    assert set(whole.weights) - set(less.weights) == {name}
    nothing = items().to_pydict() | {c: [items()[c][0].as_py()] * 200 for c in columns}
    assert set(AttributeFeatures.fit(table(**nothing), EVEN).weights) == set(less.weights)
    empty = items().to_pydict() | {c: [None] * 200 for c in columns}
    assert set(AttributeFeatures.fit(table(**empty), EVEN).weights) == set(less.weights)


def test_a_short_or_missing_category_path_is_legal() -> None:
    x, known = raw_blocks(table(category=[["a", "b", "c"], ["a"], [], None, ["a", "b"]]))["category"]
    assert known.tolist() == [True, True, False, False, True]
    assert distance(x, 0, 4) == 0, "the third level does not count"
    assert distance(x, 0, 1) > 0


def test_nothing_to_go_by_is_told() -> None:
    with pytest.raises(
        ValueError, match=r"got columns .*name.* expected at least one of province, city, district, lat"
    ):
        AttributeFeatures.fit(table(name=["a", "b"]), EVEN)
    with pytest.raises(ValueError, match=r"expected at least one of"):
        AttributeFeatures.fit(items(), dict.fromkeys(EVEN, 0.0))


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(max_size=4), st.none() | st.text(max_size=3)), min_size=2, max_size=20), st.data())
def test_an_items_features_depend_on_nothing_but_the_item(rows: list, data: st.DataObject) -> None:
    """Also for values that were not there when the means were fitted."""
    features = AttributeFeatures.fit(items(), EVEN)
    some = table(
        city=[r[0] for r in rows],
        brand=[r[1] for r in rows],
        lat=[1.0] * len(rows),
        lon=[2.0] * len(rows),
    )
    order = data.draw(st.permutations(range(len(rows))))
    assert torch.equal(features(some)[order], features(some.take(pa.array(order, pa.int64()))))


def test_state_is_everything() -> None:
    features = AttributeFeatures.fit(items(), EVEN)
    again = AttributeFeatures.from_state(features.state())
    assert torch.equal(features(items()), again(items()))


def test_own_columns_have_blocks_where_a_weight_asks() -> None:
    """A category is a vector by its name and text, a list the mean of its values'; where there is none it is told."""
    own = {"own.kitchen": pa.array(["gas", "wood", None, "gas"]),
           "own.tags": pa.array([["a", "b"], ["a"], [], None], pa.list_(pa.string()))}  # fmt: skip
    some = pa.table({"brand": ["x", "y", "x", "y"], **own})
    blocks = raw_blocks(some)
    kitchen, known = blocks["own.kitchen"]
    assert known.tolist() == [True, True, False, True] and torch.equal(kitchen[0], kitchen[3])
    other, _ = raw_blocks(pa.table({"own.other": ["gas"]}))["own.other"]
    assert distance(kitchen, 0, 1) > 0.3 and not torch.equal(kitchen[:1], other)
    tags, known = blocks["own.tags"]
    alone, _ = raw_blocks(pa.table({"own.tags": pa.array([["a"], ["b"]])}))["own.tags"]
    assert known.tolist() == [True, True, False, False]
    torch.testing.assert_close(tags[0], alone.mean(0))
    assert torch.equal(tags[1], alone[0]) and not tags[2:].any()
    without = AttributeFeatures.fit(some, {"brand": 1.0})
    features = AttributeFeatures.fit(some, {"brand": 1.0, "own.tags": 2.0, "own.kitchen": 0.5})
    assert torch.equal(AttributeFeatures.fit(some.select(["brand"]), {"brand": 1.0})(some), without(some))
    assert list(features.weights) == ["brand", "own.tags", "own.kitchen"] and features.dim == 3 * without.dim
    with_them = features(some)
    torch.testing.assert_close(AttributeFeatures.from_state(features.state())(some)[:, :32], with_them[:, :32])
    assert not with_them[2, 32:].any() and with_them[0, 32:].any()
