"""Public formats made a raw folder in our schema: Yelp and plain CSV here, others in ``check_ins`` and ``places``.

Every reader streams blocks of rows; what it holds is the items, of ``places`` their ids alone. Each row passes the
checks of ``schema`` here, so that a message names the file and the row that the user has.
"""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..manifest import whole_folder, write_manifest
from .check_ins import foursquare, one_file, snap
from .checks import BadRows, as_mask
from .columns import INTERACTIONS, ITEMS, Column, DataError, key_column
from .hours import OPENING_HOURS
from .output import Output, distinct, write_items
from .own import Declaration
from .own_text import OwnText
from .places import read_places
from .text import json_lines
from .values import parsed, times

SourceFormat = Literal["csv", "foursquare", "gowalla", "yelp", "places"]

_YELP_ROOTS = [
    "Restaurants", "Food", "Nightlife", "Shopping", "Beauty & Spas", "Active Life", "Arts & Entertainment",
    "Hotels & Travel", "Automotive", "Health & Medical", "Home Services", "Local Services",
    "Event Planning & Services", "Education", "Pets", "Professional Services", "Real Estate", "Financial Services",
    "Public Services & Government", "Religious Organizations", "Mass Media", "Local Flavor",
]  # fmt: skip
_YELP_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
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
        ("hours", pa.struct([(day, pa.string()) for day in _YELP_DAYS])),
    ]
)
_YELP_REVIEW = pa.schema([("user_id", pa.string()), ("business_id", pa.string()), ("date", pa.string())])
# Of the 1,297 categories that Yelp's API lists, those that hold a comma themselves.
_YELP_WITH_COMMA = [
    "Beer, Wine & Spirits", "Books, Mags, Music & Video", "Used, Vintage & Consignment", "Wills, Trusts, & Probates",
]  # fmt: skip
_COMMA = "\x1f"  # stands for those commas


def convert(
    source: Path,
    format: SourceFormat,
    columns: dict[str, str],
    out: Path,
    bad_rows: BadRows | None = None,
    declaration: Declaration | None = None,
    known: pa.Array | None = None,
) -> Path:
    """Write ``source`` as a raw folder in our schema.

    Args:
        source: csv: a folder with items.csv, interactions.csv and users.csv? (or .csv.gz; levels of a category are
            separated by ">", times are seconds or ISO 8601); foursquare: dataset_TSMC2014_*.txt, or .csv as Kaggle
            has it, or the folder with dataset_TIST2015_Checkins.txt, _POIs.txt and _Cities.txt?;
            gowalla: loc-gowalla_totalCheckins.txt or loc-brightkite_totalCheckins.txt (or .gz); yelp: the folder with
            yelp_academic_dataset_business.json and _review.json; places: a folder with places.parquet (or places/) of
            Foursquare OS Places or Overture Maps, and interactions.parquet and users.parquet? in our schema beside it.
            For one-file formats also the folder that holds it.
        format: see above.
        columns: csv only: our column name -> the name in the files; a table without that name is read by our name.
        out: the folder to make. Ids are strings in it, those of ``places`` what they are there.
        bad_rows: what to do with bad rows and broken lines; default: the first raises.
        declaration: csv and places: what is said of columns that the schema doesn't name.
        known: ids of items of the days before, which interactions may have too, string; then a table of items, and
            one of users, may be missing or empty. Not for check-ins, whose rows are all that says where items are.

    Returns:
        ``out``. The manifest (kind "raw") has ``rows`` by file, ``left_out`` by reason (check-ins that name no place,
        closed places, repeated headers), ``unused_columns`` by CSV file, and in ``noted`` what else was counted, such
        as categories beyond the first; ``bad_rows`` has counted what was set aside.

    Raises:
        DataError, FileNotFoundError: with the file and the line.
        FileExistsError: ``out`` exists.
    """
    if format not in get_args(SourceFormat):
        raise ValueError(f"format: got {format!r}, expected one of {', '.join(get_args(SourceFormat))}")
    if columns and format != "csv":
        raise ValueError(f"columns: got {columns} with format {format!r}, expected them with 'csv' alone; drop them")
    with whole_folder(out) as folder:
        output = Output(folder, bad_rows or BadRows())
        if format == "csv":
            _csv(source, columns, output, declaration or {}, known)
        elif format == "yelp":
            _yelp(source, output, known)
        elif format == "foursquare":
            foursquare(source, output)
        elif format == "gowalla":
            snap(one_file(source, "*totalCheckins.txt*"), output)
        else:
            read_places(source, output, declaration or {}, known)
        output.close(source)
        config = {"source": source, "format": format, "columns": columns}
        write_manifest(folder, "raw", config, interactions=output.kept, **output.told())
    return out


# --- tables of items and interactions --------------------------------------------------------------------------


def _yelp_file(source: Path, kind: str, optional: bool = False) -> Path | None:
    """A file of Yelp's; None where an optional one is not there, or has nothing in it."""
    for name in (f"yelp_academic_dataset_{kind}.json", f"{kind}.json"):
        if (source / name).is_file():
            return source / name if not optional or (source / name).stat().st_size else None
    if optional:
        return None
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


