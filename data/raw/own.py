"""A team's own columns: those that the schema doesn't name. Their kind follows from their type, or is declared.

A **declaration** is a TOML file, ``features.toml``, with a table a column, of which every setting may be left out:

    [items.cuisines]             # or [users.COLUMN], [interactions.COLUMN]
    kind = "list"                # category, buckets, number, list
    joins = "history"            # history (target and history), target; of interactions request, candidate
    table = "cuisine"            # columns of one table share its rows
    width = 8                    # columns of the table
    rows = 1000                  # a category is hashed into so many rows; numbers are cut into so many buckets
    use = false                  # leave it out

Without one, text, booleans and small or named-like-an-id integers are categories, other numbers are cut into buckets,
lists are lists, and dates are numbers: days since 1970 of items and users, hours from the row's own time of
interactions.
"""

import difflib
import re
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..plain import fault
from ..requests import OWN
from ..urls import fetched
from .checks import blank_to_null, is_text
from .columns import INTERACTIONS, ITEMS, DataError
from .parts import Part, open_parquet, parts, table_files

Of = Literal["items", "users", "interactions"]
Kind = Literal["category", "buckets", "number", "list"]
Joins = Literal["history", "target", "user", "request", "candidate"]

FILE = "features.toml"
KNOWN: dict[str, tuple[str, ...]] = {
    "items": tuple(c.name for c in ITEMS),
    "users": ("user_id",),
    "interactions": tuple(c.name for c in INTERACTIONS),
}
_JOINS: dict[str, tuple[Joins, ...]] = {
    "items": ("target", "history"),
    "users": ("user",),
    "interactions": ("request", "candidate"),
}
_FEW = 32  # integers within such a range are categories
_LIKE_ID = re.compile(r"(^|_)(id|ids|code|zip|type|kind|class|level|group|no)$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What a declaration says of a column; see the module."""

    kind: Kind | None = None
    joins: Joins | None = None
    table: str | None = None
    width: int | None = None
    rows: int | None = None
    use: bool = True


Declaration = dict[str, dict[str, Declared]]
"""By table, by column."""


@dataclass(frozen=True, kw_only=True)
class OwnColumn:
    """A column that becomes a feature.

    Attributes:
        of: its table.
        column: its name there.
        kind: what it is taken for.
        why: its type, or that it was declared, in words.
        declared: what was said of it.
    """

    of: Of
    column: str
    kind: Kind
    why: str
    declared: Declared = Declared()

    @property
    def key(self) -> str:
        """Its name beside the schema's columns."""
        return OWN + self.column


def read_declaration(file: Path | None, folder: Path) -> Declaration:
    """A declaration; without a file that of the raw folder, if it has one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no TOML, or says something that can't be; names table and column.
    """
    if file is None:
        if not folder.is_dir() or not (folder / FILE).is_file():
            return {}
        file = folder / FILE
    try:
        plain = tomllib.loads(fetched(file).read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is no TOML: {error}") from None
    hints: dict[str, Any] = {"kind": Kind, "joins": Joins, "table": str, "width": int, "rows": int, "use": bool}
    found: Declaration = {}
    for of, columns in plain.items():
        if of not in KNOWN or not isinstance(columns, dict):
            raise ValueError(f"{file}: got [{of}], expected tables such as [items.COLUMN], of {', '.join(KNOWN)}")
        for column, settings in columns.items():
            where = f"{file}: [{of}.{column}]"
            if not isinstance(settings, dict):
                raise ValueError(f'{where}: got {settings!r}, expected settings such as kind = "category"')
            if column in KNOWN[of]:
                raise ValueError(f"{where}: the schema gives this column its meaning; leave it out of the file")
            for name, value in settings.items():
                if name not in hints:
                    near = difflib.get_close_matches(name, hints, 1)
                    raise ValueError(
                        f"{where}: unknown setting {name!r}, expected some of {', '.join(hints)}"
                        + (f"; did you mean {near[0]!r}?" if near else "")
                    )
                if wrong := fault(value, hints[name], name):
                    raise ValueError(f"{where}: {wrong}")
            declared = Declared(**settings)
            _check(declared, of, where)
            found.setdefault(of, {})[column] = declared
    return found


def _check(d: Declared, of: str, where: str) -> None:
    if d.joins is not None and d.joins not in _JOINS[of]:
        raise ValueError(f"{where}: joins = {d.joins!r}, expected of {of} one of {', '.join(_JOINS[of])}")
    if d.width is not None and (d.width < 4 or d.width % 4 or d.width > 4096):
        raise ValueError(f"{where}: width = {d.width}, expected a multiple of 4 up to 4,096, which fbgemm needs")
    if d.rows is not None and not 2 <= d.rows <= 1 << 30:
        raise ValueError(f"{where}: rows = {d.rows}, expected 2 to {1 << 30:,}")
    if d.width is not None and d.joins == "history":
        raise ValueError(f"{where}: what joins histories is as wide as features.embedding_dim says; leave width out")
    if d.kind == "number" and (d.table or d.width or d.rows or d.joins == "history"):
        raise ValueError(
            f'{where}: a number has no table, and so no rows, width or place in histories; let its kind be "buckets"'
        )
    if d.kind == "list" and (d.joins == "history" or of == "interactions"):
        raise ValueError(
            f'{where}: a list joins the target, or is of users; let its kind be "category", or leave it out'
        )


def own_columns(
    path: Path, declaration: Declaration, outcomes: Collection[str] = (), said_by: str = FILE
) -> tuple[list[OwnColumn], dict[str, dict[str, str]]]:
    """What the columns of a raw folder that the schema doesn't name are taken for, from their files' footers.

    Args:
        path: the raw folder.
        declaration: what the user says of them.
        outcomes: columns of interactions that came of the choice, so that none is a feature.
        said_by: where, for messages.

    Returns:
        The columns that become features, in the order of the tables; and by table and column, why others don't.

    Raises:
        DataError: a declared column that is not there, or whose type does not fit its kind.
    """
    found: list[OwnColumn] = []
    left: dict[str, dict[str, str]] = {}
    for name in declaration.get("interactions", {}):
        if name in outcomes:
            raise DataError(f"{FILE}: [interactions.{name}]: it is a label, amount or weight; leave it out of the file")
    for of in get_args(Of):
        declared = declaration.get(of, {})
        every = [p for p in parts(path, of) if p.rows] if table_files(path, of) else []
        types: dict[str, pa.DataType] = {}
        for part in every:
            for field in part.schema:
                if field.name in KNOWN[of] or (of == "interactions" and field.name in outcomes):
                    continue
                if field.name not in part.stored and of == "interactions":  # a day, mostly
                    left.setdefault(of, {})[field.name] = "the name of a folder"
                elif field.name not in types or pa.types.is_null(types[field.name]):
                    types[field.name] = field.type
        for name in declared:
            if name not in types:
                near = difflib.get_close_matches(name, types, 1)
                raise DataError(
                    f"{said_by}: [{of}.{name}]: there is no such column in {of}; "
                    + (f"did you mean '{near[0]}'?" if near else f"its own columns are {', '.join(types) or 'none'}")
                )
        for name, type_ in types.items():
            says = declared.get(name, Declared())
            if not says.use:
                left.setdefault(of, {})[name] = "left out as declared"
                continue
            kind, why = says.kind or _kind(of, name, type_, every), "declared" if says.kind else str(type_)
            if kind is None:
                left.setdefault(of, {})[name] = f"{type_}, which makes no feature"
                continue
            if not pa.types.is_null(type_) and not _fits(kind, type_):
                raise DataError(
                    f"{said_by}: [{of}.{name}]: kind = {kind!r} does not fit its type {type_}; expected "
                    f"{', '.join(k for k in get_args(Kind) if _fits(k, type_)) or 'use = false'}"
                )
            if of == "interactions" and kind == "list":
                left.setdefault(of, {})[name] = "a list of interactions makes no feature"
                continue
            found.append(OwnColumn(of=of, column=name, kind=kind, why=why, declared=says))
    return found, left


def _is_list(t: pa.DataType) -> bool:
    return pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t)


def _is_time(t: pa.DataType) -> bool:
    return pa.types.is_timestamp(t) or pa.types.is_date(t)


def _is_number(t: pa.DataType) -> bool:
    return pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_decimal(t)


def _is_category(t: pa.DataType) -> bool:
    return is_text(t) or pa.types.is_integer(t) or pa.types.is_boolean(t)


def _fits(kind: str, t: pa.DataType) -> bool:
    if kind == "category":
        return _is_category(t)
    if kind == "list":
        return _is_list(t) and _is_category(t.value_type)
    return _is_number(t) or _is_time(t) or pa.types.is_boolean(t)


def _kind(of: str, name: str, t: pa.DataType, every: Sequence[Part]) -> Kind | None:
    if is_text(t) or pa.types.is_boolean(t):
        return "category"
    if pa.types.is_integer(t):
        return "category" if _LIKE_ID.search(name) or _range(name, every) < _FEW else "buckets"
    if _is_number(t) or _is_time(t):
        return "buckets"
    return "list" if _fits("list", t) else None


def _range(name: str, every: Sequence[Part]) -> float:
    """Largest less smallest value of a column of integers, as the footers tell it; infinite where they don't."""
    low, high = np.inf, -np.inf
    for part in every:
        if name not in part.stored:
            continue
        with open_parquet(part.file) as source:
            for i in range(source.metadata.num_row_groups):
                group = source.metadata.row_group(i)
                of = {group.column(c).path_in_schema: c for c in range(group.num_columns)}.get(name)
                stats = None if of is None else group.column(of).statistics
                if stats is None or (not stats.has_min_max and stats.null_count != group.num_rows):
                    return np.inf
                if stats.has_min_max:
                    low, high = min(low, stats.min), max(high, stats.max)
                if high - low >= _FEW:
                    return high - low
    return high - low


def check_fits(file: Path, column: OwnColumn, type_: pa.DataType) -> None:
    """Raises DataError where a part of a table has the column in a type that its kind can't be."""
    if not pa.types.is_null(type_) and not _fits(column.kind, type_):
        raise DataError(
            f"{file}: column '{column.column}': got type {type_}, expected one that fits {column.kind!r}, as in the "
            f"table's other files; write all parts alike, or name its kind in {FILE}"
        )


def normal(column: OwnColumn, values: pa.ChunkedArray, time: pa.ChunkedArray | None = None) -> pa.ChunkedArray:
    """A column as it is worked with: text, float64 (null where it is no number), or lists of text.

    Args:
        column: what it is taken for.
        values: as the file has them.
        time: unix seconds of the rows, for a date of interactions.
    """
    t = values.type
    if pa.types.is_null(t):
        return pa.chunked_array([pa.nulls(len(values), normal_type(column))])
    if column.kind == "category":
        return blank_to_null(_text(values))
    if column.kind == "list":
        lists = [_lists(chunk) for chunk in values.chunks]
        return pa.chunked_array(lists, pa.list_(pa.string()))
    if _is_time(t):
        seconds = values.cast(pa.timestamp("s", getattr(t, "tz", None)), safe=False).cast(pa.int64()).cast(pa.float64())
        if time is None:
            numbers = pc.divide(seconds, 86_400.0)
        else:
            numbers = pc.divide(pc.subtract(seconds, time.cast(pa.float64())), 3600.0)
    else:
        values = values.cast(pa.int8()) if pa.types.is_boolean(t) else values
        numbers = values.cast(pa.float64(), safe=False)
    finite = pc.is_finite(numbers)
    return numbers if pc.all(finite).as_py() else pc.if_else(finite, numbers, pa.scalar(None, pa.float64()))


def normal_type(column: OwnColumn) -> pa.DataType:
    """Of what ``normal`` returns."""
    return {"category": pa.string(), "list": pa.list_(pa.string())}.get(column.kind, pa.float64())


def _text(values: Any) -> Any:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return values.cast(pa.string())


def _lists(chunk: pa.Array) -> pa.Array:
    """Lists of text without nulls and blanks in them; a null list is empty."""
    chunk = chunk.cast(pa.list_(chunk.type.value_type))
    lengths = pc.list_value_length(chunk).fill_null(0).to_numpy(zero_copy_only=False)
    words = pc.utf8_trim_whitespace(_text(chunk.flatten()))
    keep = pc.and_(words.is_valid(), pc.not_equal(words, "")).fill_null(False).to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(len(chunk)), lengths)[keep]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(chunk)))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), words.filter(pa.array(keep)))
