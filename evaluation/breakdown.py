"""Where a ranker is good and where it is not: the metrics on slices of the predictions.

AUC and GAUC of a slice compare the rows of the slice with each other, positives and negatives. NDCG and Hit of a
slice ask where its positives stand among *all* the negatives of their requests: the tail items of a request
alone are too few to be a list.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from ..data.urls import fetched
from ..kernels.haversine import haversine_km
from ..training.metrics import (
    PROBABILITY_METRICS,
    RANKING_METRICS,
    auc_standard_error,
    grouped_auc,
    nan_to_none,
    request_ranking,
    summarize,
)
from ..training.predictions import Predictions

Codes = NDArray[np.int64]

RARE = 3  # items with fewer positives than this in training (AKT-Rec's cold items)
DISTANCE_KM = (1, 3, 10, 30)
# First local hour of each period; before the first one it is still the last (night). BASM and StEN name the
# same five periods of a day's orders.
PERIODS = (("breakfast", 5), ("lunch", 10), ("afternoon", 14), ("dinner", 17), ("night", 21))
SHOWN = 20
TILES_SHOWN = 10
TILE_DEGREES = 0.1  # 11 km from south to north
MIN_ROWS, MIN_OF_A_CLASS = 100, 10  # below, a slice has counts but no metrics
UNKNOWN = "unknown"
_ABOUT = "placerank"
_IN_SLICES = tuple(name for name in RANKING_METRICS if name != "request_auc")


@dataclass(frozen=True, kw_only=True)
class ItemFacts:
    """What slices, baselines and maps need of the catalog; arrays by item row, row 0 = out of vocabulary.

    Attributes:
        id: raw id as text, "" in row 0.
        name: display name, "" where missing.
        positives, impressions: in training.
        popularity_bucket: 0 head, 1 mid, 2 tail.
        lat, lon: degrees, NaN = unknown.
        city: index into ``cities``; 0 = unknown.
        cities: names, "unknown" first, then by number of items, the largest first.
        category, categories: as city, of the coarsest category.
        tile, tiles: as city, of squares of 0.1 degrees, named by their city and their middle.
    """

    id: NDArray[Any]
    name: NDArray[Any]
    positives: NDArray[np.int64]
    impressions: NDArray[np.int64]
    popularity_bucket: NDArray[np.int8]
    lat: NDArray[np.float64]
    lon: NDArray[np.float64]
    city: NDArray[np.int64]
    cities: list[str]
    category: NDArray[np.int64]
    categories: list[str]
    tile: NDArray[np.int64]
    tiles: list[str]

    @classmethod
    def load(cls, prepared: Path) -> "ItemFacts":
        """Read ``catalog.parquet`` of a prepared folder."""
        columns = ["item_id", "name", "category", "positives", "impressions", "popularity_bucket"]
        columns += ["lat", "lon", "city", "province"]
        table = pq.read_table(fetched(prepared / "catalog.parquet"), columns=columns).combine_chunks()
        province = pc.fill_null(table["province"].cast("string"), "")
        city, cities = _by_size(pc.binary_join_element_wise(table["city"].cast("string"), province, "\0"))
        cities = [UNKNOWN, *_city_names(cities[1:])]
        coarsest = pc.list_element(pc.list_slice(table["category"], 0, 1, return_fixed_size_list=True), 0)
        category, categories = _by_size(coarsest.cast("string"))
        lat, lon = (table[name].to_numpy().astype(np.float64) for name in ("lat", "lon"))
        tile, tiles = _tiles(lat, lon, city, cities)
        return cls(
            id=pc.fill_null(table["item_id"].cast("string"), "").to_numpy(),
            name=pc.fill_null(table["name"].cast("string"), "").to_numpy(),
            positives=pc.fill_null(table["positives"], 0).to_numpy().astype(np.int64),
            impressions=pc.fill_null(table["impressions"], 0).to_numpy().astype(np.int64),
            popularity_bucket=pc.fill_null(table["popularity_bucket"], 2).to_numpy().astype(np.int8),
            lat=lat,
            lon=lon,
            city=city,
            cities=cities,
            category=category,
            categories=categories,
            tile=tile,
            tiles=tiles,
        )

    def __len__(self) -> int:
        return len(self.positives)

    def distance_km(self, predictions: Predictions) -> NDArray[np.float64]:
        """[N] km from the place of the request to the item; NaN where either is unknown."""
        rows = predictions.item_row
        here = (torch.from_numpy(x.astype(np.float64)) for x in (predictions.lat, predictions.lon))
        there = (torch.from_numpy(x[rows]) for x in (self.lat, self.lon))
        km: NDArray[np.float64] = haversine_km(*here, *there).numpy()
        return km

    def local_hour(self, predictions: Predictions) -> NDArray[np.float64]:
        """[N] hour of the day at the item, 0 <= h < 24, by its longitude (15 degrees an hour); UTC where unknown.

        Needs no time zone table and is at most about an hour and a half off the clock on the wall.
        """
        shift = np.round(np.nan_to_num(self.lon) / 15)[predictions.item_row]
        return (predictions.time / 3600 + shift) % 24


def _by_size(values: pa.ChunkedArray | pa.Array) -> tuple[Codes, list[str]]:
    """Texts as codes and their names; 0 = null, the others by number of rows, the largest first."""
    found = pc.dictionary_encode(values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values)
    code = pc.fill_null(found.indices, -1).to_numpy().astype(np.int64) + 1
    by_size = np.argsort(-np.bincount(code, minlength=len(found.dictionary) + 1)[1:], kind="stable")
    place = np.zeros(len(by_size) + 1, np.int64)
    place[by_size + 1] = np.arange(1, len(by_size) + 1)
    names = found.dictionary.to_pylist()
    return place[code], [UNKNOWN, *(names[i] for i in by_size)]


def _tiles(
    lat: NDArray[np.float64], lon: NDArray[np.float64], city: Codes, cities: list[str]
) -> tuple[Codes, list[str]]:
    """Squares of ``TILE_DEGREES`` as codes and names, as of ``_by_size``."""
    known = np.flatnonzero(~np.isnan(lat) & ~np.isnan(lon))
    cell = np.floor(np.stack([lat[known], lon[known]]) / TILE_DEGREES + 1e-9).astype(np.int64)
    cells, inverse, count = np.unique(cell, axis=1, return_inverse=True, return_counts=True)
    by_size = np.argsort(-count, kind="stable")
    place = np.empty(len(by_size), np.int64)
    place[by_size] = np.arange(1, len(by_size) + 1)
    code = np.zeros(len(lat), np.int64)
    code[known] = place[inverse]
    # each tile's most frequent city: the last of its rows in (tile, count) order
    pairs, rows = np.unique(code[known] * len(cities) + city[known], return_counts=True)
    order = np.lexsort((-pairs, rows, pairs // len(cities)))
    most = dict(zip((pairs[order] // len(cities)).tolist(), (pairs[order] % len(cities)).tolist(), strict=True))
    names = []
    for number, (south, west) in enumerate(cells[:, by_size].T, start=1):
        at = f"{_degrees(south, 'NS')} {_degrees(west, 'EW')}"
        names.append(at if most[number] == 0 else f"{cities[most[number]]} {at}")
    return code, [UNKNOWN, *names]


def _degrees(cell: int, signs: str) -> str:
    """The middle of a tile: "52.35°N"."""
    middle = (cell + 0.5) * TILE_DEGREES
    return f"{abs(middle):.2f}°{signs[int(middle < 0)]}"


def _city_names(cities: list[str]) -> list[str]:
    """Names of cities given as "city\\0province": with the province where the city's name alone is not enough."""
    apart = [city.split("\0") for city in cities]
    count = Counter(city for city, _ in apart)
    return [f"{city} ({province})" if count[city] > 1 and province else city for city, province in apart]


