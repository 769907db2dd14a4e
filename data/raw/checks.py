"""Arrow tables in the types of the schema, and the rows that break its rules. ``schema`` applies it to files."""

from collections import Counter
from collections.abc import Collection, Sequence
from functools import reduce
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .columns import Column, DataError, Kind
from .hours import HOURS, is_hours, opening_hours
from .paths import category_paths
from .settings import OnBadRows
from .times import looks_like

_ROWS = 65_536


class BadRows:
    """What happens to rows that break the schema: the first one raises, or all are set aside and counted.

    Args:
        policy: ``"error"`` or ``"skip"``.
        folder: where ``skip`` writes ``<file>.parquet`` for each file with bad rows: columns ``row`` (0-based in that
            file; of a text file the line, from 1), ``column``, ``reason``, then the row as it was.

    Use it as a context manager (or call ``close``) so that the files are finished. ``counts`` maps
    (file, column, reason) to a number of rows.
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

    def close_file(self, name: str) -> None:
        """Finish ``name``.parquet, if there is one: no more rows come for it."""
        if (writer := self._writers.pop(name, None)) is not None:
            writer.close()

    def __getstate__(self) -> dict[str, Any]:
        """What another rank needs: its files are its own."""
        return vars(self) | {"_writers": {}}

    @property
    def total(self) -> int:
        """Rows set aside so far."""
        return sum(self.counts.values())

    def summary(self) -> list[dict[str, str | int]]:
        """JSON-ready counts: one entry per file, column and reason, in the order of first appearance."""
        return [{"file": f, "column": c, "reason": r, "rows": n} for (f, c, r), n in self.counts.items()]

    def write(self, source: Path, name: str, rows: pa.Table) -> None:
        """Set ``rows`` (row, column, reason, the original columns) of ``source`` aside in ``name``.parquet."""
        assert self.folder is not None
        for count in rows.group_by(["column", "reason"]).aggregate([([], "count_all")]).to_pylist():
            self.counts[source.name, count["column"], count["reason"]] += count["count_all"]
        if name not in self._writers:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._writers[name] = pq.ParquetWriter(self.folder / f"{name}.parquet", rows.schema)
        self._writers[name].write_table(rows)


def merge_rejected(pieces: Sequence[BadRows], folder: Path) -> list[dict[str, str | int]]:
    """Make one of what several set aside of different rows of the same files, in the order of those.

    Args:
        pieces: each with a folder of its own, and closed.
        folder: where the files ``NAME.parquet`` go, in row groups of 65,536 whatever the pieces are.

    Returns:
        The counts of all, as ``BadRows.summary`` gives them.
    """
    whole = BadRows("skip", folder)
    found: dict[str, list[Path]] = {}
    for piece in pieces:
        assert piece.folder is not None
        for file in sorted(piece.folder.glob("*.parquet")):
            found.setdefault(file.name, []).append(file)
        whole.counts.update(piece.counts)
    for name, files in found.items():
        folder.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(folder / name, pq.read_schema(files[0])) as writer:
            waiting: list[pa.Table] = []
            for batch in (b for file in files for b in pq.ParquetFile(file).iter_batches(_ROWS)):
                waiting.append(pa.Table.from_batches([batch]))
                if sum(len(t) for t in waiting) >= _ROWS:
                    table = pa.concat_tables(waiting)
                    writer.write_table(table.slice(0, _ROWS))
                    waiting = [table.slice(_ROWS)]
            if waiting and len(table := pa.concat_tables(waiting)):
                writer.write_table(table)
    return whole.summary()


# --- types -----------------------------------------------------------------------------------------------------


def is_text(t: pa.DataType) -> bool:
    if pa.types.is_dictionary(t):
        t = t.value_type
    return pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t)


def _is_path(t: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_list(t) for is_list in lists) and (is_text(t.value_type) or pa.types.is_null(t.value_type))


def _is_number(t: pa.DataType) -> bool:
    return pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_decimal(t)


_KINDS: dict[Kind, tuple[str, Any]] = {
    "id": ("integer or string", lambda t: pa.types.is_integer(t) or is_text(t)),
    "text": ("string", is_text),
    "path": ("list of string, or string", lambda t: _is_path(t) or is_text(t)),
    "number": ("floating point or integer", _is_number),
    "label": ("integer or boolean", lambda t: _is_number(t) or pa.types.is_boolean(t)),
    "hours": (f"string, or {HOURS}", lambda t: is_text(t) or is_hours(t)),
    "time": (
        "timestamp, date, or integer seconds since 1970",
        lambda t: pa.types.is_timestamp(t) or pa.types.is_date(t) or pa.types.is_integer(t),
    ),
}


def check_type(file: Path, column: Column, got: pa.DataType) -> None:
    expected, accepts = _KINDS[column.kind]
    if accepts(got) or (pa.types.is_null(got) and column.nullable):
        return
    hint = f"cast the column to {expected.split(',')[0]}"
    if column.kind == "id" and pa.types.is_floating(got):
        hint += " (pandas turns integers with missing values into floats; use its Int64 type, or strings)"
    raise DataError(f"{file}: column '{column.name}': got type {got}, expected {expected}; {hint}")


def blank_to_null(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text in which "" and white space alone are null: no name, no chain, nobody."""
    blank = _blank(text)
    return pc.if_else(blank, pa.scalar(None, text.type), text) if pc.any(blank).as_py() else text


