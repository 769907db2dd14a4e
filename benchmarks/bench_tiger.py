"""Our TIGER beside cornac's: the same semantic IDs, sizes, visits and steps; how good lists are, how fast it trains.

    python -m placerank.benchmarks.bench_tiger --data DATASETS/foursquare_nyc --seeds 3 --save

A share of the users (20 %, drawn once), their visits prepared as always, HGIT's semantic IDs (3 x 64). Both sides: 64
columns, 4 heads of 16, 256 hidden columns, 2 + 2 layers, dropout 0.1, 20 visits, AdamW at a constant 1e-3, batches of
64 targets drawn one by one, the same number of passes, the last weights. Ours has the user's token, as published;
cornac leaves it out.

* ``lists``: NDCG@10 and Hit@10 over all items on the same test visits, by beams of 50 on both sides; the ratio with a
  95 % interval (visits drawn anew). A seed that is kept in the folder is not run again.
* ``speed``: targets a second of processor time in training, in turn, one thread: cornac's own loop, batches among it,
  and ours, the loader among it, at 20 and at 50 visits; batches of 256. Beside TIGER our default generative ranker of
  the same sizes, which reads a user once for many targets.

cornac runs in an environment of its own, which is made under ``--cache``. ``--save`` writes results/tiger.csv.
"""

import argparse
import itertools
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from placerank.benchmarks import generator
from placerank.benchmarks.bench_generative import Line, line
from placerank.benchmarks.papers.cells import Budget, Workplace
from placerank.benchmarks.papers.grids import HGIT
from placerank.benchmarks.results_file import keep
from placerank.benchmarks.throughput.environments import LISTS, environment
from placerank.data.batches.semantic_features import SemanticFeatures
from placerank.data.batches.sequences import ALL, SequenceBatch, SequenceLoader
from placerank.data.manifest import whole_file
from placerank.evaluation.lists import chosen
from placerank.rankers.generative.config import TigerConfig
from placerank.rankers.generative.decoding import beam
from placerank.rankers.generative.index import Index
from placerank.rankers.generative.model import Generator, GeneratorConfig, PlaceFacts, Questions
from placerank.rankers.generative.tiger import Tiger, user_tokens
from placerank.reports.progress import tracked
from placerank.training.runtime import keep_freed_memory

SIZES = TigerConfig(columns=64, heads=4, head_columns=16, hidden=256, layers=2)
RATE, DECAY, BATCH, FAST_BATCH = 1e-3, 1e-4, 64, 256
COLUMNS, TOGETHER = 16, 64  # of the default ranker's tables; its targets of a user that share a stretch
BEAMS, LISTED = 50, 10
OFTEN = 3  # times as many of our targets are timed, so that the clock shows steps and not how a pass begins
Ints = NDArray[np.int64]


class Trainee(nn.Module):
    """TIGER and its table of user tokens."""

    def __init__(self, prepared: Path, tokens: Path, visits: int) -> None:
        super().__init__()
        catalog = pq.read_table(prepared / "catalog.parquet")
        semantic = SemanticFeatures.load(tokens, catalog["item_id"], suffix=True)
        self.index, self.config = Index.of_tokens(semantic), replace(SIZES, visits=visits)
        d = self.config.columns
        self.model = Tiger(self.config, PlaceFacts.of(catalog, semantic), self.index, 0, d)
        self.user = nn.Embedding(self.config.user_tokens + 1, d, padding_idx=0)

    def inputs(self, batch: SequenceBatch) -> tuple[Questions, Tensor, Tensor]:
        q = Questions.of(batch)
        return (
            q,
            torch.zeros(len(q.items), 0),
            self.user(user_tokens(batch.user[batch.stretch], self.config.user_tokens)),
        )


