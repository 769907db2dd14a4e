"""Sharded = unsharded: outputs, updated tables, updated dense part."""

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.distributed.planner.types import PlannerError
from toy_ranker import (
    BATCH,
    FEATURES,
    OPTIMIZER,
    RANKER,
    fill,
    initial_ranker,
    local_pieces,
    make_batch,
    put_together,
    train_steps,
)

from placerank.data.batches.batch import RankingBatch
from placerank.data.batches.features import Table
from placerank.rankers.dense import RankerConfig
from placerank.rankers.ranker import Ranker
from placerank.training.model import Trainee, assemble
from placerank.training.runtime import runtime
from placerank.training.sharding import HUGE, LARGE, Ranks, ShardingConfig, _types, make_plan, make_planner, sharders
from placerank.training.steps import pipelined_steps, plain_steps

AnyRanks = Callable[..., list[Any]]
STEPS = 4


def train_sharded(kind: str) -> tuple[list[Tensor], dict[str, Any]]:
    with runtime(0) as rt:
        trainee = assemble(FEATURES, RANKER, ShardingConfig(default=kind), OPTIMIZER, rt, BATCH, 2.0)
        fill(trainee.model, initial_ranker().state_dict())
        outputs = train_steps(trainee, rt.rank, 0, STEPS)
        kinds = {p.sharding_type for plan in trainee.plan.plan.values() for p in plan.values()}  # type: ignore[attr-defined]
        assert kinds == {kind}
        return outputs, local_pieces(trainee.model.state_dict())


def train_unsharded(world_size: int, pieces: int) -> tuple[list[list[Tensor]], dict[str, Tensor]]:
    """The same steps in plain PyTorch: dense tables, the gradient averaged over ranks, row-wise Adagrad by hand."""
    ranker = initial_ranker()
    tables = dict(ranker.embeddings.named_parameters())
    states = {name: torch.zeros(p.shape[0], pieces) for name, p in tables.items()}
    adamw = torch.optim.AdamW(
        ranker.dense.scorer.parameters(), lr=OPTIMIZER.dense_lr, weight_decay=OPTIMIZER.weight_decay
    )
    outputs: list[list[Tensor]] = []
    for step in range(STEPS):
        ranker.zero_grad()
        outputs.append([])
        for rank in range(world_size):
            batch = make_batch(100 * step + rank)
            logits = ranker(batch).logits
            outputs[-1].append(logits.detach())
            (binary_cross_entropy_with_logits(logits, batch.label) / world_size).backward()
        adamw.step()
        with torch.no_grad():
            for name, p in tables.items():
                assert p.grad is not None
                grad = p.grad.view(p.shape[0], pieces, -1)
                states[name] += grad.square().mean(dim=2)
                p -= (OPTIMIZER.table_lr * grad / (states[name].sqrt() + 1e-8)[:, :, None]).view_as(p)
    return outputs, {k: v for k, v in copy.deepcopy(ranker.state_dict()).items() if "running_" not in k}


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "column_wise", "data_parallel"])
def test_sharded_equals_unsharded(kind: str, world_size: int, ranks: Callable[..., list[Any]]) -> None:
    results = ranks(world_size, train_sharded, kind)
    outputs, weights = train_unsharded(world_size, pieces=2 if kind == "column_wise" else 1)
    for rank, (sharded, _) in enumerate(results):
        for step in range(STEPS):
            torch.testing.assert_close(sharded[step], outputs[step][rank], rtol=1e-4, atol=1e-5)
    sharded_weights = put_together([pieces for _, pieces in results])
    assert sharded_weights.keys() >= weights.keys()
    for name in weights:
        value = sharded_weights[name]
        torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def pipelined_and_plain(kind: str) -> tuple[list[Tensor], list[Tensor]]:
    """Losses of the same steps both ways."""
    with runtime(0) as rt:
        found = []
        for way in (plain_steps, pipelined_steps):
            trainee = assemble(FEATURES, RANKER, ShardingConfig(default=kind), OPTIMIZER, rt, BATCH, 2.0)
            fill(trainee.model, initial_ranker().state_dict())

            def forward(batch: RankingBatch, trainee: Trainee = trainee) -> tuple[Tensor, dict[str, Tensor]]:
                loss = binary_cross_entropy_with_logits(trainee.model(batch).logits, batch.label)
                return loss, {"loss": loss.detach()}

            steps = way(trainee, forward, (make_batch(100 * step + rt.rank) for step in range(STEPS)))
            found.append([logged["loss"] for logged in steps])
        return found[0], found[1]


def test_replicated_tables_pass_through_the_pipeline(ranks: AnyRanks) -> None:
    for plain, piped in ranks(2, pipelined_and_plain, "data_parallel"):
        assert len(plain) == STEPS and plain == piped


