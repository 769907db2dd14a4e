"""Content-behaviour alignment: the encoder learns which places the same people visit.

AKT-Rec (arXiv 2605.23310) starts from a language model that was fine-tuned on behaviour and prints no formula for it.
This is the usual one, InfoNCE in the batch: an anchor is pulled to what was visited with it and pushed from the other
positives of the batch,

    L = -log [ exp(cos(a_i, p_i) / τ) / Σ_j exp(cos(a_i, p_j) / τ) ]   over the j that are no positives of a_i,

averaged with the same seen from p_i. Anchors are items (p: an item that more than a threshold of users visit too) and,
if asked for, users (p: the place they visit next): the text of their last places, or the mean of those places' vectors.
Items are shown with their pictures, if pictures are; a user's text has none, as it is of several places.
All pairs come from the training split.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ..ranks import Ranks
from ..text.encoders import Encoder
from ..text.prompts import Prompts
from ..text.store import embedding_rows
from ..text.vectors import Vectors, blocks
from .finetune import Losses, finetune
from .histories import Histories
from .settings import BehaviourConfig

_NONE = -1
_LATEST = 100  # distinct places of a user that pairs are made from


@dataclass(frozen=True)
class VisitPairs:
    """Anchors and what was visited with them.

    Attributes:
        anchor: rows of the items that make the anchor, the latest first, then -1, int64 [P, H].
        positive: item rows, int64 [P].
        is_user: bool [P].
    """

    anchor: NDArray[np.int64]
    positive: NDArray[np.int64]
    is_user: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.positive)

    def take(self, rows: NDArray[np.int64] | slice) -> "VisitPairs":
        """Some pairs."""
        return VisitPairs(self.anchor[rows], self.positive[rows], self.is_user[rows])


def item_pairs(
    a: NDArray[np.int64], b: NDArray[np.int64], count: int, width: int, rng: np.random.Generator
) -> VisitPairs:
    """At most ``count`` of the pairs of items visited together, each turned at random."""
    rows = rng.permutation(len(a))[:count]
    turned = rng.random(len(rows)) < 0.5
    anchor = np.full((len(rows), width), _NONE)
    anchor[:, 0] = np.where(turned, b[rows], a[rows])
    return VisitPairs(anchor, np.where(turned, a[rows], b[rows]), np.zeros(len(rows), bool))


def user_pairs(histories: Histories, count: int, width: int, rng: np.random.Generator) -> VisitPairs:
    """At most ``count`` next visits, each with the user's distinct places strictly before it, the latest first."""
    seen = histories.latest(_LATEST)

    def earlier(rows: NDArray[np.int64], back: int) -> NDArray[np.bool_]:
        """Whether the visit so many before these is the same user's and strictly earlier."""
        before = np.maximum(rows - back, 0)
        found: NDArray[np.bool_] = (
            (rows >= back) & (seen.user[before] == seen.user[rows]) & (seen.time[before] < seen.time[rows])
        )
        return found

    whole = np.arange(len(seen.user))
    has_some = np.zeros(len(whole), bool)
    for back in range(1, width + 1):
        has_some |= earlier(whole, back)
    drawn = rng.permutation(np.flatnonzero(has_some))[:count]
    anchor, filled = np.full((len(drawn), width), _NONE), np.zeros(len(drawn), np.int64)
    for back in range(1, width + 1):
        fits = np.flatnonzero(earlier(drawn, back))
        anchor[fits, filled[fits]] = seen.item[drawn[fits] - back]
        filled[fits] += 1
    return VisitPairs(anchor, seen.item[drawn], np.ones(len(drawn), bool))


def user_texts(prompts: Prompts, places: NDArray[np.int64]) -> list[str]:
    """A user as text: the contents of their places [n, H], the latest first, at the location of the latest."""
    flat = places.reshape(-1)
    contents = np.array(prompts.content.take(pa.array(np.maximum(flat, 0))).to_pylist(), object)
    contents[flat == _NONE] = ""
    joined = pa.array(["; ".join(dict.fromkeys(filter(None, row))) for row in contents.reshape(places.shape)])
    one = Prompts(joined, prompts.location.take(pa.array(places[:, 0])), prompts.separator, prompts.unknown)
    return one.texts()