def _blank_to_null_in(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """As ``blank_to_null``, of dictionaries of strings: each id is looked at once."""
    if any(pc.any(_blank(chunk.dictionary)).as_py() for chunk in ids.chunks):
        return blank_to_null(ids.cast(pa.string())).dictionary_encode()
    return ids


def _blank(text: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Which texts are "" or white space alone."""
    space = pc.utf8_is_space(text)
    return pc.or_(space, pc.equal(text, "")) if pc.min(pc.binary_length(text)).as_py() == 0 else space


def _cast(array: pa.ChunkedArray, column: Column) -> pa.ChunkedArray:
    """The column in its normal type; numbers, labels and times stay wide, so that the checks see every value."""
    t = array.type
    if column.kind == "id":
        if pa.types.is_integer(t) or pa.types.is_null(t):
            return array.cast(pa.int64())
        return blank_to_null(array.cast(pa.string()))
    if column.kind == "path":
        return category_paths(array)
    if column.kind == "time":
        if pa.types.is_timestamp(t):
            array = array.cast(pa.timestamp("s", t.tz), safe=False)
        elif pa.types.is_date(t):
            array = array.cast(pa.timestamp("s"), safe=False)
        return array.cast(pa.int64())
    if column.kind in ("number", "label"):
        wide = array.cast(pa.int8()) if pa.types.is_boolean(t) else array
        return wide.cast(pa.float64(), safe=False)
    return blank_to_null(array.cast(pa.string()))


# --- rows ------------------------------------------------------------------------------------------------------


def as_mask(array: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Booleans as NumPy, null as False."""
    array = array.fill_null(False) if array.null_count else array
    if isinstance(array, pa.ChunkedArray):
        return array.to_numpy()
    return array.to_numpy(zero_copy_only=False)


def _broken(array: pa.ChunkedArray, column: Column) -> np.ndarray | None:
    """Rows of a cast column that have a value which breaks its rule (bool [n]); None where none can."""
    if column.kind == "path":
        found = []
        for chunk in array.chunks:
            bad = np.zeros(len(chunk), bool)
            levels = chunk.flatten()  # of valid lists only, which list_parent_indices does not leave out
            empty = as_mask(levels.is_null()) | as_mask(pc.equal(levels, ""))
            lengths = pc.list_value_length(chunk).fill_null(0).to_numpy(zero_copy_only=False)
            bad[np.repeat(np.arange(len(chunk)), lengths)[empty]] = True
            found.append(bad)
        return np.concatenate(found) if found else None
    if column.kind == "label":
        bad = pc.and_(pc.invert(pc.is_in(array, value_set=pa.array([0.0, 1.0]))), array.is_valid())
    elif column.kind in ("number", "time"):
        rules = [pc.invert(pc.is_finite(array))] if column.kind == "number" else []
        rules += [] if column.low is None else [pc.less(array, column.low)]
        rules += [] if column.high is None else [pc.greater(array, column.high)]
        if not rules:
            return None
        bad = reduce(pc.or_, rules)
    else:
        return None
    return as_mask(bad) if pc.any(bad).as_py() else None  # of good blocks no bits become bytes


class Block:
    """Rows of one file in normal form, with the first fault of each row.

    Args:
        raw: the rows as they are in the file.
        rows: what each is called in messages: 0-based rows of a Parquet file, or 1-based lines of a text file.
        unit: "row" or "line".
        encoded: ids that are dictionaries of strings and stay so.
        parsed: for text formats, the same columns with their text made numbers, times and lists, null where that
            failed.
    """

    def __init__(
        self,
        file: Path,
        raw: pa.Table,
        rows: np.ndarray,
        columns: Sequence[Column],
        unit: Literal["row", "line"] = "row",
        parsed: pa.Table | None = None,
        encoded: Collection[str] = (),
    ) -> None:
        self.file, self.raw, self.rows, self.unit = file, raw, rows, unit
        self.fault = np.zeros(raw.num_rows, np.int32)  # 1 + index into faults; 0 = good
        self.faults: list[tuple[str, str]] = []  # column, expected
        self.notes: dict[int, str] = {}  # row -> more about what was got there
        self.columns: dict[str, pa.ChunkedArray] = {}
        for column in columns:
            if column.name not in raw.column_names:
                self.columns[column.name] = pa.chunked_array([pa.nulls(raw.num_rows, column.type)])
                continue
            source = raw if parsed is None else parsed
            try:
                if column.kind == "hours":
                    array, unread = opening_hours(source[column.name])
                    self.mark(column.name, column.expected, unread)
                elif column.name in encoded:
                    array = _blank_to_null_in(source[column.name])
                else:
                    array = _cast(source[column.name], column)
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"{file}: column '{column.name}': got type {raw[column.name].type}, expected values that fit "
                    f"{column.type} ({error}); write large ids as strings"
                ) from error
            if parsed is not None and column.kind in ("number", "label", "time"):
                self.mark(column.name, column.expected, as_mask(array.is_null()) & as_mask(raw[column.name].is_valid()))
            if not column.nullable and array.null_count:
                blank = " or blank" if is_text(source[column.name].type) else ""
                self.mark(column.name, f"{column.expected}, not null{blank}", as_mask(array.is_null()))
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

    def finish(self, columns: Sequence[Column], bad_rows: BadRows, name: str) -> pa.Table:
        """The good rows in their final types; bad ones raise or are set aside."""
        bad = np.flatnonzero(self.fault)
        if len(bad) and bad_rows.policy == "error":
            row = int(bad[0])
            column, expected = self.faults[self.fault[row] - 1]
            more = f" ({len(bad):,} rows of this block are bad)" if len(bad) > 1 else ""
            value = self.raw[column][row].as_py()
            got = repr(value) + self.notes.get(row, "")
            raise DataError(
                f"{self.file}: {self.unit} {self.rows[row]}, column '{column}': got {got}, expected {expected}; "
                f"{self._hint(column, row, value)}correct the row, or set bad rows aside with --on-bad-rows skip{more}"
            )
        good = pa.table(self.columns)
        if len(bad):
            aside = self.raw.take(pa.array(bad))
            code = pa.array(self.fault[bad] - 1)
            added = {
                "row": pa.array(self.rows[bad], pa.int64()),
                "column": pa.array([c for c, _ in self.faults]).take(code),
                "reason": pa.array([f"expected {e}" for _, e in self.faults]).take(code),
            }
            for position, (label, values) in enumerate(added.items()):
                aside = aside.add_column(position, label, values)
            bad_rows.write(self.file, name, aside)
            good = good.filter(pa.array(self.fault == 0))
        for position, column in enumerate(columns):
            if column.kind in ("number", "label") or pa.types.is_timestamp(column.type):
                good = good.set_column(position, column.name, good[column.name].cast(column.type, safe=False))
        return good

    def _hint(self, column: str, row: int, value: object) -> str:
        """What a bad value looks like, where that is known."""
        if column == "timestamp" and isinstance(value, int) and (unit := looks_like(value)):
            return f"it looks like {unit}; "
        if column == "user_id" and (value is None or isinstance(value, str)):
            return "is it somebody who is not signed in? "
        other = {"lat": "lon", "user_lat": "user_lon"}.get(column)
        if other is not None and other in self.raw.column_names and 90 < abs(_number(value)) <= 180:
            across = self.raw[other][row].as_py()
            if abs(_number(across)) <= 90:
                return f"{other} is {across}, so the two may be swapped; "
        return ""


def _number(value: Any) -> float:
    """A value of a number's or a text's column as a number; NaN if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
