"""The schema of items, interactions and users, and the checks that every row passes before it is used.

A raw folder holds

    items.parquet          item_id, name, category, brand?, price?, lat, lon, province?, city?, district?,
                           description?, image?
    interactions.parquet   user_id, item_id, timestamp, label, user_lat?, user_lon?, request_id?, probability?
                           (or a folder ``interactions/`` of Parquet files, read in the order of their names)
    users.parquet?         user_id and any categorical columns

``?`` columns may be missing or null; ``name`` and ``category`` must be there and may be null. Ids are integers
or strings. Columns that are not listed are ignored. ``read_items``, ``iter_interactions`` and ``read_users``
return the listed columns in this order and in the types of ``ITEMS`` and ``INTERACTIONS``, whatever Arrow type
the file chose. Rows that break a rule raise ``DataError``, or are set aside by ``BadRows("skip", folder)``.
"""

import difflib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

OnBadRows = Literal["error", "skip"]
Kind = Literal["id", "text", "path", "number", "label", "time"]
YEAR_2200 = 7_258_118_400  # 2200-01-01 UTC in unix seconds


class DataError(ValueError):
    """Input that breaks the schema; the message names file, row, column, what was got and what to do."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the schema.

    Attributes:
        kind: which source types are taken: ``id`` (integer or string), ``text``, ``path`` (list of text, coarse
            to fine; plain text is a path of one level), ``number``, ``label`` (0 or 1), ``time``.
        type: Arrow type after reading; ids keep their family (int64 or string).
        required: the column must be in the file.
        nullable: a row may have no value.
        low, high: inclusive bounds of numbers and times.
        expected: the bounds in words, for the error message.
    """

    name: str
    kind: Kind
    type: pa.DataType
    required: bool = False
    nullable: bool = True
    low: float | None = None
    high: float | None = None
    expected: str = ""


def _key(name: str) -> Column:
    return Column(name=name, kind="id", type=pa.int64(), required=True, nullable=False, expected="an id")


def _degrees(name: str, bound: int, required: bool) -> Column:
    word = "latitude" if bound == 90 else "longitude"
    return Column(
        name=name,
        kind="number",
        type=pa.float64(),
        required=required,
        nullable=not required,
        low=-bound,
        high=bound,
        expected=f"a {word} in [-{bound}, {bound}] degrees",
    )


def _text(name: str, required: bool = False) -> Column:
    return Column(name=name, kind="text", type=pa.string(), required=required, expected="text")


ITEMS: tuple[Column, ...] = (
    _key("item_id"),
    _text("name", required=True),
    Column(
        name="category",
        kind="path",
        type=pa.list_(pa.string()),
        required=True,
        expected="a list of category names from coarse to fine, none of them empty",
    ),
    _text("brand"),
    Column(name="price", kind="number", type=pa.float32(), low=0, expected="a price of 0 or more"),
    _degrees("lat", 90, required=True),
    _degrees("lon", 180, required=True),
    _text("province"),
    _text("city"),
    _text("district"),
    _text("description"),
    _text("image"),
)
INTERACTIONS: tuple[Column, ...] = (
    _key("user_id"),
    _key("item_id"),
    Column(
        name="timestamp",
        kind="time",
        type=pa.int64(),
        required=True,
        nullable=False,
        low=0,
        high=YEAR_2200,
        expected="a time between 1970 and 2200 (integers are UTC seconds since 1970; divide milliseconds by 1,000)",
    ),
    Column(name="label", kind="label", type=pa.int8(), required=True, nullable=False, expected="0 or 1"),
    _degrees("user_lat", 90, required=False),
    _degrees("user_lon", 180, required=False),
    Column(name="request_id", kind="id", type=pa.int64(), expected="an id"),
    Column(name="probability", kind="number", type=pa.float32(), low=0, high=1, expected="a probability in [0, 1]"),
)


