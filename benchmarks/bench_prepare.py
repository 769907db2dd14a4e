"""What ``prepare`` costs as data grows, beside another build: processor time, wall time, memory, the split's pass.

    python -m placerank.benchmarks.bench_prepare --work FOLDER --millions 1 3 10 30 --beside CHECKOUT
    python -m placerank.benchmarks.bench_prepare --work FOLDER --millions 1 3 --items 10_000_000 --beside CHECKOUT
    python -m placerank.benchmarks.bench_prepare --work FOLDER --millions 97 --split-only --runs 1 --beside CHECKOUT
    python -m placerank.benchmarks.bench_prepare --work FOLDER --millions 10 --nproc 1 2 --peers PYTHON
    python -m placerank.benchmarks.bench_prepare --work FOLDER --millions 2 --nproc 1 2 --ray PYTHON

The data are made up, and kept in FOLDER: impressions in requests of ten (or visits), skewed items, two years, users
with about 50 rows, ids that are text. Each run is a process of its own that starts, prepares and ends; the builds take
turns. Memory is the peak of what the processes have to themselves and their shares of what they share (PSS), looked up
20 times a second. Processor time is what the system tells of processes that have ended, or what was seen last of those
that nobody waits for, as Ray's workers. The exponent is that of processor time from one size to the next; the seconds a
million rows are those between two sizes too, so that what the items cost by themselves is not in them. ``nproc`` of
Polars and DuckDB (``prepare_peers.py``) are threads, as ``--nproc`` is; before 2026-11-28 it was ranks of torchrun.
``ray`` is this build with ``--engine ray`` on all cores, from its start on.
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
from contextlib import suppress
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


def _ticks(pid: int, seen: dict[int, float]) -> None:
    """Keep the processor seconds so far of a process and of all below it, by their numbers."""
    with suppress(OSError):  # some end meanwhile
        for one in _family(pid):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            seen[one] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


DRIVER = """
import json, sys, time
from pathlib import Path
from placerank.data.preparation import prepare as module

job = getattr(module, "Job", None) or module._Job  # by its name of before
split, cut = 0.0, job.cut
def timed(*args):
    global split
    start = time.process_time()
    cut(*args)
    split += time.process_time() - start
    if len(sys.argv) > 4:
        Path(sys.argv[3]).write_text(json.dumps(split))
        raise SystemExit
job.cut = timed
module.prepare(module.PrepareConfig(input=Path(sys.argv[1]), out=Path(sys.argv[2])))
Path(sys.argv[3]).write_text(json.dumps(split))
"""


def measured(command: list[str], **environment: str) -> dict[str, Any]:
    """What a command takes; and what it prints."""
    before, start, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    seen: dict[int, float] = {}
    with subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        while process.poll() is None:
            peak = max(peak, _pss(process.pid))
            _ticks(process.pid, seen)
            time.sleep(0.05)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command[-6:])} ended with {process.returncode}")
        printed = process.stdout.read() if process.stdout else ""
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "cpu_s": max(cpu, sum(seen.values())),
        "wall_s": wall,
        "split_s": math.nan,
        "peak_mib": peak / 2**20,
        "content": printed.strip(),
    }


def measure(
    checkout: Path, raw: Path, out: Path, nproc: int, split_only: bool, on_ray: Path | None = None
) -> dict[str, Any]:
    """One run of a checkout, or the part of it that ends with the split's pass; with a Python that has Ray, on it."""
    shutil.rmtree(out, ignore_errors=True)
    told = out.with_name(f"{out.name}-split.json")
    told.unlink(missing_ok=True)
    command = [sys.executable, "-c", DRIVER, str(raw), str(out), str(told)] + ["split"] * split_only
    if nproc > 1:
        command = [sys.executable, "-m", "placerank.cli", "prepare", "--input", str(raw), "--out", str(out)]
        command += ["--nproc", str(nproc)]
    if on_ray is not None:
        command = [str(on_ray), "-m", "placerank.cli", "prepare", "--input", str(raw), "--out", str(out)]
        command += ["--engine", "ray"]
    found = measured(command, PYTHONPATH=str(checkout.resolve() / "src"))
    if told.exists():
        found["split_s"] = json.loads(told.read_text())
    if split_only:
        return found
    found["content"] = json.loads((out / "manifest.json").read_text())["content_hash"][:12]
    shutil.rmtree(out)
    return found


