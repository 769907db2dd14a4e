"""The catalog: what belongs to an item is stored once and looked up by row on the device."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from ..kernels.haversine import unit_vectors, unit_vectors_km
from .batch import Context, RankingBatch, SampleBatch
from .features import HOURS_PER_WEEK, ITEM_ATTRIBUTES, Features

_HOUR = 3600
_MONDAY = 4 * 24 * _HOUR  # 1970-01-01 was a Thursday; hours of the week start on Monday, in solar time of the item


def _tensor(column: pa.ChunkedArray, dtype: Any) -> Tensor:
    return torch.from_numpy(column.to_numpy().astype(dtype))


class Catalog:
    """Item and user attributes as tensors by row, and the step from samples to the ranker's batches.

    Args:
        items: the prepared ``catalog.parquet``.
        users: the prepared ``users.parquet``.
        features: what the ranker takes.
        device: where the tensors lie and where batches are made.
    """

    def __init__(self, items: pa.Table, users: pa.Table, features: Features, device: torch.device) -> None:
        self.features = features
        self.device = device
        self.item_ids = items["item_id"]
        self.user_ids = users["user_id"]
        lat, lon = (_tensor(items[c], np.float64) for c in ("lat", "lon"))
        self.place = unit_vectors(lat, lon).float().to(device)
        self.local_shift = ((lon.nan_to_num(0) / 15).round().long() * _HOUR - _MONDAY).to(device)
        self.item_rows = {n: _tensor(items[f"{n}_row"], np.int64).to(device) for n in ITEM_ATTRIBUTES}
        path = items["category_path"].combine_chunks()
        self.path_offsets = torch.from_numpy(path.offsets.to_numpy().astype(np.int64)).to(device)
        self.path_values = torch.from_numpy(path.values.to_numpy().astype(np.int64)).to(device)
        self.user_rows = {
            c.removesuffix("_row"): _tensor(users[c], np.int64).to(device)
            for c in users.column_names
            if c.endswith("_row")
        }

    @classmethod
    def load(cls, prepared: Path, features: Features, device: torch.device | str = "cpu") -> "Catalog":
        """Read the catalog of a prepared folder."""
        items, users = (pq.read_table(prepared / name) for name in ("catalog.parquet", "users.parquet"))
        return cls(items, users, features, torch.device(device))

    def distance_km(self, item: Tensor, lat: Tensor, lon: Tensor) -> Tensor:
        """km from places in degrees [B] to items [B] (row numbers), float32 [B]; NaN where either is unknown."""
        return unit_vectors_km(unit_vectors(lat.double(), lon.double()).float(), self.place[item])

    def expand(self, sample: SampleBatch) -> RankingBatch:
        """Look up everything that follows from a sample's rows: [B] samples to the ranker's batch."""
        to = lambda x: x.to(self.device, non_blocking=True)  # noqa: E731
        ids = sample.ids.to(self.device, non_blocking=True)
        item, user, history = ids["item"].values(), ids["user"].values(), ids["history"]
        return RankingBatch(
            sequence=self._sequence(item, history.values(), history.lengths()),
            pooled=self._pooled_ids(user, item, to(sample.time)),
            dense=self._dense(sample, item),
            history_gaps=self._gaps(item, history.values(), history.lengths(), to(sample.history_hours)),
            label=to(sample.label),
            context=self._context(sample, item, history) if self.features.context else None,
        )

    def _sequence(self, item: Tensor, history: Tensor, lengths: Tensor) -> KeyedJaggedTensor:
        one = torch.ones_like(item, dtype=lengths.dtype)
        values, all_lengths, keys = [], [], []
        for table in self.features.sequence:
            rows = None if table.name == "item" else self.item_rows[table.name]
            for key, x, n in zip(table.features, (item, history), (one, lengths), strict=True):
                keys.append(key)
                values.append(x if rows is None else rows[x])
                all_lengths.append(n)
        return KeyedJaggedTensor(keys=keys, values=torch.cat(values), lengths=torch.cat(all_lengths))

    def _pooled_ids(self, user: Tensor, item: Tensor, time: Tensor) -> KeyedJaggedTensor:
        values, lengths = [], []
        one = torch.ones_like(item, dtype=torch.int64)
        for table in self.features.pooled:
            n = one
            if table.name == "user":
                x = user
            elif table.name == "hour":
                x = self._hour(time, item)
            elif table.name == "category_path":
                start, n = self.path_offsets[item], self.path_offsets[item + 1] - self.path_offsets[item]
                x = self.path_values[_ranges(start, n)]
            elif table.name in self.user_rows:
                x = self.user_rows[table.name][user]
            else:
                x = self.item_rows[table.name][item]
            values.append(x)
            lengths.append(n)
        return KeyedJaggedTensor(keys=self.features.pooled_keys, values=torch.cat(values), lengths=torch.cat(lengths))

    def _dense(self, sample: SampleBatch, item: Tensor) -> Tensor:
        columns = [torch.empty(item.numel(), 0, device=self.device)]
        for name in self.features.dense:
            if name == "distance":
                km = self.distance_km(item, sample.lat.to(self.device), sample.lon.to(self.device))
                columns += [km.nan_to_num(0).log1p()[:, None], (~km.isnan()).float()[:, None]]
            elif name == "visits":
                columns.append(sample.visits.to(self.device).float().log1p()[:, None])
        return torch.cat(columns, dim=1)

    def _gaps(self, item: Tensor, history: Tensor, lengths: Tensor, hours: Tensor) -> Tensor:
        target = torch.repeat_interleave(item, lengths, output_size=history.numel())
        km = unit_vectors_km(self.place[history], self.place[target]).nan_to_num(0)
        return torch.stack([hours, km], dim=1).log1p()

    def _context(self, sample: SampleBatch, item: Tensor, history: JaggedTensor) -> Context:
        to = lambda x: x.to(self.device, non_blocking=True)  # noqa: E731
        time, visits = to(sample.time), history.values()
        visit_time = torch.repeat_interleave(time, history.lengths(), output_size=visits.numel())
        visit_time = visit_time - (to(sample.history_hours).double() * _HOUR).round().long()
        lat, lon = to(sample.lat).double(), to(sample.lon).double()
        return Context(
            category=self.item_rows["category"][item],
            hour=self._hour(time, item),
            place=unit_vectors(lat, lon).float(),
            target_place=self.place[item],
            visit_category=self.item_rows["category"][visits],
            visit_hour=self._hour(visit_time, visits),
            visit_place=self.place[visits],
        )

    def _hour(self, time: Tensor, item: Tensor) -> Tensor:
        """Hour of the week, in the item's solar time: 0 to 167, from Monday."""
        return (time + self.local_shift[item]) // _HOUR % HOURS_PER_WEEK


def _ranges(start: Tensor, length: Tensor) -> Tensor:
    """Concatenated ranges [start_i, start_i + length_i), int64."""
    total = int(length.sum())
    first = torch.cumsum(length, 0) - length
    return torch.arange(total, device=start.device) + torch.repeat_interleave(start - first, length, output_size=total)
