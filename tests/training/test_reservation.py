"""What the planner is told of memory that is not the tables'."""

from torchrec.distributed.planner.types import KernelConfig, Topology, TopologyFactory, TrainerConfig
from toy_ranker import FEATURES, RANKER

from placerank.rankers.ranker import Ranker
from placerank.training.reservation import COPIES, FREE_SHARE, Reservation, dense_bytes
from placerank.training.sharding import ShardingConfig, sharders


def test_dense_bytes_count_all_but_the_tables() -> None:
    """FEATURES: two shared tables of 8 columns, two pooled ones of 8."""
    model = Ranker(FEATURES, RANKER)
    parameters = sum(p.numel() for p in model.dense.parameters())
    buffers = sum(b.numel() * b.element_size() for b in model.dense.buffers())
    fixed = 4 * 4 * parameters + buffers
    assert parameters > 0 and dense_bytes(model, FEATURES, 0, 50.0) == fixed
    assert dense_bytes(model, FEATURES, 100, 0.0) == fixed + 100 * COPIES * 4 * (16 + 16)
    assert dense_bytes(model, FEATURES, 100, 9.0) == fixed + 100 * COPIES * 4 * (10 * 16 + 16)


def reserved(device: str) -> tuple[Topology, Topology]:
    topology = TopologyFactory.create_topology(
        TrainerConfig(world_size=2, hbm_cap_bytes=1000 if device == "cuda" else 0, ddr_cap_bytes=5000),
        kernel_config=KernelConfig(compute_device=device),
    )
    model = Ranker(FEATURES, RANKER)
    return topology, Reservation(100).reserve(topology, 4, model, sharders(ShardingConfig(), device))


def test_what_is_known_and_a_share_are_taken_of_the_memory_that_tables_are_looked_up_in() -> None:
    keep = 1 - FREE_SHARE
    for device, hbm, ddr in (("cuda", keep * 1000 - 100, keep * 5000), ("cpu", 0, keep * 5000 - 100)):
        before, after = reserved(device)
        assert [d.storage.ddr for d in before.devices] == [5000] * 2, "a copy is changed"
        assert [(d.storage.hbm, d.storage.ddr) for d in after.devices] == [(hbm, ddr)] * 2
