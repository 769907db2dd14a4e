"""Ranking 1,000 candidates of one user from raw ids, beside ``ExportedRanker`` on the same pairs as samples.

    python -m placerank.benchmarks.bench_rank --export runs/demo/export --save

Three ways to the same scores, in turn, so that what else the machine does meets all of them:

* rank: ``placerank.load(export).rank`` with raw ids, a history and candidates, to a list of 10;
* batch: ``ExportedRanker.score`` on one batch of 1,000 samples, each its own request with its own copy of the history,
  rows and tensors made beforehand;
* each: the same a sample at a time, as a service that scores what it is asked without batches; 50 of them are timed.

Ratios are those of a turn: the median over turns, with the 20th and the 80th percentile.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import placerank
from placerank.benchmarks.results_file import save
from placerank.data.batches.batch import SampleBatch
from placerank.rankers.rank import Ranker

CANDIDATES, VISITS, EACH = 1_000, 50, 50
NOW = 1_717_243_200
_DAY = 86_400


def asked(ranker: Ranker, seed: int) -> dict[str, Any]:
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


def samples(ranker: Ranker, request: dict[str, Any], some: slice) -> SampleBatch:
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


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m placerank.benchmarks.bench_rank",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--export", type=Path, required=True, help="folder that placerank export wrote")
    parser.add_argument("--turns", type=int, default=61, help="of all ways (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help="write results/rank.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ranker = placerank.load(args.export)
    took: dict[str, list[float]] = {"rank": [], "batch": [], "each": []}
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
        if turn >= 0:
            for name, once in seconds.items():
                took[name].append(once)
    lines = []
    for name, x in took.items():
        ratio = np.array(x) / np.array(took["rank"])
        lines.append(
            {"way": name, "candidates": CANDIDATES, "visits": VISITS, "threads": args.threads, "turns": args.turns}
            | {"ms": round(float(np.median(x)) * 1e3, 2)}
            | {n: round(float(np.percentile(ratio, q)), 2) for n, q in (("ratio", 50), ("p20", 20), ("p80", 80))}
        )
        told = lines[-1]
        print(f"{name:6} {told['ms']:>10,.2f} ms   {told['ratio']:,.1f} ({told['p20']:,.1f} to {told['p80']:,.1f})")
    if args.save:
        save("rank.csv", lines)


if __name__ == "__main__":
    main()
