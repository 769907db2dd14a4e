"""Public formats made a raw folder in our schema: Foursquare TSMC2014, Gowalla and Brightkite, Yelp, and plain CSV.

Every reader streams blocks of lines; what it holds is the items. Each row passes the checks of ``schema`` here, so
that a message names the file and the line that the user has.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from ..manifest import whole_folder, write_manifest
from .checks import BadRows, Block, as_mask
from .columns import INTERACTIONS, ITEMS, Column, DataError, key_column
from .schema import mark_duplicates, mark_interactions
from .text import csv_rows, delimited, json_lines, parsed, stamps

SourceFormat = Literal["csv", "foursquare", "gowalla", "yelp"]

_FOURSQUARE = ["user_id", "item_id", "category_id", "category", "lat", "lon", "offset", "time"]
_SNAP = ["user_id", "time", "lat", "lon", "item_id"]
_NO_PLACE = ["0", "00000000000000000000000000000000"]  # Brightkite: check-ins without a location
_YELP_ROOTS = [
    "Restaurants", "Food", "Nightlife", "Shopping", "Beauty & Spas", "Active Life", "Arts & Entertainment",
    "Hotels & Travel", "Automotive", "Health & Medical", "Home Services", "Local Services",
    "Event Planning & Services", "Education", "Pets", "Professional Services", "Real Estate", "Financial Services",
    "Public Services & Government", "Religious Organizations", "Mass Media", "Local Flavor",
]  # fmt: skip
_YELP_BUSINESS = pa.schema(
    [
        ("business_id", pa.string()),
        ("name", pa.string()),
        ("categories", pa.string()),
        ("latitude", pa.float64()),
        ("longitude", pa.float64()),
        ("city", pa.string()),
        ("state", pa.string()),
        ("attributes", pa.struct([("RestaurantsPriceRange2", pa.string())])),
    ]
)
_YELP_REVIEW = pa.schema([("user_id", pa.string()), ("business_id", pa.string()), ("date", pa.string())])
_USERS = (key_column("user_id"),)


class _Output:
    """The raw folder being written: interactions as they come, items at the end."""

    def __init__(self, folder: Path, bad_rows: BadRows) -> None:
        self.folder, self.bad_rows = folder, bad_rows
        self.rows = 0
        self.left_out: dict[str, int] = {}
        self._writer: pq.ParquetWriter | None = None

    def interactions(
        self, file: Path, lines: np.ndarray, raw: pa.Table, values: pa.Table, item_ids: pa.ChunkedArray | None
    ) -> None:
        """Check and write a block; ``item_ids`` None = the items are made from these very rows."""
        block = Block(file, raw, lines, INTERACTIONS, unit="line", parsed=values)
        if item_ids is not None:
            mark_interactions(block, item_ids)
        name = file.name if item_ids is not None else f"{file.name}-visits"
        table = block.finish(INTERACTIONS, self.bad_rows, name)
        if item_ids is not None:
            table = table.drop_columns("item_index")
        # Columns that the source has not stay missing, rather than null: prepare looks whether they are there.
        table = table.select([c for c in table.column_names if c in values.column_names])
        self._writer = self._writer or pq.ParquetWriter(
            self.folder / "interactions.parquet", table.schema, compression="zstd"
        )
        self._writer.write_table(table)
        self.rows += len(table)

    def table(self, name: str, table: pa.Table) -> None:
        pq.write_table(table, self.folder / f"{name}.parquet", compression="zstd")

    def close(self, source: Path) -> None:
        if self._writer is not None:
            self._writer.close()
        if self.rows == 0:
            raise DataError(f"{source}: got no interactions that can be used; check the file and its format")


def convert(
    source: Path, format: SourceFormat, columns: dict[str, str], out: Path, bad_rows: BadRows | None = None
) -> Path:
    """Write ``source`` as a raw folder in our schema.

    Args:
        source: csv: a folder with items.csv, interactions.csv and users.csv? (or .csv.gz; all text is UTF-8, levels of
            a category are separated by ">", times are integer seconds or ISO 8601); foursquare: dataset_TSMC2014_*.txt;
            gowalla: loc-gowalla_totalCheckins.txt or loc-brightkite_totalCheckins.txt (or .gz); yelp: the folder with
            yelp_academic_dataset_business.json and _review.json. For one-file formats also the folder that holds it.
        format: see above.
        columns: csv only: our column name -> the name in the files; a table without that name is read by our name.
        out: the folder to make. All ids are strings in it.
        bad_rows: what to do with bad rows and broken lines; default: the first raises.

    Returns:
        ``out``. The manifest (kind "raw") counts check-ins that were left out because they name no place.

    Raises:
        DataError, FileNotFoundError: with the file and the line.
        FileExistsError: ``out`` exists.
    """
    if format not in get_args(SourceFormat):
        raise ValueError(f"format: got {format!r}, expected one of {', '.join(get_args(SourceFormat))}")
    if columns and format != "csv":
        raise ValueError(f"columns: got {columns} with format {format!r}, expected them with 'csv' alone; drop them")
    with whole_folder(out) as folder:
        output = _Output(folder, bad_rows or BadRows())
        if format == "csv":
            _csv(source, columns, output)
        elif format == "yelp":
            _yelp(source, output)
        elif format == "foursquare":
            _foursquare(_one_file(source, "*TSMC2014*.txt*"), output)
        else:
            _snap(_one_file(source, "*totalCheckins.txt*"), output)
        output.close(source)
        config = {"source": source, "format": format, "columns": columns}
        write_manifest(folder, "raw", config, interactions=output.rows, left_out=output.left_out)
    return out


def _one_file(source: Path, pattern: str) -> Path:
    if not source.is_dir():
        return source
    found = sorted(source.glob(pattern))
    if len(found) != 1:
        held = [p.name for p in found] or sorted(p.name for p in source.iterdir())[:20]
        raise FileNotFoundError(f"{source}: expected one file {pattern}, got {held}; give the path of the file itself")
    return found[0]


# --- check-ins: items are what was checked in at ---------------------------------------------------------------


class _FirstSeen:
    """Items from check-ins: the first row of each id, over all blocks."""

    def __init__(self, file: Path, output: _Output) -> None:
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
            self.output.table("items", pa.concat_tables(self.tables))


def _progress(blocks: Iterator[tuple[np.ndarray, pa.Table]], file: Path) -> Iterator[tuple[np.ndarray, pa.Table]]:
    with tqdm(desc=file.name, unit="line", unit_scale=True, disable=None) as progress:
        for lines, table in blocks:
            yield lines, table
            progress.update(len(lines))


def _check_ins(
    file: Path, output: _Output, items: _FirstSeen, lines: np.ndarray, raw: pa.Table, seconds: pa.ChunkedArray
) -> None:
    """One block: new items, then the visits of good items; raw has user_id, item_id, time and the items' columns."""
    nothing = pa.nulls(len(raw), pa.string())
    about = raw.select([c for c in raw.column_names if c in {i.name for i in ITEMS}]).append_column("name", nothing)
    if "category" not in about.column_names:
        about = about.append_column("category", nothing)
    good = items.add(lines, about, parsed(about, ITEMS))
    ones = pa.array(np.ones(len(raw), np.int8))
    visits = pa.table({"user_id": raw["user_id"], "item_id": raw["item_id"], "timestamp": raw["time"], "label": ones})
    values = visits.set_column(2, "timestamp", seconds)
    keep = pa.array(good)
    output.interactions(file, lines[good], visits.filter(keep), values.filter(keep), None)


