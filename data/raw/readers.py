"""Public formats made a raw folder in our schema: Foursquare TSMC2014, Gowalla and Brightkite, Yelp, and plain CSV.

Every reader streams blocks of lines; what it holds is the items. Each row passes the checks of ``schema`` here, so
that a message names the file and the line that the user has.
"""

import difflib
from collections import Counter
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
from .columns import INTERACTIONS, ITEMS, Column, DataError, key_column, text_column
from .csv_text import csv_rows
from .schema import mark_duplicates, mark_interactions
from .text import delimited, json_lines
from .values import ctimes, numbers, parsed, times

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
# Of the 1,297 categories that Yelp's API lists, those that hold a comma themselves.
_YELP_WITH_COMMA = [
    "Beer, Wine & Spirits", "Books, Mags, Music & Video", "Used, Vintage & Consignment", "Wills, Trusts, & Probates",
]  # fmt: skip
_COMMA = "\x1f"  # stands for those commas


class _Output:
    """The raw folder being written: interactions as they come, items at the end; and what came of every row.

    Attributes:
        kept: interactions written.
        read: file name -> rows that its reader yielded; lines that are no rows are not in it.
        repeats: file name -> lines that repeat the header.
        left_out: reason -> rows that were read and are no visits.
        unused: file name -> columns that are not in the schema.
    """

    def __init__(self, folder: Path, bad_rows: BadRows) -> None:
        self.folder, self.bad_rows = folder, bad_rows
        self.kept = 0
        self.read: Counter[str] = Counter()
        self.repeats: Counter[str] = Counter()
        self.left_out: dict[str, int] = {}
        self.unused: dict[str, list[str]] = {}
        self._writer: pq.ParquetWriter | None = None

    def counted(
        self, file: Path, blocks: Iterator[tuple[np.ndarray, pa.Table]]
    ) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """The blocks, with a progress bar."""
        with tqdm(desc=file.name, unit="line", unit_scale=True, disable=None) as progress:
            for lines, table in blocks:
                self.read[file.name] += len(lines)
                yield lines, table
                progress.update(len(lines))

    def csv(self, file: Path) -> Iterator[tuple[np.ndarray, pa.Table]]:
        return self.counted(file, csv_rows(file, self.bad_rows, self.repeats))

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
        self.kept += len(table)

    def table(self, name: str, file: Path, table: pa.Table) -> None:
        if len(table) == 0:
            raise DataError(f"{file}: no row of it can be used{self._why(file.name)}")
        pq.write_table(table, self.folder / f"{name}.parquet", compression="zstd")

    def close(self, source: Path) -> None:
        if self._writer is not None:
            self._writer.close()
        if self.kept == 0:
            raise DataError(
                f"{source}: got no interactions that can be used{self._why()}; check the file and its format"
            )

    def _why(self, file: str | None = None) -> str:
        """What most rows (of the file) were set aside for."""
        of_file = [(n, c, reason) for (f, c, reason), n in self.bad_rows.counts.items() if file in (None, f)]
        if not of_file:
            return ""
        n, column, reason = max(of_file)
        return f"; {n:,} were set aside because of '{column}': {reason}"

    def told(self) -> dict[str, Any]:
        """For the manifest. Of each file rows = what was kept + set aside + left out."""
        rows = self.read + self.repeats
        for (file, column, _), n in self.bad_rows.counts.items():
            if column == "line":
                rows[file] += n
        again = {f"lines of {file} that repeat the header": n for file, n in self.repeats.items()}
        return {"rows": dict(rows), "left_out": {**self.left_out, **again}, "unused_columns": self.unused}