def train_with_comms(precision: str) -> tuple[list[Tensor], dict[str, Any]]:
    """Steps on a loss with gradients of 1e-8, as large batches of well-known samples have."""
    with runtime(0) as rt:
        sharding = ShardingConfig(default="row_wise", forward_comms=precision, backward_comms=precision)
        trainee = assemble(FEATURES, RANKER, sharding, OPTIMIZER, rt, BATCH, 2.0)
        fill(trainee.model, initial_ranker().state_dict())
        outputs = []
        for step in range(STEPS):
            batch = make_batch(100 * step + rt.rank)
            logits = trainee.model(batch).logits
            outputs.append(logits.detach())
            (1e-6 * binary_cross_entropy_with_logits(logits, batch.label)).backward()
        return outputs, local_pieces(trainee.model.state_dict())


def test_rows_and_gradients_that_travel_in_16_bits(ranks: AnyRanks) -> None:
    """Gradients that fp16 has no number for arrive: with Adagrad a row moves as far by small ones as by large ones."""
    exact = ranks(2, train_with_comms, "fp32")
    rounded = ranks(2, train_with_comms, "fp16")
    for (want, _), (got, _) in zip(exact, rounded, strict=True):
        assert not torch.equal(got[0], want[0]), "it did travel as fp16"
        torch.testing.assert_close(torch.cat(got), torch.cat(want), rtol=1e-3, atol=1e-3)
    want, got = (put_together([pieces for _, pieces in found]) for found in (exact, rounded))
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-2, atol=2e-3, msg=lambda m, n=name: f"{n}: {m}")


def fail_to_plan() -> str:
    with runtime(0) as rt:
        features = replace(FEATURES, sequence=(Table("item", 1 << 50, 8, ("item",)), FEATURES.sequence[1]))
        with pytest.raises(ValueError) as error:
            make_plan(Ranker(features, RANKER), features, ShardingConfig(), BATCH, 2.0, rt)
        return str(error.value)


def test_tables_that_fit_nowhere_are_told_on_all_ranks(ranks: AnyRanks) -> None:
    one, other = ranks(2, fail_to_plan)
    assert one == other and "no plan puts these tables on 2 ranks of cpu" in one


def plan_on_gpus(ranks: int, config: ShardingConfig, catalog_bytes: int = 0, **tables: int) -> dict[str, Any]:
    """A plan for GPUs of 16 GiB: table -> (sharding type, kernel, cache's load factor). ``tables`` are users' rows."""
    pooled = tuple(Table(name, rows, 64, (name,)) for name, rows in tables.items())
    features = replace(FEATURES, pooled=FEATURES.pooled + pooled)
    model = Ranker(features, RANKER)
    machines = Ranks("cuda", ranks, 8, 16 << 30, 256 << 30)
    planner = make_planner(model, features, config, BATCH, 2.0, machines, catalog_bytes)
    plan = planner.plan(model, sharders(config, "cuda"))
    placed = {t: p for tables in plan.plan.values() for t, p in tables.items()}  # type: ignore[attr-defined]
    return {
        t: (p.sharding_type, p.compute_kernel, p.cache_params and p.cache_params.load_factor) for t, p in placed.items()
    }


def test_auto_on_gpus() -> None:
    """8 GPUs have 100 GiB to give, and the host more."""
    plan = plan_on_gpus(8, ShardingConfig(), people=250_000_000, towns=250_000_000, streets=1_000_000)
    kernels = sorted(plan[t][1] for t in ("people", "towns"))
    assert kernels == ["fused", "fused_uvm_caching"], "one of them fits"
    assert all(plan[t][0] == "row_wise" for t in ("people", "towns"))
    assert plan["streets"][1] == "fused"
    small = {plan[t][:2] for t in ("item", "category", "user", "category_path")}
    assert small <= {("data_parallel", "dense"), ("table_wise", "fused")} and ("data_parallel", "dense") in small
    one = plan_on_gpus(1, ShardingConfig())
    assert {kinds[:2] for kinds in one.values()} == {("table_wise", "fused")}


def test_the_catalog_takes_room() -> None:
    fits = plan_on_gpus(1, ShardingConfig(), people=40_000_000)  # 9.7 of 12.8 GiB
    assert fits["people"][1] == "fused"
    assert plan_on_gpus(1, ShardingConfig(), 4 << 30, people=40_000_000)["people"][1] == "fused_uvm_caching"
    with pytest.raises(PlannerError):
        plan_on_gpus(1, ShardingConfig(kernel="fused"), 4 << 30, people=40_000_000)


