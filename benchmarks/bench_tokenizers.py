"""All tokenizers side by side on real data, at an equal budget of tokens: levels x codes.

    python benchmarks/bench_tokenizers.py --data DATASETS/foursquare_nyc DATASETS/context_trails_pj --seeds 3 --save

For each dataset the items are encoded once by the default encoder, as it comes; districts are derived from coordinates
where there are none. Then each tokenizer is fitted with its default settings for each seed, encodes all items, and is
measured as ``placerank tokenize`` measures it. Cells lie in --work: stop and start at will, also several at a time. A
cell that was fitted by another state of the tokenizer's settings is fitted again.

RQ-VAE n-gram has RQ-VAE's codes (it is the ranker that looks them up by prefix), so its cell is RQ-VAE's.

``--save`` writes results/tokenizers.csv, a line for each dataset, tokenizer and seed, and draws tokenizers.png from it.
"""

import argparse
import csv
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
import torch

from placerank.benchmarks.results_file import RESULTS, save
from placerank.data.manifest import write_json
from placerank.data.raw.schema import read_items
from placerank.reports.progress import tracked
from placerank.tokenization.codes.collisions import assign_suffixes
from placerank.tokenization.codes.tokenizers import TokenizerConfig, tokenizer_type
from placerank.tokenization.judging.tokenize_report import ReportConfig, measure
from placerank.tokenization.text.districts import DistrictConfig, with_districts
from placerank.tokenization.text.encoders import EncoderConfig, encode_to_store, load_encoder
from placerank.tokenization.text.prompts import PromptConfig, build_prompts
from placerank.tokenization.text.store import EmbeddingStore

matplotlib.use("Agg")
from matplotlib import pyplot as plt

NAMES = {
    "hgit": "HGIT",
    "res_kmeans": "Res-KMeans",
    "rqvae": "RQ-VAE",
    "unified_sid": "UnifiedSID",
    "rqvae_ngram": "RQ-VAE n-gram",
}
REGIONS = ("province", "city", "district")
# What HGIT must not be worse in than the best peer: name, and whether less is better.
CLAIMS = {"collision_rate": True, "dead": True, "nmi_province_1": False, "nmi_city_1": False, "nmi_district_1": False}
Line = dict[str, Any]


def encoded(data: Path, work: Path) -> tuple[pa.Table, EmbeddingStore]:
    """The items with districts, and their embeddings, which are made where they are missing."""
    items, _ = with_districts(read_items(data), DistrictConfig())
    prompts = build_prompts(items, PromptConfig())
    made_from = {"encoder": asdict(EncoderConfig()), "prompts": asdict(PromptConfig())}
    rows = np.arange(len(items))
    store = encode_to_store(
        load_encoder(EncoderConfig()),
        lambda part: prompts.texts(rows[part]),
        items["item_id"],
        work / data.name / "embeddings",
        made_from=made_from,
        title=data.name,
    )
    return items, store


def cell(name: str, config: TokenizerConfig, items: pa.Table, store: EmbeddingStore, folder: Path) -> dict[str, Any]:
    """The measures of one tokenizer and seed: those that are kept, or measured now."""
    kind = tokenizer_type("rqvae" if name == "rqvae_ngram" else name)
    options = kind.options_type()
    identity = json.loads(json.dumps({"config": asdict(config), "options": asdict(options)}))
    file = folder / f"{kind.name}-{config.levels}x{config.codes}-{config.seed}.json"
    if file.is_file():
        kept = json.loads(file.read_text())
        if kept["identity"] == identity:
            found: dict[str, Any] = kept["measures"]
            return found
    x = store.tensor()
    tokenizer = kind(config, options).fit(x, items, progress=True)
    codes = tokenizer.encode(x, items).numpy()
    measures = measure(ReportConfig(queries=0), tokenizer, x, items, codes, assign_suffixes(codes))
    measures.pop("examples")
    write_json(file, {"identity": identity, "measures": measures})
    return measures


