"""One interface for all tokenizers: learn codebooks from embeddings, turn embeddings into codes and codes back.

N items, D numbers an embedding, L levels, K codes a level. A semantic ID is L codes, coarse to fine.

A tokenizer learns in rounds (a level of k-means, an epoch of training). What a round leaves is a dict of tensors; that
dict is all there is to resume from, and, after the last round, the fitted tokenizer. Random choices of a round depend
on the seed and the round's number alone, so a fit that was killed and resumed ends with the same numbers.
"""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import pyarrow as pa
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...data.manifest import MANIFEST, read_manifest, whole_file, write_manifest
from ...data.plain import from_plain
from ...data.urls import fetched, place
from ...kernels.codebook import Metric, residual_encode, residual_lookup
from ...reports.progress import Progress
from ..ranks import Ranks
from ..text.vectors import Sample, Vectors, ahead, block, check_vectors, dim_of, draw_sample
from .balance import fit_prices, with_prices
from .kmeans import SEEDS_PER_CENTRE
from .settings import TokenizerConfig, codes_for

State = dict[str, Tensor]
CODEBOOKS = "codebooks.safetensors"


@dataclass(frozen=True)
class FitData:
    """What the rounds of a fit see: the same sample in each, drawn again when a fit resumes."""

    vectors: Vectors
    items: pa.Table | None
    sample: Sample
    ranks: Ranks
    device: torch.device
    seed: int

    def generator(self, number: int) -> torch.Generator:
        """Random numbers of one round: on the CPU, the same on every rank."""
        return torch.Generator().manual_seed((self.seed << 20) + number + 1)


@dataclass(frozen=True)
class Round:
    """One step of a fit: a title for the progress bar, and what it does to the state."""

    title: str
    run: Callable[[State, FitData, torch.Generator], State]


