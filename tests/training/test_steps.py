"""The pipelined loop beside the plain one: towers and plug-ins, over validations, checkpoints, resumption.

Towers that keep or draw something with all that plug-ins add to them; twin alone and with each plug-in too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from runs import metrics
from tokens import K, make_codes, write_tokens
from torch import nn
from toy_ranker import BATCH, FEATURES, OPTIMIZER, RANKER, make_batch

from placerank.data.batches.features import FeatureConfig
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.rankers.dense import RankerConfig
from placerank.rankers.plugins.akt import AktConfig
from placerank.rankers.plugins.rest import RestConfig
from placerank.rankers.towers.tower import TOWERS, InterestTower, find_tower
from placerank.tokenization.codes.semantic_ids import SemanticIds
from placerank.training import train as train_module
from placerank.training.checkpoint import saved_steps
from placerank.training.model import OptimizerConfig, assemble
from placerank.training.runtime import Runtime, runtime
from placerank.training.sharding import ShardingConfig
from placerank.training.steps import pipelined_steps, plain_steps
from placerank.training.train import TrainConfig, train

AnyRanks = Callable[..., list[Any]]
REST = RestConfig(
    enabled=True,
    warm_up=True,
    centres=5,
    refresh_every=3,
    positive_km=300,
    negative_km=300,
    attribute_dropout=0.2,
    across_ranks=True,
)
GATE = AktConfig(enabled=True, users=True)
PLUGINS: dict[str, tuple[bool, dict[str, Any]]] = {
    "plain": (False, {}),
    "semantic_ids": (True, {"akt": AktConfig(enabled=False)}),
    "rest": (False, {"rest": REST}),
    "akt": (True, {"akt": GATE}),
    "views": (True, {"akt": replace(GATE, views=True, view_visits=4), "rest": REST}),
}


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data`` of some hundred samples and ``tokens`` for its items."""
    folder = tmp_path_factory.mktemp("city")
    raw = simulate(SimulateConfig(out=folder / "raw", items=80, users=40, requests=120, candidates=6, cities=2))
    data = prepare(PrepareConfig(input=raw, out=folder / "data", history_length=8))
    items = pq.read_table(data / "catalog.parquet")["item_id"].combine_chunks()[1:]
    write_tokens(folder / "tokens", SemanticIds.first(items, make_codes(len(items), 0), K, "tokenizer"))
    return folder


def configs(city: Path, tower: str, ranks: int) -> Iterator[TrainConfig]:
    """Six steps of two epochs, with validations in the middle of them."""
    for plugins, (semantic, changes) in PLUGINS.items():
        if tower != "twin" and plugins != "views":
            continue
        yield TrainConfig(
            data=city / "data",
            run=Path(f"{tower}-{plugins}"),
            features=FeatureConfig(embedding_dim=8, pooled_dim=4, semantic_ids=city / "tokens" if semantic else None),
            ranker=RankerConfig(tower=tower, mlp=[8], **changes),
            sharding=ShardingConfig(
                tables={"item": "row_wise", "category": "data_parallel"},
                catalog="sharded" if semantic else "replicated",
            ),
            batch_size=160 // ranks,
            epochs=2,
            validate_every=2 if plugins == "plain" else 4,
            checkpoint_every=3,  # where the first epoch ends: with several ranks a save averages running statistics
            log_every=1,
            patience=0,
        )


def trains_within(rt: Runtime) -> None:
    """From here on ``train`` uses process groups that are there, instead of making and leaving its own."""

    @contextmanager
    def given(seed: int) -> Iterator[Runtime]:
        torch.manual_seed(seed + rt.rank)
        yield rt

    train_module.runtime = given  # type: ignore[assignment]


def train_both_ways(all_configs: list[TrainConfig], folder: Path, all_resume: bool = True) -> None:
    """Plain without a stop in ``plain``; in ``pipelined`` an epoch, and the other one resumed (of some configs)."""
    with runtime(0) as rt:
        trains_within(rt)
        for config in all_configs:
            train(replace(config, run=folder / "plain" / config.run, pipelined=False))
            piped = replace(config, run=folder / "pipelined" / config.run, pipelined=True)
            resume = all_resume or config.run.name.endswith(("plain", "views"))
            if resume:
                train(replace(piped, epochs=1))
            train(replace(piped, resume=resume))


def keeps_or_draws(name: str) -> bool:
    """Whether a tower has statistics of the steps before, numbers drawn when it is made, or a loss of what it draws.

    Any other is a function of what both loops read from the same tables, and of weights that both move in the same way.
    """
    tower = find_tower(name)(8, 2)
    return any(True for _ in tower.buffers()) or type(tower).forward_with_loss is not InterestTower.forward_with_loss


# The default tower stands for those that keep nothing. One rank has nothing in its pieces that two have not.
CASES = [("twin", 1), *((tower, 2) for tower in sorted(TOWERS) if tower == "twin" or keeps_or_draws(tower))]


@pytest.mark.parametrize("tower, world_size", CASES)
def test_pipelined_is_plain_to_the_last_digit(
    tower: str, world_size: int, city: Path, tmp_path: Path, ranks: AnyRanks
) -> None:
    every = list(configs(city, tower, world_size))
    ranks(world_size, train_both_ways, every, tmp_path, world_size == 1, timeout=280)
    for config in every:
        plain, piped = (tmp_path / way / config.run for way in ("plain", "pipelined"))
        losses = metrics(plain, "train")
        assert len(losses) >= 6 and losses == metrics(piped, "train"), config.run
        validations = metrics(plain, "valid")
        assert validations and validations == metrics(piped, "valid"), config.run
        assert saved_steps(plain / "checkpoints")[-1] == saved_steps(piped / "checkpoints")[-1] == losses[-1]["step"]


# When to stop is told by validations alone: one config on each number of ranks, the one of two with a plug-in.
@pytest.mark.parametrize("world_size, plugins", [(1, "plain"), (2, "rest")])
def test_an_early_stop_is_the_same(world_size: int, plugins: str, city: Path, tmp_path: Path, ranks: AnyRanks) -> None:
    still = OptimizerConfig(table_lr=1e-30, dense_lr=1e-30)
    every = [c for c in configs(city, "twin", world_size) if c.run.name.endswith(plugins)]
    some = [replace(c, optimizer=still, patience=1, epochs=5, validate_every=2) for c in every]
    assert len(some) == 1
    ranks(world_size, train_both_ways, some, tmp_path)
    for config in some:
        plain, piped = (metrics(tmp_path / way / config.run, "train") for way in ("plain", "pipelined"))
        assert plain == piped and plain[-1]["step"] in (4, 6, 8), (
            "stopped at a validation that was no better, of 15 steps"
        )


def left_in_the_middle() -> None:
    with runtime(0) as rt:
        trainee = assemble(FEATURES, RANKER, ShardingConfig(), OPTIMIZER, rt, BATCH, 2.0)

        def forward(batch: Any) -> Any:
            logits = trainee.model(batch).logits
            return nn.functional.binary_cross_entropy_with_logits(logits, batch.label), {"logits": logits.detach()}

        for way in (pipelined_steps, plain_steps, pipelined_steps):
            steps = way(trainee, forward, map(make_batch, range(9)))
            for _ in range(2):
                next(steps)
            steps.close()
            trainee.model(make_batch(99))


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_loop_that_is_left_gives_the_model_back(world_size: int, ranks: AnyRanks) -> None:
    ranks(world_size, left_in_the_middle)
