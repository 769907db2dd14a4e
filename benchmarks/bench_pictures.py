"""What pictures add for cold places: text without names, pictures, both, and both with shuffled pictures.

    python -m placerank.benchmarks.bench_pictures --seeds 0 1 2 3 4 --save

Each seed is a simulated city with storefronts (``placerank simulate --pictures``) whose items table is poor: the coarse
category, the place, and no name, brand, price or fine category. A third of its places lose every interaction before the
test split, so a ranker knows of them what vectors say. On each the arms in turn go the package's way: ``align``
on co-visits (no geographic alignment), ``tokenize`` by Res-KMeans, ``train`` with AKT-Rec on the semantic IDs, all with
the same settings; then the AUC over the test rows of the cold places, and over all others.

There is no vision model with real weights here. The encoder is a CLIP of 150,000 weights beside its word embeddings,
taught from scratch (``teach``) on storefronts of made-up places by the same hand, against texts of category and price:
it knows what the sign of a bakery looks like, as a real one would, and nothing of the city's chains or of any visit.
The arm "text" is its text tower alone; "none" is the ranker without vectors, semantic IDs and AKT-Rec.

Prints means and paired differences to text alone and to shuffled pictures, with 95 % intervals of Student's t over
seeds. What is kept in ``--out`` is not run again. ``--save`` keeps a line a seed and arm in results/pictures.csv.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from placerank.benchmarks.papers.cells import Budget, Workplace
from placerank.benchmarks.papers.grids import Variant
from placerank.benchmarks.results_file import keep
from placerank.data.batches.loader import SampleLoader
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.city.storefronts import draw
from placerank.data.city.words import CATEGORIES, LEAVES
from placerank.data.manifest import write_json
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.evaluation.paired import mean_and_spread, paired_t
from placerank.rankers.plugins.akt import AktConfig
from placerank.tokenization.align import AlignConfig, align
from placerank.tokenization.alignment.settings import BehaviourConfig, OptimizerSettings
from placerank.tokenization.text.encoders import model_source
from placerank.tokenization.text.settings import DEFAULT_MODEL, EncoderConfig, PromptConfig
from placerank.training.inference import load_ranker
from placerank.training.metrics import auc
from placerank.training.predictions import predict
from placerank.training.runtime import runtime
from placerank.training.train import train

ARMS = ("text", "pictures", "both", "shuffled", "none")
SHOWN = 8_000  # storefronts that the encoder is taught with
COLD, TEST = 1 / 3, 0.25  # shares: of places, of interactions by time
_FIGURES = ("cold_auc", "other_auc")
KEY = ("seed", "arm", "places", "requests")


def teach(folder: Path, steps: int = 600, batch: int = 128) -> Path:
    """A tiny CLIP, taught which text goes with which storefront; made where it is missing."""
    if (folder / "done").exists():
        return folder
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(model_source(DEFAULT_MODEL))
    eyes = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": 48, "eos_token_id": tokenizer.sep_token_id}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=small | words | {"projection_dim": 64, "pad_token_id": 0, "bos_token_id": tokenizer.cls_token_id},
        vision_config=small | {"image_size": 32, "patch_size": 8, "projection_dim": 64},
        projection_dim=64,
    )
    model, rng = CLIPModel(config).train(), np.random.default_rng(1_000_003)
    leaf, dearness = rng.integers(0, len(LEAVES), SHOWN), rng.standard_normal(SHOWN)
    drawn = [
        draw(int(x), rng.random(2), bool(rng.random() < 0.5), float(d), rng)
        for x, d in zip(leaf, dearness, strict=True)
    ]
    pixels = ((np.stack(drawn) / 255 - eyes.image_mean) / eyes.image_std).transpose(0, 3, 1, 2).astype(np.float32)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for step in range(steps):
        rows = rng.integers(0, SHOWN, batch)
        texts = [_caption(int(leaf[row]), float(dearness[row]), rng) for row in rows]
        inputs = dict(tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False))
        loss = model(**inputs, pixel_values=torch.from_numpy(pixels[rows]), return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"teach: step {step + 1}, loss {loss.item():.3f} (chance {np.log(batch):.3f})", flush=True)
    model.eval().save_pretrained(folder)
    CLIPProcessor(eyes, tokenizer).save_pretrained(folder)
    (folder / "done").touch()
    return folder


def _caption(leaf: int, dearness: float, rng: np.random.Generator) -> str:
    """What an items table says of a place; sometimes less, so that texts of poor tables are known too."""
    coarse, fine = LEAVES[leaf]
    if rng.random() < 0.2:
        return coarse
    typical = CATEGORIES[coarse][2][fine][0]
    price = f", {typical * np.exp(0.35 * dearness):.0f}" if rng.random() < 0.7 else ""
    return f"{coarse} > {fine}{price}"


def city(folder: Path, seed: int, places: int, requests: int) -> Path:
    """A prepared city whose items table is poor, and whose cold places nobody saw before the test; ``folder``/raw."""
    whole, raw, data = (folder / name for name in ("whole", "raw", "prepared"))
    if data.exists():
        return data
    people = places * 3 // 4
    of: dict[str, Any] = {"items": places, "users": people, "requests": requests, "cities": 1, "overwrite": True}
    simulate(SimulateConfig(out=whole, seed=seed, pictures=True, **of))
    raw.mkdir(exist_ok=True)
    items = pq.read_table(whole / "items.parquet")
    coarse = pa.array([[path[0]] for path in items["category"].to_pylist()])
    images = [str((whole / path).resolve()) for path in items["image"].to_pylist()]
    rng = np.random.default_rng([seed, 77])
    poor = items.drop_columns(["name", "brand", "price", "category", "image"])
    poor = poor.append_column("name", pa.nulls(len(items), pa.string())).append_column("category", coarse)
    pq.write_table(poor.append_column("image", pa.array(images)), raw / "items.parquet")
    (folder / "shuffled").mkdir(exist_ok=True)
    mixed = pa.array([images[i] for i in rng.permutation(len(images))])
    pq.write_table(poor.append_column("image", mixed), folder / "shuffled/items.parquet")
    pq.write_table(pq.read_table(whole / "users.parquet"), raw / "users.parquet")
    shown = pq.read_table(whole / "interactions.parquet")
    cold = rng.choice(items["item_id"].to_numpy(), int(COLD * len(items)), replace=False)
    np.save(folder / "cold.npy", np.sort(cold))
    # The test split is the latest share of what is left: a little later than this, so no cold row is before it.
    first = shown["timestamp"][int((1 - TEST) * len(shown))]
    early = pc.and_(pc.less(shown["timestamp"], first), pc.is_in(shown["item_id"], value_set=pa.array(cold)))
    pq.write_table(shown.filter(pc.invert(early)), raw / "interactions.parquet")
    return prepare(PrepareConfig(input=raw, out=data, test_fraction=TEST, valid_fraction=0.05, history_length=20))


def vectors(folder: Path, data: Path, model: Path, arm: str, seed: int) -> Path:
    """The folder of an arm's ``align``."""
    out = folder / arm / "align"
    if not out.exists():
        nothing = {"content": (), "location": ()} if arm == "pictures" else {}
        fast = OptimizerSettings(learning_rate=2e-3)
        align(
            AlignConfig(
                data=data, items=folder / ("shuffled" if arm == "shuffled" else "raw"), out=out, rung="none",
                encoder=EncoderConfig(model=str(model), images=arm != "text", batch_images=128),
                prompts=PromptConfig(**nothing),  # type: ignore[arg-type]
                behaviour=BehaviourConfig(pairs=1_500, cooccurrence_threshold=0, held_out_pairs=300, optimizer=fast),
                seed=seed, queries=0, overwrite=True,
            )
        )  # fmt: skip
    return out


