"""Decoding of semantic IDs: beams beside transformers' generate, exact scores beside cornac's, index, memory, reach.

    python benchmarks/bench_generative.py --parts index memory sums speed
    python benchmarks/bench_generative.py --data DATASETS/foursquare_nyc --save      # all parts; results/generative.csv

One thread; times are the thread's own, both sides in turn in one process, and ratios are of medians a seed. A model has
random weights: what is measured does not hang on what it has learned. TIGER's size: 4 + 4 layers, 128 columns, 6 heads
of 64, 1,024 hidden.

* ``speed``: transformers' ``generate`` with ``prefix_allowed_tokens_fn`` on the same T5 weights and tokens, its
  dictionary of prefixes made before the clock starts; with a reach set of the request's own the dictionary is the
  request's, as our tree is, and both are on the clock. ``whole`` is with the encoder, which is the same work on both
  sides, ``decoding`` without; ms are a request's. Lists and order are compared before anything is timed.
* ``cornac``: its TIGER's ``score_all_items`` on its own weights (it has to be installed, it is no dependency), at the
  batch size that is its default, against ``score`` of all items; scores are compared first. And our exact scores of
  what is within 2 km against our beams of 50 over all, for 16 requests together, without the encoder.
* ``memory``: one user, all items, in a process of its own: the peak beyond what it holds with model, items and tree.
* ``index``: 2.3 M items, 3 x 512 codes; bytes without the codes themselves (6 an item).
* ``lists``: for each reach so many lists of 10 at places of the data's visits, looked at again by distances of all
  items and the hours one by one. The data has no opening hours: they are made up here (one interval a day, a fifth past
  midnight, a tenth of the days closed, 5 % not known).
* ``sums``: the largest distance of the sum of probabilities from 1.
"""

import argparse
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from placerank.benchmarks.process_memory import process_memory, restart_peak
from placerank.benchmarks.results_file import keep
from placerank.benchmarks.t5 import TIGER, T5Tokens, of_stack, small_t5
from placerank.kernels.haversine import haversine_km
from placerank.rankers.generative.decoding import Softmax, beam, score
from placerank.rankers.generative.index import Index
from placerank.rankers.generative.layers import Memory
from placerank.rankers.generative.reach import WEEK, Allowed, Near, OpeningHours, everything, open_now
from placerank.training.runtime import keep_freed_memory

SMALL = {"columns": 32, "heads": 2, "head_columns": 16, "hidden": 64, "layers": 1}
PARTS = ("index", "memory", "sums", "speed", "cornac", "lists")
Line = dict[str, Any]


def line(part: str, case: str, metric: str, values: list[float], unit: str, aim: str) -> Line:
    """A figure over seeds or rounds."""
    told: Line = {"part": part, "case": case, "metric": metric, "median": f"{statistics.median(values):.4g}"}
    told |= {"lowest": f"{min(values):.4g}", "highest": f"{max(values):.4g}", "runs": len(values)}
    told |= {"unit": unit, "aim": aim}
    print(", ".join(f"{value}" for value in told.values()), flush=True)
    return told


def seconds(call: Callable[[], object]) -> float:
    """Of this thread."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def in_turn(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int, times: int = 3
) -> tuple[float, float]:
    """Medians in ms of both sides, ours ``times`` times as often; each once before the clock starts."""
    ours(), theirs()
    own: list[float] = []
    other: list[float] = []
    for _ in range(rounds):
        own += [seconds(ours) for _ in range(times)]
        other.append(seconds(theirs))
    return statistics.median(own) * 1e3, statistics.median(other) * 1e3


def made_up_codes(items: int, codes: int, seed: int) -> NDArray[np.int64]:
    """Skewed as those of tokenizers are: 3 levels, a quarter of the first level's codes used most."""
    rng = np.random.default_rng(seed)
    return np.stack([(rng.beta(1, 2, items) * codes).astype(np.int64), *rng.integers(0, codes, (2, items))], axis=1)


