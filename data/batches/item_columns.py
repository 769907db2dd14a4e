"""What features need of items and users, as few bytes as it takes: one row of 32-bit words an item.

I items, U of them looked up, W words an item, F attributes, A activity columns. An item's words lie side by side, so a
look-up reads one piece of memory an item, whatever the number of columns, and a catalog that is cut by rows sends one.
Rows of tables take a word each, unit vectors three, and numbers below 128 a byte.
"""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.haversine import unit_vectors
from ..arrays import one_array, ranges
from .activity import activity_numbers, find_heads, spread_activity
from .density import density_scale
from .features import CLUSTER, USER_CLUSTER, Features

HOUR = 3600
_MONDAY = 4 * 24 * HOUR  # 1970-01-01 was a Thursday; hours of the week start on Monday, in solar time of the item
_BLOCK = 1 << 20  # items at a time where more memory than the result's is needed
MOST_COMBINATIONS = 65_536
"""The most frequent combinations of attributes that are kept."""


def solar_shift(lon: Tensor) -> Tensor:
    """``FoundItems.shift`` of items by their longitude in degrees, 0 where it is NaN: int64 [N]."""
    return _shift(solar_hours(lon))


def local_shift(minutes: Tensor) -> Tensor:
    """As ``FoundItems.shift``, of offsets from UTC in minutes, NaN as 0: int64 [N]."""
    return (minutes.double() * 60).round().nan_to_num(0).long() - _MONDAY


def solar_hours(lon: Tensor) -> Tensor:
    """Hours from UTC to solar time by longitudes in degrees, whole, 0 where they are NaN: [N]."""
    return lon.nan_to_num(0).div(15).round()


def _shift(hours: Tensor) -> Tensor:
    return hours.long() * HOUR - _MONDAY


class Layout:
    """Where each column stands among an item's words; follows from the features alone, so all ranks agree on it.

    Attributes:
        tables: whose rows are kept, in the order of their words; own columns by their name.
        names: own numbers that are kept, in the order of their words.
        words: W.
    """

    def __init__(self, features: Features) -> None:
        paths = any(t.name == "category_path" for t in features.pooled)
        tables = [t.name for t in features.sequence if t.name != "item"]
        tables += [f.removeprefix("item_") for t in features.pooled for f in t.features if f.startswith("item_")]
        tables += ["category"] * (features.context or paths)
        self.tables = tuple(dict.fromkeys(tables))
        self.attributes = [self.tables.index(name) for name in features.attributes]
        self.has_activity = features.traits or "activity" in features.dense
        self.has_heads, self.adaptive = features.traits, features.adaptive
        self.place = slice(len(self.tables), len(self.tables) + 3)
        self.activity = slice(self.place.stop, self.place.stop + 2 * self.has_activity)
        self.scale = slice(self.activity.stop, self.activity.stop + self.adaptive)
        self.names = [o.name for o in features.numbers if o.of == "item"]
        self.numbers = slice(self.scale.stop, self.scale.stop + len(self.names))
        self.small = self.numbers.stop  # a word of four bytes: hours from UTC, bucket of activity, whether it is a head
        self.words = self.small + 1

    def pack(self, items: pa.Table) -> Tensor:
        """The words of all items, int32 [I, W].

        Args:
            items: the prepared ``catalog.parquet``, or its columns ``<table>_row`` of ``tables``, lat, lon, and where
                there is activity, positives and last_positive; and ``<name>_number`` of ``names``.
        """
        words = np.zeros((len(items), self.words), np.int32)
        for i, name in enumerate(self.tables):
            words[:, i] = _numbers(items[f"{name}_row"], np.int32)
        small = words[:, self.small :].view(np.int8)
        lat, lon = (_numbers(items[c], np.float64) for c in ("lat", "lon"))
        for start in range(0, len(items), _BLOCK):
            some = slice(start, start + _BLOCK)
            at = unit_vectors(torch.from_numpy(lat[some]), torch.from_numpy(lon[some]))
            words[some, self.place] = at.float().numpy().view(np.int32)
            small[some, 0] = solar_hours(torch.from_numpy(lon[some])).to(torch.int8).numpy()
        if self.has_activity:
            count, last = (_numbers(items[c], np.int64) for c in ("positives", "last_positive"))
            days = (max(int(last.max(initial=0)), 0) - last) / (24 * HOUR)
            numbers, bucket = activity_numbers(torch.from_numpy(count), torch.from_numpy(days))
            words[:, self.activity] = numbers.numpy().view(np.int32)
            small[:, 1] = bucket.numpy()
        if self.has_heads:
            small[:, 2] = find_heads(torch.from_numpy(count)).numpy()
        if self.adaptive:
            words[:, self.scale] = density_scale(lat, lon)[:, None].view(np.int32)
        for i, name in enumerate(self.names, self.numbers.start):
            words[:, i] = _numbers(items[f"{name}_number"], np.float32).view(np.int32)
        return torch.from_numpy(words)