@dataclass(frozen=True, kw_only=True)
class Slicing:
    """One way to part the rows.

    Attributes:
        name: key in ``metrics.json``.
        title: for people.
        code: [N], index into ``labels``; negative = in none of them.
        labels: names of the slices.
        shown: how many of the largest to report; the rest is measured for the weighted AUC alone.
    """

    name: str
    title: str
    code: Codes
    labels: Sequence[str]
    shown: int = 100


def _popularity(p: Predictions, items: ItemFacts) -> tuple[Codes, Sequence[str]]:
    return items.popularity_bucket[p.item_row].astype(np.int64), ("head", "mid", "tail")


def _appearances(p: Predictions, items: ItemFacts) -> tuple[Codes, Sequence[str]]:
    labels = (f"< {RARE} in training", f">= {RARE} in training")
    return (items.positives[p.item_row] >= RARE).astype(np.int64), labels


def _new_places(p: Predictions, items: ItemFacts) -> tuple[Codes, Sequence[str]]:
    return (items.impressions[p.item_row] > 0).astype(np.int64), ("never in training", "known")


def _users(p: Predictions, items: ItemFacts) -> tuple[Codes, Sequence[str]]:
    return (p.user_row > 0).astype(np.int64), ("new", "known")


def _periods(p: Predictions, items: ItemFacts) -> tuple[Codes, Sequence[str]]:
    first = np.array([hour for _, hour in PERIODS])
    code = (np.searchsorted(first, items.local_hour(p), side="right") - 1) % len(PERIODS)
    return code, [name for name, _ in PERIODS]


