"""Heads of several objectives against models of one each, in the simulated city, whose oracle knows all of the truth.

    python benchmarks/bench_objectives.py --seeds 0 1 2 3 4 --save

Each seed is a city with orders, and the training's seed. On each these rankers are trained, all alike but for this:

    click, order   one label each
    clicked        an order, learned of clicked candidates alone: what a conversion rate is usually learned of
    shared         click, order and amount on one bottom; mmoe and ple: the same with experts
    esmm           as shared, p(order) = p(click) p(order | click); esmm-ple: on PLE

Measured on the test split, of the last checkpoint: AUC of clicks and of orders, the AUC weighted by amount, what is
expected by the oracle of the ten first of each request by predicted order (by click where that is all) and by predicted
amount: orders a place and amount a request; and calibration over all impressions, clicked or not, in twenty parts of
equal size by prediction: mean |predicted - true| of p(order) and of p(order | click), by the oracle's probabilities.
The latter is predicted as p(order) / p(click), at most 1; of models of one label by the two.

Prints means over seeds and, against ``order`` and ``click``, paired differences with 95 % intervals over seeds.
``--save`` keeps a line a seed and ranker in results/objectives.csv.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from placerank.benchmarks.results_file import keep
from placerank.data.batches.loader import SampleLoader
from placerank.data.city.oracle import Oracle
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.evaluation.paired import mean_and_spread, paired_t
from placerank.rankers.dense import RankerConfig
from placerank.rankers.objectives import ObjectivesConfig
from placerank.training.inference import load_ranker
from placerank.training.metrics import amount_auc, auc, first_places
from placerank.training.predictions import Predictions, predict
from placerank.training.runtime import runtime
from placerank.training.train import TrainConfig, train

THREE = ["label", "order", "gmv"]
RANKERS: dict[str, dict[str, Any]] = {
    "click": {"labels": ["label"]},
    "order": {"labels": ["order"]},
    "clicked": {"labels": ["order"]},
    "shared": {"labels": THREE},
    "mmoe": {"labels": THREE, "heads": "mmoe"},
    "ple": {"labels": THREE, "heads": "ple"},
    "esmm": {"labels": THREE, "esmm": True},
    "esmm-ple": {"labels": THREE, "esmm": True, "heads": "ple"},
}
FIGURES = {
    "auc_click": "AUC of clicks",
    "auc_order": "AUC of orders",
    "auc_gmv": "AUC weighted by amount",
    "orders": "orders a place of the first 10",
    "gmv": "amount of the first 10 by order",
    "gmv_by_amount": "the same by amount",
    "order_ece": "ECE of orders",
    "conversion_ece": "ECE of orders after a click",
}
KEY = ("seed", "ranker", "requests", "tower", "epochs")
_PARTS = 20


class Truth:
    """What the oracle knows of scored rows; arrays [N] in their order.

    Attributes:
        click, conversion: probabilities; amount: expected of an order.
    """

    def __init__(self, raw: Path, data: Path, p: Predictions) -> None:
        items = pq.read_table(data / "catalog.parquet", columns=["item_id"])["item_id"].to_numpy()[p.item_row]
        users = self._users(raw, data)[p.user_index]
        oracle = Oracle(raw)
        where = p.lat.astype(np.float64), p.lon.astype(np.float64)
        self.click = oracle.probability(users, items, p.time, *where)
        self.conversion = oracle.conversion(users, items, *where)
        self.amount = oracle.amount(users, items)

    def _users(self, raw: Path, data: Path) -> NDArray[np.int64]:
        """Raw ids by index among all users: those of the requests that the raw table has at that moment and place."""
        shown = pq.read_table(raw / "interactions.parquet", columns=["user_id", "timestamp", "item_id"])
        seconds = shown["timestamp"].cast(pa.timestamp("s", "UTC")).cast(pa.int64()).to_numpy()
        by_time = np.argsort(seconds, kind="stable")
        sorted_time, user = seconds[by_time], shown["user_id"].to_numpy()[by_time]
        item = shown["item_id"].to_numpy()[by_time]
        ids = pq.read_table(data / "catalog.parquet", columns=["item_id"])["item_id"].to_numpy()
        found: dict[int, int] = {}
        for batch in SampleLoader(data, "test", 65_536):
            index, time = batch.user_index.numpy(), batch.time.numpy()
            of = batch.request.numpy()
            rows = {int(r): ids[i] for r, i in zip(of[::-1], batch.item.numpy()[::-1], strict=True)}
            for r, (i, t) in enumerate(zip(index.tolist(), time.tolist(), strict=True)):
                if i not in found:
                    low, high = np.searchsorted(sorted_time, [t, t + 1])
                    here = user[low:high][item[low:high] == rows[r]]
                    if len(set(here.tolist())) == 1:
                        found[i] = int(here[0])
        out = np.zeros(max(found) + 1, np.int64)
        out[list(found)] = list(found.values())
        return out


def city(folder: Path, seed: int, requests: int) -> tuple[Path, dict[str, Path]]:
    """A raw folder, and it prepared: as it is, and with clicks for weights."""
    raw = folder / "raw"
    named: dict[str, Any] = {"labels": ["order"], "amount": "gmv", "history_length": 30}
    if not raw.exists():
        simulate(SimulateConfig(out=raw, seed=seed, requests=requests, orders=0.3))
    if not (folder / "whole").exists():
        prepare(PrepareConfig(input=raw, out=folder / "whole", **named))
    if not (folder / "clicked").exists():
        weighted = folder / "weighted"
        shutil.copytree(raw, weighted, dirs_exist_ok=True)
        shown = pq.read_table(raw / "interactions.parquet")
        shown = shown.append_column("clicked", pa.array(shown["label"].to_numpy().astype(np.float64)))
        pq.write_table(shown, weighted / "interactions.parquet")
        (weighted / "manifest.json").unlink()
        prepare(PrepareConfig(input=weighted, out=folder / "clicked", weight="clicked", **named))
    return raw, {"whole": folder / "whole", "clicked": folder / "clicked"}


def scored(data: Path, run: Path, name: str, seed: int, args: argparse.Namespace) -> tuple[Predictions, float]:
    """The test split by a ranker, trained where it isn't; and processor seconds of the training."""
    start = time.process_time()
    if not (run / "done").exists():
        ranker = RankerConfig(tower=args.tower, objectives=ObjectivesConfig(**RANKERS[name]))
        epochs, size = args.epochs, 1024
        train(
            TrainConfig(
                data=data, run=run, ranker=ranker, seed=seed, epochs=epochs, batch_size=size, patience=0, overwrite=True
            )
        )
        (run / "done").write_text(f"{time.process_time() - start:.1f}")
    with runtime(0) as rt:
        loaded = load_ranker(run, rt, checkpoint="latest")
        loader = SampleLoader(data, "test", 4096)
        found = predict(loaded.score(), loader, outcomes=loaded.inputs.outcomes).sort()
    return found, float((run / "done").read_text())


