"""Blocks of lines of text files, and columns of text made numbers, times and paths. ``readers`` knows the formats."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson

from .checks import BadRows, as_mask
from .columns import Column, DataError

BLOCK_BYTES = 8 << 20
_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
_ISO = (
    r"^\s*(?P<day>\d{4}-\d\d-\d\d)"
    r"(?:[ T](?P<clock>\d\d:\d\d(?::\d\d)?)(?:\.\d+)?\s*(?P<zone>Z|UTC|[-+]\d\d:?\d\d)?)?\s*$"
)


def _blocks(file: Path) -> Iterator[tuple[int, bytes]]:
    """Whole lines of a file (gzip by its ending), about 8 MiB at once: number of the first line from 1, and bytes."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} not found; check the path")
    if file.stat().st_size == 0:
        raise DataError(f"{file}: the file is empty (0 bytes); download or write it again")
    line, rest = 1, b""
    try:
        with pa.input_stream(str(file), compression="detect") as stream:
            while chunk := stream.read(BLOCK_BYTES):
                block, newline, tail = (rest + chunk).rpartition(b"\n")
                rest = tail
                if newline:
                    yield line, block
                    line += block.count(b"\n") + 1
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file}: cannot be read to its end ({error}); download or copy it again") from error
    if rest:
        yield line, rest


def _decoded(block: bytes) -> str:
    """UTF-8, or else Latin-1, in which every byte is a character."""
    try:
        return block.decode()
    except UnicodeDecodeError:
        return block.decode("latin-1")


def set_aside(
    file: Path, bad_rows: BadRows, lines: np.ndarray, text: pa.Array, column: str, reason: str, got: str = ""
) -> None:
    """Lines that are no rows: the first raises, or all go to ``<file>-lines.parquet``."""
    if bad_rows.policy == "error":
        raise DataError(
            f"{file}: line {lines[0]}: got {got or repr(text[0].as_py()[:80])}, {reason}; "
            "correct the line, or set bad rows aside with --on-bad-rows skip"
        )
    n = len(lines)
    table = pa.table({"row": lines, "column": [column] * n, "reason": [reason] * n, "text": text.cast(pa.string())})
    bad_rows.write(file, f"{file.name}-lines", table)


def delimited(file: Path, names: list[str], bad_rows: BadRows) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """Tab-separated lines without header or quotes: line numbers and columns of text, "" as null, by blocks."""
    for first, block in _blocks(file):
        lines = pc.utf8_rtrim(pc.split_pattern(pa.array([_decoded(block)], pa.large_string()), "\n").flatten(), "\r")
        number = np.arange(first, first + len(lines))
        fields = pc.split_pattern(lines, "\t")
        count = pc.list_value_length(fields).to_numpy()
        blank = as_mask(pc.equal(lines, ""))
        bad = np.flatnonzero((count != len(names)) & ~blank)
        if len(bad):
            reason = f"expected {len(names)} fields separated by tabs ({', '.join(names)})"
            got = f"{count[bad[0]]} fields"
            set_aside(file, bad_rows, number[bad], lines.take(pa.array(bad)), "line", reason, got)
        keep = count == len(names)
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

    for first, block in _blocks(file):
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
                    parse(text + b"\n")
                    good.append(i)
                except pa.ArrowInvalid as error:
                    shown = _decoded(text)
                    got, reason = f"{shown[:80]!r} ({error})", f"expected a JSON object with {_told(schema)}"
                    set_aside(file, bad_rows, number[i : i + 1], pa.array([shown]), "line", reason, got)
            if not good:
                continue
            number = number[good]
            table = parse(b"\n".join(lines[i] for i in good) + b"\n")
        yield number, table.select(schema.names)


def _told(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name} ({f.type})" for f in schema)