class Default(nn.Module):
    """The default generative ranker of the same sizes, on as many visits."""

    def __init__(self, prepared: Path, tokens: Path, visits: int) -> None:
        super().__init__()
        catalog = pq.read_table(prepared / "catalog.parquet")
        semantic = SemanticFeatures.load(tokens, catalog["item_id"])
        sizes = {name: getattr(SIZES, name) for name in ("columns", "heads", "hidden", "layers", "dropout")}
        self.config = GeneratorConfig(**sizes, memory=visits, copied=visits)
        self.model = Generator(
            self.config, PlaceFacts.of(catalog, semantic), Index.of_tokens(semantic), COLUMNS, COLUMNS
        )
        self.item = nn.Embedding(len(catalog), COLUMNS)
        self.user = nn.Embedding(pq.read_metadata(prepared / "users.parquet").num_rows, COLUMNS)

    def inputs(self, batch: SequenceBatch) -> tuple[Questions, Tensor, Tensor]:
        q = Questions.of(batch)
        return q, self.item(q.items), self.user(batch.user[batch.stretch])


def stepper(trainee: Trainee | Default) -> Callable[[SequenceBatch], float]:
    """What trains it on a batch, and gives its loss."""
    optimizer = torch.optim.AdamW(trainee.parameters(), RATE, weight_decay=DECAY, fused=True)
    trainee.train()

    def step(batch: SequenceBatch) -> float:
        log_p = trainee.model(*trainee.inputs(batch))
        loss = -log_p[log_p.isfinite()].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def trained(prepared: Path, tokens: Path, visits: int, epochs: int, seed: int, file: Path) -> Trainee:
    """Trained, or read from the file where it was kept."""
    torch.manual_seed(seed)
    trainee = Trainee(prepared, tokens, visits)
    if file.exists():
        trainee.load_state_dict(torch.load(file))
        return trainee.eval()
    samples = SequenceLoader(prepared, "train", BATCH, history=visits, together=1, shuffle=True, seed=seed)
    step, start = stepper(trainee), time.process_time()
    for epoch in range(epochs):
        losses = [step(b) for b in tracked(samples, f"seed {seed}, pass {epoch + 1}")]
        print(f"pass {epoch + 1}: {np.mean(losses):.3f} nats a visit, {time.process_time() - start:.0f} s", flush=True)
    with whole_file(file) as tmp:
        torch.save(trainee.state_dict(), tmp)
    return trainee.eval()


@torch.no_grad()
def lists_of(trainee: Trainee, prepared: Path, wanted: Tensor) -> Ints:
    """Ten items for each wanted test visit, best first, [B, 10]."""
    parts = []
    batches = SequenceLoader(prepared, "test", FAST_BATCH, history=trainee.config.history, together=1)
    for batch, here in zip(batches, wanted.split(FAST_BATCH), strict=True):
        q, _, users = trainee.inputs(batch)
        here = nn.functional.pad(here, (0, len(batch) - len(here)))
        memory = trainee.model.memory(q.some(here), users[here])
        parts.append(beam(trainee.model, memory, trainee.index, beams=BEAMS, k=LISTED).items.view(-1, LISTED).numpy())
    return np.concatenate(parts)


