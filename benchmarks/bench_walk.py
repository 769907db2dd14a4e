"""Walking forward: days in order, each asked before it is trained on. Warm start beside training anew and not at all.

    python -m placerank.benchmarks.bench_walk --data city DATASETS/foursquare_nyc --save

In the simulated city, a city a seed, or on raw folders. A ranker is trained on all days but the last ``--days``. Then
each of these is prepared with ``--after``, the rankers of all sides are asked about all its requests, and go on:

    newcomers       ``--warm-start`` on the day alone, ``--newcomers 0.1``: new places start as those
    apart           the same, but new rows start from noise
    known, random   without newcomers: new rows from what is known of them, or from noise
    anew            without, prepared and trained from nothing on all days so far
    none            without, the first ranker, never trained again

Places open on the day that first shows them (of check-ins that is not known), and three in ten of those shown before
the walk are held back: each opens on a day drawn for it, or of check-ins on that of its first visit in the walk, and
what was before is dropped. Processor seconds are of preparing and training for the next day, on one thread. One pass,
whatever the side; 5 % of the rows are for validation.

AUC is over all days of a walk: of all rows, of rows of known places, and of rows of places that opened that day, among
themselves; and pairs in one request, a click and none: the share in order where the one is new and the other is not.
Said / true is the mean probability over the share of clicks. Means over seeds. Intervals are of 95 %, by drawing the
requests of each walk anew.

A day and side that is kept in ``--out`` is not run again. ``--save`` writes results/walk.csv and walk_gaps.csv, beside
lines of other sides, and of all sides walk.png.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from matplotlib import pyplot as plt
from numpy.typing import NDArray

from placerank.benchmarks.results_file import RESULTS, keep
from placerank.data.batches.batch import SampleBatch
from placerank.data.batches.loader import SampleLoader
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.manifest import write_json
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.evaluation.paired import Interval
from placerank.reports.progress import Progress
from placerank.training.inference import load_ranker
from placerank.training.metrics import auc
from placerank.training.predictions import Predictions, predict
from placerank.training.run_files import CONFIG, read_object
from placerank.training.runtime import runtime
from placerank.training.train import TrainConfig, train

SIDES = {
    "newcomers": "warm start with newcomers",
    "apart": "with newcomers, new rows from noise",
    "known": "warm start without newcomers",
    "random": "without, new rows from noise",
    "anew": "trained anew",
    "none": "not trained again",
}
PARTS = {"auc_known": "known places", "auc_new": "places that opened that day"}
AUCS = {"all": "AUC", "known": "known places", "new": "places that opened that day"}
PAIRS = {"click": "click on a new one, known one below", "none": "click on a known one, new one below"}
GAPS = (
    ("all", "newcomers", "-", "known"), ("known", "newcomers", "-", "known"), ("new", "newcomers", "-", "known"),
    ("new", "newcomers", "-", "apart"), ("new", "newcomers", "-", "random"), ("known", "newcomers", "-", "new"),
    ("all", "known", "/", "anew"), ("new", "known", "-", "random"), ("new", "known", "-", "anew"),
    ("new", "known", "-", "none"), ("all", "known", "-", "none"), ("known", "known", "-", "new"),
)  # fmt: skip
"""Of which rows the AUC of which side is compared, how, and with which side; or with ``new``, the side's other rows."""
DRAWS = 1_000
SHARE = 0.3  # many, so that days have enough of them to tell a start from another
NEGATIVES = 9  # a visit, of check-ins alone
NEWCOMERS = 0.1
BATCH = 512  # small, as a day has few
CITY = "city"
LEAST = 20
PLACES = 2_000  # of a city, and people
_KEY = ("dataset", "days", "requests", "seed", "day", "side")


