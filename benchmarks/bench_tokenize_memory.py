"""Memory of `placerank tokenize` by the number of items, beside another checkout's, and of what `align` reads.

    python benchmarks/bench_tokenize_memory.py                                 two and six million items
    python benchmarks/bench_tokenize_memory.py --items 1000000 4000000 --other ../before/src --save
    python benchmarks/bench_tokenize_memory.py --visits 5000000 20000000 60000000 --other ../before/src --save

Items are simulated as in bench_tokenize_scale.py (with names, ids of 24 characters, as the catalog of a prepared
folder), with embeddings of 16 numbers: what grows is what is held an item, not of its embedding. HGIT, 3 levels of 128
codes, a short fit, the whole step with its report but for neighbours, in a process of its own, the sides in turn.
Visits are training samples of users of 50 visits each; what is run is read_histories alone.

Memory is the peak of the process's anonymous pages, read 20 times a second: mapped files are the system's, which keeps
them while there is room. The last line of a side is the slope between its smallest and largest run: bytes an item.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from placerank.benchmarks.bench_tokenize_scale import draw_items, items_table
from placerank.benchmarks.results_file import keep
from placerank.tokenization.text.store import EmbeddingWriter

DIM = 16
TOKENIZE = """
import sys
from pathlib import Path
from placerank.tokenization.codes.tokenizers import HGITOptions, TokenizerConfig
from placerank.tokenization.judging.tokenize_report import ReportConfig
from placerank.tokenization.tokenize import TokenizeConfig, tokenize
data, out = map(Path, sys.argv[1:])
book, hgit = TokenizerConfig(codes=128, sample_rows=32_768), HGITOptions(epochs=1, iterations=2, cluster_epochs=1)
report = ReportConfig(queries=0)
tokenize(
    TokenizeConfig(data=data, embeddings=data / "embeddings", out=out, codebook=book, hgit=hgit, report=report)
)
"""
HISTORIES = """
import sys
from pathlib import Path
from placerank.tokenization.alignment.histories import read_histories
read_histories(Path(sys.argv[1]), 1_000_000)
"""


def make_items(folder: Path, rows: int) -> None:
    """A catalog and embeddings, unless they are there."""
    if (folder / "catalog.parquet").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    table = items_table(draw_items(rows))
    ids = pa.array([f"{i * 2654435761 % 2**64:024x}" for i in range(rows)])
    table = table.set_column(0, "item_id", ids).add_column(
        1, "name", pa.array([f"Place number {i}" for i in range(rows)])
    )
    nothing = pa.Table.from_pylist([{}], table.schema)  # row 0 stands for unknown items
    torch.manual_seed(0)
    writer = EmbeddingWriter(folder / "embeddings", ids, DIM)
    for shard in writer.missing():
        at = writer.rows_of(shard)
        writer.write(shard, torch.randn(at.stop - at.start, DIM))
    pq.write_table(pa.concat_tables([nothing, table]).combine_chunks(), folder / "catalog.parquet")


def make_visits(folder: Path, rows: int) -> None:
    """Training samples, all positive, unless they are there."""
    if (folder / "train").is_dir():
        return
    rng, part = np.random.default_rng(0), 1_000_000
    (folder / "made").mkdir(parents=True)
    for number, start in enumerate(range(0, rows, part)):
        count = min(part, rows - start)
        user = np.sort(rng.integers(start // 50, (start + count) // 50, count))
        item = 1 + np.minimum(rng.pareto(1.0, count) * 200, 999_998)
        columns = {"user_index": user, "user_row": (user + 1).astype(np.int32)}
        columns |= {"time": rng.integers(10**9, 10**9 + 10**7, count)}
        one_each, label = pa.array(np.arange(count + 1), pa.int32()), np.ones(count, np.int8)
        candidates = {"item_row": item.astype(np.int32), "label": label}
        columns |= {n: pa.ListArray.from_arrays(one_each, x) for n, x in candidates.items()}
        pq.write_table(pa.table(columns), folder / "made" / f"part-{number:05}.parquet", row_group_size=65_536)
    (folder / "made").rename(folder / "train")


def run(script: str, source: Path | None, folder: Path) -> tuple[float, float]:
    """Seconds, and the peak of anonymous memory in bytes."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    path = {} if source is None else {"PYTHONPATH": str(source)}
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder), str(out)], env=os.environ | path, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                break
            peak = max([peak, *(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])
            time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"{source or 'this checkout'}: the run ended with {process.returncode}")
    shutil.rmtree(out, ignore_errors=True)
    return time.perf_counter() - start, float(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", nargs="+", type=int, default=[2_000_000, 6_000_000], help="numbers of items")
    parser.add_argument("--visits", nargs="+", type=int, help="instead: numbers of training visits")
    parser.add_argument("--other", type=Path, help="src of another checkout, to run beside this one")
    parser.add_argument("--work", type=Path, default=Path("runs/tokenize_memory"), help="where the input is kept")
    parser.add_argument("--save", action="store_true", help="keep results/tokenize_memory.csv")
    args = parser.parse_args()
    what, script = ("visits", HISTORIES) if args.visits else ("items", TOKENIZE)
    sides: dict[str, Path | None] = {"this": None} if args.other is None else {"other": args.other, "this": None}
    lines: list[dict[str, Any]] = []
    for rows in args.visits or args.items:
        folder = args.work / f"{what}-{rows}"
        (make_visits if args.visits else make_items)(folder, rows)
        for side, source in sides.items():
            seconds, peak = run(script, source, folder.resolve())
            lines.append({"what": what, "side": side, "rows": rows, "seconds": f"{seconds:.1f}", "peak_mb": peak / 1e6})
            print(f"{rows:>12,} {what}  {side:6} {seconds:7.1f} s, peak {peak / 1e6:,.0f} MB", flush=True)
    for side in sides:
        small, *_, large = [line for line in lines if line["side"] == side] * (1 + (len(lines) == len(sides)))
        if large["rows"] > small["rows"]:
            slope = (large["peak_mb"] - small["peak_mb"]) * 1e6 / (large["rows"] - small["rows"])
            print(f"{side:6} {slope:,.0f} bytes more for each of the {what}")
    if args.save:
        for line in lines:
            line["peak_mb"] = f"{line['peak_mb']:.0f}"
        keep("tokenize_memory.csv", lines, ("what", "side", "rows"), torch.device("cpu"))


if __name__ == "__main__":
    main()
