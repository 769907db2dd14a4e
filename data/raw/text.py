"""Rows of text files with one row a line: tab-separated, and JSON lines. ``csv_text`` has CSV."""

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

    def parse(data: bytes, rows: int) -> pa.Table:
        table = pajson.read_json(pa.BufferReader(data), pajson.ReadOptions(block_size=len(data) + 1), options)
        if len(table) != rows:
            raise pa.ArrowInvalid(f"{len(table)} objects")
        return table.select(schema.names)

    for first, block in line_blocks(file, bad_rows):
        if n := _whole_lines(block):
            try:
                yield np.arange(first, first + n), parse(block, n)
                continue
            except pa.ArrowInvalid:
                pass
        good = {}  # find the lines that are no objects, one by one
        for i, line in enumerate(block.split(b"\n"), first):
            if text := line.strip():
                try:
                    if not _whole_lines(text):
                        raise pa.ArrowInvalid("no object")
                    parse(text, 1)
                    good[i] = text
                except pa.ArrowInvalid as error:
                    got, reason = f"{text.decode()[:80]!r} ({error})", f"expected a JSON object with {_told(schema)}"
                    set_aside(file, bad_rows, np.array([i]), pa.array([text.decode()]), "line", reason, got)
        if good:
            yield np.array(list(good)), parse(b"\n".join(good.values()), len(good))


def _whole_lines(block: bytes) -> int:
    """How many lines, if all begin with "{" and end with "}", else 0: then no object goes on in the next line.

    And pyarrow 26 crashes where JSON begins with "null".
    """
    codes = np.frombuffer(b"\n" + block + b"\n", np.uint8)
    ends = np.flatnonzero(codes == ord("\n"))
    whole = (codes[ends[:-1] + 1] == ord("{")).all() and (codes[ends[1:] - 1] == ord("}")).all()
    return len(ends) - 1 if whole else 0


def _told(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name} ({f.type})" for f in schema)
