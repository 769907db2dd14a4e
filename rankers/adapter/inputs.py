"""What the model is asked, as tensors: the places of a catalog, and requests with the visits before them.

B requests, M visits looked at, I catalog rows (row 0 is no place), C candidates, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from ...data.arrays import one_array
from ...data.batches.item_columns import solar_hours
from ...data.batches.sequences import SequenceBatch
from ...kernels.haversine import unit_vectors, unit_vectors_km
from ...kernels.jagged import ranges_unchecked

HOUR, DAY = 3600, 86_400
RECENT = 5
FEATURES = 6
"""Share of the last visits, of the last ``RECENT``, of the aggregator's weights; nearness; popularity; ever visited."""
GAPS = 20
FAR_KM = 100.0  # where a distance is not known
TEXT_TOKENS = 24  # of an item's text


class ItemTexts(NamedTuple):
    """Tokens of items' texts: item i's are tokens[offsets[i]] to tokens[offsets[i + 1]]; int64."""

    tokens: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: Any) -> "ItemTexts":
        """An empty text is the token that ends texts."""
        ids = [tokenizer(t or " ", add_special_tokens=False)["input_ids"][:TEXT_TOKENS] for t in texts]
        ids = [row or [tokenizer.eos_token_id] for row in ids]
        lengths = torch.tensor([len(row) for row in ids])
        return cls(torch.tensor([t for row in ids for t in row]), F.pad(lengths.cumsum(0), (1, 0)))

    def of_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of some rows, and where each begins, as ``F.embedding_bag`` takes them."""
        lengths = self.offsets.diff()[rows]
        at = ranges_unchecked(self.offsets[rows + 1], lengths, int(lengths.sum()))
        return self.tokens[at], lengths.cumsum(0) - lengths


@dataclass(frozen=True)
class Places:
    """A catalog as the model sees it.

    Attributes:
        point: unit vectors, NaN where unknown, float64 [I, 3].
        popularity: logarithm of each place's share of the training visits, float32 [I].
        hours_east: of solar time from UTC, int64 [I].
        texts: name, category path and brand.
    """

    point: Tensor
    popularity: Tensor
    hours_east: Tensor
    texts: list[str]

    @classmethod
    def of_catalog(cls, catalog: pa.Table) -> "Places":
        """Of ``catalog.parquet`` [I]; its ``positives`` are those of training."""
        lat, lon = (torch.tensor(one_array(catalog[c]).to_numpy(zero_copy_only=False)).double() for c in ("lat", "lon"))
        count = torch.from_numpy(catalog["positives"].fill_null(0).to_numpy().astype(np.float64))
        share = (count + 0.5) / (count.sum() + 0.5 * len(count))
        rows = catalog.select(["name", "category", "brand"]).to_pylist()
        texts = [", ".join(filter(None, (r["name"], *reversed(r["category"] or []), r["brand"]))) for r in rows]
        return cls(unit_vectors(lat, lon), share.log().float(), solar_hours(lon).long(), texts)

    def __len__(self) -> int:
        return len(self.popularity)


@dataclass(frozen=True)
class Requests:
    """Requests, each with its last visits, oldest first, at the left; the right is filled up with row 0.

    Attributes:
        item: catalog rows, int64 [B, M].
        gap: which of ``GAPS`` steps of time lies between visit and request, int64 [B, M].
        hour: of the day at the visit, int64 [B, M].
        seen: which of these are visits, bool [B, M].
        point: of the request, of the last visit where it has none; NaN where there is neither; float64 [B, 3].
        local: local time of the request, seconds since 1970-01-01 00:00 there, int64 [B].
    """

    item: Tensor
    gap: Tensor
    hour: Tensor
    seen: Tensor
    point: Tensor
    local: Tensor

    def __len__(self) -> int:
        return len(self.local)

    def some(self, rows: Tensor) -> Self:
        """Of these requests, int64 [N]."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def trimmed(self) -> Self:
        """Without the columns in which no request has a visit."""
        wide = int(self.seen.sum(1).max()) if len(self) else 0
        cut = {name: getattr(self, name)[:, :wide] for name in ("item", "gap", "hour", "seen")}
        return type(self)(**cut, point=self.point, local=self.local)

    @classmethod
    def of_batch(cls, batch: SequenceBatch, places: Places, history: int) -> Self:
        """Of the targets of a batch, which sees at least ``history`` visits of each."""
        offsets, at = batch.last(history)
        lengths = offsets.diff()
        wide = int(lengths.max()) if len(lengths) else 0
        column = torch.arange(wide)
        seen = column < lengths[:, None]
        index = torch.zeros(seen.shape, dtype=torch.int64)
        index[seen] = at
        there = len(batch.item) > 0
        pick = lambda x: x[index].where(seen, torch.zeros((), dtype=x.dtype)) if there else seen.to(x.dtype)  # noqa: E731
        item, time, offset = pick(batch.item), pick(batch.time), pick(batch.utc_offset)
        last = item.gather(1, (lengths - 1).clamp(min=0)[:, None]).squeeze(1) if wide else torch.zeros_like(lengths)
        point = unit_vectors(batch.lat.double(), batch.lon.double())
        point = torch.where(point.isnan(), places.point[last], point)
        east = places.hours_east[last] * HOUR
        here = torch.where(batch.target_offset.isnan(), east.double(), batch.target_offset.double() * 60)
        then = torch.where(offset.isnan(), places.hours_east[item].double() * HOUR, offset.double() * 60)
        hours = (batch.target_time[:, None] - time).clamp(min=0).double() / HOUR
        return cls(
            item=item,
            gap=(2 * hours.log1p()).floor().long().clamp(max=GAPS - 1).masked_fill(~seen, 0),
            hour=((time + then.long()) % DAY // HOUR).masked_fill(~seen, 0),
            seen=seen,
            point=point,
            local=batch.target_time + here.long(),
        )


def features(q: Requests, places: Places, weights: Tensor, candidates: Tensor) -> Tensor:
    """What is counted of each candidate for each request, about -5 to 5.

    Args:
        q: requests.
        places: the catalog.
        weights: of the aggregator, float [B, M].
        candidates: catalog rows, int64 [B, C].

    Returns:
        float [B, C, F], with gradients to the weights.
    """
    length = q.seen.sum(1, keepdim=True)
    newest = q.seen & (torch.arange(q.seen.shape[1]) >= length - RECENT)
    share = q.seen.float() / length.clamp(min=1)
    recent = newest.float() / newest.sum(1, keepdim=True).clamp(min=1)
    equal = (q.item[:, :, None] == candidates[:, None]) & q.seen[:, :, None]
    counted = torch.stack([share, recent, weights], dim=1) @ equal.float()  # [B, 3, C]
    km = unit_vectors_km(q.point[:, None], places.point[candidates]).nan_to_num(nan=FAR_KM)
    rest = torch.stack([-km.log1p().float(), places.popularity[candidates] / 4 + 2, (counted[:, 0] > 0).float()], dim=1)
    return torch.cat([(counted + 0.01).log() + 4, rest], dim=1).transpose(1, 2)
