"""A made-up evaluation: a prepared folder's catalog and scored samples of two cities."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from manifests import write_prepared

from placerank.data.requests import OF_CANDIDATES, OF_HISTORY, OF_REQUEST, Lists, Requests
from placerank.kernels.haversine import EARTH_RADIUS_KM
from placerank.training.predictions import Predictions

CITIES = {"Pisa": (43.7, 10.4), "Livorno": (43.55, 10.31), None: (43.4, 10.9)}


def write_catalog(folder: Path, items: int, rng: np.random.Generator) -> pa.Table:
    """catalog.parquet with row 0 = out of vocabulary and the columns that evaluation reads."""
    city = rng.choice(3, items, p=[0.6, 0.3, 0.1])
    lat, lon = np.array(list(CITIES.values()))[city].T + rng.normal(0, 0.03, (2, items))
    positives = rng.zipf(1.5, items).clip(max=2000) - 1
    place = np.argsort(np.argsort(-positives, kind="stable"))
    bucket = np.select([place < items // 10, place < items // 2], [0, 1], 2)
    lat[0] = lon[0] = np.nan
    table = pa.table(
        {
            "item_id": [None, *range(1000, 999 + items)],
            "name": [None, *(f"Trattoria <{i}> & Co" for i in range(1, items))],
            "category": [[], *([("Cibo", "Negozi")[i % 2], "altro"] for i in range(1, items))],
            "positives": pa.array(positives, pa.int64()),
            "impressions": pa.array(positives * 3, pa.int64()),
            "popularity_bucket": pa.array(bucket, pa.int8()),
            "lat": lat,
            "lon": lon,
            "city": [None, *(list(CITIES)[c] for c in city[1:])],
            "province": [None] * items,
        }
    )
    pq.write_table(table, folder / "catalog.parquet")
    return table


def make_predictions(catalog: pa.Table, requests: int, rng: np.random.Generator) -> Predictions:
    """Ten candidates a request, clicks by distance, popularity and taste; the model knows half of the taste."""
    n = requests * 10
    lat, lon = (catalog[c].to_numpy() for c in ("lat", "lon"))
    item = rng.integers(1, len(lat), n)
    at = np.repeat(rng.integers(1, len(lat), requests), 10)
    km = np.hypot(lat[item] - lat[at], lon[item] - lon[at]) * np.pi / 180 * EARTH_RADIUS_KM
    user = np.repeat(rng.integers(0, requests // 8 + 1, requests), 10)
    taste = rng.normal(0, 1.2, n)
    known = np.log1p(catalog["positives"].to_numpy()[item]) / 4 - np.log1p(km) / 2 - 1.5
    truth = known + taste
    unknown = np.repeat(rng.random(requests) < 0.1, 10)
    probability = 1 / (1 + np.exp(-truth))
    return Predictions(
        request=np.repeat(rng.permutation(requests), 10),
        user_index=user,
        user_row=np.where(user % 5 == 0, 0, user).astype(np.int32),
        item_row=item.astype(np.int32),
        label=(rng.random(n) < probability).astype(np.float32),
        logit=(known + taste * 0.7 + rng.normal(0, 0.5, n)).astype(np.float32),
        time=np.repeat(1_600_000_000 + rng.integers(0, 14 * 86400, requests), 10),
        visits=rng.poisson(0.3, n).astype(np.int32),
        lat=np.where(unknown, np.nan, lat[at]).astype(np.float32),
        lon=np.where(unknown, np.nan, lon[at]).astype(np.float32),
        probability=probability.astype(np.float32),
    )


def write_split(folder: Path, predictions: Predictions) -> dict[str, list[int]]:
    """The rows as a split of a prepared folder, each request with an empty history, in small row groups; returns these.

    Rows of a request are side by side.
    """
    folder.mkdir()
    columns = predictions.columns()
    starts = np.flatnonzero(np.diff(columns["request"], prepend=-1))
    empty = np.zeros(len(starts) + 1, np.int64)
    found = Requests(
        {n: columns[n][starts] for n in OF_REQUEST if n in columns},
        Lists(empty, {n: np.empty(0, kind) for n, kind in OF_HISTORY.items()}),
        Lists(
            np.append(starts, len(predictions)),
            {n: columns[n].astype(kind) for n, kind in OF_CANDIDATES.items() if n in columns},
        ),
    )
    pq.write_table(found.table(), folder / "part-00000.parquet", row_group_size=100)
    groups = np.split(np.diff(found.candidates.offsets), range(100, len(starts), 100))
    return {"part-00000.parquet": [int(x.sum()) for x in groups]}


def fabricate(data: Path) -> SimpleNamespace:
    """Fill ``data``, a prepared folder, with a catalog and a test split; its rows scored: ``predictions`` (20,000)."""
    rng = np.random.default_rng(7)
    catalog = write_catalog(data, 400, rng)
    predictions = make_predictions(catalog, 2_000, rng)
    groups = write_split(data / "test", predictions)
    splits = {"test": {"rows": len(predictions), "row_groups": groups}}
    write_prepared(data, splits)
    return SimpleNamespace(data=data, predictions=predictions)
