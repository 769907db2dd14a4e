"""Open collections of places as items, beside interactions of one's own: Foursquare OS Places and Overture Maps.

Both are Parquet, told apart by their columns. Written from the published schemas, see docs/data.md for their versions:

    Foursquare   fsq_place_id, name, latitude, longitude, locality, region, country, date_closed,
                 fsq_category_labels (whole paths, "Retail > Bookstore"), unresolved_flags
    Overture     id, names.primary, taxonomy.hierarchy and .alternates, or before it basic_category and
                 categories.primary and .alternate, brand.names.primary, addresses, confidence, operating_status,
                 geometry (WKB) and bbox

A place has one category path here: Foursquare's first, Overture's primary one; how many more there were is counted.
Places that have closed for good, that have no coordinates, or of which Overture is less than half sure are left out and
counted, and so are interactions with them. Flags that nobody has resolved and places closed for a time leave nothing
out. Places stream by blocks; what is held are their ids, those of left-out ones too.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...reports.progress import Progress
from ..arrays import one_array
from .checks import Block, as_mask, blank_to_null, is_text
from .columns import ITEMS, DataError
from .output import Output, others
from .own import Declaration, own_columns
from .parts import Part, open_parquet, parts, table_files, unreadable
from .paths import PATH, category_paths
from .schema import INTERACTIONS, has_column, has_rows, inventory, iter_interactions, read_users

log = logging.getLogger(__name__)

LEAST_CONFIDENCE = 0.5
"""Overture's confidence is 0 where a place surely does not exist and 1 where it surely does: below, rather not."""
_BLOCK_ROWS = 65_536
_CLOSED, _NOWHERE = "places that have closed", "places without coordinates"
_DOUBTFUL = f"places of a confidence below {LEAST_CONFIDENCE:g}"
_LOST = "interactions with places that were left out"
_MORE = "further categories of places (the first is taken)"
_FLAGGED = "places with unresolved flags"
_FOURSQUARE = [
    "fsq_place_id", "name", "latitude", "longitude", "locality", "region", "country", "date_closed",
    "fsq_category_labels", "unresolved_flags",
]  # fmt: skip
_OVERTURE = [
    "id", "names.primary", "taxonomy", "basic_category", "categories", "brand.names.primary", "addresses", "confidence",
    "operating_status", "geometry", "bbox",
]  # fmt: skip


def read_places(source: Path, output: Output, declaration: Declaration, known: pa.Array | None = None) -> None:
    """Places as items, then the interactions and users beside them, with columns of their own.

    Raises:
        FileNotFoundError: ``source`` is no folder with places and interactions.
        DataError: places of neither schema, or rows that break ours.
    """
    if not source.is_dir() or not any((source / f"interactions{end}").exists() for end in ("", ".parquet")):
        held = sorted(p.name for p in source.iterdir())[:20] if source.is_dir() else "no folder"
        raise FileNotFoundError(
            f"{source}: expected a folder with places.parquet (or places/) and, of your own, interactions.parquet (or "
            f"interactions/), got {held}"
        )
    items = _Items(output)
    for part in parts(source, "places") if known is None or table_files(source, "places") else ():
        items.add(part)
    kept, gone = items.finish(source, none=known is not None)
    used = {of: {c: d for c, d in columns.items() if d.use} for of, columns in declaration.items() if of != "items"}
    own, left = own_columns(source, used)  # what is left out as declared is so later
    rows, notes = inventory(source)
    for note in notes:
        log.warning("warning: %s", note)
    output.read.update(rows)
    output.unused |= {of: [f"{name} ({why})" for name, why in columns.items()] for of, columns in left.items()}
    of_rows, of_users = ([c for c in own if c.of == of] for of in ("interactions", "users"))
    names = [c.name for c in INTERACTIONS if c.required or has_column(source, c.name)]
    output.left_out[_LOST] = 0
    every = pa.chunked_array([*kept.chunks, *gone.chunks], kept.type)
    kept = pa.chunked_array([*kept.chunks, *others(known, every).chunks], kept.type)
    ids = pa.chunked_array([*kept.chunks, *gone.chunks], kept.type)
    for table in iter_interactions(source, ids, output.bad_rows, own=of_rows):
        there = pc.less(table["item_index"], len(kept))
        output.left_out[_LOST] += len(table) - (pc.sum(there).as_py() or 0)
        table = table.filter(there).select([*names, *(c.key for c in of_rows)])
        output.add(table.rename_columns([*names, *(c.column for c in of_rows)]))
    if known is not None and not has_rows(source, "users"):
        return
    if (users := read_users(source, output.bad_rows, of_users)) is not None:
        users = users.rename_columns(["user_id", *(c.column for c in of_users)])
        pq.write_table(users, output.folder / "users.parquet", compression="zstd")