def _unknown_last(code: Codes, names: list[str]) -> tuple[Codes, Sequence[str]]:
    return np.where(code == 0, len(names), code) - 1, [*names[1:], UNKNOWN]


def _categories(p: Predictions, items: ItemFacts) -> tuple[Codes, Sequence[str]]:
    return _unknown_last(items.category[p.item_row], items.categories)


def _cities(p: Predictions, items: ItemFacts) -> tuple[Codes, Sequence[str]]:
    return _unknown_last(items.city[p.item_row], items.cities)


def _tiles_of(p: Predictions, items: ItemFacts) -> tuple[Codes, Sequence[str]]:
    return _unknown_last(items.tile[p.item_row], items.tiles)


def _distances(p: Predictions, items: ItemFacts) -> tuple[Codes, Sequence[str]]:
    km = items.distance_km(p)
    edges = (0, *DISTANCE_KM)
    labels = [f"{a}-{b} km" for a, b in pairwise(edges)] + [f"> {edges[-1]} km", UNKNOWN]
    return np.where(np.isnan(km), len(labels) - 1, np.searchsorted(DISTANCE_KM, km)), labels


def _visits(p: Predictions, items: ItemFacts) -> tuple[Codes, Sequence[str]]:
    return (p.visits > 0).astype(np.int64), ("first visit", "repeat")


_SLICINGS: tuple[tuple[str, str, Callable[[Predictions, ItemFacts], tuple[Codes, Sequence[str]]]], ...] = (
    ("popularity", "Popularity of the item", _popularity),
    ("appearances", "Positives of the item in training", _appearances),
    ("place", "Item known from training", _new_places),
    ("user", "User known from training", _users),
    ("visit", "First visit or repeat", _visits),
    ("category", "Category of the item", _categories),
    ("distance", "Distance to the item", _distances),
    ("period", "Time of day at the item", _periods),
    ("city", "City of the item", _cities),
    ("tile", "Region of the item, squares of 0.1 degrees", _tiles_of),
)


def slicings(predictions: Predictions, items: ItemFacts) -> list[Slicing]:
    """All ways in which a report parts the rows."""
    made = []
    for name, title, part in _SLICINGS:
        code, labels = part(predictions, items)
        made.append(
            Slicing(name=name, title=title, code=code, labels=labels, shown=TILES_SHOWN if name == "tile" else SHOWN)
        )
    return made