class BadRows:
    """What happens to rows that break the schema: the first one raises, or all are set aside and counted.

    Args:
        policy: ``"error"`` or ``"skip"``.
        folder: where ``skip`` writes ``<file>.parquet`` for each file with bad rows: columns ``row`` (0-based in
            that file), ``column``, ``reason``, then the row as it was.

    Use it as a context manager (or call ``close``) so that the files are finished. ``counts`` maps
    (file, column, reason without the value) to a number of rows.
    """

    def __init__(self, policy: OnBadRows = "error", folder: Path | None = None) -> None:
        if policy not in ("error", "skip"):
            raise ValueError(f"on_bad_rows: got {policy!r}, expected 'error' or 'skip'")
        if policy == "skip" and folder is None:
            raise ValueError("on_bad_rows 'skip' needs a folder for the rows that are set aside; got None")
        self.policy = policy
        self.folder = folder
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self._writers: dict[str, pq.ParquetWriter] = {}

    def __enter__(self) -> "BadRows":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    @property
    def total(self) -> int:
        """Rows set aside so far."""
        return sum(self.counts.values())

    def summary(self) -> list[dict[str, str | int]]:
        """JSON-ready counts: one entry per file, column and reason, in the order of first appearance."""
        return [{"file": f, "column": c, "reason": r, "rows": n} for (f, c, r), n in self.counts.items()]

    def write(self, source: Path, name: str, faults: pa.Table, expected: Sequence[tuple[str, str]]) -> None:
        """Set ``faults`` (row, column, reason, the original columns) aside in ``name``.parquet and count them."""
        assert self.folder is not None
        self.counts.update((source.name, column, reason) for column, reason in expected)
        if name not in self._writers:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._writers[name] = pq.ParquetWriter(self.folder / f"{name}.parquet", faults.schema)
        self._writers[name].write_table(faults)


# --- types -----------------------------------------------------------------------------------------------------


def _is_text(t: pa.DataType) -> bool:
    if pa.types.is_dictionary(t):
        t = t.value_type
    return pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t)


def _is_path(t: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_list(t) for is_list in lists) and (_is_text(t.value_type) or pa.types.is_null(t.value_type))


def _is_number(t: pa.DataType) -> bool:
    return pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_decimal(t)


_KINDS: dict[Kind, tuple[str, Any]] = {
    "id": ("integer or string", lambda t: pa.types.is_integer(t) or _is_text(t)),
    "text": ("string", _is_text),
    "path": ("list of string, or string", lambda t: _is_path(t) or _is_text(t)),
    "number": ("floating point or integer", _is_number),
    "label": ("integer or boolean", lambda t: _is_number(t) or pa.types.is_boolean(t)),
    "time": (
        "timestamp, date, or integer seconds since 1970",
        lambda t: pa.types.is_timestamp(t) or pa.types.is_date(t) or pa.types.is_integer(t),
    ),
}


def _check_type(file: Path, column: Column, got: pa.DataType) -> None:
    expected, accepts = _KINDS[column.kind]
    if accepts(got) or (pa.types.is_null(got) and column.nullable):
        return
    hint = f"cast the column to {expected.split(',')[0]}"
    if column.kind == "id" and pa.types.is_floating(got):
        hint += " (pandas turns integers with missing values into floats; use its Int64 type, or strings)"
    raise DataError(f"{file}: column '{column.name}': got type {got}, expected {expected}; {hint}")


