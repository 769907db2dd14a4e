"""Which items a request may be shown: those near it, open now, in business, not seen yet, or of any mask.

B requests, I catalog rows, T allowed items of all requests. A set of items a request is ``Allowed``; each of the
functions here makes one or narrows one down.
"""

import math
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...data.batches.item_columns import solar_hours
from ...data.batches.sequences import SequenceBatch
from ...data.preparation.negatives import Reach
from ...data.raw.hours import HOURS, WEEK

_THURSDAY = 3 * 24 * 60  # the weekday of 1970-01-01, in minutes from Monday


class Allowed(NamedTuple):
    """The items that each request may be shown.

    Attributes:
        offsets: request b's are rows offsets[b] to offsets[b+1] of ``items``, int64 [B+1].
        items: catalog rows, each once in a request, int64 [T].
    """

    offsets: Tensor
    items: Tensor

    @property
    def requests(self) -> Tensor:
        """The request of each item, int64 [T]."""
        return torch.repeat_interleave(self.offsets.diff(), output_size=len(self.items))

    def to(self, device: torch.device) -> "Allowed":
        """The same on a device."""
        return Allowed(self.offsets.to(device), self.items.to(device))

    def some(self, start: int, stop: int) -> "Allowed":
        """Of requests start to stop alone."""
        offsets = self.offsets[start : stop + 1]
        return Allowed(offsets - offsets[0], self.items[int(offsets[0]) : int(offsets[-1])])

    def keep(self, mask: Tensor) -> "Allowed":
        """Those whose mask is true, bool [T]."""
        if mask.shape != self.items.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"mask: got {mask.dtype} {list(mask.shape)}, expected bool [{len(self.items)}], one an item"
            )
        upto = torch.nn.functional.pad(mask.cumsum(0), (1, 0))
        return Allowed(upto[self.offsets], self.items[mask])

    def among(self, mask: Tensor) -> "Allowed":
        """Those whose catalog row's mask is true, bool [I]: in business, of one category, anything."""
        if mask.dim() != 1 or mask.dtype != torch.bool:
            raise ValueError(f"mask: got {mask.dtype} {list(mask.shape)}, expected bool [I], one a catalog row")
        return self.keep(mask[self.items])

    def without(self, other: "Allowed") -> "Allowed":
        """Those that are not among the other's of the same request: what a user has not seen yet.

        Raises:
            ValueError: another number of requests.
        """
        if len(other.offsets) != len(self.offsets):
            raise ValueError(f"other: got {len(other.offsets) - 1} requests, expected {len(self.offsets) - 1} as here")
        rows = int(max(self.items.max(), other.items.max())) + 1 if len(self.items) and len(other.items) else 1
        own, others = (x.requests * rows + x.items for x in (self, other))
        return self.keep(~torch.isin(own, others))


def everything(items: NDArray[np.integer] | Tensor, requests: int) -> Allowed:
    """All of ``items`` [N] for each of so many requests."""
    items = torch.as_tensor(np.asarray(items), dtype=torch.int64)
    return Allowed(torch.arange(requests + 1) * len(items), items.repeat(requests))


class Near:
    """Items by place, to list those within so many kilometres of requests.

    Args:
        items: catalog rows [N].
        lat, lon: their places in degrees, [N]; an item with NaN is near nothing.
        km: the reach, greater than 0.
    """

    def __init__(
        self, items: NDArray[np.integer], lat: NDArray[np.floating], lon: NDArray[np.floating], km: float
    ) -> None:
        if not km > 0:
            raise ValueError(f"km: got {km}, expected a distance above 0")
        placed = np.isfinite(lat) & np.isfinite(lon)
        self.items = np.asarray(items, np.int64)[placed]
        self.reach = Reach(np.asarray(lat)[placed], np.asarray(lon)[placed], km)

    def within(self, lat: NDArray[np.floating], lon: NDArray[np.floating]) -> Allowed:
        """The items within reach of requests at ``lat``, ``lon`` in degrees, [B]; none where they are NaN."""
        offsets, rows = self.reach.every(lat, lon)
        return Allowed(torch.from_numpy(offsets), torch.from_numpy(self.items[rows]))


class Around:
    """Items by place, to list those within reach of a batch's requests: of where they say they are, else of where the
    user's last visit was; of a request with neither there are none.

    Args:
        items: catalog rows of what may be listed, [N].
        lat, lon: by catalog row in degrees, float64 [I].
        km: the reach; inf: all items are within it.
    """

    def __init__(
        self, items: NDArray[np.integer], lat: NDArray[np.float64], lon: NDArray[np.float64], km: float
    ) -> None:
        self.items, self.lat, self.lon = items, lat, lon
        self.near = None if math.isinf(km) else Near(items, lat[items], lon[items], km)

    def within(self, batch: SequenceBatch) -> Allowed:
        """The items within reach of each request of a batch of visits."""
        if self.near is None:
            return everything(self.items, len(batch))
        asked_lat, asked_lon = (x.double().numpy().copy() for x in (batch.lat, batch.lon))
        offsets, last = batch.last(1)
        lacks = np.isnan(asked_lat) | np.isnan(asked_lon)
        of = np.flatnonzero(offsets.diff().numpy() > 0)
        for degrees, place in ((asked_lat, self.lat), (asked_lon, self.lon)):
            latest = np.full(len(batch), np.nan)
            latest[of] = place[batch.item[last].numpy()]
            degrees[lacks] = latest[lacks]
        return self.near.within(asked_lat, asked_lon)


