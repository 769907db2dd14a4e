"""``align``: a language model learns where places are and who visits them, and encodes all items.

The way: prompts of all items; their vectors by the encoder as it comes; an adapter learns what is visited together
(``behaviour``, if asked for); a reward model learns which location goes with which content; the adapter learns from
it by preferences (``gdpo``); vectors again; a report.

What it writes: ``embeddings/`` and ``embeddings_before/`` (see ``store``), ``adapter/`` (as peft writes adapters),
``reward.safetensors``, ``items.parquet`` (each item's content, location and district), ``districts.parquet`` where
districts were derived, ``users/`` (vectors of users, if ``behaviour.users`` says by what), ``report.json``,
``report.html``, the steps' ``metrics.jsonl`` and ``manifest.json``.
"""

import hashlib
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from ..data.manifest import MANIFEST, read_manifest, sha256_file, verify_files, write_json, write_manifest
from ..data.plain import from_plain, read_json
from ..data.raw.schema import read_items
from ..data.urls import fetched, place
from .alignment import behaviour as visits
from .alignment.behaviour import VisitPairs, align_behaviour
from .alignment.finetune import METRICS, read_metrics
from .alignment.gdpo import LADDER, GDPOConfig, align_policy, pair_counts
from .alignment.histories import Histories, cooccurrence, count_threshold, read_histories
from .alignment.locations import Locations
from .alignment.lora import add_adapter, load_adapter, save_adapter, targets_of
from .alignment.pairs import PreferencePairs, collaborative_pairs, geographic_pairs
from .alignment.reward import RewardModel, train_reward
from .alignment.users import write_user_vectors
from .judging.align_report import embedding_measures, measures_here, write_align_report
from .ranks import Ranks, joined, rank_device
from .settings import AlignConfig
from .text.districts import Districts, with_districts
from .text.encoders import Encoder, EncoderConfig, encode_to_store, load_encoder
from .text.pictures import beside_table, check_pictures
from .text.prompts import PromptConfig, Prompts, build_prompts
from .text.reading import read_measures
from .text.store import EmbeddingStore
from .work import resumable_folder

log = logging.getLogger(__name__)
KIND = "align"
_COLUMNS = (
    *("item_id", "name", "category", "brand", "price", "lat", "lon"),
    *("province", "city", "district", "description", "image"),
)
_DISTRICTS = "districts.parquet"


def align(config: AlignConfig) -> Path:
    """Run the step; returns the folder. Under torchrun, all ranks call it.

    Killed and started again with ``resume``, it ends as it would have: each part is taken up where it was.

    Raises:
        FileNotFoundError, FileExistsError: no data or model there; the output exists.
        ValueError: nothing to learn from (no text, one location, no pairs), an encoder without key and value
            projections, or an unfinished run with other settings.
    """
    with joined() as ranks:
        items, content_hash = read_catalog(config.data, config.items)
        unlike = ("out", "resume", "overwrite", "device")
        settings = {name: value for name, value in asdict(config).items() if name not in unlike}
        identity = {"config": settings, "data": content_hash}
        with resumable_folder(
            config.out, identity, resume=config.resume, overwrite=config.overwrite, ranks=ranks
        ) as folder:
            job = _Job(config, items, folder, ranks)
            trains = config.adapter is None and (config.rung != "none" or config.behaviour.pairs > 0)
            report = job.run() if trains else job.encode_only()
            if ranks.is_first:
                job.finish(report, {"data": content_hash})
    return config.out


def read_catalog(data: Path, raw: Path | None = None) -> tuple[pa.Table, str]:
    """The items of a prepared folder in catalog order (or of a raw one), and the content hash of the folder.

    Args:
        data: a prepared folder, or one with items.parquet.
        raw: where to take columns from that are not in ``data``.
    """
    if (data / "catalog.parquet").is_file():
        content_hash = str(read_manifest(data, "prepared")["content_hash"])
        table = pq.read_table(fetched(data / "catalog.parquet")).slice(1)  # row 0 stands for items that are not in it
    else:
        table = _with_pictures(read_items(data), data)
        file = data / "items.parquet" if data.is_dir() else data
        content_hash = sha256_file(fetched(file))
    if raw is not None:
        more = _with_pictures(read_items(raw), raw)
        at = pc.index_in(table["item_id"].combine_chunks(), value_set=more["item_id"].combine_chunks())
        for name in more.column_names:
            if name not in table.column_names:
                table = table.append_column(name, more[name].take(at))
    return table.select([name for name in _COLUMNS if name in table.column_names]).combine_chunks(), content_hash


def _with_pictures(items: pa.Table, source: Path) -> pa.Table:
    """Raw items with the whole paths of their pictures."""
    if "image" not in items.column_names:
        return items
    return items.set_column(items.column_names.index("image"), "image", beside_table(items["image"], source))


