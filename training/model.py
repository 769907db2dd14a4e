"""A ranker on its ranks: sharded tables, replicated dense part, and the optimizers of both."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from ..data.batches.features import Features
from ..data.plain import check_numbers
from ..embeddings.cpu_lookup import use_sorted_lookup
from ..rankers.dense import RankerConfig
from ..rankers.ranker import Ranker
from .runtime import Runtime
from .sharding import ShardingConfig, make_plan, sharders


@dataclass(kw_only=True)
class OptimizerConfig:
    """Row-wise Adagrad for tables, fused into their backward; AdamW with StepLR for the dense part."""

    table_lr: float = 0.1
    """Learning rate of the tables."""
    dense_lr: float = 3e-3
    """Learning rate of the dense part at the start."""
    weight_decay: float = 1e-5
    """AdamW's weight decay, dense part only."""
    lr_step: int = 500
    """The dense learning rate is multiplied by lr_gamma every so many steps."""
    lr_gamma: float = 0.9
    """See lr_step."""

    def __post_init__(self) -> None:
        check_numbers(self, "optimizer")
        for name in ("table_lr", "dense_lr", "lr_gamma", "lr_step"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)}: expected a positive number")
        if not self.weight_decay >= 0:
            raise ValueError(f"optimizer.weight_decay={self.weight_decay}: expected 0 or more")


@dataclass
class Trainee:
    """What a training loop steps and a checkpoint holds."""

    model: DistributedModelParallel
    optimizer: CombinedOptimizer
    dense: torch.optim.AdamW
    scheduler: torch.optim.lr_scheduler.StepLR
    plan: ShardingPlan

    def state(self) -> dict[str, Any]:
        """Tensors of model and optimizer; filling them in place restores both."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def scheduler_state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.scheduler.state_dict()
        return state

    def load_scheduler(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state)
        for group, lr in zip(self.dense.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = lr


def assemble(
    features: Features,
    ranker: RankerConfig,
    sharding: ShardingConfig,
    optimizer: OptimizerConfig,
    runtime: Runtime,
    batch_size: int,
    history: float,
) -> Trainee:
    """Build a ranker, plan and shard its tables, and give it its optimizers.

    Args:
        features, ranker, sharding, optimizer: what to build.
        runtime: ranks and device.
        batch_size, history: samples a step and rank, mean history length; the planner's estimates use them.
    """
    module = Ranker(features, ranker)
    apply_optimizer_in_backward(RowWiseAdagrad, module.embeddings.parameters(), {"lr": optimizer.table_lr, "eps": 1e-8})
    plan = make_plan(module, features, sharding, batch_size, history, runtime)
    model = DistributedModelParallel(module, device=runtime.device, plan=plan, sharders=sharders())
    use_sorted_lookup(model)
    dense_parameters = {n: p for n, p in model.named_parameters() if n.startswith("dense.")}
    dense = torch.optim.AdamW(
        dense_parameters.values(),
        lr=optimizer.dense_lr,
        weight_decay=optimizer.weight_decay,
        fused=True,
    )
    # AdamW would make its state at the first step; a resumed run needs it before, to load into
    for parameter in dense_parameters.values():
        dense.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    keyed = KeyedOptimizerWrapper(dense_parameters, lambda _: dense)
    return Trainee(
        model=model,
        optimizer=CombinedOptimizer([model.fused_optimizer, keyed]),
        dense=dense,
        scheduler=torch.optim.lr_scheduler.StepLR(dense, optimizer.lr_step, optimizer.lr_gamma),
        plan=plan,
    )


def table_rows(model: nn.Module, name: str, rows: Tensor) -> Tensor:
    """Rows of a table that target and history share, on all ranks, wherever its shards lie.

    Args:
        model: sharded; all ranks call.
        name: of the table.
        rows: int64 [M], the same on all ranks.

    Returns:
        [M, D], no gradient.
    """
    weight = model.state_dict()[f"embeddings.sequence.embeddings.{name}.weight"]
    out = torch.zeros(len(rows), weight.metadata().size[1], device=rows.device)
    for shard in weight.local_shards():
        (row, column), (height, width) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
        here = ((rows >= row) & (rows < row + height)).nonzero().flatten()
        out[here, column : column + width] = shard.tensor.detach()[rows[here] - row].float()
    if dist.get_world_size() > 1:
        dist.all_reduce(out)
    return out


def average_buffers(model: nn.Module) -> None:
    """Average the running statistics of all ranks: each saw only its own batches."""
    if dist.get_world_size() == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()
