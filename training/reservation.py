"""What of a rank's memory is not the tables': known bytes and a share for the rest. The planner must know of both."""

from torch import nn
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, Storage, Topology
from torchrec.distributed.types import ModuleSharder

from ..data.batches.features import Features

FREE_SHARE = 0.2
"""Of each rank's memory, kept for what nobody counts: the allocator's slack, NCCL's buffers, batches on their way."""
COPIES = 16
"""Numbers that a step holds at its peak for each number of the item rows that it looks up, gradients included: 4 to 17
for all towers and plug-ins but DIEN (29), histories of 50 to 5,000 (``peak_mib`` in benchmarks/results/steps.csv)."""


def dense_bytes(model: nn.Module, features: Features, batch_size: int, history: float) -> int:
    """Bytes that the dense part takes of each device while it trains.

    Its parameters count four times (with their gradients, which DDP keeps in place, and AdamW's two states), its
    buffers once; activations are estimated from the rows that a batch looks up, see ``COPIES``.

    Args:
        model: a ranker whose tables are in ``model.embeddings``; dense parameters are float32.
        features: widths of its tables.
        batch_size: samples a rank and step.
        history: mean length of a history.
    """
    tables = {id(p) for p in model.get_submodule("embeddings").parameters()}
    parameters = sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in tables)
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    rows = batch_size * (1 + history)
    return 4 * parameters + buffers + int(COPIES * 4 * (rows * features.query_dim + batch_size * features.pooled_dim))


class Reservation(FixedPercentageStorageReservation):
    """Takes ``FREE_SHARE`` of each rank's memories, and known bytes of that which the tables are looked up in.

    TorchRec's own takes a share of the GPU's memory alone: nothing on the CPU, nothing of the host's for tables in
    unified memory.

    Args:
        known: bytes of catalog and dense part on each device.
    """

    def __init__(self, known: int) -> None:
        super().__init__(FREE_SHARE)
        self.known = known

    def reserve(
        self,
        topology: Topology,
        batch_size: int,
        module: nn.Module,
        sharders: list[ModuleSharder[nn.Module]],
        constraints: dict[str, ParameterConstraints] | None = None,
    ) -> Topology:
        """A copy of ``topology`` without what is reserved."""
        reserved = super().reserve(topology, batch_size, module, sharders, constraints)
        on_cpu = topology.compute_device == "cpu"
        for device in reserved.devices:
            device.storage.ddr = int((1 - FREE_SHARE) * device.storage.ddr)
            device.storage -= Storage(hbm=0 if on_cpu else self.known, ddr=self.known if on_cpu else 0)
        self._last_reserved_topology = reserved
        return reserved