class _Job:
    """One run, in its unfinished folder."""

    def __init__(self, config: AlignConfig, items: pa.Table, folder: Path, ranks: Ranks) -> None:
        self.config, self.folder, self.ranks = config, folder, ranks
        self.steps = folder / "steps"  # what is not kept: vectors of training prompts, checkpoints
        self.adapter = None if config.adapter is None else fetched(config.adapter)
        self.parts = _parts_of(self.adapter) if self.adapter else (config.encoder, config.prompts)
        self.users: dict[str, Any] = {"by": config.behaviour.users, "history": config.behaviour.history}
        if self.adapter is not None:
            self.users = read_manifest(self.adapter, KIND).get("users", self.users)
        self.has_visits = (config.data / "catalog.parquet").is_file()
        if config.behaviour.users != "none" and not self.has_visits:
            raise ValueError(
                f"behaviour.users={config.behaviour.users}: {config.data} has no visits to make users of; expected "
                "the folder that placerank prepare made, or none"
            )
        if self.adapter is None:
            self.items, self.districts = with_districts(items, config.districts)
        else:
            self.items, self.districts = _placed(items, self.adapter)
        self.encoder: Encoder = load_encoder(self.parts[0], rank_device(config.device))
        self.prompts: Prompts = build_prompts(self.items, self.parts[1], self.parts[0].images)
        self.first_reward, self.gdpo = (
            (config.reward, config.gdpo) if config.rung == "none" else LADDER[config.rung](config.reward, config.gdpo)
        )

    def run(self) -> dict[str, Any]:
        """Train and encode; the report's numbers."""
        config, behaviour = self.config, self.config.behaviour
        report = self._begun(config.rung)
        # What can't be trained is told before hours of encoding.
        targets_of(self.encoder, config.lora)
        locations = self._locations() if config.rung != "none" else None
        before = self._encode_items("embeddings_before", None)
        parameters = add_adapter(self.encoder, config.lora, config.seed)
        trained = sum(p.numel() for p in parameters)
        whole = sum(p.numel() for p in self.encoder.model.parameters())
        log.info("adapter: %s of %s weights train", f"{trained:,}", f"{whole:,}")
        report["trained_weights"] = trained
        histories = self._histories()
        report["visits"] = {"count": len(histories.user), "share_of_users": histories.share}
        held_out: VisitPairs | None = None
        if behaviour.pairs:
            held_out = self._behaviour(histories, parameters, report)
        if locations is not None:
            self._geography(locations, histories, parameters, report)
        if self.ranks.is_first:
            save_adapter(self.encoder, self.folder / "adapter")
        self.ranks.barrier()
        after = self._encode_items("embeddings", _adapter_hash(parameters))
        if held_out is not None:
            report["behaviour"]["held_out"]["after"] = self._partners(after, held_out)
        self._users(after, report)
        if self.ranks.is_first:
            report["embeddings"] = embedding_measures(before, after, self.items, config.queries, self.encoder.device)
        return report

    def encode_only(self) -> dict[str, Any]:
        """Encode with the encoder as it is, or with that and the adapter of an earlier run; nothing is trained."""
        report, earlier = self._begun("none"), self.adapter
        if earlier is None:
            here = self._encode_items("embeddings", None)
            self._users(here, report)
            if self.ranks.is_first:
                report["embeddings"] = measures_here(here, self.items, self.config.queries, self.encoder.device)
            return report
        if (earlier / "adapter").is_dir():
            load_adapter(self.encoder, earlier / "adapter")
            if self.ranks.is_first:
                shutil.copytree(earlier / "adapter", self.folder / "adapter", dirs_exist_ok=True)
        here = self._encode_items("embeddings", EmbeddingStore.open(earlier).made_from.get("adapter"))
        self._users(here, report)
        if self.ranks.is_first:
            report["embeddings"] = measures_here(here, self.items, self.config.queries, self.encoder.device)
        return report | {"encoded_with": str(self.config.adapter)}

    def _begun(self, rung: str) -> dict[str, Any]:
        """The report's first numbers. What the encoder can't read is told before hours of encoding."""
        report: dict[str, Any] = {"items": len(self.items), "rung": rung}
        if self.ranks.is_first:
            report["prompts"] = read_measures(self.encoder, self.prompts.inputs, len(self.items))
            if self.prompts.images is not None:
                report["pictures"] = check_pictures(self.prompts.images)
                log.info("%s of %s items have a picture", f"{report['pictures']:,}", f"{len(self.items):,}")
        return report

    def _made_from(self, adapter: str | None) -> dict[str, Any]:
        """What decides an item's vector, whatever data it is in."""
        encoder, prompts = (asdict(part) for part in self.parts)
        how = {name: encoder[name] for name in ("model", "normalize", "max_tokens", "precision")}
        how |= {"pooling": self.encoder.pooling, "images": self.encoder.shows}
        return {"encoder": how, "prompts": prompts, "adapter": adapter}

    def _encode_items(self, name: str, adapter: str | None) -> EmbeddingStore:
        rows = np.arange(len(self.items))
        return encode_to_store(
            self.encoder,
            lambda part: self.prompts.inputs(rows[part]),
            self.items["item_id"],
            self.folder / name,
            made_from=self._made_from(adapter),
            shard_rows=self.config.shard_rows,
            title=name.replace("_", " "),
        )

    def _histories(self) -> Histories:
        if (self.config.data / "catalog.parquet").is_file():
            return read_histories(self.config.data, len(self.items))
        empty = np.zeros(0, np.int64)
        return Histories(empty, empty, empty, len(self.items))

    def _behaviour(
        self, histories: Histories, parameters: list[nn.Parameter], report: dict[str, Any]
    ) -> VisitPairs | None:
        """Train on what is visited together; returns the pairs kept for the report."""
        config, rng = self.config.behaviour, np.random.default_rng([self.config.seed, 5])
        threshold = threshold_of(histories, config.cooccurrence_threshold)
        a, b, _ = cooccurrence(histories, threshold)
        users = round(config.pairs * config.user_share) if config.users != "none" else 0
        aside = min(config.held_out_pairs, len(a) // 10)
        pairs = visits.item_pairs(a, b, config.pairs - users + aside, config.history, rng)
        held_out, pairs = pairs.take(slice(0, aside)), pairs.take(slice(aside, None))
        if users:
            more = visits.user_pairs(histories, users, config.history, rng)
            pairs = VisitPairs(*(np.concatenate([getattr(p, n) for p in (pairs, more)]) for n in vars(pairs)))
        measured = {}
        if len(held_out):
            measured["before"] = self._partners(EmbeddingStore.open(self.folder / "embeddings_before"), held_out)
        curve = align_behaviour(
            self.encoder, parameters, self.prompts, pairs, config, self.steps / "behaviour", self.config.seed
        )
        report["behaviour"] = {
            "pairs": {"items": int((~pairs.is_user).sum()), "users": int(pairs.is_user.sum())},
            "cooccurrence": {"threshold": threshold, "pairs": len(a)},
            "steps": len(curve),
            "held_out": measured,
        }
        return held_out if len(held_out) else None

    def _partners(self, store: EmbeddingStore, pairs: VisitPairs) -> dict[str, float]:
        return visits.partner_measures(store, visits.anchor_vectors(None, store, pairs), pairs)

    def _locations(self) -> Locations:
        lat, lon = (self.items[name].to_numpy().astype(np.float64) for name in ("lat", "lon"))
        return Locations(self.prompts, lat, lon)

    def _geography(
        self, locations: Locations, histories: Histories, parameters: list[nn.Parameter], report: dict[str, Any]
    ) -> None:
        """The reward model, then the preferences."""
        seed, adapter = self.config.seed, _adapter_hash(parameters)
        made_from = self._made_from(adapter)
        done = self.folder / "reward.json"
        if done.is_file():
            reward = RewardModel.load(self.folder / "reward.safetensors")
            report["reward"] = read_json(done, dict[str, Any], "remove it: the reward model is trained again")
        else:
            reward, report["reward"] = train_reward(
                self.encoder, self.prompts, locations, self.first_reward, self.steps / "reward", made_from, seed
            )
            self.ranks.barrier()
            if self.ranks.is_first:
                shutil.copy(self.steps / "reward" / "reward.safetensors", self.folder / "reward.safetensors")
                write_json(done, report["reward"])
        pairs, together = preference_pairs(histories, locations, self.gdpo, np.random.default_rng([seed, 6]))
        report["gdpo"] = {"pairs": pair_counts(pairs), "cooccurrence": together, "steps": 0}
        folder = self.steps / "gdpo"
        align_policy(
            self.encoder, parameters, reward, self.prompts, locations, pairs, self.gdpo, folder, made_from, seed
        )
        report["gdpo"]["steps"] = len(read_metrics(folder))

    def _users(self, items: EmbeddingStore, report: dict[str, Any]) -> None:
        """Vectors of users, made as the anchors are in training; items alone, added by an adapter, have none."""
        by, history = self.users["by"], self.users["history"]
        if by == "none" or not self.has_visits:
            return
        how, text = {"shard_rows": self.config.shard_rows}, (self.encoder, self.prompts)
        count = write_user_vectors(self.folder / "users", self.config.data, items, by, history, **how, text=text)
        report["users"] = {"count": count, **self.users}

    def finish(self, report: dict[str, Any], made_from: dict[str, str]) -> None:
        """Files beside the embeddings, the report and the manifest; what only a restart needs goes."""
        if self.districts is not None:
            self.districts.save(self.folder / _DISTRICTS)
        texts = {"content": self.prompts.content, "location": self.prompts.location}
        kept = {n: self.items[n] for n in self.items.column_names if n not in ("description", "image")}
        pq.write_table(pa.table({**kept, **texts}), self.folder / "items.parquet", compression="zstd")
        curves = {}
        for name in ("behaviour", "gdpo"):
            curves[name] = read_metrics(self.steps / name)
            if curves[name]:
                shutil.copy(self.steps / name / METRICS, self.folder / f"{name}_{METRICS}")
        write_align_report(self.folder, report, curves)
        shutil.rmtree(self.steps, ignore_errors=True)
        (self.folder / "reward.json").unlink(missing_ok=True)  # the report holds it
        encoder, prompts = self.parts
        parts = {"encoder": asdict(encoder), "prompts": asdict(prompts)}
        config = asdict(self.config)
        write_manifest(self.folder, KIND, config, made_from, **parts, items=len(self.items), users=self.users)


def threshold_of(histories: Histories, threshold: int | None) -> int:
    """How many users have to be exceeded for a pair to count as visited together: as set, or as the data have it."""
    return count_threshold(histories) if threshold is None else threshold


def preference_pairs(
    histories: Histories, locations: Locations, config: GDPOConfig, rng: np.random.Generator
) -> tuple[PreferencePairs, dict[str, int]]:
    """D_mix: collaborative pairs up to their share, as far as there are such, and geographic ones for the rest.

    Returns:
        The pairs; and the threshold of co-occurrence and how many pairs of items exceed it, empty where none are
        wanted.
    """
    parts, together = [], {}
    wanted = round(config.pairs * config.collaborative_share)
    if wanted:
        threshold = threshold_of(histories, config.cooccurrence_threshold)
        a, b, _ = cooccurrence(histories, threshold)
        together = {"threshold": threshold, "pairs": len(a)}
        parts.append(collaborative_pairs(a, b, locations, wanted, rng))
        if len(parts[0]) < wanted:
            log.warning(
                "%s collaborative pairs, %s were wanted: geographic ones take the place of the others; a lower "
                "gdpo.cooccurrence_threshold (%d) finds more",
                f"{len(parts[0]):,}",
                f"{wanted:,}",
                threshold,
            )
    parts.append(geographic_pairs(locations, config.pairs - sum(map(len, parts)), rng))
    return PreferencePairs.join(*parts), together


def load_aligned(folder: Path, device: torch.device | str = "cpu") -> Encoder:
    """The encoder of an align run with its adapter, ready to encode.

    Raises:
        FileNotFoundError, ValueError: no finished align run in ``folder``.
    """
    folder = fetched(place(folder))
    return _load(folder, _parts_of(folder)[0], device)


def encode_items(folder: Path, items: pa.Table, device: torch.device | str = "cpu") -> Tensor:
    """Vectors [n, D] of items in placerank's schema by an align run: its prompts, districts, encoder and adapter.

    A relative path in the column ``image`` begins at the working directory: a table in memory has no folder.
    """
    folder = fetched(place(folder))
    encoder, prompts = _parts_of(folder)
    placed, _ = _placed(items, folder)
    return _load(folder, encoder, device).encode(build_prompts(placed, prompts, encoder.images).inputs())


def _load(folder: Path, config: EncoderConfig, device: torch.device | str) -> Encoder:
    encoder = load_encoder(config, device)
    if (folder / "adapter").is_dir():
        load_adapter(encoder, folder / "adapter")
    return encoder


def _parts_of(folder: Path) -> tuple[EncoderConfig, PromptConfig]:
    """Encoder and prompts of a finished align run, whose adapter and districts are as they were written.

    Raises:
        FileNotFoundError, ValueError: no finished align run, or a damaged file.
    """
    manifest, where = read_manifest(folder, KIND), f"{folder / MANIFEST}"
    small = {n: f for n, f in manifest["files"].items() if n == _DISTRICTS or n.startswith("adapter/")}
    verify_files(folder, small)  # vectors have their own checksums
    return from_plain(EncoderConfig, manifest["encoder"], where), from_plain(PromptConfig, manifest["prompts"], where)


def _placed(items: pa.Table, folder: Path) -> tuple[pa.Table, Districts | None]:
    """Items with the districts of an align run, if it derived them."""
    if not (folder / _DISTRICTS).is_file():
        return items, None
    districts = Districts.load(folder / _DISTRICTS)
    column = districts.of(*(items[name].to_numpy().astype(np.float64) for name in ("lat", "lon")))
    if "district" in items.column_names:
        return items.set_column(items.column_names.index("district"), "district", column), districts
    return items.append_column("district", column), districts


def _adapter_hash(parameters: list[nn.Parameter]) -> str:
    digest = hashlib.sha256()
    for parameter in parameters:
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
