"""Places that open after training: what a generative ranker lists of them, without being trained again.

    python -m placerank.benchmarks.bench_new_places --data DATASETS/foursquare_nyc DATASETS/context_trails_pj --save

Of each dataset 5 % of the places that the test split visits are taken out of everything before it: their visits from
the raw interactions, their semantic IDs from the folder of tokens. A generative ranker is trained on the rest. Then the
IDs are added, as ``placerank tokenize --add`` would, and the test visits of these places are asked, beside
nearest-first and popular-near (``evaluation/floors.py``), which know no more of them: lists of all items, and within
reach. One seed is one draw of places and one training. ``--save`` writes results/new_places.csv.

The codebooks are those of all items' texts: what is left out is who went there, not what a place is called.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from placerank.benchmarks import generator
from placerank.benchmarks.bench_lists import BATCH, Kept
from placerank.benchmarks.papers.cells import Budget, Workplace
from placerank.benchmarks.papers.grids import HGIT
from placerank.benchmarks.results_file import keep
from placerank.data.batches.sequences import ALL, SequenceLoader
from placerank.data.manifest import read_manifest, write_manifest
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.evaluation.breakdown import ItemFacts
from placerank.evaluation.floors import Floors, transitions
from placerank.evaluation.lists import ListMetrics, Ways
from placerank.tokenization.codes.semantic_ids import SemanticIds

SHARE = 0.05
FLOORS = ("nearest", "popular near")
_KEY = ("dataset", "seed", "reach_km", "scorer", "way")


def drawn(place: Workplace, seed: int) -> pa.Array:
    """Raw ids of the places that are left out: of those that the test split visits, each as likely."""
    rows = np.unique(
        np.concatenate([b.target[: b.valid].numpy() for b in SequenceLoader(place.prepared(), "test", 65_536)])
    )
    ids = pq.read_table(place.prepared() / "catalog.parquet", columns=["item_id"])["item_id"].combine_chunks()
    some = np.random.default_rng(seed).choice(rows[rows > 0], max(1, int(SHARE * len(rows))), replace=False)
    return ids.take(pa.array(np.sort(some)))


def without(place: Workplace, out: pa.Array, folder: Path) -> Path:
    """The dataset prepared as if nobody had been to some places before the test split."""
    data = folder / "prepared"
    if data.exists():
        return data
    first = min(int(b.target_time[: b.valid].min()) for b in SequenceLoader(place.prepared(), "test", 65_536))
    raw = folder / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    shutil.copytree(place.data, raw, ignore=shutil.ignore_patterns("manifest.json", "interactions*"))
    table = pq.read_table(place.data / "interactions.parquet")
    time = table["timestamp"]
    seconds = pc.cast(pc.cast(time, pa.timestamp("s", getattr(time.type, "tz", None)), safe=False), pa.int64())
    early = pc.and_(pc.less(seconds, first), pc.is_in(table["item_id"], value_set=out))
    pq.write_table(table.filter(pc.invert(early)), raw / "interactions.parquet")
    return prepare(PrepareConfig(input=raw, out=data, eval_negatives=place.budget.eval_negatives))


def tokens_without(place: Workplace, out: pa.Array, folder: Path) -> tuple[Path, Path]:
    """The semantic IDs of the other items, and those with these added."""
    whole = place.tokens(HGIT, seed=0)
    ids, manifest = SemanticIds.read(whole), read_manifest(whole, "tokens")
    left = pc.is_in(ids.ids, value_set=out).to_numpy(zero_copy_only=False)
    first = SemanticIds.first(
        ids.ids.filter(pa.array(~left)), ids.codes[~left], ids.codes_per_level, manifest["lineage"][0]
    )
    found = []
    for name, some in (("tokens", first), ("added", first.added(ids.ids.filter(pa.array(left)), ids.codes[left]))):
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        some.write(target / "semantic_ids.parquet")
        more = {k: manifest[k] for k in ("levels", "codes", "lookup")}
        write_manifest(target, "tokens", {}, items=len(some), lineage=list(some.lineage), **more)
        found.append(target)
    return found[0], found[1]


def measure(place: Workplace, seed: int, reach_km: float) -> list[dict[str, Any]]:
    """A line for each scorer and way, of one seed."""
    folder = place.folder / f"new-{seed}"
    out = drawn(place, seed)
    data = without(place, out, folder)
    tokens, added = tokens_without(place, out, folder)
    run = generator.trained(data, tokens, seed, folder / "generative")
    items = ItemFacts.load(data)
    ids = pq.read_table(data / "catalog.parquet", columns=["item_id"])["item_id"]
    new = torch.from_numpy(pc.is_in(ids, value_set=out).to_numpy(zero_copy_only=False).copy())
    loader = SequenceLoader(data, "test", BATCH, history=ALL)
    batches = list(loader)
    wanted = torch.cat([new[b.target[: b.valid]] for b in batches])
    model = torch.from_numpy(generator.scores(run, wanted, added))
    floors, ways = Floors(items, transitions(data, len(items))), Ways(items, reach_km)
    kept: dict[tuple[str, str], Kept] = {}
    possible, done, asked = 0, 0, 0
    for batch in batches:
        here = torch.zeros(len(batch), dtype=torch.bool)
        here[: batch.valid] = wanted[done : done + batch.valid]
        done += batch.valid
        own = torch.full((len(batch), len(items)), -torch.inf)
        own[here] = model[asked : asked + int(here.sum())]
        asked += int(here.sum())
        possible += int(own[here].gather(1, batch.target[here][:, None]).isfinite().sum())
        scorers = [("generative", own), *((n, x) for n, x in floors.scores(batch) if n in FLOORS)]
        for name, scores in scorers:
            for way, standing in ways.standings(scores, batch).items():
                gains = standing.gains().masked_fill(~here[:, None], torch.nan)
                kept.setdefault((name, way), Kept(ListMetrics(items))).add(gains, batch)
    lines = []
    for (name, way), found in kept.items():
        row = found.metrics.result()["all"]
        low, high = found.interval("all", "hit@10")
        about: dict[str, Any] = {
            "dataset": place.data.name,
            "seed": seed,
            "reach_km": reach_km,
            "scorer": name,
            "way": way,
        }
        values: dict[str, Any] = {m: round(float(row[m] or 0), 5) for m in ("hit@10", "hit@50", "ndcg@10", "mrr")}
        more: dict[str, Any] = {
            "places": len(out),
            "asked": row["asked"],
            "possible": possible if name == "generative" else "",
        }
        lines.append({**about, **more, **values, "hit@10_low": round(low, 5), "hit@10_high": round(high, 5)})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m placerank.benchmarks.bench_new_places",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the schema of docs/data.md")
    parser.add_argument("--out", type=Path, default=Path("runs/papers"), help="where what is made is kept")
    parser.add_argument("--seeds", type=int, default=3, help="draws and trainings (default: %(default)s)")
    parser.add_argument("--reach", type=float, default=10.0, help="km (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help="write results/new_places.csv")
    args = parser.parse_args()
    lines = []
    for data in args.data:
        place = Workplace(data, args.out / data.name, Budget())
        for seed in range(args.seeds):
            mine = measure(place, seed, args.reach)
            lines += mine
            for x in mine:
                if x["way"] in ("all", "reach"):
                    interval = f"{x['hit@10']:.3f} ({x['hit@10_low']:.3f} to {x['hit@10_high']:.3f})"
                    print(
                        f"| {x['dataset']} | {seed} | {x['asked']} | {x['way']} | {x['scorer']} | {interval} |",
                        flush=True,
                    )
            if args.save:
                keep("new_places.csv", mine, _KEY, torch.device("cpu"))


if __name__ == "__main__":
    main()
