"""Searching exported item vectors: FAISS's graph (HNSW) beside its flat index, seconds and recall.

    python -m placerank.benchmarks.bench_faiss --save

For each number of items: 64 columns around 1 centre for 100 items, written by ``export_tables`` in each format; then
searches of one query each for the 100 largest inner products, as a service asks them, with the settings that the files
carry. Formats take turns a query. Recall: the share of the flat index's 100 that are among them.

    python -m placerank.benchmarks.bench_faiss --export runs/mine/export --data runs/mine/data

``--export`` measures two stages instead: of the 10 best of all places by the ranker, how many are among the N whose
vectors (the table ``item``) have the largest product with the mean of the user's last visits'; and how many among those
within 3 km.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

import placerank
from placerank.benchmarks.bench_rank import KM, requests_of
from placerank.benchmarks.results_file import save
from placerank.embeddings.export import RawIds, export_tables
from placerank.rankers.rank_towers import TowerRanker

FORMATS = ("faiss", "faiss-hnsw")
COLUMNS, FOUND = 64, 100


class Made:
    """Vectors in memory as ``TableSource``."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self.vectors = vectors

    def shape(self, name: str) -> tuple[int, int]:
        rows, columns = self.vectors.shape
        return rows, columns

    def blocks(self, name: str, block_rows: int) -> Any:
        for start in range(0, len(self.vectors), block_rows):
            yield torch.from_numpy(self.vectors[start : start + block_rows])


def searched(items: int, queries: int) -> list[dict[str, Any]]:
    """A line a format."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(max(items // 100, 1), COLUMNS)).astype(np.float32)

    def around(count: int) -> NDArray[np.float32]:
        noise = rng.normal(size=(count, COLUMNS)).astype(np.float32)
        near: NDArray[np.float32] = centres[rng.integers(len(centres), size=count)] + np.float32(0.5) * noise
        return near

    vectors, asked = around(items), around(queries)
    indices, made, size = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for format in FORMATS:
            start = time.perf_counter()
            export_tables(Made(vectors), {"item": RawIds(items)}, Path(folder), format, "fp32")
            made[format] = time.perf_counter() - start
            file = Path(folder, f"item.{format}")
            size[format] = file.stat().st_size / 2**20
            indices[format] = faiss.read_index(str(file))
    took: dict[str, list[float]] = {format: [] for format in FORMATS}
    recall: dict[str, list[float]] = {format: [] for format in FORMATS}
    for query in asked:
        want: set[int] = set()
        for format, index in indices.items():
            start = time.perf_counter()
            _, found = index.search(query[None], FOUND)
            took[format].append(time.perf_counter() - start)
            want = want or {*found[0].tolist()}
            recall[format].append(len(want & {*found[0].tolist()}) / FOUND)
    lines = []
    for format in FORMATS:
        ratio = np.array(took["faiss"]) / np.array(took[format])
        low, middle, high = np.percentile(ratio, (20, 50, 80))
        lines.append(
            {"items": items, "columns": COLUMNS, "format": format, "queries": queries, "k": FOUND}
            | {"ms": round(float(np.median(took[format])) * 1e3, 3), "flat_over_it": round(middle, 2)}
            | {"p20": round(low, 2), "p80": round(high, 2), "recall": round(float(np.mean(recall[format])), 4)}
            | {"made_s": round(made[format], 1), "mib": round(size[format], 1)}
        )
        print(" ".join(f"{name} {value}" for name, value in lines[-1].items()), flush=True)
    return lines


def two_stages(export: Path, data: Path, count: int) -> None:
    """Print how much of the ranker's own lists a retrieval by item vectors keeps."""
    ranker = placerank.load(export)
    assert isinstance(ranker, TowerRanker)
    requests = requests_of(ranker, data, count)
    best = pa.concat_tables(ranker.predict(requests, within_km=float("inf")))
    near = pa.concat_tables(ranker.predict(requests, within_km=KM, k=10**6))
    vectors = ranker.exported.tables["item"].vectors().numpy()
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors[1:])
    rows = {item: row for row, item in enumerate(ranker.item_ids.to_pylist())}
    own: list[set[int]] = [set() for _ in range(len(requests))]
    reach: list[set[int]] = [set() for _ in range(len(requests))]
    for table, lists in ((best, own), (near, reach)):
        for request, item in zip(table["request"].to_pylist(), table["item_id"].to_pylist(), strict=True):
            lists[request].add(rows[item])
    asked = [[rows.get(item, 0) for item in visits[-50:]] for visits in requests["history"].to_pylist()]
    some = [r for r, visits in enumerate(asked) if visits]
    means = np.stack([vectors[asked[r]].mean(0) for r in some])
    _, found = index.search(means, 1000)
    for n in (100, 300, 1000):
        kept = [len(own[r] & {int(i) + 1 for i in found[at, :n]}) / len(own[r]) for at, r in enumerate(some)]
        print(f"by item vectors, {n:,} of {len(rows) - 1:,}: {np.mean(kept):.3f} of the ranker's 10 best of all places")
    kept = [len(own[r] & reach[r]) / len(own[r]) for r in some]
    print(f"within {KM:g} km, {np.mean([len(reach[r]) for r in some]):,.0f} on average: {np.mean(kept):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m placerank.benchmarks.bench_faiss",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--items", type=int, nargs="+", default=[5_000, 50_000])
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--export", type=Path, help="measure two stages with this export of a ranker of candidates")
    parser.add_argument("--data", type=Path, help="the prepared folder that it was trained on")
    parser.add_argument("--save", action="store_true", help="write results/faiss.csv")
    args = parser.parse_args()
    if (args.export is None) != (args.data is None):
        raise SystemExit("--export and --data go together")
    if args.export is not None:
        two_stages(args.export, args.data, args.queries)
        return
    faiss.omp_set_num_threads(1)
    lines = [line for items in args.items for line in searched(items, args.queries)]
    if args.save:
        save("faiss.csv", lines)


if __name__ == "__main__":
    main()
