"""Sharded = unsharded: outputs, updated tables, updated dense part."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from placerank.data.batch import RankingBatch
from placerank.data.features import Features, Table
from placerank.rankers.ranker import Ranker, RankerConfig
from placerank.training.model import OptimizerConfig, assemble
from placerank.training.runtime import Runtime, runtime
from placerank.training.sharding import ShardingConfig, make_plan
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.distributed.types import ShardedTensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

FEATURES = Features(
    sequence=(
        Table("item", 101, 8, ("item", "history")),
        Table("category", 13, 8, ("item_category", "history_category")),
    ),
    pooled=(Table("user", 57, 8, ("user",)), Table("category_path", 13, 8, ("category_path",))),
    dense=("distance",),
)
OPTIMIZER = OptimizerConfig(table_lr=0.1, dense_lr=1e-2)
STEPS, BATCH = 4, 7


def make_batch(seed: int) -> RankingBatch:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 5, (BATCH,), generator=g)
    lengths[0] = lengths[-1] = 0
    total, ones = int(lengths.sum()), torch.ones(BATCH, dtype=torch.int64)
    rows = lambda high, n: torch.randint(0, high, (n,), generator=g)  # noqa: E731
    paths = torch.randint(0, 4, (BATCH,), generator=g)
    return RankingBatch(
        sequence=KeyedJaggedTensor(
            keys=["item", "history", "item_category", "history_category"],
            values=torch.cat([rows(101, BATCH), rows(101, total), rows(13, BATCH), rows(13, total)]),
            lengths=torch.cat([ones, lengths, ones, lengths]),
        ),
        pooled=KeyedJaggedTensor(
            keys=["user", "category_path"],
            values=torch.cat([rows(57, BATCH), rows(13, int(paths.sum()))]),
            lengths=torch.cat([ones, paths]),
        ),
        dense=torch.rand(BATCH, 2, generator=g),
        history_gaps=torch.rand(total, 2, generator=g),
        label=rows(2, BATCH).float(),
    )


def initial_ranker() -> Ranker:
    torch.manual_seed(7)
    return Ranker(FEATURES, RankerConfig(mlp=[8]), device="cpu")


def fill(model: Any, weights: dict[str, Tensor]) -> None:
    """Copy whole tensors into a model whose tables may be sharded."""
    state = model.state_dict()
    for name, target in state.items():
        if isinstance(target, ShardedTensor):
            for shard in target.local_shards():
                (r, c), (h, w) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
                shard.tensor.copy_(weights[name][r : r + h, c : c + w])
        else:
            target.copy_(weights[name])
    model.load_state_dict(state)


def whole(tensor: Tensor | ShardedTensor, rank: int) -> Tensor | None:
    if not isinstance(tensor, ShardedTensor):
        return tensor.clone()
    out = torch.empty(tensor.size()) if rank == 0 else None
    tensor.gather(0, out)
    return out


def train_sharded(kind: str) -> tuple[list[Tensor], dict[str, Tensor]]:
    with runtime(0) as rt:
        trainee = assemble(FEATURES, RankerConfig(mlp=[8]), ShardingConfig(default=kind), OPTIMIZER, rt, BATCH, 2.0)
        fill(trainee.model, initial_ranker().state_dict())
        outputs = []
        for step in range(STEPS):
            batch = make_batch(100 * step + rt.rank)
            logits = trainee.model(batch)
            outputs.append(logits.detach())
            trainee.optimizer.zero_grad()
            binary_cross_entropy_with_logits(logits, batch.label).backward()
            trainee.optimizer.step()
        state = {k: whole(v, rt.rank) for k, v in trainee.model.state_dict().items()}
        kinds = {p.sharding_type for plan in trainee.plan.plan.values() for p in plan.values()}  # type: ignore[attr-defined]
        assert kinds == {kind}
        return outputs, {k: v for k, v in state.items() if v is not None and "running_" not in k}


def train_unsharded(world_size: int, pieces: int) -> tuple[list[list[Tensor]], dict[str, Tensor]]:
    """The same steps in plain PyTorch: dense tables, the gradient averaged over ranks, row-wise Adagrad by hand."""
    ranker = initial_ranker()
    tables = dict(ranker.embeddings.named_parameters())
    states = {name: torch.zeros(p.shape[0], pieces) for name, p in tables.items()}
    adamw = torch.optim.AdamW(ranker.scorer.parameters(), lr=OPTIMIZER.dense_lr, weight_decay=OPTIMIZER.weight_decay)
    outputs: list[list[Tensor]] = []
    for step in range(STEPS):
        ranker.zero_grad()
        outputs.append([])
        for rank in range(world_size):
            batch = make_batch(100 * step + rank)
            logits = ranker(batch)
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
@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "column_wise"])
def test_sharded_equals_unsharded(kind: str, world_size: int, ranks: Callable[..., list[Any]]) -> None:
    results = ranks(world_size, train_sharded, kind)
    outputs, weights = train_unsharded(world_size, pieces=2 if kind == "column_wise" else 1)
    for rank, (sharded, _) in enumerate(results):
        for step in range(STEPS):
            torch.testing.assert_close(sharded[step], outputs[step][rank], rtol=1e-4, atol=1e-5)
    assert results[0][1].keys() == weights.keys()
    for name, value in results[0][1].items():
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


def test_too_many_ranks_for_a_row_wise_table_is_told() -> None:
    rt = Runtime(rank=0, world_size=64, local_world_size=64, device=torch.device("cpu"), background=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="table 'category' as row_wise: 13 rows can't be cut for 64 ranks; choose table_wise"):
        make_plan(Ranker(FEATURES, RankerConfig()), FEATURES, ShardingConfig(default="row_wise"), BATCH, 2.0, rt)


def test_unknown_sharding_is_told() -> None:
    with pytest.raises(ValueError, match=r"sharding.user='rowwise': expected one of auto, table_wise"):
        ShardingConfig(tables={"user": "rowwise"})
