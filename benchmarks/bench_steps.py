"""Step time and memory beside plain DIN's: every tower; on DIN semantic IDs, ReST, AKT-Rec's ladder, both plug-ins; on
TWIN, the default, ReST, AKT-Rec and both. ``_whole`` is ReST with its warm-up, as in the paper.

    python benchmarks/bench_steps.py                          # histories of 50, three rounds, prints
    python benchmarks/bench_steps.py --histories 50 500 5000 --rounds 7 --save
    torchrun --nproc-per-node 2 benchmarks/bench_steps.py --save
    python benchmarks/bench_steps.py --sides rest akt_views --profile

A step is all that training does with a batch of samples in memory: the catalog's look-ups, forward, backward, tables'
and dense optimizer. Rows of 16 columns, histories of skewed lengths (log-normal, median a third of the longest, cut
there), popular items far more often than others; 4,096 samples at histories of 50, so many fewer at longer ones that
the visits stay as many. AKT-Rec needs semantic IDs, so its sides hold their tables too. In each round all sides run in
turn on the same samples; ratios are to plain DIN's of that round: the median over rounds, and its range. Seconds are
the processor's, so that what others do on the machine does not count; wall time is beside them. Memory is the peak
above what was in use before the step. With several ranks the figures are the first one's. ``--save`` writes
results/steps.csv, a line for each side, longest history and number of ranks.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from placerank.benchmarks.kernels.harness import peak_mib
from placerank.benchmarks.results_file import keep
from placerank.benchmarks.skewed import history_lengths, popularity
from placerank.data.batches.batch import SampleBatch
from placerank.data.batches.catalog import Catalog
from placerank.data.batches.features import CLUSTER, USER_CLUSTER, FeatureConfig, build_features
from placerank.data.batches.host_batch import HostBatch
from placerank.data.batches.item_columns import with_columns
from placerank.data.batches.semantic_features import SemanticFeatures
from placerank.rankers.dense import RankerConfig
from placerank.rankers.plugins.akt import akt_ladder
from placerank.rankers.plugins.rest import RestConfig, rest_preset
from placerank.rankers.towers.tower import TOWERS
from placerank.training.model import OptimizerConfig, assemble, table_rows
from placerank.training.runtime import runtime
from placerank.training.sharding import ShardingConfig

BATCH, BATCHES = 4096, 2  # samples at histories of 50
ITEMS, USERS, CATEGORIES, BRANDS, CITIES = 100_000, 50_000, 300, 3_000, 20
LEVELS, CODES = 3, 256
NOW = 1_700_000_000
BASELINE = "din"


def sides() -> dict[str, tuple[bool, RankerConfig]]:
    """By name, whether there are semantic IDs, and the ranker."""
    rest, whole, ladder = RestConfig(enabled=True), rest_preset("rest"), akt_ladder()
    return {
        BASELINE: (False, RankerConfig(tower=BASELINE)),
        **{name: (False, RankerConfig(tower=name)) for name in TOWERS if name != BASELINE},
        "semantic_ids": (True, RankerConfig(tower=BASELINE)),
        "rest": (False, RankerConfig(tower=BASELINE, rest=rest)),
        "rest_whole": (False, RankerConfig(tower=BASELINE, rest=whole)),
        **{f"akt_{n}": (True, RankerConfig(tower=BASELINE, akt=akt)) for n, akt in ladder.items() if n != "none"},
        "rest_and_akt": (True, RankerConfig(tower=BASELINE, rest=rest, akt=ladder["gate"])),
        "rest_whole_and_akt": (True, RankerConfig(tower=BASELINE, rest=whole, akt=ladder["gate"])),
        "twin_rest": (False, RankerConfig(tower="twin", rest=rest)),
        "twin_akt": (True, RankerConfig(tower="twin", akt=ladder["gate"])),
        "twin_rest_and_akt": (True, RankerConfig(tower="twin", rest=rest, akt=ladder["gate"])),
        "twin_rest_whole_and_akt": (True, RankerConfig(tower="twin", rest=whole, akt=ladder["gate"])),
    }


def make_tables(rng: np.random.Generator) -> tuple[pa.Table, pa.Table, np.ndarray]:
    """Items and users as a prepared folder has them, and how often each item is met."""
    share = rng.permutation(popularity(ITEMS - 1))
    category = rng.integers(1, CATEGORIES, ITEMS)
    brand = np.where(rng.random(ITEMS) < 0.4, rng.zipf(1.3, ITEMS).clip(max=BRANDS - 1), 0)
    city = rng.integers(0, CITIES, ITEMS)
    lat, lon = rng.uniform(30, 50, CITIES)[city], rng.uniform(0, 20, CITIES)[city]
    positives = np.concatenate([[0], rng.poisson(share * 1e6)])
    offsets = pa.array(np.arange(ITEMS + 1), pa.int32())
    items = pa.table(
        {
            "item_id": pa.array(range(ITEMS)),
            "lat": lat + rng.normal(0, 0.05, ITEMS),
            "lon": lon + rng.normal(0, 0.05, ITEMS),
            "category_row": category,
            "brand_row": brand,
            "category_path": pa.ListArray.from_arrays(offsets, pa.array(category)),
            "positives": positives,
            "last_positive": NOW - rng.integers(0, 90 * 86_400, ITEMS),
        }
    )
    return items, pa.table({"user_id": pa.array(range(USERS)), "positives": rng.poisson(20, USERS)}), share


def make_samples(rng: np.random.Generator, share: np.ndarray, longest: int) -> SampleBatch:
    """Requests of one candidate each, so many that they have about as many visits as at histories of 50."""
    return make_requests(rng, share, longest, 1, BATCH * 50 // longest)


def make_requests(rng: np.random.Generator, share: np.ndarray, longest: int, candidates: int, size: int) -> SampleBatch:
    """``size`` candidates of requests with so many each, the last with what is left."""
    requests = -(-size // candidates)
    lengths = history_lengths(rng, requests, longest)
    total = int(lengths.sum())
    met = torch.from_numpy(1 + rng.choice(ITEMS - 1, size + total, p=share))
    rows = torch.arange(requests)
    return SampleBatch(
        request_id=rows,
        user=torch.from_numpy(rng.integers(0, USERS, requests)),
        user_index=rows,
        time=torch.full((requests,), NOW),
        lat=torch.from_numpy(rng.uniform(0, 20, requests)).float(),
        lon=torch.from_numpy(rng.uniform(0, 20, requests)).float(),
        offsets=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
        history=met[size:],
        history_hours=torch.from_numpy(rng.exponential(200, total)).float(),
        request=torch.arange(size) // candidates,
        item=met[:size],
        label=torch.from_numpy(rng.random(size) < 0.2).float(),
        visits=torch.zeros(size, dtype=torch.int32),
        probability=None,
        valid=size,
    )


class Side:
    """A ranker in training: ``step`` does all of a batch."""

    def __init__(self, semantic: bool, config: RankerConfig, items: pa.Table, users: pa.Table, rt: Any) -> None:
        codes = np.random.default_rng(1).integers(0, CODES, (ITEMS, LEVELS))
        tables = SemanticFeatures(codes, CODES, ("",), "codes").tables(65_536) if semantic else {}
        if config.akt.enabled:
            tables[CLUSTER] = SemanticFeatures(codes, CODES, ("",), "codes").prefix_table(1, config.akt.cluster_rows)
        sizes = {name: size for name, (_, size) in tables.items()}
        if config.akt.enabled and config.akt.users:
            sizes[USER_CLUSTER] = sizes[CLUSTER]
        vocabularies = {"item": ITEMS, "user": USERS, "category": CATEGORIES, "brand": BRANDS}
        features = build_features(FeatureConfig(), vocabularies, [], config.uses_context, config.uses_traits, sizes)
        self.catalog = Catalog.of(
            with_columns(items, {n: x for n, (x, _) in tables.items()}), users, features, rt.device
        )
        torch.manual_seed(0)
        self.trainee = assemble(features, config, ShardingConfig(), OptimizerConfig(), rt, BATCH, 20.0)
        self.trainee.model.train()
        contrast = self.trainee.model.module.dense.contrast
        if contrast is not None:
            rows, counts = self.catalog.attribute_combinations()
            found = [table_rows(self.trainee.model, n, rows[:, i]) for i, n in enumerate(features.attributes)]
            contrast.refresh(torch.stack(found, dim=1), rows > 0, counts)

    def step(self, sample: SampleBatch | HostBatch) -> Tensor:
        batch = self.catalog.expand(sample)
        loss, _ = self.trainee.model(batch).loss(batch.label)
        self.trainee.optimizer.zero_grad()
        loss.backward()
        self.trainee.optimizer.step()
        return loss


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Processor's and wall time."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.process_time() - processor, time.perf_counter() - wall


def measure(
    made: dict[str, Side], samples: list[SampleBatch], longest: int, rounds: int, ranks: int
) -> list[dict[str, Any]]:
    """One line a side: its time over plain DIN's of the same round."""
    calls = {name: lambda side=side: [side.step(s) for s in samples] for name, side in made.items()}
    for call in calls.values():
        call()  # compiles
    peaks = {name: peak_mib(call, torch.device("cpu"))[0] for name, call in calls.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    lines = []
    for name in calls:
        ratios, walls = (
            [own[kind] / base[kind] for own, base in zip(times[name], times[BASELINE], strict=True)] for kind in (0, 1)
        )
        lines.append(
            {
                "side": name,
                "longest": longest,
                "ranks": ranks,
                "samples": len(samples[0]),
                "visits": round(sum(s.history_hours.numel() for s in samples) / len(samples)),
                "rounds": rounds,
                "times_din": f"{statistics.median(ratios):.2f}",
                "times_din_min": f"{min(ratios):.2f}",
                "times_din_max": f"{max(ratios):.2f}",
                "wall_times_din": f"{statistics.median(walls):.2f}",
                "ms": f"{statistics.median(t for t, _ in times[name]) / len(samples) * 1e3:.0f}",
                "peak_mib": f"{peaks[name]:.0f}",
                "peak_times_din": f"{peaks[name] / max(peaks[BASELINE], 1e-9):.2f}",
                "threads": torch.get_num_threads(),
            }
        )
    return lines


def profile(side: Side, samples: list[SampleBatch]) -> str:
    """What a side's steps spend the processor's time on."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for sample in samples:
            side.step(sample)
    table: str = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=60)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--histories", nargs="+", type=int, default=[50], help="longest ones (default: 50)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=sorted(sides()), help="default: all; plain DIN always runs")
    parser.add_argument("--profile", action="store_true", help="print where the time of each side goes instead")
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--save", action="store_true", help="write results/steps.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    items, users, share = make_tables(np.random.default_rng(0))
    chosen = {n: side for n, side in sides().items() if n == BASELINE or not args.sides or n in args.sides}
    with runtime(0) as rt:
        made = {name: Side(*side, items, users, rt) for name, side in chosen.items()}
        lines = []
        for longest in args.histories:
            rng = np.random.default_rng(1 + rt.rank)
            samples = [make_samples(rng, share, longest) for _ in range(BATCHES)]
            if args.profile:
                for name, side in made.items():
                    side.step(samples[0])
                    print(name, profile(side, samples), sep="\n")
                continue
            for line in measure(made, samples, longest, args.rounds, rt.world_size):
                lines.append(line)
                if rt.is_first:
                    print(
                        f"{line['side']:13} up to {longest:>5,}: {line['times_din']:>5} x DIN ({line['times_din_min']} "
                        f"to {line['times_din_max']}; wall {line['wall_times_din']}), {line['ms']} ms, "
                        f"memory {line['peak_times_din']} x"
                    )
        if args.save and lines and rt.is_first:
            keep("steps.csv", lines, ("side", "longest", "ranks"), torch.device("cpu"))


if __name__ == "__main__":
    main()