class _Items:
    """``items.parquet`` while it is written, block by block."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.writer: pq.ParquetWriter | None = None
        self.file = output.folder / "items.parquet"
        self.kept: list[pa.Array] = []
        self.gone: list[pa.Array] = []
        self.origin: list[tuple[Path, str, np.ndarray]] = []  # of each written block: file, label and its rows in it

    def add(self, part: Part) -> None:
        """All places of one file."""
        kind: type[_Foursquare] | type[_Overture]
        if "fsq_place_id" in part.stored:
            kind = _Foursquare
        elif {"id", "names"} <= set(part.stored):
            kind = _Overture
        else:
            raise DataError(
                f"{part.file}: got columns {part.stored}, expected those of Foursquare OS Places (fsq_place_id, ...) "
                "or Overture Maps places (id, names, ...); items in placerank's own schema are --format parquet"
            )
        kind.check(part)
        first = 0
        with Progress(part.label, part.rows, "places") as progress:
            for table in _blocks(part, kind.columns):
                self._add(part, table, first, kind)
                first += len(table)
                progress.update(len(table))
        self.output.bad_rows.close_file(part.label)

    def _add(self, part: Part, table: pa.Table, first: int, kind: "type[_Foursquare] | type[_Overture]") -> None:
        output = self.output
        output.read["places.parquet"] += len(table)
        stays = np.ones(len(table), bool)
        for reason, mask in kind.left_out(table).items():
            output.left_out[reason] = output.left_out.get(reason, 0) + int((mask & stays).sum())
            stays &= ~mask
        ids = table[kind.columns[0]]
        self.gone += ids.filter(pa.array(~stays)).drop_null().cast(pa.string()).chunks
        rows = first + np.flatnonzero(stays)
        some = table.filter(pa.array(stays)).combine_chunks()
        block = Block(part.file, kind.items(some), rows, ITEMS)
        good = block.fault == 0
        for what, count in kind.noted(some.filter(pa.array(good))).items():
            output.noted[what] = output.noted.get(what, 0) + count
        written = block.finish(ITEMS, output.bad_rows, part.label)
        if len(written):
            self.writer = self.writer or pq.ParquetWriter(self.file, written.schema, compression="zstd")
            self.writer.write_table(written)
            self.kept += written["item_id"].chunks
            self.origin.append((part.file, part.label, rows[good]))

    def finish(self, source: Path, none: bool) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """Ids of the items, each once, and of places that were left out; ``none``: there may be no items."""
        if self.writer is not None:
            self.writer.close()
        kept = pa.chunked_array(self.kept, pa.string())
        if len(kept) == 0 and not (none and not self.output.bad_rows.counts):
            why = "; ".join(f"{n:,} {reason}" for reason, n in self.output.left_out.items() if n)
            raise DataError(f"{source}: no place of it can be used; left out: {why or 'none'}")
        if pc.count_distinct(kept).as_py() < len(kept):
            kept = self._each_once(kept)
        return kept, pa.chunked_array(self.gone, pa.string())

    def _each_once(self, ids: pa.ChunkedArray) -> pa.ChunkedArray:
        """Set places aside whose id an earlier one has, or raise."""
        _, first = np.unique(ids.combine_chunks().dictionary_encode().indices.to_numpy(), return_index=True)
        once = np.zeros(len(ids), bool)
        once[first] = True
        reason = "expected an id that no earlier place has"
        whole = self.file.rename(self.file.with_name("items-all.parquet"))
        at = 0
        with pq.ParquetFile(whole) as source, pq.ParquetWriter(self.file, source.schema_arrow) as writer:
            for group, (file, label, rows) in enumerate(self.origin):
                table, mine = source.read_row_group(group), once[at : at + len(rows)]
                at += len(rows)
                again = table.filter(pa.array(~mine))
                if len(again) and self.output.bad_rows.policy == "error":
                    row = rows[~mine][0]
                    raise DataError(
                        f"{file}: row {row}, column 'item_id': got {again['item_id'][0].as_py()!r}, {reason}; correct "
                        "the row, or set bad rows aside with --on-bad-rows skip"
                    )
                if len(again):
                    n = len(again)
                    told = {"row": rows[~mine], "column": ["item_id"] * n, "reason": [reason] * n}
                    columns = {name: again[name] for name in again.column_names}
                    self.output.bad_rows.write(file, f"{label}-repeated", pa.table({**told, **columns}))
                writer.write_table(table.filter(pa.array(mine)))
        whole.unlink()
        return ids.filter(pa.array(once))


def _blocks(part: Part, columns: list[str]) -> Iterator[pa.Table]:
    """Blocks of those columns that the file has."""
    there = [name for name in columns if name.partition(".")[0] in part.stored]
    try:
        with open_parquet(part.file) as source:
            for batch in source.iter_batches(batch_size=_BLOCK_ROWS, columns=there):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(unreadable(part.file, error)) from error


# --- Foursquare ------------------------------------------------------------------------------------------------


class _Foursquare:
    columns = _FOURSQUARE

    @staticmethod
    def check(part: Part) -> None:
        _expect(part, "fsq_place_id", is_text, "string")
        for name in ("name", "latitude", "longitude", "fsq_category_labels"):
            if name not in part.stored:
                raise DataError(f"{part.file}: column '{name}' is missing; found {part.stored}")
        _expect(part, "fsq_category_labels", _is_list, "list of string")
        _expect(part, "unresolved_flags", _is_list, "list of string")

    @staticmethod
    def left_out(table: pa.Table) -> dict[str, np.ndarray]:
        closed = _column(table, "date_closed")
        closed = blank_to_null(closed.cast(pa.string())) if is_text(closed.type) else closed
        nowhere = pc.or_(table["latitude"].is_null(), table["longitude"].is_null())
        return {_CLOSED: as_mask(closed.is_valid()), _NOWHERE: as_mask(nowhere)}

    @staticmethod
    def items(table: pa.Table) -> pa.Table:
        labels, _ = _labels(table)
        return pa.table(
            {
                "item_id": table["fsq_place_id"],
                "name": table["name"],
                "category": category_paths(labels),
                "lat": table["latitude"],
                "lon": table["longitude"],
                "province": _province(_text(table, "country"), _text(table, "region")),
                "city": _text(table, "locality"),
            }
        )

    @staticmethod
    def noted(table: pa.Table) -> dict[str, int]:
        _, more = _labels(table)
        flags = pc.list_value_length(_column(table, "unresolved_flags", PATH))
        return {_MORE: more, _FLAGGED: int(as_mask(pc.greater(flags, 0)).sum())}


def _labels(table: pa.Table) -> tuple[pa.Array, int]:
    """The first label of each place that has one, and how many more there are."""
    lists = one_array(_column(table, "fsq_category_labels", PATH).cast(PATH))
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    labels = blank_to_null(lists.flatten())
    row = np.repeat(np.arange(len(lists)), lengths)[as_mask(labels.is_valid())]
    labels = labels.drop_null()
    rows, first = np.unique(row, return_index=True)
    at = np.zeros(len(lists), np.int64)
    at[rows] = first
    missing = np.ones(len(lists), bool)
    missing[rows] = False
    return labels.take(pa.array(at, mask=missing)), len(row) - len(rows)


# --- Overture --------------------------------------------------------------------------------------------------


class _Overture:
    columns = _OVERTURE

    @staticmethod
    def check(part: Part) -> None:
        _expect(part, "id", is_text, "string")
        for name in ("names", "taxonomy", "categories", "bbox", "brand"):
            _expect(part, name, pa.types.is_struct, "struct")
        _expect(part, "addresses", _is_list, "list of struct")
        if not {"geometry", "bbox"} & set(part.stored):
            raise DataError(f"{part.file}: columns 'geometry' and 'bbox' are missing; found {part.stored}")

    @staticmethod
    def left_out(table: pa.Table) -> dict[str, np.ndarray]:
        closed = pc.equal(_text(table, "operating_status"), "permanently_closed")
        doubtful = pc.less(_column(table, "confidence", pa.float64()).cast(pa.float64()), LEAST_CONFIDENCE)
        lat, _ = _place(table)
        return {_CLOSED: as_mask(closed), _DOUBTFUL: as_mask(doubtful), _NOWHERE: np.isnan(lat)}

    @staticmethod
    def items(table: pa.Table) -> pa.Table:
        lat, lon = _place(table)
        address = _first(_column(table, "addresses"))
        return pa.table(
            {
                "item_id": table["id"],
                "name": _field(table, "names", "primary"),
                "category": _category(table),
                "brand": _field(table, "brand", "names", "primary"),
                "lat": lat,
                "lon": lon,
                "province": _province(_of(address, "country"), _of(address, "region")),
                "city": _of(address, "locality"),
            }
        )

    @staticmethod
    def noted(table: pa.Table) -> dict[str, int]:
        more = pc.coalesce(
            pc.list_value_length(_of(one_array(_column(table, "taxonomy")), "alternates", PATH)),
            pc.list_value_length(_of(one_array(_column(table, "categories")), "alternate", PATH)),
        )
        return {_MORE: pc.sum(more).as_py() or 0}


def _category(table: pa.Table) -> pa.Array:
    """The hierarchy that ends in the primary category; before there was one, the basic and the primary category."""
    basic, fine = one_array(_text(table, "basic_category")), _field(table, "categories", "primary")
    both = pc.binary_join_element_wise(basic, pc.if_else(pc.equal(basic, fine), None, fine), " > ")
    text = pc.coalesce(both, basic, fine)
    hierarchy = _of(one_array(_column(table, "taxonomy")), "hierarchy", PATH).cast(PATH)
    empty = pc.equal(pc.list_value_length(hierarchy), 0)
    return pc.coalesce(pc.if_else(empty, pa.scalar(None, PATH), hierarchy), category_paths(text))


def _place(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes, float64 [n], NaN where unknown: of points, else the middle of the bounding box."""
    lat, lon = np.full((2, len(table)), np.nan)
    if "bbox" in table.column_names:
        xmin, xmax, ymin, ymax = (
            _field(table, "bbox", name).cast(pa.float64()).to_numpy(zero_copy_only=False)
            for name in ("xmin", "xmax", "ymin", "ymax")
        )
        lat, lon = (ymin + ymax) / 2, (xmin + xmax) / 2
    geometry = one_array(_column(table, "geometry"))
    if isinstance(geometry, pa.ExtensionArray):  # GeoArrow's, where that is installed
        geometry = geometry.storage
    if pa.types.is_binary(geometry.type) or pa.types.is_large_binary(geometry.type):
        points = _points(geometry)
        known = np.isfinite(points).all(1)
        lon[known], lat[known] = points[known].T
    return lat, lon