def speed(seeds: int, rounds: int) -> list[Line]:
    lines = []
    K = 256
    for length, beams, reach, requests, aim in (
        (80, 20, None, 1, "6"), (200, 50, None, 1, "15"), (200, 50, 1000, 1, "20"), (80, 20, None, 8, ""),
        (200, 50, None, 8, ""),
    ):  # fmt: skip
        found: dict[str, list[float]] = {}
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            model = T5Tokens(small_t5(vocabulary=1 + 3 * K, **TIGER, seed=seed), levels=3, codes=K)
            codes = np.unique(made_up_codes(5_000, K, seed), axis=0)
            index = Index(np.arange(len(codes)), codes, K)
            index.whole()
            tokens = torch.from_numpy(rng.integers(1, 1 + 3 * K, (requests, length)))
            rows = np.arange(len(codes)) if reach is None else rng.permutation(len(codes))[:reach]
            allowed = None if reach is None else everything(rows, requests)
            prefix = model.prefix_function(codes) if reach is None else None
            memory, encoded = model.memory(tokens), model.encoded(tokens)
            ours = partial(beam, model, memory, index, allowed, beams=beams, k=beams)
            theirs = partial(model.generate, tokens, codes[rows], beams, prefix)
            got, want = ours(), theirs()
            assert [tuple(codes[i]) for i in got.items.tolist()] == [ids for ids, _ in want], "other lists"

            def whole(model: T5Tokens = model, tokens: Tensor = tokens, rest: Callable[..., object] = ours) -> None:
                model.memory(tokens)
                rest()

            sides: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
                "whole": (whole, theirs), "decoding": (ours, partial(theirs, encoded=encoded)),
            }  # fmt: skip
            for name, pair in sides.items():
                own, other = in_turn(*pair, rounds)
                found.setdefault(f"{name}: times as fast", []).append(other / own)
                found.setdefault(f"{name}: ms", []).append(own / requests)
        case = f"{length} tokens, beam {beams}" + ("" if requests == 1 else f", {requests} requests together")
        case += "" if reach is None else f", own reach set of {reach:,}"
        for name, values in found.items():
            lines.append(
                line(
                    "speed", case, name, values, "ms" if name.endswith("ms") else "x", aim if "whole: t" in name else ""
                )
            )
    return lines


class Cornac:
    """cornac's TIGER with our decoding."""

    softmax: Softmax = "own"

    def __init__(self, model: Any) -> None:
        self.model, self.encoder, self.decoder = model, of_stack(model.encoder), of_stack(model.decoder)

    def embed(self, level: int, codes: Tensor) -> Tensor:
        return self.model.token_emb(codes.long() + self.model.offsets[level - 1])

    def logits(self, level: int, hidden: Tensor, nodes: Tensor, about: Tensor | None) -> Tensor:
        return self.model.heads[level - 1](hidden).log_softmax(dim=1)

    @torch.no_grad()
    def memory(self, tokens: Tensor) -> Memory:
        rows = self.encoder(self.model.token_emb(tokens))
        lengths = torch.full((len(tokens),), tokens.shape[1])
        return Memory.of_padded(rows, lengths, self.model.bos[0].expand(len(tokens), -1))


class Places(NamedTuple):
    """A dataset's items: places in degrees [N], codes [N, 3] of 64 a level, and places of visits [V]."""

    lat: NDArray[np.float64]
    lon: NDArray[np.float64]
    codes: NDArray[np.int64]
    visits: NDArray[np.int64]


