"""Semantic IDs, ReST and AKT-Rec from the config to the exported file: each alone, all together, on ranks, resumed."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from manifests import write_prepared
from runs import metrics, train_and_die, train_here
from tokens import K, make_codes, write_tokens
from torch import Tensor
from toy_ranker import BATCH, FEATURES, OPTIMIZER, RANKER, fill, initial_ranker

from placerank.cli.settings import RankOptions, parse, to_toml
from placerank.data.batches.catalog import Catalog
from placerank.data.batches.features import FeatureConfig
from placerank.data.batches.loader import SampleLoader
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.embeddings.reader import load_table
from placerank.evaluation.evaluate import EvaluateConfig, evaluate
from placerank.rankers.dense import RankerConfig
from placerank.rankers.exported import ExportedRanker
from placerank.rankers.plugins.akt import AktConfig
from placerank.rankers.plugins.rest import RestConfig
from placerank.rankers.ranker import Ranker
from placerank.tokenization.codes.semantic_ids import SemanticIds
from placerank.training.checkpoint import load
from placerank.training.export import ExportConfig, export
from placerank.training.identity import Identity
from placerank.training.inference import load_scorer
from placerank.training.inputs import read_inputs
from placerank.training.model import assemble, table_rows
from placerank.training.run_files import find_checkpoint
from placerank.training.runtime import runtime
from placerank.training.sharding import ShardingConfig
from placerank.training.steps import plain_steps
from placerank.training.tasks import make_task
from placerank.training.train import TrainConfig, _Loop, train

AnyRanks = Callable[..., list[Any]]
REST = RestConfig(
    enabled=True, warm_up=True, centres=5, refresh_every=4, positive_km=300, negative_km=300, attribute_dropout=0.2
)
AKT = AktConfig(enabled=True, users=True, views=True, view_visits=4)


@dataclass(frozen=True)
class World:
    """A prepared folder, and folders of tokens for its items."""

    data: Path
    codes: Path
    ngrams: Path
    extended: Path
    other: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    raw = simulate(SimulateConfig(out=folder / "raw", items=200, users=90, requests=400, candidates=8, cities=3))
    data = prepare(PrepareConfig(input=raw, out=folder / "data", history_length=12))
    items = pq.read_table(data / "catalog.parquet")["item_id"].combine_chunks()[1:]
    most = len(items) - 20  # the last ones come later
    first = SemanticIds.first(items[:most], make_codes(most, 0), K, "tokenizer")
    return World(
        data,
        write_tokens(folder / "codes", first),
        write_tokens(folder / "ngrams", first, "prefix_ngrams"),
        write_tokens(folder / "extended", first.added(items[most:], make_codes(20, 1))),
        write_tokens(folder / "other", SemanticIds.first(items, make_codes(len(items), 0), K, "another tokenizer")),
    )


def small(world: World, run: Path, tokens: Path | None = None, **ranker: Any) -> TrainConfig:
    return TrainConfig(
        data=world.data,
        run=run,
        features=FeatureConfig(embedding_dim=8, pooled_dim=4, semantic_ids=tokens),
        ranker=RankerConfig(mlp=[16], **ranker),
        optimizer=OPTIMIZER,
        batch_size=256,
        epochs=1,
        log_every=1,
        patience=0,
    )


def everything(world: World, run: Path, **changes: Any) -> TrainConfig:
    return replace(small(world, run, world.codes, rest=REST, akt=AKT), **changes)


def saved_tables(config: TrainConfig) -> dict[str, Any]:
    manifest = json.loads((find_checkpoint(config.run, "latest") / "manifest.json").read_text())
    tables: dict[str, Any] = manifest["signature"]["tables"]
    return tables


REST_LOSSES, AKT_LOSSES = {"rest_loss"}, {"akt_items_loss", "akt_users_loss"}
LEVEL_TABLES, CLUSTER_TABLES = {"semantic_1", "semantic_2", "semantic_3"}, {"cluster", "user_cluster"}


@pytest.mark.parametrize(
    ("kind", "tower", "losses", "tables"),
    [
        ("codes", "din", set(), LEVEL_TABLES),
        ("ngrams", "din", set(), {"prefix_1", "prefix_2", "prefix_3"}),
        ("rest", "din", REST_LOSSES, set()),
        ("contrast", "din", REST_LOSSES, set()),
        ("akt", "din", AKT_LOSSES, LEVEL_TABLES | CLUSTER_TABLES),
        ("all", "din", REST_LOSSES | AKT_LOSSES, LEVEL_TABLES | CLUSTER_TABLES),
        ("all", "trisan", REST_LOSSES | AKT_LOSSES, LEVEL_TABLES | CLUSTER_TABLES),
    ],
)
def test_each_trains(kind: str, tower: str, losses: set[str], tables: set[str], world: World, tmp_path: Path) -> None:
    tokens = {"ngrams": world.ngrams, "rest": None, "contrast": None}.get(kind, world.codes)
    none = {"akt": AktConfig(enabled=False)}
    plugins: dict[str, Any] = {
        "rest": {"rest": REST},
        "contrast": {"rest": replace(REST, warm_up=False, attribute_dropout=0.0)},
        "akt": {"akt": AKT},
        "all": {"rest": REST, "akt": AKT},
    }
    config = small(world, tmp_path / "run", tokens, tower=tower, **plugins.get(kind, none))
    train(config)
    lines = metrics(config.run, "train")
    assert len(lines) > 8 and lines[0].keys() & (REST_LOSSES | AKT_LOSSES) == losses
    assert all(lines[-1][name] > 0 for name in losses)
    assert sum(x["loss"] for x in lines[-3:]) < sum(x["loss"] for x in lines[:3])
    drift = [line["rest_drift"] for line in lines if "rest_drift" in line]
    refreshes = sum(step in (1, 2) or step % REST.refresh_every == 0 for step in range(len(drift)))
    assert not drift or (drift[0] == 0 and len(set(drift)) == refreshes)
    made = {n for n in saved_tables(config) if n.startswith(("semantic", "prefix")) or n.endswith("cluster")}
    assert made == tables


def centres(run: Path) -> Tensor:
    found = {"model": {"dense.contrast.centres.centres": torch.zeros(REST.centres, 8)}}
    load(find_checkpoint(run, "latest"), found)
    return found["model"]["dense.contrast.centres.centres"]


def test_killed_and_resumed_has_the_losses_of_an_undisturbed_run(world: World, tmp_path: Path, ranks: AnyRanks) -> None:
    """Killed in the second epoch; a refresh of the centres falls on the checkpoint that it goes on from."""
    changes: dict[str, Any] = {"epochs": 2, "checkpoint_every": REST.refresh_every, "batch_size": 300}
    whole, broken = (everything(world, tmp_path / name, **changes) for name in ("whole", "broken"))
    ranks(1, train_here, whole)
    ranks(1, train_and_die, broken, 10, killed=True)
    ranks(1, train_here, replace(broken, resume=True))
    for split in ("train", "valid"):
        assert metrics(broken.run, split) == metrics(whole.run, split)
    assert centres(whole.run).any() and torch.equal(centres(whole.run), centres(broken.run))


def trainer_scores(config: TrainConfig) -> Tensor:
    """Logits of this rank's part of the test split, by the trainer's own sharded model."""
    with runtime(0) as rt:
        score, _, _ = load_scorer(config.run, rt)
        batches = SampleLoader(config.data, "test", 97, rank=rt.rank, world_size=rt.world_size)
        return torch.cat([score(sample)[: sample.valid] for sample in batches])


MIXED = {"item": "row_wise", "cluster": "row_wise", "semantic_1": "column_wise", "brand": "column_wise"}


def test_two_ranks_export_what_they_score(world: World, tmp_path: Path, ranks: AnyRanks) -> None:
    config = everything(world, tmp_path / "run", sharding=ShardingConfig(tables=MIXED, default="row_wise"))
    ranks(2, train_here, config)
    logits = torch.cat(ranks(2, trainer_scores, config))
    ranker = ExportedRanker.load(export(ExportConfig(run=config.run, out=tmp_path / "export", format="npy")))
    scored = torch.cat([ranker.score(sample) for sample in SampleLoader(world.data, "test", 130)])
    assert logits.std() > 0.1
    torch.testing.assert_close(scored, logits, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run with everything, on one rank."""
    config = everything(world, tmp_path_factory.mktemp("trained") / "run")
    train(config)
    return config


