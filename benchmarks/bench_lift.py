"""Clicks, orders and GMV of the first ten places, as ReST and AKT-Rec report them online; an oracle knows.

    python -m placerank.benchmarks.bench_lift --seeds 0 1 2 --save

Each seed is a simulated city with orders, where a request shows 40 places, and the seed of semantic IDs and training.
On each a plain tower is trained on clicks, and with ReST, with AKT-Rec and with both, all with the same budget. Then
each orders the places of the test split's requests, and the first ten of each request have, by the probabilities that
the city draws with: clicks a place (CTR), orders a place, and GMV a request. ``oracle`` is the order by the true
probability of a click, and shows how much there is to gain.

Prints lifts over the plain tower in percent, with 95 % intervals of Student's t over seeds. What is kept in ``--out``
is not run again. ``--save`` keeps a line a seed and ranker in results/lift.csv.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placerank.benchmarks.bench_objectives import Truth
from placerank.benchmarks.papers.cells import Budget, Workplace
from placerank.benchmarks.papers.grids import AKT, ALL, NONE, REST, Variant
from placerank.benchmarks.results_file import keep
from placerank.data.batches.loader import SampleLoader
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.manifest import write_json
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.evaluation.paired import paired_t
from placerank.training.inference import load_ranker
from placerank.training.metrics import auc, first_places
from placerank.training.predictions import Predictions, predict
from placerank.training.runtime import runtime
from placerank.training.train import train

VARIANTS = (NONE, REST, AKT, ALL)
FIGURES = {"ctr": "CTR", "orders": "orders", "gmv": "GMV"}
ORACLE = "oracle"
PLACES, PEOPLE, SHOWN = 1_500, 1_000, 40  # of a city; in a request
KEY = ("seed", "ranker", "tower", "requests", "epochs")


def city(folder: Path, seed: int, requests: int, epochs: int) -> Workplace:
    """A city, prepared with its orders as outcomes: as features they would give clicks away."""
    raw, data = folder / "raw", folder / "prepared"
    if not raw.exists():
        of: dict[str, Any] = {"items": PLACES, "users": PEOPLE, "candidates": SHOWN, "cities": 1, "orders": 0.3}
        simulate(SimulateConfig(out=raw, seed=seed, requests=requests, **of))
    if not data.exists():
        prepare(PrepareConfig(input=raw, out=data, labels=["order"], amount="gmv"))
    return Workplace(raw, folder, Budget(epochs=epochs, batch_size=1024))


def of_first_ten(request: NDArray[np.int64], score: NDArray[Any], truth: Truth) -> dict[str, float]:
    """``FIGURES`` of an order of each request's places, expected by the truth."""
    orders = truth.click * truth.conversion
    return {
        "ctr": first_places(request, score, truth.click).a_place,
        "orders": first_places(request, score, orders).a_place,
        "gmv": first_places(request, score, orders * truth.amount).a_request,
    }


def scored(place: Workplace, tower: str, variant: Variant, seed: int) -> Predictions:
    """The test split by a ranker, trained where it isn't."""
    run = place.folder / tower / variant.name
    if not (run / "done").exists():
        train(replace(place.config(tower, variant, seed, run), overwrite=True))
        (run / "done").touch()
    with runtime(seed) as rt:
        return predict(load_ranker(run, rt).score(), SampleLoader(place.prepared(), "test", 4096)).sort()


def measure(place: Workplace, tower: str, seed: int) -> dict[str, dict[str, float]]:
    """Figures of all rankers of a city, and of the oracle; kept beside it."""
    kept = place.folder / tower / "lift.json"
    if not kept.exists():
        found: dict[str, dict[str, float]] = {}
        truth = None
        for variant in VARIANTS:
            p = scored(place, tower, variant, seed)
            if truth is None:
                truth = Truth(place.data, place.prepared(), p)
                found[ORACLE] = of_first_ten(p.request, truth.click, truth) | {"auc": auc(p.label, truth.click)}
            found[variant.name] = of_first_ten(p.request, p.logit, truth) | {"auc": auc(p.label, p.logit)}
        write_json(kept, found)
    made: dict[str, dict[str, float]] = json.loads(kept.read_text())
    return made


def report(found: list[dict[str, dict[str, float]]]) -> None:
    """Lifts over the plain tower; one of ``measure`` a seed."""
    plain = {f: np.mean([x[NONE.name][f] for x in found]) for f in (*FIGURES, "auc")}
    print("| ranker | AUC | " + " | ".join(FIGURES.values()) + " |\n|---|---|" + "---|" * len(FIGURES))
    print(f"| none | {plain['auc']:.4f} | " + " | ".join(f"{plain[f]:.4f}" for f in FIGURES) + " |")
    titles = {v.name: v.title for v in VARIANTS if v is not NONE} | {ORACLE: "the oracle"}
    for name, title in titles.items():
        cells = []
        for figure in ("auc", *FIGURES):
            pairs = [(x[name][figure], x[NONE.name][figure]) for x in found]
            if figure == "auc":
                cells.append("{:+.4f} [{:+.4f}, {:+.4f}]".format(*paired_t([a - b for a, b in pairs])))
            else:
                cells.append("{:+.2f} % [{:+.2f}, {:+.2f}]".format(*paired_t([100 * (a / b - 1) for a, b in pairs])))
        print(f"| {title} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/lift"), help="where what is made is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of cities, IDs and trainings")
    parser.add_argument("--requests", type=int, default=10_000, help="of each city (default: %(default)s)")
    parser.add_argument("--tower", default="twin", help="of all rankers (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=1, help="passes of each training (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help="keep lines in results/lift.csv")
    args = parser.parse_args()
    found = []
    for seed in args.seeds:
        place = city(args.out / f"{seed}-{args.requests}-{args.epochs}", seed, args.requests, args.epochs)
        found.append(measure(place, args.tower, seed))
    about = {"tower": args.tower, "requests": args.requests, "epochs": args.epochs}
    lines = [
        {"seed": seed, "ranker": name, **about, **{f: round(figures[f], 5) for f in ("auc", *FIGURES)}}
        for seed, of in zip(args.seeds, found, strict=True)
        for name, figures in of.items()
    ]
    if args.save:
        keep("lift.csv", lines, KEY)
    report(found)


if __name__ == "__main__":
    main()