def read(folder: Path, seed: int) -> Places:
    """Codes by residual k-means on places and categories, so that near and alike items share prefixes."""
    from sklearn.cluster import KMeans

    items = pq.read_table(folder / "items.parquet")
    lat, lon = (items[name].to_numpy() for name in ("lat", "lon"))
    kinds = {kind: at for at, kind in enumerate(sorted({path[0] for path in items["category"].to_pylist() if path}))}
    x = np.zeros((len(items), 2 + len(kinds)))
    x[:, 0], x[:, 1] = (lat - lat.mean()) * 111 / 3, (lon - lon.mean()) * 84 / 3
    for row, path in enumerate(items["category"].to_pylist()):
        if path:
            x[row, 2 + kinds[path[0]]] = 1
    codes = []
    for level in range(3):
        fitted = KMeans(64, n_init=1, random_state=seed + level).fit(x)
        codes.append(fitted.labels_)
        x = x - fitted.cluster_centers_[fitted.labels_]
    row_of = {item: row for row, item in enumerate(items["item_id"].to_pylist())}
    visited = pq.read_table(folder / "interactions.parquet", columns=["item_id"])["item_id"].to_pylist()
    return Places(lat, lon, np.stack(codes, axis=1).astype(np.int64), np.array([row_of[item] for item in visited]))


def cornac(data: Path, seeds: int, rounds: int) -> list[Line]:
    try:
        from cornac.models.tiger.tiger import TIGERSeq2Seq
    except ImportError as error:
        raise SystemExit(
            f"the part cornac needs cornac 3.0.1 and powerlaw, in an environment of your own: {error}"
        ) from error
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        theirs = TIGERSeq2Seq([64] * 3, dropout=0.0).eval()
        model, places, rng = Cornac(theirs), read(data, seed), np.random.default_rng(seed)
        index = Index(np.arange(len(places.codes)), places.codes, 64)
        tokens = torch.from_numpy(rng.integers(1, 1 + 3 * 64, (1, 60)))
        table, mask = torch.from_numpy(places.codes), torch.ones(1, 60)

        def exact() -> Tensor:
            # without what tells items of one code apart, which cornac's scores don't either
            return score(model, model.memory(tokens), index, last_mile=None)  # noqa: B023

        def one_by_one() -> NDArray[np.float32]:
            return theirs.score_all_items(tokens, mask, table, 2048)  # noqa: B023

        whole = index.whole().levels[-1].children.diff()
        shares = torch.repeat_interleave(whole.float().log(), whole.long())
        gap = (exact()[0] + shares - torch.from_numpy(one_by_one())[index.items.astype(np.int64)]).abs().max()
        found.setdefault("scores: largest difference", []).append(float(gap))
        own, other = in_turn(exact, one_by_one, rounds)
        found.setdefault("all items: times as fast", []).append(other / own)
        found.setdefault("all items: ms", []).append(own)
        memory = model.memory(torch.from_numpy(rng.integers(1, 1 + 3 * 64, (16, 60))))
        at = places.visits[rng.integers(0, len(places.visits), 16)]
        near = Near(np.arange(len(places.lat)), places.lat, places.lon, 2.0).within(places.lat[at], places.lon[at])
        for softmax in ("own", "allowed"):
            model.softmax = softmax
            within, beams = in_turn(
                partial(score, model, memory, index, near),
                partial(beam, model, memory, index, beams=50, k=50),
                rounds,
                1,
            )
            found.setdefault(f"within 2 km / beam 50, softmax {softmax}", []).append(within / beams)
        found.setdefault("items within 2 km", []).append(len(near.items) / 16)
    aims = {"all items: times as fast": "25", "scores: largest difference": "1e-5"}
    return [
        line(
            "cornac",
            f"{data.name}, 3 x 64 codes, 60 tokens",
            name,
            values,
            "",
            aims.get(name, "2.5" if "/" in name else ""),
        )
        for name, values in found.items()
    ]


def peak(items: int, seed: int, out: Any) -> None:
    torch.set_num_threads(1)
    model = T5Tokens(small_t5(vocabulary=1 + 3 * 256, **TIGER, seed=seed), levels=3, codes=256)
    index = Index(np.arange(items), made_up_codes(items, 256, seed), 256)
    memory = model.memory(torch.randint(1, 700, (1, 200)))
    score(model, memory, Index(np.arange(9), made_up_codes(9, 256, seed), 256))  # compiles
    index.whole()
    gc.collect()
    restart_peak()
    before = process_memory("VmRSS")
    score(model, memory, index)
    out.put((process_memory("VmHWM") - before) / 2**20)


