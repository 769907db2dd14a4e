"""Maps of the items: where the popular ones are, and where the model promises too much or too little.

Items are points on a dark ground, like a city at night, in both themes of the page. No tiles, no network: the
points draw the city themselves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from numpy.typing import NDArray

from ..kernels.haversine import EARTH_RADIUS_KM
from ..reports.figures import GROUND, PALE, THEME
from ..training.predictions import Predictions
from .breakdown import ItemFacts
from .pictures import draw_ladder, draw_valid_auc

MOST_POINTS = 200_000  # more cannot be told apart at this size
MIN_SEEN = 5  # items with fewer candidates in the split have no error to speak of
LABELLED_CITIES = 8
_KM_PER_DEGREE = math.pi * EARTH_RADIUS_KM / 180
_LIGHTS = LinearSegmentedColormap.from_list("lights", ["#2b4a7a", "#3f8fb5", "#7fd0b0", "#ffe08a", "#fff7e0"])
_ERROR = LinearSegmentedColormap.from_list("error", ["#3fa7ff", "#6f9cc4", "#8a92a0", "#d09a70", "#ff8a3d"])


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A window on the map in degrees: west, east, south, north."""

    west: float
    east: float
    south: float
    north: float

    @classmethod
    def around(cls, lat: NDArray[np.float64], lon: NDArray[np.float64], trim: float) -> "Frame":
        """The window that holds all points but ``trim`` percent at each side, and some air."""
        (south, north), (west, east) = (np.percentile(x, [trim, 100 - trim]) for x in (lat, lon))
        stretch = max(math.cos(math.radians((south + north) / 2)), 0.05)
        side = max(north - south, (east - west) * stretch, 0.002)
        dlat, dlon = 0.04 * side, 0.04 * side / stretch
        return cls(west=west - dlon, east=east + dlon, south=south - dlat, north=north + dlat)

    @property
    def stretch(self) -> float:
        """cos of the middle latitude: a degree of longitude in degrees of latitude."""
        return max(math.cos(math.radians((self.south + self.north) / 2)), 0.05)

    @property
    def shape(self) -> float:
        """Height / width on the ground."""
        return (self.north - self.south) / ((self.east - self.west) * self.stretch)

    def widened(self, shape: float) -> "Frame":
        """The smallest window around this one with the given height / width on the ground."""
        height = max(self.north - self.south, (self.east - self.west) * self.stretch * shape)
        dlat = (height - (self.north - self.south)) / 2
        dlon = (height / shape / self.stretch - (self.east - self.west)) / 2
        return Frame(west=self.west - dlon, east=self.east + dlon, south=self.south - dlat, north=self.north + dlat)

    def holds(self, lat: NDArray[np.float64], lon: NDArray[np.float64]) -> NDArray[np.bool_]:
        return (lat >= self.south) & (lat <= self.north) & (lon >= self.west) & (lon <= self.east)


def frames(items: ItemFacts) -> list[Frame]:
    """All items, and, where these lie in several cities, the largest city as well; none without coordinates."""
    known = np.flatnonzero(~np.isnan(items.lat) & ~np.isnan(items.lon))
    if not len(known):
        return []
    whole = Frame.around(items.lat[known], items.lon[known], trim=0.0)
    found = [whole]
    largest = known[items.city[known] == 1]
    if len(largest) and len(np.unique(items.city[known])) > 1:
        city = Frame.around(items.lat[largest], items.lon[largest], trim=1.0)
        if (city.north - city.south) < 0.5 * (whole.north - whole.south):
            found.append(city)
    return found


def popularity_map(items: ItemFacts) -> Figure:
    """Items coloured by their positives in training."""
    value = np.log10(1 + items.positives)
    top = max(float(value.max()), 1.0)
    ticks = [t for t in (0, 1, 10, 100, 1_000, 10_000, 100_000, 1_000_000) if math.log10(1 + t) <= top]
    return _map(
        items,
        np.arange(1, len(items)),
        value,
        Normalize(0, top),
        _LIGHTS,
        "positives in training",
        ([math.log10(1 + t) for t in ticks], [f"{t:,}" for t in ticks]),
    )