def loaded_ranker(config: TrainConfig) -> tuple[Ranker, Catalog]:
    """The newest checkpoint in one process, with plain tables."""
    inputs = read_inputs(config.data, config.features, config.ranker)
    ranker = Ranker(inputs.features, config.ranker, device="cpu")
    load(find_checkpoint(config.run, "latest"), {"model": ranker.state_dict()})
    return ranker.eval(), inputs.catalog(torch.device("cpu"))


@pytest.mark.parametrize(
    ("format", "dtype", "off"),
    [("parquet", "fp32", 0), ("npy", "fp16", 1e-3), ("safetensors", "int8", 1e-2), ("faiss", "fp32", 0)],
)
@torch.no_grad()
def test_final_vectors_are_those_that_the_ranker_computes(
    format: str, dtype: str, off: float, trained: TrainConfig, tmp_path: Path
) -> None:
    names = ["item_final", "user_final"]
    how: dict[str, Any] = {"format": format, "dtype": dtype, "checkpoint": "latest", "block_rows": 37}
    out = export(ExportConfig(run=trained.run, out=tmp_path / "export", tables=names, **how))
    items, users = (load_table(out, name) for name in names)
    assert items.ids.to_pylist() == pq.read_table(trained.data / "catalog.parquet")["item_id"].to_pylist()
    assert users.ids.to_pylist() == pq.read_table(trained.data / "users.parquet")["user_id"].to_pylist()
    ranker, catalog = loaded_ranker(trained)
    newest: dict[int, tuple[int, Tensor]] = {}
    for sample in SampleLoader(trained.data, "train", 500):
        batch = catalog.expand(sample)
        rows = ranker.embeddings(batch)
        encoded = ranker.dense.scorer.encode(rows.items, rows.pooled, batch.dense.traits)
        want = items.vectors(batch.items["item"].values())
        torch.testing.assert_close(encoded.items.vectors, want, rtol=0, atol=max(off, 1e-6))
        at = ranker.dense.scorer.users.names.index("user")
        for user, time, vector in zip(
            sample.user[sample.request].tolist(),
            sample.time[sample.request].tolist(),
            encoded.pooled.split(4, dim=1)[at],
            strict=True,
        ):
            if user and (user not in newest or time > newest[user][0]):
                newest[user] = time, vector
    assert len(newest) > 30
    got = users.vectors(torch.tensor(list(newest)))
    torch.testing.assert_close(got, torch.stack([v for _, v in newest.values()]), rtol=0, atol=max(off, 1e-6))
    own, cluster = (ranker.embeddings.pooled.embedding_bags[n].weight[0] for n in ("user", "user_cluster"))
    alone = ranker.dense.scorer.users.mix(
        own[None], cluster[None], catalog.user_activity(torch.zeros(2).long(), own[:0])
    )
    torch.testing.assert_close(users.vectors(torch.tensor([0])), alone, rtol=0, atol=max(off, 1e-6))