def csv_rows(file: Path, bad_rows: BadRows) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """A CSV file with a header: line numbers and columns of text, "" as null, by blocks.

    Lines are numbered as if no quoted value held a line break and no line were blank.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} not found; check the path")
    if file.stat().st_size == 0:
        raise DataError(f"{file}: the file is empty (0 bytes); write it again")
    broken: list[pacsv.InvalidRow] = []

    def on_broken(row: pacsv.InvalidRow) -> str:
        broken.append(row)
        return "error" if bad_rows.policy == "error" else "skip"

    def tell(rows: list[pacsv.InvalidRow]) -> None:
        for row in rows:
            reason = f"expected {row.expected_columns} fields as in the header"
            got = f"{row.actual_columns} fields in {row.text[:80]!r}"
            set_aside(file, bad_rows, np.array([row.number]), pa.array([row.text]), "line", reason, got)

    one_by_one = pacsv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES)  # only then rows have numbers
    parse = pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=on_broken)
    try:
        with pa.input_stream(str(file), compression="detect") as stream:
            header = pacsv.open_csv(stream, one_by_one, parse).schema
        text = pacsv.ConvertOptions(
            column_types={name: pa.string() for name in header.names},
            strings_can_be_null=True,
            null_values=[""],
            quoted_strings_can_be_null=True,
        )
        broken.clear()
        line, told = 2, 0
        with pa.input_stream(str(file), compression="detect") as stream:
            for batch in pacsv.open_csv(stream, one_by_one, parse, text):
                tell(broken[told:])
                told = len(broken)
                number = np.arange(line, line + batch.num_rows + len(broken))
                number = np.setdiff1d(number, [row.number for row in broken], assume_unique=True)[: batch.num_rows]
                if len(number):
                    line = int(number[-1]) + 1
                    yield number, pa.Table.from_batches([batch])
            tell(broken[told:])
    except (OSError, pa.ArrowInvalid) as error:
        tell(broken if bad_rows.policy == "error" else [])
        raise DataError(f"{file}: not readable as CSV ({error}); expected UTF-8, commas and a header line") from error


# --- text to values --------------------------------------------------------------------------------------------


def numbers(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Float64; null where the text is no number. "nan" and "inf" are numbers here, so that the checks name them."""
    odd = pc.is_in(pc.utf8_lower(text), value_set=pa.array(["nan", "inf", "-inf"]))
    number = pc.or_(pc.match_substring_regex(text, _NUMBER), odd).fill_null(False)
    return pc.if_else(number, pc.utf8_trim_whitespace(text), pa.scalar(None, pa.string())).cast(pa.float64())


def times(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Unix seconds, int64: from integers, or ISO 8601 dates and times (UTC unless they name an offset); else null."""
    none = pa.scalar(None, pa.string())
    integer = pc.match_substring_regex(text, r"^\s*-?\d{1,18}\s*$").fill_null(False)
    seconds = pc.if_else(integer, pc.utf8_trim_whitespace(text), none).cast(pa.int64())
    chunks = []
    for chunk in text.chunks:
        part = pc.extract_regex(chunk, _ISO)
        day, clock, zone = (pc.struct_field(part, name) for name in ("day", "clock", "zone"))
        clock = pc.if_else(pc.equal(pc.utf8_length(clock), 5), pc.binary_join_element_wise(clock, "00", ":"), clock)
        clock = pc.if_else(pc.equal(clock, ""), "00:00:00", clock)
        moment = stamps(pc.binary_join_element_wise(day, clock, " "), "%Y-%m-%d %H:%M:%S")
        offset = pc.match_substring_regex(zone, r"^[-+]")
        digits = pc.replace_substring(pc.if_else(offset, zone, "+0000"), ":", "")
        ahead = pc.add(
            pc.multiply(pc.utf8_slice_codeunits(digits, 1, 3).cast(pa.int64()), 3600),
            pc.multiply(pc.utf8_slice_codeunits(digits, 3, 5).cast(pa.int64()), 60),
        )
        behind = pc.equal(pc.utf8_slice_codeunits(digits, 0, 1), "-")
        chunks.append(pc.subtract(moment, pc.if_else(behind, pc.negate(ahead), ahead)))
    iso = pa.chunked_array(chunks, pa.int64())
    return pc.coalesce(seconds, iso)


def stamps(text: pa.Array | pa.ChunkedArray, form: str) -> pa.Array | pa.ChunkedArray:
    """Unix seconds, int64, of times in one form of strptime; null where it does not fit."""
    return pc.strptime(text, format=form, unit="s", error_is_null=True).cast(pa.int64())


def paths(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """ "Food > Sushi" as ["Food", "Sushi"]."""
    return pc.split_pattern_regex(pc.utf8_trim_whitespace(text), r"\s*>\s*").cast(pa.list_(pa.string()))


def parsed(raw: pa.Table, columns: tuple[Column, ...]) -> pa.Table:
    """Columns of text as values of their kind; null where the text does not fit."""
    kinds = {c.name: c.kind for c in columns}
    make = {"number": numbers, "label": numbers, "time": times, "path": paths}
    values = {}
    for name in raw.column_names:
        convert = make.get(kinds.get(name, "text"))
        text = pa.types.is_string(raw[name].type)
        values[name] = convert(raw[name]) if convert and text else raw[name]
    return pa.table(values)
