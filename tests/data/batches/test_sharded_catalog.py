"""The catalog cut over ranks gives the batches of the whole one, to the last bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from catalogs import all_features, make_sample, make_tables, tensors_of
from host_waits import host_waits

from placerank.data.batches.catalog import Catalog
from placerank.data.batches.sharded_catalog import ShardedCatalog
from placerank.training.runtime import runtime

CPU = torch.device("cpu")


def batches_of_ranks(items: int) -> tuple[list[Any], list[int], int, int]:
    """Of each kind of batch both catalogs' tensors; waits of each; bytes of both catalogs."""
    with runtime(0) as rt:
        features, tables = all_features(items), make_tables(items)
        whole = Catalog.of(*tables, features, CPU)
        columns = {**whole.on_host, "words": whole.words.clone()}
        columns |= {"path_offsets": whole.path_offsets, "path_values": whole.path_values}
        sharded = ShardedCatalog(columns, features, CPU, dist.GroupMember.WORLD)
        pairs, waits = [], []
        # ranks have different numbers of items, some none
        for lengths in ([0] * rt.rank, [2 + rt.rank, 0, 9], [30] * (1 + rt.rank)):
            host = sharded.gather(make_sample(items, lengths, seed=rt.rank))
            with host_waits() as waited:
                got = sharded.expand(host)
            waits.append(len(waited))
            pairs.append((tensors_of(got), tensors_of(whole.expand(host))))
        return pairs, waits, sharded.device_bytes, whole.device_bytes


@pytest.mark.parametrize("items", [2, 400])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_batches_are_those_of_the_whole_catalog(world_size: int, items: int, ranks: Callable[..., list[Any]]) -> None:
    for pairs, waits, part, whole in ranks(world_size, batches_of_ranks, items):
        for got, want in pairs:
            assert got.keys() == want.keys()
            for name, value in want.items():
                torch.testing.assert_close(got[name], value, rtol=0, atol=0, equal_nan=True)
        assert max(waits) <= 1
        if items > 100:
            assert part < 1.3 * whole / world_size
