"""Ranked lists of places: what needs no model, on real data, by Hit@K, NDCG@K and MRR in four ways.

    python -m placerank.benchmarks.bench_lists --data DATASETS/foursquare_nyc DATASETS/context_trails_pj --save

For each dataset, every floor of ``evaluation/floors.py`` on the same test visits, each asked about all items, those
within reach, 99 sampled ones, and semantic IDs (HGIT's of the papers' tables, seed 0, made and kept in the folder that
those share; ``--no-codes`` leaves them out). ``--sasrec`` adds cornac's SASRec, a seed after the other, trained in an
environment of its own on the same training visits; ``--generative`` adds the default generative ranker
(``rankers/generative/model.py``) on the same semantic IDs; ``--twin`` adds TWIN of these seeds at the default settings
of ``placerank train`` with the same semantic IDs, over all items (and so, within reach, over all that is reachable),
and TWIN over the 50 best of the generative ranker of the same seed: of all items, and of those within reach.
``--beams 50`` puts lists of ten by so many beams beside those of exact scores, and their time. A seed that is kept is
not run again. Prints a table for each dataset and way with 95 % intervals (visits drawn anew); ``--save`` writes
results/lists.csv, a line for each dataset, scorer, way and part of the visits, beside other lines that are there, and
of beams results/beams.csv. A minute of one core a dataset, as much for the codes, five for a seed of the generative
ranker, ten for one of TWIN, and many for one of SASRec.

A hit is of the one item that was visited, among all that the way names: the user's earlier places are not taken out.
"""

import argparse
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from placerank.benchmarks import generator
from placerank.benchmarks.bench_candidates import twin
from placerank.benchmarks.papers.cells import Budget, Workplace
from placerank.benchmarks.papers.grids import HGIT, Variant
from placerank.benchmarks.results_file import keep
from placerank.benchmarks.throughput.environments import LISTS, environment
from placerank.data.batches.semantic_features import SemanticFeatures
from placerank.data.batches.sequences import ALL, SequenceBatch, SequenceLoader
from placerank.data.manifest import read_manifest, whole_file
from placerank.evaluation.breakdown import ItemFacts
from placerank.evaluation.floors import Floors, transitions
from placerank.evaluation.lists import METRICS, ListMetrics, Standing, Ways, chosen
from placerank.evaluation.paired import paired_bootstrap
from placerank.rankers.generative.decoding import Lists
from placerank.rankers.generative.preference import samples
from placerank.rankers.generative.reach import everything
from placerank.reports.progress import tracked
from placerank.training.inference import load_ranker
from placerank.training.runtime import runtime

BATCH, TWIN_BATCH = 256, 16
AGAIN = 50
"""The best of a generative ranker that TWIN orders."""
SASREC_EPOCHS = 10  # cornac's default
SHOWN = ("all", "visit: first visit", "visit: repeat")
HEAD = ("hit@1", "hit@10", "hit@50", "ndcg@10", "mrr")
_KEY = ("dataset", "targets", "reach_km", "scorer", "way", "part")
Line = dict[str, Any]


@dataclass
class Kept:
    """Of one scorer and way: sums by part, and each target's gains, for intervals."""

    metrics: ListMetrics
    gains: list[Tensor] = field(default_factory=list)
    repeat: list[Tensor] = field(default_factory=list)

    def add(self, gains: Tensor, batch: SequenceBatch) -> None:
        self.metrics.add(gains, batch)
        self.gains.append(gains[: batch.valid])
        self.repeat.append(batch.visits[: batch.valid] > 0)

    def interval(self, part: str, metric: str) -> tuple[float, float]:
        """95 % over targets."""
        value, repeat = torch.cat(self.gains)[:, METRICS.index(metric)], torch.cat(self.repeat)
        inside = {"visit: first visit": ~repeat, "visit: repeat": repeat}.get(part, repeat | True)
        found = paired_bootstrap(value[inside & ~value.isnan()].numpy())
        return found.low, found.high


