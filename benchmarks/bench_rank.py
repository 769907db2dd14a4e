"""Ranking 1,000 candidates of one user from raw ids, beside ``ExportedRanker`` on the same pairs as samples.

    python -m placerank.benchmarks.bench_rank --export runs/demo/export --save

Three ways to the same scores, in turn, so that what else the machine does meets all of them:

* rank: ``placerank.load(export).rank`` with raw ids, a history and candidates, to a list of 10;
* batch: ``ExportedRanker.score`` on one batch of 1,000 samples, each its own request with its own copy of the history,
  rows and tensors made beforehand;
* each: the same a sample at a time, as a service that scores what it is asked without batches; 50 of them are timed.

Ratios are those of a turn: the median over turns, with the 20th and the 80th percentile.

    python -m placerank.benchmarks.bench_rank --export runs/din/export --peers fuxictr torch-rechub --save

``--peers`` adds the DIN of other libraries, each in an environment and a process of its own (``throughput/``): their
own predict on a batch in memory of the same 1,000 rows (user, item, category, and the history of both, padded), tables
of the export's sizes and widths, untrained. The export is then that of a DIN with item and category as keys and the
user: ``placerank train --ranker.tower din --features.history-attributes category --features.pooled user`` with
``--features.pooled-dim 16``.

    python -m placerank.benchmarks.bench_rank --export runs/din/export --exact runs/din/data --save

``--exact`` compares lists instead: for requests of the test split, the 10 best within 3 km by ``rank`` with brute
force: distances to all items by the plain formula, scores by the exported program for each pair by itself. Writes
results/rank_exact.csv.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import placerank
from placerank.benchmarks.bench_throughput import Case, Worker
from placerank.benchmarks.results_file import keep
from placerank.benchmarks.throughput.dataset import DatasetConfig
from placerank.benchmarks.throughput.environments import environment
from placerank.data.batches.batch import SampleBatch
from placerank.data.batches.loader import SampleLoader
from placerank.data.manifest import read_manifest
from placerank.kernels.haversine import haversine_km
from placerank.rankers.rank_towers import TowerRanker

PEERS = ("fuxictr", "torch-rechub")
KM, PLACES, NEAR = 3.0, 10, 1e-5
CANDIDATES, VISITS, EACH = 1_000, 50, 50
NOW = 1_717_243_200
_DAY = 86_400


def asked(ranker: TowerRanker, seed: int) -> dict[str, Any]:
    """A user at an item, with a history and candidates drawn from the catalog."""
    rng = np.random.default_rng(seed)
    rows = 1 + rng.permutation(len(ranker.item_ids) - 1)
    if len(rows) < CANDIDATES:
        raise SystemExit(f"the export has {len(rows):,} items, expected at least {CANDIDATES:,}")
    ids = ranker.item_ids.take(pa.array(rows[:CANDIDATES])).to_pylist()
    visited = ranker.item_ids.take(pa.array(rng.choice(rows, VISITS))).to_pylist()
    users = ranker.user_ids
    return {
        "user": users[int(rng.integers(1, len(users)))].as_py(),
        "place": (float(ranker.lat[rows[0]]), float(ranker.lon[rows[0]])),
        "time": NOW,
        "history": [(item, NOW - _DAY * (i + 1)) for i, item in enumerate(visited)],
        "candidates": ids,
    }


def samples(ranker: TowerRanker, request: dict[str, Any], some: slice) -> SampleBatch:
    """Candidates of the request as samples of a request each."""
    ids = request["candidates"][some]
    columns: dict[str, Any] = {name: [request[name]] * len(ids) for name in ("time",)}
    columns["user_id"] = [request["user"]] * len(ids)
    columns |= {name: [request["place"][i]] * len(ids) for i, name in enumerate(("lat", "lon"))}
    columns["history"] = [[item for item, _ in request["history"]]] * len(ids)
    columns["history_time"] = [[t for _, t in request["history"]]] * len(ids)
    columns["candidates"] = [[item] for item in ids]
    return ranker.samples(pa.table(columns))


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peer_workers(ranker: TowerRanker, args: argparse.Namespace) -> list[Worker]:
    """The peers, warm, with the pairs of a request as their rows.

    Raises:
        SystemExit: the export has other tables than the peers.
    """
    features = ranker.exported.features
    sequence, pooled = ({t.name: t for t in tables} for tables in (features.sequence, features.pooled))
    widths = {t.dim for t in features.tables}
    if [*sequence, *pooled] != ["item", "category", "user"] or len(widths) > 1:
        raise SystemExit(
            f"--peers: got tables {', '.join(t.name for t in features.tables)} of {widths} columns; see --help"
        )
    request = asked(ranker, 0)
    row = {item: i for i, item in enumerate(ranker.item_ids.to_pylist())}
    visited = [row[item] for item, _ in request["history"]][::-1]
    folder = args.cache / "rank"
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "user": np.full(CANDIDATES, ranker.user_ids.to_pylist().index(request["user"])),
        "item": np.array([row[item] for item in request["candidates"]]),
        "label": np.zeros(CANDIDATES, np.float32),
        "history": np.tile(np.array(visited), (CANDIDATES, 1)),
        "length": np.full(CANDIDATES, VISITS),
        "category": pq.read_table(args.export / "catalog.parquet")["category_row"].to_numpy().astype(np.int64),
    }
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    sizes = DatasetConfig(
        rows=CANDIDATES,
        users=pooled["user"].rows,
        items=sequence["item"].rows,
        categories=sequence["category"].rows,
        history=VISITS,
    )
    case = Case(CANDIDATES, sequence["item"].dim, "full")
    workers = []
    for name in args.peers:
        python = environment(name, args.cache)
        workers.append(Worker(name, python, case, folder, sizes, args.cache, args.threads))
        workers[-1].ask("predict 5")
    return workers


def requests_of(ranker: TowerRanker, data: Path, count: int) -> pa.Table:
    """Requests of the test split that have a place, by raw ids, as ``predict`` takes them."""
    sample = next(iter(SampleLoader(data, "test", 1 << 18)))
    there = (~sample.lat.isnan()).nonzero().squeeze(1).tolist()
    rng = np.random.default_rng(0)
    ids, users = ranker.item_ids.to_pylist(), ranker.user_ids.to_pylist()
    lines = []
    for r in sorted(rng.permutation(there)[:count].tolist()):
        visits = slice(int(sample.offsets[r]), int(sample.offsets[r + 1]))
        time_of = int(sample.time[r])
        known = [
            (ids[i], h) for i, h in zip(sample.history[visits], sample.history_hours[visits].tolist(), strict=True)
        ]
        lines.append(
            {
                "user_id": users[int(sample.user[r])],
                "time": time_of,
                "lat": float(sample.lat[r]),
                "lon": float(sample.lon[r]),
                "history": [item for item, _ in known],
                "history_time": [min(time_of - round(h * 3600), time_of - 1) for _, h in known],
            }
        )
    schema = pa.table({"user_id": users[1:2], "item_id": ids[1:2]}).schema
    types = {"user_id": schema.field("user_id").type, "history": pa.list_(schema.field("item_id").type)}
    return pa.table({n: pa.array([line[n] for line in lines], types.get(n)) for n in lines[0]})


def exact(ranker: TowerRanker, data: Path, count: int) -> dict[str, Any]:
    """How many lists are those of brute force."""
    requests = requests_of(ranker, data, count)
    found = pa.concat_tables(ranker.predict(requests, within_km=KM, k=PLACES))
    ids = ranker.item_ids.to_pylist()
    lat, lon = (torch.from_numpy(x) for x in (ranker.lat, ranker.lon))
    lists: list[list[tuple[Any, float]]] = [[] for _ in range(len(requests))]
    score = next(c for c in found.column_names if c.startswith("score"))
    for request, item, number in zip(*(found[c].to_pylist() for c in ("request", "item_id", score)), strict=True):
        lists[request].append((item, number))
    same, swapped, off, pairs, tied = 0, 0, 0.0, 0, 0
    for r, got in enumerate(lists):
        one = requests.slice(r, 1)
        here_lat, here_lon = (torch.tensor(one[c][0].as_py(), dtype=torch.float64) for c in ("lat", "lon"))
        km = haversine_km(here_lat, here_lon, lat, lon)
        rows = [i for i in range(1, len(ids)) if float(km[i]) <= KM]
        pairs += len(rows)
        want: list[tuple[float, int]] = []
        for start in range(0, len(rows), CANDIDATES):
            some = rows[start : start + CANDIDATES]
            each = one.take(pa.array([0] * len(some)))
            each = each.append_column("candidates", pa.array([[ids[i]] for i in some], pa.list_(ranker.item_ids.type)))
            logits = ranker.exported.score(ranker.samples(each)).reshape(len(some), -1)[:, 0]
            want += [(-z, i) for z, i in zip(logits.tolist(), some, strict=True)]
        of = {ids[i]: -z for z, i in want}
        best = sorted(want)[:PLACES]
        tied += len(best) - len({z for z, _ in best})
        same += [item for item, _ in got] == [ids[i] for _, i in best]
        off = max([off, *(abs(of[item] - number) for item, number in got)])
        # where the program's and the code's rounding decide, either order is right
        near = len(got) == len(best) and all(abs(of[i] + z) <= NEAR for (i, _), (z, _) in zip(got, best, strict=True))
        swapped += [item for item, _ in got] != [ids[i] for _, i in best] and near
    return {
        "data": data.parent.name if data.name in ("prepared", "data") else data.name,
        "requests": len(requests),
        "km": KM,
        "in_reach": pairs,
        "equal": same,
        "equal_but_for_rounding": swapped,
        "tied": tied,
        "largest_difference": f"{off:.1e}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m placerank.benchmarks.bench_rank",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--export", type=Path, required=True, help="folder that placerank export wrote")
    parser.add_argument("--turns", type=int, default=61, help="of all ways (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[], help="other libraries' DIN beside it")
    parser.add_argument("--cache", type=Path, default=Path(".cache/peers"), help="their environments, data and logs")
    parser.add_argument("--exact", type=Path, help="the prepared folder whose requests' lists are compared")
    parser.add_argument("--requests", type=int, default=500, help="of --exact (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help="write results/rank.csv, or rank_exact.csv")
    args = parser.parse_args()
    args.cache = args.cache.resolve()
    torch.set_num_threads(args.threads)
    ranker = placerank.load(args.export)
    if not isinstance(ranker, TowerRanker):
        raise SystemExit("the export is of a generative ranker, expected one that scores candidates")
    if args.exact is not None:
        line = exact(ranker, args.exact, args.requests)
        print(" ".join(f"{name} {value}" for name, value in line.items()))
        if args.save:
            keep("rank_exact.csv", [line], ("data",))
        return
    told = read_manifest(args.export, "export")["ranker"]
    workers = peer_workers(ranker, args) if args.peers else []
    took: dict[str, list[float]] = {name: [] for name in ("rank", "batch", "each", *(w.name for w in workers))}
    for turn in range(-2, args.turns):
        request = asked(ranker, turn + 2)
        batch = samples(ranker, request, slice(None))
        alone = [samples(ranker, request, slice(i, i + 1)) for i in range(EACH)]
        found = ranker.rank(**request, k=CANDIDATES)
        first = next(name for name in found.column_names if name.startswith("score"))
        got = dict(zip(found["item_id"].to_pylist(), found[first].to_pylist(), strict=True))
        want = ranker.exported.score(batch).reshape(CANDIDATES, -1)[:, 0]
        torch.testing.assert_close(
            torch.tensor([got[item] for item in request["candidates"]]), want, rtol=1e-4, atol=1e-4
        )
        seconds = {
            "rank": timed(lambda: ranker.rank(**request)),  # noqa: B023
            "batch": timed(lambda: ranker.exported.score(batch)),  # noqa: B023
            "each": timed(lambda: [ranker.exported.score(x) for x in alone]) * CANDIDATES / EACH,  # noqa: B023
        }
        seconds |= {w.name: w.ask("predict 1")["seconds"][0] for w in workers}
        if turn >= 0:
            for name, once in seconds.items():
                took[name].append(once)
    for worker in workers:
        worker.close()
    lines = []
    for name, x in took.items():
        ratio = np.array(x) / np.array(took["rank"])
        lines.append(
            {
                "tower": told["tower"],
                "way": name,
                "candidates": CANDIDATES,
                "visits": VISITS,
                "threads": args.threads,
                "turns": args.turns,
            }
            | {"ms": round(float(np.median(x)) * 1e3, 2)}
            | {n: round(float(np.percentile(ratio, q)), 2) for n, q in (("ratio", 50), ("p20", 20), ("p80", 80))}
        )
        line = lines[-1]
        print(f"{name:12} {line['ms']:>10,.2f} ms   {line['ratio']:,.1f} ({line['p20']:,.1f} to {line['p80']:,.1f})")
    if args.save:
        keep("rank.csv", lines, ("tower", "way"))


if __name__ == "__main__":
    main()