def memory(seeds: int) -> list[Line]:
    context = multiprocessing.get_context("spawn")
    lines = []
    for items in (3_000, 30_000, 300_000):
        found = []
        for seed in range(seeds):
            out = context.Queue()
            process = context.Process(target=peak, args=(items, seed, out))
            process.start()
            found.append(out.get(timeout=900))
            process.join()
        lines.append(
            line(
                "memory",
                f"{items:,} items",
                "peak beyond model and index",
                found,
                "MiB",
                "256" if items == 30_000 else "",
            )
        )
    return lines


def index(seeds: int) -> list[Line]:
    N, K, n = 2_300_000, 512, 10_000
    found: dict[str, list[float]] = {}
    Index(np.arange(9), made_up_codes(9, K, 0), K).tries(everything(np.arange(9), 1))  # compiles
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        codes, items = made_up_codes(N + n, K, seed), rng.permutation(N + n)
        built: list[Index] = []
        found.setdefault("build: s", []).append(seconds(lambda: built.append(Index(items[:N], codes[:N], K))))  # noqa: B023
        it = built[0]
        found.setdefault("the whole tree, once asked for: s", []).append(seconds(it.whole))
        found.setdefault("bytes an item beside the codes", []).append(it.nbytes / N - 6)
        found.setdefault("10,000 adds: ms", []).append(1e3 * seconds(lambda: it.add(items[N:], codes[N:])))  # noqa: B023
        gone = rng.permutation(N + n)[:n]
        found.setdefault("10,000 removes: ms", []).append(1e3 * seconds(lambda: it.remove(gone)))  # noqa: B023
        sets = [everything(rng.choice(it.items, 3_000, replace=False), 1) for _ in range(40)]
        times = [1e3 * seconds(partial(it.tries, some)) for some in sets]
        found.setdefault("tree of 3,000 items: ms", []).append(statistics.median(times))
    aims = {
        "build: s": "3",
        "bytes an item beside the codes": "20",
        "10,000 adds: ms": "50",
        "10,000 removes: ms": "50",
    }
    aims["tree of 3,000 items: ms"] = "0.5"
    return [
        line("index", "2,300,000 items, 3 x 512 codes", name, x, "", aims.get(name, "")) for name, x in found.items()
    ]


def sums(seeds: int) -> list[Line]:
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        model = T5Tokens(small_t5(vocabulary=1 + 3 * 64, **TIGER, seed=seed), levels=3, codes=64)
        it = Index(np.arange(5_000), made_up_codes(5_000, 64, seed), 64)
        rng = np.random.default_rng(seed)
        memory = model.memory(torch.from_numpy(rng.integers(1, 1 + 3 * 64, (4, 60))))
        model.softmax = "existing"
        off = (score(model, memory, it).double().exp().sum(1) - 1).abs().max()
        found.setdefault("all items, softmax over what exists", []).append(float(off))
        model.softmax = "allowed"
        log_p = score(model, memory, it, everything(rng.permutation(5_000)[:700], 4))
        off = (log_p.view(4, -1).double().exp().sum(1) - 1).abs().max()
        found.setdefault("700 reachable, softmax over those", []).append(float(off))
    return [line("sums", name, "distance from 1", values, "", "1e-4") for name, values in found.items()]


def made_up_hours(items: int, seed: int) -> pa.Array:
    rng = np.random.default_rng(seed)
    rows: list[list[dict[str, int]] | None] = []
    for _ in range(items):
        days: list[dict[str, int]] = []
        for day in range(7):
            if rng.random() > 0.1:
                opens = day * 1440 + int(rng.integers(300, 900))
                closes = opens + int(rng.integers(900, 1_200) if rng.random() < 0.2 else rng.integers(200, 540))
                days.append({"open": opens, "close": closes if closes <= WEEK else closes - WEEK})
        rows.append(days if rng.random() > 0.05 else None)
    return pa.array(rows, pa.list_(pa.struct([("open", pa.int16()), ("close", pa.int16())])))


