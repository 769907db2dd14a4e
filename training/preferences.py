"""Preference alignment as training: a generative ranker learns which of the places it thinks likely a ranker likes.

Each step the model as it is finds the best places within reach of the batch's requests, the reward model says what
these are worth, and the loss is ``rankers/generative/preference.py``'s. So a round, after which a model's own places
are looked for anew, is a step: nothing has to be kept beside the model, and a run that was killed goes on as it would
have.
"""

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.batches.catalog import Catalog
from ..data.batches.sequences import ALL, SequenceBatch
from ..data.requests import SPLITS
from ..rankers.generative.config import PreferenceConfig
from ..rankers.generative.decoding import Lists, best
from ..rankers.generative.preference import Reward, preference_loss, reward_of
from ..rankers.generative.reach import Allowed, Around
from ..rankers.generative_ranker import GenerativeBatch, HostQuestions
from .inference import load_ranker
from .inputs import Inputs
from .runtime import Runtime
from .tasks import Visits, history, visit_loader

TOGETHER = 8
"""Targets of a user that share one pass of the encoder, at most: a step's requests are to be of many users."""
BEAMS = 2
"""Beams a candidate. They found the best of all that was scored in each of 256 requests, and cost as much however many
places are within reach."""
LIST, VALIDATED = 10, 3_000
"""Places that a validation looks at for each request, and about as many requests of each rank as it asks."""


@dataclass
class HostRequests(HostQuestions):
    """What the host finds out of a batch, and what its requests may be shown."""

    sequence: SequenceBatch
    allowed: Allowed


@dataclass(kw_only=True)
class Requests(GenerativeBatch):
    """What a generative ranker takes, beside it what the reward model is asked by; see ``HostRequests``."""

    sequence: SequenceBatch
    allowed: Allowed


