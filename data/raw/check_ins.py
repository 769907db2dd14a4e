"""Public check-ins: Foursquare's TSMC2014 (as published, and as CSV at Kaggle) and TIST2015, Gowalla and Brightkite.

Where a file of check-ins alone is given, the items are what was checked in at. Times are UTC; beside them Foursquare's
files tell the offset from UTC.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...kernels.earth import EARTH_RADIUS_KM, on_sphere
from .checks import Block, as_mask
from .columns import ITEMS, MOST_OFFSET, DataError
from .output import Output, write_items
from .text import delimited
from .values import ctimes, numbers, parsed, times

_TSMC = ["user_id", "item_id", "category_id", "category", "lat", "lon", "offset", "time"]
_TSMC_CSV = {
    "userId": "user_id", "venueId": "item_id", "venueCategory": "category", "latitude": "lat", "longitude": "lon",
    "timezoneOffset": "offset", "utcTimestamp": "time",
}  # fmt: skip
_TIST_CHECK_INS = ["user_id", "item_id", "time", "offset"]
_TIST_PLACES = ["item_id", "lat", "lon", "category", "country"]
_TIST_CITIES = ["city", "lat", "lon", "country", "country_name", "kind"]
_CITY_KM = 50  # a place belongs to the nearest of TIST2015's cities, if its centre is at most so far
_SNAP = ["user_id", "time", "lat", "lon", "item_id"]
_NO_PLACE = ["0", "00000000000000000000000000000000"]  # Brightkite: check-ins without a location

Rows = Iterator[tuple[np.ndarray, pa.Table]]


def foursquare(source: Path, output: Output) -> None:
    """Whichever of Foursquare's check-ins ``source`` is: a file, or the folder that holds it."""
    if check_ins := _tist(source):
        _tist2015(*check_ins, output)
        return
    file = one_file(source, "*TSMC2014*.txt*", "*TSMC2014*.csv*")
    if ".csv" in file.suffixes:
        _write(file, output, _tsmc_csv(file, output))
    else:
        _write(file, output, output.counted(file, delimited(file, _TSMC, output.bad_rows)))


def one_file(source: Path, *patterns: str) -> Path:
    """``source``, or the one file in it that has such a name."""
    if not source.is_dir():
        return source
    found = sorted(path for pattern in patterns for path in source.glob(pattern))
    if len(found) != 1:
        held = [p.name for p in found] or sorted(p.name for p in source.iterdir())[:20]
        raise FileNotFoundError(
            f"{source}: expected one file {' or '.join(patterns)}, got {held}; give the path of the file itself"
        )
    return found[0]


# --- items are what was checked in at --------------------------------------------------------------------------


class _FirstSeen:
    """Items from check-ins: the first row of each id, over all blocks."""

    def __init__(self, file: Path, output: Output) -> None:
        self.file, self.output = file, output
        self.ids = pa.chunked_array([], pa.string())
        self.tables: list[pa.Table] = []

    def add(self, lines: np.ndarray, raw: pa.Table, values: pa.Table) -> np.ndarray:
        """Check all rows as items and keep the new ones; bool [n], the rows whose item is good."""
        block = Block(self.file, raw, lines, ITEMS, unit="line", parsed=values)
        good = block.fault == 0
        table = block.finish(ITEMS, self.output.bad_rows, f"{self.file.name}-places")
        ids = table["item_id"].combine_chunks()
        first = np.unique(ids.dictionary_encode().indices.to_numpy(), return_index=True)[1]
        table = table.take(pa.array(np.sort(first)))
        table = table.filter(pc.invert(pc.is_in(table["item_id"], value_set=self.ids)))
        self.ids = pa.chunked_array([*self.ids.chunks, *table["item_id"].chunks], pa.string())
        self.tables.append(table)
        return good

    def finish(self) -> None:
        if self.tables:
            self.output.table("items", self.file, pa.concat_tables(self.tables))


def _write(file: Path, output: Output, blocks: Rows) -> None:
    """Foursquare's check-ins whose rows hold the place too."""
    items = _FirstSeen(file, output)
    for lines, raw in blocks:
        _check_ins(file, output, items, lines, raw, ctimes(raw["time"]))
    items.finish()


def _check_ins(
    file: Path, output: Output, items: _FirstSeen, lines: np.ndarray, raw: pa.Table, seconds: pa.ChunkedArray
) -> None:
    """One block: new items, then the visits of good items; raw has user_id, item_id, time and the items' columns."""
    good = items.add(lines, *parsed(_as_items(raw), ITEMS))
    visits = _visits(raw)
    values = visits.set_column(2, "timestamp", seconds)
    keep = pa.array(good)
    output.interactions(file, lines[good], visits.filter(keep), values.filter(keep), None)


def _as_items(raw: pa.Table) -> pa.Table:
    """The columns that belong to items; what they must have and the source has not is null."""
    nothing = pa.nulls(len(raw), pa.string())
    about = raw.select([c for c in raw.column_names if c in {i.name for i in ITEMS}]).append_column("name", nothing)
    return about if "category" in about.column_names else about.append_column("category", nothing)


def _visits(raw: pa.Table) -> pa.Table:
    ones = pa.array(np.ones(len(raw), np.int8))
    visits = {"user_id": raw["user_id"], "item_id": raw["item_id"], "timestamp": raw["time"], "label": ones}
    if "offset" in raw.column_names:  # one that can't be is unknown: no reason to lose a visit
        minutes = numbers(raw["offset"])
        can_be = pc.less_equal(pc.abs(minutes), MOST_OFFSET).fill_null(False)
        visits["utc_offset"] = pc.if_else(can_be, minutes, None).cast(pa.float32())
    return pa.table(visits)


