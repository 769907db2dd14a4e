"""OneRec: a mixture of experts beside dense layers of the same work, and preference alignment by a ranker.

    python -m placerank.benchmarks.bench_onerec --data DATASETS/foursquare_nyc --city --save

For each dataset, ``rankers/generative/onerec.py`` on the semantic IDs of the papers' tables, a seed after the other,
with experts (2 of 8), with dense layers of as many columns as a row passes, and with experts in the lazy decoder of one
set of keys and values. Prints nats a test visit and the balance
of the experts: rows of the one with most, by the mean, in the worst layer. 40 seconds of one core a pass on New York.

``--city`` simulates a city for each seed, where the true probability of a click is known, trains the default ranker on
what was shown and OneRec on what was clicked, and aligns OneRec with the ranker, by policy optimisation and by DPO, all
by ``placerank train`` (``--preference.ranker``), a pass at most; the controls get the ranker's rewards in another order
within each request. Prints the true probability of a click on the ten best within reach of each test request, and
Hit@10 there of what was clicked. Some 25 minutes of one core a city.

``--speed`` is OneRec-V2's lazy decoder beside the full one on the first of the data, untrained: parameters of what
reads visits and writes IDs, processor time of a training step of 512 visits, and of the scores of all items for 16
requests; rounds in turn. A minute of one core.

What is trained is kept in ``--out`` and not trained again; ``--save`` writes results/onerec.csv beside other lines.
"""

import argparse
import math
import time
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from placerank.benchmarks import generator
from placerank.benchmarks.papers.cells import Budget, Workplace
from placerank.benchmarks.papers.grids import HGIT
from placerank.benchmarks.results_file import keep
from placerank.data.batches.features import FeatureConfig
from placerank.data.batches.semantic_features import SemanticFeatures
from placerank.data.batches.sequences import SequenceBatch, SequenceLoader
from placerank.data.city.oracle import Oracle
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.manifest import whole_file
from placerank.evaluation.paired import Interval, paired_bootstrap, paired_t
from placerank.rankers.dense import RankerConfig
from placerank.rankers.generative.config import OneRecConfig, PreferenceConfig
from placerank.rankers.generative.decoding import Lists, best
from placerank.rankers.generative.experts import Experts
from placerank.rankers.generative.index import Index
from placerank.rankers.generative.model import PlaceFacts, Questions
from placerank.rankers.generative.onerec import OneRec
from placerank.rankers.generative.preference import Reward
from placerank.rankers.generative.reach import Near
from placerank.rankers.generative_ranker import expand, gather
from placerank.reports.progress import tracked
from placerank.training import preferences
from placerank.training.inference import load_ranker
from placerank.training.model import OptimizerConfig
from placerank.training.preferences import load_reward
from placerank.training.runtime import Runtime, runtime
from placerank.training.tasks import visit_loader
from placerank.training.train import TrainConfig
from placerank.training.train import train as train_ranker

COLUMNS = 16  # of the rows of items and users
BATCH, RATE, WARM_UP = 512, 1e-3, 50
SPEED_STEPS, SCORED = 4, 16
TOGETHER = 64  # targets of a user that share a stretch
VARIANTS: dict[str, dict[str, Any]] = {
    "experts": {},
    "dense": {"experts": 1, "active": 1},
    "lazy": {"lazy": 1},
}
CITY: dict[str, Any] = {"items": 1_000, "users": 1_000, "requests": 10_000, "cities": 3}
RANKER_EPOCHS, CLICKS = 2, 3_000
REACH_KM, TOP = 10.0, 10  # of the simulated city's lists
ONEREC = RankerConfig(kind="onerec")
REQUESTS, EVERY, ALIGNED_RATES = 64, 60, OptimizerConfig(dense_lr=2e-4, table_lr=0.01)
ALIGNED: dict[str, tuple[Literal["policy", "dpo"], float, bool]] = {
    "policy, weight 2": ("policy", 2.0, False),
    "policy, weight 5": ("policy", 5.0, False),
    "policy, weight 5, shuffled rewards": ("policy", 5.0, True),
    "dpo, weight 5": ("dpo", 5.0, False),
    "dpo, weight 5, shuffled rewards": ("dpo", 5.0, True),
}
_KEY = ("what", "dataset", "variant", "seed", "passes", "measure")
Line = dict[str, Any]