def masked(gains: Tensor, wanted: Tensor) -> Tensor:
    """Gains of some targets; of the others nothing was asked."""
    return gains.masked_fill(~wanted[:, None], torch.nan)


def measure(
    prepared: Path,
    wanted: Tensor,
    reach_km: float,
    codes: Tensor | None,
    peers: dict[str, NDArray[np.float32]],
    ranked_again: dict[str, tuple[str, str]],
) -> dict[tuple[str, str], Kept]:
    """Every scorer on the wanted test visits, by scorer and way.

    Args:
        prepared: a prepared folder.
        wanted: which visits, bool [N].
        reach_km, codes: see ``Ways``.
        peers: by name, scores of the wanted visits, [B, I].
        ranked_again: by name, which of the peers orders the ``AGAIN`` best of which other one.
    """
    items = ItemFacts.load(prepared)
    floors = Floors(items, transitions(prepared, len(items)))
    floors.fit(prepared)
    ways = Ways(items, reach_km, codes)
    found: dict[tuple[str, str], Kept] = {}
    done = 0
    for batch, here in zip(SequenceLoader(prepared, "test", BATCH, history=ALL), wanted.split(BATCH), strict=True):
        of_peers = {}
        for name, rows in peers.items():
            whole = torch.zeros(len(batch), len(items))
            whole[here] = torch.from_numpy(rows[done : done + int(here.sum())])
            of_peers[name] = whole
        done += int(here.sum())

        def add(name: str, way: str, standing: Standing, batch: SequenceBatch = batch, here: Tensor = here) -> None:
            kept = found.setdefault((name, way), Kept(ListMetrics(items)))
            kept.add(masked(standing.gains(), here), batch)

        for name, scores in (*floors.scores(batch), *of_peers.items()):
            for way, standing in ways.standings(scores, batch).items():
                add(name, way, standing)
        for name, (by, of) in ranked_again.items():
            add(name, "all", ways.standings(of_best(of_peers[by], of_peers[of]), batch)["all"])
            reachable = of_peers[of].masked_fill(~ways.within(batch), -torch.inf)
            add(name, "reach", ways.standings(of_best(of_peers[by], reachable), batch)["reach"])
    return found


def of_best(scores: Tensor, found: Tensor) -> Tensor:
    """Scores [B, I] of the ``AGAIN`` best by ``found`` [B, I]; others, and what is not found (-inf), are not listed."""
    top = found.topk(min(AGAIN, found.shape[1]), dim=1)
    own = scores.gather(1, top.indices).masked_fill(top.values == -torch.inf, -torch.inf)
    return torch.full_like(scores, -torch.inf).scatter(1, top.indices, own)


def sasrec(prepared: Path, wanted: Tensor, folder: Path, seeds: int, cache: Path) -> dict[str, NDArray[np.float32]]:
    """Scores of cornac's SASRec for the wanted test visits, [B, I] by name; trained where they are not kept.

    Args:
        folder: where they are kept, of these visits alone.
    """
    python = environment("cornac", cache, LISTS)
    folder.mkdir(parents=True, exist_ok=True)
    seen: dict[str, list[NDArray[np.int64]]] = {"user": [], "item": [], "time": []}
    for b in SequenceLoader(prepared, "train", 65_536, history=1):
        for name, column in (("user", b.user_index[b.stretch]), ("item", b.target), ("time", b.target_time)):
            seen[name].append(column.numpy())
    items = len(ItemFacts.load(prepared))
    user, item, time = (np.concatenate(seen[name]) for name in ("user", "item", "time"))
    np.savez(folder / "train.npz", items=items, user=user, item=item, time=time)
    histories, lengths = [], []
    for b, here in zip(SequenceLoader(prepared, "test", BATCH), wanted.split(BATCH), strict=True):
        offsets, at = b.last(ALL)
        lengths.append(offsets.diff()[here].numpy())
        histories.append(b.item[at].numpy()[here.repeat_interleave(offsets.diff()).numpy()])
    ends = np.cumsum(np.concatenate(lengths))
    np.savez(folder / "test.npz", offsets=np.append(0, ends), item=np.concatenate(histories))
    found = {}
    for seed in range(seeds):
        scores = folder / f"sasrec-{seed}.npy"
        if not scores.exists():
            script = Path(__file__).parent / "peers" / LISTS["cornac"].script
            command = [python, script, folder, "--epochs", SASREC_EPOCHS, "--seed", seed]
            subprocess.run([*map(str, command)], check=True)
        found[f"cornac's SASRec, seed {seed}"] = np.load(scores)
    return found