def convert(
    source: Path, format: SourceFormat, columns: dict[str, str], out: Path, bad_rows: BadRows | None = None
) -> Path:
    """Write ``source`` as a raw folder in our schema.

    Args:
        source: csv: a folder with items.csv, interactions.csv and users.csv? (or .csv.gz; levels of a category are
            separated by ">", times are seconds or ISO 8601); foursquare: dataset_TSMC2014_*.txt;
            gowalla: loc-gowalla_totalCheckins.txt or loc-brightkite_totalCheckins.txt (or .gz); yelp: the folder with
            yelp_academic_dataset_business.json and _review.json. For one-file formats also the folder that holds it.
        format: see above.
        columns: csv only: our column name -> the name in the files; a table without that name is read by our name.
        out: the folder to make. All ids are strings in it.
        bad_rows: what to do with bad rows and broken lines; default: the first raises.

    Returns:
        ``out``. The manifest (kind "raw") has ``rows`` by file, ``left_out`` by reason (check-ins that name no place,
        repeated headers) and ``unused_columns`` by CSV file; ``bad_rows`` has counted what was set aside.

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
        write_manifest(folder, "raw", config, interactions=output.kept, **output.told())
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
            self.output.table("items", self.file, pa.concat_tables(self.tables))


def _check_ins(
    file: Path, output: _Output, items: _FirstSeen, lines: np.ndarray, raw: pa.Table, seconds: pa.ChunkedArray
) -> None:
    """One block: new items, then the visits of good items; raw has user_id, item_id, time and the items' columns."""
    nothing = pa.nulls(len(raw), pa.string())
    about = raw.select([c for c in raw.column_names if c in {i.name for i in ITEMS}]).append_column("name", nothing)
    if "category" not in about.column_names:
        about = about.append_column("category", nothing)
    good = items.add(lines, *parsed(about, ITEMS))
    ones = pa.array(np.ones(len(raw), np.int8))
    visits = pa.table({"user_id": raw["user_id"], "item_id": raw["item_id"], "timestamp": raw["time"], "label": ones})
    values = visits.set_column(2, "timestamp", seconds)
    keep = pa.array(good)
    output.interactions(file, lines[good], visits.filter(keep), values.filter(keep), None)


def _foursquare(file: Path, output: _Output) -> None:
    """Tab-separated: user, venue, category id, category, lat, lon, minutes from UTC, UTC time."""
    items = _FirstSeen(file, output)
    for lines, raw in output.counted(file, delimited(file, _FOURSQUARE, output.bad_rows)):
        _check_ins(file, output, items, lines, raw, ctimes(raw["time"]))
    items.finish()


def _snap(file: Path, output: _Output) -> None:
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


# --- tables of items and interactions --------------------------------------------------------------------------


def _items(output: _Output, blocks: Iterator[tuple[np.ndarray, pa.Table, pa.Table]], file: Path) -> pa.ChunkedArray:
    """Check and write all items; their ids."""
    table = _distinct(output, list(blocks), file, ITEMS)
    output.table("items", file, table)
    ids: pa.ChunkedArray = table["item_id"]
    return ids


def _distinct(
    output: _Output, parts: list[tuple[np.ndarray, pa.Table, pa.Table]], file: Path, columns: tuple[Column, ...]
) -> pa.Table:
    """Lines, raw rows and values as one checked table; the first column is a key."""
    if not parts:
        return pa.table({c.name: pa.array([], c.type) for c in columns})
    lines = np.concatenate([p[0] for p in parts])
    raw, values = (pa.concat_tables([p[i] for p in parts]) for i in (1, 2))
    block = Block(file, raw, lines, columns, unit="line", parsed=values)
    mark_duplicates(block, columns[0].name)
    return block.finish(columns, output.bad_rows, file.name)


def _yelp_file(source: Path, kind: str) -> Path:
    for name in (f"yelp_academic_dataset_{kind}.json", f"{kind}.json"):
        if (source / name).is_file():
            return source / name
    held = sorted(p.name for p in source.iterdir())[:20] if source.is_dir() else "no folder"
    raise FileNotFoundError(f"{source}: expected yelp_academic_dataset_{kind}.json, got {held}; check the path")