def measure(folder: Path, model: Path, seed: int, places: int, requests: int) -> dict[str, dict[str, float]]:
    """AUC of cold places and of the others, and of co-visits held out, by arm; kept as it comes."""
    kept = folder / "found.json"
    found: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
    data = city(folder, seed, places, requests)
    ids = pq.read_table(data / "catalog.parquet", columns=["item_id"])["item_id"].to_numpy()
    cold = np.isin(ids, np.load(folder / "cold.npy"))
    for arm in ARMS:
        if arm in found:
            continue
        own = folder / arm
        own.mkdir(exist_ok=True)
        aligned = None if arm == "none" else vectors(folder, data, model, arm, seed)
        if not (own / "prepared").exists():
            (own / "prepared").symlink_to(data.resolve())
        budget = Budget(batch_size=1024, levels=2, codes=64)
        place = Workplace(folder / "raw", own, budget, embeddings=aligned)
        by_vectors: dict[str, Any] = {"tokenizer": "res_kmeans", "aligned": True, "akt": AktConfig()}
        variant = Variant(name=arm, title=arm, **(by_vectors if aligned else {}))
        train(replace(place.config("twin", variant, seed, own / "run"), overwrite=True))
        with runtime(seed) as rt:
            p = predict(load_ranker(own / "run", rt).score(), SampleLoader(data, "test", 4096)).sort()
        here = cold[p.item_row]
        assert p.probability is not None  # simulated
        found[arm] = {
            "cold_auc": auc(p.label[here], p.logit[here]),
            "other_auc": auc(p.label[~here], p.logit[~here]),
            "cold_rows": float(here.sum()),
            "cold_best": auc(p.label[here], p.probability[here]),
        }
        write_json(kept, found)
    return found


def report(found: list[dict[str, dict[str, float]]]) -> None:
    """Means, and differences by the same city."""
    print("| arm | AUC of cold places | less text's | less shuffled's | AUC of the others | less text's |")
    print("|---|---|---|---|---|---|")

    def less(arm: str, other: str, figure: str) -> str:
        if arm == other:
            return ""
        return "{:+.4f} [{:+.4f}, {:+.4f}]".format(*paired_t([x[arm][figure] - x[other][figure] for x in found]))

    for arm in ARMS:
        cold, others = ("{:.4f} ± {:.4f}".format(*mean_and_spread([x[arm][f] for x in found])) for f in _FIGURES)
        cells = [cold, less(arm, "text", "cold_auc"), less(arm, "shuffled", "cold_auc"), others]
        print(f"| {arm} | " + " | ".join([*cells, less(arm, "text", "other_auc")]) + " |")
    best = np.mean([x["text"]["cold_best"] for x in found])
    print(f"\nThe true probability has {best:.4f} on the cold places' rows. {len(found)} cities.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/pictures"), help="where what is made is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of cities and trainings")
    parser.add_argument("--places", type=int, default=400, help="of each city (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=6_000, help="of each city (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help="keep lines in results/pictures.csv")
    args = parser.parse_args()
    model = teach(args.out / "model")
    found = []
    for seed in args.seeds:
        folder = args.out / f"{seed}-{args.places}-{args.requests}"
        folder.mkdir(parents=True, exist_ok=True)
        found.append(measure(folder, model, seed, args.places, args.requests))
        if args.save:
            about = {"places": args.places, "requests": args.requests}
            lines = [
                {
                    "seed": seed,
                    "arm": arm,
                    **about,
                    **{f: round(found[-1][arm][f], 5) for f in (*_FIGURES, "cold_rows", "cold_best")},
                }
                for arm in ARMS
            ]
            keep("pictures.csv", lines, KEY)
    report(found)


if __name__ == "__main__":
    main()
