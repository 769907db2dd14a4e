"""Own columns from a delivery-like table to a trained ranker and its export: the same scores, on one rank or two."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from delivery import write_delivery
from torch import Tensor

from placerank.data.batches.catalog import Catalog
from placerank.data.batches.features import FeatureConfig, build_features, generative_features
from placerank.data.batches.loader import SampleLoader
from placerank.data.manifest import read_manifest
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.embeddings.reader import load_table
from placerank.rankers.dense import RankerConfig
from placerank.rankers.exported import ExportedRanker
from placerank.rankers.plugins.rest import RestConfig
from placerank.training.export import ExportConfig, export
from placerank.training.inference import load_scorer
from placerank.training.runtime import runtime
from placerank.training.train import TrainConfig, train

TOML = """
[items.rating]
kind = "number"
[items.kitchen]
joins = "history"
[items.cuisines]
table = "cuisine"
[users.likes]
kind = "list"
table = "cuisine"
[users.age]
kind = "number"
[interactions.fee]
kind = "number"
[interactions.device]
rows = 50
width = 12
"""
REST = RankerConfig(
    mlp=[16], rest=RestConfig(enabled=True, warm_up=True, contrast=["category", "kitchen", "brand"], weight=0.1)
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = write_delivery(tmp_path_factory.mktemp("own") / "raw", csv=True)
    (raw / "features.toml").write_text(TOML + "[items.address]\nuse = false\n")
    return prepare(PrepareConfig(input=raw, out=raw.parent / "data", format="csv", row_group_rows=500))


def config(data: Path, run: Path, **changes: Any) -> TrainConfig:
    made = TrainConfig(
        data=data, run=run, features=FeatureConfig(embedding_dim=8), ranker=REST, batch_size=128, epochs=1
    )
    return replace(made, **changes)


def train_run(data: Path, run: Path) -> None:
    train(config(data, run))


def scores(data: Path, run: Path) -> Tensor:
    with runtime(0) as rt:
        score, _, _ = load_scorer(run, rt)
        batches = SampleLoader(data, "test", 100, rank=rt.rank, world_size=rt.world_size)
        return torch.cat([score(sample)[: sample.valid] for sample in batches])


def test_batches_hold_what_the_tables_say(data: Path) -> None:
    """Every row and number of a batch against the prepared tables, looked up one by one."""
    manifest = read_manifest(data, "prepared")
    features = build_features(
        FeatureConfig(), manifest["tables"], manifest["user_columns"], own=manifest["own"], traits=True
    )
    items, users = (pq.read_table(data / f"{n}.parquet").to_pylist() for n in ("catalog", "users"))
    catalog = Catalog.load(data, features)
    assert features.attributes == ["category", "brand", "kitchen"]
    by_name = {t.name: t for t in features.tables}
    assert by_name["cuisine"].features == ("likes", "cuisines") and by_name["cuisine"].mean
    assert (
        by_name["device"].dim == 12
        and by_name["device"].rows == 51
        and by_name["kitchen"].features == ("item_kitchen",)
    )
    sample = next(iter(SampleLoader(data, "train", 40)))
    batch = catalog.expand(sample)
    pooled = {k: v.to_dense() for k, v in batch.pooled.to_dict().items()}
    dense = batch.dense.features[:, -2 * len(features.numbers) :]
    for b in range(len(sample)):
        r = int(sample.request[b])
        item, user = items[int(sample.item[b])], users[int(sample.user[r])]
        assert (
            pooled["cuisines"][b].tolist() == item["cuisines_rows"]
            and pooled["likes"][b].tolist() == user["likes_rows"]
        )
        assert pooled["item_vip"][b].tolist() == [item["vip_row"]] and pooled["plan"][b].tolist() == [user["plan_row"]]
        assert pooled["device"][b].tolist() == [int(sample.own["device"][r])]
        numbers = {"rating": item["rating_number"], "age": user["age_number"], "fee": float(sample.own["fee"][b])}
        want = [x for o in features.numbers for x in ((0, 0) if np.isnan(numbers[o.name]) else (numbers[o.name], 1))]
        assert dense[b].tolist() == pytest.approx(want)
    of_target = batch.items.to_dict()["item_kitchen"].values()[batch.dense.target]
    assert of_target.tolist() == [items[int(i)]["kitchen_row"] for i in sample.item]


def test_scores_are_the_same_from_the_export(data: Path, tmp_path: Path) -> None:
    """The whole way; and each own column moves the scores."""
    train_run(data, tmp_path / "run")
    want = scores(data, tmp_path / "run")
    out = export(ExportConfig(run=tmp_path / "run", out=tmp_path / "out"))
    ranker = ExportedRanker.load(out)
    batches = list(SampleLoader(data, "test", 150))
    got = torch.cat([ranker.score(sample) for sample in batches])
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    assert set(load_table(out, "cuisine").ids.to_pylist()) == {None, "thai", "pizza", "vegan", "ramen", "burger"}
    raw = {"device": pa.array(["ios", "symbian", None]), "fee": pa.array([2.5, None, float("nan")])}
    device, fee = (ranker.own_values(name, values) for name, values in raw.items())
    about = {c["name"]: c for c in read_manifest(data, "prepared")["own"]}["fee"]
    assert fee[0] == pytest.approx((2.5 - about["mean"]) / about["scale"], rel=1e-6) and fee[1:].isnan().all()
    assert 1 <= device[0] <= 50 and 1 <= device[1] <= 50 and device[2] == 0  # hashed
    assert int(device[0]) in {int(x) for sample in batches for x in sample.own["device"]}
    with pytest.raises(ValueError, match="own_values: got 'plan', this ranker's interactions have fee, device"):
        ranker.own_values("plan", raw["device"])
    for name in ("device", "fee"):
        for sample in batches:
            sample.own[name] = sample.own[name].flip(0)
        assert not torch.allclose(torch.cat([ranker.score(sample) for sample in batches]), got, atol=1e-4), name
    for sample in batches:
        del sample.own["fee"]
    with pytest.raises(ValueError, match="samples have no 'fee', which the ranker was trained with; they have device"):
        ranker.score(batches[0])


def test_raw_values_of_categories_and_buckets(tmp_path: Path) -> None:
    """As prepare took them, from what the export keeps: each training row's own value again."""
    raw = write_delivery(tmp_path / "raw")
    data = prepare(PrepareConfig(input=raw, out=tmp_path / "data"))
    train(config(data, tmp_path / "run", ranker=RankerConfig(mlp=[8])))
    ranker = ExportedRanker.load(export(ExportConfig(run=tmp_path / "run", out=tmp_path / "out")))
    rows = pq.read_table(raw / "interactions.parquet")
    ids = pq.read_table(data / "catalog.parquet")["item_id"].to_pylist()
    values = {n: ranker.own_values(n, rows[n].combine_chunks()).tolist() for n in ("device", "fee")}
    of = {}
    for i, key in enumerate(zip(rows["timestamp"].to_pylist(), rows["item_id"].to_pylist(), strict=True)):
        of.setdefault(key, []).append((values["device"][i], values["fee"][i]))
    for sample in SampleLoader(data, "train", 200):
        for b in range(sample.valid):
            r = int(sample.request[b])
            got = int(sample.own["device"][r]), int(sample.own["fee"][b])
            assert got in of[int(sample.time[r]), ids[int(sample.item[b])]]
    assert ranker.own_values("device", pa.array(["symbian", None])).tolist() == [0, 0]


