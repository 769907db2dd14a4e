"""How tables are spread over ranks: TorchRec's planner under constraints from the config."""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    KernelConfig,
    ParameterConstraints,
    PlannerError,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import ModuleSharder, ShardingPlan

from ..data.batches.features import Features, Table
from ..data.plain import check_numbers
from .memory import memory_limit
from .runtime import Runtime

CPU_TYPES = ("table_wise", "row_wise", "column_wise")
CUDA_TYPES = (*CPU_TYPES, "table_row_wise", "table_column_wise", "grid_shard")
LARGE = 1 << 22
"""Numbers in a table from which on "auto" lets the planner cut it by rows; a smaller one is not worth the exchange."""
FREE_SHARE = 0.2
"""Of each rank's memory, kept for batches, activations and the dense part."""
BAG_ONLY = ("table_row_wise", "table_column_wise", "grid_shard")
"""Types that TorchRec has for pooled tables only, not for those that target and history share."""


@dataclass(kw_only=True)
class ShardingConfig:
    """How tables are spread over ranks."""

    default: str = "auto"
    """Sharding of every table not named below: auto (table_wise; the planner may cut large ones row_wise), table_wise,
    row_wise, column_wise; on CUDA, for pooled tables, also table_row_wise, table_column_wise and grid_shard."""
    tables: dict[str, str] = field(default_factory=dict)
    """Sharding of single tables, by name."""
    column_shards: int = 2
    """Pieces of a table that is cut by columns. Row-wise Adagrad then keeps one state per row and piece."""

    def __post_init__(self) -> None:
        check_numbers(self, "sharding", least={"column_shards": 1})
        for where, value in [("default", self.default), *self.tables.items()]:
            if value not in ("auto", *CUDA_TYPES):
                raise ValueError(f"sharding.{where}={value!r}: expected one of auto, {', '.join(CUDA_TYPES)}")


class RowWiseEmbeddingBagCollectionSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder, offering row-wise on the CPU too: it holds it back there, but gloo has reduce-scatter."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types: list[str] = super().sharding_types(compute_device_type)
        return types if "row_wise" in types else [*types, "row_wise"]


def sharders() -> list[ModuleSharder[nn.Module]]:
    """The sharders of both collections."""
    return [EmbeddingCollectionSharder(), RowWiseEmbeddingBagCollectionSharder()]


def _types(table: Table, pooled: bool, config: ShardingConfig, world_size: int, device: str) -> list[str]:
    wanted = config.tables.get(table.name, config.default)
    # TorchRec cuts a table into pieces of ceil(rows / ranks) rows; a rank that gets none can't update it.
    every_rank_has_rows = (world_size - 1) * -(-table.rows // world_size) < table.rows
    if wanted == "auto":
        cut = table.rows * table.dim >= LARGE and world_size > 1 and every_rank_has_rows
        return ["table_wise", "row_wise"] if cut else ["table_wise"]
    where = f"sharding of table {table.name!r} as {wanted}"
    if device == "cpu" and wanted not in CPU_TYPES:
        raise ValueError(f"{where}: needs CUDA; on the CPU choose one of {', '.join(CPU_TYPES)}")
    if wanted in BAG_ONLY and not pooled:
        raise ValueError(f"{where}: TorchRec has it for pooled tables only; choose one of {', '.join(CPU_TYPES)}")
    if wanted == "row_wise" and not every_rank_has_rows:
        piece = -(-table.rows // world_size)
        raise ValueError(
            f"{where}: {table.rows} rows can't be cut for {world_size} ranks: in pieces of {piece} the last rank gets "
            "none; choose table_wise, or another number of ranks"
        )
    if "column" in wanted or wanted == "grid_shard":
        width, rest = divmod(table.dim, config.column_shards)
        if rest or width % 4:
            raise ValueError(
                f"{where}: {table.dim} columns can't be cut into {config.column_shards} pieces of a multiple of 4; "
                "change sharding.column_shards or the table's width"
            )
    return [wanted]


def make_plan(
    model: nn.Module, features: Features, config: ShardingConfig, batch_size: int, history: float, runtime: Runtime
) -> ShardingPlan:
    """Plan the placement of every table; the same on all ranks.

    Args:
        model: holds the collections (on the meta device or placed).
        features: their description.
        config: the constraints.
        batch_size: samples a rank and step.
        history: mean length of a history, for the planner's estimate of cost.
        runtime: ranks and device.

    Raises:
        ValueError: a table named that isn't there, a type that this device, table or number of ranks can't serve,
            or tables that don't fit into the memory of the ranks.
    """
    names = [t.name for t in features.tables]
    for name in config.tables:
        if name not in names:
            raise ValueError(f"sharding.tables names {name!r}; this ranker has the tables {', '.join(names)}")
    device = runtime.device.type
    constraints = {
        t.name: ParameterConstraints(
            sharding_types=_types(t, t in features.pooled, config, runtime.world_size, device),
            compute_kernels=[EmbeddingComputeKernel.FUSED.value],
            min_partition=t.dim // config.column_shards,
            # items' rows are looked up once a batch, at most one for each target and visit
            pooling_factors=[1.0 + history] if t in features.sequence else [1.0, max(history, 1.0)][: len(t.features)],
        )
        for t in features.tables
    }
    cuda = device == "cuda"
    host = memory_limit() // runtime.local_world_size
    memory = torch.cuda.get_device_properties(runtime.device).total_memory if cuda else host
    planner = EmbeddingShardingPlanner(
        topology=TopologyFactory.create_topology(
            TrainerConfig(
                world_size=runtime.world_size,
                local_world_size=runtime.local_world_size,
                hbm_cap_bytes=memory if cuda else 0,
                ddr_cap_bytes=host,
            ),
            kernel_config=KernelConfig(compute_device=device),
        ),
        storage_reservation=FixedPercentageStorageReservation(FREE_SHARE),
        batch_size=batch_size,
        constraints=constraints,
    )
    try:
        return planner.collective_plan(model, sharders(), dist.GroupMember.WORLD)
    except PlannerError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"no plan puts these tables on {runtime.world_size} ranks of {runtime.device} (memory of a rank: "
            f"{memory / 2**30:.1f} GiB, of which {FREE_SHARE:.0%} is kept free): {reason}; use more ranks, smaller "
            "tables, or another sharding"
        ) from error
