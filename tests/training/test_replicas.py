"""2D parallelism: groups of ranks that hold all tables each. DMPCollection is for CUDA; what of it runs without is."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_collection import allow_on_cpu
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from toy_ranker import (
    BATCH,
    FEATURES,
    OPTIMIZER,
    RANKER,
    fill,
    initial_ranker,
    loaded_pieces,
    make_batch,
    put_together,
    train_steps,
)

from placerank.data.batches.batch import RankingBatch
from placerank.embeddings.shards import CheckpointTables
from placerank.training.checkpoint import Checkpointer, load
from placerank.training.model import Trainee, assemble, average_buffers, table_rows
from placerank.training.runtime import runtime
from placerank.training.sharding import ShardingConfig
from placerank.training.steps import pipelined_steps, plain_steps

AnyRanks = Callable[..., list[Any]]
GROUPS, SIZE, STEPS = 2, 2, 4
ITEM = "embeddings.sequence.embeddings.item.weight"


def train_replicas(kind: str, every: int, folder: Path) -> dict[str, Any]:
    """Rows of a table as drawn, after steps, and after a checkpoint that was saved and loaded again."""
    allow_on_cpu()
    with runtime(0) as rt:
        sharding = ShardingConfig(default=kind, replicas=GROUPS, sync_every=every, tables={"category": "data_parallel"})
        trainee = assemble(FEATURES, RANKER, sharding, OPTIMIZER, rt, BATCH, 2.0)
        rows = torch.arange(101)
        out: dict[str, Any] = {"drawn": table_rows(trainee.model, "item", rows)}
        fill(trainee.model, initial_ranker().state_dict())
        train_steps(trainee, rt.rank, 0, STEPS)
        out["apart"] = table_rows(trainee.model, "item", rows)
        average_buffers(trainee.model)
        out["item"] = table_rows(trainee.model, "item", rows)
        out["category"] = table_rows(trainee.model, "category", torch.arange(13))
        checkpoints = Checkpointer(folder, keep=2, group=rt.background)
        checkpoints.save(1, trainee.state(), {})
        checkpoints.wait()
        train_steps(trainee, rt.rank, STEPS, 1)
        state = trainee.state()
        load(folder / "step-00000001", state)
        trainee.load_state(state)
        out["loaded"] = table_rows(trainee.model, "item", rows)
        return out


def load_in_one_group(folder: Path) -> dict[str, Any]:
    with runtime(1) as rt:
        trainee = assemble(FEATURES, RANKER, ShardingConfig(default="row_wise"), OPTIMIZER, rt, BATCH, 2.0)
        return loaded_pieces(folder, trainee)


def train_unsharded() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same in plain PyTorch: weights and states of the tables when groups average theirs after every step.

    A group's step is row-wise Adagrad on the mean gradient of its ranks; the replicated table's, and AdamW's, is on
    the mean of all.
    """
    ranker = initial_ranker()
    tables = dict(ranker.embeddings.named_parameters())
    states = {name: torch.zeros(p.shape[0]) for name, p in tables.items()}
    adamw = torch.optim.AdamW(ranker.dense.parameters(), lr=OPTIMIZER.dense_lr, weight_decay=OPTIMIZER.weight_decay)

    def stepped(weights: Tensor, state: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        state = state + grad.square().mean(dim=1)
        return weights - OPTIMIZER.table_lr * grad / (state.sqrt() + 1e-8)[:, None], state

    for step in range(STEPS):
        ranker.zero_grad()
        grads = []
        before = {name: torch.zeros_like(p) for name, p in tables.items()}
        for group in range(GROUPS):
            for rank in range(group * SIZE, (group + 1) * SIZE):
                batch = make_batch(100 * step + rank)
                loss = binary_cross_entropy_with_logits(ranker(batch).logits, batch.label)
                (loss / (SIZE * GROUPS)).backward()
            sums = {name: copy.deepcopy(p.grad) for name, p in tables.items() if p.grad is not None}
            grads.append({name: GROUPS * (sums[name] - before[name]) for name in tables})
            before = sums
        adamw.step()
        with torch.no_grad():
            for name, p in tables.items():
                means = [g[name] for g in grads]
                if name == "sequence.embeddings.category.weight":
                    means = [torch.stack(means).mean(dim=0)]
                found = [stepped(p, states[name], grad) for grad in means]
                p.copy_(torch.stack([w for w, _ in found]).mean(dim=0))
                states[name] = torch.stack([s for _, s in found]).mean(dim=0)
    return {name: p.detach() for name, p in tables.items()}, states


@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_groups_average_their_tables(kind: str, tmp_path: Path, ranks: AnyRanks) -> None:
    found = ranks(GROUPS * SIZE, train_replicas, kind, 1, tmp_path)
    weights, states = train_unsharded()
    for rank in found:
        assert torch.equal(rank["drawn"], found[0]["drawn"]), "groups begin with the same rows"
        torch.testing.assert_close(rank["item"], weights["sequence.embeddings.item.weight"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            rank["category"], weights["sequence.embeddings.category.weight"], rtol=1e-4, atol=1e-5
        )
        assert torch.equal(rank["loaded"], rank["item"])
    stored = next(CheckpointTables(tmp_path / "step-00000001").blocks("item", 101))
    assert torch.equal(stored, found[0]["item"]), "export reads it"
    loaded = put_together(ranks(2, load_in_one_group, tmp_path))
    assert torch.equal(loaded[f"model.{ITEM}"], found[0]["item"])
    for name, state in states.items():
        table = name.rsplit(".", 2)[1]
        torch.testing.assert_close(
            loaded[f"optimizer.state.embeddings.{name}.{table}.momentum1"], state, rtol=1e-4, atol=1e-7
        )


def test_groups_meet_when_told_and_before_a_checkpoint(tmp_path: Path, ranks: AnyRanks) -> None:
    found = ranks(GROUPS * SIZE, train_replicas, "column_wise", STEPS + 1, tmp_path)
    assert not torch.equal(found[0]["apart"], found[SIZE]["apart"])
    mean = (found[0]["apart"] + found[SIZE]["apart"]) / 2
    torch.testing.assert_close(found[0]["item"], mean)
    stored = next(CheckpointTables(tmp_path / "step-00000001").blocks("item", 101))
    assert all(torch.equal(rank["loaded"], stored) and torch.equal(rank["item"], stored) for rank in found)


def pipelined_and_plain() -> tuple[list[Tensor], list[Tensor]]:
    """Losses of the same steps both ways."""
    allow_on_cpu()
    with runtime(0) as rt:
        found = []
        for way in (plain_steps, pipelined_steps):
            sharding = ShardingConfig(default="row_wise", replicas=GROUPS)
            trainee = assemble(FEATURES, RANKER, sharding, OPTIMIZER, rt, BATCH, 2.0)
            fill(trainee.model, initial_ranker().state_dict())

            def forward(batch: RankingBatch, trainee: Trainee = trainee) -> tuple[Tensor, dict[str, Tensor]]:
                loss = binary_cross_entropy_with_logits(trainee.model(batch).logits, batch.label)
                return loss, {"loss": loss.detach()}

            steps = way(trainee, forward, (make_batch(100 * step + rt.rank) for step in range(STEPS)))
            found.append([logged["loss"] for logged in steps])
        return found[0], found[1]


def test_replicas_pass_through_the_pipeline(ranks: AnyRanks) -> None:
    for plain, piped in ranks(GROUPS * SIZE, pipelined_and_plain):
        assert len(plain) == STEPS and plain == piped


def test_replicas_need_cuda_and_ranks_that_can_be_cut() -> None:
    with runtime(0) as rt:
        with pytest.raises(ValueError, match=r"sharding.replicas=2: TorchRec's DMPCollection needs CUDA"):
            assemble(FEATURES, RANKER, ShardingConfig(replicas=2), OPTIMIZER, rt, BATCH, 2.0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("placerank.training.sharding.COLLECTION_DEVICES", ("cpu",))
            with pytest.raises(ValueError, match=r"sharding.replicas=2: 1 ranks can't be cut into so many groups"):
                assemble(FEATURES, RANKER, ShardingConfig(replicas=2), OPTIMIZER, rt, BATCH, 2.0)
