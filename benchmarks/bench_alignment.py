"""LGSID's table 3, figure 3 and table 6 here: what is near before and after the alignment, rung by rung.

    python benchmarks/bench_alignment.py --data DATASETS/foursquare_nyc --seeds 3 --save

Datasets are a simulated city of 3,000 places and the folders given. A cell is a dataset, a variant and a seed: reward
model (shared by the variants of a seed that train the same one), preference pairs, adapter, vectors of all items,
measures. Finished cells lie in --out and are not run again: stop and start at will. G-DPO comes first, then seed by
seed what it is compared with. Prints mean and standard deviation over seeds; ``--save`` writes a line a cell to
benchmarks/results/alignment.csv and the picture beside it.

Settings are the defaults of ``placerank align``, but for fewer lists of the reward model: their prompts take most of
the time. Variants beside the paper's ladder:

    lambda-1.8             G-DPO at the largest λ of table 6; its λ = 1.0 is the rung dpo-lrdms, and 1.5 is g-dpo
    contrast-...           G-DPO at other shares of the same content in the contrast (GDPOConfig.place_contrast)
    contrast-batch         every prompt of the batch weighs the same in it, as the paper prints it
    as-printed             that, and the reference's mean is left on
    amplified-...          no training: the vectors before, plus so many times the mean vector of their place's items
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from placerank.benchmarks.results_file import RESULTS, save
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.manifest import write_json
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.tokenization.align import preference_pairs, read_catalog
from placerank.tokenization.alignment.gdpo import LADDER, GDPOConfig, align_policy, g_dpo
from placerank.tokenization.alignment.gdpo import Rung as Settings
from placerank.tokenization.alignment.histories import read_histories
from placerank.tokenization.alignment.locations import Locations
from placerank.tokenization.alignment.lora import LoraSettings, add_adapter
from placerank.tokenization.alignment.reward import RewardConfig, RewardModel, train_reward
from placerank.tokenization.judging.coverage import AT, cluster_nmi, neighbour_coverage
from placerank.tokenization.judging.measures import region_labels
from placerank.tokenization.text.districts import DistrictConfig, with_districts
from placerank.tokenization.text.encoders import EncoderConfig, encode_to_store, load_encoder
from placerank.tokenization.text.prompts import PromptConfig, build_prompts
from placerank.tokenization.text.store import EmbeddingStore

CITY = "simulated city"
BEFORE = "before"
LETTERS = {"province": "P", "city": "C", "district": "T"}
QUERIES = 2_000
REWARD = RewardConfig(lists=200, held_out_lists=40)


def _with(reward: RewardConfig, gdpo: GDPOConfig, **changes: Any) -> Settings:
    reward, gdpo = g_dpo(reward, gdpo)
    return reward, replace(gdpo, **changes)


VARIANTS: dict[str, Callable[[RewardConfig, GDPOConfig], Settings]] = {
    **{name: LADDER[name] for name in ("g-dpo", "dpo-lrdms", "dpo-lrdm", "dpo-lrd", "dpo-lr", "dpo-pr")},
    "contrast-batch": partial(_with, place_contrast=None),
    "lambda-1.8": partial(_with, similarity_weight=1.8),
    "contrast-0.75": partial(_with, place_contrast=0.75),
    "contrast-0.8": partial(_with, place_contrast=0.8),
    "as-printed": partial(_with, place_contrast=None, centred=False),
}
AMPLIFIED = {f"amplified-{times}": times for times in (0.25, 0.5, 0.75, 1.0, 1.25)}


class Dataset:
    """Items of a dataset, their prompts and places, and their vectors by the encoder as it comes."""

    def __init__(self, name: str, folder: Path, raw: Path | None) -> None:
        self.name, self.folder = name, folder
        if raw is None:
            raw = folder / "raw"
            if not raw.exists():
                simulate(SimulateConfig(out=raw, items=3_000))
        prepared = folder / "data"
        if not prepared.exists():
            prepare(PrepareConfig(input=raw, out=prepared))
        items, content = read_catalog(prepared)
        self.items, _ = with_districts(items, DistrictConfig())
        self.prompts = build_prompts(self.items, PromptConfig())
        lat, lon = (self.items[column].to_numpy().astype(np.float64) for column in ("lat", "lon"))
        self.locations = Locations(self.prompts, lat, lon)
        self.histories = read_histories(prepared, len(self.items))
        self.regions = {region: label for region, (label, _) in region_labels(self.items).items()}
        self.made_from = {"items": content, "encoder": EncoderConfig().model}
        self.before = encode_to_store(
            load_encoder(EncoderConfig()),
            self._texts,
            self.items["item_id"],
            folder / BEFORE,
            made_from=self.made_from,
            title=f"{name}, before",
        )

    def _texts(self, rows: slice) -> list[str]:
        return self.prompts.texts(np.arange(len(self.items))[rows])

    def run(self, variant: str, seed: int) -> dict[str, Any]:
        """The measures of a cell."""
        if variant == BEFORE:
            return self.measures(self.before, None)
        if variant in AMPLIFIED:
            return self.measures(self._amplified(AMPLIFIED[variant]), self.before)
        return self._align(variant, seed)

    def _amplified(self, times: float) -> Tensor:
        vectors, code = self.before.tensor(), torch.from_numpy(self.locations.code)
        known = code >= 0
        off = vectors - vectors.mean(0)
        sums = torch.zeros(len(self.locations), vectors.shape[1]).index_add_(0, code[known], off[known])
        means = sums / torch.from_numpy(self.locations.count)[:, None]
        vectors[known] += times * means[code[known]]
        return normalize(vectors, dim=1)

    def _align(self, variant: str, seed: int) -> dict[str, Any]:
        reward_config, gdpo = VARIANTS[variant](REWARD, GDPOConfig())
        kind = f"{reward_config.objective}-{'density' if reward_config.density_aware else 'uniform'}"
        folder = self.folder / f"seed-{seed}"
        encoder = load_encoder(EncoderConfig())
        # The adapter starts as zero: the reward model is the same with it and without.
        parameters = add_adapter(encoder, LoraSettings(), seed)
        report = folder / f"reward-{kind}.json"
        if not report.is_file():
            _, told = train_reward(
                encoder, self.prompts, self.locations, reward_config, folder / f"reward-{kind}", self.made_from, seed
            )
            write_json(report, told)
        reward = RewardModel.load(folder / f"reward-{kind}" / "reward.safetensors")
        pairs, _ = preference_pairs(self.histories, self.locations, gdpo, np.random.default_rng([seed, 6]))
        log = align_policy(
            encoder,
            parameters,
            reward,
            self.prompts,
            self.locations,
            pairs,
            gdpo,
            folder / variant / "gdpo",
            self.made_from,
            seed,
        )
        after = encode_to_store(
            encoder,
            self._texts,
            self.items["item_id"],
            folder / variant / "after",
            made_from=self.made_from,
            title=f"{self.name}, {variant}, seed {seed}",
        )
        told = json.loads(report.read_text())["held_out"]["density"]
        tail = log[-max(1, len(log) // 10) :]
        return {
            **self.measures(after, self.before),
            "lambda": gdpo.similarity_weight,
            "place_contrast": gdpo.place_contrast,
            "margin": statistics.mean(line["margin"] for line in tail),
            "reward_spearman": told["spearman"],
            "reward_auc": told["auc_near_far"],
        }

    def measures(self, vectors: EmbeddingStore | Tensor, before: EmbeddingStore | None) -> dict[str, Any]:
        """Similarity, coverage and NMI as columns."""
        found = neighbour_coverage(vectors, self.regions, queries=QUERIES, reference=before)
        same = found.get("reference_similarity", found["similarity"])
        after = vectors if isinstance(vectors, Tensor) else vectors.tensor()
        moved = 1.0 if before is None else float(cosine_similarity(before.tensor(), after, dim=1).mean())
        return {
            **{f"similarity@{k}": found["similarity"][k] for k in AT},
            **{f"similarity_before@{k}": same[k] for k in AT},
            **{f"{letter}@{k}": found[name][k] for name, letter in LETTERS.items() for k in AT},
            **{f"nmi_{name}": value for name, value in cluster_nmi(vectors, self.regions).items()},
            "cosine_before_after": moved,
            "lambda": None,
            "place_contrast": None,
            "margin": None,
            "reward_spearman": None,
            "reward_auc": None,
        }


def _mean_spread(values: list[float], digits: int = 3, sign: str = "") -> str:
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.{digits}f}{spread}"


def changes(lines: list[dict[str, Any]], metric: str, of: str) -> dict[tuple[str, str], list[float]]:
    """(dataset, variant) -> per cent that ``metric`` is above ``of`` before, a value a seed."""
    before = {line["dataset"]: line for line in lines if line["variant"] == BEFORE}
    found: dict[tuple[str, str], list[float]] = {}
    for line in lines:
        if line["variant"] != BEFORE:
            change = 100 * (line[metric] / before[line["dataset"]][of] - 1)
            found.setdefault((line["dataset"], line["variant"]), []).append(change)
    return found


def summary(lines: list[dict[str, Any]]) -> str:
    """Markdown: a table a dataset, the paper's table 3 with NMI of figure 3; then what has changed, in per cent."""
    columns = [
        *(f"{name}@{k}" for name in ("similarity", "similarity_before", *LETTERS.values()) for k in AT),
        *(f"nmi_{name}" for name in LETTERS),
    ]
    out = []
    for dataset in dict.fromkeys(line["dataset"] for line in lines):
        here = [line for line in lines if line["dataset"] == dataset]
        order = [name for name in (BEFORE, *reversed(VARIANTS), *AMPLIFIED) if any(x["variant"] == name for x in here)]
        out += [
            f"\n{dataset}\n",
            "| variant | seeds | " + " | ".join(columns) + " |",
            "|" + "---|" * (len(columns) + 2),
        ]
        for name in order:
            rows = [line for line in here if line["variant"] == name]
            cells = [_mean_spread([row[c] for row in rows]) for c in columns]
            out.append(f"| {name} | {len(rows)} | " + " | ".join(cells) + " |")
        out += ["\n| change, % | seeds | T@5 | similarity@5 | by the encoder before |", "|---|---|---|---|---|"]
        wanted = (("T@5", "T@5"), ("similarity@5", "similarity@5"), ("similarity_before@5", "similarity@5"))
        for name in order[1:]:
            values = [changes(here, metric, of)[dataset, name] for metric, of in wanted]
            cells = [_mean_spread(v, 1, "+") for v in values]
            out.append(f"| {name} | {len(values[0])} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def frontier(lines: list[dict[str, Any]]) -> Figure:
    """Change of town coverage against change of similarity, a panel a dataset; the goal's corner is shaded."""
    names = list(dict.fromkeys(line["dataset"] for line in lines))
    figure = Figure(figsize=(6 * len(names), 4.6), layout="constrained")
    x = changes(lines, "similarity_before@5", "similarity@5")
    y = changes(lines, "T@5", "T@5")
    for number, name in enumerate(names):
        ax = figure.add_subplot(1, len(names), number + 1)
        mine = [key for key in x if key[0] == name and key[1] not in AMPLIFIED]
        line = [(0.0, 0.0), *((x[name, a][0], y[name, a][0]) for a in AMPLIFIED if (name, a) in x)]
        ax.axhline(0, color="0.6", linewidth=0.7)
        ax.plot(*zip(*line, strict=True), color="0.6", linestyle="--", linewidth=1, label="places amplified by hand")
        for key in mine:
            colour = {"c": "#c98a00", "d": "#7a7a7a", "a": "#7a7a7a"}.get(key[1][0], "#1b6ca8")
            xs, ys = x[key], y[key]
            ax.errorbar(
                statistics.mean(xs),
                statistics.mean(ys),
                xerr=statistics.stdev(xs) if len(xs) > 1 else None,
                yerr=statistics.stdev(ys) if len(ys) > 1 else None,
                fmt="o",
                color=colour,
            )
            ax.annotate(
                key[1], (statistics.mean(xs), statistics.mean(ys)), (4, 4), textcoords="offset points", fontsize=7.5
            )
        ax.plot(0, 0, "k*", markersize=9, label="encoder before")
        ax.legend(loc="lower left")
        low, high = min(-4.5, ax.get_xlim()[0]), max(0.5, ax.get_xlim()[1])
        top = max(100.0, ax.get_ylim()[1])
        ax.fill_between([-4, high], 80, top, color="#2e8b57", alpha=0.12, linewidth=0)
        ax.set_xlim(low, high)
        ax.set_ylim(ax.get_ylim()[0], top)
        ax.set_title(name)
        ax.set_xlabel("similarity of the 5 nearest by the encoder before, change in %")
        ax.set_ylabel("town coverage T@5, change in %")
    return figure


def cells(datasets: list[str], seeds: int) -> Iterator[tuple[str, str, int]]:
    """What to run, in order."""
    whole, *others = VARIANTS
    for dataset in datasets:
        for variant in (BEFORE, *AMPLIFIED):
            yield dataset, variant, 0
    for variants in ([whole], others):
        for seed in range(seeds):
            for variant in variants:
                for dataset in datasets:
                    yield dataset, variant, seed


def check_settings(out: Path) -> None:
    """Cells of one folder share settings: what is not varied is written down at first.

    Raises:
        ValueError: the folder was made with others.
    """
    parts = (EncoderConfig(), PromptConfig(), DistrictConfig(), LoraSettings(), REWARD, GDPOConfig())
    settings = json.loads(json.dumps({type(part).__name__: asdict(part) for part in parts}))
    file = out / "settings.json"
    if not file.is_file():
        write_json(file, settings)
    elif json.loads(file.read_text()) != settings:
        raise ValueError(f"the cells in {out} were made with other settings ({file}); give another folder by --out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders in the schema of docs/data.md")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("runs/alignment"), help="where finished cells are kept")
    parser.add_argument("--report", action="store_true", help="run nothing, take the cells that are done")
    parser.add_argument("--save", action="store_true", help="write results/alignment.csv and alignment.png")
    args = parser.parse_args()

    folders: dict[str, Path | None] = {CITY: None, **{path.name: path for path in args.data}}
    args.out.mkdir(parents=True, exist_ok=True)
    check_settings(args.out)
    made: dict[str, Dataset] = {}
    lines = []
    for name, variant, seed in cells(list(folders), args.seeds):
        folder = args.out / name.replace(" ", "_")
        done = folder / f"seed-{seed}" / f"{variant}.json"
        if args.report and not done.is_file():
            continue
        if not done.is_file():
            if name not in made:
                made[name] = Dataset(name, folder, folders[name])
            found = made[name].run(variant, seed)
            done.parent.mkdir(exist_ok=True)
            write_json(done, found)
            print(f"{name}, {variant}, seed {seed}: done", flush=True)
        lines.append({"dataset": name, "variant": variant, "seed": seed, **json.loads(done.read_text())})
    print(summary(lines))
    if args.save:
        save("alignment.csv", lines)
        frontier(lines).savefig(RESULTS / "alignment.png", dpi=110)


if __name__ == "__main__":
    main()