def line(measures: dict[str, Any]) -> Line:
    """The measures of a cell as columns; ``_l`` is of level l, of the prefix of l codes where prefixes are measured."""
    before = measures["collisions"]["before"]
    levels = measures["levels"]
    out: Line = {
        "items": measures["items"],
        **{name: before[name] for name in ("collision_rate", "repeat_rate", "largest", "ids")},
        "suffixes": measures["collisions"]["suffixes"],
        "collision_rate_with_suffix": measures["collisions"]["after"]["collision_rate"],
        "dead": sum(level["usage"]["dead"] for level in levels),
    }
    for number, level in enumerate(levels, 1):
        usage, cohesion = level["usage"], level["cohesion"]["secondary"]
        out |= {f"{name}_{number}": usage[name] for name in ("dead", "evenness", "entropy", "perplexity")}
        out |= {f"items_{p}_{number}": value for p, value in usage["items"].items()}
        out[f"explained_{number}"] = measures["reconstruction"]["explained"][number - 1]
        out[f"error_{number}"] = measures["reconstruction"]["error"][number - 1]
        out[f"prefixes_{number}"] = level["prefixes"]
        out |= {f"nmi_{region}_{number}": level["nmi"].get(region) for region in REGIONS}
        out |= {f"{name}_{number}": (cohesion or {}).get(name) for name in ("purity", "concentration")}
    return out


def copies(store: EmbeddingStore) -> float:
    """Share of items whose embedding another item has too: they collide whatever looks at embeddings alone."""
    _, counts = torch.unique(store.tensor(), dim=0, return_counts=True)
    return float(counts[counts > 1].sum() / counts.sum())


def _values(lines: Sequence[Line], dataset: str, tokenizer: str, name: str) -> list[float]:
    here = [x[name] for x in lines if (x["dataset"], x["tokenizer"]) == (dataset, tokenizer)]
    return [float(v) for v in here if v not in (None, "")]