class FoundItems:
    """Some items' columns, in the types in which rankers take them.

    Args:
        layout: of the words.
        words: int32 [U, W].
    """

    def __init__(self, layout: Layout, words: Tensor) -> None:
        self._layout, self._words = layout, words
        self.place = self._numbers(layout.place)
        """Unit vectors, NaN where unknown, float32 [U, 3]."""
        self._small = words[:, layout.small :].contiguous().view(torch.int8)

    def _numbers(self, columns: slice) -> Tensor:
        return self._words[:, columns].contiguous().view(torch.float32)

    def rows(self, table: str) -> Tensor:
        """Rows of a table, 0 where unknown, int64 [U]."""
        return self._words[:, self._layout.tables.index(table)].long()

    @property
    def attributes(self) -> Tensor:
        """Rows of the attributes' tables, int64 [U, F]."""
        columns = [self._words[:, i] for i in self._layout.attributes]
        return torch.stack(columns, dim=1).long() if columns else self._words[:, :0].long()

    @property
    def shift(self) -> Tensor:
        """Seconds to add to UTC, so that an hour of the solar week starts at multiples of 3,600, int64 [U]."""
        return _shift(self._small[:, 0])

    @property
    def activity(self) -> Tensor:
        """``activity_features``, float32 [U, A]."""
        return spread_activity(self._numbers(self._layout.activity), self._small[:, 1])

    def as_new(self, new: Tensor) -> "FoundItems":
        """The same, those of a mask, bool [U], without any activity."""
        words = self._words.clone()
        words[:, self._layout.activity] *= ~new[:, None]
        words[:, self._layout.small :].view(torch.int8)[:, 1:3] *= ~new[:, None]
        return FoundItems(self._layout, words)

    def number(self, name: str) -> Tensor:
        """An own column that is a number, NaN where unknown, float32 [U]."""
        at = self._layout.numbers.start + self._layout.names.index(name)
        return self._numbers(slice(at, at + 1)).squeeze(1)

    @property
    def head(self) -> Tensor:
        """Whether they belong to the most active items, bool [U]."""
        return self._small[:, 2].bool()

    @property
    def radius_scale(self) -> Tensor:
        """``density_scale``, float32 [U]; 1 unless radii are density-adaptive."""
        if not self._layout.adaptive:
            return torch.ones_like(self.place[:, 0])
        return self._numbers(self._layout.scale).squeeze(1)


def catalog_columns(items: pa.Table, users: pa.Table, features: Features) -> dict[str, Tensor]:
    """All that a catalog keeps, by name; on the CPU.

    Of items: ``words`` (``Layout.pack``); where paths of categories are pooled ``path_offsets`` int64 [C+1] and
    ``path_values`` int64, the path of each category's row, and ``path_length`` int8 [I]; where users have clusters
    of what they visit ``cluster`` int32 [I]; for plug-ins ``combinations`` int64 [M, F] and ``combination_counts``
    int64 [M]. Of users: ``user_<name>`` int32 for each pooled column, and for plug-ins ``user_head`` bool. Of own
    columns: of users' numbers ``user_number.<name>`` float32, of lists ``<name>.offsets`` int64 and ``<name>.rows``
    int32.

    Args:
        items: the prepared ``catalog.parquet``, with a column for each table made of semantic IDs.
        users: the prepared ``users.parquet``.
        features: what the ranker takes.

    Raises:
        ValueError: two items of one category have different paths.
    """
    layout = Layout(features)
    found = {"words": layout.pack(items)}
    pooled = [t.name for t in features.pooled]
    if "category_path" in pooled:
        found |= _paths(items["category_path"].combine_chunks(), _numbers(items["category_row"], np.int64))
    if USER_CLUSTER in pooled and f"{USER_CLUSTER}_row" not in users.column_names:
        found["cluster"] = torch.from_numpy(_numbers(items[f"{CLUSTER}_row"], np.int32))
    if features.traits:
        found["combinations"], found["combination_counts"] = attribute_combinations(
            found["words"][1:, layout.attributes]
        )
        found["user_head"] = find_heads(torch.from_numpy(_numbers(users["positives"], np.int64)))
    for name in features.pooled_keys:
        if f"{name}_row" in users.column_names:
            found[f"user_{name}"] = torch.from_numpy(_numbers(users[f"{name}_row"], np.int32))
    for own in features.own:
        table = items if own.of == "item" else users
        if own.form == "number" and own.of == "user":
            found[f"user_number.{own.name}"] = torch.from_numpy(_numbers(users[f"{own.name}_number"], np.float32))
        elif own.form == "rows":
            lists = one_array(table[f"{own.name}_rows"])
            found[f"{own.name}.offsets"] = torch.from_numpy(lists.offsets.to_numpy().astype(np.int64))
            found[f"{own.name}.rows"] = torch.from_numpy(lists.values.to_numpy().astype(np.int32))
    return found


