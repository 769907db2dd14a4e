"""The default ranker against baselines that need no model, on real data, the whole way by the command that users have.

    python benchmarks/bench_real_data.py --data DATASETS/foursquare_nyc DATASETS/context_trails_pj --seeds 3 --save

For each dataset: ``placerank prepare`` once (so every model and seed sees the same negatives), then ``train``,
``evaluate`` and ``export`` for each seed. A seed that has been evaluated is not run again: stop and start at will.
Prints mean and standard deviation over seeds; ``--save`` writes them to benchmarks/results/real_data.csv, a line
for each dataset, part of the test split, scorer and seed. Baselines don't depend on the seed.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from placerank.benchmarks.results_file import save

METRICS = ("auc", "gauc", "ndcg@10", "hit@1", "hit@10")
PARTS = {"all": None, "first visits": ("visit", "first visit"), "repeat visits": ("visit", "repeat")}


def placerank(*args: object) -> None:
    """Run the command; its output goes to ours."""
    command = shutil.which("placerank", path=str(Path(sys.executable).parent)) or "placerank"
    print("$ placerank", *args, flush=True)
    subprocess.run([command, *map(str, args)], check=True)


def run(data: Path, work: Path, seed: int, nproc: int) -> dict[str, Any]:
    """One seed on one dataset; its metrics.json."""
    prepared, folder = work / data.name / "data", work / data.name / f"seed-{seed}"
    if not prepared.exists():
        placerank("prepare", "--input", data, "--out", prepared)
    done = folder / "evaluation" / "metrics.json"
    if not done.exists():
        placerank("train", "--data", prepared, "--run", folder, "--seed", seed, "--nproc", nproc, "--overwrite")
        placerank("evaluate", "--run", folder, "--nproc", nproc)
        placerank("export", "--run", folder, "--out", folder / "export", "--overwrite")
    metrics: dict[str, Any] = json.loads(done.read_text())
    return metrics


def rows(dataset: str, seed: int, metrics: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each part of the split and scorer."""
    for part, where in PARTS.items():
        for scorer, overall in metrics["scorers"].items():
            found: dict[str, Any] = overall
            if where is not None:
                name, label = where
                found = next(s for s in metrics["slices"][name]["scorers"][scorer] if s["label"] == label)
            yield {"dataset": dataset, "part": part, "scorer": scorer, "seed": seed} | {m: found[m] for m in METRICS}


def summary(lines: list[dict[str, Any]]) -> str:
    """Markdown tables: mean ± standard deviation over seeds where they differ."""
    out = []
    for dataset in dict.fromkeys(line["dataset"] for line in lines):
        out += [f"\n{dataset}\n", "| part | scorer | " + " | ".join(METRICS) + " |", "|" + "---|" * (len(METRICS) + 2)]
        here = [line for line in lines if line["dataset"] == dataset]
        for part, scorer in dict.fromkeys((line["part"], line["scorer"]) for line in here):
            cells = []
            for metric in METRICS:
                values = [x[metric] for x in here if (x["part"], x["scorer"]) == (part, scorer)]
                if any(v is None for v in values):
                    cells.append("")
                    continue
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.mean(values):.4f}" + (f" ± {spread:.4f}" if spread else ""))
            out.append(f"| {part} | {scorer} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the schema of docs/data.md")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--nproc", type=int, default=2, help="ranks (default: 2)")
    parser.add_argument("--work", type=Path, default=Path("runs/real_data"), help="where runs are kept")
    parser.add_argument("--save", action="store_true", help="write results/real_data.csv")
    args = parser.parse_args()

    lines = [
        line
        for data in args.data
        for seed in range(args.seeds)
        for line in rows(data.name, seed, run(data, args.work, seed, args.nproc))
    ]
    print(summary(lines))
    if args.save:
        save("real_data.csv", lines)


if __name__ == "__main__":
    main()
