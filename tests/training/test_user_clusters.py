"""Users' semantic IDs in training: their clusters in AKT-Rec, whose IDs are refused where, new users, export."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokens import K, make_codes, write_tokens

from placerank.data.batches.features import FeatureConfig
from placerank.data.batches.loader import SampleLoader
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.evaluation.evaluate import EvaluateConfig, evaluate
from placerank.rankers.dense import RankerConfig
from placerank.rankers.exported import ExportedRanker
from placerank.rankers.plugins.akt import AktConfig
from placerank.rankers.ranker import Ranker
from placerank.tokenization.codes.semantic_ids import SemanticIds
from placerank.training.export import ExportConfig, export
from placerank.training.inference import load_scorer
from placerank.training.inputs import read_inputs
from placerank.training.runtime import runtime
from placerank.training.train import TrainConfig, train

USER_CODES = 3 * K  # more than items have


@dataclass(frozen=True)
class World:
    data: Path
    items: Path
    users: Path
    extended: Path
    other: Path
    ids: SemanticIds


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The first user has no ID in ``users``, and one in ``extended``."""
    folder = tmp_path_factory.mktemp("world")
    raw = simulate(SimulateConfig(out=folder / "raw", items=150, users=70, requests=300, candidates=6, cities=2))
    data = prepare(PrepareConfig(input=raw, out=folder / "data", history_length=8))
    items, users = (
        pq.read_table(data / f"{file}.parquet")[name].combine_chunks()[1:]
        for file, name in (("catalog", "item_id"), ("users", "user_id"))
    )
    codes = np.random.default_rng(3).integers(0, USER_CODES, (len(users), 3))
    of_users = SemanticIds.first(users[1:], codes[1:], USER_CODES, "users", "user")
    return World(
        data,
        write_tokens(folder / "items", SemanticIds.first(items, make_codes(len(items), 0), K, "items")),
        write_tokens(folder / "users", of_users),
        write_tokens(folder / "extended", of_users.added(users[:1], codes[:1])),
        write_tokens(folder / "other", SemanticIds.first(users, codes, USER_CODES, "others", "user")),
        of_users,
    )


