"""What the catalog costs: bytes an item on a device and on the host, time to expand a batch, to refresh ReST's centres.

    python benchmarks/bench_catalog.py                               # a million items, prints
    torchrun --nproc-per-node 2 benchmarks/bench_catalog.py          # the host's bytes are shared by two ranks
    torchrun --nproc-per-node 2 benchmarks/bench_catalog.py --sharded
    python benchmarks/bench_catalog.py --items 4000000 --save        # also writes results/catalog.csv

``plain`` has two shared attributes, four pooled ones and the category's path; ``plugins`` has three levels of a
semantic ID, clusters, activity, heads and adaptive radii besides. Bytes on the host are what the process holds beyond
what it held before (proportional set size, so what ranks share is divided among them; memory that is free again not
counted); on the CPU the device's are in it. Times are the processor's. ``refresh`` is what a refresh of the centres
costs here, ``once`` what is computed for it once a machine, and ``refresh_before`` what it replaced: the unique rows of
all items' attributes at each refresh on each rank, computed here.
"""

import argparse
import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor

from placerank.benchmarks.results_file import keep
from placerank.data.batches.batch import SampleBatch
from placerank.data.batches.catalog import Catalog
from placerank.data.batches.features import (
    CLUSTER,
    ITEM_ATTRIBUTES,
    USER_CLUSTER,
    FeatureConfig,
    Features,
    build_features,
)
from placerank.data.batches.item_columns import attribute_combinations, catalog_columns, columns_to_read
from placerank.data.batches.sharded_catalog import ShardedCatalog
from placerank.data.one_copy import one_copy
from placerank.training.runtime import on_first_rank, runtime

SIZES = {"category": 500, "brand": 30_000, "price": 9, "province": 40, "city": 600, "district": 9_000}
SEMANTIC = {"semantic_1": 257, "semantic_2": 257, "semantic_3": 257, CLUSTER: 257, USER_CLUSTER: 257}
USERS, BATCH, HISTORY = 100_000, 4096, 20
CPU = torch.device("cpu")


def features_of(items: int, plugins: bool) -> Features:
    tables = {"item": items, "user": USERS, **SIZES}
    if not plugins:
        return build_features(FeatureConfig(), tables, [])
    return build_features(FeatureConfig(), tables, [], traits=True, semantic=SEMANTIC, adaptive=True)