class OpeningHours(NamedTuple):
    """When items are open, as the catalog's column ``opening_hours`` has it (``data/raw/hours.py``).

    Times are minutes since Monday 00:00 where the item is; open from ``open`` up to and without ``close``. A close at
    or before its open is after the week's end. An empty list is closed all week, null is not known, which counts as
    open: most catalogs know the hours of some places only.

    Attributes:
        offsets: item i's intervals are rows offsets[i] to offsets[i+1], int64 [I+1].
        opens, closes: 0 to 10,080, int64 [rows].
        known: bool [I].
    """

    offsets: Tensor
    opens: Tensor
    closes: Tensor
    known: Tensor

    @classmethod
    def of_column(cls, column: pa.Array | pa.ChunkedArray) -> "OpeningHours":
        """From the catalog's column [I].

        Raises:
            ValueError: another type, or minutes that a week does not have; names the row.
        """
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        if column.type != HOURS:
            raise ValueError(f"opening hours: got a column of {column.type}, expected {HOURS}")
        lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        rows = column.flatten()  # without what lies under nulls
        minutes = []
        for name in ("open", "close"):
            values = rows.field(name)
            found = values.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
            bad = (found < 0) | (found > WEEK)
            if bad.any():
                at = int(np.flatnonzero(bad)[0])
                item = int(np.searchsorted(offsets, at, "right")) - 1
                raise ValueError(
                    f"opening hours of row {item}: got {name} {values[at]}, "
                    f"expected minutes since Monday 00:00, 0 to {WEEK}"
                )
            minutes.append(torch.from_numpy(found))
        known = torch.from_numpy(~column.is_null().to_numpy(zero_copy_only=False))
        return cls(torch.from_numpy(offsets), minutes[0], minutes[1], known)

    def open_at(self, items: Tensor, minute: Tensor) -> Tensor:
        """Whether items are open.

        Args:
            items: catalog rows, int64 [T].
            minute: of the week, where the item is, int64 [T]; ``minute_of_week`` makes it.

        Returns:
            bool [T]; true where hours are not known.
        """
        starts, counts = self.offsets[items], self.offsets.diff()[items]
        of = torch.repeat_interleave(counts)
        rows = torch.arange(len(of)) - (counts.cumsum(0) - counts)[of] + starts[of]
        opens, closes = self.opens[rows], self.closes[rows]
        closes = torch.where(closes <= opens, closes + WEEK, closes)
        now = minute[of]
        now = torch.where(now < opens, now + WEEK, now)  # a week later, for what is open past the week's end
        inside = torch.zeros(len(items), dtype=torch.int64)
        inside.index_add_(0, of, (now < closes).long())
        return (inside > 0) | ~self.known[items]


def minute_of_week(seconds: Tensor) -> Tensor:
    """Minutes since Monday 00:00 of local times, seconds since 1970-01-01 00:00 there (UTC plus the offset), int64."""
    return (torch.div(seconds, 60, rounding_mode="floor") + _THURSDAY) % WEEK


def local_seconds(allowed: Allowed, time: Tensor, utc_offset: Tensor, lon: Tensor) -> Tensor:
    """Where each allowed item is, the local time at which it is asked for.

    Args:
        allowed: of B requests.
        time: of the requests, unix seconds, int64 [B].
        utc_offset: of the requests, minutes east of UTC, [B]. Where it is NaN local is solar time, UTC plus the item's
            longitude / 15 in whole hours, which is off by an hour or two in many countries.
        lon: by catalog row in degrees, NaN as 0, [I].

    Returns:
        Seconds since 1970-01-01 00:00 there, int64 [T], for ``open_now``.
    """
    of = allowed.requests
    solar = solar_hours(lon)[allowed.items] * 3600.0
    offset = utc_offset.double()[of] * 60
    return time[of] + torch.where(offset.isnan(), solar, offset).round().long()


def open_now(allowed: Allowed, hours: OpeningHours, seconds: Tensor) -> Allowed:
    """Of what is allowed, what is open at local times: of each allowed item, int64 [T], as ``local_seconds`` has it."""
    if len(seconds) != len(allowed.items):
        raise ValueError(f"seconds: got {len(seconds)}, expected {len(allowed.items)}, one an allowed item")
    return allowed.keep(hours.open_at(allowed.items, minute_of_week(seconds)))
