"""Generative rankers by tokenizer, as LGSID's table 2 has them: hits four ways, the item given its code, calibration.

    python -m placerank.benchmarks.bench_generators --data DATASETS/foursquare_nyc DATASETS/context_trails_pj --save

{TIGER, the default, OneRec} x {Res-KMeans, RQ-VAE, Lin et al., HGIT}, each with so many seeds of the
ranker on one seed of semantic IDs, all by ``placerank train`` with one recipe: batches of 512, at most ``--epochs``
passes, until validation gains no more. TIGER has the others' sizes (64 columns, 2 + 2 layers), as beside cornac's
(bench_tiger.py), and batches of 64, as it learns for longer and a pass of a fifth of the users has few steps. Each is
asked about the same test visits, over all items. A cell that is kept in the folder is not run again; ``--jobs`` run at
once, on a GPU where there is one, and ``--cells-only`` ends there.

* ``all``, ``reach``, ``sampled``, ``codes``: as in ``evaluation/lists.py``.
* ``given code``: among the items that share the target's code, where there are several, whether the target stands
  first: what the suffix (TIGER) and the last mile (the others) are for. ``most popular`` is the floor.
* ``nll``: nats a visit, beside 0.8 counter + 0.2 popularity on the same visits; ``ece``: of the first within reach.

Differences are HGIT's less another tokenizer's on the same visits and seeds, and ``onerec / tiger`` is the ratio of two
rankers' means, each with a 95 % interval over visits of the mean over seeds. ``--share 0.2`` takes a fifth of the
users, drawn once, with their visits. The aligned encoder is left out: its embeddings take hours here; and so is RQ-VAE
n-gram, whose codes are RQ-VAE's: the default and OneRec have rows of prefixes with any tokenizer, and TIGER has none.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from placerank.benchmarks import generator
from placerank.benchmarks.bench_lists import BATCH, codes_of
from placerank.benchmarks.bench_tiger import SIZES
from placerank.benchmarks.papers.cells import Budget, Workplace
from placerank.benchmarks.papers.grids import TOKENS
from placerank.benchmarks.results_file import keep
from placerank.data.batches.sequences import ALL, SequenceLoader
from placerank.data.manifest import whole_file
from placerank.evaluation.breakdown import ItemFacts
from placerank.evaluation.floors import Floors, transitions
from placerank.evaluation.lists import METRICS, WAYS, Standing, Ways, chosen, standing
from placerank.evaluation.measure_lists import Confidence
from placerank.evaluation.paired import mean_and_spread, paired_bootstrap, ratio_bootstrap
from placerank.rankers.dense import RankerConfig
from placerank.reports.progress import tracked

RECIPES: dict[str, tuple[RankerConfig, int]] = {
    "tiger": (RankerConfig(kind="tiger", tiger=SIZES), 64),
    "generative": (RankerConfig(kind="generative"), 512),
    "onerec": (RankerConfig(kind="onerec"), 512),
}
"""A kind's ranker, and its visits a batch."""
KINDS = tuple(RECIPES)
GIVEN_CODE = "given code"
SHOWN = ("hit@1", "hit@10", "ndcg@10")
BASE = "hgit"
POPULAR = "most popular"
VARIANTS = {variant.name: variant for variant in TOKENS if variant.tokenizer != "rqvae_ngram"}
_KEY = ("dataset", "ranker", "tokenizer", "way", "part", "metric")
Line = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A ranker to train and to ask.

    Attributes:
        data, folder: raw folder, and where all that is made of it lies.
        kind, tokenizer, seed: which.
        targets, reach_km, epochs: what is asked, and passes at most.
    """

    data: Path
    folder: Path
    kind: str
    tokenizer: str
    seed: int
    targets: int
    reach_km: float
    epochs: int

    @property
    def place(self) -> Workplace:
        return Workplace(self.data, self.folder, Budget(), token_seeds=1)

    @property
    def out(self) -> Path:
        """Its file: gains [W, N, M] of ways, visits and ``SHOWN``, NaN where nothing was asked; ``first`` [N]."""
        name = f"{self.kind}-{self.tokenizer}-{self.seed}-{self.targets}.npz"
        return self.folder / "generators" / name

    @property
    def recipe(self) -> str:
        """What a cell that is kept has to be of."""
        return repr((*RECIPES[self.kind], self.epochs, self.reach_km))

    def kept(self) -> dict[str, Any] | None:
        """Its file, None where there is none.

        Raises:
            ValueError: it is of another recipe.
        """
        if not self.out.exists():
            return None
        found = dict(np.load(self.out))
        if str(found.get("recipe")) != self.recipe:
            raise ValueError(f"{self.out} was made by another recipe; choose another folder for --out")
        return found

    def run(self) -> None:
        """Train, ask, keep."""
        if self.kept() is not None:
            return
        torch.set_num_threads(1)
        place = self.place
        variant = VARIANTS[self.tokenizer]
        folder = self.folder / "generators" / f"{self.kind}-{self.tokenizer}-{self.seed}"
        inputs = place.prepared(), place.tokens(variant, 0)
        run = generator.trained(*inputs, self.seed, folder, *RECIPES[self.kind], self.epochs)
        wanted = wanted_visits(self)
        found = measure(self, torch.from_numpy(generator.scores(run, wanted)), wanted)
        with whole_file(self.out) as tmp, open(tmp, "wb") as file:
            np.savez_compressed(file, **found, recipe=self.recipe)


def wanted_visits(cell: Cell) -> Tensor:
    """Which test visits are asked, bool [N]."""
    return torch.from_numpy(chosen(SequenceLoader(cell.place.prepared(), "test", BATCH).rows, cell.targets))


def given_code(scores: Tensor, target: Tensor, codes: Tensor) -> Standing:
    """Where targets stand among the items of their code; asked where it has several.

    Args:
        scores: [B, I].
        target: catalog rows, int64 [B].
        codes: of the catalog's rows, int64 [I, L], -1 where an item has none.
    """
    alike = (codes == codes[target][:, None]).all(2) & (codes >= 0).all(1)
    found = standing(scores, target, alike)
    return Standing(found.above, found.tied, alike.sum(1) > 1)


def measure(cell: Cell, scores: Tensor, wanted: Tensor) -> dict[str, Any]:
    """What is kept of a cell: see ``Cell.out``; and ``popular``, gains [N, M] of the most popular given the code."""
    prepared = cell.place.prepared()
    items = ItemFacts.load(prepared)
    codes = codes_of(cell.place, VARIANTS[cell.tokenizer])
    ways = Ways(items, cell.reach_km, codes)
    floors = Floors(items, transitions(prepared, len(items)))
    floors.fit(prepared)
    confidence, nats = Confidence(), []
    columns = [METRICS.index(metric) for metric in SHOWN]
    gains: dict[str, list[Tensor]] = {}
    first, done = [], 0
    for batch, here in zip(SequenceLoader(prepared, "test", BATCH, history=ALL), wanted.split(BATCH), strict=True):
        own = torch.full((len(batch), len(items)), -torch.inf)
        own[: batch.valid][here] = scores[done : done + int(here.sum())]
        done += int(here.sum())
        found = ways.standings(own, batch) | {GIVEN_CODE: given_code(own, batch.target, codes)}
        popular = dict(floors.scores(batch))["popularity"]
        found["popular"] = given_code(popular, batch.target, codes)
        for way, where in found.items():
            gains.setdefault(way, []).append(where.gains()[: batch.valid][here][:, columns])
        target, near = batch.target[: batch.valid][here], ways.within(batch)[: batch.valid][here]
        confidence.add_within(own[: batch.valid][here], near, target)
        of_floor = floors.likelihood(batch)[: batch.valid][here]
        of_model = own[: batch.valid][here].gather(1, target[:, None]).squeeze(1).double()
        both = of_model.isfinite() & (of_floor > 0)
        nats.append(torch.stack([-of_model[both], -of_floor[both].log()], dim=1))
        first.append((batch.visits[: batch.valid] == 0)[here])
    nll = torch.cat(nats).mean(0)
    return {
        "gains": np.stack([torch.cat(gains[way]).numpy() for way in (*WAYS, GIVEN_CODE)]).astype(np.float32),
        "popular": torch.cat(gains["popular"]).numpy().astype(np.float32),
        "first": torch.cat(first).numpy(),
        "ece": confidence.result()["ece"],
        "nll": nll[0].item(),
        "nll_floor": nll[1].item(),
    }


def lines_of(dataset: str, cells: list[Cell]) -> list[Line]:
    """Means over seeds and visits, the spread over seeds, and HGIT's difference."""
    lines: list[Line] = []
    kept = {(c.kind, c.tokenizer, c.seed): found for c in cells if (found := c.kept()) is not None}
    for kind in KINDS:
        for tokenizer in VARIANTS:
            own = [x for (k, t, _), x in sorted(kept.items()) if (k, t) == (kind, tokenizer)]
            base = [kept.get((kind, BASE, s)) for (k, t, s) in sorted(kept) if (k, t) == (kind, tokenizer)]
            if not own:
                continue
            about = {"dataset": dataset, "ranker": kind, "tokenizer": tokenizer}
            first = own[0]["first"]
            parts = {"all": first | True, "first visit": first, "repeat": ~first}
            for number, way in enumerate((*WAYS, GIVEN_CODE)):
                for part, inside in parts.items():
                    for column, metric in enumerate(SHOWN):
                        runs = [x["gains"][number][inside, column].astype(np.float64) for x in own]
                        others = [None if x is None else x["gains"][number][inside, column] for x in base]
                        where = {"way": way, "part": part, "metric": metric}
                        lines.append({**about, **where, **_figures(runs, others, tokenizer)})
            for metric in ("nll", "nll_floor", "ece"):
                where = {"way": "all", "part": "all", "metric": metric}
                lines.append({**about, **where, **_over_seeds([float(x[metric]) for x in own])})
    lines += _one_by_other(dataset, kept)
    for tokenizer in VARIANTS:
        some = next((x for (_, t, _), x in sorted(kept.items()) if t == tokenizer), None)
        if some is None:
            continue
        for part, inside in {"all": some["first"] | True, "first visit": some["first"]}.items():
            value = float(np.nanmean(some["popular"][inside, 0]))
            where = {"way": GIVEN_CODE, "part": part, "metric": "hit@1"}
            lines.append(
                {"dataset": dataset, "ranker": POPULAR, "tokenizer": tokenizer, **where, **_over_seeds([value])}
            )
    return lines


