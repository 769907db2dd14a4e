"""Districts from coordinates, for data that has none.

Location text is what the language model reads, and NMI and town coverage are measured against; data without it
(check-ins) still has coordinates. k-means on the sphere makes districts of about the same number of items, so that a
dense centre has many small ones and a suburb few large ones, as administrative districts do. Cells of a fixed size
would make most of a city one district, or most districts empty.

A district is named by the geohash of its centre, with as many letters as keep the names apart (at least 5): the name
does not depend on the order of districts, and names of near districts start alike, which a language model can use.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ...kernels.earth import on_sphere
from .settings import DistrictConfig

_EXACT_ITEMS = 20_000  # up to here plain k-means takes a second; beyond, mini-batches
_MAX_DISTRICTS = 20_000
_MOST_ITEMS = 1_000_000  # looked at: 50 a district are plenty
_SHORTEST_NAME = 5  # letters: cells about 5 km across
_LONGEST_NAME = 12  # 2 cm by 4 cm


@dataclass(frozen=True)
class Districts:
    """Centres of districts and their names; says in which an item lies, new items too.

    Attributes:
        lat, lon: of the centres in degrees, float64 [C].
        names: geohashes of the centres, [C], no two alike.
    """

    lat: NDArray[np.float64]
    lon: NDArray[np.float64]
    names: NDArray[np.str_]

    @classmethod
    def fit(
        cls, lat: NDArray[np.float64], lon: NDArray[np.float64], config: DistrictConfig, each: int = 1
    ) -> "Districts":
        """Districts of items at lat, lon (degrees [N]; those with NaN are passed over), each of which stands for
        ``each``.

        Raises:
            ValueError: no item has coordinates.
        """
        from pygeohash import encode
        from sklearn.cluster import KMeans, MiniBatchKMeans  # two seconds, which only items without districts pay

        known = np.isfinite(lat) & np.isfinite(lon)
        if not known.any():
            raise ValueError(f"none of the {len(lat):,} items has coordinates, expected some to derive districts from")
        points = on_sphere(lat[known], lon[known])
        places = len(np.unique(points.round(9), axis=0))
        count = min(-(-int(known.sum()) * each // config.items_per_district), places, _MAX_DISTRICTS)
        if len(points) <= _EXACT_ITEMS:
            means = KMeans(count, n_init=1, random_state=config.seed).fit(points)
        else:
            means = MiniBatchKMeans(count, n_init=1, batch_size=max(4096, 2 * count), random_state=config.seed)
            means.fit(points)
        x, y, z = (means.cluster_centers_ / np.linalg.norm(means.cluster_centers_, axis=1, keepdims=True)).T
        lat, lon = np.degrees(np.arcsin(z.clip(-1, 1))), np.degrees(np.arctan2(y, x))
        for letters in range(_SHORTEST_NAME, _LONGEST_NAME + 1):
            names = np.array([encode(*place, letters) for place in zip(lat.tolist(), lon.tolist(), strict=True)])
            _, first = np.unique(names, return_index=True)  # also in the names' order, whatever k-means' order was
            if len(first) == len(names):
                break
        return cls(lat[first], lon[first], names[first])

    def of(self, lat: NDArray[np.float64], lon: NDArray[np.float64]) -> pa.Array:
        """The names of the nearest districts of places, string [n]; null where the place is unknown."""
        known = np.isfinite(lat) & np.isfinite(lon)
        at = np.zeros(len(lat), np.int64)
        if known.any():
            _, at[known] = cKDTree(on_sphere(self.lat, self.lon)).query(on_sphere(lat[known], lon[known]))
        return pa.array(self.names[at], pa.string(), mask=~known)

    def of_items(self, items: pa.Table) -> pa.Array:
        """The same for items with lat and lon."""
        return self.of(*(items[name].to_numpy().astype(np.float64) for name in ("lat", "lon")))

    def save(self, file: Path) -> None:
        """One row a district: district, lat, lon."""
        pq.write_table(pa.table({"district": pa.array(self.names), "lat": self.lat, "lon": self.lon}), file)

    @classmethod
    def load(cls, file: Path) -> "Districts":
        """What ``save`` wrote."""
        table = pq.read_table(file)
        names = np.array(table["district"].to_pylist())
        return cls(table["lat"].to_numpy(), table["lon"].to_numpy(), names)


def derived_districts(items: pa.Table, config: DistrictConfig) -> Districts | None:
    """Districts of the items, if they are to have others than those given; of evenly spaced ones past a million.

    Raises:
        ValueError: districts are to be derived and no item has coordinates.
    """
    missing = items["district"].null_count if "district" in items.column_names else len(items)
    enough = len(items) - missing >= len(items) / 2
    if config.derive == "never" or (config.derive == "auto" and enough):
        return None
    step = -(-len(items) // _MOST_ITEMS)
    lat, lon = (_every(items[name], step) for name in ("lat", "lon"))
    return Districts.fit(lat, lon, config, each=step)


def _every(column: pa.ChunkedArray, step: int) -> NDArray[np.float64]:
    """Each so many numbers of a column, NaN for null."""
    start, parts = 0, [np.zeros(0)]
    for chunk in column.chunks:
        parts.append(chunk.to_numpy(zero_copy_only=False)[-start % step :: step].astype(np.float64))
        start += len(chunk)
    return np.concatenate(parts)


def with_districts(items: pa.Table, config: DistrictConfig) -> tuple[pa.Table, Districts | None]:
    """The items with a district each, and where the districts are; None where the given ones are kept.

    Raises:
        ValueError: districts are to be derived and no item has coordinates.
    """
    districts = derived_districts(items, config)
    if districts is None:
        return items, None
    column = districts.of_items(items)
    at = items.column_names.index("district") if "district" in items.column_names else None
    return (
        items.append_column("district", column) if at is None else items.set_column(at, "district", column),
        districts,
    )
