"""The raw folder that a reader writes: tables checked row by row, and what came of every row."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...reports.progress import Progress
from ..arrays import one_array
from .checks import BadRows, Block
from .columns import INTERACTIONS, ITEMS, Column, DataError
from .csv_text import csv_rows
from .lookup import IdIndex
from .schema import mark_duplicates, mark_interactions


class Output:
    """The raw folder being written: interactions as they come, items at the end; and what came of every row.

    Attributes:
        kept: interactions written.
        read: file name -> rows that its reader yielded; lines that are no rows are not in it.
        repeats: file name -> lines that repeat the header.
        left_out: reason -> rows that were read and are no visits.
        unused: file name -> columns that are not in the schema.
        noted: what else was counted, of rows that are kept -> how often.
    """

    def __init__(self, folder: Path, bad_rows: BadRows) -> None:
        self.folder, self.bad_rows = folder, bad_rows
        self.kept = 0
        self.read: Counter[str] = Counter()
        self.repeats: Counter[str] = Counter()
        self.left_out: dict[str, int] = {}
        self.unused: dict[str, list[str]] = {}
        self.noted: dict[str, int] = {}
        self._writer: pq.ParquetWriter | None = None

    def counted(
        self, file: Path, blocks: Iterator[tuple[np.ndarray, pa.Table]]
    ) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """The blocks, with a progress bar."""
        with Progress(file.name, unit="lines") as progress:
            for lines, table in blocks:
                self.read[file.name] += len(lines)
                yield lines, table
                progress.update(len(lines))

    def csv(self, file: Path, empty: bool = False) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """The blocks of a CSV file; ``empty``: it may have no rows."""
        return self.counted(file, csv_rows(file, self.bad_rows, self.repeats, empty))

    def interactions(
        self,
        file: Path,
        lines: np.ndarray,
        raw: pa.Table,
        values: pa.Table,
        item_ids: IdIndex | None,
        own: Sequence[Column] = (),
    ) -> None:
        """Check and write a block; ``item_ids`` None = the items are made from these rows; ``own``: more columns."""
        columns = (*INTERACTIONS, *own)
        block = Block(file, raw, lines, columns, unit="line", parsed=values)
        if item_ids is not None:
            mark_interactions(block, item_ids)
        name = file.name if item_ids is not None else f"{file.name}-visits"
        table = block.finish(columns, self.bad_rows, name)
        if item_ids is not None:
            table = table.drop_columns("item_index")
        # Columns that the source has not stay missing, rather than null: prepare looks whether they are there.
        self.add(table.select([c for c in table.column_names if c in values.column_names]))

    def add(self, table: pa.Table) -> None:
        """Write interactions that were checked."""
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
        left_out = {**self.left_out, **again}
        return {"rows": dict(rows), "left_out": left_out, "unused_columns": self.unused, "noted": self.noted}


def write_items(
    output: Output,
    blocks: Iterable[tuple[np.ndarray, pa.Table, pa.Table]],
    file: Path,
    columns: tuple[Column, ...] = ITEMS,
    known: pa.Array | None = None,
) -> IdIndex:
    """Check and write all items; an index of their ids, and of those that were ``known`` before.

    Where some were known there may be none now, and then there is no table of them.
    """
    parts = list(blocks)
    if not parts and known is not None:
        return IdIndex(known)
    table = distinct(output, parts, file, columns)
    output.table("items", file, table)
    ids = table["item_id"]
    return IdIndex(pa.chunked_array([*ids.chunks, *others(known, ids).chunks], ids.type))


def others(known: pa.Array | None, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Of the ids that were ``known`` before, those that are not among ``ids``."""
    none = pa.chunked_array([], ids.type)
    if known is None:
        return none
    left = known.filter(pc.invert(pc.is_in(known, value_set=one_array(ids))))
    return pa.chunked_array([left], ids.type)


def distinct(
    output: Output, parts: list[tuple[np.ndarray, pa.Table, pa.Table]], file: Path, columns: tuple[Column, ...]
) -> pa.Table:
    """Lines, raw rows and values as one checked table; the first column is a key."""
    if not parts:
        return pa.table({c.name: pa.array([], c.type) for c in columns})
    lines = np.concatenate([p[0] for p in parts])
    raw, values = (pa.concat_tables([p[i] for p in parts]) for i in (1, 2))
    block = Block(file, raw, lines, columns, unit="line", parsed=values)
    mark_duplicates(block, columns[0].name)
    return block.finish(columns, output.bad_rows, file.name)