def test_final_vectors_are_left_out_where_they_are_the_tables(world: World, tmp_path: Path) -> None:
    config = small(world, tmp_path / "run")
    train(config)
    with pytest.raises(ValueError, match=r"tables: got 'item_final', this ranker has item, category, brand, user"):
        export(ExportConfig(run=config.run, out=tmp_path / "out", tables=["item_final"]))


def steps_on_ranks(config: TrainConfig, kind: str, count: int) -> dict[str, Tensor]:
    """Logits, losses and centres of some steps from weights that do not depend on how tables are cut."""
    with runtime(0) as rt:
        inputs = read_inputs(config.data, config.features, config.ranker)
        sharding = ShardingConfig(default=kind)
        trainee = assemble(inputs.features, config.ranker, sharding, OPTIMIZER, rt, config.batch_size, 4.0)
        torch.manual_seed(7)
        fill(trainee.model, Ranker(inputs.features, config.ranker, device="cpu").state_dict())
        torch.manual_seed(rt.rank)  # of attribute dropout
        task = make_task(inputs, inputs.catalog(rt.device), trainee.model, rt, config.batch_size, config.seed)
        loop = _Loop(config, rt, task, trainee, Identity.of(inputs, config.ranker))
        batches = (task.expand(task.gather(sample)) for sample in task.loader)
        out: dict[str, list[Tensor]] = {}
        for logged in islice(plain_steps(trainee, loop._forward, batches), count):
            loop.step += 1
            for name, value in logged.items():
                out.setdefault(name, []).append(value.detach())
        found = {name: torch.stack(values) for name, values in out.items()}
        return found | {"centres": trainee.model.module.dense.contrast.centres.centres}


