"""What came of a candidate beside the click: further labels, an amount, and how much a sample counts in training."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from ..requests import OWN
from .columns import Column, DataError
from .parts import parts
from .settings import Outcomes

_MOST = 1e12


def columns_of(outcomes: Outcomes) -> tuple[Column, ...]:
    """As columns of the schema: they must be there, and a row without a value is a bad one."""
    found = [_column(name, "label", pa.int8(), "0 or 1") for name in outcomes.labels]
    for name, what in ((outcomes.amount, "an amount"), (outcomes.weight, "a weight")):
        if name is not None:
            found.append(_column(name, "number", pa.float64(), f"{what} in [0, 1e12]"))
    return tuple(found)


def check_outcomes(outcomes: Outcomes, path: Path) -> None:
    """Raises DataError where the interactions of a raw folder lack a column."""
    there = dict.fromkeys(name for part in parts(path, "interactions") for name in part.schema.names)
    for name in outcomes.names:
        if name not in there:
            near = difflib.get_close_matches(name, there, 1)
            raise DataError(
                f"{path}: the interactions have no column {name!r}, which is named as a label, amount or weight; "
                + (f"did you mean {near[0]!r}?" if near else f"they have {', '.join(there)}")
            )


NO_OUTCOMES = Outcomes()
"""Clicks alone."""


def _column(name: str, kind: str, type_: pa.DataType, expected: str) -> Column:
    low, high = (0, _MOST) if kind == "number" else (None, None)
    return Column(
        name=name,
        kind="number" if kind == "number" else "label",
        type=type_,
        required=True,
        nullable=False,
        low=low,
        high=high,
        expected=expected,
    )


def renamed(table: pa.Table, columns: Sequence[Column]) -> pa.Table:
    """A block with these columns under the names by which further columns travel."""
    return table.rename_columns({c.name: OWN + c.name for c in columns}) if columns else table
