"""One cell: a ranker trained, evaluated and measured; its result is a JSON, and it is not run again.

What lies in the work folder, for each dataset:

    prepared/                        samples, the same for every cell
    embeddings/                      of the items, by the encoder as it comes
    users-<n>/                       vectors of users, by their last n places
    tokens/<tokenizer>-<n>/          semantic IDs of seed n
    tokens/users-<m>-<n>/            those of users
    cells/<tower>/<variant>/<n>.json result of seed n; <n>.npy has each test request's AUC
"""

import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...data.batches.density import density_scale
from ...data.batches.features import FeatureConfig
from ...data.batches.loader import SampleLoader
from ...data.manifest import environment, read_manifest, whole_file, write_json
from ...data.preparation.prepare import PrepareConfig, prepare
from ...data.raw.schema import read_items
from ...evaluation.breakdown import ItemFacts, Slicing, slice_metrics, slicings
from ...rankers.ranker import RankerConfig
from ...tokenization.alignment.users import write_user_vectors
from ...tokenization.codes.tokenizer import TokenizerConfig
from ...tokenization.judging.tokenize_report import ReportConfig
from ...tokenization.text.districts import DistrictConfig, with_districts
from ...tokenization.text.encoders import EncoderConfig, encode_to_store, load_encoder
from ...tokenization.text.prompts import PromptConfig, build_prompts
from ...tokenization.text.store import EmbeddingStore
from ...tokenization.tokenize import TokenizeConfig, tokenize
from ...training.inference import load_scorer
from ...training.metrics import grouped_auc
from ...training.model import OptimizerConfig
from ...training.predictions import Predictions, predict
from ...training.runtime import runtime
from ...training.train import TrainConfig, train
from .grids import Variant

