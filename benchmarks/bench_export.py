"""Export of one large table: throughput against the disk's, peak memory against the block's.

    python benchmarks/bench_export.py            200,000 rows, one round, prints
    python benchmarks/bench_export.py --full     10,000,000 rows x 64 in three rounds, and writes results/export.csv

The table is a checkpoint of two row-wise shards, saved by two gloo ranks. Each case runs in a process of its own, in
turn, once a round; in the same round the disk is measured in the same folder:

    write    sequential write of as many bytes as the case wrote, with fsync
    copy     read of the checkpoint, write of its bytes, with fsync: what an fp32 export must do at least

The checkpoint is dropped from the page cache before each case and each copy. Seconds end when the output is synced,
before the manifest hashes it. Memory is the peak above that at the start: anonymous (RssAnon: what the process holds)
and resident in all (VmRSS: adds pages of mapped files, which the system can take back), sampled every 5 ms.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed._shard.sharded_tensor import init_from_local_shards
from torch.distributed._shard.sharded_tensor.shard import Shard

from placerank.benchmarks.process_memory import process_memory
from placerank.benchmarks.results_file import save
from placerank.embeddings.export import RawIds, export_tables
from placerank.embeddings.shards import CheckpointTables

KEY = "model.embeddings.sequence.embeddings.item.weight"
MB = 1e6


@dataclass(frozen=True)
class Case:
    format: str
    dtype: str
    block_rows: int = 65_536


CASES = [
    Case("npy", "fp32"),
    Case("npy", "fp32", 8_192),
    Case("npy", "fp32", 524_288),
    Case("parquet", "fp32"),
    Case("parquet", "fp32", 524_288),
    Case("safetensors", "fp32"),
    Case("npy", "fp16"),
    Case("npy", "int8"),
    Case("npy", "int4"),
    Case("parquet", "int8"),
    Case("faiss", "fp32"),
]


def save_shard(rank: int, folder: str, rows: int, dim: int) -> None:
    """What each of two ranks saves: its half of the rows."""
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    half = -(-rows // 2)
    mine = half if rank == 0 else rows - half
    generator = torch.Generator().manual_seed(rank)
    weight = torch.empty(mine, dim).uniform_(-0.05, 0.05, generator=generator)
    shard = Shard.from_tensor_and_offsets(weight, [rank * half, 0], rank)
    table = init_from_local_shards([shard], rows, dim)
    dcp.save({KEY: table}, storage_writer=dcp.FileSystemWriter(f"{folder}/checkpoint"))
    dist.destroy_process_group()


def make_input(folder: Path, rows: int, dim: int) -> None:
    """``checkpoint/`` and ``ids.parquet``."""
    mp.spawn(save_shard, (str(folder), rows, dim), nprocs=2)
    with pq.ParquetWriter(folder / "ids.parquet", pa.schema([("value", pa.int64())])) as writer:
        for start in range(0, rows, 1 << 20):
            number = np.arange(start, min(start + (1 << 20), rows))
            writer.write_table(pa.table({"value": pa.array(number * 7 + 3, mask=number == 0)}))


def drop_from_cache(folder: Path) -> None:
    for file in folder.iterdir():
        with open(file, "rb") as f:
            os.fsync(f.fileno())
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync(folder: Path) -> int:
    """Bring every file to the disk; their bytes."""
    total = 0
    for file in folder.iterdir():
        with open(file, "rb") as f:
            os.fsync(f.fileno())
        total += file.stat().st_size
    return total


def write_seconds(file: Path, size: int) -> float:
    """Sequential write of ``size`` bytes and fsync."""
    block = np.random.default_rng(0).bytes(8 << 20)
    start = time.perf_counter()
    with open(file, "wb", buffering=0) as f:
        for left in range(size, 0, -len(block)):
            f.write(block[:left])
        os.fsync(f.fileno())
    seconds = time.perf_counter() - start
    file.unlink()
    return seconds


def copy_seconds(source: Path, file: Path) -> float:
    """Read of all files of ``source`` from the disk, write into one, fsync."""
    drop_from_cache(source)
    start = time.perf_counter()
    with open(file, "wb", buffering=0) as f:
        for part in sorted(source.iterdir()):
            with open(part, "rb", buffering=0) as g:
                shutil.copyfileobj(g, f, 8 << 20)
        os.fsync(f.fileno())
    seconds = time.perf_counter() - start
    file.unlink()
    return seconds


class MemoryPeak:
    """Peak of RssAnon and VmRSS above their values at the start, bytes."""

    def __enter__(self) -> "MemoryPeak":
        self.start = self.peak = self._now()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()
        self.anonymous, self.resident = (p - s for p, s in zip(self.peak, self.start, strict=True))

    def _watch(self) -> None:
        while not self.stopped.wait(0.005):
            self.peak = tuple(map(max, self.peak, self._now()))

    @staticmethod
    def _now() -> tuple[int, ...]:
        return process_memory("RssAnon"), process_memory("VmRSS")


def run_case(folder: Path, case: Case) -> dict[str, float]:
    """In a process of its own: export, sync, measure."""
    torch.set_num_threads(os.cpu_count() or 1)
    out = folder / "out"
    out.mkdir()
    tables, ids = CheckpointTables(folder / "checkpoint"), {"item": RawIds.read(folder / "ids.parquet")}
    drop_from_cache(folder / "checkpoint")
    with MemoryPeak() as memory:
        start = time.perf_counter()
        export_tables(tables, ids, out, case.format, case.dtype, case.block_rows)
        size = sync(out)
        seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return {"seconds": seconds, "bytes": size, "anonymous": memory.anonymous, "resident": memory.resident}


def measure(folder: Path, rounds: int) -> dict[Case, list[dict[str, float]]]:
    """All cases in turn, each round anew, with the disk beside each."""
    measured: dict[Case, list[dict[str, float]]] = {case: [] for case in CASES}
    for number in range(rounds):
        copy = copy_seconds(folder / "checkpoint", folder / "scratch")
        for case in CASES:
            command = [sys.executable, __file__, "--case", json.dumps(asdict(case)), "--folder", str(folder)]
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            result = json.loads(child.stdout.splitlines()[-1])
            result |= {"copy": copy, "write": write_seconds(folder / "scratch", int(result["bytes"]))}
            measured[case].append(result)
            speed = result["bytes"] / MB / result["seconds"]
            print(f"round {number + 1}  {case}: {result['seconds']:.2f} s, {speed:.0f} MB/s", file=sys.stderr)
    return measured


def summary(measured: dict[Case, list[dict[str, float]]], rows: int, dim: int) -> list[dict[str, Any]]:
    """One line a case: medians over rounds, and the range of the seconds."""
    table_bytes = rows * dim * 4
    lines = []
    for case, runs in measured.items():
        mid = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        lines.append(
            {
                "case": f"{case.format} {case.dtype}, blocks of {case.block_rows}",
                "rows": rows,
                "dim": dim,
                "rounds": len(runs),
                "seconds": f"{mid['seconds']:.2f}",
                "seconds_min": f"{min(run['seconds'] for run in runs):.2f}",
                "seconds_max": f"{max(run['seconds'] for run in runs):.2f}",
                "written_mb": f"{mid['bytes'] / MB:.0f}",
                "written_mb_per_s": f"{mid['bytes'] / MB / mid['seconds']:.0f}",
                "table_mb_per_s": f"{table_bytes / MB / mid['seconds']:.0f}",
                "disk_write_mb_per_s": f"{mid['bytes'] / MB / mid['write']:.0f}",
                "disk_copy_mb_per_s": f"{table_bytes / MB / mid['copy']:.0f}",
                "share_of_disk_write": f"{statistics.median(run['write'] / run['seconds'] for run in runs):.2f}",
                "share_of_disk_copy": f"{statistics.median(run['copy'] / run['seconds'] for run in runs):.2f}",
                "block_mb": f"{min(case.block_rows, rows) * dim * 4 / MB:.0f}",
                "peak_anonymous_mb": f"{mid['anonymous'] / MB:.0f}",
                "peak_resident_mb": f"{mid['resident'] / MB:.0f}",
            }
        )
    return lines


def main() -> None:
    """Measure and print; with --full, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="10,000,000 rows, three rounds, write results/export.csv")
    parser.add_argument("--rows", type=int, help="rows of the table")
    parser.add_argument("--dim", type=int, default=64, help="columns of the table")
    parser.add_argument("--rounds", type=int, help="times that each case is run")
    parser.add_argument("--folder", type=Path, help="where to work; needs four times the table's bytes (default: here)")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run_case(args.folder, Case(**json.loads(args.case)))))
        return
    rows, rounds = args.rows or (10_000_000 if args.full else 200_000), args.rounds or (3 if args.full else 1)
    with tempfile.TemporaryDirectory(dir=args.folder or Path.cwd(), prefix=".bench_export-") as folder:
        make_input(Path(folder), rows, args.dim)
        lines = summary(measure(Path(folder), rounds), rows, args.dim)
    for line in lines:
        print(
            f"{line['case']:36} {line['seconds']:>7} s  {line['written_mb_per_s']:>5} MB/s written, "
            f"{line['share_of_disk_write']} of the disk's write, {line['share_of_disk_copy']} of its copy, "
            f"peak memory {line['peak_anonymous_mb']} MB (block {line['block_mb']} MB)"
        )
    if args.full:
        save("export.csv", lines)


if __name__ == "__main__":
    main()
