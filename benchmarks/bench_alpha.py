"""What ReST's alpha tells of an item: its spread beside that of random vectors, its rank beside the item's clicks.

    placerank prepare --input DATASETS/foursquare_nyc --out runs/alpha/foursquare_nyc
    python benchmarks/bench_alpha.py --data runs/alpha/foursquare_nyc --seeds 2 --save

Alpha (equation 10; ``SpatialContrast.alpha``) is to weigh items whose vector is weak, and those that were seldom chosen
should be. On each prepared folder DIN is trained with each seed in three ways:

    contrast    the contrast alone, as ReST is by default
    warm-up     the paper's whole
    faint       the contrast at a weight of 1e-6, so that it can't hide what clicks make of vectors

A training goes on where it stopped, or is done. Each checkpoint that it left is measured, one a pass, or with ``--run``
those of a run of one's own. The same 1 - (cosine + 1) / 2 is taken with other things than the paper's centres, over the
items that have one: random vectors instead of the items', the mean of the other items of the category or the brand, as
they are or weighted by training positives, the warm-up's output, centres of the item vectors themselves.

Prints standard deviation over items and Spearman's correlation with an item's training positives: means over seeds, and
their standard deviations. By chance the correlation of N items is 0 ± 1 / sqrt(N - 1). ``--save`` keeps a line for each
seed in benchmarks/results/alpha.csv. Shapes: N items, D columns.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from placerank.benchmarks.results_file import keep
from placerank.embeddings.centres import Centres
from placerank.embeddings.shards import CheckpointTables
from placerank.rankers.dense import DensePart, RankerConfig
from placerank.rankers.final_vectors import ITEM_FINAL, FinalVectors
from placerank.rankers.plugins.rest import ContrastItems, RestConfig, rest_preset
from placerank.training.checkpoint import load, saved_steps
from placerank.training.identity import Identity
from placerank.training.inference import open_checkpoint, read_config
from placerank.training.inputs import read_inputs
from placerank.training.run_files import CHECKPOINTS
from placerank.training.train import TrainConfig, train

TRAININGS = {
    "contrast": RestConfig(enabled=True),
    "warm-up": rest_preset("rest"),
    "faint": RestConfig(enabled=True, weight=1e-6),
}
FIGURES = ("std", "spearman")


def distance(vectors: Tensor, others: Tensor) -> Tensor:
    """1 - (cosine + 1) / 2 of rows [N, D]: float32 [N]; NaN where one of them is."""
    return 1 - (F.cosine_similarity(vectors.float(), others.float(), dim=1) + 1) / 2


def mean_of_others(vectors: Tensor, group: Tensor, weight: Tensor) -> Tensor:
    """Direction of the weighted mean of the unit vectors of an item's group, without its own: float64 [N, D].

    Args:
        vectors: [N, D].
        group: int64 [N], 0 where unknown.
        weight: of each item, whole numbers [N].

    Returns:
        NaN where the group is unknown, or its others weigh nothing.
    """
    weight = weight.double()
    unit = F.normalize(vectors.double(), dim=1) * weight[:, None]
    groups = int(group.max()) + 1 if len(group) else 0
    total = unit.new_zeros(groups).index_add_(0, group, weight)[group] - weight
    summed = unit.new_zeros(groups, unit.shape[1]).index_add_(0, group, unit)[group] - unit
    return summed.masked_fill(((group == 0) | (total == 0))[:, None], torch.nan)


@torch.no_grad()
def distances(run: Path, step: int) -> tuple[int, Tensor, dict[str, Tensor]]:
    """What alpha and its like are at a checkpoint, for the items that have an attribute.

    Returns:
        Passes done, training positives int64 [N], and by name [N], NaN where an item has none.

    Raises:
        FileNotFoundError, ValueError: as ``read_config`` and ``open_checkpoint``; or a run without alpha.
    """
    config = read_config(run)
    rest = config.ranker.rest
    if not (rest.enabled and rest.contrast and rest.align):
        raise ValueError(f"{run} has no alpha: train with rest.enabled, rest.align, and something to contrast")
    inputs = read_inputs(config.data, config.features, config.ranker)
    path, saved = open_checkpoint(run, str(step), Identity.of(inputs, config.ranker))
    part = DensePart(inputs.features, config.ranker)
    load(path, {"model": {"dense": part.state_dict()}})
    scorer, contrast = part.eval().scorer, part.contrast
    assert contrast is not None
    catalog, tables = inputs.catalog(torch.device("cpu")), CheckpointTables(path)

    found = catalog.rows(torch.arange(catalog.items))
    used = (found.attributes > 0).any(dim=1)  # row 0, no item, has none
    rows = found.attributes[used]
    vectors = torch.cat([*FinalVectors(tables, scorer, catalog, config.data).blocks(ITEM_FINAL, catalog.items)])
    vectors = vectors[used, : scorer.items.dim]
    whole = {name: next(tables.blocks(name, tables.shape(name)[0])) for name in scorer.items.attributes}
    attributes = torch.stack([table[rows[:, i]].float() for i, table in enumerate(whole.values())], dim=1)
    positives = torch.from_numpy(inputs.read_items(["positives"])["positives"].to_numpy().astype("int64"))[used]

    items = ContrastItems(vectors, rows, attributes, found.place[used], used.nonzero().flatten())
    noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(config.seed))
    out = {"alpha": contrast.alpha(items), "alpha of random vectors": contrast.alpha(items._replace(vectors=noise))}
    for i, name in enumerate(scorer.items.attributes):
        for how, weight in {"": torch.ones_like(positives), ", by positives": positives}.items():
            out[f"others of the {name}{how}"] = distance(vectors, mean_of_others(vectors, rows[:, i], weight))
    if scorer.items.warm_up is not None:
        out["warm-up's output"] = distance(vectors, scorer.items.warm_up.content(attributes, rows > 0))
    centres = Centres(rest.centres, vectors.shape[1])
    centres.refresh(vectors)
    out["centres of item vectors"] = distance(vectors, centres.nearest(vectors))
    return saved["epoch"], positives, out


def lines(training: str, run: Path) -> Iterator[dict[str, Any]]:
    """A line for each checkpoint of a run and each thing to compare with that three items or more have."""
    config = read_config(run)
    about = {"dataset": config.data.name, "training": training, "seed": config.seed}
    for step in saved_steps(run / CHECKPOINTS):
        passes, positives, found = distances(run, step)
        for name, values in found.items():
            there = values.isfinite()
            x, clicks = values[there].double(), positives[there]
            if len(x) > 2:
                rank = float(spearmanr(x, clicks).statistic)
                told = {"items": len(x), "mean": float(x.mean()), "std": float(x.std()), "spearman": rank}
                yield about | {"passes": passes, "step": step, "measure": name} | told


def summary(found: list[dict[str, Any]]) -> str:
    """A Markdown table: means over seeds, ± their standard deviation where there are several."""
    key = ("dataset", "training", "passes", "measure")
    out = ["| " + " | ".join((*key, "seeds", "items", *FIGURES)) + " |", "|" + "---|" * (len(key) + 2 + len(FIGURES))]
    for values in dict.fromkeys(tuple(line[k] for k in key) for line in found):
        here = [line for line in found if tuple(line[k] for k in key) == values]
        cells = [*map(str, values), str(len(here)), f"{here[0]['items']:,}"]
        for figure, form in zip(FIGURES, (".3f", "+.3f"), strict=True):
            x = [line[figure] for line in here]
            cells.append(format(statistics.mean(x), form) + (f" ± {statistics.stdev(x):.3f}" if len(x) > 1 else ""))
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="folders that `placerank prepare` made")
    parser.add_argument("--run", type=Path, nargs="+", default=[], help="runs with ReST, to be measured as they are")
    parser.add_argument("--seeds", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("--passes", type=int, default=2, help="over the training samples (default: 2)")
    parser.add_argument("--work", type=Path, default=Path("runs/alpha/runs"), help="where runs are kept")
    parser.add_argument("--save", action="store_true", help="keep the lines in results/alpha.csv")
    args = parser.parse_args()
    if not args.data and not args.run:
        parser.error("give --data, --run, or both")

    runs = [(run.name, run) for run in args.run]
    for data in args.data:
        for seed in range(args.seeds):
            for name, rest in TRAININGS.items():
                run, ranker = args.work / data.name / f"{name}-{seed}", RankerConfig(tower="din", rest=rest)
                train(TrainConfig(data=data, run=run, ranker=ranker, epochs=args.passes, seed=seed, resume=True))
                runs.append((name, run))
    found = [line for name, run in runs for line in lines(name, run)]
    print(summary(found))
    if args.save:
        keep("alpha.csv", found, key=("dataset", "training", "seed", "passes", "measure"))


if __name__ == "__main__":
    main()