def for_cornac(
    prepared: Path, tokens: Path, wanted: Tensor, folder: Path, batch: int
) -> tuple[Ints, NDArray[np.bool_]]:
    """Write what its worker reads; the wanted visits' items, and which of them are first visits."""
    seen: dict[str, list[Ints]] = {"user": [], "item": [], "time": []}
    for b in SequenceLoader(prepared, "train", 65_536, history=1):
        for name, column in (("user", b.user_index[b.stretch]), ("item", b.target), ("time", b.target_time)):
            seen[name].append(column[: b.valid].numpy())
    codes = SemanticFeatures.load(tokens, pq.read_table(prepared / "catalog.parquet")["item_id"]).codes
    s = SIZES
    sizes: dict[str, float] = {"d_model": s.columns, "d_ff": s.hidden, "num_heads": s.heads, "d_kv": s.head_columns}
    sizes |= {"layers": s.layers, "dropout": s.dropout, "learning_rate": RATE, "weight_decay": DECAY}
    folder.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {name: np.concatenate(parts) for name, parts in seen.items()}
    np.savez(folder / "train.npz", codes=codes, sizes=json.dumps(sizes | {"batch_size": batch}), **columns)
    histories, lengths, target, first = [], [], [], []
    for b, here in zip(SequenceLoader(prepared, "test", 256, history=ALL), wanted.split(256), strict=True):
        here = nn.functional.pad(here, (0, len(b) - len(here)))
        offsets, at = b.last(ALL)
        lengths.append(offsets.diff()[here].numpy())
        histories.append(b.item[at].numpy()[here.repeat_interleave(offsets.diff()).numpy()])
        target.append(b.target[here].numpy())
        first.append((b.visits == 0)[here].numpy())
    ends = np.cumsum(np.concatenate(lengths))
    np.savez(folder / "test.npz", offsets=np.append(0, ends), item=np.concatenate(histories))
    return np.concatenate(target), np.concatenate(first)


def gains(lists: Ints, target: Ints) -> dict[str, NDArray[np.float64]]:
    """Of each visit."""
    hit = lists == target[:, None]
    return {"NDCG@10": (hit / np.log2(np.arange(2, 2 + LISTED))).sum(1), "Hit@10": hit.sum(1).astype(float)}