def line_of(
    what: str,
    dataset: str,
    variant: str,
    seed: int | str,
    passes: int,
    measure: str,
    asked: int,
    found: Interval | float,
) -> Line:
    """A line of the file; without an interval its ends are empty."""
    value, low, high = found if isinstance(found, Interval) else (found, math.nan, math.nan)
    about = {"what": what, "dataset": dataset, "variant": variant, "seed": seed, "passes": passes, "measure": measure}
    ends = {"value": value, "low": low, "high": high}
    line = about | {"asked": asked} | {k: "" if math.isnan(x) else round(float(x), 5) for k, x in ends.items()}
    print(line, flush=True)
    return line


class Trainee(nn.Module):
    """The model and its tables.

    Args:
        prepared: a prepared folder.
        tokens: semantic IDs of its items.
        config: sizes.
    """

    def __init__(self, prepared: Path, tokens: Path, config: OneRecConfig) -> None:
        super().__init__()
        catalog = pq.read_table(prepared / "catalog.parquet")
        semantic = SemanticFeatures.load(tokens, catalog["item_id"])
        users = pq.read_metadata(prepared / "users.parquet").num_rows
        self.config, index = config, Index.of_tokens(semantic)
        self.model = OneRec(config, PlaceFacts.of(catalog, semantic), index, COLUMNS, COLUMNS)
        self.item, self.user = nn.Embedding(len(catalog), COLUMNS), nn.Embedding(users, COLUMNS)
        for table in (self.item, self.user):
            nn.init.uniform_(table.weight, -0.1, 0.1)

    def inputs(self, batch: SequenceBatch) -> tuple[Questions, Tensor, Tensor]:
        q = Questions.of(batch)
        return q, self.item(q.items), self.user(batch.user[q.stretch])

    def log_p(self, batch: SequenceBatch, q: Questions) -> Tensor:
        """Of what is asked on the batch's visits."""
        log_p: Tensor = self.model(q, self.item(q.items), self.user(batch.user[q.stretch]))
        return log_p


def loader(prepared: Path, split: str, config: OneRecConfig, **more: Any) -> SequenceLoader:
    return SequenceLoader(prepared, split, BATCH, history=config.history, together=TOGETHER, **more)


def train(trainee: Trainee, prepared: Path, seed: int, passes: int, file: Path) -> None:
    """Trains it, or reads what was kept."""
    if file.exists():
        trainee.load_state_dict(torch.load(file))
        trainee.eval()
        return
    samples = loader(prepared, "train", trainee.config, shuffle=True, seed=seed)
    steps = samples.steps_per_epoch * passes
    optimizer = torch.optim.AdamW(trainee.parameters(), RATE)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / WARM_UP, max(0.02, 1 - s / steps)))
    trainee.train()
    for number in range(passes):
        for batch in tracked(samples, f"{file.stem}, pass {number + 1}"):
            own = trainee.log_p(batch, Questions.of(batch))
            loss = -own[own.isfinite()].mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
            optimizer.step()
            rate.step()
    trainee.eval()
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as tmp:
        torch.save(trainee.state_dict(), tmp)


