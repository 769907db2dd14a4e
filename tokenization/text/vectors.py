"""What a tokenizer reads of the embeddings, in memory or on disk: a sample to learn from, and blocks."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..ranks import Ranks
from .store import EmbeddingStore, embedding_chunks, embedding_rows

Vectors = Tensor | EmbeddingStore
"""Embeddings [N, D] of N items: a tensor of any float type, or a store on disk."""


def dim_of(vectors: Vectors) -> int:
    return vectors.dim if isinstance(vectors, EmbeddingStore) else vectors.shape[1]


def check_vectors(vectors: Vectors) -> None:
    """Shape and type.

    Raises:
        ValueError: not [N, D], no rows, or not of a float type.
    """
    if isinstance(vectors, Tensor):
        if vectors.dim() != 2 or not vectors.is_floating_point():
            raise ValueError(
                f"vectors: got {tuple(vectors.shape)} {vectors.dtype}, expected [N, D] of a floating dtype"
            )
        if vectors.shape[1] == 0:
            raise ValueError("vectors: got 0 dimensions, expected at least one")
    if len(vectors) == 0:
        raise ValueError("vectors: got no rows, expected at least one item")


def check_finite(x: Tensor, rows: int | Tensor, vectors: Vectors) -> Tensor:
    """x, some rows of vectors (their numbers, or that of the first), if every number in it is finite.

    Raises:
        ValueError: names the first row that holds NaN or infinity, and its item id if the store has one.
    """
    if torch.isfinite(x.sum()):  # one pass; NaN and infinity come through a sum
        return x
    bad = (~x.isfinite()).any(1).nonzero().flatten()
    if not len(bad):
        return x
    row = rows + int(bad[0]) if isinstance(rows, int) else int(rows[bad[0]])
    which = f" (item {vectors.ids[row].as_py()!r})" if isinstance(vectors, EmbeddingStore) else ""
    raise ValueError(
        f"vectors: row {row}{which} holds NaN or infinity, and so do {len(bad) - 1} more of the {len(x)} rows read "
        "with it; expected finite numbers: make the embeddings again, in fp32"
    )


def blocks(vectors: Vectors, rows: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """(row of the first, float32 [rows, D] on the device), in row order, checked."""
    first = 0
    for x in embedding_chunks(vectors, rows):
        yield first, check_finite(x, first, vectors).to(device)
        first += len(x)


T = TypeVar("T")


def ahead(parts: Iterator[T]) -> Iterator[T]:
    """The same, each made on a thread while the one before is worked on: reading and computing side by side.

    Holds one more than the caller does.
    """
    with ThreadPoolExecutor(1, "placerank-reader") as reader:
        waiting = reader.submit(next, parts, None)
        while (part := waiting.result()) is not None:
            waiting = reader.submit(next, parts, None)
            yield part


def block(vectors: Vectors, start: int, stop: int, device: torch.device) -> Tensor:
    """Rows start to stop, float32 [stop - start, D] on the device, checked."""
    x = vectors[start:stop].float() if isinstance(vectors, Tensor) else vectors.rows(torch.arange(start, stop))
    return check_finite(x, start, vectors).to(device)


@dataclass(frozen=True)
class Sample:
    """Rows to learn from.

    Attributes:
        rows: this rank's row numbers, int64 [S], in random order.
        x: their embeddings, float32 [S, D] on the device.
        seed_rows, seeds: a few rows of the whole sample, the same on every rank.
        total: rows of the sample over all ranks.
        mean: of the whole sample, float32 [D].
        variance: mean squared distance to the mean over the whole sample, summed over dimensions.
    """

    rows: Tensor
    x: Tensor
    seed_rows: Tensor
    seeds: Tensor
    total: int
    mean: Tensor
    variance: float


def draw_sample(
    vectors: Vectors, rows: int, seeds: int, generator: torch.Generator, ranks: Ranks, device: torch.device
) -> Sample:
    """``rows`` random rows, or all if there are fewer, dealt out to the ranks.

    The sample is the same for any number of ranks, so what is learned from it differs by rounding alone.
    """
    order = torch.randperm(len(vectors), generator=generator)[:rows]
    mine, seed_rows = order[ranks.rank :: ranks.world], order[:seeds]
    wanted, back = torch.cat([mine, seed_rows]).unique(return_inverse=True)  # read once, in the order of the disk
    read = check_finite(embedding_rows(vectors, wanted), wanted, vectors)
    x, chosen = (read[at].to(device) for at in back.split([len(mine), len(seed_rows)]))
    del read
    mean = x.sum(0, dtype=torch.float64)
    ranks.sum_(mean)
    mean = (mean / len(order)).float()
    squares = (x - mean).square().sum(dtype=torch.float64).reshape(1)
    ranks.sum_(squares)
    return Sample(mine, x, seed_rows, chosen, len(order), mean, float(squares) / len(order))
