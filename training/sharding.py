"""How tables are spread over ranks: TorchRec's planner under constraints from the config."""

from dataclasses import dataclass
from typing import Any

import torch
from fbgemm_gpu.quantize_comm import QuantizedCommCodec
from fbgemm_gpu.split_embedding_configs import SparseType
from torch import Tensor, nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.proposers import GreedyProposer, UniformProposer
from torchrec.distributed.planner.stats import NoopEmbeddingStats
from torchrec.distributed.planner.types import (
    KernelConfig,
    ParameterConstraints,
    PlannerError,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import CacheParams, ModuleSharder, ShardingPlan

from ..data.batches.features import Features, Table
from .memory import memory_limit
from .reservation import FREE_SHARE, Reservation, dense_bytes
from .runtime import Runtime, on_first_rank
from .settings import CPU_TYPES, ShardingConfig

LARGE = 1 << 22
"""Numbers in a table from which on "auto" lets the planner cut it by rows, or keep it in host memory; a smaller one is
not worth the exchange."""
REPLICABLE = 1 << 26
"""Numbers in a table (256 MiB) up to which "auto" lets the planner replicate it on CUDA. Whole on one rank it answers
all others: of 4,096 ranks with batches of 4,096, 220 GB at a step for a table of 300,000 rows of 64 columns."""
HUGE = 1 << 28
"""Numbers (1 GiB) from which on "auto" always cuts a table by rows. The planner looks at time alone and would put 30
GiB on one GPU of 64, but ranks write a checkpoint side by side, in the time that the fullest takes."""
BAG_ONLY = ("table_row_wise", "table_column_wise", "grid_shard")
"""Types that TorchRec has for pooled tables only, not for those that target and history share."""
COLLECTION_DEVICES = ("cuda",)
"""Where TorchRec's DMPCollection, that is 2D parallelism, runs."""


@dataclass(frozen=True)
class Ranks:
    """The ranks that one set of tables is spread over.

    Attributes:
        device: "cuda" or "cpu".
        world_size: how many.
        local_world_size: how many of them a machine has.
        device_bytes: memory of a rank's GPU; of a rank's share of the host on the CPU.
        host_bytes: a rank's share of its machine's memory.
    """

    device: str
    world_size: int
    local_world_size: int
    device_bytes: int
    host_bytes: int

    @classmethod
    def of(cls, runtime: Runtime, config: ShardingConfig) -> "Ranks":
        """Those of a running group; with ``config.replicas`` the ranks of one of its groups.

        Raises:
            ValueError: ``config.replicas`` on the CPU, or one that the ranks can't be cut into.
        """
        device, size = runtime.device.type, runtime.world_size
        if config.replicas > 1:
            if device not in COLLECTION_DEVICES:
                raise ValueError(f"sharding.replicas={config.replicas}: TorchRec's DMPCollection needs CUDA")
            if size % config.replicas:
                raise ValueError(f"sharding.replicas={config.replicas}: {size} ranks can't be cut into so many groups")
            size //= config.replicas
        host = memory_limit() // runtime.local_world_size
        own = torch.cuda.get_device_properties(runtime.device).total_memory if device == "cuda" else host
        return cls(device, size, min(size, runtime.local_world_size), own, host)


class RowWiseEmbeddingBagCollectionSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder, offering row-wise on the CPU too: it holds it back there, but gloo has reduce-scatter."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types: list[str] = super().sharding_types(compute_device_type)
        return types if "row_wise" in types else [*types, "row_wise"]


class GradientsAsFp16(QuantizedCommCodec):
    """Gradients in 16 bits, ``SCALE`` times as large on their way: those of a mean over a batch are small for fp16.

    fbgemm's own scale divides before it widens, so what it saved is lost where it arrives.
    """

    SCALE = 1024.0

    def __init__(self) -> None:
        super().__init__(SparseType.FP16, is_fwd=False)

    def encode(self, input_tensor: Tensor, ctx: Any = None) -> Tensor:
        out: Tensor = super().encode(self.SCALE * input_tensor, ctx)
        return out

    def decode(self, input_tensor: Tensor, ctx: Any = None) -> Tensor:
        out: Tensor = super().decode(input_tensor, ctx)
        return out / self.SCALE


def sharders(config: ShardingConfig, device: str) -> list[ModuleSharder[nn.Module]]:
    """The sharders of both collections.

    Args:
        config: in which precision ranks exchange rows and gradients.
        device: "cuda" or "cpu".

    Raises:
        ValueError: bf16 on the CPU, for which TorchRec would put fp16 without asking.
    """
    for name in ("forward_comms", "backward_comms"):
        if getattr(config, name) == "bf16" and device == "cpu":
            raise ValueError(f"sharding.{name}='bf16' needs CUDA: gloo can't send it; use fp16 or fp32")
    codecs = get_qcomm_codecs_registry(
        QCommsConfig(
            forward_precision=CommType(config.forward_comms), backward_precision=CommType(config.backward_comms)
        ),
        device=torch.device(device),
    )
    if config.backward_comms == "fp16":
        for pair in codecs.values():
            pair.backward = GradientsAsFp16()
    return [
        EmbeddingCollectionSharder(qcomm_codecs_registry=codecs),
        RowWiseEmbeddingBagCollectionSharder(qcomm_codecs_registry=codecs),
    ]


def _types(table: Table, pooled: bool, config: ShardingConfig, world_size: int, device: str) -> list[str]:
    wanted = config.tables.get(table.name, config.default)
    # TorchRec cuts a table into pieces of ceil(rows / ranks) rows; a rank that gets none can't update it.
    every_rank_has_rows = (world_size - 1) * -(-table.rows // world_size) < table.rows
    if wanted == "auto":
        size = table.rows * table.dim
        cut = size >= LARGE and world_size > 1 and every_rank_has_rows
        if cut and size >= HUGE:
            return ["row_wise"]
        free = config.kernels.get(table.name, config.kernel) == "auto"  # a replicated table has a kernel of its own
        replicate = size < REPLICABLE and world_size > 1 and device == "cuda" and free
        return ["table_wise", *["row_wise"] * cut, *["data_parallel"] * replicate]
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


def _kernels(table: Table, types: list[str], config: ShardingConfig, device: str) -> list[str]:
    """Kernels to choose from; "dense" is the only one that a replicated table has, and no other type has it."""
    wanted = config.kernels.get(table.name, config.kernel)
    where = f"kernel {wanted} of table {table.name!r}"
    if wanted in ("fused_uvm", "fused_uvm_caching") and device == "cpu":
        raise ValueError(f"{where}: needs CUDA; on the CPU all tables are in host memory: leave it at fused")
    if types == ["data_parallel"]:
        if config.kernels.get(table.name, "auto") != "auto":
            raise ValueError(f"{where}: a data_parallel table is whole on every device; choose another sharding for it")
        return ["dense"]
    if wanted != "auto":
        return [wanted]
    large = device == "cuda" and table.rows * table.dim >= LARGE
    return ["fused", "fused_uvm_caching", "dense"] if large else ["fused", "dense"]


def make_planner(
    model: nn.Module,
    features: Features,
    config: ShardingConfig,
    batch_size: int,
    history: float,
    ranks: Ranks,
    catalog_bytes: int,
) -> EmbeddingShardingPlanner:
    """TorchRec's planner for these tables and ranks; needs no process group. Arguments and errors as ``make_plan``.

    Its grid search is left out: where it has at most 10,000 combinations to try it takes minutes at 512 ranks, and its
    plans are rated no better (benchmarks/results/plans.csv).
    """
    names = [t.name for t in features.tables]
    for where in ("tables", "kernels"):
        for name in getattr(config, where):
            if name not in names:
                raise ValueError(f"sharding.{where} names {name!r}; this ranker has the tables {', '.join(names)}")
    types = {t.name: _types(t, t in features.pooled, config, ranks.world_size, ranks.device) for t in features.tables}
    kernels = {t.name: _kernels(t, types[t.name], config, ranks.device) for t in features.tables}
    cache = CacheParams(load_factor=config.cache_load_factor)
    constraints = {
        t.name: ParameterConstraints(
            sharding_types=types[t.name],
            compute_kernels=kernels[t.name],
            min_partition=t.dim // config.column_shards,
            # items' rows are looked up once a batch, at most one for each target and visit
            pooling_factors=[1.0 + history] if t in features.sequence else [1.0, max(history, 1.0)][: len(t.features)],
            cache_params=cache if "fused_uvm_caching" in kernels[t.name] else None,
        )
        for t in features.tables
    }
    return EmbeddingShardingPlanner(
        topology=TopologyFactory.create_topology(
            TrainerConfig(
                world_size=ranks.world_size,
                local_world_size=ranks.local_world_size,
                hbm_cap_bytes=ranks.device_bytes if ranks.device == "cuda" else 0,
                ddr_cap_bytes=ranks.host_bytes,
            ),
            kernel_config=KernelConfig(compute_device=ranks.device),
        ),
        storage_reservation=Reservation(catalog_bytes + dense_bytes(model, features, batch_size, history)),
        proposer=[GreedyProposer(), GreedyProposer(use_depth=False), UniformProposer()],
        batch_size=batch_size,
        constraints=constraints,
        stats=NoopEmbeddingStats(),  # a table for TorchRec's log, that nobody sees
    )


def make_plan(
    model: nn.Module,
    features: Features,
    config: ShardingConfig,
    batch_size: int,
    history: float,
    runtime: Runtime,
    catalog_bytes: int = 0,
) -> ShardingPlan:
    """Plan the placement of every table; the same on all ranks, of which the first one plans.

    Args:
        model: holds the collections (on the meta device) and the dense part.
        features: their description.
        config: the constraints.
        batch_size: samples a rank and step.
        history: mean length of a history, for the planner's estimate of cost.
        runtime: ranks and device.
        catalog_bytes: what the catalog takes of each device.

    Raises:
        ValueError: a table named that isn't there, a type, kernel or precision that this device, table or number of
            ranks can't serve, or tables that don't fit into the memory of the ranks; on all ranks.
    """
    ranks = Ranks.of(runtime, config)

    def plan() -> ShardingPlan:
        planner = make_planner(model, features, config, batch_size, history, ranks, catalog_bytes)
        try:
            return planner.plan(model, sharders(config, ranks.device))
        except PlannerError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            dense = dense_bytes(model, features, batch_size, history)
            raise ValueError(
                f"no plan puts these tables on {ranks.world_size} ranks of {runtime.device} (memory of a rank: "
                f"{ranks.device_bytes / 2**30:.1f} GiB, of which {FREE_SHARE:.0%} is kept free, {_mib(catalog_bytes)} "
                f"are the catalog's and {_mib(dense)} the dense part's): {reason}; use more ranks, smaller tables or "
                "batches, or another sharding"
            ) from error

    return on_first_rank(plan)


def _mib(bytes_: int) -> str:
    return f"{bytes_ / 2**20:,.0f} MiB"
