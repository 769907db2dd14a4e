"""What the training loop asks of a kind of ranker: its batches, its loss, and what a validation measures."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.batches.batch import RankingBatch, SampleBatch
from ..data.batches.catalog import Catalog
from ..data.batches.line_loader import LineLoader
from ..data.batches.loader import SampleLoader
from ..data.batches.newcomers import with_newcomers
from ..data.batches.sequences import SequenceBatch, SequenceLoader
from ..rankers.dense import RankerConfig, Scores
from ..rankers.generative.reach import Allowed
from ..rankers.generative_ranker import GenerativeBatch, expand, gather
from .inputs import Inputs
from .model import table_rows
from .predictions import sampling_shift, validate
from .runtime import Runtime

TOGETHER = 64
"""Targets of a user that share one pass of the encoder, at most."""


class Task(ABC):
    """One kind of ranker in training.

    Args:
        inputs: what the run reads.
        catalog: of the items.
        model: of all ranks, sharded.
        loaders: of the training and the validation split.

    Attributes:
        best: which number of ``validate`` checkpoints are compared by.
        higher: whether more of it is better.
        compares: whether the model is validated before its first step too.
        once: whether a step calls the model once, as pipelined ones have to.
    """

    best: str
    higher: bool
    compares = False
    once = True

    model: Any  # wrapped in whatever shards it

    def __init__(
        self, inputs: Inputs, catalog: Catalog, model: nn.Module, loaders: tuple[LineLoader[Any, Any], ...]
    ) -> None:
        self.inputs, self.catalog, self.model = inputs, catalog, model
        self.loader, self.validation = loaders

    @abstractmethod
    def gather(self, batch: Any) -> Any:
        """The host's half of a batch of the loader, in the thread that reads ahead; has ``pin_memory``."""

    @abstractmethod
    def expand(self, host: Any) -> Any:
        """The device's half: what the model takes."""

    @abstractmethod
    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to descend, and what to log: "loss", which is compared over runs, and the numbers beside it."""

    @abstractmethod
    def validate(self, scratch: Path) -> dict[str, float]:
        """Numbers over the validation split, the same on all ranks; the folder is for what ranks exchange."""

    def before(self, step: int) -> None:  # noqa: B027, most have nothing to do
        """What is due before a step."""


class Candidates(Task):
    """Rankers that score candidates: the losses of their objectives; validated by AUC, of several labels its mean.

    Attributes:
        newcomers: the share of targets that are taken for new places.
        seed: which ones.
    """

    best, higher = "auc", True

    newcomers, seed = 0.0, 0

    def gather(self, batch: SampleBatch) -> Any:
        if not self.newcomers:
            return self.catalog.gather(batch)
        return self.catalog.gather(*with_newcomers(batch, self.newcomers, self.seed))

    def expand(self, host: Any) -> RankingBatch:
        return self.catalog.expand(host)

    def before(self, step: int) -> None:
        """Fit ReST's centres to the attributes of all items, on its schedule."""
        contrast = self.model.module.dense.contrast
        if contrast is None or not contrast.due(step):
            return
        rows, counts = self.catalog.attribute_combinations()
        names = self.catalog.features.attributes
        embeddings = [table_rows(self.model, name, rows[:, i]) for i, name in enumerate(names)]
        contrast.refresh(torch.stack(embeddings, dim=1), rows > 0, counts)

    def loss(self, batch: RankingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Those of the objectives and those beside them."""
        scores: Scores = self.model(batch)
        loss, objectives = scores.loss(batch.label, batch.weight, self.model.module.dense.scorer.heads)
        losses = {f"{name}_loss": x for name, x in scores.losses.items()}
        return loss, {**objectives, **losses, **scores.logged}

    def validate(self, scratch: Path) -> dict[str, float]:
        """AUC, its mean over users, log-loss; of several labels their means, and each."""
        shift = sampling_shift(self.inputs.manifest, "valid")
        score = candidate_scorer(self.model, self.catalog)
        return validate(score, self.validation, scratch, shift, outcomes=self.inputs.outcomes)


class Visits(Task):
    """Generative rankers: the negative log-likelihood of visits, in nats; validated by it."""

    best, higher = "nll", False

    def gather(self, batch: SequenceBatch) -> Any:
        return gather(self.catalog, batch)

    def expand(self, host: Any) -> GenerativeBatch:
        return expand(self.catalog, host)

    def loss(self, batch: GenerativeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over the targets that can be: those without codes that the user was never at can't."""
        log_p: Tensor = self.model(batch)
        can = log_p.isfinite()
        loss = -log_p.where(can, 0.0).sum() / can.sum().clamp(min=1)
        return loss, {"loss": loss}

    @torch.no_grad()
    def validate(self, scratch: Path) -> dict[str, float]:
        """Nats a visit, a first visit and a repeated one, and the share of visits that can't be."""
        sums = torch.zeros(3, 2, dtype=torch.float64)  # of first visits, repeated ones, and those that can't be
        for batch in self.validation:
            log_p = self.model(self.expand(self.gather(batch)))[: batch.valid].double().cpu()
            kind = torch.where(log_p.isfinite(), (batch.visits[: batch.valid] > 0).long(), 2)
            sums.index_add_(0, kind, torch.stack([-log_p.where(kind < 2, 0.0), torch.ones_like(log_p)], dim=1))
        dist.all_reduce(sums := sums.to(self.catalog.device))
        (first, firsts), (repeat, repeats), (_, never) = sums.tolist()

        def mean(total: float, count: float) -> float:
            return total / count if count else math.nan

        return {
            "nll": mean(first + repeat, firsts + repeats),
            "nll_first_visits": mean(first, firsts),
            "nll_repeats": mean(repeat, repeats),
            "impossible": mean(never, firsts + repeats + never),
        }


def make_task(
    inputs: Inputs,
    catalog: Catalog,
    model: nn.Module,
    runtime: Runtime,
    batch_size: int,
    seed: int,
    newcomers: float = 0.0,
) -> Task:
    """The task of a run's kind of ranker.

    Args:
        inputs, catalog, model: see ``Task``.
        runtime: ranks and device.
        batch_size: samples or targets a step and rank.
        seed: of the order, and of newcomers.
        newcomers: see ``Candidates``.
    """
    generates = inputs.ranker.generates
    make = visit_loader if generates else _sample_loader
    loaders = tuple(make(inputs, split, batch_size, runtime, seed) for split in ("train", "valid"))
    if generates:
        return Visits(inputs, catalog, model, loaders)
    task = Candidates(inputs, catalog, model, loaders)
    task.newcomers, task.seed = newcomers, seed
    return task


def _sample_loader(inputs: Inputs, split: str, batch_size: int, runtime: Runtime, seed: int) -> SampleLoader:
    return SampleLoader(
        inputs.folder,
        split,
        batch_size,
        rank=runtime.rank,
        world_size=runtime.world_size,
        seed=seed,
        shuffle=split == "train",
    )


def visit_loader(
    inputs: Inputs,
    split: str,
    batch_size: int,
    runtime: Runtime,
    seed: int = 0,
    together: int = TOGETHER,
    before: int | None = None,
) -> SequenceLoader:
    """Batches of a split's visits for a generative ranker, with all visits that it looks back on, or ``before``."""
    return SequenceLoader(
        inputs.folder,
        split,
        batch_size,
        history=before or history(inputs.ranker),
        together=together,
        rank=runtime.rank,
        world_size=runtime.world_size,
        seed=seed,
        shuffle=split == "train",
    )


def scored_together(items: int) -> int:
    """Requests whose scores of so many items each are held at once: 4 million numbers, and 256 requests at most."""
    return min(max(4_000_000 // items, 1), 256)


def history(ranker: RankerConfig) -> int:
    """Visits that a generative ranker looks back on."""
    length: int = ranker.generator.history
    return length


def candidate_scorer(model: nn.Module, catalog: Catalog) -> Callable[[SampleBatch], Tensor]:
    """Samples to logits [B], or [B, K] of several objectives; without gradients."""

    @torch.no_grad()
    def score(sample: SampleBatch) -> Tensor:
        logits: Tensor = model(catalog.expand(sample)).logits
        return logits

    return score


LEAST_LOG_P = -50.0
"""What an item that can't be is scored as: it has no codes, and the user was never there."""


def visit_scorer(model: Any, catalog: Catalog) -> Callable[[SampleBatch], Tensor]:
    """Samples to log-odds of the candidate among all places: log p - log(1 - p), at least ``LEAST_LOG_P``."""

    def score(sample: SampleBatch) -> Tensor:
        pairs = torch.stack([sample.request, sample.item], dim=1)
        distinct, which = pairs.unique(dim=0, return_inverse=True)  # a batch's last candidate may be there again
        offsets = F.pad(torch.bincount(distinct[:, 0], minlength=len(sample.user)).cumsum(0), (1, 0))
        batch = expand(catalog, gather(catalog, sample))
        log_p: Tensor = model.module.score(batch, allowed=Allowed(offsets, distinct[:, 1]))
        log_p = log_p.double().clamp(LEAST_LOG_P, -1e-9)[which]
        return (log_p - torch.log(-torch.expm1(log_p))).float()

    return score