def _is_listed(array: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text as paths of one level; null stays null."""
    chunks = []
    for chunk in array.chunks:
        valid = chunk.is_valid()
        offsets = np.zeros(len(chunk) + 1, np.int32)
        np.cumsum(valid.to_numpy(zero_copy_only=False), out=offsets[1:])
        chunks.append(pa.ListArray.from_arrays(pa.array(offsets), chunk.drop_null(), mask=pc.invert(valid)))
    return pa.chunked_array(chunks, pa.list_(pa.string()))


def _cast(array: pa.ChunkedArray, column: Column) -> pa.ChunkedArray:
    """The column in its normal type; numbers, labels and times stay wide, so that the checks see every value."""
    t = array.type
    if column.kind == "id":
        return array.cast(pa.int64() if pa.types.is_integer(t) or pa.types.is_null(t) else pa.string())
    if column.kind == "path":
        if pa.types.is_null(t):
            return array.cast(column.type)
        if _is_text(t):
            return _is_listed(array.cast(pa.string()))
        return array.cast(column.type)
    if column.kind == "time":
        if pa.types.is_timestamp(t):
            array = array.cast(pa.timestamp("s", t.tz), safe=False)
        elif pa.types.is_date(t):
            array = array.cast(pa.timestamp("s"), safe=False)
        return array.cast(pa.int64())
    if column.kind in ("number", "label"):
        return array.cast(pa.int8()).cast(pa.float64()) if pa.types.is_boolean(t) else array.cast(pa.float64())
    return array.cast(pa.string())


# --- rows ------------------------------------------------------------------------------------------------------


def _mask(array: pa.ChunkedArray) -> np.ndarray:
    return array.fill_null(False).to_numpy() if array.null_count else array.to_numpy()


def _broken(array: pa.ChunkedArray, column: Column) -> np.ndarray | None:
    """Rows of a cast column that have a value which breaks its rule (bool [n]); None where none can."""
    if column.kind == "path":
        found = []
        for chunk in array.chunks:
            bad = np.zeros(len(chunk), bool)
            levels = chunk.flatten()
            empty = pc.or_kleene(levels.is_null(), pc.equal(levels, "")).fill_null(False)
            bad[pc.list_parent_indices(chunk).filter(empty).to_numpy()] = True
            found.append(bad)
        return np.concatenate(found) if found else None
    if column.kind == "label":
        return ~_mask(pc.is_in(array, value_set=pa.array([0.0, 1.0]))) & _mask(array.is_valid())
    if column.kind in ("number", "time"):
        bad = np.zeros(len(array), bool)
        if column.kind == "number":
            bad |= _mask(pc.invert(pc.is_finite(array)))
        if column.low is not None:
            bad |= _mask(pc.less(array, column.low))
        if column.high is not None:
            bad |= _mask(pc.greater(array, column.high))
        return bad
    return None


class _Block:
    """Rows of one file in normal form, with the first fault of each row."""

    def __init__(self, file: Path, raw: pa.Table, first_row: int, columns: Sequence[Column]) -> None:
        self.file, self.raw, self.first_row = file, raw, first_row
        self.fault = np.zeros(raw.num_rows, np.int32)  # 1 + index into faults; 0 = good
        self.faults: list[tuple[str, str]] = []  # column, expected
        self.columns: dict[str, pa.ChunkedArray] = {}
        for column in columns:
            if column.name not in raw.column_names:
                self.columns[column.name] = pa.chunked_array([pa.nulls(raw.num_rows, column.type)])
                continue
            try:
                array = _cast(raw[column.name], column)
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"{file}: column '{column.name}': got type {raw[column.name].type}, expected values that fit "
                    f"{column.type} ({error}); write large ids as strings"
                ) from error
            if not column.nullable and array.null_count:
                self.mark(column.name, f"{column.expected}, not null", _mask(array.is_null()))
            broken = _broken(array, column)
            if broken is not None:
                self.mark(column.name, column.expected, broken)
            if column.kind == "path":
                array = pc.if_else(pc.equal(pc.list_value_length(array), 0), pa.scalar(None, column.type), array)
            self.columns[column.name] = array

    def mark(self, column: str, expected: str, bad: np.ndarray) -> None:
        if bad.any():
            self.faults.append((column, expected))
            self.fault[bad & (self.fault == 0)] = len(self.faults)

    def _got(self, row: int, column: str) -> str:
        return repr(self.raw[column][row].as_py())

    def finish(self, columns: Sequence[Column], bad_rows: BadRows, name: str) -> pa.Table:
        """The good rows in their final types; bad ones raise or are set aside."""
        bad = np.flatnonzero(self.fault)
        if len(bad) and bad_rows.policy == "error":
            row = int(bad[0])
            column, expected = self.faults[self.fault[row] - 1]
            more = f" ({len(bad):,} rows of this block are bad)" if len(bad) > 1 else ""
            raise DataError(
                f"{self.file}: row {self.first_row + row}, column '{column}': got {self._got(row, column)}, expected "
                f"{expected}; correct the row, or set bad rows aside with --on-bad-rows skip{more}"
            )
        good = pa.table(self.columns)
        if len(bad):
            which = [self.faults[i - 1] for i in self.fault[bad].tolist()]
            aside = self.raw.take(pa.array(bad))
            for position, (label, values) in enumerate(
                [
                    ("row", pa.array(bad + self.first_row, pa.int64())),
                    ("column", pa.array([c for c, _ in which], pa.string())),
                    ("reason", pa.array([f"expected {e}" for _, e in which], pa.string())),
                ]
            ):
                aside = aside.add_column(position, label, values)
            bad_rows.write(self.file, name, aside, which)
            good = good.filter(pa.array(self.fault == 0))
        for position, column in enumerate(columns):
            if column.kind in ("number", "label"):
                good = good.set_column(position, column.name, good[column.name].cast(column.type, safe=False))
        return good


# --- files -----------------------------------------------------------------------------------------------------


def open_parquet(file: Path) -> pq.ParquetFile:
    """A Parquet file that can be read, or an error that says what is wrong with it."""
    if not file.is_file():
        beside = sorted(p.name for p in file.parent.iterdir())[:20] if file.parent.is_dir() else []
        raise FileNotFoundError(f"{file} not found; expected a Parquet file; {file.parent} holds {beside or 'nothing'}")
    if file.stat().st_size == 0:
        raise DataError(f"{file}: the file is empty (0 bytes), expected Parquet; write it again")
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(_unreadable(file, error)) from error


def _unreadable(file: Path, error: Exception) -> str:
    return (
        f"{file}: not a whole Parquet file ({file.stat().st_size:,} bytes; Arrow says: {error}); "
        "it is truncated or of another format; write or copy it again"
    )


def interaction_files(path: Path) -> list[Path]:
    """Parquet files of interactions: ``path`` itself, or those in the folder ``path``, or those of a raw folder."""
    if path.is_dir():
        single, parts = path / "interactions.parquet", path / "interactions"
        if single.is_file() and parts.is_dir():
            raise DataError(f"{path}: got both {single.name} and {parts.name}/, expected one of them; remove the other")
        if single.is_file() or parts.is_dir():
            return interaction_files(single if single.is_file() else parts)
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise FileNotFoundError(
                f"{path}: no interactions found; expected interactions.parquet or interactions/*.parquet"
            )
        return files
    return [path]


def _check_columns(file: Path, schema: pa.Schema, columns: Sequence[Column]) -> None:
    """Required columns are there, types fit, and misspelt optional columns are told."""
    found, known = schema.names, [c.name for c in columns]
    for column in columns:
        if column.name in found:
            _check_type(file, column, schema.field(column.name).type)
            continue
        near = difflib.get_close_matches(column.name, [f for f in found if f not in known], 1, cutoff=0.75)
        if column.required:
            hint = (
                f"did you mean '{near[0]}'? Rename it to '{column.name}'" if near else f"add a column '{column.name}'"
            )
            raise DataError(f"{file}: column '{column.name}' is missing; found {found}; {hint}")
        if near:
            warnings.warn(f"{file}: column '{near[0]}' is ignored; did you mean '{column.name}'?", stacklevel=4)


def _read_whole(file: Path, columns: Sequence[Column], bad_rows: BadRows) -> tuple[_Block, pq.ParquetFile]:
    source = open_parquet(file)
    _check_columns(file, source.schema_arrow, columns)
    if source.metadata.num_rows == 0:
        raise DataError(f"{file}: the file has no rows, expected at least one; check the step that wrote it")
    wanted = None if bad_rows.policy == "skip" else [c.name for c in columns if c.name in source.schema_arrow.names]
    try:
        return _Block(file, source.read(columns=wanted), 0, columns), source
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(_unreadable(file, error)) from error


def _mark_duplicates(block: _Block, key: str) -> None:
    """Of rows with the same id, all good ones after the first are bad."""
    good = np.flatnonzero(block.fault == 0)
    ids = block.columns[key].take(pa.array(good)).combine_chunks()
    if isinstance(ids, pa.ChunkedArray):
        ids = pa.concat_arrays(ids.chunks) if ids.num_chunks else pa.array([], ids.type)
    codes = ids.dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    if len(first) < len(good):
        bad = np.zeros(len(block.fault), bool)
        bad[good] = True
        bad[good[first]] = False
        row = int(np.flatnonzero(bad)[0])
        earlier = int(good[first[codes[np.searchsorted(good, row)]]])
        where = f" (row {earlier} has it too)" if bad.sum() == 1 else f" (row {earlier} has the first duplicate too)"
        block.mark(key, f"a {key} that no earlier row has" + where, bad)


def _not_all_bad(file: Path, rows: int) -> None:
    if rows == 0:
        raise DataError(
            f"{file}: no row is left, every one was set aside as bad; see the rejected files for the reasons"
        )


def read_items(path: Path, bad_rows: BadRows | None = None) -> pa.Table:
    """The items of a raw folder (or of one Parquet file), whole and in normal form.

    Returns:
        The columns of ``ITEMS``, in that order; ``item_id`` is int64 or string, unique and not null.

    Raises:
        DataError, FileNotFoundError: see the module.
    """
    bad_rows = bad_rows or BadRows()
    file = path / "items.parquet" if path.is_dir() else path
    block, _ = _read_whole(file, ITEMS, bad_rows)
    _mark_duplicates(block, "item_id")
    table = block.finish(ITEMS, bad_rows, file.stem)
    _not_all_bad(file, table.num_rows)
    return table


def read_users(path: Path, bad_rows: BadRows | None = None) -> pa.Table | None:
    """The users of a raw folder (or of one Parquet file); None where the folder has no users.parquet.

    Returns:
        ``user_id`` (int64 or string, unique), then every other column of the file as string, nulls kept.

    Raises:
        DataError: also for a column that is not categorical (string, integer or boolean).
    """
    bad_rows = bad_rows or BadRows()
    file = path / "users.parquet" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        return None
    columns = [_key("user_id")]
    block, source = _read_whole(file, columns, BadRows("skip", Path()))  # every column is a feature: read all
    for field in source.schema_arrow:
        if field.name == "user_id":
            continue
        if not (_is_text(field.type) or pa.types.is_integer(field.type) or pa.types.is_boolean(field.type)):
            raise DataError(
                f"{file}: column '{field.name}': got type {field.type}, expected a categorical one (string, integer or "
                "boolean); put numbers in buckets, or drop the column"
            )
        columns.append(_text(field.name))
        array = block.raw[field.name]
        if pa.types.is_dictionary(field.type):
            array = array.cast(field.type.value_type)
        block.columns[field.name] = array.cast(pa.string())
    _mark_duplicates(block, "user_id")
    table = block.finish(columns, bad_rows, file.stem)
    _not_all_bad(file, table.num_rows)
    return table


def has_column(path: Path, name: str) -> bool:
    """Whether the interactions of a raw folder have the column ``name`` (in their first file)."""
    return name in open_parquet(interaction_files(path)[0]).schema_arrow.names


def iter_interactions(
    path: Path, item_ids: pa.ChunkedArray | pa.Array, bad_rows: BadRows | None = None, block_rows: int | None = None
) -> Iterator[pa.Table]:
    """Stream the interactions of a raw folder (or file, or folder of files) in normal form.

    Args:
        path: the raw folder, one Parquet file, or a folder of them (read in the order of their names).
        item_ids: the ids of ``read_items``; other ids are bad rows.
        bad_rows: what to do with bad rows; default: raise.
        block_rows: rows held at once; default: four times the items, between 65,536 and 1,048,576, because each
            block hashes the item ids once.

    Yields:
        Tables with the columns of ``INTERACTIONS`` in that order (timestamp int64 unix seconds UTC, label int8,
        places float64, probability float32; missing ones null), then ``item_index`` int32, the row in ``item_ids``.
    """
    bad_rows = bad_rows or BadRows()
    item_ids = pa.chunked_array([item_ids]) if isinstance(item_ids, pa.Array) else item_ids
    rows = block_rows or min(max(4 * len(item_ids), 65_536), 1 << 20)
    files = interaction_files(path)
    total = good = 0
    types: dict[str, pa.DataType] = {"item_id": item_ids.type}
    for file in files:
        source = open_parquet(file)
        _check_columns(file, source.schema_arrow, INTERACTIONS)
        _check_families(file, source.schema_arrow, types)
        wanted = (
            None if bad_rows.policy == "skip" else [c.name for c in INTERACTIONS if c.name in source.schema_arrow.names]
        )
        name = file.stem if len(files) == 1 else f"interactions-{file.stem}"
        first_row = 0
        batches = source.iter_batches(batch_size=rows, columns=wanted)
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(_unreadable(file, error)) from error
            if batch is None:
                break
            block = _Block(file, pa.Table.from_batches([batch]), first_row, INTERACTIONS)
            first_row += batch.num_rows
            index = pc.index_in(block.columns["item_id"], value_set=item_ids)
            unknown = _mask(index.is_null()) & _mask(block.columns["item_id"].is_valid())
            block.mark("item_id", "an item_id that is in the items table", unknown)
            _mark_half_places(block)
            block.columns["item_index"] = index
            table = block.finish(INTERACTIONS, bad_rows, name)
            total += batch.num_rows
            good += table.num_rows
            if table.num_rows:
                yield table
    if total == 0:
        raise DataError(f"{path}: the interactions have no rows, expected at least one; check the step that wrote them")
    _not_all_bad(path, good)


def _check_families(file: Path, schema: pa.Schema, types: dict[str, pa.DataType]) -> None:
    """Ids are integers everywhere or strings everywhere: item ids as in the items, others as in the first file."""
    for name in ("item_id", "user_id", "request_id"):
        if name not in schema.names:
            continue
        got = pa.int64() if pa.types.is_integer(schema.field(name).type) else pa.string()
        expected = types.setdefault(name, got)
        if got != expected and not pa.types.is_null(schema.field(name).type):
            other = "the items table" if name == "item_id" else "the first file"
            raise DataError(
                f"{file}: column '{name}': got type {schema.field(name).type}, expected {expected} as in {other}; "
                "cast one of them"
            )


def _mark_half_places(block: _Block) -> None:
    """A place has a latitude and a longitude, or neither."""
    lat, lon = _mask(block.columns["user_lat"].is_valid()), _mask(block.columns["user_lon"].is_valid())
    for name, other, bad in (("user_lat", "user_lon", ~lat & lon), ("user_lon", "user_lat", lat & ~lon)):
        if bad.any() and name not in block.raw.column_names:
            raise DataError(f"{block.file}: column '{name}' is missing, but '{other}' is there; add it, or drop both")
        block.mark(name, f"a value, because the row has a {other}", bad)