def yelp_category(categories: pa.ChunkedArray) -> pa.Array:
    """Yelp's unordered "Sushi Bars, Restaurants" as a path: the first top-level category, then the first other one."""
    text = pc.utf8_trim_whitespace(categories.combine_chunks())
    for name in _YELP_WITH_COMMA:  # "Craft Beer, Wine & Spirits" are two others
        hidden = name.replace(",", _COMMA)
        text = pc.replace_substring_regex(text, rf"(^|,\s*){name}(\s*,|$)", rf"\1{hidden}\2")
    lists = pc.split_pattern_regex(text, r"\s*,\s*")
    names = pc.replace_substring(lists.flatten(), _COMMA, ",")
    row = pc.list_parent_indices(lists).to_numpy()
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
        for lines, table in output.counted(business, json_lines(business, _YELP_BUSINESS, output.bad_rows)):
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
    for lines, table in output.counted(review, json_lines(review, _YELP_REVIEW, output.bad_rows)):
        columns = {
            "user_id": table["user_id"],
            "item_id": table["business_id"],
            "timestamp": table["date"],
            "label": pa.array(np.ones(len(table), np.int8)),
        }
        values = pa.table({**columns, "timestamp": times(table["date"])})
        output.interactions(review, lines, pa.table(columns), values, ids)


def _csv_file(source: Path, name: str) -> Path | None:
    return next((p for p in (source / f"{name}.csv", source / f"{name}.csv.gz") if p.is_file()), None)


def _chosen(file: Path, table: pa.Table, mapping: dict[str, str], columns: tuple[Column, ...]) -> dict[str, str]:
    """The schema's columns that a CSV table has -> what they are called there: their mapped or own names."""
    chosen = {}
    names = table.column_names
    for column in columns:
        theirs = mapping.get(column.name, column.name)
        name = theirs if theirs in names else column.name
        if names.count(name) > 1:
            at = " and ".join(str(i) for i, n in enumerate(names, 1) if n == name)
            raise DataError(f"{file}: the header has '{name}' more than once (columns {at}); rename or drop one")
        if name in names:
            chosen[column.name] = name
        elif column.required:
            raise DataError(
                f"{file}: column '{column.name}' is missing; found {names} in the header, the first line; "
                f"name the column that holds it: --columns {column.name} THEIR_NAME"
            )
    return chosen


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

    def read(file: Path, columns: tuple[Column, ...]) -> Iterator[tuple[np.ndarray, pa.Table, pa.Table]]:
        for lines, table in output.csv(file):
            chosen = _chosen(file, table, mapping, columns)
            used.update(chosen.values())
            if unused := [name for name in table.column_names if name not in chosen.values()]:
                output.unused[file.name] = unused
            yield lines, *parsed(pa.table({ours: table[theirs] for ours, theirs in chosen.items()}), columns)

    ids = _items(output, read(items, ITEMS), items)
    for lines, raw, values in read(interactions, INTERACTIONS):
        output.interactions(interactions, lines, raw, values, ids)
    if users is not None:
        used.update(_csv_users(users, mapping.get("user_id", "user_id"), output))
    unknown = [f"{ours}={theirs}" for ours, theirs in mapping.items() if theirs not in used]
    if unknown:
        raise DataError(f"{source}: columns {', '.join(unknown)} name no column of the files; correct or drop them")


def _csv_users(file: Path, theirs: str, output: _Output) -> list[str]:
    """Check and write the users: the id, and all other columns as text; the names of the file's columns."""
    parts: list[tuple[np.ndarray, pa.Table, pa.Table]] = []
    names: list[str] = []
    columns: tuple[Column, ...] = ()
    for lines, table in output.csv(file):
        if not parts:
            names = table.column_names
            key = theirs if theirs in names else "user_id"
            ours = ["user_id" if n == key else n for n in names]
            others = [text_column(n) for n in ours if n != "user_id"]
            columns = (key_column("user_id"), *others)
            _chosen(file, table.rename_columns(ours), {}, columns)
        parts.append((lines, *parsed(table.rename_columns(ours), columns)))
    output.table("users", file, _distinct(output, parts, file, columns))
    return names
