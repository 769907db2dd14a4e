"""The catalog: what belongs to an item is stored once and looked up by row on the device."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from ...kernels.haversine import unit_vectors, unit_vectors_km
from .activity import activity_features, find_heads
from .batch import RankingBatch, SampleBatch
from .dense_batch import Context, DenseBatch, LossInputs, Traits
from .density import density_scale
from .features import CLUSTER, HOURS_PER_WEEK, USER_CLUSTER, Features
from .history_clusters import history_clusters

_HOUR = 3600
_MONDAY = 4 * 24 * _HOUR  # 1970-01-01 was a Thursday; hours of the week start on Monday, in solar time of the item


def _tensor(column: pa.ChunkedArray, dtype: Any) -> Tensor:
    return torch.from_numpy(column.to_numpy().astype(dtype))


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows], on the CPU in a third of the time."""
    return x.index_select(0, rows)


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
        self.item_rows = {
            c.removesuffix("_row"): _tensor(items[c], np.int64).to(device)
            for c in items.column_names
            if c.endswith("_row")
        }
        path = items["category_path"].combine_chunks()
        self.path_offsets = torch.from_numpy(path.offsets.to_numpy().astype(np.int64)).to(device)
        self.path_values = torch.from_numpy(path.values.to_numpy().astype(np.int64)).to(device)
        self.user_rows = {
            c.removesuffix("_row"): _tensor(users[c], np.int64).to(device)
            for c in users.column_names
            if c.endswith("_row")
        }
        self.has_activity = features.traits or "activity" in features.dense
        if self.has_activity:
            now = max(pc.max(items["last_positive"]).as_py(), 0)
            count, last = (_tensor(items[c], np.int64) for c in ("positives", "last_positive"))
            self.activity = activity_features(count, (now - last).double() / (24 * _HOUR)).to(device)
        if features.traits:
            self.item_head = find_heads(count).to(device)
            self.user_head = find_heads(_tensor(users["positives"], np.int64)).to(device)
            scale = density_scale(lat.numpy(), lon.numpy()) if features.adaptive else np.ones(len(items), np.float32)
            self.radius_scale = torch.from_numpy(scale).to(device)
            columns = [self.item_rows[name][:, None] for name in features.attributes]
            self.attributes = torch.cat([torch.empty(len(items), 0, dtype=torch.int64, device=device), *columns], dim=1)

    @classmethod
    def load(
        cls,
        prepared: Path,
        features: Features,
        device: torch.device | str = "cpu",
        semantic: dict[str, Tensor] | None = None,
    ) -> "Catalog":
        """Read the catalog of a prepared folder, or of an export.

        Args:
            prepared: the folder.
            features: what the ranker takes.
            device: where the tensors lie.
            semantic: rows of the tables that are made of semantic IDs, [I] by name; an export's catalog has them.
        """
        items = with_columns(pq.read_table(prepared / "catalog.parquet"), semantic or {})
        return cls(items, pq.read_table(prepared / "users.parquet"), features, torch.device(device))

    def distance_km(self, item: Tensor, lat: Tensor, lon: Tensor) -> Tensor:
        """km from places in degrees [B] to items [B] (row numbers), float32 [B]; NaN where either is unknown."""
        return unit_vectors_km(unit_vectors(lat.double(), lon.double()).float(), self.place[item])

    def attribute_combinations(self, most: int = 65_536) -> tuple[Tensor, Tensor]:
        """Combinations of attributes that items have, the most frequent ``most`` of them.

        Returns:
            Rows of the attributes' tables, int64 [M, F], and how many items have them, int64 [M].
        """
        rows, counts = self.attributes[1:].unique(dim=0, return_counts=True)
        top = counts.argsort(descending=True, stable=True)[:most]
        return rows[top], counts[top]

    def user_activity(self, offsets: Tensor, hours: Tensor) -> Tensor:
        """Activity of users as their histories show it: counts as of the split would hold the visit to be predicted.

        Args:
            offsets: of the histories, int64 [B+1].
            hours: since each visit, oldest first, float32 [T].

        Returns:
            ``activity_features``, float32 [B, A].
        """
        lengths = offsets.diff()
        latest = F.pad(hours, (1, 0))[offsets[1:]].where(lengths > 0, torch.nan)
        return activity_features(lengths, latest / 24)

    def user_clusters(self, offsets: Tensor, visits: Tensor) -> Tensor:
        """Cluster rows of users by the items [T] of their histories, offsets int64 [B+1]: int64 [B], 0 for none."""
        return history_clusters(offsets, _take(self.item_rows[CLUSTER], visits))

    def expand(self, sample: SampleBatch) -> RankingBatch:
        """Look up everything that follows from a sample's rows: [B] samples to the ranker's batch."""
        to = lambda x: x.to(self.device, non_blocking=True)  # noqa: E731
        ids = sample.ids.to(self.device, non_blocking=True)
        item, user, history = ids["item"].values(), ids["user"].values(), ids["history"]
        hours = to(sample.history_hours)
        met = torch.cat([sample.ids["item"].values(), sample.ids["history"].values()])
        found, place = met.unique(return_inverse=True)  # on the host, whose sizes a GPU need not wait for
        target, visits = map(to, place.split([item.numel(), history.values().numel()]))
        found = to(found)
        user_activity = self.user_activity(history.offsets(), hours) if self.has_activity else None
        pooled = self._pooled_ids(user, item, to(sample.time), history)
        dense = DenseBatch(
            target=target,
            visits=visits,
            offsets=history.offsets().long(),
            lengths=sample.ids["history"].lengths().long(),
            features=self._dense(sample, item, user_activity),
            history_gaps=self._gaps(item, history.values(), history.lengths(), hours),
            context=self._context(sample, item, history) if self.features.context else None,
            traits=self._traits(found, user_activity) if self.features.traits else None,
            loss_inputs=self._loss_inputs(found, user, pooled, to(_first_of_each(place[: len(sample)])))
            if self.features.traits
            else None,
        )
        return RankingBatch(items=self._items(found), pooled=pooled, dense=dense, label=to(sample.label))

    def _items(self, found: Tensor) -> KeyedJaggedTensor:
        """Rows of the distinct items [U] in each table."""
        columns = [found if t.name == "item" else _take(self.item_rows[t.name], found) for t in self.features.sequence]
        return KeyedJaggedTensor(
            keys=self.features.item_keys,
            values=torch.cat(columns),
            lengths=torch.full((len(columns),), len(found), device=found.device),
        )

    def _pooled_ids(self, user: Tensor, item: Tensor, time: Tensor, history: JaggedTensor) -> KeyedJaggedTensor:
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
            elif table.name == USER_CLUSTER:
                x = self.user_clusters(history.offsets(), history.values())
            elif table.name in self.user_rows:
                x = self.user_rows[table.name][user]
            else:
                x = self.item_rows[table.name][item]
            values.append(x)
            lengths.append(n)
            if len(table.features) > 1:
                values.append(_take(self.item_rows[table.name], history.values()))
                lengths.append(history.lengths().long())
        return KeyedJaggedTensor(keys=self.features.pooled_keys, values=torch.cat(values), lengths=torch.cat(lengths))

    def _dense(self, sample: SampleBatch, item: Tensor, user_activity: Tensor | None) -> Tensor:
        columns = [torch.empty(item.numel(), 0, device=self.device)]
        for name in self.features.dense:
            if name == "distance":
                km = self.distance_km(item, sample.lat.to(self.device), sample.lon.to(self.device))
                columns += [km.nan_to_num(0).log1p()[:, None], (~km.isnan()).float()[:, None]]
            elif name == "visits":
                columns.append(sample.visits.to(self.device).float().log1p()[:, None])
            elif name == "activity":
                assert user_activity is not None
                columns += [self.activity[item], user_activity]
        return torch.cat(columns, dim=1)

    def _gaps(self, item: Tensor, history: Tensor, lengths: Tensor, hours: Tensor) -> Tensor:
        target = torch.repeat_interleave(item, lengths, output_size=history.numel())
        km = unit_vectors_km(_take(self.place, history), _take(self.place, target)).nan_to_num(0)
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
            visit_category=_take(self.item_rows["category"], visits),
            visit_hour=self._hour(visit_time, visits),
            visit_place=_take(self.place, visits),
        )

    def _traits(self, found: Tensor, user_activity: Tensor | None) -> Traits:
        assert user_activity is not None
        return Traits(
            attributes=_take(self.attributes, found),
            activity=_take(self.activity, found),
            user_activity=user_activity,
        )

    def _loss_inputs(self, found: Tensor, user: Tensor, pooled: KeyedJaggedTensor, first: Tensor) -> LossInputs:
        # row 0 is everybody outside of the vocabulary: it has no cluster to learn from
        users = pooled[USER_CLUSTER].values() * (user > 0) if USER_CLUSTER in pooled.keys() else torch.zeros_like(user)  # noqa: SIM118
        cluster = _take(self.item_rows[CLUSTER], found) if CLUSTER in self.item_rows else torch.zeros_like(found)
        return LossInputs(
            item_cluster=cluster,
            item_head=_take(self.item_head, found),
            user_head=self.user_head[user],
            place=_take(self.place, found),
            radius_scale=_take(self.radius_scale, found),
            first_targets=first,
            user_cluster=users,
            item=found,
        )

    def _hour(self, time: Tensor, item: Tensor) -> Tensor:
        """Hour of the week, in the item's solar time: 0 to 167, from Monday."""
        return (time + _take(self.local_shift, item)) // _HOUR % HOURS_PER_WEEK


def with_columns(items: pa.Table, rows: dict[str, Tensor]) -> pa.Table:
    """The catalog with row numbers [I] of more tables, as columns ``<name>_row``."""
    for name, values in rows.items():
        items = items.append_column(f"{name}_row", pa.array(values.numpy()))
    return items


def _ranges(start: Tensor, length: Tensor) -> Tensor:
    """Concatenated ranges [start_i, start_i + length_i), int64."""
    total = int(length.sum())
    first = torch.cumsum(length, 0) - length
    return torch.arange(total, device=start.device) + torch.repeat_interleave(start - first, length, output_size=total)


def _first_of_each(numbers: Tensor) -> Tensor:
    """Where each distinct number comes first, by number, int64 [A]; on the host."""
    return torch.from_numpy(np.unique(numbers.numpy(), return_index=True)[1])
