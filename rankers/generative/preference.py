"""Preference alignment: a generative ranker learns from a reward model which of its own lists are good.

A round (Deng et al., OneRec, 2025, algorithm 1): the model as it is makes ``candidates`` for requests; a reward model
says what each is worth; the model then learns, beside the visits that were made and with ``weight``, one of

- ``dpo``: of each request's candidates the best against the worst,
  -log sigmoid(beta ((log p_best - log ref_best) - (log p_worst - log ref_worst))),
  Rafailov et al., Direct Preference Optimization, 2023, eq. 7. The worst of what the model itself would show is a
  negative that it finds hard.
- ``policy``: all candidates by their advantage A, the reward in deviations of its request's,
  -A p / p', p' = max(old, p) where A >= 0, max(old, 1 - p) where A < 0, without gradient through p':
  gradient-bounded policy optimisation (OneRec-V2 Technical Report, Zhou et al. 2025). By the logit of p its gradient is
  at most |A|, as a binary cross-entropy's is, whatever the old policy thought; a ratio to it has no such bound. A bad
  candidate that is improbable has almost none.

The reference, ref or old, is the model that made the candidates, whose log p comes with them, so a step runs the model
alone. Rounds may be as short as a step (``training/preferences.py``): ref is then the model itself, the margin is 0,
and DPO's gradient is what it is where it starts, beta / 2 for the best and against the worst.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...data.arrays import ranges
from ...data.batches.batch import SampleBatch
from ...data.batches.sequences import SequenceBatch
from .config import PreferenceConfig
from .decoding import Lists

Reward = Callable[[SequenceBatch, Lists], Tensor]
"""Requests (the batch's targets, but for what was chosen) and candidates of them to what each is worth, [T]."""


class Pairs(NamedTuple):
    """Of the requests whose candidates are not all worth the same, int64 [P] each.

    Attributes:
        requests: which.
        best, worst: places in the candidates' items.
    """

    requests: Tensor
    best: Tensor
    worst: Tensor


def best_and_worst(offsets: Tensor, rewards: Tensor) -> Pairs:
    """Of each request's candidates, the best first; of equals the one listed first, which is the more probable.

    Args:
        offsets: request b's are rewards[offsets[b]] to rewards[offsets[b+1]], int64 [B+1].
        rewards: [T].

    Raises:
        ValueError: a NaN, or another number of rewards.
    """
    _check(offsets, rewards)
    of = torch.repeat_interleave(offsets.diff(), output_size=len(rewards))
    order = rewards.argsort(stable=True, descending=True)
    best = order[of[order].argsort(stable=True)]
    order = rewards.argsort(stable=True)
    worst = order[of[order].argsort(stable=True)]
    some = (offsets.diff() > 0).nonzero().squeeze(1)
    first = offsets[some]
    apart = rewards[best[first]] > rewards[worst[first]]
    return Pairs(some[apart], best[first[apart]], worst[first[apart]])


def advantages(offsets: Tensor, rewards: Tensor) -> Tensor:
    """Rewards less the mean of their request, in its deviations (n of them); 0 where all are worth the same.

    Args, raises: as ``best_and_worst``.
    """
    _check(offsets, rewards)
    of, counts = torch.repeat_interleave(offsets.diff(), output_size=len(rewards)), offsets.diff().clamp(min=1)
    total = rewards.new_zeros(len(counts))
    less = rewards - (total.index_add(0, of, rewards) / counts)[of]
    deviation = (total.index_add(0, of, less.square()) / counts).sqrt()[of]
    scale = rewards.abs().max().clamp(min=1.0) if len(rewards) else deviation  # what rounding leaves of equals is none
    return torch.where(deviation > 1e-6 * scale, less / deviation.clamp(min=1e-12), 0)


def _check(offsets: Tensor, rewards: Tensor) -> None:
    if rewards.shape != (int(offsets[-1]),):
        raise ValueError(f"rewards: got {list(rewards.shape)}, expected [{int(offsets[-1])}], one a candidate")
    if rewards.isnan().any():
        raise ValueError(f"rewards: got NaN for candidate {int(rewards.isnan().nonzero()[0])}; mend the reward model")


def dpo_loss(best: Tensor, worst: Tensor, reference_best: Tensor, reference_worst: Tensor, beta: float) -> Tensor:
    """Of log p [P] each, Rafailov et al.'s equation 7; 0 without pairs."""
    margin = (best - reference_best) - (worst - reference_worst)
    return -F.logsigmoid(beta * margin).sum() / max(len(margin), 1)


def gbpo_loss(log_p: Tensor, old: Tensor, advantage: Tensor) -> Tensor:
    """Of the policy's log p [T], that of the policy that made the candidates, and advantages; 0 without any."""
    p = log_p.exp()
    bound = torch.where(advantage >= 0, p, -log_p.expm1()).detach()  # 1 - p, that near p = 1 too
    return -(advantage * p / torch.maximum(old.exp(), bound)).sum() / max(len(p), 1)


def preference_loss(
    config: PreferenceConfig,
    target: Tensor,
    lists: Lists,
    rewards: Tensor,
    log_p: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Nats a visit, and ``weight`` times the alignment's loss.

    Args:
        config: how.
        target: catalog rows of what was visited at each of B requests, int64 [B].
        lists: candidates of the requests, with log p of the model that made them.
        rewards: of the candidates, [T].
        log_p: requests, int64 [N] and ascending, and catalog rows [N] to the model's log p [N], without dropout: that
            would be mistaken for what it has learned.
    """
    B, device = len(target), target.device
    if config.how == "dpo":
        pairs = best_and_worst(lists.offsets, rewards)
        places, of = torch.cat([pairs.best, pairs.worst]), pairs.requests.repeat(2)
    else:
        places = torch.arange(len(lists.items), device=device)
        of = torch.repeat_interleave(lists.offsets.diff())
    requests = torch.cat([torch.arange(B, device=device), of])
    order = requests.argsort(stable=True)
    found = log_p(requests[order], torch.cat([target, lists.items[places]])[order])
    found = torch.zeros_like(found).index_copy(0, order, found)
    visits, found, old = found[:B], found[B:], lists.log_p[places]
    can = visits.isfinite()
    nats = -visits[can].sum() / max(int(can.sum()), 1)
    if config.how == "dpo":
        P = len(of) // 2
        return nats + config.weight * dpo_loss(found[:P], found[P:], old[:P], old[P:], config.beta)
    return nats + config.weight * gbpo_loss(found, old, advantages(lists.offsets, rewards))


def reward_of(score: Callable[[SampleBatch], Tensor], history: int) -> Reward:
    """A placerank ranker as the reward model.

    Args:
        score: of ``training.inference.load_scorer``: samples to logits.
        history: visits that it looks back on.
    """

    def reward(batch: SequenceBatch, lists: Lists) -> Tensor:
        with torch.no_grad():
            return score(samples(batch, lists, history)).float().cpu()

    return reward


def samples(batch: SequenceBatch, lists: Lists, history: int) -> SampleBatch:
    """Candidates of the batch's targets as a ranker takes them, unlabelled; requests without any are left out."""
    counts = lists.offsets.diff()
    some = (counts > 0).nonzero().squeeze(1)
    of = torch.repeat_interleave(torch.arange(len(some)), counts[some])
    seen = batch.seen[some]
    length = seen.clamp(max=history)
    end = batch.offsets[batch.stretch[some]] + seen
    at = torch.from_numpy(ranges((end - length).numpy(), length.numpy()))
    offsets = F.pad(length.cumsum(0), (1, 0))
    asker = torch.repeat_interleave(length)
    item, time = batch.item[at], batch.target_time[some]
    # how often each candidate was visited before, among the visits that are at hand
    every = torch.from_numpy(ranges((end - seen).numpy(), seen.numpy()))
    rows = 1 + int(max(batch.item.max(), lists.items.max())) if len(batch.item) and len(lists.items) else 1
    had, times = (torch.repeat_interleave(seen) * rows + batch.item[every]).unique(return_counts=True)
    wanted = of * rows + lists.items
    place = torch.searchsorted(had, wanted).clamp(max=max(len(had) - 1, 0))
    visits = torch.where(had[place] == wanted, times[place], 0) if len(had) else torch.zeros_like(wanted)
    return SampleBatch(
        request_id=some,
        user=batch.user[batch.stretch[some]],
        user_index=batch.user_index[batch.stretch[some]],
        time=time,
        lat=batch.lat[some],
        lon=batch.lon[some],
        offsets=offsets,
        history=item,
        history_hours=((time[asker] - batch.time[at]) / 3600).float(),
        request=of,
        item=lists.items,
        label=torch.zeros(len(lists.items)),
        visits=visits.int(),
        probability=None,
        valid=len(lists.items),
        utc_offset=batch.target_offset[some],
    )