def _mean(values: Sequence[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _shown(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean, spread = _mean(values)
    digits = 3 if abs(mean) < 10 else 1
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread else "")


def summary(lines: list[Line], levels: int) -> str:
    """A Markdown table a dataset, mean ± standard deviation over seeds, and how HGIT stands to the best peer."""
    measures = ["collision_rate", "repeat_rate", "largest", "dead"]
    for name in ("evenness", "explained", *(f"nmi_{region}" for region in REGIONS), "purity"):
        measures += [f"{name}_{level}" for level in range(1, levels + 1)]
    out = []
    for dataset in dict.fromkeys(x["dataset"] for x in lines):
        here = [x for x in lines if x["dataset"] == dataset]
        names = list(dict.fromkeys(x["tokenizer"] for x in here))
        share = float(here[0]["same_embedding"])
        out += [f"\n{dataset}: {share:.4f} of the items have the embedding of another one\n"]
        out += ["| measure | " + " | ".join(NAMES[n] for n in names) + " |", "|---" * (len(names) + 1) + "|"]
        for name in measures:
            cells = [_shown(_values(here, dataset, n, name)) for n in names]
            if any(cells):
                out.append(f"| {name} | " + " | ".join(cells) + " |")
        out.append("")
        for name, less in CLAIMS.items():
            found = {n: _values(here, dataset, n, name) for n in names}
            if "hgit" not in found or len(found) < 2 or not all(found.values()):
                continue
            peers = {n: _mean(v) for n, v in found.items() if n != "hgit"}
            best = min(peers, key=lambda n: peers[n][0] if less else -peers[n][0])
            mine, spread = _mean(found["hgit"])
            worse = mine - peers[best][0] if less else peers[best][0] - mine
            verdict = "no worse" if worse <= 0 else "within the spread" if worse <= spread + peers[best][1] else "worse"
            out.append(
                f"{name}: HGIT {_shown(found['hgit'])}, best peer {NAMES[best]} {_shown(found[best])}: {verdict}"
            )
    return "\n".join(out)


def draw(path: Path) -> Path:
    """A picture of what a results file holds, beside it: a row a dataset."""
    with open(path, newline="") as f:
        lines: list[Line] = list(csv.DictReader(f))
    datasets = list(dict.fromkeys(x["dataset"] for x in lines))
    names = [n for n in NAMES if any(x["tokenizer"] == n for x in lines)]
    levels = int(lines[0]["levels"])
    panels = {
        "items that share all codes": ["collision_rate"],
        "evenness of each level": [f"evenness_{level}" for level in range(1, levels + 1)],
        "variance explained": [f"explained_{level}" for level in range(1, levels + 1)],
        "NMI of the first code": [f"nmi_{region}_1" for region in REGIONS],
        "NMI of the first two codes": [f"nmi_{region}_2" for region in REGIONS],
    }
    figure, grid = plt.subplots(
        len(datasets), len(panels), figsize=(3.1 * len(panels), 2.7 * len(datasets) + 0.6), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for row, dataset in zip(grid, datasets, strict=True):
        for axis, (title, columns) in zip(row, panels.items(), strict=True):
            columns = [c for c in columns if any(_values(lines, dataset, n, c) for n in names)]
            for i, name in enumerate(names):
                found = [_mean(_values(lines, dataset, name, c)) for c in columns]
                at = np.arange(len(columns)) + (i - (len(names) - 1) / 2) * 0.16
                heights, spreads = zip(*found, strict=True)
                axis.bar(at, heights, 0.15, yerr=spreads, color=f"C{i}", label=NAMES[name], error_kw={"linewidth": 0.8})
            labels = [c.removeprefix("nmi_").rsplit("_", 1)[0] if "nmi" in c else f"level {c[-1]}" for c in columns]
            axis.set_xticks(range(len(columns)), labels if len(columns) > 1 or "nmi" in columns[0] else [""])
            if columns == ["collision_rate"]:
                share = float(next(x["same_embedding"] for x in lines if x["dataset"] == dataset))
                axis.axhline(share, color="0.4", linestyle="--", linewidth=0.8)
            axis.set_title(title, fontsize="medium")
            axis.grid(True, axis="y", alpha=0.3)
        row[0].set_ylabel(dataset)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), fontsize="small", frameon=False)
    out = path.with_suffix(".png")
    figure.savefig(out, dpi=110)
    plt.close(figure)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the schema of docs/data.md")
    parser.add_argument("--tokenizers", nargs="+", default=list(NAMES), choices=list(NAMES), help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--levels", type=int, default=TokenizerConfig().levels, help="codes of an item")
    parser.add_argument("--codes", type=int, default=TokenizerConfig().codes, help="codes of a level")
    parser.add_argument("--work", type=Path, default=Path("runs/tokenizers"), help="where cells are kept")
    parser.add_argument("--save", action="store_true", help="write results/tokenizers.csv and its picture")
    args = parser.parse_args()

    lines: list[Line] = []
    for data in args.data:
        items, store = encoded(data, args.work)
        about = {"dataset": data.name, "same_embedding": copies(store), "levels": args.levels, "codes": args.codes}
        wanted = [(name, seed) for name in args.tokenizers for seed in range(args.seeds)]
        for name, seed in tracked(wanted, data.name, unit="cells"):
            config = TokenizerConfig(levels=args.levels, codes=args.codes, seed=seed)
            measures = cell(name, config, items, store, args.work / data.name)
            lines.append({**about, "tokenizer": name, "seed": seed, **line(measures)})
    print(summary(lines, args.levels))
    if args.save:
        draw(save("tokenizers.csv", lines))
        print(f"\nwritten: {RESULTS / 'tokenizers.csv'}")


if __name__ == "__main__":
    main()