def write_slicings(parts: Sequence[Slicing], file: Path) -> None:
    """Which slices each row is in: a Parquet column of numbers for each slicing, its names in the column's notes."""
    fields, columns = [], []
    for part in parts:
        used, code = np.unique(part.code, return_inverse=True)
        labels = [None if i < 0 else part.labels[i] for i in used]
        about = {"title": part.title, "shown": part.shown, "labels": labels}
        fields.append(pa.field(part.name, pa.int32(), metadata={_ABOUT: json.dumps(about)}))
        columns.append(pa.array(code.astype(np.int32)))
    pq.write_table(pa.table(columns, pa.schema(fields)), file, compression="zstd")


def read_slicings(file: Path) -> list[Slicing]:
    """What ``write_slicings`` wrote: the same slices, those without rows left out."""
    table, found = pq.read_table(file), []
    for column in table.schema:
        about = json.loads(column.metadata[_ABOUT.encode()])
        code, labels = table[column.name].to_numpy().astype(np.int64), about["labels"]
        if labels[:1] == [None]:  # those in no slice come first
            code, labels = code - 1, labels[1:]
        found.append(Slicing(name=column.name, title=about["title"], code=code, labels=labels, shown=about["shown"]))
    return found


def weighted_auc(slicing: Slicing, label: NDArray[Any], score: NDArray[Any]) -> float:
    """AUC within each slice, averaged with rows as weights: TAUC over periods, CAUC over cities (BASM, StEN).

    Slices with one class are left out; NaN if that leaves none.
    """
    inside = slicing.code >= 0
    return grouped_auc(slicing.code[inside], label[inside], score[inside]).mean()


def slice_metrics(
    slicing: Slicing, predictions: Predictions, score: NDArray[Any], probability: NDArray[np.float64] | None = None
) -> list[dict[str, Any]]:
    """Metrics of every slice that has rows, in the order of ``labels``; of the ``shown`` largest if there are more.

    Args:
        score: [N] the scorer to measure.
        probability: [N] its probabilities, if it has some.

    Returns:
        For each slice ``label``, ``rows``, ``positives`` and either the metrics with ``auc_standard_error``, or
        nulls and ``note`` where it is too small to say anything (100 rows, 10 of each class).
    """
    rows = np.bincount(slicing.code[slicing.code >= 0], minlength=len(slicing.labels))
    shown = np.sort(np.argsort(-rows, kind="stable")[: slicing.shown])
    request = np.unique(predictions.request, return_inverse=True)[1]
    found = []
    for i in shown[rows[shown] > 0]:
        inside = slicing.code == i
        positives = int(np.count_nonzero(predictions.label[inside]))
        counts = {"label": slicing.labels[i], "rows": int(rows[i]), "positives": positives}
        if rows[i] < MIN_ROWS or min(positives, rows[i] - positives) < MIN_OF_A_CLASS:
            nothing = dict.fromkeys((*_IN_SLICES, "auc_standard_error"))
            found.append(counts | nothing | {"note": "too few"})
        else:
            found.append(counts | _measure(inside, predictions, request, score, probability))
    return found


def _measure(
    inside: NDArray[np.bool_],
    p: Predictions,
    request: Codes,
    score: NDArray[Any],
    probability: NDArray[np.float64] | None,
) -> dict[str, float | None]:
    """All metrics of one slice; ``request`` counts the requests without gaps."""
    summary = summarize(
        label=p.label[inside],
        score=score[inside],
        user=p.user_index[inside],
        request=request[inside],
        probability=None if probability is None else probability[inside],
        metrics=("auc", "gauc", *PROBABILITY_METRICS),
    )
    # the slice's positives among all the negatives of their requests
    wanted = inside & (p.label == 1)
    listed = np.zeros(request.max() + 1, bool)
    listed[request[wanted]] = True
    rows = np.flatnonzero(listed[request] & (wanted | (p.label == 0)))
    ranking = request_ranking(request[rows], p.label[rows], score[rows])
    del ranking["requests"]
    error = auc_standard_error(summary.values["auc"], summary.positives, summary.rows - summary.positives)
    return {n: nan_to_none(v) for n, v in (summary.values | ranking).items()} | {"auc_standard_error": error}