def _foursquare(file: Path, output: _Output) -> None:
    """Tab-separated: user, venue, category id, category, lat, lon, minutes from UTC, UTC time; UTF-8 or Latin-1."""
    items = _FirstSeen(file, output)
    for lines, raw in _progress(delimited(file, _FOURSQUARE, output.bad_rows), file):
        _check_ins(file, output, items, lines, raw, stamps(raw["time"], "%a %b %d %H:%M:%S +0000 %Y"))
    items.finish()


def _snap(file: Path, output: _Output) -> None:
    """Tab-separated: user, ISO time, lat, lon, location. Check-ins without a location are left out and counted."""
    items = _FirstSeen(file, output)
    output.left_out = {"check-ins without a location": 0}
    for lines, raw in _progress(delimited(file, _SNAP, output.bad_rows), file):
        nowhere = as_mask(raw["item_id"].is_null()) | as_mask(pc.is_in(raw["item_id"], value_set=pa.array(_NO_PLACE)))
        zero = pa.array(["0", "0.0", "0.00", "0.000000"])
        nowhere |= as_mask(pc.and_(pc.is_in(raw["lat"], value_set=zero), pc.is_in(raw["lon"], value_set=zero)))
        output.left_out["check-ins without a location"] += int(nowhere.sum())
        raw = raw.filter(pa.array(~nowhere))
        if len(raw):
            _check_ins(file, output, items, lines[~nowhere], raw, stamps(raw["time"], "%Y-%m-%dT%H:%M:%SZ"))
    items.finish()