class Tokenizer(ABC):
    """Embeddings to semantic IDs and back.

    Args:
        config: what every tokenizer has; fitted, its number of codes is known.
        options: its own settings, of ``options_type``; None: the defaults.
    """

    name: ClassVar[str]
    options_type: ClassVar[type]
    needs_items: ClassVar[bool] = False
    lookup: ClassVar[str] = "codes"
    """How rankers look the codes up: each level's code in a table of its own, or ``prefix_ngrams``."""

    def __init__(self, config: TokenizerConfig | None = None, options: Any = None) -> None:
        self.config = config or TokenizerConfig()
        self.options = self.options_type() if options is None else options
        if not isinstance(self.options, self.options_type):
            raise ValueError(
                f"{self.name}: got options {type(self.options).__name__}, expected {self.options_type.__name__}"
            )
        self.state: State = {}
        self.dim = 0
        self.device = torch.device("cpu")
        self.metric: list[Metric] = ["euclidean"] * self.config.levels

    # What a tokenizer writes.

    @abstractmethod
    def _rounds(self, data: FitData) -> list[Round]:
        """The rounds of a fit, in order. The state they end with has ``codebooks`` float32 [L, K, d]."""

    def _project(self, x: Tensor, state: State) -> Tensor:
        """Embeddings [N, D] to the space of the codebooks, [N, d]."""
        return x

    def _unproject(self, z: Tensor, state: State) -> Tensor:
        """Back from the space of the codebooks [N, d] to embeddings [N, D]."""
        return z

    def _codes(self, x: Tensor, items: pa.Table | None, state: State) -> Tensor:
        """Codes int64 [N, L] of some embeddings [N, D] on the device."""
        return self._quantize(self._project(x, state), state, 0)

    # What all share.

    def _quantize(self, z: Tensor, state: State, first: int) -> Tensor:
        """Codes int64 [N, L - first] of what the levels before ``first`` left over, z [N, d]."""
        books, metric = state["codebooks"][first:], self.metric[first:]
        if "prices" in state:
            z, books = with_prices(z, books, state["prices"][first:])
        return residual_encode(z, books, metric=metric)

    def fit(
        self,
        vectors: Vectors,
        items: pa.Table | None = None,
        *,
        checkpoint: Path | None = None,
        device: torch.device | str = "cpu",
        progress: bool = False,
    ) -> Self:
        """Learn the codebooks. Under torch.distributed every rank calls it with the same arguments.

        Args:
            vectors: embeddings [N, D].
            items: table of the N items in the same order, for tokenizers that look at attributes; others ignore it.
            checkpoint: a file that the state is written to after each round; if it is there, the fit goes on from it.
                It is left there at the end.
            device: where to compute.

        Raises:
            ValueError: K larger than N, all embeddings alike, numbers that are not finite, items that are missing or do
                not fit, or a checkpoint of another fit.
        """
        check_vectors(vectors)
        count = len(vectors)
        self.config = config = dataclasses.replace(self.config, codes=self.config.codes or codes_for(count))
        self._check_items(items, count)
        if config.codes > count:
            raise ValueError(
                f"codebook.codes={config.codes} is more than the {count:,} item{'s' * (count > 1)} there are: "
                f"expected at most {count}; lower --codebook.codes, or give more items"
            )
        self.dim, self.device, ranks = dim_of(vectors), torch.device(device), Ranks.current()
        data = self._data(vectors, items, ranks)
        rounds = self._rounds(data)
        if config.capacity:
            rounds.append(Round("balance", self._balance))
        saved = _Checkpoint(checkpoint, self._fingerprint(data), ranks)
        state, done = saved.load(self.device)
        with Progress(f"fit {self.name}", len(rounds), "rounds", done, shown=progress) as bar:
            for number in range(done, len(rounds)):
                bar.note(rounds[number].title)
                state = rounds[number].run(dict(state), data, data.generator(number))
                saved.save(state, number + 1)
                bar.update()
        self.state = {name: tensor for name, tensor in state.items() if not name.startswith("fit.")}
        return self

    def _data(self, vectors: Vectors, items: pa.Table | None, ranks: Ranks) -> FitData:
        config, g = self.config, torch.Generator().manual_seed(self.config.seed << 20)
        sample = draw_sample(vectors, config.sample_rows, SEEDS_PER_CENTRE * config.codes, g, ranks, self.device)
        scale = float(sample.mean.square().sum()) + sample.variance
        if sample.total > 1 and sample.variance <= 1e-10 * scale:
            raise ValueError(
                f"the embeddings of all {sample.total:,} items looked at are the same: expected some that differ; "
                "check the text fields and the encoder"
            )
        return FitData(vectors, items, sample, ranks, self.device, config.seed)

    def _balance(self, state: State, data: FitData, generator: torch.Generator) -> State:
        """A price for each code that keeps the sample within capacity, see ``balance``."""
        if any(metric != "euclidean" for metric in self.metric):
            raise ValueError(
                f"codebook.capacity={self.config.capacity}: {self.name} chooses by cosine, balancing needs distances; "
                "expected 0"
            )
        z = self._project(data.sample.x, state)
        state["prices"] = fit_prices(z, state["codebooks"], self.config.capacity, data.sample.total, data.ranks)
        return state

    def encode_block(self, x: Tensor, items: pa.Table | None = None) -> Tensor:
        """Codes int64 [n, L] of embeddings [n, D] that fit in memory, on the CPU; nothing is refitted.

        Raises:
            ValueError: another number of dimensions than was fitted, or items that don't fit.
        """
        self._check_fitted()
        self._check_items(items, len(x))
        self._check_dim(x.shape[1])
        with torch.no_grad():
            return self._codes(x.to(self.device, torch.float32), items, self.state).cpu()

    def encode_blocks(
        self, vectors: Vectors, items: pa.Table | None = None, *, rows: int = 65_536, start: int = 0
    ) -> Iterator[Tensor]:
        """``encode_block`` of each ``rows`` rows from ``start`` on: memory is bounded by a block.

        Raises:
            ValueError: another number of dimensions than was fitted, not finite, or items that don't fit.
        """
        self._check_fitted()
        check_vectors(vectors)
        self._check_items(items, len(vectors))
        self._check_dim(dim_of(vectors))
        starts = range(start, len(vectors), rows)
        parts = ((i, block(vectors, i, min(i + rows, len(vectors)), self.device)) for i in starts)
        for first, x in ahead(parts):
            yield self.encode_block(x, None if items is None else items.slice(first, rows))

    def encode(self, vectors: Vectors, items: pa.Table | None = None, *, rows: int = 65_536) -> Tensor:
        """Codes int64 [N, L] of embeddings [N, D], new ones too; nothing is refitted. Errors: see ``encode_blocks``."""
        return torch.cat(list(self.encode_blocks(vectors, items, rows=rows)))

    def decode(self, codes: Tensor) -> Tensor:
        """Embeddings float32 [N, D] of codes int64 [N, l], on the CPU; l < L decodes a prefix, from the first levels.

        Raises:
            ValueError: another shape or type, or a code outside of [0, K).
        """
        self._check_fitted()
        books = self.state["codebooks"]
        if codes.dim() != 2 or not 1 <= codes.shape[1] <= len(books) or codes.dtype != torch.int64:
            raise ValueError(f"codes: got {tuple(codes.shape)} {codes.dtype}, expected int64 [N, 1 to {len(books)}]")
        if len(codes) and not (int(codes.min()) >= 0 and int(codes.max()) < books.shape[1]):
            raise ValueError(f"codes: got {int(codes.min())} to {int(codes.max())}, expected 0 to {books.shape[1] - 1}")
        with torch.no_grad():
            z = residual_lookup(codes.to(self.device), books[: codes.shape[1]].contiguous())
            return self._unproject(z, self.state).cpu()

    def to(self, device: torch.device | str) -> Self:
        """Compute there from now on."""
        self.device = torch.device(device)
        self.state = {name: tensor.to(self.device) for name, tensor in self.state.items()}
        return self

    def save(
        self, folder: Path, made_from: dict[str, str] | None = None, encoder: dict[str, Any] | None = None
    ) -> None:
        """Write ``codebooks.safetensors`` and ``manifest.json`` into a folder, which is made.

        Args:
            folder: where.
            made_from: name -> content hash of what it was fitted on.
            encoder: what made the embeddings: those of another are refused later.
        """
        self._check_fitted()
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.cpu().contiguous() for name, tensor in self.state.items()}, folder / CODEBOOKS)
        about = {"tokenizer": self.name, "options": dataclasses.asdict(self.options), "dim": self.dim}
        write_manifest(folder, "tokenizer", self.config, made_from, **about, encoder=encoder or {})

    def _check_fitted(self) -> None:
        if not self.state:
            raise ValueError(f"this {self.name} has no codebooks yet: call fit, or load_tokenizer(folder)")

    def _check_items(self, items: pa.Table | None, count: int) -> None:
        if items is None:
            if self.needs_items:
                raise ValueError(f"{self.name} looks at the items' attributes: got no items, expected their table")
        elif len(items) != count:
            raise ValueError(f"items: got {len(items):,} rows for {count:,} vectors, expected one for each, in order")

    def _check_dim(self, dim: int) -> None:
        if dim != self.dim:
            raise ValueError(
                f"vectors: got {dim} dimensions, this {self.name} was fitted on {self.dim}; expected embeddings of the "
                "same encoder"
            )

    def _fingerprint(self, data: FitData) -> str:
        """Of what a checkpoint must agree with; the sample's mean stands for the embeddings."""
        about = {
            "tokenizer": self.name,
            "config": dataclasses.asdict(self.config),
            "options": dataclasses.asdict(self.options),
            "rows": len(data.vectors),
            "dim": self.dim,
            "mean": round(float(data.sample.mean.double().abs().sum()) / max(data.sample.variance, 1e-30) ** 0.5, 3),
        }
        return json.dumps(about, sort_keys=True, default=str)


