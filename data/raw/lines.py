"""Whole lines of text files as UTF-8, block by block; lines that are none are told or set aside."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from .checks import BadRows
from .columns import DataError

log = logging.getLogger(__name__)

BLOCK_BYTES = 8 << 20
LONGEST_LINE = 64 << 20  # bytes; what has no line end for so long is no text
_BOM = b"\xef\xbb\xbf"
_OTHERS = {
    b"\xff\xfe": "UTF-16 text; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16 text; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\x1f\x8b": "a gzip file; give it a name that ends in .gz",
    b"PK\x03\x04": "a zip or Excel file; unpack it, or save it as CSV in UTF-8",
    b"PAR1": "a Parquet file; use --format parquet",
}
# Bytes that are no UTF-8, as "surrogateescape" leaves them, to what they are in Windows-1252: Latin-1 with letters
# and quotation marks for most of its control characters, and those for the five bytes that it leaves open.
_ODD = {
    0xDC00 + byte: bytes([byte]).decode("latin-1" if byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else "cp1252")
    for byte in range(0x80, 0x100)
}


def line_blocks(file: Path, bad_rows: BadRows) -> Iterator[tuple[int, bytes]]:
    """Whole lines of a file (gzip by its ending), about 8 MiB at once.

    Lines end with "\\n", "\\r\\n" or "\\r"; a byte order mark at the start of a line is dropped. In lines that are no
    UTF-8 each odd byte is read as Windows-1252, and a warning counts them. Lines with NUL bytes are set aside and
    blank in what is returned, so that the others keep their numbers.

    Yields:
        The number of the first line, from 1, and the lines as UTF-8, joined by "\\n" without one at the end.

    Raises:
        FileNotFoundError, DataError: no file, an empty one, one that is no text, or that breaks off (gzip).
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} not found; check the path")
    if file.stat().st_size == 0:
        raise DataError(f"{file}: the file is empty (0 bytes); download or write it again")
    odd, example = 0, ""
    line = 1
    for block in _joined(file):
        if b"\0" in block:
            block = _without_nul(file, line, block, bad_rows)
        if not block.isascii():
            if block.startswith(_BOM):
                block = block[len(_BOM) :]
            block = block.replace(b"\n" + _BOM, b"\n")
            block, found = _utf8(block)
            if found and not odd:
                text = block.split(b"\n")[found[0]].decode()
                example = f"the first is line {line + found[0]}, {text[:80]!r}"
            odd += len(found)
        yield line, block
        line += block.count(b"\n") + 1
    if odd:
        lines = "line is" if odd == 1 else "lines are"
        log.warning(
            f"warning: {file}: {odd:,} {lines} not UTF-8 and read as Windows-1252; {example}; if that looks wrong, "
            "convert the file to UTF-8"
        )


def _joined(file: Path) -> Iterator[bytes]:
    """Blocks of whole lines, all ends made "\\n"."""
    rest = held = b""
    first = True
    try:
        with pa.input_stream(str(file), compression="detect") as stream:
            while chunk := held + stream.read(BLOCK_BYTES):
                if first:
                    _is_text(file, chunk)
                    first = False
                # A "\r" at the end may be half of a "\r\n".
                held = b"\r" if chunk.endswith(b"\r") and len(chunk) > len(held) else b""
                chunk = chunk[: len(chunk) - len(held)]
                if b"\r" in chunk:
                    chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
                block, newline, tail = chunk.rpartition(b"\n")
                if newline:
                    yield rest + block
                    rest = tail
                else:
                    rest += tail
                if len(rest) > LONGEST_LINE:
                    raise DataError(f"{file}: no line end in {LONGEST_LINE >> 20} MiB; expected lines of text")
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file}: cannot be read to its end ({error}); download or copy it again") from error
    if rest:
        yield rest


def _is_text(file: Path, start: bytes) -> None:
    for magic, what in _OTHERS.items():
        if start.startswith(magic):
            raise DataError(f"{file}: got {what}")
    if start[:1000].count(0) > 0.3 * len(start[:1000]):
        raise DataError(f"{file}: a third of its first bytes is 0: UTF-16, or no text; convert it to UTF-8")


def _without_nul(file: Path, first: int, block: bytes, bad_rows: BadRows) -> bytes:
    lines = block.split(b"\n")
    at = [i for i, line in enumerate(lines) if b"\0" in line]
    text = pa.array([_utf8(lines[i])[0].decode() for i in at])
    set_aside(file, bad_rows, first + np.array(at), text, "line", "expected text without NUL bytes")
    for i in at:
        lines[i] = b""
    return b"\n".join(lines)


def _utf8(block: bytes) -> tuple[bytes, list[int]]:
    """The block as UTF-8, and which of its lines were none."""
    try:
        pa.array([block], pa.large_binary()).cast(pa.large_string())  # looks at it faster than decode
        return block, []
    except pa.ArrowInvalid:
        pass
    lines = block.split(b"\n")
    odd = []
    for i, line in enumerate(lines):
        try:
            line.decode()
        except UnicodeDecodeError:
            odd.append(i)
            lines[i] = line.decode("utf-8", "surrogateescape").translate(_ODD).encode()
    return b"\n".join(lines), odd


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
