"""Deltas of exports: their bytes beside those of the rows that changed, and time of apply beside that of a copy.

    python benchmarks/bench_delta.py            prints
    python benchmarks/bench_delta.py --save     and writes results/delta.csv

Two exports of one table, 100,000 rows x 64, of which some rows changed throughout; ids are int64. A changed row counts
its vector and 8 bytes of id. ``apply_delta`` and a copy of the whole export (what a server does without deltas) run in
turn, both in the page cache; apply hashes the delta and what it writes, the copy checks nothing.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from placerank.benchmarks.results_file import save
from placerank.data.manifest import whole_folder, write_manifest
from placerank.embeddings import apply_delta, make_delta
from placerank.embeddings.export import RawIds, export_tables
from placerank.embeddings.reader import TABLES

ROWS, DIM, ROUNDS = 100_000, 64, 5
CASES = [(format, dtype, share) for format, dtype in (("parquet", "fp32"), ("npy", "int8")) for share in (0.01, 0.1)]
ROW_BYTES = {"fp32": 4 * DIM + 8, "int8": DIM + 8 + 8}  # int8 has a scale and a bias


class OneTable:
    """A table in memory as a source for export."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def shape(self, name: str) -> tuple[int, int]:
        return ROWS, DIM

    def blocks(self, name: str, block_rows: int) -> Iterator[Tensor]:
        yield from self.weight.split(block_rows)


def write_export(out: Path, weight: Tensor, ids: RawIds, format: str, dtype: str) -> Path:
    """A whole export of the table."""
    with whole_folder(out, overwrite=False) as folder:
        (folder / TABLES).mkdir()
        tables = export_tables(OneTable(weight), {"item": ids}, folder / TABLES, format, dtype)
        write_manifest(folder, "export", {}, tables=tables)
    return out


def size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def measure(folder: Path, format: str, dtype: str, share: float) -> dict[str, Any]:
    """One line of results."""
    rng = np.random.default_rng(0)
    numbers = rng.choice(1 << 40, ROWS, replace=False)
    pq.write_table(pa.table({"value": pa.array(numbers, mask=np.arange(ROWS) == 0)}), folder / "ids.parquet")
    ids = RawIds.read(folder / "ids.parquet")
    weight = torch.from_numpy(rng.standard_normal((ROWS, DIM), np.float32))
    base = write_export(folder / "base", weight, ids, format, dtype)
    changed = rng.choice(ROWS, int(share * ROWS), replace=False)
    weight[changed] += torch.from_numpy(rng.standard_normal((len(changed), DIM), np.float32))
    whole = write_export(folder / "whole", weight, ids, format, dtype)
    delta = make_delta(base, whole, folder / "delta")
    applies, copies = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        out = apply_delta(base, delta, folder / "applied")
        applies.append(time.perf_counter() - start)
        shutil.rmtree(out)
        start = time.perf_counter()
        shutil.copytree(whole, folder / "copied")
        copies.append(time.perf_counter() - start)
        shutil.rmtree(folder / "copied")
    ratios = [a / c for a, c in zip(applies, copies, strict=True)]
    return {
        "format": format,
        "dtype": dtype,
        "rows": ROWS,
        "dim": DIM,
        "changed": len(changed),
        "delta_bytes": size(delta),
        "delta_bytes_per_changed": f"{size(delta) / len(changed) / ROW_BYTES[dtype]:.3f}",
        "share_of_whole": f"{size(delta) / size(whole):.4f}",
        "rounds": ROUNDS,
        "apply_s": f"{statistics.median(applies):.3f}",
        "copy_s": f"{statistics.median(copies):.3f}",
        "apply_by_copy": f"{statistics.median(ratios):.1f}",
        "apply_by_copy_min": f"{min(ratios):.1f}",
        "apply_by_copy_max": f"{max(ratios):.1f}",
    }


def main() -> None:
    """Measure and print; with --save, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write results/delta.csv")
    args = parser.parse_args()
    lines = []
    for case in CASES:
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench_delta-") as folder:
            lines.append(measure(Path(folder), *case))
        print(" ".join(f"{name}={value}" for name, value in lines[-1].items()))
    if args.save:
        save("delta.csv", lines)


if __name__ == "__main__":
    main()