class _Checkpoint:
    """The state after the last finished round, in one file that is replaced when the next is whole."""

    def __init__(self, path: Path | None, fingerprint: str, ranks: Ranks) -> None:
        self.path, self.fingerprint, self.ranks = path, fingerprint, ranks

    def load(self, device: torch.device) -> tuple[State, int]:
        if self.path is None or not self.path.is_file():
            return {}, 0
        with safe_open(self.path, "pt") as file:
            about = file.metadata()
        if about["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"{self.path} is of another fit: it has {about['fingerprint']}, this one is {self.fingerprint}; "
                "remove it, or go on with the same settings and embeddings"
            )
        self.ranks.barrier()  # nobody writes the next one before all have read this
        return load_file(self.path, device=str(device)), int(about["done"])

    def save(self, state: State, done: int) -> None:
        if self.path is None or not self.ranks.is_first:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        with whole_file(self.path) as tmp:
            save_file(tensors, tmp, {"fingerprint": self.fingerprint, "done": str(done)})


TOKENIZERS: dict[str, type[Tokenizer]] = {}


def register_tokenizer(tokenizer: type[Tokenizer]) -> None:
    """Make a tokenizer known by its name; a name can be taken once."""
    if tokenizer.name in TOKENIZERS:
        raise ValueError(f"tokenizer {tokenizer.name!r} is already registered as {TOKENIZERS[tokenizer.name]}")
    TOKENIZERS[tokenizer.name] = tokenizer


def tokenizer_type(name: str) -> type[Tokenizer]:
    """A registered tokenizer.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in TOKENIZERS:
        raise ValueError(f"tokenizer {name!r} does not exist; there are {', '.join(sorted(TOKENIZERS))}")
    return TOKENIZERS[name]


def load_tokenizer(folder: Path, device: torch.device | str = "cpu") -> Tokenizer:
    """The tokenizer that ``save`` wrote.

    Raises:
        FileNotFoundError, ValueError: no whole folder of a tokenizer, or a damaged file.
    """
    folder = fetched(place(folder))
    manifest = read_manifest(folder, "tokenizer", verify=True)
    where, name = f"{folder / MANIFEST}", manifest["tokenizer"]
    if name not in TOKENIZERS:
        raise ValueError(f"{where}: got tokenizer {name!r}, this placerank has {', '.join(sorted(TOKENIZERS))}")
    kind = TOKENIZERS[name]
    options: Any = from_plain(kind.options_type, manifest["options"], where)
    tokenizer = kind(from_plain(TokenizerConfig, manifest["config"], where), options)
    tokenizer.dim = manifest["dim"]
    tokenizer.state = load_file(folder / CODEBOOKS)
    return tokenizer.to(device)