@torch.no_grad()
def tested(trainee: Trainee, prepared: Path) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Nats of each test visit, which of them are first visits, and rows of each expert by layer."""
    layers = [module for module in trainee.modules() if isinstance(module, Experts)]
    loads = [torch.zeros(len(layer.bias)) for layer in layers]
    hooks = [layer.register_forward_pre_hook(partial(_count, load)) for layer, load in zip(layers, loads, strict=True)]
    nats, first = [], []
    for batch in loader(prepared, "test", trainee.config):
        nats.append(-trainee.log_p(batch, Questions.of(batch))[: batch.valid])
        first.append(batch.visits[: batch.valid] == 0)
    for hook in hooks:
        hook.remove()
    return torch.cat(nats), torch.cat(first), loads


def _count(load: Tensor, layer: Experts, x: tuple[Tensor]) -> None:
    asked, _ = layer.route(x[0].flatten(0, -2))
    load += asked.flatten().bincount(minlength=len(load))


def experts(place: Workplace, seeds: int, passes: int) -> list[Line]:
    """The variants on one dataset, each beside the dense one of its seed."""
    prepared, tokens, lines = place.prepared(), place.tokens(HGIT, seed=0), []
    nats: dict[tuple[str, int], Tensor] = {}
    first = torch.zeros(0, dtype=torch.bool)

    def add(variant: str, seed: int | str, measure: str, asked: int, found: Interval | float) -> None:
        lines.append(line_of("experts", place.data.name, variant, seed, passes, measure, asked, found))

    for seed in range(seeds):
        for variant, changes in VARIANTS.items():
            torch.manual_seed(seed)
            trainee = Trainee(prepared, tokens, OneRecConfig(**changes))
            train(trainee, prepared, seed, passes, place.folder / "onerec" / f"{variant}-{seed}, {passes} passes.pt")
            nats[variant, seed], first, loads = tested(trainee, prepared)
            can = nats[variant, seed].isfinite()
            for measure, some in (("nats", can), ("nats of first visits", can & first)):
                add(variant, seed, measure, int(some.sum()), float(nats[variant, seed][some].mean()))
            balance = max(float(load.max() / load.mean()) for load in loads)
            add(variant, seed, "balance", int(loads[0].sum()), balance)
    for variant in [name for name in VARIANTS if name != "dense"]:
        for measure, among in (("nats - dense", first | True), ("nats of first visits - dense", first)):
            means = []
            for seed in range(seeds):
                more = (nats[variant, seed] - nats["dense", seed])[among]
                more = more[more.isfinite()]
                means.append(paired_bootstrap(more.numpy()))
                add(variant, seed, measure, len(more), means[-1])
            add(variant, "all", measure, seeds, paired_t([x.mean for x in means]))
    return lines


def speed(place: Workplace, rounds: int) -> list[Line]:
    """The full decoder and lazy ones, in turn: parameters, and processor time a step and a batch of scores."""
    prepared, tokens, lines = place.prepared(), place.tokens(HGIT, seed=0), []
    configs = {"full": OneRecConfig(), "lazy, 1 set": OneRecConfig(lazy=1), "lazy, 2 sets": OneRecConfig(lazy=2)}
    trainees, batches, asked, optimizers = {}, {}, {}, {}
    for name, config in configs.items():
        torch.manual_seed(0)
        trainees[name] = Trainee(prepared, tokens, config)
        optimizers[name] = torch.optim.AdamW(trainees[name].parameters(), RATE)
        of = iter(loader(prepared, "train", config, shuffle=True, seed=0))
        batches[name] = [next(of) for _ in range(SPEED_STEPS + 1)]
        alone = SequenceLoader(prepared, "test", SCORED, history=config.history, together=1)
        asked[name] = next(iter(alone))

    def step(name: str, batch: SequenceBatch) -> None:
        own = trainees[name].log_p(batch, Questions.of(batch))
        optimizers[name].zero_grad()
        (-own[own.isfinite()].mean()).backward()
        optimizers[name].step()

    def steps(name: str) -> float:
        """Seconds a step; the first of the batches warms up."""
        trainees[name].train()
        step(name, batches[name][0])
        start = time.process_time()
        for batch in batches[name][1:]:
            step(name, batch)
        return (time.process_time() - start) / SPEED_STEPS

    @torch.no_grad()
    def scores(name: str) -> float:
        model = trainees[name].eval().model
        for _ in range(2):  # the first warms up
            start = time.process_time()
            model.score(*trainees[name].inputs(asked[name]))
        return time.process_time() - start

    def add(variant: str, measure: str, asked: int, found: Interval | float) -> None:
        lines.append(line_of("lazy", place.data.name, variant, "", 0, measure, asked, found))

    for name, trainee in trainees.items():
        model = trainee.model
        count = sum(x.numel() for part in (model.encoder, model.decoder) for x in part.parameters())
        add(name, "parameters of encoder and decoder", 1, count)
    for measure, timed in (
        (f"seconds a step of {BATCH} visits", steps),
        (f"seconds of {SCORED} requests' scores", scores),
    ):
        found: dict[str, list[float]] = {name: [] for name in trainees}
        for _ in range(rounds):
            for name in trainees:
                found[name].append(timed(name))
        for name, of_rounds in found.items():
            add(name, measure, rounds, float(np.median(of_rounds)))
            if name != "full":
                ratio = np.divide(of_rounds, found["full"])
                spread = Interval(float(np.median(ratio)), float(ratio.min()), float(ratio.max()))
                add(name, f"{measure}, over the full decoder's (all rounds)", rounds, spread)
    return lines


class Town:
    """A simulated city, and what asks its oracle.

    Args:
        place: whose data are a folder of ``simulate``.
    """

    def __init__(self, place: Workplace) -> None:
        self.prepared, self.oracle = place.prepared(), Oracle(place.data)
        catalog = pq.read_table(self.prepared / "catalog.parquet", columns=["item_id", "lat", "lon"])
        lat, lon = (catalog[name].to_numpy().astype(np.float64) for name in ("lat", "lon"))
        self.item_id = catalog["item_id"].fill_null(0).to_numpy()
        users = pq.read_table(self.prepared / "users.parquet", columns=["user_id"])
        self.user_id = users["user_id"].fill_null(0).to_numpy()
        self.near = Near(np.arange(1, len(lat)), lat[1:], lon[1:], REACH_KM)

    def true_probability(self, batch: SequenceBatch, lists: Lists) -> Tensor:
        of = torch.repeat_interleave(lists.offsets.diff())
        asker = batch.user[batch.stretch][of]
        return torch.from_numpy(
            self.oracle.probability(
                self.user_id[asker], self.item_id[lists.items], batch.target_time[of], batch.lat.double()[of],
                batch.lon.double()[of],
            )
        )  # fmt: skip

    def tested(self, run: Path) -> dict[str, Tensor]:
        """Of known users' requests: mean true probability of the lists and of their first item; of clicks: hits.

        Of the last checkpoint, for the first ``CLICKS`` of the test split, in the order of its users. A request of
        several clicks has several hits and one list.
        """
        found: dict[str, list[Tensor]] = {"top": [], "first": [], "hit": [], "known": [], "new": []}
        asked_before: set[int] = set()
        with runtime(0) as rt:
            ranker = load_ranker(run, rt, checkpoint="latest")
            batches = visit_loader(ranker.inputs, "test", BATCH, rt)
            for batch in tracked(islice(batches, -(-CLICKS // BATCH)), run.name, unit="batches"):
                allowed = self.near.within(batch.lat.double().numpy(), batch.lon.double().numpy())
                asked = expand(ranker.catalog, gather(ranker.catalog, batch))
                lists = best(ranker.model.module.score(asked, allowed=allowed), allowed, TOP)
                p, counts = self.true_probability(batch, lists), lists.offsets.diff()
                of = torch.repeat_interleave(counts)
                sums = torch.zeros(len(counts), dtype=p.dtype).index_add(0, of, p)
                hits = torch.zeros(len(counts)).index_add(0, of, (lists.items == batch.target[of]).float())
                new = []
                for request in batch.request.tolist():
                    new.append(request not in asked_before)
                    asked_before.add(request)
                of_row = (sums / counts.clamp(min=1), p[lists.offsets[:-1].clamp(max=len(p) - 1)], hits,
                          batch.user[batch.stretch] > 0, torch.tensor(new) & (counts > 0))  # fmt: skip
                for name, values in zip(found, of_row, strict=True):
                    found[name].append(values[: batch.valid])
        whole = {name: torch.cat(parts) for name, parts in found.items()}
        lists_of = whole["known"] & whole["new"]
        return {"top": whole["top"][lists_of], "first": whole["first"][lists_of], "hit": whole["hit"]}


def shuffled_reward(config: PreferenceConfig, rt: Runtime, data: Path) -> Reward:
    """The rewards of ``load_reward``, those of each request in another order."""
    reward = load_reward(config, rt, data)

    def shuffled(batch: SequenceBatch, lists: Lists) -> Tensor:
        of = torch.repeat_interleave(lists.offsets.diff())
        order = torch.randperm(len(of))
        return reward(batch, lists)[order[of[order].argsort(stable=True)]]

    return shuffled


def alignment(out: Path, seed: int) -> list[Line]:
    """Of one simulated city: before, after each way of aligning, and the controls."""
    folder = out / f"city-{seed}"
    if not (folder / "raw").exists():
        simulate(SimulateConfig(out=folder / "raw", seed=seed, **CITY))
    place = Workplace(folder / "raw", folder, Budget())
    prepared, tokens, town = place.prepared(), place.tokens(HGIT, seed=seed), Town(place)
    trained = generator.trained(prepared, tokens, seed, folder / "onerec", ONEREC)
    judge = TrainConfig(data=prepared, run=folder / "ranker", epochs=RANKER_EPOCHS, seed=seed, resume=True)
    train_ranker(judge)
    before = town.tested(trained)
    lines: list[Line] = []

    def add(name: str, found: dict[str, Tensor]) -> None:
        for measure, own in found.items():
            lines.append(line_of("alignment", "city", name, seed, 1, measure, len(own), float(own.mean())))
            if name != "before":
                mean = float(before[measure].mean())
                gain = Interval(*(x / mean for x in paired_bootstrap((own - before[measure]).numpy())))
                lines.append(line_of("alignment", "city", name, seed, 1, f"{measure}, gain", len(own), gain))

    add("before", before)
    for name, (how, weight, shuffled) in ALIGNED.items():
        config = TrainConfig(
            data=prepared,
            run=folder / name,
            features=FeatureConfig(semantic_ids=tokens),
            ranker=ONEREC,
            warm_start=trained,
            preference=PreferenceConfig(ranker=judge.run, how=how, weight=weight),
            optimizer=ALIGNED_RATES,
            batch_size=REQUESTS,
            epochs=1,
            validate_every=EVERY,
            seed=seed,
            resume=True,
        )
        with mock.patch.object(preferences, "load_reward", shuffled_reward) if shuffled else nullcontext():
            train_ranker(config)
        add(name, town.tested(config.run))
    return lines


def over_seeds(cities: list[Line], variant: str, measure: str) -> Line:
    gains = [x["value"] for x in cities if (x["variant"], x["measure"]) == (variant, f"{measure}, gain")]
    return line_of("alignment", "city", variant, "all", 1, f"{measure}, gain", len(gains), paired_t(gains))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m placerank.benchmarks.bench_onerec",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders in the schema of docs/data.md")
    parser.add_argument("--speed", type=int, default=0, metavar="ROUNDS", help="of the lazy decoder (default: 0)")
    parser.add_argument("--city", action="store_true", help="preference alignment in simulated cities")
    parser.add_argument("--out", type=Path, default=Path("runs/papers"), help="where what is made is kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=3, help="over the training visits (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help="write results/onerec.csv")
    args = parser.parse_args()

    torch.set_num_threads(1)

    def save(lines: list[Line]) -> None:
        if args.save:
            keep("onerec.csv", lines, _KEY, torch.device("cpu"))

    if args.speed:
        save(speed(Workplace(args.data[0], args.out / args.data[0].name, Budget()), args.speed))
        return
    for data in args.data:
        save(experts(Workplace(data, args.out / data.name, Budget()), args.seeds, args.passes))
    if args.city:
        cities = []
        for seed in range(args.seeds):
            cities += alignment(args.out, seed)
            save(cities)
        save([over_seeds(cities, name, measure) for name in ALIGNED for measure in ("top", "first", "hit")])


if __name__ == "__main__":
    main()