def contrastive_loss(anchors: Tensor, positives: Tensor, known: Tensor, temperature: float) -> Tensor:
    """InfoNCE both ways, a mean over the batch.

    Args:
        anchors, positives: [B, D], any length.
        known: bool [B, B], whether p_j is a positive of a_i, or is a part of it; such are no negatives. The
            diagonal is ignored.
    """
    cosine = normalize(anchors, dim=-1) @ normalize(positives, dim=-1).T / temperature
    own = torch.eye(len(cosine), dtype=torch.bool, device=cosine.device)
    cosine = cosine.masked_fill(known & ~own, -torch.inf)
    target = torch.arange(len(cosine), device=cosine.device)
    return (cross_entropy(cosine, target) + cross_entropy(cosine.T, target)) / 2


def known_positives(batch: VisitPairs) -> NDArray[np.bool_]:
    """Whether the j-th positive is the i-th one too, or is in the i-th anchor, [B, B]."""
    same = batch.positive[:, None] == batch.positive[None]
    inside = (batch.anchor[:, :, None] == batch.positive).any(1)
    return same | inside


def align_behaviour(
    encoder: Encoder,
    parameters: list[nn.Parameter],
    prompts: Prompts,
    pairs: VisitPairs,
    config: BehaviourConfig,
    folder: Path,
    seed: int,
) -> list[dict[str, float]]:
    """Train the encoder's adapter on what is visited together; returns a line a step (see ``finetune``).

    Raises:
        ValueError: fewer than two pairs, or fewer a step than ranks.
    """
    if len(pairs) < 2:
        raise ValueError(
            f"got {len(pairs)} pairs of places visited together, expected at least 2; lower "
            "behaviour.cooccurrence_threshold, or leave the step out with behaviour.pairs 0"
        )
    world, smallest = Ranks.current().world, min(len(pairs), config.batch_pairs)
    if smallest < world:
        raise ValueError(
            f"got {smallest} pairs a step for {world} ranks, expected at least one each; raise batch_pairs"
        )
    per_epoch = max(1, len(pairs) // config.batch_pairs)  # what does not fill a batch is left for another epoch

    def losses(step: int, ranks: Ranks) -> Losses:
        epoch, index = divmod(step, per_epoch)
        order = np.random.default_rng([seed, 4, epoch]).permutation(len(pairs))
        batch = pairs.take(order[index * config.batch_pairs : (index + 1) * config.batch_pairs])
        mine = np.arange(len(batch))[ranks.rank :: ranks.world]
        vectors = _pair_vectors(encoder, prompts, batch.take(mine), config.users == "text")  # [2, b, D]
        both = gather_rows(vectors.transpose(0, 1), torch.from_numpy(mine), len(batch), ranks)  # [B, 2, D]
        known = torch.from_numpy(known_positives(batch)).to(both.device)
        loss = contrastive_loss(both[:, 0], both[:, 1], known, config.temperature)
        with torch.no_grad():
            cosine = nn.functional.cosine_similarity(both[:, 0], both[:, 1], dim=-1).mean()
        # Each rank has the loss of the whole batch; their sum is to be that loss once.
        yield loss / ranks.world, {"cosine_of_pairs": float(cosine) / ranks.world}

    steps = per_epoch * config.epochs
    return finetune(encoder, parameters, losses, steps, config.optimizer, folder, seed, "behaviour")


def _pair_vectors(encoder: Encoder, prompts: Prompts, batch: VisitPairs, users_as_text: bool) -> Tensor:
    """Vectors of anchors and positives, [2, b, D]; each distinct item is encoded once."""
    as_text = batch.is_user & users_as_text
    rows = np.concatenate([batch.anchor[~as_text].reshape(-1), batch.positive])
    items = np.unique(rows[rows != _NONE])
    inputs = [*prompts.inputs(items), *(user_texts(prompts, batch.anchor[as_text]) if as_text.any() else [])]
    if not inputs:
        return torch.zeros(2, 0, encoder.dim, device=encoder.device)
    vectors = encoder(inputs)
    users = torch.zeros(len(batch), encoder.dim, device=vectors.device)
    users = users.index_put((torch.from_numpy(np.flatnonzero(as_text)).to(users.device),), vectors[len(items) :])
    there = torch.from_numpy((batch.anchor != _NONE) & ~as_text[:, None]).to(vectors.device)
    at = torch.from_numpy(np.searchsorted(items, batch.anchor).clip(0, max(0, len(items) - 1))).to(vectors.device)
    means = mean_vectors(vectors[at.clamp(max=len(vectors) - 1)], there)
    anchors = users + means
    positives = vectors[torch.from_numpy(np.searchsorted(items, batch.positive)).to(vectors.device)]
    return torch.stack([anchors, positives])


def mean_vectors(vectors: Tensor, there: Tensor) -> Tensor:
    """Means of vectors [n, H, D] of length 1 over those that are there [n, H]; zero where none is."""
    weight = there[..., None].to(vectors.dtype)
    return (normalize(vectors, dim=-1) * weight).sum(1) / weight.sum(1).clamp(min=1)


class _Gather(torch.autograd.Function):
    """Rows of all ranks as one tensor; backward, each rank gets the sum of all ranks' gradients of its rows."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, at: Tensor, total: int, ranks: Ranks) -> Tensor:
        ctx.at, ctx.ranks = at, ranks
        whole = mine.new_zeros(total, *mine.shape[1:])
        whole[at] = mine
        ranks.sum_(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        whole = gradients[0].clone()
        ctx.ranks.sum_(whole)
        return whole[ctx.at], None, None, None


def gather_rows(mine: Tensor, at: Tensor, total: int, ranks: Ranks) -> Tensor:
    """Rows [total, ...] of which this rank has those ``at``, with gradients; all ranks call it."""
    if ranks.world == 1:
        return mine
    whole: Tensor = _Gather.apply(mine, at.to(mine.device), total, ranks)
    return whole


def partner_measures(vectors: Vectors, anchors: Tensor, pairs: VisitPairs, at: int = 10) -> dict[str, float]:
    """How high the positive stands among all items by cosine to the anchor; the anchor's own items are left out.

    Args:
        vectors: of all items, [N, D].
        anchors: [P, D].

    Returns:
        ``recall@K`` and ``mrr``, means over pairs, and ``median_rank`` (1 is best), and ``recall_by_chance``.
    """
    anchors = normalize(anchors, dim=-1)
    positive = torch.from_numpy(pairs.positive)
    wanted = (anchors * normalize(embedding_rows(vectors, positive), dim=-1)).sum(1, keepdim=True)
    above = torch.zeros(len(pairs), dtype=torch.int64)
    total = 0
    out = torch.from_numpy(np.concatenate([pairs.anchor, pairs.positive[:, None]], axis=1))
    for first, x in blocks(vectors, 16_384, torch.device("cpu")):
        higher = anchors @ normalize(x, dim=-1).T > wanted
        inside = (out >= first) & (out < first + len(x))
        row, column = inside.nonzero(as_tuple=True)
        higher[row, out[row, column] - first] = False
        above += higher.sum(1)
        total += len(x)
    rank = above + 1
    return {
        f"recall@{at}": float((rank <= at).double().mean()),
        "mrr": float((1 / rank).mean()),
        "median_rank": float(rank.double().median()),
        "recall_by_chance": at / total,
    }


def anchor_vectors(text: tuple[Encoder, Prompts] | None, vectors: Vectors, pairs: VisitPairs) -> Tensor:
    """Vectors of the anchors of pairs, [P, D]: means of their items' vectors; with what reads it, of users by text."""
    rows = torch.from_numpy(np.maximum(pairs.anchor, 0))
    out = mean_vectors(
        embedding_rows(vectors, rows.reshape(-1)).view(*rows.shape, -1), torch.from_numpy(pairs.anchor != _NONE)
    )
    if text is not None and pairs.is_user.any():
        (encoder, prompts), users = text, np.flatnonzero(pairs.is_user)
        out[torch.from_numpy(users)] = encoder.encode(user_texts(prompts, pairs.anchor[users]))
    return out


def user_places(histories: Histories, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each user's last distinct places, the latest first.

    Returns:
        users [U] as in ``Histories.user``, sorted; item rows int64 [U, width], then -1.
    """
    seen = histories.latest(width)
    users, last = np.unique(seen.user[::-1], return_index=True)
    last = len(seen.user) - 1 - last
    back = last[:, None] - np.arange(width)
    fits = (back >= 0) & (seen.user[np.maximum(back, 0)] == users[:, None])
    return users, np.where(fits, seen.item[np.maximum(back, 0)], _NONE)
