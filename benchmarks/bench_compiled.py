"""The dense part of a request in three ways: placerank's code, the exported program, and that compiled by AOTInductor.

    python -m placerank.benchmarks.bench_compiled --export runs/demo/export --save

``code`` is what ``placerank.load`` runs: its loops share the history among a request's candidates. The program, or what
is compiled of it, takes candidates alone, each with a history of its own. Tables are looked up beforehand;
``rank`` is all of ``Ranker.rank`` from raw ids, of which the dense part is a share. Ways are timed in turn; ratios are
those of a turn: the median, with the 20th and the 80th percentile. Compiling takes a minute or two and a C++ compiler.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import placerank
from placerank.benchmarks import bench_rank
from placerank.benchmarks.results_file import save
from placerank.kernels.jagged import shared_rows_unchecked
from placerank.rankers.exported import SCORER
from placerank.rankers.rank_towers import TowerRanker

CANDIDATES = (10, 32, 100, 1_000)


def ways(ranker: TowerRanker, compiled: Any, candidates: int, seed: int) -> dict[str, Callable[[], Any]]:
    """What to time for a request of so many candidates."""
    request = bench_rank.asked(ranker, seed)
    request["candidates"] = request["candidates"][:candidates]
    columns = {"user_id": [request["user"]], "time": [request["time"]], "candidates": [request["candidates"]]}
    columns |= {name: [request["place"][i]] for i, name in enumerate(("lat", "lon"))}
    columns |= {n: [[visit[i] for visit in request["history"]]] for i, n in enumerate(("history", "history_time"))}
    batch, rows, pooled = ranker.exported.looked_up(ranker.samples(pa.table(columns)))
    dense, code = batch.dense, ranker.dense
    assert code is not None, "this export has no code"

    def by(program: Any) -> Any:
        visits = dense.visits
        if dense.starts is not None:
            visits = visits[shared_rows_unchecked(dense.starts, dense.offsets, len(dense.history_gaps))]
        context = [tuple(dense.context)] if dense.context else [None] if dense.traits else []
        traits = [tuple(dense.traits)] if dense.traits else []
        inputs = (torch.cat(rows, 1), dense.target, visits, dense.offsets, dense.history_gaps, pooled, dense.features)
        return program(*inputs, *context, *traits)

    return {
        "code": lambda: code(rows, pooled, dense).logits,
        "program": lambda: by(ranker.exported.scorer),
        "aoti": lambda: by(compiled),
        "rank": lambda: ranker.rank(**request),
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m placerank.benchmarks.bench_compiled",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--export", type=Path, required=True, help="folder that placerank export wrote")
    parser.add_argument("--turns", type=int, default=51, help="of all ways (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help="write results/compiled.csv")
    args = parser.parse_args()
    ranker = placerank.load(args.export)
    if not isinstance(ranker, TowerRanker):
        raise SystemExit(f"{args.export} is of a generative ranker, which has no program")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        program = torch.export.load(args.export / SCORER)
        package = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/scorer.pt2")
        compiled = torch._inductor.aoti_load_package(package)
    print(f"compiled in {time.perf_counter() - start:.0f} s, {torch.get_num_threads()} threads")
    lines = []
    for candidates in CANDIDATES:
        took: dict[str, list[float]] = {}
        for turn in range(-2, args.turns):
            calls = ways(ranker, compiled, candidates, turn + 2)
            want = calls["code"]()
            for name in ("program", "aoti"):
                torch.testing.assert_close(calls[name](), want, rtol=1e-3, atol=1e-3)
            for name, call in calls.items():
                begin = time.perf_counter()
                call()
                took.setdefault(name, []).append(time.perf_counter() - begin)
        for name, every in took.items():
            x = np.array(every[2:])
            ratio = np.array(took["code"][2:]) / x
            lines.append({"candidates": candidates, "way": name, "ms": round(float(np.median(x)) * 1e3, 2)})
            lines[-1] |= {
                n: round(float(np.percentile(ratio, q)), 2) for n, q in (("gain", 50), ("p20", 20), ("p80", 80))
            }
            print(" ".join(f"{n}={value}" for n, value in lines[-1].items()), flush=True)
    if args.save:
        save("compiled.csv", lines)


if __name__ == "__main__":
    main()
