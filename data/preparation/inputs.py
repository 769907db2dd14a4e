"""What ``prepare`` reads before the interactions: text that becomes Parquet, declarations, items and users."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..arrays import id_order
from ..manifest import read_manifest
from ..raw.checks import BadRows
from ..raw.outcomes import check_outcomes
from ..raw.own import OwnColumn, own_columns, read_declaration
from ..raw.readers import convert
from ..raw.schema import has_column, has_rows, inventory, no_items, read_items, read_users
from ..requests import EXTRA
from ..urls import fetched
from .before import Before
from .settings import PrepareConfig
from .tasks import ITEMS_FILE, write_table

WORK, USERS_FILE = "buckets", "users"  # temporary, inside the unfinished folder


@dataclass
class Raw:
    """What the first rank found in the input; all ranks have it.

    Attributes:
        path: the raw folder: the input, or what it was converted to.
        rows, notes: see ``schema.inventory``.
        own, left: see ``own.own_columns``.
        source: the manifest of a converted input.
        rejected: of items, users and text files.
        extra: which of ``requests.EXTRA`` the interactions have.
    """

    path: Path
    rows: dict[str, int]
    notes: list[str]
    own: list[OwnColumn]
    left: dict[str, dict[str, str]]
    source: dict[str, Any]
    rejected: list[dict[str, str | int]]
    extra: tuple[str, ...]


def read_tables(config: PrepareConfig, folder: Path) -> Raw:
    """All that is not done row group by row group: convert text, read items and users; they are left as files."""
    work = folder / WORK
    work.mkdir()
    with BadRows(config.on_bad_rows, folder / "rejected" if config.on_bad_rows == "skip" else None) as bad_rows:
        raw, source = config.input, {}
        declaration = read_declaration(config.features, config.input)
        before = None if config.after is None else Before.open(config.after)
        if config.format != "parquet":
            known = None
            if before is not None:
                declaration, known = before.kinds(), before.item_ids(pa.string())
            file = fetched(config.input)
            raw = convert(file, config.format, config.columns, work / "raw", bad_rows, declaration, known)
            source = read_manifest(raw, "raw")
        check_outcomes(config.outcomes, raw)
        if before is not None:
            before.check_outcomes(config.outcomes)
            declaration = before.declaration(raw)
            own, left = own_columns(raw, declaration, config.outcomes.names, f"--after {config.after}")
            own, left = before.known_alone(own, left)
        else:
            own, left = own_columns(raw, declaration, config.outcomes.names)
        if before is None or has_rows(raw, "items"):
            items = read_items(raw, bad_rows, of_table("items", own))
        else:  # a day on which nothing opened or changed
            items = no_items(before.item_type)
        items = items.take(pa.array(id_order(items["item_id"])))
        users = None
        if before is None or has_rows(raw, "users"):
            users = read_users(raw, bad_rows, of_table("users", own))
        if before is not None:
            items = before.items(items)
        write_table(items, work / ITEMS_FILE)
        if users is not None:
            write_table(users, work / USERS_FILE)
        rows, notes = inventory(raw)
    return Raw(raw, rows, notes, own, left, source, bad_rows.summary(), extra_columns(raw))


def of_table(table: str, own: Sequence[OwnColumn]) -> list[OwnColumn]:
    """Own columns of one table."""
    return [c for c in own if c.of == table]


def extra_columns(raw: Path) -> tuple[str, ...]:
    """Which of ``requests.EXTRA`` the interactions of a raw folder have."""
    return tuple(name for name in EXTRA if has_column(raw, name))
