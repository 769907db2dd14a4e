"""The generative ranker beside TWIN on the same candidates: which one to use for ranking what somebody else found.

    python -m placerank.benchmarks.bench_candidates --data DATASETS/foursquare_nyc DATASETS/context_trails_pj --save

Of each dataset and seed, TWIN at the default settings of ``placerank train`` with the same semantic IDs (and so with
AKT-Rec), and the generative ranker of ``bench_lists --generative``, on all candidates of the prepared test split: the
visit and those that ``prepare`` drew beside it, within reach. AUC over all candidates, NDCG@10 within requests, first
visits and repeats apart. Intervals of differences are over requests, drawn anew, in pairs. What is kept is not run
again. Check-ins alone, whose requests have one visit each.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from placerank.benchmarks import generator
from placerank.benchmarks.papers.cells import Budget, Workplace
from placerank.benchmarks.papers.grids import HGIT
from placerank.benchmarks.results_file import keep
from placerank.data.batches.features import FeatureConfig
from placerank.data.batches.loader import SampleLoader
from placerank.evaluation.paired import paired_bootstrap
from placerank.training.inference import load_ranker
from placerank.training.predictions import Predictions, predict
from placerank.training.runtime import runtime
from placerank.training.train import TrainConfig, train

BATCH = 4096
_DISCOUNT = 1 / np.log2(np.arange(10) + 2)
_KEY = ("dataset", "seed", "metric", "part")


def twin(prepared: Path, tokens: Path, seed: int, run: Path) -> Path:
    """The run folder; gone on with where it was cut off."""
    features = FeatureConfig(semantic_ids=tokens)
    return train(TrainConfig(data=prepared, run=run, features=features, seed=seed, keep_checkpoints=1, resume=True))


def scored(run: Path, file: Path) -> Predictions:
    """All candidates of the test split, by request and item."""
    if not file.exists():
        with runtime(0) as rt:
            ranker = load_ranker(run, rt)
            loader = SampleLoader(ranker.inputs.folder, "test", BATCH, shuffle=False)
            predict(ranker.score(), loader).sort().write(file)
    return Predictions.read(file)


def ndcg(p: Predictions) -> NDArray[np.float64]:
    """NDCG@10 of each request of one visit, in their order; ties count as the mean of their places."""
    starts = np.flatnonzero(np.diff(p.request, prepend=p.request[0] - 1))
    found = []
    for rows in np.split(np.arange(len(p)), starts[1:]):
        score = p.logit[rows]
        own = score[p.label[rows] > 0].max()
        above, tied = int((score > own).sum()), int((score == own).sum())
        places = np.arange(above, above + tied)
        found.append(float(_DISCOUNT[places[places < 10]].sum() / tied))
    return np.array(found)


def lines_of(dataset: str, seed: int, ours: Predictions, theirs: Predictions) -> list[dict[str, Any]]:
    """A line a metric and part: both, and the difference with its interval."""
    assert np.array_equal(ours.request, theirs.request) and np.array_equal(ours.item_row, theirs.item_row)
    mine, other = ndcg(ours), ndcg(theirs)
    first = ours.visits[ours.label > 0][np.unique(ours.request[ours.label > 0], return_index=True)[1]] == 0
    lines = []
    for part, inside in (("all", first | True), ("first visits", first), ("repeats", ~first)):
        found = paired_bootstrap(mine[inside] - other[inside])
        lines.append(
            {"metric": "ndcg@10", "part": part, "requests": int(inside.sum())}
            | {"generative": round(float(mine[inside].mean()), 5), "twin": round(float(other[inside].mean()), 5)}
            | {"difference": round(found.mean, 5), "low": round(found.low, 5), "high": round(found.high, 5)}
        )
    auc = [float(roc_auc_score(p.label, p.logit)) for p in (ours, theirs)]
    lines.append(
        {
            "metric": "auc",
            "part": "all",
            "requests": len(mine),
            "generative": round(auc[0], 5),
            "twin": round(auc[1], 5),
        }
        | {"difference": round(auc[0] - auc[1], 5), "low": "", "high": ""}
    )
    return [{"dataset": dataset, "seed": seed} | line for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m placerank.benchmarks.bench_candidates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the schema of docs/data.md")
    parser.add_argument("--out", type=Path, default=Path("runs/papers"), help="where what is made is kept")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of both (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help="write results/candidates.csv")
    args = parser.parse_args()
    for data in args.data:
        place = Workplace(data, args.out / data.name, Budget())
        for seed in range(args.seeds):
            made_of = place.prepared(), place.tokens(HGIT, seed=0), seed
            folder = args.out / data.name
            ours = scored(generator.trained(*made_of, folder / f"generative-{seed}"), folder / f"ours-{seed}.parquet")
            theirs = scored(twin(*made_of, folder / f"twin-{seed}"), folder / f"twin-{seed}.parquet")
            lines = lines_of(data.name, seed, ours, theirs)
            for x in lines:
                interval = f" ({x['low']} to {x['high']})" if x["low"] != "" else ""
                told = (
                    data.name,
                    seed,
                    x["metric"],
                    x["part"],
                    x["generative"],
                    x["twin"],
                    f"{x['difference']}{interval}",
                )
                print("| " + " | ".join(map(str, told)) + " |", flush=True)
            if args.save:
                keep("candidates.csv", lines, _KEY, torch.device("cpu"))


if __name__ == "__main__":
    main()