def small(world: World, run: Path, **features: Any) -> TrainConfig:
    of = {"semantic_ids": world.items, "user_semantic_ids": world.users} | features
    return TrainConfig(
        data=world.data, run=run, batch_size=256, epochs=1, patience=0,
        features=FeatureConfig(embedding_dim=8, pooled_dim=4, **of), ranker=RankerConfig(mlp=[16], tower="din"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    config = small(world, tmp_path_factory.mktemp("trained") / "run")
    train(config)
    return config


def test_the_cluster_is_the_first_code_and_of_nobody_else_none(world: World, tmp_path: Path) -> None:
    config = small(world, tmp_path)
    assert config.ranker.akt.users is True and config.ranker.akt.enabled is True
    inputs = read_inputs(config.data, config.features, config.ranker)
    (table,) = (t for t in inputs.features.pooled if t.name == "user_cluster")
    assert table.rows == USER_CODES + 1
    catalog = inputs.catalog(torch.device("cpu"))
    known = dict(zip(world.ids.ids.to_pylist(), world.ids.codes[:, 0].tolist(), strict=True))
    users = pq.read_table(world.data / "users.parquet")["user_id"].to_pylist()
    sample = next(iter(SampleLoader(world.data, "train", 400)))
    batch = catalog.expand(sample)
    want = [1 + known[users[u]] if users[u] in known else 0 for u in sample.user[sample.request].tolist()]
    assert batch.pooled["user_cluster"].values().tolist() == want and min(want) == 0 < max(want)
    strangers = replace(sample, user=torch.zeros_like(sample.user))
    assert not catalog.expand(strangers).pooled["user_cluster"].values().any()
    two = replace(config.ranker, akt=replace(config.ranker.akt, prefix=2))
    inputs = read_inputs(config.data, config.features, two)
    assert next(t.rows for t in inputs.features.pooled if t.name == "user_cluster") == USER_CODES**2 + 1


def test_tail_users_learn_from_heads_of_their_cluster(world: World, tmp_path: Path) -> None:
    """Of more clusters than items have; the loss reaches the users' rows alone."""
    config = small(world, tmp_path)
    inputs = read_inputs(config.data, config.features, config.ranker)
    catalog = inputs.catalog(torch.device("cpu"))
    torch.manual_seed(0)
    ranker = Ranker(inputs.features, config.ranker, device="cpu")
    scores = ranker(catalog.expand(next(iter(SampleLoader(config.data, "train", 1000)))))
    scores.losses["akt_users"].backward()
    grad = ranker.embeddings.pooled.embedding_bags["user"].weight.grad
    assert grad is not None and grad[~catalog.on_host["user_head"]].any()
    assert not grad[catalog.on_host["user_head"]].any() and not grad[1].any(), "a user without an ID has no cluster"


def test_export_scores_as_the_run_and_other_ids_are_refused(world: World, trained: TrainConfig, tmp_path: Path) -> None:
    with runtime(0) as rt:
        score, _, saved = load_scorer(trained.run, rt)
        want = torch.cat([score(sample)[: sample.valid] for sample in SampleLoader(world.data, "test", 97)])
    assert saved["user_semantic_ids"] == world.ids.hash
    ranker = ExportedRanker.load(export(ExportConfig(run=trained.run, out=tmp_path / "export")))
    got = torch.cat([ranker.score(sample) for sample in SampleLoader(world.data, "test", 130)])
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    more = export(ExportConfig(run=trained.run, out=tmp_path / "more", user_semantic_ids=world.extended))
    rows = pq.read_table(more / "users.parquet")["user_cluster_row"].to_pylist()
    assert rows[0] == 0 < min(rows[1:])
    evaluate(EvaluateConfig(run=trained.run, user_semantic_ids=world.extended, out=tmp_path / "evaluation"))

    def told(text: str, act: Callable[[], object]) -> None:
        with pytest.raises(ValueError, match=text):
            act()

    short = r"trained with users' semantic IDs \w{12}, features.user_semantic_ids has \w{12}; expected the same folder"
    told(short, lambda: export(ExportConfig(run=trained.run, out=tmp_path / "no", user_semantic_ids=world.other)))
    told(short, lambda: evaluate(EvaluateConfig(run=trained.run, user_semantic_ids=world.other, out=tmp_path / "no")))
    later = replace(trained, run=tmp_path / "later", warm_start=trained.run)
    of = trained.features
    told(short, lambda: train(replace(later, features=replace(of, user_semantic_ids=world.other))))
    train(replace(later, features=replace(of, user_semantic_ids=world.extended)))


def test_whose_ids_go_where(world: World, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds 'user_tokens', expected 'tokens'; check the path"):
        train(small(world, tmp_path / "run", semantic_ids=world.users))
    with pytest.raises(ValueError, match="holds 'tokens', expected 'user_tokens'; check the path"):
        train(small(world, tmp_path / "run", user_semantic_ids=world.items))
    with pytest.raises(ValueError, match=r"makes clusters of users, and ranker.akt.enabled or ranker.akt.users is off"):
        small(world, tmp_path / "run", semantic_ids=None)
    akt = AktConfig(users=False)
    with pytest.raises(ValueError, match=r"makes clusters of users, and ranker.akt.enabled or ranker.akt.users is off"):
        replace(small(world, tmp_path / "run"), ranker=RankerConfig(akt=akt))
    few = replace(world.ids, ids=world.ids.ids[:9], codes=world.ids.codes[:9], suffixes=world.ids.suffixes[:9])
    config = small(world, tmp_path / "run", user_semantic_ids=write_tokens(tmp_path / "few", few))
    rows = read_inputs(config.data, config.features, config.ranker).read_users()["user_cluster_row"].to_numpy()
    assert (rows > 0).sum() == 9, "those of whom nothing is known have none"
    foreign = replace(few, ids=pa.array(np.arange(-9, 0)))
    config = small(world, tmp_path / "run", user_semantic_ids=write_tokens(tmp_path / "foreign", foreign))
    with pytest.raises(ValueError, match=r"has 9 semantic IDs, the data has \d+ users, and they share 0: expected IDs"):
        read_inputs(config.data, config.features, config.ranker).read_users()
    ids = pa.array([f"u{i}" for i in range(20)])
    strange = SemanticIds.first(ids, np.zeros((20, 3), np.int64), K, "strange", "user")
    with pytest.raises(ValueError, match=r"has semantic IDs of users with string ids, the data's are int64"):
        train(small(world, tmp_path / "run", user_semantic_ids=write_tokens(tmp_path / "strange", strange)))