@dataclass(frozen=True)
class Rows:
    """What a side said of the candidates of one day, sorted by request; arrays [N].

    Attributes:
        request: int64.
        label: 0 or 1.
        logit: float32.
        new: is the candidate a place that opened that day?
    """

    request: NDArray[np.int64]
    label: NDArray[np.float32]
    logit: NDArray[np.float32]
    new: NDArray[np.bool_]

    def which(self, kind: str) -> NDArray[np.bool_]:
        """Rows of a kind of ``AUCS``."""
        return {"all": self.new | True, "known": ~self.new, "new": self.new}[kind]

    def said(self, kind: str) -> float:
        """The mean probability over the share of clicks, of a kind of rows."""
        which = self.which(kind)
        return float((1 / (1 + np.exp(-self.logit[which].astype(np.float64)))).mean() / self.label[which].mean())

    def pairs_in_order(self, clicked: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[float, int]:
        """Of pairs in one request, a click of ``clicked`` [N] and none of ``other``, the share in order; a tie is half.
        And how many there are."""
        found = [np.zeros(0)]
        for at in np.split(np.arange(len(self.request)), np.flatnonzero(np.diff(self.request)) + 1):
            click, none = at[clicked[at] & (self.label[at] > 0)], at[other[at] & (self.label[at] == 0)]
            gap = self.logit[click][:, None] - self.logit[none]
            found.append(((gap > 0) + (gap == 0) / 2).ravel())
        every = np.concatenate(found)
        return float(every.mean()) if len(every) else np.nan, len(every)

    @classmethod
    def together(cls, days: Sequence["Rows"]) -> "Rows":
        """Of several days, requests numbered through."""
        new = [np.append(1, np.diff(x.request) != 0) for x in days]
        columns = {n: np.concatenate([getattr(x, n) for x in days]) for n in ("label", "logit", "new")}
        return cls(np.cumsum(np.concatenate(new)) - 1, **columns)


class Auc:
    """AUC of a kind of rows as a function of how much each request counts; ties are half."""

    def __init__(self, rows: Rows, kind: str) -> None:
        which = rows.which(kind)
        self.request, self.clicked = rows.request[which], rows.label[which] > 0
        _, self.at = np.unique(rows.logit[which], return_inverse=True)

    def __call__(self, weight: NDArray[np.float64]) -> float:
        """weight: of requests, [R]."""
        of_rows = weight[self.request]
        click, none = (np.bincount(self.at, of_rows * x) for x in (self.clicked, ~self.clicked))
        return float((click * (np.cumsum(none) - none / 2)).sum() / (click.sum() * none.sum()))


@dataclass(frozen=True)
class Walk:
    """One walk, and the folder that all of it is kept in.

    Attributes:
        raw: folder in the schema of docs/data.md.
        days: how many, the last ones with ``LEAST`` interactions; what a later day cut off has is of the one before it.
        seed: of the places that are held back, and of trainings.
    """

    raw: Path
    folder: Path
    days: int
    seed: int

    @cached_property
    def tables(self) -> tuple[pa.Table, pa.Table, NDArray[np.int64], NDArray[np.int64]]:
        """Interactions that count, items, and the day of the walk that each is of, or opens on; -1 = before."""
        items, shown = (pq.read_table(self.raw / f"{name}.parquet") for name in ("items", "interactions"))
        date = shown["timestamp"].cast(pa.timestamp("s", "UTC"), safe=False).cast(pa.int64()).to_numpy() // 86_400
        dates, visits = np.unique(date, return_counts=True)
        day = np.maximum(np.searchsorted(dates[visits >= LEAST][-self.days :], date, side="right") - 1, -1)
        row = pc.index_in(shown["item_id"], value_set=items["item_id"].combine_chunks()).to_numpy()
        first, again = np.full((2, len(items)), self.days)
        np.minimum.at(first, row, day)
        np.minimum.at(again, row[day >= 0], day[day >= 0])
        visits_alone = pc.min(shown["label"]).as_py() == 1  # they don't say of a place that it is open but not chosen
        opens = np.where(visits_alone | (first == self.days), -1, first)
        rng, early = np.random.default_rng(self.seed), np.flatnonzero(first == -1)
        held = rng.choice(early, int(SHARE * len(early)), replace=False)
        drawn = rng.integers(0, self.days, len(held))
        opens[held] = np.where(visits_alone & (again[held] < self.days), again[held], drawn)
        kept = day >= opens[row]
        return shown.filter(pa.array(kept)), items, day[kept], opens

    def data(self, day: int, whole: bool = False) -> Path:
        """Prepared after the day before, or of all days up to this one; -1 is all before the walk."""
        out = self.folder / f"day-{day}" / ("whole" if whole and day >= 0 else "data")
        after = None if whole or day < 0 else self.data(day - 1)
        if not out.with_suffix(".seconds").exists():
            shown, items, of, opens = self.tables
            raw, first = out.with_suffix(".raw"), -1 if after is None else day
            raw.mkdir(parents=True, exist_ok=True)
            pq.write_table(shown.filter(pa.array((of >= first) & (of <= day))), raw / "interactions.parquet")
            pq.write_table(items.filter(pa.array(opens <= day)), raw / "items.parquet")
            if (self.raw / "users.parquet").exists():
                shutil.copy(self.raw / "users.parquet", raw)
            how: dict[str, Any] = {"valid_fraction": 0.05, "test_fraction": 0, "seed": self.seed}
            how |= {"train_negatives": NEGATIVES, "eval_negatives": NEGATIVES}
            start = time.process_time()
            prepare(PrepareConfig(input=raw, out=out, after=after, overwrite=True, **how))
            out.with_suffix(".seconds").write_text(f"{time.process_time() - start:.2f}")
            shutil.rmtree(raw)
        return out

    def run(self, side: str, day: int) -> Path:
        """The ranker of a side once a day is over; -1: before the walk, one with newcomers and one without."""
        from_noise = side in ("random", "apart")
        day = -1 if side == "none" else day
        has_newcomers = side in ("newcomers", "apart")
        first = "first-newcomers.run" if has_newcomers else "first.run"
        run = self.folder / f"day-{day}" / (f"{side}.run" if day >= 0 else first)
        if not run.with_suffix(".seconds").exists():
            before = self.run(side, day - 1) if day >= 0 and side != "anew" else None
            how: dict[str, Any] = {"new_rows": "random" if from_noise and day >= 0 else "known"}
            how |= {"newcomers": NEWCOMERS if has_newcomers else 0.0}
            how |= {"epochs": 1, "patience": 0, "batch_size": BATCH, "keep_checkpoints": 1, "seed": self.seed}
            data = self.data(day, whole=before is None)
            start = time.process_time()
            train(TrainConfig(data=data, run=run, warm_start=before, overwrite=True, **how))
            run.with_suffix(".seconds").write_text(f"{time.process_time() - start:.2f}")
        if day < 0 and from_noise:  # the same, but for how it takes rows that it doesn't know
            run = Path(shutil.copytree(run, run.with_name(f"{side}-{run.name}"), dirs_exist_ok=True))
            write_json(run / CONFIG, (read_object(run / CONFIG) or {}) | {"new_rows": "random"})
        return run

    def line(self, side: str, day: int) -> Path:
        """What ``measure`` keeps."""
        return self.folder / f"day-{day}" / f"{side}.json"

    def rows(self, side: str, day: int) -> Rows:
        """What ``measure`` was of."""
        with np.load(self.line(side, day).with_suffix(".npz")) as kept:
            return Rows(**kept)

    def measure(self, side: str, day: int) -> dict[str, Any]:
        """What is kept of a side on a day: its line; request, label, logit and newness of each row lie beside it."""
        path = self.line(side, day)
        if path.exists():
            kept: dict[str, Any] = json.loads(path.read_text())
            return kept
        data, run, (_, items, _, opens) = self.data(day), self.run(side, day - 1), self.tables
        ids = pq.read_table(data / "catalog.parquet", columns=["item_id"])["item_id"]
        fresh = pc.is_in(ids, value_set=items["item_id"].filter(pa.array(opens == day)).combine_chunks()).to_numpy()
        with runtime(self.seed) as rt:
            score = load_ranker(run, rt, data).score()
            splits = [predict(score, self._asked(day, split)).sort() for split in ("train", "valid")]
        p = Predictions.of_columns({n: np.concatenate([getattr(s, n) for s in splits]) for n in splits[0].columns()})
        new = fresh[p.item_row]
        made = () if side == "none" else (self.data(day, whole=side == "anew"), self.run(side, day))
        seconds = [float(path.with_suffix(".seconds").read_text()) for path in made] or [0.0, 0.0]
        found: dict[str, Any] = {"rows": len(p), "new_rows": int(new.sum()), "new_positives": int(p.label[new].sum())}
        for name, rows in (("auc", new | True), ("auc_known", ~new), ("auc_new", new)):
            found[name] = auc(p.label[rows], p.logit[rows])
        found |= {"prepare_cpu_s": seconds[0], "train_cpu_s": seconds[1]}
        np.savez(path.with_suffix(".npz"), request=p.request, label=p.label, logit=p.logit, new=new)
        write_json(path, found)
        return found

    def _asked(self, day: int, split: str) -> Iterator[SampleBatch]:
        """Requests of a day by users as they are known before it: who got a row for that day's clicks has none yet."""
        known = pq.read_metadata(self.data(day - 1) / "users.parquet").num_rows
        for batch in SampleLoader(self.data(day), split, 4096):
            yield replace(batch, user=torch.where(batch.user < known, batch.user, 0))


def gaps(walks: Sequence[dict[str, Rows]]) -> dict[tuple[str, str, str, str], Interval]:
    """``GAPS`` of walks (rows by side), those whose sides there are: the mean over walks, and 95 % of draws of each
    walk's requests anew."""
    rng = np.random.default_rng(0)
    of_gap = {g: ((g[1], g[0]), (g[3], g[0]) if g[3] in SIDES else (g[1], g[3])) for g in GAPS}
    of_gap = {g: pair for g, pair in of_gap.items() if all(side in walks[0] for side, _ in pair)}
    wanted = {x for pair in of_gap.values() for x in pair}
    aucs = [{key: Auc(walk[key[0]], key[1]) for key in sorted(wanted)} for walk in walks]
    draws = []
    for draw in range(DRAWS + 1):
        found = np.zeros(len(of_gap))
        for walk, of in zip(walks, aucs, strict=True):
            n = int(next(iter(walk.values())).request[-1]) + 1
            weight = rng.multinomial(n, np.full(n, 1 / n)) if draw else np.ones(n)
            auc_of = {key: auc(weight.astype(np.float64)) for key, auc in of.items()}
            for i, ((*_, how, _), (one, other)) in enumerate(of_gap.items()):
                a, b = auc_of[one], auc_of[other]
                found[i] += (a / b if how == "/" else a - b) / len(walks)
        draws.append(found)
    low, high = np.quantile(draws[1:], [0.025, 0.975], axis=0)
    values = zip(draws[0], low, high, strict=True)
    return {g: Interval(*map(float, x)) for g, x in zip(of_gap, values, strict=True)}


def report(lines: Sequence[dict[str, Any]], walks: dict[str, list[dict[str, Rows]]]) -> list[dict[str, Any]]:
    """Print means a side and the gaps of each dataset; returns the gaps as lines of a file."""
    out = []
    for name, of in walks.items():
        heads = [*AUCS.values(), *PAIRS.values(), "said / true, known", "new", "prepare, s", "train, s"]
        print(f"\n{name}\n\n| side | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
        for side in of[0]:
            cells = []
            for walk in of:
                rows = walk[side]
                every = np.ones(rows.request[-1] + 1)
                pairs = rows.pairs_in_order(rows.new, ~rows.new)[0], rows.pairs_in_order(~rows.new, rows.new)[0]
                cells.append([*(Auc(rows, kind)(every) for kind in AUCS), *pairs, rows.said("known"), rows.said("new")])
            here = [x for x in lines if (x["dataset"], x["side"]) == (name, side)]
            seconds = [np.mean([x[k] for x in here]) for k in ("prepare_cpu_s", "train_cpu_s")]
            print(f"| {SIDES[side]} | " + " | ".join(f"{x:.4f}" for x in [*np.mean(cells, 0), *seconds]) + " |")
        here = [x for x in lines if x["dataset"] == name]
        about = {"dataset": name, "days": here[0]["days"], "requests": here[0]["requests"], "seeds": len(of)}
        for (kind, side, how, other), found in gaps(of).items():
            print(f"{kind}: {side} {how} {other}: {found.mean:+.5f} ({found.low:+.5f} to {found.high:+.5f})")
            values = {k: round(v, 5) for k, v in found._asdict().items()}
            out.append({**about, "rows": kind, "figure": f"{side} {how} {other}", **values})
    return out


def draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """AUC by day, mean of the seeds: a row a dataset, known and new places apart."""
    names = list(dict.fromkeys(x["dataset"] for x in lines))
    figure, grid = plt.subplots(len(names), 2, figsize=(9, 3.2 * len(names)), squeeze=False, layout="constrained")
    for row, name in zip(grid, names, strict=True):
        for axis, (part, title) in zip(row, PARTS.items(), strict=True):
            for (side, label), mark in zip(SIDES.items(), "*xosD^", strict=True):
                here = [x for x in lines if (x["dataset"], x["side"]) == (name, side)]
                days = sorted({x["day"] for x in here})
                means = [np.nanmean([x[part] for x in here if x["day"] == day]) for day in days]
                axis.plot(days, means, f"{mark}-", markersize=4, label=label)
            axis.set(title=f"{name}: {title}", xlabel="day", ylabel="AUC", xticks=days)
            axis.grid(True, alpha=0.3)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    help = f"raw folders, or {CITY}: a simulated one a seed (default)"
    parser.add_argument("--data", type=Path, nargs="+", default=[Path(CITY)], help=help)
    parser.add_argument("--days", type=int, default=14, help="that are walked (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=34_000, help="of a city, in 4 times the days (default: 34000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES), help="default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/walk"), help="where what is made is kept")
    parser.add_argument("--save", action="store_true", help="write results/walk.csv and walk.png")
    args = parser.parse_args()
    torch.set_num_threads(1)  # threads that wait for each other take processor time, too
    lines: list[dict[str, Any]] = []
    kept: dict[str, list[dict[str, Rows]]] = {}
    walks = list(product(args.data, args.seeds))
    with Progress("walks", len(walks) * args.days * len(args.sides), "days and sides") as progress:
        for source, seed in walks:
            name, size = source.name, args.requests if str(source) == CITY else ""
            folder = args.out / "-".join(map(str, (name, seed, args.days, *([size] if size else []))))
            raw = folder / "raw" if size else source
            if not raw.exists():
                of: dict[str, Any] = {"items": PLACES, "users": PLACES, "days": 4 * args.days, "seed": seed}
                simulate(SimulateConfig(out=raw, requests=args.requests, **of))
            walk = Walk(raw, folder, args.days, seed)
            for day, side in product(range(args.days), args.sides):
                found = walk.measure(side, day)
                about = {"dataset": name, "days": args.days, "requests": size, "seed": seed, "day": day, "side": side}
                lines.append(about | {k: round(v, 5) for k, v in found.items()})
                progress.update()
            rows = {s: Rows.together([walk.rows(s, day) for day in range(args.days)]) for s in args.sides}
            kept.setdefault(name, []).append(rows)
    between = report(lines, kept)
    if args.save:
        keep("walk.csv", lines, _KEY, torch.device("cpu"))
        keep("walk_gaps.csv", between, ("dataset", "days", "requests", "rows", "figure"), torch.device("cpu"))
        if set(args.sides) == set(SIDES):
            draw(lines, RESULTS / "walk.png")


if __name__ == "__main__":
    main()