def measure_peer(python: Path, peer: str, raw: Path, out: Path, threads: int) -> dict[str, Any]:
    """One run of ``prepare_peers.py``; its content are the sums that it prints."""
    shutil.rmtree(out, ignore_errors=True)
    script = Path(__file__).with_name("prepare_peers.py")
    found = measured([str(python), str(script), peer, str(raw), str(out)], POLARS_MAX_THREADS=str(threads))
    shutil.rmtree(out)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the made-up data and the outputs")
    parser.add_argument("--beside", type=Path, help="a checkout of another commit to take turns with")
    parser.add_argument("--millions", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--items", type=int, nargs="+", default=[20_000])
    parser.add_argument("--nproc", type=int, nargs="+", default=[1])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peers", type=Path, help="a Python with polars and duckdb, to run prepare_peers.py beside")
    parser.add_argument("--ray", type=Path, help="a Python with Ray, to run this build with --engine ray beside")
    parser.add_argument("--split-only", action="store_true", help="end each run after the pass for the split")
    parser.add_argument("--check-ins", action="store_true", help="visits alone instead of impressions")
    args = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    builds = {"this": here} | ({"beside": args.beside} if args.beside else {})
    lines: list[dict[str, Any]] = []
    for items in args.items:
        for millions in args.millions:
            kind = "visits" if args.check_ins else "impressions"
            raw = make_up(args.work / f"{kind}-{millions}-{items}", millions, items, args.check_ins)
            cases = [(name, nproc) for name in builds for nproc in args.nproc]
            cases += [(peer, 2) for peer in ("polars", "duckdb") * (args.peers is not None)]
            cases += [("ray", os.cpu_count() or 1)] if args.ray else []
            found: dict[tuple[str, int], list[dict[str, Any]]] = {case: [] for case in cases}
            for _ in range(args.runs):
                for name, nproc in cases:
                    if name == "ray":
                        found[name, nproc].append(measure(here, raw, args.work / "out", 1, False, args.ray))
                    elif name in builds:
                        found[name, nproc].append(measure(builds[name], raw, args.work / "out", nproc, args.split_only))
                    else:
                        found[name, nproc].append(measure_peer(args.peers, name, raw, args.work / "out", nproc))
                    run = found[name, nproc][-1]
                    print(f"{name}, nproc {nproc}: " + ", ".join(f"{k} {v}" for k, v in run.items()), file=sys.stderr)
            for (name, nproc), runs in found.items():
                of = kind + ", to the split" * args.split_only
                line = {"build": name, "rows": of, "millions": millions, "items": items, "nproc": nproc}
                for figure in ("cpu_s", "wall_s", "split_s", "peak_mib"):
                    values = sorted(run[figure] for run in runs)
                    line[figure] = f"{values[len(values) // 2]:.4g}"
                    line[f"{figure}_spread"] = f"{values[-1] - values[0]:.2g}"
                line |= {"content": runs[0]["content"], "runs": len(runs)}
                assert len({run["content"] for run in runs}) == 1, "every run gives the same content"
                lines.append(line)
                print(_told(line, lines), flush=True)
    keep("prepare.csv", lines, ("build", "rows", "millions", "items", "nproc"))


def _told(line: dict[str, Any], lines: list[dict[str, Any]]) -> str:
    """A line for a person, with what it is to the same build's size before."""
    same = ("build", "rows", "items", "nproc")
    smaller = [x for x in lines if all(x[k] == line[k] for k in same) and x["millions"] < line["millions"]]
    text = (
        f"{line['build']:<7}{line['millions']:>4} M {line['rows']}, of {line['items']:,} items, nproc {line['nproc']}: "
        f"processor {line['cpu_s']} s (spread {line['cpu_s_spread']}), wall {line['wall_s']} s, "
        f"split {line['split_s']} s, peak {line['peak_mib']} MiB"
    )
    if smaller:
        last = smaller[-1]
        more, seconds = line["millions"] - last["millions"], float(line["cpu_s"]) - float(last["cpu_s"])
        growth = math.log(float(line["cpu_s"]) / float(last["cpu_s"])) / math.log(line["millions"] / last["millions"])
        text += f"; exponent {growth:.3f}, {seconds / more:.3g} s a million more"
    return text


if __name__ == "__main__":
    main()