METRICS = ("auc", "gauc", "request_auc", "ndcg@10", "hit@1", "hit@10")
ACTIVITY_EDGES = (3, 10, 30, 100, 300)  # positives in training; as the buckets of data/batches/activity.py
SPARSE = 1.5  # times as far to the 20th nearest place as from the median one
_PARTS = {  # slicing of the report -> its labels as parts of a table
    "popularity": ("head items", "mid items", "tail items"),
    "appearances": ("items < 3 times", "items >= 3 times"),
    "visit": ("first visits", "repeat visits"),
    "user": ("new users", "known users"),
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every cell gets, whatever is in it. No cell is tuned on its own.

    One pass: on New York plain DIN's validation AUC fell from the first epoch on at every learning rate tried. The
    dense rate falls to 0.7 of itself ten times: at a constant one, seeds differ by where the pass happens to end (plain
    DIN's validation AUC: 0.9613, 0.9623, 0.9643 at 0.003; 0.9632, 0.9637 so, from 0.01).
    """

    epochs: int = 1
    batch_size: int = 2048
    table_lr: float = 0.1
    dense_lr: float = 1e-2
    lr_drops: int = 10
    lr_gamma: float = 0.7
    eval_negatives: int = 19
    levels: int = 3
    codes: int = 64

    def __str__(self) -> str:
        return (
            f"epochs: {self.epochs}; batch {self.batch_size:,}; learning rates {self.table_lr:g} (tables) and "
            f"{self.dense_lr:g} (dense, times {self.lr_gamma:g} {self.lr_drops} times); {self.eval_negatives} "
            f"negatives a visit; semantic IDs of {self.levels} x {self.codes} codes; else as placerank train has it"
        )


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file among processes on one machine; gives False if another has it and ``wait`` is off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


@dataclass(frozen=True)
class Workplace:
    """A dataset and the folder where all that is made of it lies.

    Attributes:
        data: raw folder in the schema of docs/data.md.
        folder: made as needed.
        embeddings: of the same items by an aligned encoder, for variants that ask for them.
        budget: of each cell.
        token_seeds: how many seeds of semantic IDs there are; rankers of more seeds start over with the first.
    """

    data: Path
    folder: Path
    budget: Budget
    embeddings: Path | None = None
    token_seeds: int | None = None

    def prepared(self) -> Path:
        """Samples, made where they are missing."""
        out = self.folder / "prepared"
        with locked(self.folder / "prepared.lock"):
            if not out.exists():
                prepare(PrepareConfig(input=self.data, out=out, eval_negatives=self.budget.eval_negatives))
        return out

    def plain_embeddings(self) -> Path:
        """Embeddings by the default encoder, made where they are missing."""
        out = self.folder / "embeddings"
        with locked(self.folder / "embeddings.lock"):
            if not (out / "store.json").exists():
                items, _ = with_districts(read_items(self.data), DistrictConfig())
                prompts, rows = build_prompts(items, PromptConfig()), np.arange(len(items))
                made_from = {"encoder": asdict(EncoderConfig()), "prompts": asdict(PromptConfig())}
                encode_to_store(
                    load_encoder(EncoderConfig()), lambda part: prompts.texts(rows[part]), items["item_id"], out,
                    made_from=made_from, title=self.data.name,
                )  # fmt: skip
        return out

    def tokens(self, variant: Variant, seed: int) -> Path:
        """Semantic IDs of a tokenizer and seed, made where they are missing."""
        assert variant.tokenizer is not None
        seed = seed % self.token_seeds if self.token_seeds else seed
        size = f"-{variant.codes}" if variant.codes else ""
        name = f"{'aligned-' if variant.aligned else ''}{variant.tokenizer}{size}-{seed}"
        out = self.folder / "tokens" / name
        codes = variant.codes or self.budget.codes
        codebook = TokenizerConfig(levels=self.budget.levels, codes=codes, seed=seed)
        with locked(self.folder / "tokens" / f"{name}.lock"):
            if not out.exists():
                embeddings = self.embeddings if variant.aligned else self.plain_embeddings()
                assert embeddings is not None
                report = ReportConfig(queries=0, points=200)
                tokenize(
                    TokenizeConfig(
                        data=self.prepared(), embeddings=embeddings, out=out, tokenizer=variant.tokenizer,
                        codebook=codebook, report=report, resume=True,
                    )
                )  # fmt: skip
        return out

    def user_tokens(self, history: int, seed: int) -> Path:
        """Semantic IDs of users, by the mean of their last places' vectors, made where they are missing."""
        seed = seed % self.token_seeds if self.token_seeds else seed
        vectors, out = self.folder / f"users-{history}", self.folder / "tokens" / f"users-{history}-{seed}"
        with locked(self.folder / "tokens" / f"users-{history}.lock"):
            if not out.exists():
                write_user_vectors(
                    vectors, self.prepared(), EmbeddingStore.open(self.plain_embeddings()), "mean", history
                )
                tokenize(
                    TokenizeConfig(
                        data=self.prepared(), embeddings=vectors, out=out, report=ReportConfig(queries=0, points=200),
                        codebook=TokenizerConfig(levels=self.budget.levels, codes=self.budget.codes, seed=seed),
                    )
                )  # fmt: skip
        return out

    def config(self, tower: str, variant: Variant, seed: int, run: Path) -> TrainConfig:
        """The resolved training config of a cell."""
        budget = self.budget
        tokens = None if variant.tokenizer is None else self.tokens(variant, seed)
        of_users = None if variant.user_history is None else self.user_tokens(variant.user_history, seed)
        features = FeatureConfig(semantic_ids=tokens, user_semantic_ids=of_users)
        if variant.bare:
            features = replace(features, history_attributes=[], pooled=["user", "hour"])
        if variant.activity:
            features = replace(features, dense=[*features.dense, "activity"])
        steps = (
            budget.epochs * read_manifest(self.prepared(), "prepared")["splits"]["train"]["rows"] // budget.batch_size
        )
        rates = OptimizerConfig(
            table_lr=budget.table_lr,
            dense_lr=budget.dense_lr,
            lr_step=max(1, steps // budget.lr_drops),
            lr_gamma=budget.lr_gamma,
        )
        return TrainConfig(
            data=self.prepared(),
            run=run,
            features=features,
            ranker=RankerConfig(tower=tower, rest=variant.rest, akt=variant.akt),
            optimizer=rates,
            batch_size=budget.batch_size,
            epochs=budget.epochs,
            seed=seed,
        )


def identity(config: TrainConfig) -> dict[str, Any]:
    """What decides a cell's result, JSON-ready: the config, with hashes for paths."""
    about = json.loads(json.dumps(asdict(config), default=str))
    about["data"] = read_manifest(config.data, "prepared")["content_hash"]
    for name, kind in (("semantic_ids", "tokens"), ("user_semantic_ids", "user_tokens")):
        tokens = getattr(config.features, name)
        about["features"][name] = None if tokens is None else read_manifest(tokens, kind)["semantic_ids_hash"]
    del about["run"]
    return about


def fits(kept: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a kept config is the wanted one; a setting that is younger than the kept one is at its default.

    The settings of a plug-in that is off do not count.
    """
    plain = json.loads(json.dumps(asdict(TrainConfig(data=Path(), run=Path())), default=str))

    def same(old: Any, new: Any, default: Any) -> bool:
        if not (isinstance(old, dict) and isinstance(new, dict) and isinstance(default, dict)):
            return bool(old == new)
        return not old.keys() - new.keys() and all(
            same(old[k], new[k], default.get(k)) if k in old else new[k] == default.get(k) for k in new
        )

    def in_use(config: dict[str, Any]) -> dict[str, Any]:
        ranker = config.get("ranker", {})
        off = [name for name in ("rest", "akt") if ranker.get(name, {}).get("enabled") is False]
        return config | {"ranker": ranker | dict.fromkeys(off)}

    return same(in_use(kept), in_use(wanted), plain)


@dataclass(frozen=True)
class Cell:
    """One ranker of one seed.

    Attributes:
        place: dataset and work folder.
        tower, variant, seed: what is trained.
    """

    place: Workplace
    tower: str
    variant: Variant
    seed: int

    @property
    def path(self) -> Path:
        return self.place.folder / "cells" / self.tower / self.variant.name / f"{self.seed}.json"

    def done(self) -> dict[str, Any] | None:
        """The result that is kept, None without or if it is of other settings."""
        if not self.path.exists():
            return None
        kept: dict[str, Any] = json.loads(self.path.read_text())
        wanted = identity(self.place.config(self.tower, self.variant, self.seed, self.path))
        return kept if fits(kept["config"], wanted) else None

    def requests(self) -> NDArray[np.float32]:
        """AUC of each test request, NaN for those of one class: [R], in the same order for all cells of a dataset."""
        found: NDArray[np.float32] = np.load(self.path.with_suffix(".npy"))
        return found

    def run(self) -> bool:
        """Train, evaluate and keep, unless that is done or another process is at it; whether a result is there."""
        with locked(self.path.with_suffix(".lock"), wait=False) as mine:
            if not mine:
                return False
            if self.done() is None:
                self._run()
            return True

    def _run(self) -> None:
        start = time.process_time()
        folder = self.path.with_suffix(".run")
        shutil.rmtree(folder, ignore_errors=True)
        config = self.place.config(self.tower, self.variant, self.seed, folder)
        train(config)
        trained = time.process_time()
        with runtime(self.seed) as rt:
            score, _, saved = load_scorer(folder, rt)
            predictions = predict(score, SampleLoader(config.data, "test", config.batch_size)).sort()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        result = {
            "tower": self.tower,
            "variant": self.variant.name,
            "seed": self.seed,
            "config": identity(config),
            "environment": environment(),
            "step": saved["step"],
            "valid": [line for line in lines if line["split"] == "valid"],
            "logged": [line for line in lines if line["split"] == "train"][-1],
            "test": measure(predictions, config.data),
            "train_seconds": trained - start,
            "seconds": time.process_time() - start,
        }
        with whole_file(self.path.with_suffix(".npy")) as beside, open(beside, "wb") as f:
            np.save(f, grouped_auc(predictions.request, predictions.label, predictions.logit).auc.astype(np.float32))
        write_json(self.path, result)
        shutil.rmtree(folder)


def activity_parts(of: str) -> tuple[str, ...]:
    """Names of the buckets of items, or users, by their positives in training."""
    edges = (0, *ACTIVITY_EDGES)
    return (*(f"{of} of {a} to {b - 1}" for a, b in pairwise(edges)), f"{of} of {edges[-1]} or more")


@cache
def _catalog(prepared: Path) -> tuple[ItemFacts, NDArray[np.int64]]:
    """Items, and the users' positives in training by row; row 0, of all unknown users, has none."""
    users = pq.read_table(prepared / "users.parquet")["positives"].to_numpy().astype(np.int64)
    users[0] = 0
    return ItemFacts.load(prepared), users


def measure(predictions: Predictions, prepared: Path) -> dict[str, dict[str, Any]]:
    """Metrics of the whole test split and of its parts, by name: popularity, visits, activity, density."""
    items, users = _catalog(prepared)
    whole = predictions.summary()
    found: dict[str, dict[str, Any]] = {"all": whole.to_json()}
    parts = [s for s in slicings(predictions, items) if s.name in _PARTS]
    names = {s.name: dict(zip(s.labels, _PARTS[s.name], strict=True)) for s in parts}
    for of, counts in (("items", items.positives[predictions.item_row]), ("users", users[predictions.user_row])):
        code = np.searchsorted(ACTIVITY_EDGES, counts, side="right").astype(np.int64)
        parts.append(Slicing(name=of, title=of, code=code, labels=activity_parts(of)))
        names[of] = {label: label for label in activity_parts(of)}
    sparse = density_scale(items.lat, items.lon)[predictions.item_row] >= SPARSE
    density = {label: label for label in ("dense places", "sparse places")}
    parts.append(Slicing(name="density", title="density", code=sparse.astype(np.int64), labels=tuple(density)))
    names["density"] = density
    for part in parts:
        for line in slice_metrics(part, predictions, predictions.logit, predictions.predicted()):
            found[names[part.name][line["label"]]] = line
    return found
