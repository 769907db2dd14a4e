"""``tokenize``: embeddings of items, or of users, become semantic IDs, with their codebooks and a report.

What it writes: ``semantic_ids.parquet`` (see ``semantic_ids``), ``tokenizer/`` (codebooks.safetensors and manifest,
enough to encode new items), ``districts.parquet`` where districts were derived, ``measures.json``, ``report.html``,
pictures and ``manifest.json``.

While it runs, the state of the fit and the codes of each block of items lie in the unfinished folder, so that a run
that was killed goes on with ``resume``: the result is the same. The output appears when it is whole.

**Memory.** Neither embeddings nor items are ever held: the items lie there in a file too, in the order of the
embeddings, which the ranks of a machine map together (``item_table``). Every rank holds the sample that codebooks are
learned from, three blocks of ``block_rows`` embeddings, and for a moment 8 bytes an item, the order that the sample is
drawn from. The first rank, at the end, holds codes, suffixes and ids, 4 L + 8 bytes an item and the ids, and some 50
bytes more an item while suffixes are dealt out. Where the data has the items in another order than the embeddings, or
others too, each rank also holds the ids of both while it looks them up; a raw folder's items are checked whole.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.manifest import (
    MANIFEST,
    joint_hash,
    read_manifest,
    sha256_file,
    whole_file,
    write_json,
    write_manifest,
)
from ..data.plain import flat, read_json
from ..data.requests import OWN
from ..data.urls import fetched
from ..reports.progress import Progress
from .codes.semantic_ids import FILE, KINDS, SemanticIds
from .codes.tokenizers import (
    Tokenizer,
    load_tokenizer,
    tokenizer_type,
)
from .judging.tokenize_report import measure, write_report
from .ranks import Ranks, joined, rank_device
from .settings import TokenizeConfig
from .text.districts import Districts, derived_districts
from .text.item_table import (
    in_order,
    item_blocks,
    read_mapped,
    rows_in,
    same_order,
    take_rows,
    user_blocks,
    with_column,
)
from .text.store import INFO, ITEM, USER, EmbeddingStore
from .text.vectors import ahead, block
from .work import resumable_folder

log = logging.getLogger(__name__)
_COLUMNS = ("item_id", "name", "category", "brand", "lat", "lon", "province", "city", "district")
_DISTRICTS, _TOKENIZER = "districts.parquet", "tokenizer"


def tokenize(config: TokenizeConfig) -> Path:
    """Fit or load a tokenizer, encode all items, write their IDs and a report; returns the folder.

    Under torchrun all ranks call it: each learns from and encodes its part of the items.

    Raises:
        FileNotFoundError, FileExistsError: no data, embeddings or tokens there; the output exists.
        ValueError: data, embeddings and tokens don't fit together, or the embeddings can't be tokenized (see
            ``Tokenizer.fit``).
    """
    with joined() as ranks:
        job = _Job(config, ranks)
        with resumable_folder(
            config.out, job.identity, resume=config.resume, overwrite=config.overwrite, ranks=ranks
        ) as folder:
            job.open(folder)
            tokenizer = job.fit()
            job.encode(tokenizer)
            ranks.barrier()
            if ranks.is_first:
                job.finish(tokenizer)
    return config.out


def items_of(data: Path, ids: pa.Array, own: Sequence[str] = ()) -> pa.Table:
    """Attributes of the items with these ids, in their order: columns of the schema, missing ones null.

    Args:
        data: a prepared folder, or one with items.parquet (or that file).
        own: own columns that the tokenizer was given weights for.

    Raises:
        ValueError: an id that the items don't have, or such a column.
    """
    columns = (*_COLUMNS, *(OWN + name for name in own))
    return take_rows(pa.concat_tables(item_blocks(data, columns)), _all_found(data, ids, ITEM))


def _id_blocks(data: Path, of: str) -> Iterator[pa.Table]:
    """Ids of the items, or users, of a data folder, block by block."""
    return user_blocks(data) if of == USER else item_blocks(data, ("item_id",))


def _all_found(data: Path, ids: pa.Array, of: str) -> NDArray[np.int64]:
    """The rows of ids among the items, or users, of a data folder, which must all be there."""
    rows, count = rows_in(_id_blocks(data, of), ids)
    if (rows < 0).any():
        lost = ids.filter(pa.array(rows < 0))
        raise ValueError(
            f"{len(lost):,} of {len(ids):,} embeddings are of {of}s that {data} does not have, the first is "
            f"{lost[0].as_py()!r}: expected embeddings of these {of}s; give the data that they were made from"
        )
    if count > len(ids):
        log.warning(f"{count - len(ids):,} of {count:,} {of}s have no embedding: they get no new semantic ID")
    return rows


def _identity(store: EmbeddingStore) -> str:
    """Content hash of embeddings: that of the folder that lists them in its manifest, else of their files."""
    for folder in (store.folder, store.folder.parent):
        path = folder / MANIFEST
        if path.is_file():
            manifest = read_json(path, {"content_hash": str, "files": dict[str, Any]}, "make the folder again")
            if (store.folder / INFO).relative_to(folder).as_posix() in manifest["files"]:
                return str(manifest["content_hash"])
    files = sorted(path for path in store.folder.iterdir() if path.is_file())
    return joint_hash((p.name, sha256_file(p)) for p in files)


class _Job:
    """One run of ``tokenize``."""

    def __init__(self, config: TokenizeConfig, ranks: Ranks) -> None:
        self.config, self.ranks, self.device = config, ranks, rank_device(config.device)
        self.store = EmbeddingStore.open(config.embeddings, ITEM, USER)
        self.of = self.store.of
        self.tokenizer = tokenizer_type(config.tokenizer or ("hgit" if self.of == ITEM else "res_kmeans"))
        if self.of == USER and self.tokenizer.needs_items:
            raise ValueError(
                f"tokenizer={config.tokenizer} looks at attributes of items, and {config.embeddings} holds vectors of "
                "users: expected one that needs vectors alone, such as res_kmeans"
            )
        self.add = None if config.add is None else fetched(config.add)
        self.before = SemanticIds.read(self.add, self.of) if self.add else None
        if ranks.is_first:
            _ = self.store.ids  # needed at the end, so too much of them is told now
        self.rows = self._rows()
        self.made_from = {"embeddings": _identity(self.store)}
        self.new: NDArray[np.int64] | None = None  # rows of the embeddings that get an ID now; None: all
        if self.before is not None:
            ids = self.store.ids
            if ids.type != self.before.ids.type:
                raise ValueError(
                    f"{config.embeddings}: {self.of} ids are {ids.type}, those of {config.add} are "
                    f"{self.before.ids.type}; expected the same"
                )
            self.new = np.flatnonzero(pc.index_in(ids, value_set=self.before.ids).is_null().to_numpy(False))
            if ranks.is_first:
                log.info(
                    f"{len(self.new):,} of {len(ids):,} {self.of}s with an embedding are new to {config.add}, the "
                    "others keep the semantic ID that they have there, whatever their vectors are now"
                )
            self.made_from["tokens"] = self.before.hash
        no_matter = ("resume", "overwrite", "device", "report", "out")  # to codes
        settings = {name: value for name, value in asdict(config).items() if name not in no_matter}
        self.identity = {"config": settings, "made_from": self.made_from}

    def _rows(self) -> NDArray[np.int64] | None:
        """The embeddings' items as rows of the data's; None where they are the same in the same order."""
        ids = (block.column(0).combine_chunks() for block in _id_blocks(self.config.data, self.of))
        if same_order(self.store.id_blocks(), ids):
            return None
        return _all_found(self.config.data, self.store.ids, self.of)

    def open(self, folder: Path) -> None:
        """Take the folder that becomes the output, and in it one for what only a restart needs: the items, too."""
        self.folder, self.work = folder, folder / "work"
        every, placed = self.work / "items.arrow", self.work / "district.arrow"
        if self.ranks.is_first:
            self.work.mkdir(exist_ok=True)
            self._write_items(every, placed)
        self.ranks.barrier()
        self.items = read_mapped(every)
        known = self.folder / _DISTRICTS
        self.districts = Districts.load(known) if known.is_file() else None
        if self.districts is not None:
            self.items = self.items.set_column(
                self.items.column_names.index("district"), "district", read_mapped(placed)["district"]
            )

    def _options(self) -> Any:
        """Settings of the tokenizer."""
        known, wanted = (self.config.hgit, self.config.kmeans, self.config.rqvae), self.tokenizer.options_type
        return next(o for o in known if isinstance(o, wanted))

    def _own(self) -> list[str]:
        """Own columns that the tokenizer takes."""
        weights = getattr(self._options(), "w_own", {})
        if self.add is not None:  # it is fitted already
            weights = read_manifest(self.add / _TOKENIZER, "tokenizer")["options"].get("w_own", {})
        return [OWN + name for name in weights]

    def _write_items(self, every: Path, placed: Path) -> None:
        """The items in the order of the embeddings, and their districts: of the tokens to go on from, as the encoder
        saw them, or derived now."""
        config = self.config
        if not every.is_file():
            users = self.of == USER
            blocks = user_blocks(config.data) if users else item_blocks(config.data, (*_COLUMNS, *self._own()))
            in_order(every, blocks, self.rows)
        if self.of == USER:
            return
        items, known = read_mapped(every), None
        if self.add is not None:
            known = self.add / _DISTRICTS
        elif config.districts.derive == "auto":
            known = self.store.folder.parent / _DISTRICTS
        if known is not None and known.is_file():
            districts: Districts | None = Districts.load(known)
        elif config.add is not None or not any(np.isfinite(x.to_numpy(False)).any() for x in items["lat"].chunks):
            districts = None
        else:
            districts = derived_districts(items, config.districts)
        if districts is not None and not (self.folder / _DISTRICTS).is_file():
            with_column(items, "district", placed, districts.of_items)
            with whole_file(self.folder / _DISTRICTS) as tmp:
                districts.save(tmp)

    def fit(self) -> Tokenizer:
        """The tokenizer: of the tokens to go on from, or fitted; also if it was fitted before the run was killed."""
        config, folder = self.config, self.folder / _TOKENIZER
        if self.add is not None:
            return self._loaded(self.add / _TOKENIZER)
        if not (folder / MANIFEST).is_file():
            tokenizer = self.tokenizer(config.codebook, self._options())
            tokenizer.fit(
                self.store,
                self.items,
                checkpoint=self.work / "fit.safetensors",
                device=self.device,
                progress=self.ranks.is_first,
            )
            if self.ranks.is_first:
                tokenizer.save(folder, self.made_from, encoder=self.store.made_from)
            self.ranks.barrier()
        return load_tokenizer(folder, self.device)

    def _loaded(self, folder: Path) -> Tokenizer:
        config, plain = self.config, TokenizeConfig(data=Path(), embeddings=Path("."), out=Path())
        names = ("tokenizer", "codebook", "hgit", "kmeans", "rqvae")
        idle = [name for name in names if getattr(config, name) != getattr(plain, name)]
        if idle:
            log.warning(f"{', '.join(idle)}: no effect, because the codebooks are those of {config.add}")
        encoder = read_manifest(folder, "tokenizer")["encoder"]
        if encoder and self.store.made_from and encoder != self.store.made_from:
            was, now = dict(flat(encoder)), dict(flat(self.store.made_from))
            differs = sorted(key for key in {*was, *now} if was.get(key) != now.get(key))
            told = "; ".join(f"{key}: {was.get(key)!r}, now {now.get(key)!r}" for key in differs)
            raise ValueError(
                f"{config.embeddings} was not made as the embeddings that {config.add} was fitted on ({told}): "
                f"expected the same; encode the {self.of}s as those were, or tokenize anew without --add"
            )
        return load_tokenizer(folder, self.device)

    def _part(self, number: int) -> Path:
        return self.work / f"codes-{number:05d}.npy"

    def encode(self, tokenizer: Tokenizer) -> None:
        """Codes of the new items, block by block, this rank's blocks; those that are there stay."""
        starts = range(0, len(self.store), self.config.block_rows)
        mine = [n for n in range(self.ranks.rank, len(starts), self.ranks.world) if not self._part(n).is_file()]
        total = len(self.store) if self.new is None else len(self.new)
        with Progress("encode", total, f"{self.of}s", shown=self.ranks.is_first) as progress:
            for number, rows, x in ahead(self._blocks(starts, mine)):
                codes = np.zeros((0, tokenizer.config.levels), np.int32)
                if len(rows):
                    codes = tokenizer.encode_block(x, take_rows(self.items, rows)).numpy().astype(np.int32)
                with whole_file(self._part(number)) as tmp, open(tmp, "wb") as f:
                    np.save(f, codes)
                progress.update(len(rows))

    def _blocks(self, starts: range, numbers: list[int]) -> Iterator[tuple[int, NDArray[np.int64], Tensor]]:
        """Each block's number, the rows in it that are new, and their embeddings."""
        for number in numbers:
            start, stop = starts[number], min(starts[number] + self.config.block_rows, len(self.store))
            if self.new is None:
                rows = np.arange(start, stop)
            else:
                rows = self.new[slice(*np.searchsorted(self.new, [start, stop]))]
            x = block(self.store, start, stop, self.device) if len(rows) else torch.empty(0, self.store.dim)
            yield number, rows, x if len(rows) == len(x) else x[rows - start]

    def finish(self, tokenizer: Tokenizer) -> None:
        """Suffixes, files, measures and report."""
        config, levels = self.config, tokenizer.config.levels
        added = len(self.store) if self.new is None else len(self.new)
        codes, start = np.empty((added, levels), np.int32), 0
        for number in range(-(-len(self.store) // config.block_rows)):
            block_codes = np.load(self._part(number))
            codes[start : start + len(block_codes)] = block_codes
            start += len(block_codes)
        if self.before is None:
            tokenizer_hash = read_manifest(self.folder / _TOKENIZER, "tokenizer")["content_hash"]
            ids = SemanticIds.first(self.store.ids, codes, tokenizer.config.codes, tokenizer_hash, self.of)
            shown = ids.codes, ids.suffixes
        else:
            assert self.add is not None and self.new is not None
            shutil.copytree(self.add / _TOKENIZER, self.folder / _TOKENIZER, dirs_exist_ok=True)
            ids = self.before.added(self.store.ids.take(pa.array(self.new)), codes)
            rows = pc.index_in(self.store.ids, value_set=ids.ids).to_numpy(zero_copy_only=False)
            shown = ids.codes[rows], ids.suffixes[rows]
        measures = measure(config.report, tokenizer, self.store, self.items, *shown) | {"of": f"{self.of}s"}
        ids.write(self.folder / FILE)
        write_json(self.folder / "measures.json", measures)
        write_report(self.folder, config.report, measures, self.store, self.items, shown[0])
        shutil.rmtree(self.work)
        write_manifest(
            self.folder,
            KINDS[self.of],
            config,
            self.made_from,
            semantic_ids_hash=ids.hash,
            lineage=list(ids.lineage),
            **{f"{self.of}s": len(ids)},
            added=added,
            levels=int(ids.codes.shape[1]),
            codes=ids.codes_per_level,
            suffixes=ids.suffix_count,
            tokenizer=tokenizer.name,
            lookup=tokenizer.lookup,
        )


def codes_of(ids: SemanticIds, wanted: pa.Array) -> NDArray[np.int64]:
    """Codes and suffix of some items as one table int64 [n, L + 1].

    Raises:
        ValueError: an item without an ID.
    """
    rows = pc.index_in(wanted, value_set=ids.ids)
    if rows.null_count:
        lost = wanted.filter(rows.is_null())
        raise ValueError(
            f"{len(lost):,} of {len(wanted):,} items have no semantic ID, the first is {lost[0].as_py()!r}: add them "
            "with placerank tokenize --add"
        )
    at = rows.to_numpy(zero_copy_only=False)
    return np.column_stack([ids.codes[at].astype(np.int64), ids.suffixes[at]])
