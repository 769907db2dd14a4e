"""Rows of text files with one row a line: tab-separated, and JSON lines. ``csv_text`` has CSV."""

import io
from collections.abc import Iterable, Iterator
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

    def parse(texts: Iterable[bytes]) -> pa.Table:
        """One row of each text, or ArrowInvalid."""
        data = b"\n".join(texts) + b"\n"
        table = pajson.read_json(io.BytesIO(data), pajson.ReadOptions(block_size=len(data) + 1), options)
        if len(table) != data.count(b"\n"):
            raise pa.ArrowInvalid(f"{len(table)} objects")
        return table

    def is_whole(text: bytes) -> bool:
        """Between such lines an object cannot go on; and pyarrow 26 crashes where a file begins with "null"."""
        return text.startswith(b"{") and text.endswith(b"}")

    for first, block in line_blocks(file, bad_rows):
        lines = {i: text for i, line in enumerate(block.split(b"\n"), first) if (text := line.strip())}
        try:
            table = parse(lines.values()) if all(map(is_whole, lines.values())) else None
        except pa.ArrowInvalid:
            table = None
        if table is None:  # find the lines that are no objects, one by one
            for i, text in list(lines.items()):
                try:
                    if not is_whole(text):
                        raise pa.ArrowInvalid("no object")
                    parse([text])
                except pa.ArrowInvalid as error:
                    shown = lines.pop(i).decode()
                    got, reason = f"{shown[:80]!r} ({error})", f"expected a JSON object with {_told(schema)}"
                    set_aside(file, bad_rows, np.array([i]), pa.array([shown]), "line", reason, got)
            table = parse(lines.values()) if lines else None
        if table is not None and lines:
            yield np.array(list(lines)), table.select(schema.names)


def _told(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name} ({f.type})" for f in schema)