def sigmoid(logit: NDArray[Any]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 1 / (1 + np.exp(-logit.astype(np.float64)))
    return found


def ece(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """Mean |predicted - true| of parts of equal size by prediction."""
    parts = np.array_split(np.argsort(predicted, kind="stable"), _PARTS)
    return float(sum(abs(predicted[rows].mean() - true[rows].mean()) * len(rows) for rows in parts) / len(predicted))


def measure(name: str, p: Predictions, truth: Truth, click: NDArray[Any] | None) -> dict[str, float]:
    """Figures of a ranker; ``click``: logits of the click model, for those of an order alone."""
    assert p.amount is not None
    first = RANKERS[name]["labels"][0]
    labels, logits = {first: p.label} | p.labels, {first: p.logit} | p.logits
    found: dict[str, float] = {}
    if "label" in logits:
        found["auc_click"] = auc(labels["label"], logits["label"])
    order = logits.get("order", logits.get("label"))
    assert order is not None
    if name != "clicked":
        found["auc_order"] = auc(labels["order"], order)
        found["auc_gmv"] = amount_auc(p.amount, order if p.log_amount is None else p.log_amount)
        expected = truth.click * truth.conversion
        if "order" in logits:
            found["order_ece"] = ece(sigmoid(order), expected)
        found["orders"] = first_places(p.request, order, expected).a_place
        found["gmv"] = first_places(p.request, order, expected * truth.amount).a_request
        if p.log_amount is not None:
            found["gmv_by_amount"] = first_places(p.request, p.log_amount, expected * truth.amount).a_request
    conversion = None
    if name == "clicked":
        conversion = sigmoid(order)
    elif "order" in logits:
        of = logits.get("label", click)
        assert of is not None
        conversion = np.minimum(sigmoid(order) / sigmoid(of), 1.0)
    if conversion is not None:
        found["conversion_ece"] = ece(conversion, truth.conversion)
    return found


def best(p: Predictions, truth: Truth) -> dict[str, float]:
    """What ordering by the truth brings."""
    assert p.amount is not None
    order = truth.click * truth.conversion
    return {
        "auc_click": auc(p.label, truth.click),
        "auc_order": auc(p.labels["order"], order),
        "auc_gmv": amount_auc(p.amount, order * truth.amount),
        "orders": first_places(p.request, order, order).a_place,
        "gmv": first_places(p.request, order, order * truth.amount).a_request,
        "gmv_by_amount": first_places(p.request, order * truth.amount, order * truth.amount).a_request,
        "order_ece": 0.0,
        "conversion_ece": 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/bench_objectives.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("runs/objectives"), help="where what is made is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of cities and trainings")
    parser.add_argument("--requests", type=int, default=102_000, help="of each city (default: %(default)s)")
    parser.add_argument("--tower", default="twin", help="of all rankers (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=1, help="passes of each training (default: %(default)s)")
    parser.add_argument("--rankers", nargs="+", choices=list(RANKERS), default=list(RANKERS), help="default: all")
    parser.add_argument("--save", action="store_true", help="keep lines in results/objectives.csv")
    args = parser.parse_args()
    lines: list[dict[str, Any]] = []
    for seed in args.seeds:
        folder = args.out / f"{seed}-{args.requests}"
        raw, data = city(folder, seed, args.requests)
        truth, click = None, None
        for name in dict.fromkeys(["click", *args.rankers]):  # what others are compared with is always there
            run = folder / f"{args.tower}-{args.epochs}" / name
            p, seconds = scored(data["clicked" if name == "clicked" else "whole"], run, name, seed, args)
            about = {"seed": seed, "requests": args.requests, "tower": args.tower, "epochs": args.epochs}
            if truth is None:
                truth, click = Truth(raw, data["whole"], p), p.logit
                lines.append({**about, "ranker": "oracle", "cpu_s": "", **best(p, truth)})
            found = measure(name, p, truth, click)
            figures = {figure: found.get(figure, "") for figure in FIGURES}
            lines.append({**about, "ranker": name, "cpu_s": round(seconds, 1), **figures})
            print(seed, name, {k: round(v, 5) for k, v in found.items()}, f"{seconds:.0f} s", flush=True)
        if args.save:
            keep("objectives.csv", lines, KEY)
    report(lines)


def report(lines: list[dict[str, Any]]) -> None:
    """Means and spreads, and paired differences."""
    by = {name: [x for x in lines if x["ranker"] == name] for name in ("oracle", *RANKERS)}
    print("| ranker | " + " | ".join(FIGURES.values()) + " | processor seconds |")
    print("|---|" + "---|" * (len(FIGURES) + 1))
    for name, rows in by.items():
        cells = []
        for figure in (*FIGURES, "cpu_s"):
            values = [row[figure] for row in rows if row[figure] != ""]
            mean, spread = mean_and_spread(values) if values else (0.0, 0.0)
            cells.append(f"{mean:.4f} ± {spread:.4f}" if values else "")
        print(f"| {name} | " + " | ".join(cells) + " |")
    for figure, against in (
        ("auc_click", "click"), ("auc_order", "order"), ("auc_gmv", "order"), ("orders", "order"), ("gmv", "order"),
        ("order_ece", "order"), ("conversion_ece", "clicked"), ("conversion_ece", "order"),
    ):  # fmt: skip
        print(f"{FIGURES[figure]}, less that of {against}:")
        for name in RANKERS:
            of = {row["seed"]: row[figure] for row in by[against] if row[figure] != ""}
            gaps = [x[figure] - of[x["seed"]] for x in by[name] if x[figure] != "" and x["seed"] in of]
            if name != against and gaps:
                found = paired_t(gaps)
                print(f"  {name}: {found.mean:+.5f} ({found.low:+.5f} to {found.high:+.5f}), {len(gaps)} seeds")


if __name__ == "__main__":
    main()