# --- tables of items and interactions --------------------------------------------------------------------------


def _items(output: _Output, blocks: Iterator[tuple[np.ndarray, pa.Table, pa.Table]], file: Path) -> pa.ChunkedArray:
    """Check and write all items; their ids."""
    parts = list(blocks)
    if not parts:
        raise DataError(f"{file}: the file has no rows, expected at least one item")
    lines = np.concatenate([p[0] for p in parts])
    raw, values = (pa.concat_tables([p[i] for p in parts]) for i in (1, 2))
    block = Block(file, raw, lines, ITEMS, unit="line", parsed=values)
    mark_duplicates(block, "item_id")
    table = block.finish(ITEMS, output.bad_rows, file.name)
    output.table("items", table)
    ids: pa.ChunkedArray = table["item_id"]
    return ids


def _yelp_file(source: Path, kind: str) -> Path:
    for name in (f"yelp_academic_dataset_{kind}.json", f"{kind}.json"):
        if (source / name).is_file():
            return source / name
    held = sorted(p.name for p in source.iterdir())[:20] if source.is_dir() else "no folder"
    raise FileNotFoundError(f"{source}: expected yelp_academic_dataset_{kind}.json, got {held}; check the path")


def yelp_category(categories: pa.ChunkedArray) -> pa.Array:
    """Yelp's unordered "Sushi Bars, Restaurants" as a path: the first top-level category, then the first other one."""
    text = categories.combine_chunks()
    lists = pc.split_pattern_regex(pc.utf8_trim_whitespace(text), r"\s*,\s*")
    names, row = lists.flatten(), pc.list_parent_indices(lists).to_numpy()
    real = as_mask(pc.not_equal(names, ""))
    root = as_mask(pc.is_in(names, value_set=pa.array(_YELP_ROOTS)))
    at = np.full((len(text), 2), -1, np.int64)
    for level, mask in enumerate((root & real, ~root & real)):
        rows, first = np.unique(row[mask], return_index=True)
        at[rows, level] = np.flatnonzero(mask)[first]
    offsets = np.zeros(len(text) + 1, np.int32)
    np.cumsum((at >= 0).sum(axis=1), out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), names.take(pa.array(at[at >= 0])))