def write_tables(folder: Path, items: int) -> None:
    """A prepared folder's catalog and users, as long ids and names as real ones have."""
    rng = np.random.default_rng(0)
    skewed = lambda size: (rng.zipf(1.2, items) % size).astype(np.int32)  # noqa: E731
    rows = {f"{n}_row": skewed(SIZES[n]) for n in ITEM_ATTRIBUTES}
    rows |= {f"{n}_row": skewed(size) for n, size in SEMANTIC.items() if n != USER_CLUSTER}
    category = rows["category_row"]
    path = np.stack([category // 50 + 1, category // 7 + 1, category], axis=1).astype(np.int32)
    columns = {
        "item_id": pa.array([f"place-{i:024d}" for i in range(items)]),
        "name": pa.array([f"Restaurant number {i}" for i in range(items)]),
        "lat": rng.uniform(30, 50, items),
        "lon": rng.uniform(0, 20, items),
        "category_path": pa.ListArray.from_arrays(pa.array(np.arange(items + 1) * 3, pa.int32()), path.ravel()),
        "positives": rng.poisson(20, items),
        "last_positive": 1_700_000_000 - rng.integers(0, 90 * 86_400, items),
        **rows,
    }
    pq.write_table(pa.table(columns), folder / "catalog.parquet", compression="zstd")
    users = {"user_id": np.arange(USERS), "positives": rng.poisson(20, USERS)}
    pq.write_table(pa.table(users), folder / "users.parquet")


def make_sample(items: int, rng: np.random.Generator) -> SampleBatch:
    lengths = torch.from_numpy(rng.poisson(HISTORY, BATCH))
    total, rows = int(lengths.sum()), torch.arange(BATCH)
    met = torch.from_numpy(rng.zipf(1.1, BATCH + total) % items)
    return SampleBatch(
        request_id=rows,
        user=torch.from_numpy(rng.integers(0, USERS, BATCH)),
        user_index=rows,
        time=torch.full((BATCH,), 1_700_000_000),
        lat=torch.from_numpy(rng.uniform(0, 20, BATCH)).float(),
        lon=torch.from_numpy(rng.uniform(0, 20, BATCH)).float(),
        offsets=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
        history=met[BATCH:],
        history_hours=torch.from_numpy(rng.exponential(200, total)).float(),
        request=rows,
        item=met[:BATCH],
        label=torch.ones(BATCH),
        visits=torch.ones(BATCH, dtype=torch.int32),
        probability=None,
        valid=BATCH,
    )


def proportional_bytes() -> int:
    """Memory that this process holds, what it shares with others divided among them."""
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def processor_ms(call: Callable[[], object], rounds: int) -> float:
    """Median of some calls, after one to warm up."""
    call()
    found = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        found.append((time.process_time() - start) * 1e3)
    return statistics.median(found)


def old_combinations(attributes: Tensor) -> tuple[Tensor, Tensor]:
    """What each refresh of the centres computed before combinations were kept."""
    rows, counts = attributes[1:].unique(dim=0, return_counts=True)
    top = counts.argsort(descending=True, stable=True)[:65_536]
    return rows[top], counts[top]


def measure(folder: Path, items: int, plugins: bool, sharded: bool, rounds: int) -> dict[str, Any]:
    features = features_of(items, plugins)

    def columns() -> dict[str, Tensor]:
        needed = columns_to_read(features, pq.read_schema(folder / "catalog.parquet").names)
        items = pq.read_table(folder / "catalog.parquet", columns=needed)
        return catalog_columns(items, pq.read_table(folder / "users.parquet"), features)

    before, start = proportional_bytes(), time.process_time()
    made = one_copy(columns)
    group = dist.GroupMember.WORLD
    assert group is not None
    catalog = ShardedCatalog(made, features, CPU, group) if sharded else Catalog(made, features, CPU)
    seconds = time.process_time() - start
    del made
    for column in (catalog.words, *catalog.on_host.values()):
        column.sum()  # touches every page
    dist.barrier()
    host = proportional_bytes() - before
    dist.barrier()
    sample = make_sample(items, np.random.default_rng(dist.get_rank()))
    gathered = catalog.gather(sample)
    line: dict[str, Any] = {
        "side": "plugins" if plugins else "plain",
        "items": items,
        "ranks": dist.get_world_size(),
        "sharded": sharded,
        "device_bytes_an_item": f"{catalog.device_bytes / items:.1f}",
        "host_bytes_an_item_and_rank": f"{host / items:.1f}",
        "build_s": f"{seconds:.2f}",
        "gather_ms": f"{processor_ms(lambda: catalog.gather(sample), rounds):.1f}",
        "expand_ms": f"{processor_ms(lambda: catalog.expand(gathered), rounds):.1f}",
    }
    times = ["", "", ""]
    if plugins and not sharded:
        attributes = catalog.words[:, catalog.layout.attributes]
        times[0] = f"{processor_ms(catalog.attribute_combinations, rounds):.3f}"
        times[1] = f"{processor_ms(lambda: attribute_combinations(attributes[1:]), 3):.0f}"
        times[2] = f"{processor_ms(lambda: old_combinations(attributes.long()), 1):.0f}"
        assert all(map(torch.equal, old_combinations(attributes.long()), catalog.attribute_combinations()))
    return line | dict(zip(("refresh_ms", "once_ms", "refresh_before_ms"), times, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--sharded", action="store_true", help="the catalog cut over the ranks")
    parser.add_argument("--save", action="store_true", help="write results/catalog.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as own, runtime(0) as rt:
        folder = Path(on_first_rank(lambda: own))
        on_first_rank(lambda: write_tables(folder, args.items))
        lines = [measure(folder, args.items, plugins, args.sharded, args.rounds) for plugins in (False, True)]
        dist.barrier()
        if rt.is_first:
            for line in lines:
                print(", ".join(f"{name} {value}" for name, value in line.items()))
            if args.save:
                keep("catalog.csv", lines, ("side", "items", "ranks", "sharded"), CPU)


if __name__ == "__main__":
    main()
