"""Lines of text files: their ends, encodings and numbers, whatever the blocks; what is no text is told in one line."""

import gzip
import logging
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from placerank.data.raw import lines
from placerank.data.raw.checks import BadRows
from placerank.data.raw.columns import DataError
from placerank.data.raw.lines import line_blocks


def read(file: Path, data: bytes, bad_rows: BadRows | None = None) -> list[tuple[int, str]]:
    file.write_bytes(data)
    found = []
    for first, block in line_blocks(file, bad_rows or BadRows()):
        found += list(enumerate(block.decode().split("\n"), first))
    return found


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, block_bytes: int) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
    texts = ["", "a", "", "bcd", "", "é\tf"]
    for last in ("", end):
        assert read(tmp_path / "f", (end.join(texts) + last).encode()) == list(enumerate(texts, 1))
    mixed = read(tmp_path / "f", b"a\rb\r\nc\nd\n\re")
    assert mixed == [(1, "a"), (2, "b"), (3, "c"), (4, "d"), (5, ""), (6, "e")]


@pytest.mark.parametrize("block_bytes", [4, 1000])
def test_byte_order_marks_of_joined_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
    assert read(tmp_path / "f", "\ufeffa\nb\n\ufeffc\nd\ufeff".encode()) == [
        (1, "a"),
        (2, "b"),
        (3, "c"),
        (4, "d\ufeff"),
    ]


def test_odd_bytes_alone_are_windows_1252(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = "Müller".encode() + b" caf\xe9 \x80 \x93ok\x94 \x81"
    text = b"Caf\xc3\xa9\n" + odd + b"\n\xe5\x8c\x97\n\xff\n"
    with caplog.at_level(logging.WARNING):
        got = read(tmp_path / "f", text)
    assert [t for _, t in got] == ["Café", "Müller café € “ok” \x81", "北", "ÿ"]
    assert "f: 2 lines are not UTF-8 and read as Windows-1252; the first is line 2, 'Müller café" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a,b\n".encode("utf-16"), "got UTF-16 text; convert it to UTF-8"),
        (b"\xfe\xff" + "a,b\n".encode("utf-16-be"), "got UTF-16 text"),
        ("a,b\n1,2\n".encode("utf-16-le"), "a third of its first bytes is 0: UTF-16, or no text"),
        (gzip.compress(b"a,b\n", mtime=0), "got a gzip file; give it a name that ends in .gz"),
        (b"PK\x03\x04...", "got a zip or Excel file"),
        (b"PAR1...", "got a Parquet file; use --format parquet"),
        (b"", r"the file is empty \(0 bytes\)"),
    ],
)
def test_no_text(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"f: {message}"):
        read(tmp_path / "f", data)


def test_lines_with_nul_bytes(tmp_path: Path) -> None:
    data = b"a" * 40 + b"\nb\0c\n\nd\n" + b"\0" * 9
    with pytest.raises(DataError, match=r"f: line 2: got 'b\\x00c', expected text without NUL bytes.*--on-bad-rows"):
        read(tmp_path / "f", data)
    with BadRows("skip", tmp_path / "rejected") as bad_rows:
        assert read(tmp_path / "f", data, bad_rows) == [(1, "a" * 40), (2, ""), (3, ""), (4, "d"), (5, "")]
    assert pq.read_table(tmp_path / "rejected" / "f-lines.parquet")["row"].to_pylist() == [2, 5]


def test_no_line_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(lines, "LONGEST_LINE", 1 << 20)
    assert read(tmp_path / "f", b"x" * 1_000_000 + b"\ny") == [(1, "x" * 1_000_000), (2, "y")]
    with pytest.raises(DataError, match="f: no line end in 1 MiB; expected lines of text"):
        read(tmp_path / "f", b"x" * 1_100_000 + b"\n")


@pytest.mark.parametrize("cut", [1, 8, 500])
def test_gzip_that_breaks_off(tmp_path: Path, cut: int) -> None:
    text = "".join(f"{i * 7919}\n" for i in range(1000))
    packed = gzip.compress(text.encode())
    assert len(read(tmp_path / "f.gz", packed)) == 1000
    assert len(read(tmp_path / "f.gz", packed + packed)) == 2000  # two members, as `cat` joins them
    with pytest.raises(DataError, match=r"f.gz: cannot be read to its end"):
        read(tmp_path / "f.gz", packed[:-cut])
