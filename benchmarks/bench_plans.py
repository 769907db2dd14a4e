"""Plans for more ranks than can be had: which table gets what, what each device holds, processor time to plan.

    python benchmarks/bench_plans.py                        # 8, 64, 512 and 4,096 simulated ranks
    python benchmarks/bench_plans.py --ranks 8 --save       # also writes results/plans.csv

No process groups and no GPUs: TorchRec's planner works on a description of machines (8 GPUs of 80 GiB and 1 TiB of
host memory each, TorchRec's own figures for bandwidths) and on tables without rows. So bytes are counted and times are
TorchRec's estimates; neither was seen on a GPU. 10 million items and 1 billion users. ``grid`` adds TorchRec's grid
search, which tries all combinations of options where there are at most 10,000, as in the case of few tables.
"""

import argparse
import logging
import statistics
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torchrec.distributed.planner.proposers import GridSearchProposer

from placerank.benchmarks.results_file import keep
from placerank.data.batches.features import FeatureConfig, Features, build_features
from placerank.rankers.dense import RankerConfig
from placerank.rankers.plugins.akt import akt_ladder
from placerank.rankers.plugins.rest import RestConfig
from placerank.rankers.ranker import Ranker
from placerank.training.sharding import Ranks, ShardingConfig, make_planner, sharders

ITEMS, USERS, BATCH, HISTORY = 10_000_000, 1_000_000_000, 4096, 50.0
VOCABULARIES = {"item": ITEMS, "user": USERS, "category": 2_000, "brand": 300_000, "price": 20, "province": 1_000}
VOCABULARIES |= {"city": 50_000, "district": 500_000, "age": 12, "gender": 3}
SEMANTIC = {"semantic_1": 512, "semantic_2": 512, "semantic_3": 512, "cluster": 65_536}
GIB = 1 << 30
GRID_UP_TO = 512
"""Ranks; with more the grid search takes minutes to hours."""


@dataclass(frozen=True)
class Case:
    """What is planned for: which features, of what width, and the catalog's bytes an item on each device."""

    name: str
    few: bool
    plugins: bool
    item_dim: int
    pooled_dim: int
    catalog_bytes: int

    def made(self) -> tuple[Ranker, Features]:
        akt = replace(akt_ladder()["gate"], enabled=self.plugins)
        config = RankerConfig(rest=RestConfig(enabled=self.plugins), akt=akt)
        tables = {name: 1 + rows for name, rows in VOCABULARIES.items()}
        pooled = ["user", "hour", "category_path", "city"] if self.few else None
        features = build_features(
            FeatureConfig(embedding_dim=self.item_dim, pooled_dim=self.pooled_dim, pooled=pooled),
            tables,
            ["age", "gender"],
            config.uses_context,
            config.uses_traits,
            {name: 1 + rows for name, rows in SEMANTIC.items()} if self.plugins else {},
        )
        return Ranker(features, config), features


CASES = [
    Case("few", True, False, 16, 8, 56),
    Case("plain", False, False, 16, 8, 56),
    Case("plugins", False, True, 16, 8, 96),
    Case("plugins_wide", False, True, 64, 128, 96),
]


def machines(ranks: int) -> Ranks:
    return Ranks("cuda", ranks, 8, 80 * GIB, 128 * GIB)


def spread(values: list[float]) -> float:
    """Largest over mean."""
    return max(values) / max(statistics.fmean(values), 1e-12)


def study(case: Case, ranks: int, grid: bool) -> dict[str, Any]:
    """One line: the plan of a case on so many ranks."""
    model, features = case.made()
    config = ShardingConfig()
    planner = make_planner(model, features, config, BATCH, HISTORY, machines(ranks), ITEMS * case.catalog_bytes)
    if grid:
        planner._proposers.insert(0, GridSearchProposer())
    start = time.process_time()
    planner.plan(model, sharders(config, "cuda"))
    seconds = time.process_time() - start
    device, host, ms = ([0.0] * ranks for _ in range(3))
    kinds = {}
    for option in planner._best_plan:
        kinds[option.name] = f"{option.sharding_type}, {option.compute_kernel}"
        for shard in option.shards:
            device[shard.rank] += shard.storage.hbm / GIB
            host[shard.rank] += shard.storage.ddr / GIB
            ms[shard.rank] += shard.perf.total
    known = planner._storage_reservation.known / GIB
    return {
        "case": case.name,
        "ranks": ranks,
        "search": "grid" if grid else "greedy",
        "tables": len(kinds),
        "kinds": "; ".join(f"{n} {kind}" for kind, n in sorted(Counter(kinds.values()).items())),
        "item": kinds["item"],
        "user": kinds["user"],
        "tables_gib_max": f"{max(device):.2f}",
        "tables_gib_mean": f"{statistics.fmean(device):.2f}",
        "host_gib_max": f"{max(host):.2f}",
        "catalog_and_dense_gib": f"{known:.2f}",
        "estimated_ms": f"{max(ms):.3f}",
        "time_balance": f"{spread(ms):.2f}",
        "storage_balance": f"{spread(device):.2f}",
        "proposals": planner._num_proposals,
        "processor_seconds": f"{seconds:.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", nargs="+", type=int, default=[8, 64, 512, 4096])
    parser.add_argument("--cases", nargs="+", choices=[c.name for c in CASES], default=[c.name for c in CASES])
    parser.add_argument("--save", action="store_true", help="write results/plans.csv")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # TorchRec tells of every step
    torch.set_num_threads(1)
    lines = []
    for case in (c for c in CASES if c.name in args.cases):
        for ranks in args.ranks:
            for grid in (False, True)[: 1 + (case.few and ranks <= GRID_UP_TO)]:
                line = study(case, ranks, grid)
                lines.append(line)
                print(
                    f"{line['case']:12} {ranks:>5} ranks, {line['search']}: {line['processor_seconds']} s, device "
                    f"{line['tables_gib_max']} GiB (mean {line['tables_gib_mean']}), estimated {line['estimated_ms']} "
                    f"ms (balance {line['time_balance']}); item {line['item']}, user {line['user']}; {line['kinds']}",
                    flush=True,
                )
    if args.save:
        keep("plans.csv", lines, ("case", "ranks", "search"), torch.device("cpu"))


if __name__ == "__main__":
    main()