def _points(geometry: pa.Array) -> np.ndarray:
    """x and y of WKB points (byte order, kind 1, x, y), float64 [n, 2]; NaN where it is none.

    An empty point has NaN itself.
    """
    out = np.full((len(geometry), 2), np.nan)
    if geometry.buffers()[2] is None:
        return out
    kind = np.int64 if pa.types.is_large_binary(geometry.type) else np.int32
    offsets = np.frombuffer(geometry.buffers()[1], kind)[geometry.offset :][: len(geometry) + 1].astype(np.int64)
    data = np.frombuffer(geometry.buffers()[2], np.uint8)
    rows = np.flatnonzero(as_mask(geometry.is_valid()) & (np.diff(offsets) == 21))
    cells = data[offsets[rows][:, None] + np.arange(21)]
    for order, letter in ((0, ">"), (1, "<")):
        mine = (cells[:, 0] == order) & (cells[:, 1:5].copy().view(f"{letter}u4")[:, 0] == 1)
        out[rows[mine]] = cells[mine, 5:].copy().view(f"{letter}f8")
    return out


# --- columns ---------------------------------------------------------------------------------------------------


def _is_list(t: pa.DataType) -> bool:
    return pa.types.is_list(t) or pa.types.is_large_list(t)


def _expect(part: Part, name: str, fits: Callable[[pa.DataType], bool], expected: str) -> None:
    if name in part.stored:
        got = part.schema.field(name).type
        if not fits(got) and not pa.types.is_null(got):
            raise DataError(f"{part.file}: column '{name}': got type {got}, expected {expected}; copy the file again")