def item_error(predictions: Predictions, items: ItemFacts) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """([items] predicted minus true positives in standard deviations, [items] candidates of the item).

    The deviation is that of the count if every prediction were right, sqrt(sum p (1 - p)). NaN for items with fewer
    than 5 candidates, and for those out of vocabulary.
    """
    p, n = predictions.predicted(), len(items)
    row = predictions.item_row
    seen = np.bincount(row, minlength=n)
    gap = np.bincount(row, weights=p - predictions.label, minlength=n)
    deviation = np.sqrt(np.bincount(row, weights=p * (1 - p), minlength=n))
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where((seen >= MIN_SEEN) & (deviation > 0), gap / deviation, np.nan)
    error[0] = np.nan
    return error, seen


def error_map(predictions: Predictions, items: ItemFacts) -> Figure:
    """Items coloured by how far the predicted number of positives is from the true one."""
    error, _ = item_error(predictions, items)
    return _map(
        items,
        np.flatnonzero(~np.isnan(error)),
        error,
        Normalize(-4, 4),
        _ERROR,
        "predicted − true positives, in standard deviations",
        ([-4, -2, 0, 2, 4], ["−4 too low", "−2", "0", "+2", "+4 too high"]),
    )


def _map(
    items: ItemFacts,
    rows: NDArray[np.int64],
    value: NDArray[np.float64],
    norm: Normalize,
    colours: Colormap,
    label: str,
    ticks: tuple[list[float], list[str]],
) -> Figure:
    windows = frames(items)
    shapes = [1 / w.shape for w in windows]
    height = min(max(12.5 / sum(shapes), 4.0), 8.0)
    figure = Figure(figsize=(height * sum(shapes) + 0.4, height + 0.9), layout="constrained")
    axes = figure.subplots(1, len(windows), width_ratios=shapes, squeeze=False)[0]
    for i, (ax, window) in enumerate(zip(axes, windows, strict=True)):
        draw_points(ax, window, items, rows, value, norm, colours)
        if len(windows) > 1:
            ax.set_title("all items" if i == 0 else items.cities[1], color=PALE, size=11, loc="left")
        if i == 0:
            _label_cities(ax, items)
            if len(windows) > 1:
                _outline(ax, windows[1])
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.02)
    bar.set_ticks(ticks[0], labels=ticks[1])
    bar.set_label(label)
    bar.outline.set_visible(False)
    return figure


def draw_points(
    ax: Axes,
    window: Frame,
    items: ItemFacts,
    rows: NDArray[np.int64],
    value: NDArray[np.float64],
    norm: Normalize,
    colours: Colormap,
) -> None:
    """Items of one window as points; the strong values lie on top, and are larger."""
    rows = rows[window.holds(items.lat[rows], items.lon[rows])]
    if len(rows) > MOST_POINTS:
        rows = np.random.default_rng(0).choice(rows, MOST_POINTS, replace=False)
    strength = np.abs(norm(value[rows]) - norm(0.0)) / max(1 - float(norm(0.0)), 1e-9)
    order = np.argsort(strength, kind="stable")
    rows, strength = rows[order], np.clip(strength[order], 0, 1)
    size = min(max(20_000 / max(len(rows), 1), 0.8), 12.0)
    ax.scatter(
        items.lon[rows],
        items.lat[rows],
        c=value[rows],
        s=size * (0.6 + 3 * strength**2),
        norm=norm,
        cmap=colours,
        linewidths=0,
        alpha=0.9,
    )
    ax.set(xlim=(window.west, window.east), ylim=(window.south, window.north), xticks=[], yticks=[])
    ax.set_aspect(1 / window.stretch)
    ax.set_facecolor(GROUND)
    ax.spines[:].set_visible(False)
    _scale_bar(ax, window)


def _scale_bar(ax: Axes, window: Frame) -> None:
    """A line of a round number of kilometres in the lower left corner."""
    width = (window.east - window.west) * window.stretch * _KM_PER_DEGREE
    unit = 10 ** math.floor(math.log10(width / 4))
    km = max(m * unit for m in (1, 2, 5) if m * unit <= width / 4)
    share = km / width
    for x, y in (
        ([0.03, 0.03 + share], [0.03, 0.03]),
        ([0.03, 0.03], [0.025, 0.04]),
        ([0.03 + share] * 2, [0.025, 0.04]),
    ):
        ax.plot(x, y, color=PALE, linewidth=1.2, transform=ax.transAxes)
    ax.text(0.03 + share / 2, 0.045, f"{km:g} km", transform=ax.transAxes, ha="center", va="bottom", size=9, color=PALE)


