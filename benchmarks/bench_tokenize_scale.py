"""HGIT on 2.3 million items: seconds and peak memory beside FAISS and scikit-learn, from the same store on disk.

    python benchmarks/bench_tokenize_scale.py                      100,000 items, prints
    python benchmarks/bench_tokenize_scale.py --full --rounds 3    2,325,266 items x 384, and keeps the figures

Items are simulated (cities, districts, categories, brands; no names), and so are their embeddings: sums of a vector for
each of these and of noise whose spectrum falls off, of length 1, streamed into an embedding store on disk (3.6 GB
at full size). Making it goes on where it was stopped, and it is kept in --work.

Every side learns 3 levels of 512 codes from as many random items (131,072) and encodes all of them, block by block, in
a process of its own, in turn, --threads threads each. The store is read once before each, so that all find it in the
page cache. Seconds are from opening the store to the last block of codes, on the clock and of the processor (of all
threads: what is left to compare on a machine that others use); memory is the peak resident size of the process, imports
included. What is explained of the variance, on the same 65,536 items, says what the seconds buy:

    hgit             HGIT with its default settings; its first code is of attributes, so it explains less by design
    res_kmeans       placerank's Res-KMeans
    faiss            FAISS ResidualQuantizer, greedy (beam 1), as all others here are
    faiss beam 5     the same with its default beam
    sklearn          scikit-learn MiniBatchKMeans on the residuals, level by level
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from placerank.benchmarks.process_memory import process_memory
from placerank.benchmarks.results_file import keep
from placerank.data.manifest import whole_file
from placerank.reports.progress import tracked
from placerank.tokenization.codes.tokenizers import HGIT, ResidualKMeans, Tokenizer, TokenizerConfig
from placerank.tokenization.text.store import EmbeddingStore, EmbeddingWriter

FULL, DIM = 2_325_266, 384
LEVELS, CODES = 3, 512
BLOCK = 65_536
MEASURED = 65_536  # items whose reconstruction is measured
GIB = 2**30
SIDES = ("hgit", "res_kmeans", "faiss", "faiss beam 5", "sklearn")

# The simulated country: values of each attribute, and the length of its part of an embedding.
CITIES, DISTRICTS, CATEGORIES, KINDS, BRANDS = 300, 20, 12, 15, 5_000
LENGTHS = {"city": 0.5, "district": 0.4, "category": 0.5, "kind": 0.5, "brand": 0.5, "noise": 0.6}


def draw_items(rows: int) -> dict[str, np.ndarray]:
    """Attributes of the items as numbers: the first cities, kinds and brands have the most; a brand of -1 is none."""
    rng = np.random.default_rng(0)
    of = lambda count, power: rng.choice(count, rows, p=_zipf(count, power))  # noqa: E731
    city, kind = of(CITIES, 1.0), of(CATEGORIES * KINDS, 0.7)
    district = city * DISTRICTS + of(DISTRICTS, 0.5)
    brand = np.where(rng.random(rows) < 0.3, of(BRANDS, 0.9), -1)
    centre = np.stack([rng.uniform(25, 48, CITIES), rng.uniform(80, 125, CITIES)], axis=1)
    place = centre.repeat(DISTRICTS, 0) + rng.normal(0, 0.15, (CITIES * DISTRICTS, 2))
    lat, lon = (place[district] + rng.normal(0, 0.02, (rows, 2))).T
    return {"city": city, "district": district, "kind": kind, "brand": brand, "lat": lat, "lon": lon}


def _zipf(count: int, power: float) -> np.ndarray:
    weight = np.arange(1, count + 1) ** -power
    return np.asarray(weight / weight.sum())


def items_table(drawn: dict[str, np.ndarray]) -> pa.Table:
    """The items in placerank's schema, as far as a tokenizer looks at them."""
    rows = len(drawn["city"])
    words = lambda name, values: pa.DictionaryArray.from_arrays(  # noqa: E731
        pa.array(values, pa.int32()), pa.array([f"{name} {i}" for i in range(int(values.max()) + 1)])
    ).cast(pa.string())
    kind = drawn["kind"]
    path = np.stack([kind // KINDS, CATEGORIES + kind], axis=1).reshape(-1)
    categories = pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * 2, words("category", path))
    brand = words("brand", np.maximum(drawn["brand"], 0))
    brand = pa.compute.if_else(pa.array(drawn["brand"] >= 0), brand, None)
    return pa.table(
        {
            "item_id": np.arange(rows),
            "category": categories,
            "brand": brand,
            "lat": drawn["lat"],
            "lon": drawn["lon"],
            "province": words("province", drawn["city"] // 10),
            "city": words("city", drawn["city"]),
            "district": words("district", drawn["district"]),
        }
    )


def make_input(folder: Path, rows: int, dim: int) -> None:
    """Items and embeddings, as far as they are missing."""
    drawn = draw_items(rows)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "items.parquet").is_file():
        with whole_file(folder / "items.parquet") as tmp:
            pq.write_table(items_table(drawn), tmp)
    g = torch.Generator().manual_seed(1)
    counts = {"city": CITIES, "district": CITIES * DISTRICTS, "category": CATEGORIES, "kind": CATEGORIES * KINDS}
    parts = {
        name: torch.randn(count, dim, generator=g) * (LENGTHS[name] / dim**0.5)
        for name, count in (counts | {"brand": BRANDS + 1}).items()
    }
    parts["brand"][-1] = 0  # of items without one
    spectrum = torch.arange(1, dim + 1) ** -0.5
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=g)).Q * (spectrum / spectrum.norm())[:, None]
    writer = EmbeddingWriter(folder / "embeddings", pa.array(np.arange(rows)), dim, made_from={"simulated": 1})
    for shard in tracked(writer.missing(), "embeddings", unit="shards"):
        at = writer.rows_of(shard)
        number = {name: torch.from_numpy(drawn[name][at]) for name in ("city", "district", "kind", "brand")}
        number["category"] = number["kind"] // KINDS
        g.manual_seed(1_000 + shard)
        x = torch.randn(at.stop - at.start, dim, generator=g) @ turn * LENGTHS["noise"]
        for name, table in parts.items():
            x += table[number[name]]
        writer.write(shard, torch.nn.functional.normalize(x, dim=1))


