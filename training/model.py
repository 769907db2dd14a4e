"""A ranker on its ranks: sharded tables, replicated dense part, and the optimizers of both."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchrec.distributed.model_parallel import DistributedModelParallel, DMPCollection
from torchrec.distributed.types import ShardedTensor, ShardingPlan
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from ..data.batches.features import Features
from ..embeddings.cpu_lookup import use_sorted_lookup
from ..rankers.dense import RankerConfig
from ..rankers.ranker import Ranker
from .checkpoint import local_pieces
from .runtime import Runtime
from .settings import OptimizerConfig
from .sharding import ShardingConfig, make_plan, sharders

_EPS = 1e-8  # of the tables' Adagrad


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


class ReplicatedAdagrad(torch.optim.Optimizer):
    """Row-wise Adagrad for data_parallel tables, which TorchRec trains as dense parameters, without the fused one.

    Their gradients are the mean over ranks, as those of sharded tables are, so a table learns the same (to rounding)
    however it is placed; and its state has the name and shape that the fused optimizer's has in a checkpoint.

    Args:
        tables: parameters [R, D] by table name.
        lr: learning rate.
    """

    def __init__(self, tables: dict[str, nn.Parameter], lr: float) -> None:
        super().__init__(list(tables.values()), {"lr": lr})
        for name, weights in tables.items():
            self.state[weights] = {f"{name}.momentum1": weights.new_zeros(weights.shape[0], requires_grad=False)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weights in group["params"]:
                if (grad := weights.grad) is not None:  # it has one from the first step on
                    (state,) = self.state[weights].values()
                    state += grad.square().mean(dim=1)
                    weights.addcdiv_(grad, (state.sqrt() + _EPS)[:, None], value=-group["lr"])


class _Meeting(KeyedOptimizer):
    """The end of an optimizer's step under 2D parallelism: groups of ranks average their tables every so many steps."""

    def __init__(self, model: DMPCollection, every: int) -> None:
        super().__init__({}, {}, [])
        self.model, self.every, self.steps = model, every, 0

    def step(self, closure: Any = None) -> None:
        self.steps += 1
        if self.steps % self.every == 0:
            self.model.sync()


def assemble(
    features: Features,
    ranker: RankerConfig,
    sharding: ShardingConfig,
    optimizer: OptimizerConfig,
    runtime: Runtime,
    batch_size: int,
    history: float,
    catalog_bytes: int = 0,
    module: nn.Module | None = None,
) -> Trainee:
    """Build a ranker, plan and shard its tables, and give it its optimizers.

    Args:
        features, ranker, sharding, optimizer: what to build.
        runtime: ranks and device.
        batch_size, history: samples a step and rank, mean history length; the planner's estimates use them.
        catalog_bytes: what the catalog takes of each device, for the planner.
        module: the ranker, its tables on the meta device in ``embeddings``; default: one that scores candidates.

    Raises:
        ValueError: see ``make_plan``.
    """
    module = Ranker(features, ranker) if module is None else module
    apply_optimizer_in_backward(
        RowWiseAdagrad, module.get_submodule("embeddings").parameters(), {"lr": optimizer.table_lr, "eps": _EPS}
    )
    plan = make_plan(module, features, sharding, batch_size, history, runtime, catalog_bytes)
    model = _distribute(module, plan, sharding, runtime)
    use_sorted_lookup(model)
    parameters = dict(model.named_parameters())
    replicated = _replicated(parameters, plan)
    dense_parameters = {n: p for n, p in parameters.items() if n.startswith("dense.")}
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
    optimizers: list[KeyedOptimizer] = [model.fused_optimizer, KeyedOptimizerWrapper(dense_parameters, lambda _: dense)]
    if replicated:
        tables = {n.rsplit(".", 2)[1]: p for n, p in replicated.items()}
        adagrad = ReplicatedAdagrad(tables, optimizer.table_lr)
        optimizers.append(KeyedOptimizerWrapper(replicated, lambda _: adagrad))
    if isinstance(model, DMPCollection):
        optimizers.append(_Meeting(model, sharding.sync_every))
    return Trainee(
        model=model,
        optimizer=CombinedOptimizer(optimizers),
        dense=dense,
        scheduler=torch.optim.lr_scheduler.StepLR(dense, optimizer.lr_step, optimizer.lr_gamma),
        plan=plan,
    )


def _distribute(
    module: nn.Module, plan: ShardingPlan, sharding: ShardingConfig, runtime: Runtime
) -> DistributedModelParallel:
    """Tables placed as planned. With replicas, a group is of consecutive ranks: rows, which travel at every step, stay
    within a machine as far as can be, and what groups average goes between machines."""
    makers = sharders(sharding, runtime.device.type)
    if sharding.replicas == 1:
        return DistributedModelParallel(module, device=runtime.device, plan=plan, sharders=makers)
    size = runtime.world_size // sharding.replicas
    model = DMPCollection(
        module,
        device=runtime.device,
        plan=plan,
        world_size=runtime.world_size,
        sharding_group_size=size,
        global_pg=dist.GroupMember.WORLD,
        node_group_size=min(size, runtime.local_world_size),
        sharders=makers,
        use_inter_host_allreduce=True,
    )
    for name, weights in model.state_dict().items():  # each group has drawn its own
        if name.startswith("embeddings."):
            for _, piece in local_pieces(weights):
                dist.broadcast(piece, group=model.device_mesh.get_group("replicate"), group_src=0)
    return model


def _replicated(parameters: dict[str, nn.Parameter], plan: ShardingPlan) -> dict[str, nn.Parameter]:
    """Those that are whole data_parallel tables."""
    names = {
        (path, table)
        for path, tables in plan.plan.items()
        for table, placed in tables.items()
        if placed.sharding_type == "data_parallel"
    }
    parts = {n: n.rsplit(".", 3) for n in parameters if n.startswith("embeddings.")}  # path, collection, table, weight
    return {n: parameters[n] for n, (path, _, table, _) in parts.items() if (path, table) in names}


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
    if not isinstance(weight, ShardedTensor | DTensor):  # every rank has it whole
        whole: Tensor = weight.detach()[rows].float()
        return whole
    out = torch.zeros(len(rows), weight.size()[1], device=rows.device)
    for (row, column), piece in local_pieces(weight):
        here = ((rows >= row) & (rows < row + piece.shape[0])).nonzero().flatten()
        out[here, column : column + piece.shape[1]] = piece.detach()[rows[here] - row].float()
    if dist.get_world_size() > 1:
        # with replicas, each group of ranks has all pieces
        dist.all_reduce(out, group=weight.device_mesh.get_group("shard") if isinstance(weight, DTensor) else None)
    return out


def average_buffers(model: nn.Module) -> None:
    """Average what ranks have learned apart: running statistics, and under 2D parallelism the groups' tables."""
    if dist.get_world_size() == 1:
        return
    if isinstance(model, DMPCollection):
        model.sync()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()