def ratio(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[float, float, float]:
    """Of means, with a 95 % interval over visits."""
    rows = np.random.default_rng(0).integers(0, len(ours), (2000, len(ours)))
    with np.errstate(divide="ignore", invalid="ignore"):  # of rare hits some draws have none
        low, high = np.nanpercentile(ours[rows].mean(1) / theirs[rows].mean(1), [2.5, 97.5], method="nearest")
        return float(ours.mean() / theirs.mean()), float(low), float(high)


def lists(prepared: Path, tokens: Path, folder: Path, python: Path, args: argparse.Namespace) -> list[Line]:
    wanted = torch.from_numpy(chosen(SequenceLoader(prepared, "test", 256).rows, args.targets))
    target, first = for_cornac(prepared, tokens, wanted, folder, BATCH)
    found: dict[str, list[dict[str, NDArray[np.float64]]]] = {"ours": [], "cornac": []}
    for seed in range(args.seeds):
        trainee = trained(prepared, tokens, args.visits, args.epochs, seed, folder / f"ours-{seed}.pt")
        found["ours"].append(gains(lists_of(trainee, prepared, wanted), target))
        theirs = folder / f"cornac-{seed}.npy"
        if not theirs.exists():
            script = Path(__file__).parent / "peers" / LISTS["cornac-tiger"].script
            about = ["--visits", args.visits, "--epochs", args.epochs, "--seed", seed]
            subprocess.run([*map(str, [python, script, folder, *about])], check=True)
        found["cornac"].append(gains(np.load(theirs), target))
    lines = []
    data = f"{args.data.name}, {args.share:.0%} of users, {args.epochs} passes"
    for part, inside in (("all", first | True), ("first visits", first), ("repeats", ~first)):
        case = f"{data}, {part} ({int(inside.sum()):,} visits)"
        for metric in ("NDCG@10", "Hit@10"):
            each = {side: [x[metric][inside] for x in seeds] for side, seeds in found.items()}
            for side, values in each.items():
                lines.append(line("lists", case, f"{metric}, {side}", [float(x.mean()) for x in values], "", ""))
            # over seeds the same visits: each visit's mean
            both = [np.mean(values, axis=0) for values in each.values()]
            aim = "0.95" if (part, metric) == ("all", "NDCG@10") else ""
            made = line("lists", case, f"{metric}, ours / cornac's, 95 % over visits", [ratio(*both)[0]], "x", aim)
            _, low, high = ratio(*both)
            lines.append(made | {"lowest": f"{low:.4g}", "highest": f"{high:.4g}", "runs": args.seeds})
            print(f"    {low:.3f} to {high:.3f}")
    return lines


def speed(prepared: Path, tokens: Path, folder: Path, python: Path, args: argparse.Namespace) -> list[Line]:
    nothing = torch.zeros(SequenceLoader(prepared, "test", 256).rows, dtype=torch.bool)
    for_cornac(prepared, tokens, nothing, folder, FAST_BATCH)
    lines = []
    for visits, aim in ((20, "5"), (50, "12")):
        script = Path(__file__).parent / "peers" / LISTS["cornac-tiger"].script
        command = [python, script, folder, "--visits", visits, "--speed", args.timed]
        worker = subprocess.Popen([*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert worker.stdin is not None and worker.stdout is not None

        def theirs(worker: subprocess.Popen[str] = worker) -> float:
            print(file=worker.stdin, flush=True)
            told = worker.stdout.readline() if worker.stdout else ""
            if not told:
                raise SystemExit("cornac's worker ended")
            return float(told)

        def ours(trainee: Trainee | Default, together: int) -> float:
            step, history = stepper(trainee), trainee.config.history
            samples = SequenceLoader(prepared, "train", FAST_BATCH, history=history, together=together, shuffle=True)
            start, done = time.process_time(), 0
            for batch in itertools.islice(samples, -(-OFTEN * args.timed // FAST_BATCH)):
                step(batch)
                done += batch.valid
            return done / (time.process_time() - start)

        sides = {
            "cornac": theirs,
            "ours": lambda: ours(Trainee(prepared, tokens, visits), 1),  # noqa: B023
            "the default generative ranker": lambda: ours(Default(prepared, tokens, visits), TOGETHER),  # noqa: B023
        }
        found: dict[str, list[float]] = {name: [] for name in sides}
        for round_ in range(args.rounds + 1):
            for name, side in sides.items():
                told = side()
                if round_:  # the first round warms up
                    found[name].append(told)
        worker.stdin.close()
        worker.wait()
        case = f"{args.data.name}, {args.share:.0%} of users, {visits} visits"
        for name, values in found.items():
            lines.append(line("speed", case, f"{name}: targets/s", values, "1/s", ""))
        for name in [*sides][1:]:
            ratios = [a / b for a, b in zip(found[name], found["cornac"], strict=True)]
            lines.append(line("speed", case, f"{name}: times as fast as cornac's", ratios, "x", aim))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m placerank.benchmarks.bench_tiger",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="a folder in the schema of docs/data.md")
    parser.add_argument("--out", type=Path, default=Path("runs/tiger"), help="where what is made is kept")
    parser.add_argument("--share", type=float, default=0.2, help="of users (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=("lists", "speed"), default=("lists", "speed"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10, help="passes of both sides (default: %(default)s)")
    parser.add_argument("--visits", type=int, default=20, help="for the lists (default: %(default)s)")
    parser.add_argument("--targets", type=int, default=1000, help="test visits, drawn once (default: %(default)s)")
    parser.add_argument("--timed", type=int, default=1536, help="targets a round of the speed (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of the speed (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path(".cache/peers"), help="for cornac's environment")
    parser.add_argument("--save", action="store_true", help="keep the lines in results/tiger.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    folder = args.out / f"{args.data.name}-{args.share:g}"
    place = Workplace(generator.some_users(args.data, folder, args.share), folder, Budget())
    python = environment("cornac-tiger", args.cache, LISTS).absolute()
    prepared, tokens = place.prepared(), place.tokens(HGIT, seed=0)
    kept = folder / f"{args.epochs}-passes-{args.visits}-visits-{args.targets}-targets"
    for name in args.parts:
        part, where = {"lists": (lists, kept), "speed": (speed, folder / "speed")}[name]
        lines = part(prepared, tokens, where, python, args)
        if args.save:
            print(f"written: {keep('tiger.csv', lines, ('part', 'case', 'metric'), torch.device('cpu'))}")


if __name__ == "__main__":
    main()