def _one_by_other(dataset: str, kept: dict[tuple[str, str, int], Any]) -> list[Line]:
    """Figures of a ranker by another's, of the seeds that both have; given the code by the most popular item's too."""
    lines: list[Line] = []
    ways = (*WAYS, GIVEN_CODE)
    given = (GIVEN_CODE, SHOWN[0])
    asked_for = {"tiger": [*product(("all", "reach", "codes"), SHOWN), given], POPULAR: [given]}
    gains = {key: x["gains"] for key, x in kept.items()}
    for (_, tokenizer, seed), x in kept.items():  # the floor's lie as a ranker's do
        gains[POPULAR, tokenizer, seed] = np.concatenate([np.full_like(x["gains"][:-1], np.nan), x["popular"][None]])
    for kind, other, tokenizer in product(KINDS, asked_for, VARIANTS):
        seeds = [s for k, t, s in sorted(kept) if (k, t) == (kind, tokenizer) and (other, t, s) in gains]
        for way, metric in asked_for[other] if seeds and kind != other else ():
            at = ways.index(way), slice(None), SHOWN.index(metric)
            of = [np.mean([gains[side, tokenizer, s][at] for s in seeds], axis=0) for side in (kind, other)]
            asked = np.isfinite(of).all(0)
            ratio = ratio_bootstrap(*(x[asked] for x in of))
            where = {"ranker": f"{kind} / {other}", "tokenizer": tokenizer, "way": way, "part": "all", "metric": metric}
            told = {"seeds": len(seeds), "mean": f"{ratio.mean:.5f}", "spread": "", "hgit_less_this": ""}
            told |= {"low": f"{ratio.low:.5f}", "high": f"{ratio.high:.5f}"}
            lines.append({"dataset": dataset, **where, **told})
    return lines