def test_steps_do_not_depend_on_how_tables_are_cut(world: World, tmp_path: Path, ranks: AnyRanks) -> None:
    config = everything(world, tmp_path / "run", batch_size=100)
    whole, cut = (ranks(2, steps_on_ranks, config, kind, 6) for kind in ("table_wise", "row_wise"))
    for a, b in zip(whole, cut, strict=True):
        assert a.keys() > REST_LOSSES | AKT_LOSSES
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert torch.equal(whole[0]["centres"], whole[1]["centres"]) and whole[0]["centres"].any()
    assert not torch.equal(whole[0]["rest_loss"], whole[1]["rest_loss"]), "each rank has its own samples"


def rows_on_ranks(kind: str, rows: Tensor) -> Tensor:
    with runtime(0) as rt:
        trainee = assemble(FEATURES, RANKER, ShardingConfig(default=kind), OPTIMIZER, rt, BATCH, 2.0)
        fill(trainee.model, initial_ranker().state_dict())
        return table_rows(trainee.model, "category", rows)


@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "column_wise"])
def test_every_rank_gets_the_rows_of_a_table(kind: str, ranks: AnyRanks) -> None:
    rows = torch.tensor([12, 0, 7, 7, 3])
    want = initial_ranker().state_dict()["embeddings.sequence.embeddings.category.weight"][rows]
    for got in ranks(2, rows_on_ranks, kind, rows):
        assert torch.equal(got, want)


def test_one_way_losses_leave_the_rows_of_heads_alone(world: World) -> None:
    """Through the wired ranker: gradients of the tables, exactly zero for heads, not for tails."""
    config = everything(world, Path("run"))
    inputs = read_inputs(config.data, config.features, config.ranker)
    catalog = inputs.catalog(torch.device("cpu"))
    torch.manual_seed(0)
    ranker = Ranker(inputs.features, config.ranker, device="cpu")
    scores = ranker(catalog.expand(next(iter(SampleLoader(config.data, "train", 1000)))))
    tables = ranker.embeddings.sequence.embeddings["item"], ranker.embeddings.pooled.embedding_bags["user"]
    heads = catalog.rows(torch.arange(catalog.items)).head, catalog.on_host["user_head"]
    for loss, table, head in zip(("akt_items", "akt_users"), tables, heads, strict=True):
        ranker.zero_grad()
        scores.losses[loss].backward(retain_graph=True)
        grad = table.weight.grad
        assert head.any() and torch.equal(grad[head], torch.zeros_like(grad[head]))
        assert grad[~head].abs().sum(dim=1).gt(0).float().mean() > 0.3
        others = [p.grad for p in ranker.parameters() if p is not table.weight and p.grad is not None]
        assert not any(x.any() for x in others), "nothing else learns from it"


def test_semantic_ids_are_those_of_training_or_come_from_them(
    world: World, trained: TrainConfig, tmp_path: Path
) -> None:
    def told(text: str, act: Callable[[], object]) -> None:
        with pytest.raises(ValueError, match=text):
            act()

    run = Path(shutil.copytree(trained.run, tmp_path / "run"))
    config = replace(trained, run=run, resume=True)
    extended, other = (replace(config.features, semantic_ids=tokens) for tokens in (world.extended, world.other))
    short = r"trained with semantic IDs \w{12}, features.semantic_ids has \w{12}; expected"
    told(short, lambda: train(replace(config, features=other, epochs=2)))
    told(short, lambda: export(ExportConfig(run=run, out=tmp_path / "out", semantic_ids=world.other)))
    told(short, lambda: evaluate(EvaluateConfig(run=run, semantic_ids=world.other)))
    evaluate(EvaluateConfig(run=run, semantic_ids=world.extended))
    out = export(ExportConfig(run=run, out=tmp_path / "out", semantic_ids=world.extended, tables=["cluster"]))
    assert (pq.read_table(out / "catalog.parquet")["cluster_row"].to_numpy()[1:] > 0).all(), "new items have theirs"
    train(replace(config, features=extended, epochs=2))
    assert len(metrics(run, "valid")) == 2
    mean = r"trained with semantic IDs .*Codes of another tokenizer mean other things"
    told(mean, lambda: train(replace(config, epochs=3)))  # trained with more by now
    (run / "config.json").write_text((run / "config.json").read_text().replace(str(world.extended), str(world.ngrams)))
    told("tables.prefix_1.rows: saved None, now", lambda: export(ExportConfig(run=run, out=tmp_path / "no")))