Encode = Callable[[Tensor, int], Tensor]
"""Embeddings [n, D] and the row of the first: codes int64 [n, L]."""


def fit_ours(kind: type[Tokenizer], store: EmbeddingStore, items: pa.Table, work: Path) -> tuple[Encode, Tensor]:
    """As ``placerank tokenize`` does it, with a state to resume from after each round."""
    (work / "fit.safetensors").unlink(missing_ok=True)
    tokenizer = kind(TokenizerConfig(levels=LEVELS, codes=CODES))
    tokenizer.fit(store, items if kind.needs_items else None, checkpoint=work / "fit.safetensors", progress=True)

    def encode(x: Tensor, first: int) -> Tensor:
        return tokenizer.encode_block(x, items.slice(first, len(x)) if kind.needs_items else None)

    return encode, tokenizer.state["codebooks"]


def _sample(store: EmbeddingStore) -> Tensor:
    rows = torch.randperm(len(store), generator=torch.Generator().manual_seed(0))[: TokenizerConfig().sample_rows]
    return store.rows(rows)


def fit_faiss(store: EmbeddingStore, beam: int, threads: int) -> tuple[Encode, Tensor]:
    """FAISS's residual quantizer; training uses at most 256 vectors a centre by itself, which is the sample's size."""
    import faiss

    faiss.omp_set_num_threads(threads)
    bits = CODES.bit_length() - 1
    quantizer = faiss.ResidualQuantizer(store.dim, LEVELS, bits)
    quantizer.max_beam_size = beam
    quantizer.use_beam_LUT = 1  # its faster way
    quantizer.train(_sample(store).numpy())
    books = faiss.vector_to_array(quantizer.codebooks).reshape(LEVELS, CODES, store.dim)

    def encode(x: Tensor, first: int) -> Tensor:
        packed = quantizer.compute_codes(x.numpy())
        wide = np.zeros((len(x), 8), np.uint8)
        wide[:, : packed.shape[1]] = packed
        word = wide.view("<u8")[:, 0]
        codes = [(word >> np.uint64(bits * level)) & np.uint64(CODES - 1) for level in range(LEVELS)]
        return torch.from_numpy(np.stack(codes, axis=1).astype(np.int64))

    return encode, torch.from_numpy(books)


def fit_sklearn(store: EmbeddingStore) -> tuple[Encode, Tensor]:
    """MiniBatchKMeans with its defaults but for larger batches, on what the levels before leave over."""
    from sklearn.cluster import MiniBatchKMeans

    left, levels = _sample(store).numpy(), []
    for _ in range(LEVELS):
        level = MiniBatchKMeans(CODES, batch_size=4096, n_init=1, random_state=0).fit(left)
        left -= level.cluster_centers_[level.labels_]
        levels.append(level)

    def encode(x: Tensor, first: int) -> Tensor:
        left, codes = x.numpy().copy(), []
        for level in levels:
            codes.append(level.predict(left))
            left -= level.cluster_centers_[codes[-1]]
        return torch.from_numpy(np.stack(codes, axis=1).astype(np.int64))

    return encode, torch.from_numpy(np.stack([level.cluster_centers_ for level in levels]))


def _blocks(store: EmbeddingStore) -> Iterator[tuple[int, Tensor]]:
    first = 0
    for x in store.chunks(BLOCK):
        yield first, x
        first += len(x)