def _label_cities(ax: Axes, items: ItemFacts) -> None:
    """Names of the largest cities at the median of their items."""
    if len(items.cities) <= 2:
        return
    for city in range(1, min(len(items.cities), LABELLED_CITIES + 1)):
        inside = (items.city == city) & ~np.isnan(items.lat)
        if inside.any():
            at = np.median(items.lon[inside]), np.median(items.lat[inside])
            ax.annotate(
                items.cities[city],
                at,
                xytext=(0, 13),
                textcoords="offset points",
                ha="center",
                size=9,
                bbox={"facecolor": GROUND, "alpha": 0.65, "edgecolor": "none", "pad": 1.5},
            )


def _outline(ax: Axes, window: Frame) -> None:
    x = [window.west, window.east, window.east, window.west, window.west]
    ax.plot(x, [window.south, window.south, window.north, window.north, window.south], color=PALE, linewidth=0.8)


def lists_map(items: ItemFacts, lists: Sequence[pa.Table]) -> Figure:
    """Lists on the map, one a panel: the items around, the request as a cross, its places by their number.

    Args:
        items: the catalog's.
        lists: rows of one request each: request, lat, lon, place, item_lat, item_lon; none empty.
    """
    columns = min(len(lists), 3)
    rows = -(-len(lists) // columns)
    figure = Figure(figsize=(4.2 * columns, 4.3 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[len(lists) :]:
        ax.set_visible(False)
    for ax, rows_of in zip(axes, lists, strict=False):
        lat, lon = (rows_of[c].to_numpy() for c in ("item_lat", "item_lon"))
        here = float(rows_of["lat"][0].as_py()), float(rows_of["lon"][0].as_py())
        known = ~np.isnan(lat) & ~np.isnan(lon)
        if not known.any():
            ax.set_visible(False)
            continue
        y, x = (np.append(to[known], [] if math.isnan(own) else own) for to, own in zip((lat, lon), here, strict=True))
        window = Frame.around(y, x, trim=0.0).widened(1.0)
        value = np.log10(1 + items.positives)
        draw_points(ax, window, items, np.arange(1, len(items)), value, Normalize(0, max(value.max(), 1.0)), _LIGHTS)
        ax.scatter(lon[known], lat[known], s=90, color=THEME["gold"], edgecolors=GROUND, linewidths=0.8, zorder=3)
        for number, y, x in zip(rows_of["place"].to_pylist(), lat, lon, strict=True):
            if not math.isnan(y):
                ax.annotate(
                    str(number), (x, y), ha="center", va="center", size=7, weight="bold", color=GROUND, zorder=4
                )
        if not math.isnan(here[0]):
            ax.scatter([here[1]], [here[0]], marker="+", s=160, color="white", linewidths=2, zorder=5)
        ax.set_title(f"request {rows_of['request'][0].as_py()}", color=PALE, size=11, loc="left")
    return figure


def overview(metrics: dict[str, Any], lines: Sequence[dict[str, Any]], items: ItemFacts) -> Figure:
    """For a README: the largest city at night, the model beside what needs no model, and how it learned."""
    windows = frames(items)
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    halves = GridSpec(1, 2, figure=figure, width_ratios=[1 if windows else 0.01, 1.25])
    if windows:
        ax = figure.add_subplot(halves[0])
        value = np.log10(1 + items.positives)
        norm = Normalize(0, max(float(value.max()), 1.0))
        draw_points(ax, windows[-1].widened(0.95), items, np.arange(1, len(items)), value, norm, _LIGHTS)
        ax.set_title(f"{len(items) - 1:,} items" + (f", here {items.cities[1]}" if len(windows) > 1 else ""))
    cells = halves[1].subgridspec(2, 1)
    upper, lower = figure.add_subplot(cells[0]), figure.add_subplot(cells[1])
    draw_ladder(upper, metrics["scorers"])
    upper.set_title(f"AUC on {metrics['rows']:,} candidates of the {metrics['split']} split")
    upper.set_xlabel("")
    draw_valid_auc(lower, lines, None)
    return figure
