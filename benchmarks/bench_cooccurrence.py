"""What counts as visited together: thresholds of co-occurrence by the data, and by a sample of the users.

    python benchmarks/bench_cooccurrence.py --data PREPARED [PREPARED ...] --save

For each prepared folder, of all, half and a quarter of the users: pairs of items with a visitor in common, the
threshold that follows the data (``count_threshold``), how many pairs exceed it and 2, what popularity they have, how
many of them are no more than chance would give places of their popularity, and how many are pairs of the full data
too. ``--save`` writes results/cooccurrence.csv.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from placerank.benchmarks.results_file import keep
from placerank.tokenization.alignment.histories import Histories, cooccurrence, count_threshold, read_histories


def lines_of(data: Path) -> list[dict[str, Any]]:
    """A line for each share of the users of a prepared folder."""
    items = pq.read_metadata(data / "catalog.parquet").num_rows - 1
    whole = read_histories(data, items)
    full: set[int] = set()
    found = []
    for halvings in range(3):
        some = whole.user % 2**halvings == 0
        histories = Histories(whole.user[some], whole.item[some], whole.time[some], items)
        threshold = count_threshold(histories)
        latest = histories.latest(100)
        popularity, users = np.bincount(latest.item, minlength=items), len(np.unique(latest.user))
        every = cooccurrence(histories, 0)
        line = {"dataset": data.name, "users": users, "threshold": threshold, "in_common": len(every[0])}
        line["most"] = int(every[2].max(initial=0))
        for name, least in (("above", threshold), ("above_2", 2)):
            a, b, count = (x[every[2] > least] for x in every)
            by_chance = popularity[a] * popularity[b] / users
            keys = set((a * items + b).tolist())
            if name == "above" and not halvings:
                full = keys
            line |= {
                name: len(a),
                f"{name}_popularity": round(float(popularity[np.concatenate([a, b])].mean()), 1),
                f"{name}_by_chance": round(float((count <= by_chance).mean()), 4),
                f"{name}_of_full": round(len(keys & full) / max(1, len(keys)), 3),
            }
        far = (every[2] > 1) & (every[2] > (m := popularity[every[0]] * popularity[every[1]] / users) + 3 * np.sqrt(m))
        line["three_deviations"] = int(far.sum())
        line["three_deviations_popularity"] = round(float(popularity[np.stack(every[:2])[:, far]].mean()), 1)
        found.append(line)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="prepared folders")
    parser.add_argument("--save", action="store_true", help="write results/cooccurrence.csv")
    args = parser.parse_args()
    lines = [line for data in args.data for line in lines_of(data)]
    for line in lines:
        print("  ".join(f"{name} {value}" for name, value in line.items()))
    if args.save:
        print(f"written: {keep('cooccurrence.csv', lines, ('dataset', 'users'))}")


if __name__ == "__main__":
    main()