def test_two_ranks(data: Path, ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    ranks(2, train_run, data, tmp_path / "run")
    want = torch.cat(ranks(2, scores, data, tmp_path / "run"))
    ranker = ExportedRanker.load(export(ExportConfig(run=tmp_path / "run", out=tmp_path / "out")))
    got = torch.cat([ranker.score(sample) for sample in SampleLoader(data, "test", 150)])
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_columns_are_chosen(data: Path) -> None:
    manifest = read_manifest(data, "prepared")
    known = manifest["tables"], manifest["user_columns"]
    few = build_features(FeatureConfig(own=["fee", "kitchen"]), *known, own=manifest["own"])
    assert [o.name for o in few.own] == ["kitchen", "fee"] and "plan" not in {t.name for t in few.pooled}
    none = build_features(FeatureConfig(own=[]), *known, own=manifest["own"])
    assert none == build_features(FeatureConfig(), manifest["tables"], []) and not none.own
    vip = build_features(
        FeatureConfig(history_attributes=["vip"], pooled=["user", "likes"]), *known, own=manifest["own"]
    )
    assert [t.name for t in vip.sequence] == ["item", "vip", "kitchen"]
    assert [t.name for t in vip.pooled] == ["user", "cuisine"]
    generative = generative_features(FeatureConfig(), *known, {}, own=manifest["own"])
    assert [t.name for t in generative.sequence] == ["item", "category", "brand", "kitchen"]
    assert [t.name for t in generative.pooled] == ["user", "plan"]
    alone = generative_features(FeatureConfig(own=[]), *known, {}, own=manifest["own"])
    assert [t.name for t in (*alone.sequence, *alone.pooled)] == ["item", "category", "brand", "user"]
    for config, message in (
        (FeatureConfig(own=["fees"]), "features.own: got 'fees', this data has plan, age"),
        (
            FeatureConfig(history_attributes=["cuisines"]),
            "features.history_attributes: got 'cuisines', expected some of",
        ),
        (FeatureConfig(pooled=["nobody"]), "features.pooled: got 'nobody', this data has user, hour"),
    ):
        with pytest.raises(ValueError, match=message):
            build_features(config, *known, own=manifest["own"])
