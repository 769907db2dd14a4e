"""Made-up catalogs with every column there is, samples over them, and what a batch must hold, looked up one by one."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from placerank.data.batches.activity import activity_features, find_heads
from placerank.data.batches.batch import RankingBatch, SampleBatch
from placerank.data.batches.density import density_scale
from placerank.data.batches.features import (
    CLUSTER,
    ITEM_ATTRIBUTES,
    USER_CLUSTER,
    FeatureConfig,
    Features,
    build_features,
)
from placerank.data.batches.history_clusters import history_clusters_reference
from placerank.kernels.haversine import unit_vectors, unit_vectors_km

NOW = 1_700_000_000
SIZES = {"category": 7, "brand": 5, "price": 4, "province": 3, "city": 4, "district": 6, "age": 5}
SEMANTIC = {"semantic_1": 6, "semantic_2": 6, "semantic_3": 6, "prefix_1": 9, CLUSTER: 4, USER_CLUSTER: 4}
USERS = 11


def all_features(items: int, plain: bool = False, **changes: Any) -> Features:
    """Everything that a catalog can be asked for; ``plain``: no plug-ins, semantic IDs or context."""
    tables = {"item": items, "user": USERS, **SIZES}
    if plain:
        return build_features(FeatureConfig(**changes), tables, ["age"])
    config = FeatureConfig(**({"dense": ["distance", "visits", "activity"]} | changes))
    return build_features(config, tables, ["age"], True, True, SEMANTIC, adaptive=True)


def make_tables(items: int, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """Items, some without a place, category or positives, and users; row 0 is for unknown ones."""
    rng = np.random.default_rng(seed)
    rows = {n: rng.integers(0, SIZES[n], items).astype(np.int32) for n in ITEM_ATTRIBUTES}
    rows |= {n: rng.integers(0, size, items).astype(np.int32) for n, size in SEMANTIC.items() if n != USER_CLUSTER}
    for column in rows.values():
        column[:1] = 0
    paths = [rng.integers(1, SIZES["category"], c % 4).tolist() for c in range(SIZES["category"])]
    lat, lon = rng.uniform(-90, 90, items), rng.uniform(-180, 180, items)
    unknown = rng.random(items) < 0.2
    lat[unknown], lon[unknown] = np.nan, np.nan
    columns: dict[str, Any] = {
        "item_id": np.arange(items),
        "lat": lat,
        "lon": lon,
        "category_path": pa.array([paths[c] for c in rows["category"]], pa.list_(pa.int32())),
        "positives": rng.integers(0, 400, items) * (rng.random(items) < 0.7),
        "last_positive": NOW - rng.integers(0, 90 * 86_400, items),
        **{f"{n}_row": column for n, column in rows.items()},
    }
    users = {"user_id": np.arange(USERS), "positives": rng.integers(0, 30, USERS)}
    return pa.table(columns), pa.table({**users, "age_row": rng.integers(0, 5, USERS).astype(np.int32)})


def make_sample(
    items: int, lengths: Sequence[int], seed: int = 0, candidates: Sequence[int] | None = None
) -> SampleBatch:
    """Requests with histories so long, each with so many candidates, by default one; times, places (some unknown) and
    items at random."""
    rng = np.random.default_rng(seed)
    requests, total = len(lengths), sum(lengths)
    of = np.repeat(np.arange(requests), 1 if candidates is None else candidates)
    size = len(of)
    lat, lon = (torch.from_numpy(rng.uniform(-80, 80, requests)).float() for _ in range(2))
    lat[::3], lon[::3] = torch.nan, torch.nan
    return SampleBatch(
        request_id=torch.arange(requests),
        user=torch.from_numpy(rng.integers(0, USERS, requests)),
        user_index=torch.arange(requests),
        time=NOW + torch.from_numpy(rng.integers(0, 10_000_000, requests)),
        lat=lat,
        lon=lon,
        offsets=torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64),
        history=torch.from_numpy(rng.integers(0, items, total)),
        history_hours=torch.from_numpy(rng.exponential(200, total)).float(),
        request=torch.from_numpy(of),
        item=torch.from_numpy(rng.integers(0, items, size)),
        label=torch.from_numpy(rng.integers(0, 2, size)).float(),
        visits=torch.from_numpy(rng.integers(0, 3, size)).int(),
        probability=None,
        valid=size,
        utc_offset=torch.from_numpy(rng.choice([-240.0, 330.0, 0.0, np.nan], requests)).float(),
    )


def repeated(sample: SampleBatch) -> SampleBatch:
    """The same samples with a request of its own for each candidate: all of the request is repeated, by a loop."""
    per: dict[str, list[Any]] = {
        n: [] for n in ("request_id", "user", "user_index", "time", "lat", "lon", "utc_offset")
    }
    history, hours, lengths = [], [], []
    for r in sample.request.tolist():
        for name, values in per.items():
            values.append(getattr(sample, name)[r].item())
        start, end = sample.offsets[r].item(), sample.offsets[r + 1].item()
        history += sample.history[start:end].tolist()
        hours += sample.history_hours[start:end].tolist()
        lengths.append(end - start)
    columns = {n: torch.tensor(v, dtype=getattr(sample, n).dtype) for n, v in per.items()}
    return replace(
        sample,
        **columns,
        offsets=torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64),
        history=torch.tensor(history, dtype=torch.int64),
        history_hours=torch.tensor(hours, dtype=torch.float32),
        request=torch.arange(len(sample)),
    )


def slow_batch(items: pa.Table, users: pa.Table, features: Features, sample: SampleBatch) -> dict[str, Tensor]:
    """Every tensor of the ranker's batch by name, looked up one by one in the tables as they are."""
    given, sample = sample, repeated(sample)
    names = [n.removesuffix("_row") for n in items.column_names if n.endswith("_row")]
    rows = {n: np.asarray(items[f"{n}_row"]) for n in names}
    of_users = {"age": np.asarray(users["age_row"])}
    user, item, history, offsets = sample.user.numpy(), sample.item.numpy(), sample.history.numpy(), sample.offsets
    owner = np.repeat(np.arange(len(sample)), np.diff(offsets.numpy()))
    lat, lon = (torch.from_numpy(items[n].to_numpy().copy()) for n in ("lat", "lon"))
    place, zone = unit_vectors(lat, lon).float(), (lon.nan_to_num(0) / 15).round().long().numpy()
    monday = 4 * 86_400
    told = sample.utc_offset.double().numpy()

    def hour(time: Any, at: Any, of: Any = slice(None)) -> Tensor:
        """By the offset of the sample where it is known, else by the item's longitude."""
        away = [z * 3600 if math.isnan(m) else int(m * 60) for z, m in zip(zone[at], told[of], strict=True)]
        return torch.from_numpy((time + np.array(away, np.int64) - monday) // 3600 % 168)

    time = sample.time.numpy()
    here = unit_vectors(sample.lat.double(), sample.lon.double()).float()
    gone = sample.history_hours.double().mul(3600).round().long().numpy()
    paths = items["category_path"].to_pylist()
    count, last = (torch.from_numpy(items[n].to_numpy().copy()) for n in ("positives", "last_positive"))
    activity = activity_features(count, (max(int(last.max()), 0) - last).double() / 86_400)
    lengths, of_requests = offsets.diff(), given.offsets.diff()
    ends = zip(given.offsets[1:].tolist(), of_requests.tolist(), strict=True)
    latest = torch.tensor([given.history_hours[end - 1].item() if n else torch.nan for end, n in ends])
    user_activity = activity_features(of_requests, latest / 24)[given.request]
    cluster = torch.from_numpy(rows[CLUSTER].astype(np.int64)) if CLUSTER in rows else torch.zeros(len(items)).long()
    out: dict[str, Tensor] = {"label": sample.label, "dense.offsets": offsets, "dense.lengths": lengths}
    for key, table in zip(features.item_keys, features.sequence, strict=True):
        out[f"items.{key}"] = torch.from_numpy(np.arange(len(items)) if key == "item" else rows[table.name]).long()
    for table in features.pooled:
        for key in table.features:
            if key == "user":
                values = [[u] for u in user]
            elif key == "hour":
                values = hour(time, item)[:, None].tolist()
            elif key == "category_path":
                values = [paths[i] for i in item]
            elif key == USER_CLUSTER:
                values = history_clusters_reference(offsets, cluster[history])[:, None].tolist()
            elif key == "age":
                values = [[of_users["age"][u]] for u in user]
            elif key.startswith("history_"):
                values = [rows[table.name][history[a:b]].tolist() for a, b in pairwise(offsets.tolist())]
            else:
                values = [[rows[table.name][i]] for i in item]
            out[f"pooled.{key}"] = torch.tensor([x for row in values for x in row], dtype=torch.int64)
            out[f"pooled.{key}.lengths"] = torch.tensor([len(row) for row in values], dtype=torch.int64)
    km = unit_vectors_km(here, place[item])
    columns = {
        "distance": [km.nan_to_num(0).log1p()[:, None], (~km.isnan()).float()[:, None]],
        "visits": [sample.visits.float().log1p()[:, None]],
        "activity": [activity[item], user_activity],
    }
    empty = torch.empty(len(sample), 0)
    out["dense.features"] = torch.cat([empty, *(x for name in features.dense for x in columns[name])], dim=1)
    km = unit_vectors_km(place[history], place[item[owner]]).nan_to_num(0)
    out["dense.history_gaps"] = torch.stack([sample.history_hours, km], dim=1).log1p()
    if features.context:
        category = torch.from_numpy(rows["category"]).long()
        context = [category[item], hour(time, item), here, place[item]]
        context += [category[history], hour(time[owner] - gone, history, owner), place[history]]
        names = ("category", "hour", "place", "target_place", "visit_category", "visit_hour", "visit_place")
        out |= {f"dense.context.{n}": x for n, x in zip(names, context, strict=True)}
    if features.traits:
        attributes = np.stack([rows[n] for n in features.attributes], axis=1)
        out |= {"dense.traits.attributes": torch.from_numpy(attributes).long(), "dense.traits.activity": activity}
        out |= {"dense.traits.user_activity": user_activity}
        users_cluster = torch.zeros(len(sample), dtype=torch.int64)
        if USER_CLUSTER in [t.name for t in features.pooled]:
            users_cluster = history_clusters_reference(offsets, cluster[history]) * torch.from_numpy(user > 0)
        scale = density_scale(lat.numpy(), lon.numpy()) if features.adaptive else np.ones(len(items), np.float32)
        distinct = sorted({*item.tolist()})
        losses = {
            "item_cluster": cluster,
            "item_head": find_heads(count),
            "user_head": find_heads(torch.from_numpy(users["positives"].to_numpy().copy()))[user],
            "place": place,
            "radius_scale": torch.from_numpy(scale),
            "first_targets": torch.tensor([item.tolist().index(i) for i in distinct], dtype=torch.int64),
            "user_cluster": users_cluster,
            "item": torch.arange(len(items)),
        }
        out |= {f"dense.loss_inputs.{n}": x for n, x in losses.items()}
    found = np.unique(np.concatenate([item, history]))
    of_items = {"dense.traits.attributes", "dense.traits.activity", "dense.loss_inputs.item_cluster"}
    of_items |= {f"dense.loss_inputs.{n}" for n in ("item_head", "place", "radius_scale", "item")}
    out = {n: x[found] if n.startswith("items.") or n in of_items else x for n, x in out.items()}
    out["dense.target"] = torch.from_numpy(np.searchsorted(found, item))
    # of the requests, with where each sample's are among them
    visits = {"dense.visits": torch.from_numpy(np.searchsorted(found, given.history.numpy()))}
    several = len(given.user) < len(given)  # else there is nothing to say
    return out | visits | ({"dense.starts": given.offsets[:-1][given.request]} if several else {})


def tensors_of(batch: RankingBatch) -> dict[str, Tensor]:
    """Every tensor of the ranker's batch by name."""
    out = {"label": batch.label}
    out |= {f"items.{key}": batch.items[key].values() for key in batch.items.keys()}  # noqa: SIM118
    for key in batch.pooled.keys():  # noqa: SIM118
        out |= {f"pooled.{key}": batch.pooled[key].values(), f"pooled.{key}.lengths": batch.pooled[key].lengths()}
    for name, value in vars(batch.dense).items():
        if isinstance(value, Tensor):
            out[f"dense.{name}"] = value
        elif value is not None:
            out |= {f"dense.{name}.{n}": x for n, x in value._asdict().items()}
    return out