def test_what_plugins_lack_is_told_and_costs_no_run(world: World, tmp_path: Path) -> None:
    config = small(world, tmp_path / "run", rest=REST)
    train(config)
    again = replace(config, overwrite=True)
    no_attributes = replace(config.features, history_attributes=[])
    with pytest.raises(ValueError, match="rest is enabled, but no item has a category or a brand"):
        train(replace(again, features=no_attributes))
    only_brand = replace(REST, contrast=["brand"])
    with pytest.raises(ValueError, match=r"rest.contrast=\['brand'\]: these items have category; contrast one that"):
        train(
            replace(
                again,
                ranker=RankerConfig(rest=only_brand),
                features=replace(config.features, history_attributes=["category"]),
            )
        )
    with pytest.raises(ValueError, match="akt is enabled, but there are no semantic IDs to make clusters of; set"):
        train(replace(again, ranker=RankerConfig(akt=AKT)))
    with pytest.raises(FileNotFoundError, match="expected a finished 'tokens' folder; run the step"):
        train(replace(again, features=replace(config.features, semantic_ids=tmp_path)))
    nowhere = without_places(world.data, tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"rest contrasts items by where they are, and none has coordinates; leave"):
        train(replace(again, data=nowhere))
    assert len(metrics(config.run, "valid")) == 1, "the run is there still"
    read_inputs(nowhere, config.features, RankerConfig(rest=replace(REST, contrast=[]))).catalog(torch.device("cpu"))


def without_places(data: Path, folder: Path) -> Path:
    """The catalog of a prepared folder, without coordinates."""
    manifest = json.loads((data / "manifest.json").read_text())
    items = pq.read_table(data / "catalog.parquet")
    for name in ("lat", "lon"):
        nulls = pa.nulls(len(items), pa.float64())
        items = items.set_column(items.column_names.index(name), name, nulls)
    folder.mkdir()
    pq.write_table(items, folder / "catalog.parquet")
    pq.write_table(pq.read_table(data / "users.parquet"), folder / "users.parquet")
    write_prepared(folder, **{n: manifest[n] for n in ("tables", "user_columns", "splits")})
    return folder


def test_flags_and_files_name_the_plugins(tmp_path: Path) -> None:
    flags = ["--data", "d", "--run", "r", "--features.semantic-ids", "t", "--ranker.rest.enabled"]
    flags += ["--ranker.rest.no-align", "--ranker.rest.positive-km", "inf", "--ranker.rest.contrast", "brand"]
    flags += ["--ranker.akt.views", "--ranker.akt.prefix", "2"]
    config, _ = parse("placerank train", TrainConfig, RankOptions, flags)
    assert config.features.semantic_ids == Path("t")
    rest = RestConfig(enabled=True, align=False, positive_km=float("inf"), contrast=["brand"])
    assert config.ranker == RankerConfig(rest=rest, akt=AktConfig(enabled=True, users=False, views=True, prefix=2))
    (tmp_path / "run.toml").write_text(to_toml(config))
    again, _ = parse("placerank train", TrainConfig, RankOptions, ["--config", str(tmp_path / "run.toml")])
    assert again == config


def test_clusters_come_with_semantic_ids_unless_told() -> None:
    def enabled(*flags: str) -> bool | None:
        config, _ = parse("placerank train", TrainConfig, RankOptions, ["--data", "d", "--run", "r", *flags])
        return config.ranker.akt.enabled

    tokens = "--features.semantic-ids", "t"
    assert enabled() is False and enabled(*tokens) is True
    assert enabled(*tokens, "--ranker.akt.enabled", "False") is False
    assert enabled("--ranker.akt.enabled", "True") is True, "for read_inputs to refuse"
