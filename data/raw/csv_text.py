"""Rows of CSV files. A stray quote costs the line it stands in, which is told, and no line after it.

A quote counts at the start of a field only (``27" screens`` is text). There it must be closed before a comma or a line
end, with "" for a quote inside; the value may hold commas and line breaks. Most parsers, Arrow's too, forgive what
follows a closing quote, and so a stray quote swallows all lines up to the next one. Here the rows are found first.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from .checks import BadRows
from .columns import DataError
from .lines import line_blocks, set_aside

LONGEST_ROW = 1 << 20  # bytes; a quote that stays open for longer is a stray one
_NEWLINE, _QUOTE, _COMMA = b'\n",'
# A repeated group is not possessive: Python 3.11.2's (Debian 12) then misses matches. What follows one tells where it
# ends, so nothing is matched otherwise, and a row that is none costs one more pass.
_OPENED = rb'"[^"]*+(?:""[^"]*+)*'  # a quoted value without its closing quote
_FIELD = rb"(?:" + _OPENED + rb'"(?=[,\n]|\Z)|(?!")[^,\n]*+)'
_FIELDS = re.compile(rb"(?:^|,)(" + _FIELD + rb")")
_ROW = re.compile(_FIELD + rb"(?:," + _FIELD + rb")*(?=\n|\Z)")
_OPEN_ROW = re.compile(rb"(?:" + _FIELD + rb",)*" + _OPENED + rb"\Z")
_NUMBER = re.compile(rb"[-+]?\d[-+.:eETZ \d]*")  # or a time
_BESIDE = np.zeros(256, bool)  # what may stand before an opening and after a closing quote; a quote: one of a "" inside
_BESIDE[[_NEWLINE, _QUOTE, _COMMA]] = True


def csv_rows(
    file: Path, bad_rows: BadRows, repeats: Counter[str], empty: bool = False
) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """A CSV file with a header: the rows' line numbers and columns of text, "" as null, by blocks.

    A row is called by its first line. Blank lines between rows are passed over; lines that repeat the header, as in
    files joined by ``cat``, are counted in ``repeats``. Every other line is part of what is yielded, or is told, or
    set aside. Columns without a name are called "column 3".

    Raises:
        DataError: also for a header that is none, and for a file without rows unless it may be ``empty``.
    """
    names: list[str] = []
    header = b""
    some = False
    blocks = line_blocks(file, bad_rows)
    block = next(blocks, None)
    while block is not None:
        following = next(blocks, None)
        first, data = block
        if not names and data.strip(b"\n"):
            first, header, data = _header(file, first, data)
            names = _names(file, header)
        rows = _Rows(data, len(names), last=following is None)
        if rows.rest:
            assert following is not None
            following = following[0] - rows.rest.count(b"\n") - 1, rows.rest + b"\n" + following[1]
        again = rows.equal_to(header)
        if again:
            repeats[file.name] += len(again)
        for reason in dict.fromkeys(rows.bad.values()):
            at = [i for i, r in rows.bad.items() if r == reason]
            text = pa.array([rows.line(i).decode() for i in at])
            set_aside(file, bad_rows, first + np.array(at), text, "line", reason)
        some |= bool(rows.begins.any()) or len(rows.bad) > 0
        found, data = rows.without([*rows.bad, *again])
        if len(found):
            number, table = _parse(file, first + found, data, names, bad_rows)
            if len(table):
                yield number, table
        block = following
    if not names:
        raise DataError(f"{file}: the file holds blank lines alone, expected a header line and rows; write it again")
    if not some and not empty:
        raise DataError(f"{file}: the file has a header and no rows, expected at least one; write it again")


def _header(file: Path, first: int, data: bytes) -> tuple[int, bytes, bytes]:
    """The header, and the lines after it with the number of the first."""
    blank = len(data) - len(data.lstrip(b"\n"))
    row = _ROW.match(data, blank)
    if row is None:
        line = data[blank:].split(b"\n", 1)[0].decode()
        raise DataError(
            f"{file}: line {first + blank}: got the header {line[:200]!r}, expected all quotes to be closed"
        )
    return first + data.count(b"\n", 0, row.end()) + 1, row.group(), data[row.end() + 1 :]


def _names(file: Path, header: bytes) -> list[str]:
    names = [f[1:-1].replace(b'""', b'"') if f.startswith(b'"') else f for f in _FIELDS.findall(header)]
    if len(names) == 1:
        for mark in (b";", b"\t", b"|"):
            if mark in header:
                raise DataError(
                    f"{file}: got the header {header.decode()[:200]!r}, expected commas between the columns"
                )
    return [name.decode() or f"column {i}" for i, name in enumerate(names, 1)]


class _Rows:
    """Where the rows of a block are.

    Attributes:
        begins: whether a row begins with the line, bool [lines].
        bad: lines that are no rows -> what was expected.
        rest: the lines of a row that goes on in the next block.
    """

    def __init__(self, data: bytes, width: int, last: bool) -> None:
        self.data, self.width = data, width
        self.padded = b"\n" + data + b"\n"
        self.codes = np.frombuffer(self.padded, np.uint8)
        self.ends = np.flatnonzero(self.codes[1:] == _NEWLINE)
        self.starts = np.concatenate([[0], self.ends[:-1] + 1])
        self.begins = self.ends > self.starts
        self.bad: dict[int, str] = {}
        self.rest = b""
        if b'"' in data:
            quotes = np.flatnonzero(self.codes[1:-1] == _QUOTE)
            if not self._all_closed(quotes, last):
                self._one_by_one(quotes, last)

    def _breaks(self, quotes: np.ndarray, closes: np.ndarray) -> np.ndarray:
        """Quotes beside which stands what must not."""
        return ~_BESIDE[self.codes[quotes + 2 * closes]]

    def _all_closed(self, quotes: np.ndarray, last: bool) -> bool:
        """Take every second quote of the block as a closing one; False if that cannot be, and nothing is done."""
        if self._breaks(quotes, np.arange(len(quotes)) % 2).any():
            return False
        inside = np.searchsorted(quotes, self.ends) % 2 > 0  # the line's end is in quotes
        if not inside.any():
            return True
        within = np.concatenate([[False], inside[:-1]])  # the line's start is
        start, end = np.flatnonzero(inside & ~within), np.flatnonzero(within & ~inside)
        if inside[-1]:
            end = np.append(end, len(inside) - 1)
        length = self.ends[end] - self.starts[start]
        if (length > LONGEST_ROW).any() or (inside[-1] and last):
            return False
        whole = slice(len(start) - int(inside[-1]))
        commas = np.flatnonzero(self.codes[1:-1] == _COMMA)
        outside = commas[np.searchsorted(quotes, commas) % 2 == 0]
        start, end = start[whole], end[whole]
        fields = np.searchsorted(outside, self.ends[end]) - np.searchsorted(outside, self.starts[start]) + 1
        if (fields != self.width).any():
            return False
        alike = np.searchsorted(commas, self.ends) - np.searchsorted(commas, self.starts) == self.width - 1
        count = np.cumsum(alike)
        suspect = (count[end - 1] > count[start]) | (alike[start] & alike[end])
        bounds = zip(self.starts[start[suspect]].tolist(), self.ends[end[suspect]].tolist(), strict=True)
        if any(self._swallows(self.data[a:b]) for a, b in bounds):
            return False
        self.begins &= ~within
        if inside[-1]:
            self._carry(int(np.flatnonzero(inside & ~within)[-1]))
        return True

    def _one_by_one(self, quotes: np.ndarray, last: bool) -> None:
        """Lines whose quotes are not in order by themselves: rows over several lines, and lines that are no rows."""
        before = np.searchsorted(quotes, self.starts)
        count = np.diff(np.append(before, len(quotes)))
        broken = self._breaks(quotes, (np.arange(len(quotes)) - np.repeat(before, count)) % 2)
        look = count % 2 > 0
        look[np.searchsorted(self.ends, quotes[broken])] = True
        done = -1
        for i in np.flatnonzero(look).tolist():
            if i <= done:
                continue
            start = int(self.starts[i])
            end = min(len(self.data), start + LONGEST_ROW + 1)
            row = _ROW.match(self.data, start, end)
            if row is None and not last and end == len(self.data) and _OPEN_ROW.match(self.data, start):
                self._carry(i)
                return
            done = i
            if row is None or row.end() - start > LONGEST_ROW:
                self.bad[i] = "expected a quote at the start of a field to be closed before a comma or a line end"
            elif more := row.group().count(b"\n"):
                if len(_FIELDS.findall(row.group())) != self.width:
                    self.bad[i] = f"expected {self.width} fields as in the header, also where a quote runs over lines"
                elif self._swallows(row.group()):
                    self.bad[i] = "expected a quote that is closed in its line: it runs over lines that are rows"
                else:
                    done = i + more
                    self.begins[i + 1 : done + 1] = False

    def _swallows(self, row: bytes) -> bool:
        """Whether the lines of a row are rows of their own: as many fields, and numbers where the row has numbers.

        The first line alone is like that where the last column has line breaks, the last where the first column has.
        """

        def is_number(field: bytes) -> bool:
            return _NUMBER.fullmatch(field.replace(b'"', b"")) is not None

        numbers = [i for i, field in enumerate(_FIELDS.findall(row)) if is_number(field)]
        lines = [line.split(b",") for line in row.split(b"\n")]
        alike = [len(line) == self.width and all(is_number(line[i]) for i in numbers) for line in lines]
        return any(alike[1:-1]) or (alike[0] and alike[-1])

    def _carry(self, line: int) -> None:
        self.rest = self.data[self.starts[line] :]
        self.begins[line:] = False

    def line(self, i: int) -> bytes:
        return self.data[self.starts[i] : self.ends[i]]

    def equal_to(self, header: bytes) -> list[int]:
        """Lines that are the header once more."""
        found = []
        text = b"\n" + header + b"\n"
        at = self.padded.find(text) if header else -1
        while at >= 0:
            line = int(np.searchsorted(self.starts, at))
            if self.begins[line]:
                found.append(line)
            at = self.padded.find(text, at + 1)
        return found

    def without(self, lines: list[int]) -> tuple[np.ndarray, bytes]:
        """Lines with which rows begin, and the text of the rows, with some lines left out."""
        self.begins[lines] = False
        data = self.data[: len(self.data) - len(self.rest)]
        if lines:
            parts, at = [], 0
            for i in sorted(lines):
                parts.append(data[at : self.starts[i]])
                at = self.ends[i] + 1
            data = b"".join([*parts, data[at:]])
        return np.flatnonzero(self.begins), data


def _parse(
    file: Path, number: np.ndarray, data: bytes, names: list[str], bad_rows: BadRows
) -> tuple[np.ndarray, pa.Table]:
    """Rows as columns of text, with their line numbers; those with more or fewer fields than the header are bad."""
    broken: list[pacsv.InvalidRow] = []

    def on_broken(row: pacsv.InvalidRow) -> str:
        broken.append(row)
        return "skip"

    keys = [str(i) for i in range(len(names))]
    table = pacsv.read_csv(
        pa.BufferReader(data),
        pacsv.ReadOptions(
            use_threads=False, block_size=len(data) + 1, column_names=keys
        ),  # without threads rows have numbers
        pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=on_broken),
        pacsv.ConvertOptions(
            column_types=dict.fromkeys(keys, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
            quoted_strings_can_be_null=True,
        ),
    )
    if broken:
        at = np.array([row.number - 1 for row in broken])
        got = f"{broken[0].actual_columns} fields in {broken[0].text[:80]!r}"
        reason = f"expected {len(names)} fields as in the header"
        set_aside(file, bad_rows, number[at], pa.array([row.text for row in broken]), "line", reason, got)
        number = np.delete(number, at)
    if len(number) != len(table):
        raise AssertionError(f"{file}: found {len(number)} rows in lines {number[:1]} on, and read {len(table)}")
    return number, table.rename_columns(names)