def _over_seeds(values: list[float]) -> Line:
    mean, spread = mean_and_spread(values)
    told = {"seeds": len(values), "mean": f"{mean:.5f}", "spread": "" if len(values) < 2 else f"{spread:.5f}"}
    return told | {"hgit_less_this": "", "low": "", "high": ""}


def _figures(runs: list[Any], others: list[Any], tokenizer: str) -> Line:
    """Of gains [N] a seed; NaN where nothing was asked."""
    found = _over_seeds([float(np.nanmean(x)) if np.isfinite(x).any() else np.nan for x in runs])
    pairs = [(a, b) for a, b in zip(runs, others, strict=True) if b is not None]
    if tokenizer == BASE or not pairs:
        return found
    asked = np.isfinite(np.stack([x for pair in pairs for x in pair])).all(0)  # of given code each asks its own
    gain = paired_bootstrap(np.mean([b[asked] - a[asked] for a, b in pairs], axis=0))
    told = {"hgit_less_this": f"{gain.mean:.5f}", "low": f"{gain.low:.5f}", "high": f"{gain.high:.5f}"}
    return found | told


def markdown(lines: list[Line]) -> str:
    """A table a dataset and ranker."""
    heads = [("all", "all", "hit@10"), ("all", "all", "ndcg@10"), ("all", "first visit", "hit@10")]
    heads += [("reach", "all", "hit@10"), ("sampled", "all", "hit@10"), ("codes", "all", "hit@10")]
    heads += [(GIVEN_CODE, "all", "hit@1"), (GIVEN_CODE, "first visit", "hit@1")]
    by = {tuple(x[name] for name in _KEY): x for x in lines}
    out = []
    for dataset, kind in dict.fromkeys((x["dataset"], x["ranker"]) for x in lines if x["ranker"] in KINDS):
        out += [f"\n{dataset}, {kind}; in brackets HGIT less this\n"]
        out.append("| | " + " | ".join(f"{way}, {part}: {metric}" for way, part, metric in heads) + " | nll | ece |")
        out.append("|" + "---|" * (len(heads) + 3))
        for tokenizer, variant in VARIANTS.items():
            if (dataset, kind, tokenizer, *heads[0]) not in by:
                continue
            cells = []
            for head in heads:
                line = by[dataset, kind, tokenizer, *head]
                gain = f" ({line['low']} to {line['high']})" if line["low"] else ""
                cells.append(f"{line['mean']}{gain}")
            cells += [by[dataset, kind, tokenizer, "all", "all", metric]["mean"] for metric in ("nll", "ece")]
            out.append(f"| {variant.title} | " + " | ".join(cells) + " |")
    ratios = [x for x in lines if " / " in x["ranker"]]
    if ratios:
        out += ["\n| | of | tokenizer | way | metric | ratio | seeds |", "|" + "---|" * 7]
    for x in ratios:
        about = f"{x['dataset']} | {x['ranker']} | {VARIANTS[x['tokenizer']].title} | {x['way']} | {x['metric']}"
        out.append(f"| {about} | {x['mean']} ({x['low']} to {x['high']}) | {x['seeds']} |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m placerank.benchmarks.bench_generators",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the schema of docs/data.md")
    parser.add_argument("--out", type=Path, default=Path("runs/papers"), help="where what is made is kept")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--tokenizers", nargs="+", choices=[*VARIANTS], default=[*VARIANTS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of users, drawn once (default: all)")
    parser.add_argument("--targets", type=int, default=3000, help="test visits, drawn once (default: %(default)s)")
    parser.add_argument("--reach", type=float, default=10.0, help="km (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=12, help="passes at most (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once (default: %(default)s)")
    parser.add_argument("--cells-only", action="store_true", help="train and ask, tell nothing")
    parser.add_argument("--save", action="store_true", help="write results/generators.csv")
    args = parser.parse_args()

    of = {}
    for data in args.data:
        name, raw, folder = data.name, data, args.out / data.name
        if args.share < 1:
            name, folder = f"{name}, {args.share:.0%} of users", args.out / f"{data.name}-{args.share:g}"
            raw = generator.some_users(data, folder, args.share)
        of[name] = [
            Cell(raw, folder, kind, tokenizer, seed, args.targets, args.reach, args.epochs)
            for seed in range(args.seeds)
            for kind in args.kinds
            for tokenizer in args.tokenizers
        ]
    for cells in of.values():  # what all cells need is made once, before they start
        cells[0].place.prepared()
        for tokenizer in args.tokenizers:
            cells[0].place.tokens(VARIANTS[tokenizer], 0)
    cells = [cell for some in of.values() for cell in some if cell.kept() is None]
    if args.jobs == 1:  # in this process, so that what ends it ends a training too
        for cell in tracked(cells, "cells", unit="cells"):
            cell.run()
    else:
        with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(Cell.run, cell) for cell in cells]
            for future in tracked(as_completed(futures), "cells", len(futures), "cells"):
                future.result()
    if args.cells_only:
        return
    lines = [line for name, some in of.items() for line in lines_of(name, some)]
    print(markdown(lines))
    if args.save:
        print(f"written: {keep('generators.csv', lines, _KEY, torch.device('cpu'))}")


if __name__ == "__main__":
    main()