def _yelp(source: Path, output: _Output) -> None:
    """Businesses are items, reviews are visits; tips and check-ins are not read."""
    business, review = _yelp_file(source, "business"), _yelp_file(source, "review")

    def items() -> Iterator[tuple[np.ndarray, pa.Table, pa.Table]]:
        for lines, table in _progress(json_lines(business, _YELP_BUSINESS, output.bad_rows), business):
            price = pc.struct_field(table["attributes"], "RestaurantsPriceRange2")  # "2", "u'2'" or "None"
            tier = pc.struct_field(pc.extract_regex(price, r"(?P<tier>[1-4])"), "tier")
            columns = {
                "item_id": table["business_id"],
                "name": table["name"],
                "category": table["categories"],
                "price": tier.cast(pa.float32()),
                "lat": table["latitude"],
                "lon": table["longitude"],
                "province": table["state"],
                "city": table["city"],
            }
            raw = pa.table(columns)
            yield lines, raw, pa.table({**columns, "category": yelp_category(table["categories"])})

    ids = _items(output, items(), business)
    for lines, table in _progress(json_lines(review, _YELP_REVIEW, output.bad_rows), review):
        columns = {
            "user_id": table["user_id"],
            "item_id": table["business_id"],
            "timestamp": table["date"],
            "label": pa.array(np.ones(len(table), np.int8)),
        }
        values = pa.table({**columns, "timestamp": stamps(table["date"], "%Y-%m-%d %H:%M:%S")})
        output.interactions(review, lines, pa.table(columns), values, ids)


def _csv_file(source: Path, name: str) -> Path | None:
    return next((p for p in (source / f"{name}.csv", source / f"{name}.csv.gz") if p.is_file()), None)


def _renamed(
    file: Path, table: pa.Table, mapping: dict[str, str], columns: tuple[Column, ...], used: set[str]
) -> pa.Table:
    """The schema's columns of a CSV table, by their mapped or own names."""
    chosen: dict[str, Any] = {}
    for column in columns:
        theirs = mapping.get(column.name, column.name)
        name = theirs if theirs in table.column_names else column.name
        if name in table.column_names:
            chosen[column.name] = table[name]
            used.add(name)
        elif column.required:
            raise DataError(
                f"{file}: column '{column.name}' is missing; found {table.column_names}; "
                f"name the column that holds it: --columns {column.name} THEIR_NAME"
            )
    return pa.table(chosen)


def _csv(source: Path, mapping: dict[str, str], output: _Output) -> None:
    known = [c.name for c in (*ITEMS, *INTERACTIONS)]
    for name in mapping:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(dict.fromkeys(known))}"
            raise ValueError(f"columns: got '{name}', which is not a column of the schema; {hint}")
    items, interactions, users = (_csv_file(source, n) for n in ("items", "interactions", "users"))
    if items is None or interactions is None:
        held = sorted(p.name for p in source.iterdir())[:20] if source.is_dir() else "no folder"
        raise FileNotFoundError(f"{source}: expected items.csv and interactions.csv (or .csv.gz), got {held}")
    used: set[str] = set()

    def item_blocks() -> Iterator[tuple[np.ndarray, pa.Table, pa.Table]]:
        for lines, table in csv_rows(items, output.bad_rows):
            raw = _renamed(items, table, mapping, ITEMS, used)
            yield lines, raw, parsed(raw, ITEMS)

    ids = _items(output, item_blocks(), items)
    for lines, table in _progress(csv_rows(interactions, output.bad_rows), interactions):
        raw = _renamed(interactions, table, mapping, INTERACTIONS, used)
        output.interactions(interactions, lines, raw, parsed(raw, INTERACTIONS), ids)
    if users is not None:
        parts = list(csv_rows(users, output.bad_rows))
        if parts:
            theirs = mapping.get("user_id", "user_id")
            table = pa.concat_tables([t for _, t in parts])
            table = table.rename_columns(["user_id" if c == theirs else c for c in table.column_names])
            _renamed(users, table, {}, _USERS, set())
            output.table("users", table)
            used.add(theirs)
    unused = [f"{ours}={theirs}" for ours, theirs in mapping.items() if theirs not in used]
    if unused:
        raise DataError(f"{source}: columns {', '.join(unused)} name no column of the files; correct or drop them")