def run_side(side: str, folder: Path, threads: int) -> dict[str, float]:
    """Fit and encode; seconds, peak memory and what is explained."""
    torch.set_num_threads(threads)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    start, busy = time.perf_counter(), time.process_time()
    store = EmbeddingStore.open(folder)
    if side in ("hgit", "res_kmeans"):
        items = pq.read_table(folder / "items.parquet")
        encode, books = fit_ours(HGIT if side == "hgit" else ResidualKMeans, store, items, work)
    elif side == "sklearn":
        encode, books = fit_sklearn(store)
    else:
        encode, books = fit_faiss(store, 1 if side == "faiss" else 5, threads)
    fitted = time.perf_counter()
    for first, x in tracked(_blocks(store), f"encode {side}", -(-len(store) // BLOCK), "blocks"):
        np.save(work / f"codes-{first // BLOCK:05d}.npy", encode(x, first).numpy().astype(np.int32))
    done, busy = time.perf_counter(), time.process_time() - busy
    peak = process_memory("VmHWM")
    rows = min(MEASURED, len(store))
    x, codes = store.rows(torch.arange(rows)), torch.from_numpy(np.load(work / "codes-00000.npy")).long()[:rows]
    lost = (x - sum(books[level][codes[:, level]] for level in range(LEVELS))).square().sum(1).mean()
    return {
        "fit": fitted - start,
        "encode": done - fitted,
        "seconds": done - start,
        "cpu_seconds": busy,
        "peak_bytes": peak,
        "explained": float(1 - lost / (x - x.mean(0)).square().sum(1).mean()),
    }


def _read_through(folder: Path) -> None:
    for path in sorted(folder.rglob("*.parquet")):
        with open(path, "rb", buffering=0) as f:
            while f.read(1 << 24):
                pass


def measure(folder: Path, sides: list[str], rounds: int, threads: int) -> dict[str, list[dict[str, float]]]:
    """Every side once a round, each in its own process."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    environment = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    for number in range(rounds):
        for side in sides:
            _read_through(folder)
            command = [sys.executable, __file__, "--side", side, "--work", str(folder), "--threads", str(threads)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | environment).stdout
            result: dict[str, float] = json.loads(output)
            found[side].append(result)
            print(
                f"round {number + 1}  {side:12} {result['seconds']:7.1f} s (fit {result['fit']:.1f}, encode "
                f"{result['encode']:.1f}; processor {result['cpu_seconds']:.1f}), "
                f"peak {result['peak_bytes'] / GIB:.2f} GiB, explains {result['explained']:.3f}",
                flush=True,
            )
    return found


def summary(found: dict[str, list[dict[str, float]]], rows: int, dim: int, threads: int) -> list[dict[str, Any]]:
    """A line a side: medians over the rounds, the range of the seconds, and how often HGIT's they are, by rounds."""
    lines = []
    for side, runs in found.items():
        middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        both = list(zip(runs, found.get("hgit", runs), strict=True))
        times = [a["seconds"] / b["seconds"] for a, b in both]
        lines.append(
            {
                "side": side,
                "rows": rows,
                "dim": dim,
                "levels": LEVELS,
                "codes": CODES,
                "rounds": len(runs),
                "seconds": f"{middle['seconds']:.1f}",
                "seconds_min": f"{min(run['seconds'] for run in runs):.1f}",
                "seconds_max": f"{max(run['seconds'] for run in runs):.1f}",
                "fit_seconds": f"{middle['fit']:.1f}",
                "encode_seconds": f"{middle['encode']:.1f}",
                "times_hgit": f"{statistics.median(times):.2f}",
                "times_hgit_min": f"{min(times):.2f}",
                "times_hgit_max": f"{max(times):.2f}",
                "cpu_seconds": f"{middle['cpu_seconds']:.1f}",
                "cpu_times_hgit": f"{statistics.median(a['cpu_seconds'] / b['cpu_seconds'] for a, b in both):.2f}",
                "peak_gib": f"{max(run['peak_bytes'] for run in runs) / GIB:.2f}",
                "explained": f"{middle['explained']:.3f}",
                "threads": threads,
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help=f"{FULL:,} rows, and keep results/tokenize_scale.csv")
    parser.add_argument("--rows", type=int, help="items (default: 100,000)")
    parser.add_argument("--rounds", type=int, default=1, help="times that each side is run, in turn")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES, help="default: all")
    parser.add_argument("--threads", type=int, default=2, help="of each side")
    parser.add_argument("--work", type=Path, default=Path("runs/tokenize_scale"), help="where the input is kept")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run_side(args.side, args.work, args.threads)))
        return
    rows = args.rows or (FULL if args.full else 100_000)
    folder = args.work / str(rows)
    make_input(folder, rows, DIM)
    lines = summary(measure(folder, args.sides, args.rounds, args.threads), rows, DIM, args.threads)
    for line in lines:
        print(
            f"{line['side']:12} {line['seconds']:>8} s, {line['times_hgit']} x HGIT ({line['cpu_times_hgit']} x of the "
            f"processor), peak {line['peak_gib']} GiB"
        )
    if args.full:
        keep("tokenize_scale.csv", lines, ("side", "rows"), torch.device("cpu"))


if __name__ == "__main__":
    main()