def _column(table: pa.Table, name: str, type_: pa.DataType | None = None) -> pa.ChunkedArray:
    """A column; nulls (of a type) where there is none, or none of a type."""
    if name in table.column_names and not (type_ is not None and pa.types.is_null(table[name].type)):
        return table[name]
    return pa.chunked_array([pa.nulls(len(table), type_ or pa.null())])


def _text(table: pa.Table, name: str) -> pa.ChunkedArray:
    return blank_to_null(_column(table, name).cast(pa.string()))


def _field(table: pa.Table, name: str, *path: str) -> pa.Array:
    """A field of nested structs, null where one of them is missing."""
    array = one_array(_column(table, name))
    for field in path:
        array = _of(array, field)
    return array


def _of(array: pa.Array, field: str, type_: pa.DataType | None = None) -> pa.Array:
    known = pa.types.is_struct(array.type) and array.type.get_field_index(field) >= 0
    found = pc.struct_field(array, field) if known else pa.nulls(len(array), pa.string())
    return pa.nulls(len(array), type_) if type_ is not None and (not known or pa.types.is_null(found.type)) else found


def _first(lists: pa.ChunkedArray) -> pa.Array:
    """The first element of each list, null where there is none."""
    array = one_array(lists)
    if not _is_list(array.type):
        return pa.nulls(len(array))
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    return array.values.take(pa.array(array.offsets.to_numpy()[:-1], mask=lengths == 0))


def _province(country: pa.Array, region: pa.Array) -> pa.Array:
    """ "US-NY": a region with its country before it, as ISO 3166-2 writes it, or the country alone."""
    country, region = (blank_to_null(one_array(x).cast(pa.string())) for x in (country, region))
    start = pc.binary_join_element_wise(country, "", "-")
    whole = pc.equal(pc.utf8_slice_codeunits(region, 0, 3), start).fill_null(False)  # it names its country itself
    return pc.coalesce(pc.if_else(whole, region, pc.binary_join_element_wise(country, region, "-")), region, country)