def generative(place: Workplace, wanted: Tensor, folder: Path, seeds: Iterable[int]) -> dict[str, NDArray[np.float32]]:
    """Log p of the generative ranker for the wanted test visits, [B, I] by name; trained where it is not kept."""
    found = {}
    for seed in seeds:
        run = generator.trained(place.prepared(), place.tokens(HGIT, seed=0), seed, folder / f"generative-{seed}")
        found[f"generative, seed {seed}"] = generator.scores(run, wanted)
    return found


def twin_scores(place: Workplace, wanted: Tensor, folder: Path, seed: int) -> NDArray[np.float32]:
    """Logits of TWIN for the wanted test visits, [B, I], trained and kept where they are not; -inf for row 0."""
    file = folder / f"twin-{seed}, {int(wanted.sum())} visits.npy"
    if file.exists():
        return np.load(file)
    prepared, parts = place.prepared(), []
    run = twin(prepared, place.tokens(HGIT, seed=0), seed, folder / f"twin-{seed}")
    longest = read_manifest(prepared, "prepared")["history_length"]
    with runtime(0) as rt:
        ranker = load_ranker(run, rt)
        score = ranker.score()
        items = np.arange(1, len(ItemFacts.load(prepared)))
        batches = SequenceLoader(prepared, "test", TWIN_BATCH, history=ALL, together=1)
        for batch, here in zip(tracked(batches, "TWIN", unit="batches"), wanted.split(TWIN_BATCH), strict=True):
            if not here.any():
                continue
            every = everything(items, len(batch))
            some = every.keep(here[every.requests])
            logits = score(samples(batch, Lists(some.offsets, some.items, torch.zeros(0)), longest))
            scores = logits.view(-1, len(items)).float().numpy()
            parts.append(np.pad(scores, ((0, 0), (1, 0)), constant_values=-np.inf))
    found = np.concatenate(parts)
    with whole_file(file) as tmp, open(tmp, "wb") as out:
        np.save(out, found)
    return found


def codes_of(place: Workplace, variant: Variant = HGIT) -> Tensor:
    """Of each catalog row, without TIGER's suffix, int64 [I, L]."""
    ids = pq.read_table(place.prepared() / "catalog.parquet", columns=["item_id"])["item_id"]
    return torch.from_numpy(SemanticFeatures.load(place.tokens(variant, seed=0), ids).codes)


def lines_of(dataset: str, targets: int, reach_km: float, found: dict[tuple[str, str], Kept]) -> list[Line]:
    lines = []
    for (scorer, way), kept in found.items():
        result = kept.metrics.result()
        for part in SHOWN:
            row = result.get(part)
            if row is None or not row["asked"]:
                continue
            low, high = kept.interval(part, "hit@10")
            about = {"dataset": dataset, "targets": targets, "reach_km": reach_km, "scorer": scorer, "way": way}
            values = {m: round(float(row[m] or 0.0), 5) for m in METRICS}
            lines.append(
                {**about, "part": part, "asked": row["asked"], **values}
                | {"hit@10_low": round(low, 5), "hit@10_high": round(high, 5)}
            )
    return lines


