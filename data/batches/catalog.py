"""The catalog: what belongs to an item is stored once and looked up by row on the device."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ...kernels.haversine import unit_vectors, unit_vectors_km
from ...kernels.jagged import ranges_unchecked, segment_ids_unchecked, shared_rows_unchecked
from .. import LABEL
from ..arrays import ranges
from ..urls import fetched
from .activity import activity_features
from .batch import RankingBatch, SampleBatch
from .dense_batch import Context, DenseBatch, LossInputs, Traits
from .features import CLUSTER, HOURS_PER_WEEK, USER_CLUSTER, Features
from .history_clusters import history_clusters
from .host_batch import HostBatch
from .item_columns import HOUR, FoundItems, Layout, catalog_columns, local_shift, with_columns

Pieces = dict[str, Tensor]
_MOST = 10.0  # deviations from the mean; farther ones say no more


class Catalog:
    """Item and user attributes by row, and the step from samples to the ranker's batches.

    Items lie on the device, and are looked up once for each distinct item of a batch. What has one row a sample, users,
    stays on the host, however many there are. The step has two halves: ``gather`` is all that the host decides, and
    touches no device; ``expand`` is the device's, and never waits for it.

    Args:
        columns: see ``catalog_columns``.
        features: what the ranker takes, as when the columns were made.
        device: where the items lie and where batches are made.
    """

    def __init__(self, columns: dict[str, Tensor], features: Features, device: torch.device) -> None:
        self.features, self.device = features, device
        self.layout = Layout(features)
        self.words = self._own_words(columns["words"]).to(device)
        self.items = len(columns["words"])
        self.path_offsets, self.path_values = (
            columns[name].to(device) if name in columns else None for name in ("path_offsets", "path_values")
        )
        self.on_host = {n: x for n, x in columns.items() if n not in ("words", "path_offsets", "path_values")}

    @classmethod
    def of(cls, items: pa.Table, users: pa.Table, features: Features, device: torch.device) -> "Catalog":
        """From the tables of a prepared folder, in memory of this process; see ``catalog_columns``."""
        return cls(catalog_columns(items, users, features), features, device)

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
            device: where the items lie.
            semantic: rows of the tables that are made of semantic IDs, [I] by name; an export's catalog has them.
        """
        items = with_columns(pq.read_table(fetched(prepared / "catalog.parquet")), semantic or {})
        return cls.of(items, pq.read_table(fetched(prepared / "users.parquet")), features, torch.device(device))

    def _own_words(self, words: Tensor) -> Tensor:
        """The rows of ``words`` that lie on this device."""
        return words

    def rows(self, found: Tensor) -> FoundItems:
        """Columns of items by their rows, int64 [U], on the device; in ascending order, each once."""
        return FoundItems(self.layout, self.words.index_select(0, found))

    @property
    def device_bytes(self) -> int:
        """Bytes that the catalog holds on its device."""
        held = [self.words, self.path_offsets, self.path_values]
        return sum(x.nbytes for x in held if x is not None)

    def attribute_combinations(self) -> tuple[Tensor, Tensor]:
        """Combinations of attributes that items have, the most frequent 65,536 of them; where batches carry Traits.

        Returns:
            Rows of the attributes' tables, int64 [M, F], and how many items have them, int64 [M]; on the device.
        """
        return tuple(self.on_host[n].to(self.device) for n in ("combinations", "combination_counts"))  # type: ignore[return-value]

    def user_activity(self, offsets: Tensor, hours: Tensor, size: Tensor | None = None) -> Tensor:
        """Activity of users as their histories show it: counts as of the split would hold the visit to be predicted.

        Args:
            offsets: of the histories, int64 [B+1].
            hours: since each visit, oldest first, float32 [T].
            size: visits that each of them stands for, float32 [T]; None: one.

        Returns:
            ``activity_features``, float32 [B, A].
        """
        lengths = offsets.diff()
        latest = F.pad(hours, (1, 0))[offsets[1:]].where(lengths > 0, torch.nan)
        visits = lengths if size is None else F.pad(size.long().cumsum(0), (1, 0))[offsets].diff()
        return activity_features(visits, latest / 24)

    def user_clusters(self, user: Tensor, offsets: Tensor, visits: Tensor) -> Tensor:
        """Cluster rows of users, int64 [B], 0 for none: of their semantic IDs where they have such, and else by the
        items [T] of their histories, offsets int64 [B+1].

        Of a ranker with users' clusters; on the host.
        """
        own = self.on_host.get(f"user_{USER_CLUSTER}")
        if own is not None:
            return own.index_select(0, user).long()
        return history_clusters(offsets, self.on_host["cluster"].index_select(0, visits).long())

    def gather(self, sample: SampleBatch, new: Tensor | None = None) -> HostBatch:
        """The host's half: which items a batch has, where each sample and visit finds its own, users, and sizes.

        Touches no device, so a thread that reads ahead may do it, and pin what comes out.

        Args:
            sample: the batch.
            new: rows of targets that are taken for new ones (``with_newcomers``), int64 [M]: in place of their own row
                they have row 0, they were never active, and losses between items take no part of them.
        """
        pooled = self.features.pooled_keys
        user, request, offsets = sample.user, sample.request, sample.offsets
        found, at = torch.cat([sample.item, sample.history]).unique(return_inverse=True)
        target = at[: len(sample)]
        whole = {"found": found, "target": target, "visits": at[len(sample) :], "offsets": offsets, "request": request}
        whole |= {"user": user, "time": sample.time}
        if new is not None:
            whole["own"] = found.index_fill(0, torch.searchsorted(found, new), 0)
        of_users = (f"user_{p}" for p in pooled if p != USER_CLUSTER)
        whole |= {n: self.on_host[n].index_select(0, user) for n in of_users if n in self.on_host}
        if USER_CLUSTER in pooled:
            whole[USER_CLUSTER] = self.user_clusters(user, offsets, sample.history)
        if self.features.traits:
            whole |= {
                "user_head": self.on_host["user_head"].index_select(0, user),
                "first": _firsts(target, len(found)),
            }
        whole |= self._lists(sample)
        real = {"hours": sample.history_hours, "lat": sample.lat, "lon": sample.lon}
        real |= {f"target {name}": _target(sample, name) for name in self.features.objectives}
        if self.features.weight is not None:
            real["weight"] = _target(sample, self.features.weight)
        real |= {"earlier": sample.visits}
        if self.features.cluster_visits > 1:
            size = sample.history_size
            real["size"] = torch.ones_like(sample.history_hours) if size is None else size
        if sample.utc_offset is not None:
            real["utc_offset"] = sample.utc_offset
        for own in self.features.own:
            if own.of in ("request", "candidate"):
                if own.name not in sample.own:
                    raise ValueError(
                        f"samples have no {own.name!r}, which the ranker was trained with; they have "
                        f"{', '.join(sample.own) or 'no own columns'}: prepare them from tables with this column"
                    )
                (real if own.form == "number" else whole)[f"of_{own.of}.{own.name}"] = sample.own[own.name]
            elif own.of == "user" and own.form == "number":
                key = f"user_number.{own.name}"
                real[key] = self.on_host[key].index_select(0, user)
        path_rows = 0
        if "category_path" in pooled:
            path_rows = int(self.on_host["path_length"].index_select(0, sample.item).sum())
        return HostBatch.of(whole, real, offsets.diff().index_select(0, request), path_rows)

    def _lists(self, sample: SampleBatch) -> Pieces:
        """Rows of own columns that are lists, by candidate, and how many each has."""
        found: Pieces = {}
        for own in self.features.own:
            if own.form == "rows":
                at = sample.item if own.of == "item" else sample.user.index_select(0, sample.request)
                offsets, rows = self.on_host[f"{own.name}.offsets"], self.on_host[f"{own.name}.rows"]
                start = offsets.index_select(0, at)
                length = offsets.index_select(0, at + 1) - start
                found[f"length.{own.name}"] = length
                found[f"rows.{own.name}"] = rows[torch.from_numpy(ranges(start.numpy(), length.numpy()))]
        return found

    def expand(self, batch: HostBatch | SampleBatch) -> RankingBatch:
        """The device's half: look up everything that follows from the rows of a batch. Samples are gathered first."""
        host = batch if isinstance(batch, HostBatch) else self.gather(batch)
        x = _by_candidate(host.pieces(self.device), host.pairs)
        items = self.rows(x["found"])
        if "own" in x:
            items = items.as_new(x["own"] == 0)
        has_activity = self.layout.has_activity
        user_activity = None
        if has_activity:
            of_requests = self.user_activity(x["offsets"], x["hours"], x.get("size"))
            user_activity = of_requests.index_select(0, x["request"])
        dense = DenseBatch(
            target=x["target"],
            visits=x["visits"],
            offsets=x["pair_offsets"],
            lengths=host.lengths,
            features=self._dense(x, items, user_activity),
            history_gaps=_gaps(x, items),
            starts=x.get("starts"),
            context=_context(x, items) if self.features.context else None,
        )
        if self.features.traits:
            assert user_activity is not None
            dense.traits = Traits(items.attributes, items.activity, user_activity)
            dense.loss_inputs = self._loss_inputs(x, items)
        pooled = self._pooled_ids(x, items, host.path_rows)
        targets = [x[f"target {name}"] for name in self.features.objectives]
        return RankingBatch(
            items=self._items(x, items),
            pooled=pooled,
            dense=dense,
            label=targets[0] if len(targets) == 1 else torch.stack(targets, dim=1),
            weight=x.get("weight"),
        )

    def of_users(self, table: str, user: Tensor) -> Tensor:
        """Rows of a user column's table by rows of users [B], int64 [B]; on the host."""
        return self.on_host[f"user_{table}"].index_select(0, user).long()

    def _items(self, x: Pieces, items: FoundItems) -> KeyedJaggedTensor:
        columns = [x.get("own", x["found"]) if t.name == "item" else items.rows(t.name) for t in self.features.sequence]
        return in_bags(self.features.item_keys, columns, len(x["target"]))

    def _pooled_ids(self, x: Pieces, items: FoundItems, path_rows: int) -> KeyedJaggedTensor:
        values, lengths = [], []
        one = torch.ones_like(x["target"])
        own = {o.name: o for o in self.features.own}
        for name in self.features.pooled_keys:
            n = one
            if name == "user" or name == USER_CLUSTER:
                rows = x[name]
            elif name == "hour":
                rows = _hour(x["time"], _shift(x, items, x["target"]))
            elif name == "category_path":
                rows, n = self._paths(items.rows("category").index_select(0, x["target"]), path_rows)
            elif name in own and own[name].form == "rows":
                rows, n = x[f"rows.{name}"], x[f"length.{name}"]
            elif name in own and own[name].of != "user":
                rows = x[f"of_{own[name].of}.{name}"]
            elif f"user_{name}" in x:
                rows = x[f"user_{name}"]
            elif name.startswith("history_"):
                rows = items.rows(name.removeprefix("history_")).index_select(0, x["pair_visits"])
                n = x["pair_offsets"].diff()
            else:
                rows = items.rows(name.removeprefix("item_")).index_select(0, x["target"])
            values.append(rows)
            lengths.append(n)
        return KeyedJaggedTensor(
            keys=self.features.pooled_keys,
            values=torch.cat(values),
            lengths=torch.cat(lengths),
            length_per_key=[v.numel() for v in values],
        )

    def _paths(self, category: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """Paths of categories [B] one after the other, ``total`` rows in all, and their lengths [B]."""
        assert self.path_offsets is not None and self.path_values is not None
        start, end = self.path_offsets[category], self.path_offsets[category + 1]
        length = end - start
        return self.path_values[ranges_unchecked(end, length, total)], length

    def _dense(self, x: Pieces, items: FoundItems, user_activity: Tensor | None) -> Tensor:
        columns = [torch.empty(len(x["target"]), 0, device=self.device)]
        for name in self.features.dense:
            if name == "distance":
                km = unit_vectors_km(_place(x), items.place.index_select(0, x["target"]))
                columns += [km.nan_to_num(0).log1p()[:, None], (~km.isnan()).float()[:, None]]
            elif name == "visits":
                columns.append(x["earlier"].log1p()[:, None])
            elif name == "activity":
                assert user_activity is not None
                columns += [items.activity.index_select(0, x["target"]), user_activity]
        for own in self.features.numbers:
            if own.of == "item":
                value = items.number(own.name).index_select(0, x["target"])
            else:
                value = x[f"user_number.{own.name}" if own.of == "user" else f"of_{own.of}.{own.name}"]
            columns += [value.nan_to_num(0).clamp(-_MOST, _MOST)[:, None], (~value.isnan()).float()[:, None]]
        return torch.cat(columns, dim=1)

    def _loss_inputs(self, x: Pieces, items: FoundItems) -> LossInputs:
        none = torch.zeros_like
        cluster = items.rows(CLUSTER) if CLUSTER in self.layout.tables else none(x["found"])
        place = items.place
        if "own" in x:  # one row for all of them: without cluster and place no loss compares it with others
            cluster = cluster * (x["own"] > 0)
            place = place.where(x["own"][:, None] > 0, torch.nan)
        return LossInputs(
            item_cluster=cluster,
            item_head=items.head,
            user_head=x["user_head"].bool(),
            place=place,
            radius_scale=items.radius_scale,
            first_targets=x["first"],
            # row 0 is everybody outside of the vocabulary: it has no cluster to learn from
            user_cluster=x[USER_CLUSTER] * (x["user"] > 0) if USER_CLUSTER in x else none(x["user"]),
            item=x["found"],
        )


def _target(sample: SampleBatch, name: str) -> Tensor:
    """What a ranker learns of candidates, or how much of it: float32 [B]; NaN where nobody knows, as in serving."""
    if name == LABEL:
        return sample.label
    known = sample.own.get(name)
    if known is None:
        return torch.full_like(sample.label, torch.nan)
    # a weight may be of requests; where these are as many as candidates each has one
    return known if len(known) == len(sample) else known.index_select(0, sample.request)


def in_bags(keys: list[str], columns: list[Tensor], bags: int) -> KeyedJaggedTensor:
    """Rows of U distinct items in each table, in bags of ceil(U / bags) or one less.

    Bags are what fbgemm's kernels share work by, and their number has to be equal on all ranks, as that of samples is
    and U is not. Which rows share a bag means nothing: they are not pooled.

    Args:
        keys: of the EmbeddingCollection.
        columns: a key's rows, int64 [U].
        bags: as many as samples; at least one is made.
    """
    if not columns:
        nothing = torch.zeros(0, dtype=torch.int64)
        return KeyedJaggedTensor(keys=[], values=nothing, lengths=nothing)
    found, bags = len(columns[0]), max(1, bags)
    least, more = divmod(found, bags)
    lengths = least + (torch.arange(bags, device=columns[0].device) < more).long()
    return KeyedJaggedTensor(
        keys=keys,
        values=torch.cat(columns),
        lengths=lengths.repeat(len(columns)),
        length_per_key=[found] * len(columns),
    )


def _by_candidate(x: Pieces, pairs: int) -> Pieces:
    """The same pieces with what is of a request repeated for each of its candidates, and what their histories are: a
    pair of candidate and visit each, ``pairs`` in all.

    Added are ``starts``, where each candidate's history is among the visits, ``pair_offsets``, where it is among the
    pairs, ``pair_candidate``, ``pair_visits``, ``pair_hours`` and, of clusters, ``pair_size``. Visits, hours and their
    offsets stay the requests'.
    Where each request has one candidate there is nothing to repeat, and no ``starts``.
    """
    request = x["request"]
    if x["user"].numel() == request.numel():
        pairs_of = {"pair_offsets": x["offsets"], "pair_visits": x["visits"]}
        pairs_of |= {f"pair_{n}": x[n] for n in ("hours", "size") if n in x}
        return x | pairs_of | {"pair_candidate": segment_ids_unchecked(x["offsets"], pairs)}
    starts = x["offsets"][:-1].index_select(0, request)
    offsets = F.pad(x["offsets"].diff().index_select(0, request).cumsum(0), (1, 0))
    rows = shared_rows_unchecked(starts, offsets, pairs)
    repeats = ("user", "of_request.")
    of_request = [n for n in x if n in ("time", "lat", "lon", "utc_offset") or n.startswith(repeats)]
    repeated = {n: x[n].index_select(0, request) for n in of_request}
    return (
        x
        | repeated
        | {
            "starts": starts,
            "pair_offsets": offsets,
            "pair_candidate": segment_ids_unchecked(offsets, pairs),
            "pair_visits": x["visits"].index_select(0, rows),
        }
        | {f"pair_{n}": x[n].index_select(0, rows) for n in ("hours", "size") if n in x}
    )


def _place(x: Pieces) -> Tensor:
    """Of the requests, float32 [B, 3]."""
    return unit_vectors(x["lat"].double(), x["lon"].double()).float()


def _gaps(x: Pieces, items: FoundItems) -> Tensor:
    target = x["target"].index_select(0, x["pair_candidate"])
    places = (items.place.index_select(0, which) for which in (x["pair_visits"], target))
    gaps = [x["pair_hours"].log1p(), unit_vectors_km(*places).nan_to_num(0).log1p()]
    if "pair_size" in x:
        gaps.append(x["pair_size"].log())
    return torch.stack(gaps, dim=1)


def _context(x: Pieces, items: FoundItems) -> Context:
    target, visits, category = x["target"], x["pair_visits"], items.rows("category")
    visit_time = x["time"].index_select(0, x["pair_candidate"]) - (x["pair_hours"].double() * HOUR).round().long()
    return Context(
        category=category.index_select(0, target),
        hour=_hour(x["time"], _shift(x, items, target)),
        place=_place(x),
        target_place=items.place.index_select(0, target),
        visit_category=category.index_select(0, visits),
        visit_hour=_hour(visit_time, _shift(x, items, visits, x["pair_candidate"])),
        visit_place=items.place.index_select(0, visits),
    )


def _shift(x: Pieces, items: FoundItems, item: Tensor, candidate: Tensor | None = None) -> Tensor:
    """Seconds from UTC to the local week of items [N]: by the offset of their request where it is known (``candidate``:
    theirs, unless they are those of the batch), else by the sun."""
    solar = items.shift.index_select(0, item)
    if "utc_offset" not in x:
        return solar
    offset = x["utc_offset"] if candidate is None else x["utc_offset"].index_select(0, candidate)
    return torch.where(offset.isnan(), solar, local_shift(offset))


def _hour(time: Tensor, shift: Tensor) -> Tensor:
    """Hour of the week at times [N] with the seconds from UTC to a local week that starts on Monday: 0 to 167."""
    return (time + shift) // HOUR % HOURS_PER_WEEK


def _firsts(numbers: Tensor, below: int) -> Tensor:
    """Where each distinct number comes first, by number, int64 [A]; on the host."""
    first = np.full(below, -1)
    first[numbers.numpy()[::-1]] = np.arange(len(numbers))[::-1]  # of equal ones the last that is written stays
    return torch.from_numpy(first[first >= 0])
