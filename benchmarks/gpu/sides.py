"""Dense parts and batches for them, made by hand: what the check times and counts, without TorchRec.

Histories of skewed lengths (log-normal, median a third of 50, cut there), popular items far more often than others,
places in twenty cities, as in ``bench_steps.py``; features, towers and plug-ins at their defaults.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from placerank.data.batches.activity import ACTIVITY_DIM
from placerank.data.batches.dense_batch import Context, DenseBatch, LossInputs, Traits
from placerank.data.batches.features import CLUSTER, HISTORY_GAPS, USER_CLUSTER, FeatureConfig, Features, build_features
from placerank.kernels.haversine import unit_vectors
from placerank.kernels.jagged import shared_rows_unchecked
from placerank.rankers.dense import DensePart, RankerConfig
from placerank.rankers.plugins.akt import akt_ladder
from placerank.rankers.plugins.rest import RestConfig
from placerank.rankers.towers.tower import TOWERS

from ..skewed import history_lengths, popularity

ITEMS, USERS, CATEGORIES, BRANDS, CITIES, LEVELS, CODES = 100_000, 50_000, 300, 3_000, 20, 3, 256
LONGEST = 50


@dataclass(frozen=True)
class Side:
    """A dense part to run.

    Attributes:
        name: of tower and plug-ins.
        config: the dense part.
        semantic: whether there are semantic IDs; AKT-Rec needs them.
        candidates: samples that share a request, and so its history.
    """

    name: str
    config: RankerConfig
    semantic: bool = False
    candidates: int = 1

    @property
    def features(self) -> Features:
        vocabularies = {"item": ITEMS, "user": USERS, "category": CATEGORIES, "brand": BRANDS}
        tables = {f"semantic_{level + 1}": CODES for level in range(LEVELS)} if self.semantic else {}
        tables |= {CLUSTER: CODES} if self.config.akt.enabled else {}
        tables |= {USER_CLUSTER: CODES} if self.config.akt.enabled and self.config.akt.users else {}
        context, traits = self.config.uses_context, self.config.uses_traits
        return build_features(FeatureConfig(), vocabularies, [], context, traits, tables)


def sides() -> list[Side]:
    """Every tower plain, DIN and TWIN with ten candidates a request and with each plug-in; in order of worth."""
    rest, ladder = RestConfig(enabled=True), akt_ladder()
    plain = {tower: Side(tower, RankerConfig(tower=tower)) for tower in TOWERS}
    found = [plain.pop("twin"), plain.pop("din")]
    found += [Side(f"{tower} 10 candidates", RankerConfig(tower=tower), candidates=10) for tower in ("twin", "din")]
    for tower in ("twin", "din"):
        found += [
            Side(f"{tower} akt", RankerConfig(tower=tower, akt=ladder["gate"]), semantic=True),
            Side(f"{tower} rest", RankerConfig(tower=tower, rest=rest)),
            Side(f"{tower} rest akt", RankerConfig(tower=tower, rest=rest, akt=ladder["gate"]), semantic=True),
        ]
    found += plain.values()
    for tower in ("twin", "din"):
        found += [
            Side(f"{tower} semantic ids", RankerConfig(tower=tower), semantic=True),
            Side(f"{tower} views", RankerConfig(tower=tower, akt=ladder["views"]), semantic=True),
        ]
    return found


class Trained:
    """A side's dense part in training on one batch: ``step`` is forward, backward and optimizer.

    Args:
        side: what to build.
        samples: B.
        device: where.
        bf16: forward under autocast to bfloat16.
    """

    def __init__(self, side: Side, samples: int, device: torch.device, bf16: bool = False) -> None:
        self.device, self.bf16, features = device, bf16, side.features
        torch.manual_seed(0)
        self.dense = DensePart(features, side.config).to(device).train()
        self.optimizer = torch.optim.AdamW(self.dense.parameters(), lr=1e-3, fused=True)
        batch, distinct = make_batch(features, samples, side.candidates)
        self.batch, self.label = batch.map(lambda x: x.to(device)), (torch.rand(samples) < 0.2).float().to(device)
        self.rows = [torch.randn(distinct, t.dim, device=device).mul_(0.1).requires_grad_() for t in features.sequence]
        self.pooled = torch.randn(samples, features.pooled_dim, device=device).requires_grad_()
        if self.dense.contrast is not None:
            shape = 1_000, len(features.attributes), features.sequence[0].dim
            attributes = torch.randn(shape, device=device)
            self.dense.contrast.refresh(attributes, torch.ones(shape[:2], dtype=torch.bool, device=device))

    def step(self) -> Tensor:
        """The loss; gradients of rows and pooled features are there too, as tables would take them."""
        for x in (*self.rows, self.pooled):
            x.grad = None
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            scores = self.dense(self.rows, self.pooled, self.batch)
        loss, _ = scores.loss(self.label)
        loss.backward()
        self.optimizer.step()
        return loss


def make_batch(features: Features, samples: int, candidates: int) -> tuple[DenseBatch, int]:
    """A batch on the host, and the number of its distinct items, U; requests of so many samples, but for the last."""
    rng = np.random.default_rng(0)
    request = torch.arange(samples) // candidates
    of_request = history_lengths(rng, int(request[-1]) + 1, LONGEST)
    lengths, visits = of_request[request], int(of_request.sum())
    starts, offsets = (of_request.cumsum(0) - of_request)[request], F.pad(lengths.cumsum(0), (1, 0))
    pairs = int(lengths.sum())
    met = 1 + rng.choice(ITEMS - 1, samples + visits, p=popularity(ITEMS - 1))
    distinct, which = (torch.from_numpy(x) for x in np.unique(met, return_inverse=True))
    target, first = which[:samples], np.unique(met[:samples], return_index=True)[1]
    count = len(distinct)

    def rows(high: int, *shape: int) -> Tensor:
        return torch.from_numpy(rng.integers(0, high, shape))

    def floats(*shape: int) -> Tensor:
        return torch.from_numpy(rng.random(shape)).float()

    city = rng.integers(0, CITIES, count)
    lat, lon = rng.uniform(30, 50, CITIES)[city], rng.uniform(0, 20, CITIES)[city]
    place = unit_vectors(*(torch.from_numpy(x + rng.normal(0, 0.05, count)) for x in (lat, lon))).float()
    of_pairs = which[samples:][shared_rows_unchecked(starts, offsets, pairs)]
    attributes = rows(CATEGORIES, count, len(features.attributes))
    batch = DenseBatch(
        target=target,
        visits=which[samples:],
        offsets=offsets,
        lengths=lengths,
        features=floats(samples, features.dense_dim),
        history_gaps=floats(pairs, HISTORY_GAPS) * 5,
        starts=starts if candidates > 1 else None,
        context=Context(
            category=rows(CATEGORIES, samples),
            hour=rows(168, samples),
            place=place[target],
            target_place=place[target],
            visit_category=rows(CATEGORIES, pairs),
            visit_hour=rows(168, pairs),
            visit_place=place[of_pairs],
        )
        if features.context
        else None,
    )
    if features.traits:
        batch.traits = Traits(attributes, floats(count, ACTIVITY_DIM), floats(samples, ACTIVITY_DIM))
        batch.loss_inputs = LossInputs(
            item_cluster=rows(CODES, count),
            item_head=floats(count) < 0.1,
            user_head=floats(samples) < 0.1,
            place=place,
            radius_scale=torch.ones(count),
            first_targets=torch.from_numpy(first),
            user_cluster=rows(CODES, samples),
            item=torch.arange(1, count + 1),
        )
    return batch, count
