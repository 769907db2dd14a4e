"""Rows of text files with one row a line: tab-separated, and JSON lines. ``csv_text`` has CSV."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson

from .checks import BadRows, as_mask
from .lines import line_blocks, set_aside


def delimited(file: Path, names: list[str], bad_rows: BadRows) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """Tab-separated lines without header or quotes: line numbers and columns of text, "" as null, by blocks."""
    for first, block in line_blocks(file, bad_rows):
        text = pa.array([block], pa.large_binary()).cast(pa.large_string())
        lines = pc.split_pattern(text, "\n").flatten()
        number = np.arange(first, first + len(lines))
        fields = pc.split_pattern(lines, "\t")
        count = pc.list_value_length(fields).to_numpy()
        blank = as_mask(pc.equal(lines, ""))
        bad = np.flatnonzero((count != len(names)) & ~blank)
        if len(bad):
            reason = f"expected {len(names)} fields separated by tabs ({', '.join(names)})"
            got = f"{count[bad[0]]} fields"
            set_aside(file, bad_rows, number[bad], lines.take(pa.array(bad)), "line", reason, got)
        keep = (count == len(names)) & ~blank
        fields, number = fields.filter(pa.array(keep)), number[keep]
        columns = {n: _null_if_empty(pc.list_element(fields, i).cast(pa.string())) for i, n in enumerate(names)}
        if len(number):
            yield number, pa.table(columns)


def _null_if_empty(text: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, text.type), text)


def json_lines(file: Path, schema: pa.Schema, bad_rows: BadRows) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """One JSON object a line: line numbers and the columns of ``schema``, by blocks; other keys are passed over."""
    options = pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")

    def parse(data: bytes) -> pa.Table:
        return pajson.read_json(io.BytesIO(data), pajson.ReadOptions(block_size=len(data) + 1), options)

    for first, block in line_blocks(file, bad_rows):
        number = np.arange(first, first + block.count(b"\n") + 1)
        try:
            table = parse(block + b"\n")
        except pa.ArrowInvalid:
            table = None
        if table is None or len(table) != len(number):  # find the lines that are no objects, one by one
            lines = block.split(b"\n")
            good = []
            for i, text in enumerate(lines):
                if not text.strip():
                    continue
                try:
                    if (found := len(parse(text + b"\n"))) == 1:
                        good.append(i)
                        continue
                    why = f"{found} objects"
                except pa.ArrowInvalid as error:
                    why = str(error)
                shown = text.decode()
                got, reason = f"{shown[:80]!r} ({why})", f"expected a JSON object with {_told(schema)}"
                set_aside(file, bad_rows, number[i : i + 1], pa.array([shown]), "line", reason, got)
            if not good:
                continue
            number = number[good]
            table = parse(b"\n".join(lines[i] for i in good) + b"\n")
        yield number, table.select(schema.names)


def _told(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name} ({f.type})" for f in schema)