def test_kernels_by_name() -> None:
    config = ShardingConfig(
        kernel="fused", kernels={"user": "fused_uvm", "people": "fused_uvm_caching"}, cache_load_factor=0.05
    )
    plan = plan_on_gpus(2, config, people=1000)
    assert plan["user"][1] == "fused_uvm" and plan["people"] == ("table_wise", "fused_uvm_caching", 0.05)
    assert plan_on_gpus(2, ShardingConfig(default="data_parallel"))["item"][:2] == ("data_parallel", "dense")


def test_a_plan_for_many_ranks_takes_no_time() -> None:
    """TorchRec's grid search alone would take half a minute here."""
    start = time.process_time()
    plan = plan_on_gpus(128, ShardingConfig(), people=250_000_000, towns=250_000_000)
    assert plan["people"][0] == "row_wise" and time.process_time() - start < 15


def plan_error(config: dict[str, Any]) -> str:
    with runtime(0) as rt, pytest.raises(ValueError) as error:
        make_plan(Ranker(FEATURES, RankerConfig()), FEATURES, ShardingConfig(**config), BATCH, 2.0, rt)
    return str(error.value)


def test_plan_that_cannot_serve_is_told() -> None:
    assert "sharding.tables names 'shop'; this ranker has the tables item, category, user" in plan_error(
        {"tables": {"shop": "row_wise"}}
    )
    assert "8 columns can't be cut into 3 pieces of a multiple of 4" in plan_error(
        {"default": "column_wise", "column_shards": 3}
    )
    assert "needs CUDA; on the CPU choose one of table_wise, row_wise, column_wise" in plan_error(
        {"tables": {"user": "grid_shard"}}
    )
    assert "sharding.kernels names 'shop'" in plan_error({"kernels": {"shop": "fused"}})
    for kernel in ("fused_uvm", "fused_uvm_caching"):
        assert f"kernel {kernel} of table 'item': needs CUDA" in plan_error({"kernel": kernel})
    assert "kernel fused of table 'user': a data_parallel table is whole" in plan_error(
        {"tables": {"user": "data_parallel"}, "kernels": {"user": "fused"}}
    )
    assert "sharding.backward_comms='bf16' needs CUDA: gloo can't send it" in plan_error({"backward_comms": "bf16"})


def types_of(rows: int, world_size: int, kind: str, dim: int = 8) -> list[str]:
    return _types(Table("shop", rows, dim, ("shop",)), True, ShardingConfig(default=kind), world_size, "cpu")


@pytest.mark.parametrize(("rows", "world_size"), [(13, 64), (3, 4), (9, 4), (4, 3), (5, 4), (1, 2)])
def test_a_row_wise_table_of_which_a_rank_gets_no_row_is_told(rows: int, world_size: int) -> None:
    """TorchRec cuts 9 rows for 4 ranks into 3, 3, 3 and none."""
    with pytest.raises(
        ValueError, match=rf"'shop' as row_wise: {rows} rows can't be cut for {world_size} ranks: in pie"
    ):
        types_of(rows, world_size, "row_wise")
    assert types_of(rows, world_size, "auto", dim=LARGE) == ["table_wise"], "however large it is"


@pytest.mark.parametrize(("rows", "world_size"), [(1, 1), (2, 2), (4, 4), (10, 4), (7, 3), (8, 4)])
def test_other_tables_are_cut_by_rows(rows: int, world_size: int) -> None:
    assert types_of(rows, world_size, "row_wise") == ["row_wise"]
    assert types_of(rows, world_size, "auto", dim=LARGE) == ["table_wise", "row_wise"][: min(world_size, 2)]
    assert types_of(rows, world_size, "auto", dim=HUGE) == ["row_wise" if world_size > 1 else "table_wise"]


def test_tables_that_do_not_fit_the_containers_memory_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("placerank.training.sharding.memory_limit", lambda: 1 << 10)
    said = plan_error({})
    assert (
        "no plan puts these tables on 1 ranks of cpu (memory of a rank: 0.0 GiB, of which 20% is kept free, 0 MiB "
        in said
    )
    assert "\n" not in said


def test_unknown_sharding_is_told() -> None:
    with pytest.raises(ValueError, match=r"sharding.user='rowwise': expected one of auto, table_wise"):
        ShardingConfig(tables={"user": "rowwise"})
    with pytest.raises(ValueError, match=r"sharding.kernels.user='uvm': expected one of auto, fused, fused_uvm"):
        ShardingConfig(kernels={"user": "uvm"})
    with pytest.raises(ValueError, match=r"sharding.forward_comms='int8': expected one of fp32, fp16, bf16"):
        ShardingConfig(forward_comms="int8")
    with pytest.raises(ValueError, match=r"sharding.cache_load_factor=0.0: expected more than 0, at most 1"):
        ShardingConfig(cache_load_factor=0.0)