def _tsmc_csv(file: Path, output: Output) -> Rows:
    """TSMC2014 as Kaggle has it: commas and a header instead of tabs."""
    for lines, table in output.csv(file):
        if lost := [name for name in _TSMC_CSV if name not in table.column_names]:
            raise DataError(
                f"{file}: column '{lost[0]}' is missing; found {table.column_names} in the header, the first line; "
                f"expected {', '.join(_TSMC_CSV)}; other CSV is read by --format csv"
            )
        yield lines, table.select(list(_TSMC_CSV)).rename_columns(list(_TSMC_CSV.values()))


def snap(file: Path, output: Output) -> None:
    """Tab-separated: user, ISO time, lat, lon, location. Check-ins without a location are left out and counted."""
    items = _FirstSeen(file, output)
    output.left_out = {"check-ins without a location": 0}
    for lines, raw in output.counted(file, delimited(file, _SNAP, output.bad_rows)):
        nowhere = as_mask(raw["item_id"].is_null()) | as_mask(pc.is_in(raw["item_id"], value_set=pa.array(_NO_PLACE)))
        nowhere |= as_mask(pc.equal(numbers(raw["lat"]), 0)) & as_mask(pc.equal(numbers(raw["lon"]), 0))
        output.left_out["check-ins without a location"] += int(nowhere.sum())
        raw = raw.filter(pa.array(~nowhere))
        if len(raw):
            _check_ins(file, output, items, lines[~nowhere], raw, times(raw["time"]))
    items.finish()


# --- TIST2015: places and check-ins in a file each -------------------------------------------------------------


def _tist(source: Path) -> tuple[Path, Path, Path | None] | None:
    """The files of check-ins, places and cities, if ``source`` is TIST2015: its folder, or the file of check-ins."""
    folder = source if source.is_dir() else source.parent
    if source.is_dir():
        found = sorted(source.glob("*TIST2015_Checkins.txt*"))
    else:
        found = [source] if "TIST2015_Checkins" in source.name else []
    if not found:
        return None
    places = sorted(folder.glob("*TIST2015_POIs.txt*"))
    if len(found) != 1 or len(places) != 1:
        held = sorted(p.name for p in folder.iterdir())[:20]
        raise FileNotFoundError(
            f"{folder}: expected one dataset_TIST2015_Checkins.txt and one dataset_TIST2015_POIs.txt, got {held}"
        )
    return found[0], places[0], next(iter(sorted(folder.glob("*TIST2015_Cities.txt*"))), None)


def _tist2015(check_ins: Path, places: Path, cities: Path | None, output: Output) -> None:
    """Places get their country's code as the province, and as the city the nearest one of the list, if one is near."""
    nearest = _Cities(cities, output) if cities is not None else None

    def items() -> Iterator[tuple[np.ndarray, pa.Table, pa.Table]]:
        for lines, raw in output.counted(places, delimited(places, _TIST_PLACES, output.bad_rows)):
            about = _as_items(raw.rename_columns(["item_id", "lat", "lon", "category", "province"]))
            about, values = parsed(about, ITEMS)
            if nearest is not None:
                city = nearest(values["lat"], values["lon"])
                about, values = about.append_column("city", city), values.append_column("city", city)
            yield lines, about, values

    ids = write_items(output, items(), places)
    for lines, raw in output.counted(check_ins, delimited(check_ins, _TIST_CHECK_INS, output.bad_rows)):
        visits = _visits(raw)
        values = visits.set_column(2, "timestamp", ctimes(raw["time"]))
        output.interactions(check_ins, lines, visits, values, ids)


class _Cities:
    """The names of the nearest cities of places."""

    def __init__(self, file: Path, output: Output) -> None:
        from scipy.spatial import cKDTree  # most of a second, which this one format pays

        rows = [table for _, table in output.counted(file, delimited(file, _TIST_CITIES, output.bad_rows))]
        if not rows:
            raise DataError(f"{file}: got no city, expected lines of {', '.join(_TIST_CITIES)}")
        table = pa.concat_tables(rows).combine_chunks()
        lat, lon = (_finite(numbers(table[name]), bound) for name, bound in (("lat", 90), ("lon", 180)))
        known = np.isfinite(lat) & np.isfinite(lon)
        if not known.all():
            output.left_out["cities without coordinates"] = int((~known).sum())
        self.names = table["city"].filter(pa.array(known)).combine_chunks()
        self.tree = cKDTree(on_sphere(lat[known], lon[known]))

    def __call__(self, lat: pa.ChunkedArray, lon: pa.ChunkedArray) -> pa.Array:
        """string [n], null where no centre is near or the place is unknown."""
        lat_, lon_ = _finite(lat, 90), _finite(lon, 180)
        known = np.isfinite(lat_) & np.isfinite(lon_)
        at = np.full(len(lat_), self.tree.n)
        reach = 2 * np.sin(_CITY_KM / (2 * EARTH_RADIUS_KM))
        _, at[known] = self.tree.query(on_sphere(lat_[known], lon_[known]), distance_upper_bound=reach)
        return self.names.take(pa.array(at, mask=at == self.tree.n))


def _finite(degrees: pa.ChunkedArray, bound: float) -> np.ndarray:
    """Degrees as float64 [n], NaN where there is none within bounds."""
    value = degrees.to_numpy().astype(np.float64)
    return np.where(np.abs(value) <= bound, value, np.nan)
