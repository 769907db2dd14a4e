"""What ``placerank prepare`` costs as data grows, beside another build of it: processor time, wall time, memory.

    python -m placerank.benchmarks.bench_prepare --beside CHECKOUT --millions 1 3 10   # growth, both builds in turn
    python -m placerank.benchmarks.bench_prepare --millions 1 3 10 30 --check-ins
    python -m placerank.benchmarks.bench_prepare --beside CHECKOUT --millions 3 10 --items 20_000 10_000_000
    python -m placerank.benchmarks.bench_prepare --beside CHECKOUT --millions 10 --nproc 1 2

The data are made up: impressions in requests of ten (or visits), skewed items, two years, users with about 50 rows, ids
that are text. Each run is a command of its own, as a user starts it. ``first_pass``, ``split`` and so on are the processor
seconds of the step's passes, where the build tells them (``PLACERANK_TIMES``). Memory is the peak of the sum over the
processes of what each has to itself and its share of what they share (PSS), 20 times a second.
"""

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .results_file import keep
from .skewed import popularity

_PART = 1_000_000
_START = 1_600_000_000
_SPAN = 2 * 365 * 86_400


def make_up(folder: Path, millions: int, items: int, check_ins: bool) -> Path:
    """A raw folder with so many million interactions; made once."""
    if (folder / "done").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "interactions").mkdir(parents=True)
    rng = np.random.default_rng(items)
    ids = pa.array([f"place-{i:012x}" for i in rng.permutation(items)])
    kinds = pa.array([["Food", "Noodles"], ["Food", "Bread"], ["Shops", "Books"], ["Shops", "Shoes"]])
    lat, lon = 35 + rng.normal(0, 0.3, items), 139 + rng.normal(0, 0.3, items)
    table = {
        "item_id": ids,
        "name": pa.array([f"Place {i}" for i in range(items)]),
        "category": kinds.take(pa.array(rng.integers(0, 4, items))),
        "lat": lat,
        "lon": lon,
    }
    pq.write_table(pa.table(table), folder / "items.parquet")
    upto = np.cumsum(popularity(items))
    users = millions * _PART // 50
    request = 1 if check_ins else 10
    for part in range(millions):
        rng = np.random.default_rng([items, part])
        n = _PART // request
        user = np.repeat(rng.integers(0, users, n), request)
        moment = np.repeat(_START + rng.integers(0, _SPAN, n), request)
        slot = (
            np.arange(_PART) % request
        )  # from parts of the popularity of their own, so that hardly any is shown twice
        item = np.searchsorted(upto, (slot + rng.random(_PART)) / request).clip(max=items - 1)
        columns: dict[str, Any] = {
            "user_id": pa.array(np.char.mod("user-%010d", user)),
            "item_id": ids.take(pa.array(item)),
            "timestamp": moment,
            "label": np.ones(_PART, np.int8) if check_ins else (rng.random(_PART) < 0.1).astype(np.int8),
        }
        if not check_ins:
            columns |= {
                "user_lat": np.repeat(35 + rng.normal(0, 0.3, n), request),
                "user_lon": np.repeat(139 + rng.normal(0, 0.3, n), request),
            }
        name = folder / "interactions" / f"part-{part:05d}.parquet"
        pq.write_table(pa.table(columns), name, row_group_size=250_000)
    (folder / "done").touch()
    return folder


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += _family(int(child))
    return found


def _pss(pid: int) -> int:
    """Bytes of a process and all below it, shared pages by share; 0 for those that are gone."""
    total = 0
    try:
        for one in _family(pid):
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
            total += next(int(x.split()[1]) for x in rollup.splitlines() if x.startswith("Pss:")) * 1024
    except (OSError, StopIteration):
        pass
    return total


def measure(checkout: Path, raw: Path, out: Path, nproc: int) -> dict[str, Any]:
    """One run of the command of a checkout."""
    shutil.rmtree(out, ignore_errors=True)
    times = out.with_name(f"{out.name}-times.jsonl")
    times.unlink(missing_ok=True)
    command = [sys.executable, "-m", "placerank.cli", "prepare", "--input", str(raw), "--out", str(out)]
    command += ["--nproc", str(nproc)] * (nproc > 1)
    environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "PLACERANK_TIMES": str(times)}
    before, start, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        peak = max(peak, _pss(process.pid))
        time.sleep(0.05)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise RuntimeError(process.stderr.read() if process.stderr else "")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    manifest = json.loads((out / "manifest.json").read_text())
    return {
        "cpu_s": cpu,
        "wall_s": wall,
        "peak_mib": peak / 2**20,
        "bytes": sum(file["bytes"] for file in manifest["files"].values()),
        "content": manifest["content_hash"][:12],
    }
