"""Sharded = unsharded: outputs, updated tables, updated dense part."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
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

from placerank.data.batches.features import Table
from placerank.rankers.dense import RankerConfig
from placerank.rankers.ranker import Ranker
from placerank.training.model import assemble
from placerank.training.runtime import runtime
from placerank.training.sharding import LARGE, ShardingConfig, _types, make_plan

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