def is_open(days: list[dict[str, int]] | None, minute: int) -> bool:
    """By hand: every minute of an interval is walked around the week."""
    if days is None:
        return True
    return any((minute - d["open"]) % WEEK < ((d["close"] - d["open"]) % WEEK or WEEK) for d in days)


def lists(data: Path, seeds: int, count: int) -> list[Line]:
    lines = []
    for case in ("1 km", "2 km", "5 km", "10 km", "2 km and open now"):
        km = float(case.split()[0])
        outside, shut, short, made, full = 0, 0, 0, 0, 0
        for seed in range(seeds):
            places, rng = read(data, seed), np.random.default_rng(seed)
            model = T5Tokens(small_t5(vocabulary=1 + 3 * 64, **SMALL, seed=seed), levels=3, codes=64)
            model.softmax = "allowed"
            it = Index(np.arange(len(places.lat)), places.codes, 64)
            near = Near(np.arange(len(places.lat)), places.lat, places.lon, km)
            column = made_up_hours(len(places.lat), seed)
            hours, by_hand = OpeningHours.of_column(column), column.to_pylist()
            for _ in range(-(-count // (100 * seeds))):
                at = places.visits[rng.integers(0, len(places.visits), 100)]
                lat, lon = places.lat[at] + rng.normal(0, 0.003, 100), places.lon[at] + rng.normal(0, 0.004, 100)
                allowed: Allowed = near.within(lat, lon)
                local = torch.from_numpy(rng.integers(1_300_000_000, 1_400_000_000, 100))
                if "open" in case:
                    allowed = open_now(allowed, hours, local[allowed.requests])
                memory = model.memory(torch.from_numpy(rng.integers(1, 1 + 3 * 64, (100, 15))))
                got = beam(model, memory, it, allowed, beams=20, k=10)
                away = haversine_km(
                    *(torch.from_numpy(x) for x in (lat[:, None], lon[:, None], places.lat, places.lon))
                )
                for b in range(100):
                    items = got.items[got.offsets[b] : got.offsets[b + 1]]
                    may = away[b] <= km * (1 + 1e-9)
                    outside += int((~may[items]).sum())
                    if "open" in case:
                        minute = int(local[b]) // 60 + 3 * 1440
                        shut += sum(not is_open(by_hand[i], minute % WEEK) for i in items.tolist())
                        reachable = may.nonzero().squeeze(1).tolist()
                        there = sum(is_open(by_hand[i], minute % WEEK) for i in reachable)
                    else:
                        there = int((away[b] <= km * (1 - 1e-9)).sum())
                    short += len(items) < min(10, there)
                    made += 1
                    full += len(items) == 10
                    assert len(set(items.tolist())) == len(items)
        told = {"items out of reach": outside, "items closed": shut, "lists shorter than they need be": short}
        lines += [line("lists", f"{made:,} lists within {case}", name, [n], "", "0") for name, n in told.items()]
        lines.append(line("lists", f"{made:,} lists within {case}", "lists of 10", [full / made], "share", ""))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a dataset's folder, for the parts cornac and lists")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lists", type=int, default=10_000, help="lists a reach, of all seeds together")
    parser.add_argument("--save", action="store_true", help="keep the lines in results/generative.csv")
    args = parser.parse_args()
    if args.data is None and {"cornac", "lists"} & set(args.parts):
        parser.error("the parts cornac and lists need --data")
    torch.set_num_threads(1)
    keep_freed_memory()
    parts: dict[str, Callable[[], list[Line]]] = {
        "index": lambda: index(args.seeds),
        "memory": lambda: memory(args.seeds),
        "sums": lambda: sums(args.seeds),
        "speed": lambda: speed(args.seeds, args.rounds),
        "cornac": lambda: cornac(args.data, args.seeds, args.rounds),
        "lists": lambda: lists(args.data, args.seeds, args.lists),
    }
    for name in args.parts:
        lines = parts[name]()
        if args.save:
            keep("generative.csv", lines, ("part", "case", "metric"), torch.device("cpu"))


if __name__ == "__main__":
    main()
