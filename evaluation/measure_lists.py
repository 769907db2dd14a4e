"""Lists of a generative ranker and of what needs no model, on the same visits: exact, of all places."""

from typing import Any

import torch
from torch import Tensor

from ..data.batches.epoch import share
from ..data.batches.semantic_features import SemanticFeatures
from ..data.batches.sequences import ALL, SequenceLoader
from ..data.ranks import Ranks
from ..rankers.generative_ranker import expand, gather
from ..reports.progress import tracked
from ..training.inference import Loaded
from ..training.runtime import Runtime
from ..training.tasks import scored_together, visit_loader
from .breakdown import ItemFacts
from .floors import Floors, transitions
from .lists import ListMetrics, Ways, chosen
from .settings import ListsConfig

MODEL = "model"
_BINS = 10  # of confidence


class Confidence:
    """How sure the first of a list is, and how often it is right: expected calibration error (Guo et al. 2017, eq. 5).

    Sums, so they add up over ranks.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(_BINS, 3, dtype=torch.float64)  # lists, confidence, hits

    def add(self, p: Tensor, hit: Tensor) -> None:
        """Of lists: probability of the first item, float [B], and whether it was the one, bool [B]."""
        which = (p * _BINS).long().clamp(max=_BINS - 1)
        self.sums.index_add_(0, which, torch.stack([torch.ones_like(p), p, hit.double()], dim=1))

    def add_within(self, scores: Tensor, near: Tensor, target: Tensor) -> None:
        """Of lists within reach that hold the item that was visited: the question is which, not whether.

        Args:
            scores: log p, [B, I].
            near: what is within reach, bool [B, I].
            target: int64 [B].
        """
        near = near & near.gather(1, target[:, None])
        some = near.any(1)
        p = scores[some].double().masked_fill(~near[some], -torch.inf).softmax(dim=1)
        top = p.max(dim=1)
        can = ~top.values.isnan()  # nothing within reach has a probability
        self.add(top.values[can], (top.indices == target[some])[can])

    def result(self) -> dict[str, Any]:
        """``ece``, None without lists, and for each bin that has any lists, confidence and hits; JSON-ready."""
        lists, sure, right = (x[self.sums[:, 0] > 0] for x in self.sums.T)
        if not len(lists):
            return {"ece": None, "lists": [], "confidence": [], "accuracy": []}
        return {
            "ece": float((sure - right).abs().sum() / lists.sum()),
            "lists": lists.long().tolist(),
            "confidence": (sure / lists).tolist(),
            "accuracy": (right / lists).tolist(),
        }


def measure_lists(ranker: Loaded, split: str, config: ListsConfig, rt: Runtime) -> dict[str, Any]:
    """List metrics of a generative ranker and of the floors; all ranks call it, each asks its share of the visits.

    Returns:
        ``visits`` asked, ``reach_km``; ``ways``: way -> scorer -> part -> metrics (``ListMetrics.result``);
        ``within_reach``: calibration of the first item there, its probability among what is within reach; ``nll``:
        nats a visit of the model and of ``Floors.likelihood``, on the visits that both give a probability. JSON-ready.
    """
    inputs = ranker.inputs
    items = ItemFacts.load(inputs.folder)
    index = ranker.model.module.dense.index
    floors = Floors(items, transitions(inputs.folder, len(items)))
    floors.fit(inputs.folder)
    assert inputs.tokens is not None
    codes = SemanticFeatures.load(inputs.tokens, inputs.item_ids()).codes  # without the suffix that TIGER has
    ways = Ways(items, config.reach_km, torch.from_numpy(codes))
    metrics = {(way, name): ListMetrics(items) for way in ways.names for name in (MODEL, *Floors.NAMES)}
    confidence, likelihood = Confidence(), torch.zeros(3, dtype=torch.float64)

    size = scored_together(len(items))
    of_model = visit_loader(inputs, split, size, rt, together=1)
    whole = SequenceLoader(inputs.folder, split, size, history=ALL, rank=rt.rank, world_size=rt.world_size)
    low, high = share(of_model.rows, rt.rank, rt.world_size)
    wanted = torch.from_numpy(chosen(of_model.rows, config.visits))[low:high]
    columns = torch.from_numpy(index.items).long()
    done = 0
    for batch, with_all in tracked(
        zip(of_model, whole, strict=True), "lists", len(of_model), "batches", shown=rt.is_first
    ):
        here = torch.zeros(len(batch), dtype=torch.bool)
        here[: batch.valid] = wanted[done : done + batch.valid]
        done += batch.valid
        scores = torch.full((len(batch), len(items)), -torch.inf)
        log_p = ranker.model.module.score(expand(ranker.catalog, gather(ranker.catalog, batch)), here)
        scores[here.nonzero(), columns] = log_p
        if not here.any():
            continue
        for name, found in ((MODEL, scores), *floors.scores(with_all)):
            for way, standing in ways.standings(found, with_all).items():
                metrics[way, name].add(standing.gains().masked_fill(~here[:, None], torch.nan), with_all)
        confidence.add_within(scores[here], ways.within(with_all)[here], batch.target[here])
        of_floor = floors.likelihood(with_all)[here]
        own = scores[here].gather(1, batch.target[here][:, None]).squeeze(1).double()
        both = own.isfinite() & (of_floor > 0)
        likelihood += torch.stack([both.sum().double(), -own[both].sum(), -of_floor[both].log().sum()])
    return _joined(metrics, ways.names, confidence, likelihood, config)


def _joined(
    metrics: dict[tuple[str, str], ListMetrics],
    ways: tuple[str, ...],
    confidence: Confidence,
    likelihood: Tensor,
    config: ListsConfig,
) -> dict[str, Any]:
    """What all ranks found, JSON-ready."""
    ranks = Ranks.current()
    ranks.sum_(confidence.sums, likelihood)
    found: dict[str, dict[str, Any]] = {way: {} for way in ways}
    for (way, name), kept in metrics.items():
        kept.sum_(ranks)
        found[way][name] = {part: row for part, row in kept.result().items() if row["asked"]}
    count, own, floor = likelihood.tolist()
    return {
        "visits": found["all"][MODEL]["all"]["asked"],
        "reach_km": config.reach_km,
        "ways": found,
        "within_reach": confidence.result(),
        "nll": {"visits": int(count), "model": own / count, "floor": floor / count} if count else None,
    }