class Preferences(Visits):
    """Alignment with a reward model; validated by what this thinks of the ten best places within reach.

    Args:
        inputs, catalog, model: see ``Task``.
        runtime: ranks and device.
        config: how.
        batch_size: requests a step and rank.
        seed: of their order.

    Raises:
        ValueError: see ``load_reward``; or, in a validation, nothing is within reach of any request.
    """

    best, higher, compares, once = "reward", True, True, False

    def __init__(
        self,
        inputs: Inputs,
        catalog: Catalog,
        model: nn.Module,
        runtime: Runtime,
        config: PreferenceConfig,
        batch_size: int,
        seed: int,
    ) -> None:
        self.config, self.reward = config, load_reward(config, runtime, inputs.folder)
        loaders = (visit_loader(inputs, split, batch_size, runtime, seed, TOGETHER, ALL) for split in SPLITS[:2])
        super().__init__(inputs, catalog, model, tuple(loaders))
        places = inputs.read_places()
        lat, lon = (places[name].to_numpy().astype(np.float64) for name in ("lat", "lon"))
        self.around = Around(self.model.module.dense.index.items, lat, lon, config.within_km)

    def gather(self, batch: SequenceBatch) -> HostRequests:
        host = super().gather(batch.trimmed(history(self.inputs.ranker)))  # the reward model counts all visits
        return HostRequests(host.questions, host.users, batch, self.around.within(batch))

    def expand(self, host: HostRequests) -> Requests:
        found = super().expand(host)
        return Requests(found.items, found.pooled, found.questions, sequence=host.sequence, allowed=host.allowed)

    def loss(self, batch: Requests) -> tuple[Tensor, dict[str, Tensor]]:
        """Nats of the visits and the alignment's loss, and what the reward model thinks of the candidates."""
        self.model.eval()  # what dropout does to a candidate would be taken for what the model has learned
        k, device = self.config.candidates, self.catalog.device
        with torch.autocast(device.type, enabled=False):  # as they are evaluated
            lists = self.model.module.beam(batch, batch.allowed, BEAMS * k, k)
            rewards = self.reward(batch.sequence, lists).to(device)
        target = batch.sequence.target.to(device)

        def log_p(requests: Tensor, items: Tensor) -> Tensor:
            questions = replace(batch.questions.some(requests), target=items)
            found: Tensor = self.model(GenerativeBatch(batch.items, batch.pooled, questions, requests))
            return found

        on_device = Lists(*(x.to(device) for x in lists))
        loss = preference_loss(self.config, target, on_device, rewards, log_p)
        return loss, {"loss": loss, "reward": rewards.sigmoid().mean()}

    @torch.no_grad()
    def validate(self, scratch: Path) -> dict[str, float]:
        """What the ten best are worth: ``reward``, the reward model's probability, a place; ``hit@10`` of what was
        visited, of the requests that have places within reach; and what ``Visits`` tells."""
        every = max(1, len(self.validation) * self.validation.batch_size // VALIDATED)
        sums = torch.zeros(4, dtype=torch.float64)
        for batch in islice(self.validation, 0, None, every):
            requests = self.expand(self.gather(batch))
            lists = best(self.model.module.score(requests, allowed=requests.allowed), requests.allowed, LIST)
            rewards, counts = self.reward(batch, lists).double().sigmoid(), lists.offsets.diff()
            of = torch.repeat_interleave(counts)
            counted, hit = of < batch.valid, lists.items == batch.target[of]
            found = rewards[counted].sum(), counted.sum(), hit[counted].sum(), (counts[: batch.valid] > 0).sum()
            sums += torch.stack([x.double() for x in found])
        dist.all_reduce(sums := sums.to(self.catalog.device))
        reward, places, hits, requests = sums.tolist()
        if not requests:
            raise ValueError(
                f"preference.within_km={self.config.within_km}: no request of the validation split has a place with a "
                "semantic ID within reach; choose a larger reach"
            )
        return {"reward": reward / places, "hit@10": hits / requests, **super().validate(scratch)}


def load_reward(config: PreferenceConfig, runtime: Runtime, data: Path) -> Reward:
    """The reward model on this run's ranks, its rows those of the data's ids. All ranks call it, with as many requests.

    Raises:
        FileNotFoundError: no such run.
        ValueError: it is no ranker of candidates, does not predict the objective, or needs of a request or a candidate
            what visits do not have.
    """
    assert config.ranker is not None
    loaded = load_ranker(config.ranker, runtime, data)
    features, where = loaded.inputs.features, f"preference.ranker={config.ranker}"
    if loaded.inputs.ranker.generates:
        raise ValueError(f"{where} is a generative ranker ({loaded.inputs.ranker.kind}); name one of candidates")
    own = [x.name for x in features.own if x.of in ("request", "candidate")]
    if own:
        raise ValueError(
            f"{where} was trained with columns that visits do not have: {', '.join(own)}; name a ranker without them"
        )
    objective = config.objective or features.objectives[0]
    if objective not in features.objectives:
        raise ValueError(f"preference.objective={objective!r}: {where} predicts {', '.join(features.objectives)}")
    which, score = features.objectives.index(objective), loaded.score()
    by_ranker = reward_of(
        lambda samples: score(samples).view(len(samples), -1)[:, which], loaded.inputs.manifest["history_length"]
    )

    def reward(batch: SequenceBatch, lists: Lists) -> Tensor:
        whole, real = filled(lists, max(config.candidates, LIST))
        return by_ranker(batch, whole)[real]

    return reward


def filled(lists: Lists, k: int) -> tuple[Lists, Tensor]:
    """Lists with k places each, the last one again where there are fewer and row 1 where there is none: what ranks
    exchange for tables has to be as much on each. And which of the places are the lists' own, in order, bool [B k]."""
    counts = lists.offsets.diff()[:, None]
    number = torch.arange(k)
    at = (lists.offsets[:-1, None] + torch.minimum(number, (counts - 1).clamp(min=0))).flatten()
    own = F.pad(lists.items, (0, 1), value=1)  # the last request may have none
    items = torch.where((counts > 0).expand(-1, k).flatten(), own[at], 1)
    offsets = torch.arange(len(counts) + 1) * k
    return Lists(offsets, items, torch.zeros(len(items))), (number < counts).flatten()