def yelp_hours(hours: pa.ChunkedArray) -> pa.Array:
    """Yelp's {"Monday": "8:0-18:30", ...} as the schema's text: days that are not named are closed.

    "0:0-0:0" is how places that never close are written, and days on which others are closed: so it is taken for a day
    that is open where all days that the place names are so.
    """
    found: list[str | None] = []
    for row in hours.to_pylist():
        days = {name: text.strip() for name, text in (row or {}).items() if text and text.strip()}
        always = set(days.values()) == {"0:0-0:0"}
        rules = [f"{name[:2]} {_yelp_times(text)}" for name, text in days.items() if always or text != "0:0-0:0"]
        found.append("; ".join(rules) or ("off" if days else None))
    return pa.array(found, pa.string())


def _yelp_times(text: str) -> str:
    """ "8:0-18:30" as "08:00-18:30"; what is no such text stays, for the checks to tell."""
    at = re.fullmatch(r"(\d\d?):(\d\d?)-(\d\d?):(\d\d?)", text)
    return text if at is None else "{:0>2}:{:0>2}-{:0>2}:{:0>2}".format(*at.groups())


def _yelp(source: Path, output: Output, known: pa.Array | None) -> None:
    """Businesses are items, reviews are visits; tips and check-ins are not read."""
    business, review = _yelp_file(source, "business", known is not None), _yelp_file(source, "review")
    assert review is not None

    def items() -> Iterator[tuple[np.ndarray, pa.Table, pa.Table]]:
        if business is None:
            return
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
                OPENING_HOURS: yelp_hours(table["hours"]),
            }
            raw = pa.table(columns)
            yield lines, raw, pa.table({**columns, "category": yelp_category(table["categories"])})

    ids = write_items(output, items(), business or source, known=known)
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


def _csv(
    source: Path, mapping: dict[str, str], output: Output, declaration: Declaration, known: pa.Array | None
) -> None:
    ours = [c.name for c in (*ITEMS, *INTERACTIONS)]
    for name in mapping:
        if name not in ours:
            near = difflib.get_close_matches(name, ours, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(dict.fromkeys(ours))}"
            raise ValueError(f"columns: got '{name}', which is not a column of the schema; {hint}")
    items, interactions, users = (_csv_file(source, n) for n in ("items", "interactions", "users"))
    if interactions is None or (items is None and known is None):
        held = sorted(p.name for p in source.iterdir())[:20] if source.is_dir() else "no folder"
        both = "items.csv and interactions.csv" if known is None else "interactions.csv"
        raise FileNotFoundError(f"{source}: expected {both} (or .csv.gz), got {held}")
    used: set[str] = set()

    own: dict[str, OwnText] = {}

    def read(file: Path, of: str, columns: tuple[Column, ...]) -> Iterator[tuple[np.ndarray, pa.Table, pa.Table]]:
        for lines, table in output.csv(file, empty=known is not None and of != "interactions"):
            chosen = _chosen(file, table, mapping, columns)
            if of not in own:
                ours = {theirs: name for name, theirs in chosen.items()}
                if of == "users":  # one column alone may be the id
                    _chosen(file, table.rename_columns([ours.get(n, n) for n in table.column_names]), {}, columns)
                own[of] = OwnText(of, table, set(chosen.values()), declaration)
            used.update(chosen.values())
            taken = {*chosen.values(), *(c.name for c in own[of].columns)}
            if unused := [name for name in table.column_names if name not in taken]:
                output.unused[file.name] = unused
            raw, values = parsed(pa.table({ours: table[theirs] for ours, theirs in chosen.items()}), columns)
            yield lines, *map(_side_by_side, (raw, values), own[of].values(table))

    parts = [] if items is None else list(read(items, "items", ITEMS))
    ids = write_items(output, parts, items or source, (*ITEMS, *_own(own, "items")), known)
    for lines, raw, values in read(interactions, "interactions", INTERACTIONS):
        output.interactions(interactions, lines, raw, values, ids, _own(own, "interactions"))
    if users is not None:
        key = key_column("user_id")
        parts = list(read(users, "users", (key,)))
        if parts or known is None:
            output.table("users", users, distinct(output, parts, users, (key, *_own(own, "users"))))
    unread = {c.name for c in ITEMS} - {c.name for c in INTERACTIONS} if "items" not in own else set()  # of no items
    unknown = [f"{ours}={theirs}" for ours, theirs in mapping.items() if theirs not in used and ours not in unread]
    if unknown:
        raise DataError(f"{source}: columns {', '.join(unknown)} name no column of the files; correct or drop them")


def _own(own: dict[str, OwnText], of: str) -> list[Column]:
    return own[of].columns if of in own else []


def _side_by_side(one: pa.Table, other: pa.Table) -> pa.Table:
    for name in other.column_names:
        one = one.append_column(name, other[name])
    return one
