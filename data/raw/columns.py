"""The columns of the schema: names, types, bounds. ``schema`` reads files with them."""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from .hours import EXPECTED, HOURS, OPENING_HOURS

Kind = Literal["id", "text", "path", "number", "label", "time", "hours"]
MOST_OFFSET = 18 * 60  # minutes; zones reach from -12 to +14 hours
YEAR_2200 = 7_258_118_400  # 2200-01-01 UTC in unix seconds


class DataError(ValueError):
    """Input that breaks the schema; the message names file, row, column, what was got and what to do."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the schema.

    Attributes:
        kind: which source types are taken: ``id`` (integer or string), ``text``, ``path`` (list of text, coarse
            to fine; plain text is a path of one level), ``number``, ``label`` (0 or 1), ``time``, ``hours``
            (opening hours, see ``hours``).
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


def key_column(name: str) -> Column:
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


def text_column(name: str, required: bool = False) -> Column:
    return Column(name=name, kind="text", type=pa.string(), required=required, expected="text")


ITEMS: tuple[Column, ...] = (
    key_column("item_id"),
    text_column("name", required=True),
    Column(
        name="category",
        kind="path",
        type=pa.list_(pa.string()),
        required=True,
        expected="a list of category names from coarse to fine, none of them empty",
    ),
    text_column("brand"),
    Column(name="price", kind="number", type=pa.float32(), low=0, high=1e12, expected="a price in [0, 1e12]"),
    _degrees("lat", 90, required=True),
    _degrees("lon", 180, required=True),
    text_column("province"),
    text_column("city"),
    text_column("district"),
    Column(name=OPENING_HOURS, kind="hours", type=HOURS, expected=EXPECTED),
    text_column("description"),
    text_column("image"),
)
INTERACTIONS: tuple[Column, ...] = (
    key_column("user_id"),
    key_column("item_id"),
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
    Column(
        name="utc_offset",
        kind="number",
        type=pa.float32(),
        low=-MOST_OFFSET,
        high=MOST_OFFSET,
        expected=f"minutes east of UTC in [-{MOST_OFFSET:,}, {MOST_OFFSET:,}]",
    ),
)
