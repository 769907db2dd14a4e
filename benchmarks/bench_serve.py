"""``placerank serve`` under load: how much it takes, how long an answer takes below that, and new exports meanwhile.

    python -m placerank.benchmarks.bench_serve --save

Two small rankers of one simulated city are trained and exported first (a minute or two; ``--work`` keeps them). The
server is the command, in a process of its own; so is what loads it (``http_load.py``), and both share the machine.
For 10, 100 and 1,000 candidates a request, in turns:

* saturation: answers a second to 32 users who ask again at once; beside it the same with every request ranked alone;
* latency: Poisson arrivals at 0.7 of the turn's saturation; the median, and the 99th percentile as a multiple of it.

Then, at 1,000 candidates and the same share, the exports take each other's place ten times. Failed answers are counted,
and each answer's places and scores are compared with both rankers': they have to be those of the version that it names.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import placerank
from placerank.benchmarks.results_file import keep, save
from placerank.data.manifest import content_hash, replace_folder
from placerank.rankers.rank import Ranker

BODIES, VISITS, K, USERS, SHARE, RELOADS = 64, 20, 10, 32, 0.7, 10
NOW = 1_717_243_200
_DAY = 86_400
_ALONE = "import placerank.serving.batches as b; b.CANDIDATES = 0; from placerank.cli.main import main; main({argv!r})"


def exports(work: Path) -> list[Path]:
    """Two exports of rankers of one city, made where they are not there yet."""
    out = [work / "a", work / "b"]
    if not all(path.exists() for path in out):
        run = lambda *argv: subprocess.run([sys.executable, "-m", "placerank.cli", *argv], check=True)  # noqa: E731
        run("simulate", "--out", f"{work}/raw", "--overwrite")
        run("prepare", "--input", f"{work}/raw", "--out", f"{work}/data", "--overwrite")
        for seed, path in enumerate(out):
            trained = f"{work}/run-{seed}"
            run(
                "train", "--data", f"{work}/data", "--run", trained, "--epochs", "1", "--seed", str(seed), "--overwrite"
            )
            run("export", "--run", trained, "--out", str(path), "--overwrite")
    return out


def requests(ranker: Ranker, candidates: int) -> list[dict[str, Any]]:
    """Users at items, each with a history and candidates drawn from the catalog."""
    made = []
    for seed in range(BODIES):
        rng = np.random.default_rng(seed)
        rows = 1 + rng.permutation(len(ranker.item_ids) - 1)
        visited = ranker.item_ids.take(pa.array(rng.choice(rows, VISITS))).to_pylist()
        made.append(
            {
                "user": ranker.user_ids[int(rng.integers(1, len(ranker.user_ids)))].as_py(),
                "place": (float(ranker.lat[rows[0]]), float(ranker.lon[rows[0]])),
                "time": NOW + seed,
                "history": [(item, NOW - _DAY * (i + 1)) for i, item in enumerate(visited)],
                "candidates": ranker.item_ids.take(pa.array(rows[:candidates])).to_pylist(),
                "k": K,
            }
        )
    return made


@contextmanager
def server(export: Path, alone: bool = False) -> Iterator[int]:
    """The command, serving; its port."""
    argv = ["serve", str(export), "--port", "0", "--watch-s", "0"]
    start = ["-c", _ALONE.format(argv=argv)] if alone else ["-m", "placerank.cli", *argv]
    process = subprocess.Popen([sys.executable, *start], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        told = next((line for line in process.stderr if " at http://" in line), "")
        if not told:
            raise SystemExit("the server ended before it served")
        yield int(told.rsplit(":", 1)[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


class Load:
    """Runs of ``http_load`` on some bodies."""

    def __init__(self, folder: Path, made: list[dict[str, Any]]) -> None:
        self.folder = folder
        (folder / "bodies.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in made))

    def start(self, port: int, seconds: float, **options: Any) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "placerank.benchmarks.http_load", "--port", str(port)]
        command += ["--bodies", str(self.folder / "bodies.jsonl"), "--out", str(self.folder / "answers.jsonl")]
        options["seconds"] = seconds
        return subprocess.Popen([*command, *(str(x) for n, v in options.items() for x in (f"--{n}", v))])

    def end(self, process: "subprocess.Popen[bytes]") -> list[dict[str, Any]]:
        if process.wait():
            raise SystemExit("the load ended with an error")
        return [json.loads(line) for line in (self.folder / "answers.jsonl").read_text().splitlines()]

    def run(self, port: int, seconds: float, **options: Any) -> list[dict[str, Any]]:
        return self.end(self.start(port, seconds, **options))


def saturation(load: Load, port: int, seconds: float) -> float:
    """Good answers a second to users who ask again at once."""
    lines = load.run(port, seconds, users=USERS)
    if any(line["status"] != 200 for line in lines):
        raise SystemExit(f"got {next(x for x in lines if x['status'] != 200)}, expected answers")
    return len(lines) / max(line["due"] + line["seconds"] for line in lines)


def one_turn(load: Load, ports: dict[str, int], seconds: float, turn: int) -> dict[str, float]:
    """What a turn measures."""
    most = {way: saturation(load, port, seconds / 3) for way, port in ports.items()}
    lines = load.run(ports["together"], seconds, rate=SHARE * most["together"], seed=turn + 1)
    took = np.array([line["seconds"] for line in lines])
    p50, p99 = np.percentile(took, (50, 99)) * 1e3
    failed = sum(line["status"] != 200 for line in lines)
    return {
        "requests_s": most["together"],
        "alone_s": most["alone"],
        "gain": most["together"] / most["alone"],
        "p50_ms": p50,
        "p99_ms": p99,
        "p99_over_p50": p99 / p50,
        "failed": failed,
    }


def wrong(lines: list[dict[str, Any]], made: list[dict[str, Any]], paths: list[Path]) -> tuple[int, dict[str, int]]:
    """Answers that are not those of the version that they name; and how many each version gave."""
    want: dict[str, list[dict[Any, float]]] = {}
    for path in paths:
        ranker, version = placerank.load(path), (content_hash(path) or "")[:12]
        tables = [ranker.rank(**(request | {"k": len(request["candidates"])})) for request in made]
        want[version] = [dict(zip(t["item_id"].to_pylist(), t["score"].to_pylist(), strict=True)) for t in tables]
    bad, count = 0, dict.fromkeys(want, 0)
    for line in (x for x in lines if x["status"] == 200):
        answer = line["answer"]
        count[answer["version"]] += 1
        scores = want[answer["version"]][line["body"]]
        best = sorted(scores.values(), reverse=True)[:K]
        mine = [scores[item] for item in answer["item_id"]]
        bad += not (np.allclose(answer["score"], mine, atol=1e-4) and np.allclose(answer["score"], best, atol=1e-4))
    return bad, count


def reloads(work: Path, paths: list[Path], load: Load, made: list[dict[str, Any]], rate: float) -> dict[str, Any]:
    """Exports that take each other's place under load."""
    served = work / "served"
    shutil.rmtree(served, ignore_errors=True)
    shutil.copytree(paths[0], served)
    with server(served) as port:
        process = load.start(port, 8.0 * RELOADS, rate=rate)
        time.sleep(2)
        took = []
        for i in range(RELOADS):
            shutil.copytree(paths[(i + 1) % 2], work / "next")
            replace_folder(work / "next", served)
            start = time.perf_counter()
            with urllib.request.urlopen(
                urllib.request.Request(f"http://127.0.0.1:{port}/reload", method="POST"), timeout=60
            ) as answer:
                assert json.load(answer)["reloaded"]
            took.append(time.perf_counter() - start)
            if process.poll() is not None:
                raise SystemExit("the load ended before the reloads did")
            time.sleep(max(0.0, 5 - took[-1]))
        lines = load.end(process)
    bad, count = wrong(lines, made, paths)
    seconds = np.array([line["seconds"] for line in lines])
    p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
    return {
        "requests": len(lines),
        "reloads": RELOADS,
        "failed": sum(line["status"] != 200 for line in lines),
        "wrong": bad,
        **{f"of_{name}": n for name, n in zip("ab", count.values(), strict=True)},
        "reload_s": float(np.median(took)),
        "p50_ms": p50,
        "p99_ms": p99,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m placerank.benchmarks.bench_serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, help="folder for the city and its rankers (default: a temporary one)")
    parser.add_argument("--turns", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=15.0, help="of a measurement (default: %(default)s)")
    parser.add_argument("--candidates", type=int, nargs="+", default=[10, 100, 1_000])
    parser.add_argument("--save", action="store_true", help="write results/serve.csv and results/serve_reloads.csv")
    args = parser.parse_args()
    os.environ["OMP_WAIT_POLICY"] = "passive"
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        paths = exports(work)
        ranker = placerank.load(paths[0])
        lines = []
        for candidates in args.candidates:
            made = requests(ranker, candidates)
            load = Load(Path(temporary), made)
            with server(paths[0]) as port, server(paths[0], alone=True) as alone:
                ports = {"together": port, "alone": alone}
                turns = [one_turn(load, ports, args.seconds, turn) for turn in range(-1, args.turns)][1:]
            line: dict[str, Any] = {"candidates": candidates, "visits": VISITS, "turns": args.turns}
            for name in turns[0]:
                values = np.array([turn[name] for turn in turns])
                line[name] = round(float(np.median(values)), 2)
                line |= {f"{name}_{q}": round(float(np.percentile(values, q)), 2) for q in (20, 80)}
            lines.append(line)
            print(" ".join(f"{name}={value}" for name, value in line.items()), flush=True)
        told = reloads(Path(temporary), paths, load, made, SHARE * line["requests_s"])
        told = {name: round(value, 2) if isinstance(value, float) else value for name, value in told.items()}
        print(" ".join(f"{name}={value}" for name, value in told.items()))
    if args.save:
        keep("serve.csv", lines, ("candidates",))
        save("serve_reloads.csv", [told])


if __name__ == "__main__":
    main()