def columns_to_read(features: Features, there: list[str]) -> list[str]:
    """The columns of ``there``, a prepared ``catalog.parquet``'s, that ``catalog_columns`` takes."""
    tables = {*Layout(features).tables, "category", CLUSTER}
    others = {"lat", "lon", "category_path", "positives", "last_positive"}
    others |= {f"{o.name}_{o.form}" for o in features.own if o.of == "item" and o.form != "row"}
    return [c for c in there if c in others or (c.removesuffix("_row") in tables and c.endswith("_row"))]


def with_columns(items: pa.Table, rows: dict[str, Tensor]) -> pa.Table:
    """The catalog with row numbers [I] of more tables, as columns ``<name>_row``."""
    for name, values in rows.items():
        items = items.append_column(f"{name}_row", pa.array(values.numpy()))
    return items


def attribute_combinations(rows: Tensor, most: int = MOST_COMBINATIONS) -> tuple[Tensor, Tensor]:
    """Combinations of attributes that items have, the most frequent ``most`` of them.

    Equally frequent ones come in the order of their rows. The columns are joined to one number an item, which sorts
    in a tenth of the time that rows do.

    Args:
        rows: of the attributes' tables, int [N, F].

    Returns:
        Rows of the attributes' tables, int64 [M, F], and how many items have them, int64 [M].
    """
    if not rows.numel():
        return rows[:0].long(), torch.zeros(0, dtype=torch.int64)
    sizes = (rows.amax(dim=0).long() + 1).tolist()
    if math.prod(sizes) > torch.iinfo(torch.int64).max:
        found, counts = np.unique(rows.numpy(), axis=0, return_counts=True)
        top = np.argsort(-counts, kind="stable")[:most]
        return torch.from_numpy(found[top].astype(np.int64)), torch.from_numpy(counts[top])
    small = math.prod(sizes) <= torch.iinfo(torch.int32).max  # sorted in half the time
    key = torch.zeros(len(rows), dtype=torch.int32 if small else torch.int64)
    for size, column in zip(sizes, rows.unbind(1), strict=True):
        key.mul_(size).add_(column)
    keys, counts = np.unique(key.numpy(), return_counts=True)
    top = np.argsort(-counts, kind="stable")[:most]
    by_column = np.unravel_index(keys[top], sizes)
    return torch.from_numpy(np.stack(by_column, axis=1)), torch.from_numpy(counts[top])


def _numbers(column: pa.ChunkedArray, dtype: Any) -> NDArray[Any]:
    return column.to_numpy().astype(dtype)


def _paths(path: pa.ListArray, category: NDArray[np.int64]) -> dict[str, Tensor]:
    """Paths are kept by category, which are few: an item's follows from its category."""
    length = pc.list_value_length(path).to_numpy(zero_copy_only=False)
    starts = path.offsets.to_numpy()[:-1]
    example = np.full(category.max(initial=0) + 1, -1)
    example[category] = np.arange(len(category))
    has_items = np.flatnonzero(example >= 0)
    lengths, start = np.zeros((2, len(example)), np.int64)
    lengths[has_items], start[has_items] = length[example[has_items]], starts[example[has_items]]
    offsets, all_values = np.concatenate([[0], np.cumsum(lengths)]), path.values.to_numpy()
    values = all_values[ranges(start, lengths)].astype(np.int64)
    for first in range(0, len(category), _BLOCK):
        some = slice(first, first + _BLOCK)
        own = category[some]
        alike = np.array_equal(length[some], lengths[own]) and np.array_equal(
            all_values[ranges(starts[some], length[some])], values[ranges(offsets[own], lengths[own])]
        )
        if not alike:
            raise ValueError("the catalog has items of one category_row with different category_path; prepare again")
    if lengths.max(initial=0) > 127:
        raise ValueError(f"the catalog has a category_path of {lengths.max()} levels, expected at most 127")
    found = {"path_offsets": offsets, "path_values": values, "path_length": length.astype(np.int8)}
    return {name: torch.from_numpy(x) for name, x in found.items()}