def markdown(lines: list[Line]) -> str:
    out = []
    for dataset in dict.fromkeys(x["dataset"] for x in lines):
        for way in dict.fromkeys(x["way"] for x in lines):
            here = [x for x in lines if x["dataset"] == dataset and x["way"] == way]
            if not here:
                continue
            parts = [x for x in here if x["scorer"] == here[0]["scorer"]]
            asked = ", ".join(f"{x['asked']:,} {x['part'].removeprefix('visit: ')}" for x in parts)
            out += [f"\n{dataset}, {way} ({asked})\n", _row(["", *HEAD, "first visits hit@10", "repeats hit@10"])]
            out.append(_row(["---"] * (len(HEAD) + 3)))
            for scorer in dict.fromkeys(x["scorer"] for x in here):
                by_part = {x["part"]: x for x in here if x["scorer"] == scorer}
                cells = [_with_interval(by_part["all"]) if m == "hit@10" else f"{by_part['all'][m]:.3f}" for m in HEAD]
                cells += [_with_interval(by_part[p]) if p in by_part else "" for p in SHOWN[1:]]
                out.append(_row([scorer, *cells]))
    return "\n".join(out)


def _with_interval(line: Line) -> str:
    return f"{line['hit@10']:.3f} ({line['hit@10_low']:.3f} to {line['hit@10_high']:.3f})"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m placerank.benchmarks.bench_lists",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the schema of docs/data.md")
    parser.add_argument("--out", type=Path, default=Path("runs/papers"), help="where what is prepared is kept")
    parser.add_argument("--targets", type=int, default=3000, help="test visits, drawn once (default: %(default)s)")
    parser.add_argument("--reach", type=float, default=10.0, help="km (default: %(default)s)")
    parser.add_argument("--no-codes", action="store_true", help="leave semantic IDs out")
    parser.add_argument("--sasrec", type=int, default=0, metavar="SEEDS", help="seeds of cornac's SASRec (default: 0)")
    parser.add_argument(
        "--generative", type=int, default=0, metavar="SEEDS", help="seeds of the generative ranker (default: 0)"
    )
    parser.add_argument(
        "--twin", type=int, nargs="*", default=[], metavar="SEED", help="TWIN, alone and on its 50 best"
    )
    parser.add_argument("--beams", type=int, default=0, help="lists by beams beside exact ones, of the same rankers")
    parser.add_argument("--cache", type=Path, default=Path(".cache/peers"), help="for its environment")
    parser.add_argument("--save", action="store_true", help="write results/lists.csv")
    args = parser.parse_args()

    lines = []
    for data in args.data:
        place = Workplace(data, args.out / data.name, Budget())
        codes = None if args.no_codes else codes_of(place)
        loader = SequenceLoader(place.prepared(), "test", BATCH)
        wanted = torch.from_numpy(chosen(loader.rows, args.targets))
        peers = {}
        if args.sasrec:
            folder = args.out / data.name / f"lists-{args.targets}"
            peers = sasrec(place.prepared(), wanted, folder, args.sasrec, args.cache)
        folder = args.out / data.name
        peers |= generative(place, wanted, folder, sorted({*range(args.generative), *args.twin}))
        again = {}
        if args.beams:
            for seed in sorted({*range(args.generative), *args.twin}):
                line = {"dataset": data.name, "seed": seed, "beams": args.beams}
                line |= generator.with_beams(folder / f"generative-{seed}", args.beams)
                print(line)
                if args.save:
                    keep("beams.csv", [line], ("dataset", "seed", "beams"), torch.device("cpu"))
        for seed in args.twin:
            peers[f"TWIN, seed {seed}"] = twin_scores(place, wanted, folder, seed)
            again[f"generative's {AGAIN} by TWIN, seed {seed}"] = f"TWIN, seed {seed}", f"generative, seed {seed}"
        found = measure(place.prepared(), wanted, args.reach, codes, peers, again)
        lines += lines_of(data.name, args.targets, args.reach, found)
    print(markdown(lines))
    if args.save:
        print(f"written: {keep('lists.csv', lines, _KEY, torch.device('cpu'))}")


if __name__ == "__main__":
    main()
