"""From samples to the ranker's batch: what belongs to an item comes once, whoever met it."""

import numpy as np
import pyarrow as pa
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from placerank.data.batches.activity import ACTIVITY_DIM, activity_features
from placerank.data.batches.batch import SampleBatch
from placerank.data.batches.catalog import Catalog, with_columns
from placerank.data.batches.features import CLUSTER, FeatureConfig, Features, build_features

ITEMS, USERS, NOW = 9, 4, 1_700_000_000
DAY = 86_400


def make_catalog(features: Features) -> Catalog:
    rng = np.random.default_rng(0)
    category = rng.integers(0, 5, ITEMS)
    items = pa.table(
        {
            "item_id": np.arange(ITEMS),
            "lat": rng.uniform(40, 41, ITEMS),
            "lon": rng.uniform(10, 11, ITEMS),
            "category_row": category,
            "brand_row": rng.integers(0, 3, ITEMS),
            "category_path": pa.array([[c] for c in category.tolist()], pa.list_(pa.int32())),
            "positives": np.array([0, 0, 1, 5, 20, 40, 90, 200, 999]),
            "last_positive": NOW - DAY * np.arange(ITEMS),
        }
    )
    users = pa.table({"user_id": np.arange(USERS), "positives": np.array([0, 3, 50, 400])})
    cluster = torch.tensor([0, 1, 1, 2, 2, 3, 3, 3, 1])
    return Catalog(with_columns(items, {CLUSTER: cluster}), users, features, torch.device("cpu"))


def make_features(**config: list[str]) -> Features:
    sizes = {"item": ITEMS, "user": USERS, "category": 5, "brand": 3}
    return build_features(FeatureConfig(**config), sizes, [], traits=True, semantic={CLUSTER: 4})


def make_sample(target: list[int], histories: list[list[int]]) -> SampleBatch:
    lengths, count = [len(h) for h in histories], len(target)
    visits = [item for history in histories for item in history]
    one = torch.ones(count, dtype=torch.int64)
    ids = KeyedJaggedTensor(
        keys=["user", "item", "history"],
        values=torch.tensor([*[1] * count, *target, *visits], dtype=torch.int64),
        lengths=torch.cat([one, one, torch.tensor(lengths, dtype=torch.int64)]),
    )
    hours = torch.arange(len(visits), 0, -1).float()
    places = torch.full((count,), 40.5), torch.full((count,), 10.5)
    return SampleBatch(ids, hours, one.float(), one, one, one * NOW, *places, one.int(), None, count)


def test_each_item_comes_once_and_everything_is_found_there() -> None:
    features = make_features()
    catalog = make_catalog(features)
    target, histories = [5, 3, 5], [[3, 8, 3], [], [5, 0]]
    batch = catalog.expand(make_sample(target, histories))
    items = batch.items.to_dict()
    found = items["item"].values()
    assert found.tolist() == [0, 3, 5, 8]
    assert found[batch.dense.target].tolist() == target
    parts = [found[part].tolist() for part in batch.dense.visits.split(batch.dense.offsets.diff().tolist())]
    assert parts == histories
    assert list(items) == features.item_keys == ["item", "item_category", "item_brand", "item_cluster"]
    for name in ("category", "brand", CLUSTER):
        assert torch.equal(items[f"item_{name}"].values(), catalog.item_rows[name][found])
    traits, losses = batch.dense.traits, batch.dense.loss_inputs
    assert traits is not None and losses is not None
    assert torch.equal(traits.attributes, catalog.attributes[found])
    assert torch.equal(traits.activity, catalog.activity[found])
    assert torch.equal(losses.item_cluster, catalog.item_rows[CLUSTER][found])
    assert torch.equal(losses.item_head, catalog.item_head[found]) and losses.item_head.any()
    assert torch.equal(losses.place, catalog.place[found])
    assert losses.user_head.shape == (3,)
    firsts = [target.index(item) for item in sorted({*target})]
    assert losses.first_targets.tolist() == firsts
    assert batch.dense.lengths.tolist() == [len(h) for h in histories]


def test_no_history_and_no_sample_are_batches_too() -> None:
    catalog = make_catalog(make_features())
    alone = catalog.expand(make_sample([7], [[]]))
    assert alone.items["item"].values().tolist() == [7] and alone.dense.visits.shape == (0,)
    assert alone.dense.offsets.tolist() == [0, 0]
    none = catalog.expand(make_sample([], []))
    assert none.items["item"].values().shape == (0,) and none.dense.offsets.tolist() == [0]


def test_activity_of_item_and_user_as_a_plain_feature() -> None:
    catalog = make_catalog(make_features(dense=["visits", "activity"]))
    batch = catalog.expand(make_sample([8, 1], [[3, 3, 2], []]))
    assert batch.dense.features.shape == (2, 1 + 2 * ACTIVITY_DIM) == (2, catalog.features.dense_dim)
    _, of_item, of_user = batch.dense.features.split([1, ACTIVITY_DIM, ACTIVITY_DIM], dim=1)
    assert torch.equal(of_item, catalog.activity[[8, 1]])
    want = activity_features(torch.tensor([3, 0]), torch.tensor([1 / 24, torch.nan]))
    torch.testing.assert_close(of_user, want)
    sizes = {"item": ITEMS, "user": USERS, "category": 5}
    plain = build_features(FeatureConfig(dense=["activity"]), sizes, [])
    assert make_catalog(plain).expand(make_sample([8], [[3]])).dense.features.shape == (1, 2 * ACTIVITY_DIM), (
        "without plug-ins"
    )
