"""CSV rows: what the csv module writes comes back, and no line of a damaged file vanishes."""

import csv
import io
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from placerank.data.raw import csv_text, lines
from placerank.data.raw.checks import BadRows
from placerank.data.raw.columns import DataError
from placerank.data.raw.csv_text import csv_rows

HEADER = "id,name,note,lat"
Row = tuple[str | None, ...]


def read(folder: Path, text: str | bytes) -> tuple[dict[int, Row], dict[int, str], int]:
    """Rows by line, lines set aside with the reason, and repeated headers."""
    file = folder / "f.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    aside = folder / "rejected" / "f.csv-lines.parquet"
    aside.unlink(missing_ok=True)
    repeats: Counter[str] = Counter()
    rows: dict[int, Row] = {}
    with BadRows("skip", folder / "rejected") as bad_rows:
        for number, table in csv_rows(file, bad_rows, repeats):
            columns = [c.to_pylist() for c in table.columns]
            rows |= dict(zip(number.tolist(), zip(*columns, strict=True), strict=True))
    told = pq.read_table(aside).to_pylist() if aside.exists() else []
    return rows, {t["row"]: t["reason"] for t in told}, repeats["f.csv"]


def test_quotes_and_line_breaks(tmp_path: Path) -> None:
    text = (
        f"{HEADER}\n"
        '1,"Joe\'s, ""the"" place","first line\n\n  second, line",1\r\n'
        '\n2,27" screens,it"s "so",2\n"3","","""",3\n4,"a\rb",x,""'
    )
    rows, aside, _ = read(tmp_path, text)
    assert aside == {} and rows == {
        2: ("1", 'Joe\'s, "the" place', "first line\n\n  second, line", "1"),
        6: ("2", '27" screens', 'it"s "so"', "2"),
        7: ("3", None, '"', "3"),
        8: ("4", "a\nb", "x", None),
    }


CLOSED = "expected a quote at the start of a field to be closed before a comma or a line end"
SWALLOWS = "expected a quote that is closed in its line: it runs over lines that are rows"
FIELDS = "expected 4 fields as in the header"
OVER_LINES = f"{FIELDS}, also where a quote runs over lines"
STRAY = [
    ('1,"a,b,1\n2,a,b,2\n3,a,b,3\n', {3, 4}, {2: CLOSED}),  # never closed
    ('1,"a,b,1\n2,a,b,2\n3,"a,b,3\n4,a,b,4\n', {3, 5}, {2: CLOSED, 4: CLOSED}),
    ('1,"a,b,1\n2,a,b,2\n3,a,"b, b",3\n4,a,b,4\n', {3, 4, 5}, {2: CLOSED}),  # runs into a right one
    ('1,"a,b,1\n2,a,b,2\n3,a",b,3\n4,a,b,4\n', {3, 4, 5}, {2: SWALLOWS}),  # in order as CSV goes, but three rows
    ('1,"a,b,1\n2,a",b,2\n3,a,b,3\n', {3, 4}, {2: SWALLOWS}),
    ('1,"a,b,1\n2,a,b",2\n3,a,b,3\n', {3, 4}, {2: OVER_LINES}),
    ('1,a,b,"1\n2,a,b,2"\n3,a,b,3\n', {3, 4}, {2: SWALLOWS}),
    ('1,"a"b,b,1\n2,a,b,2\n', {3}, {2: CLOSED}),
    ('1,"a" ,b,1\n2,a,b,2\n', {3}, {2: CLOSED}),
    ('1,"a ""b"",b,1\n2,a,"",2\n3,a,b,3\n', {3, 4}, {2: CLOSED}),
    ('1,a,b,1\n2,a,b\n3,a,b,c,3\n4,a,b,4\n', {2, 5}, {3: FIELDS, 4: FIELDS}),
]  # fmt: skip


@pytest.mark.parametrize("block_bytes", [20, 1 << 20])
@pytest.mark.parametrize(("body", "kept", "aside"), STRAY, ids=range(len(STRAY)))
def test_a_stray_quote_costs_its_line_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, kept: set[int], aside: dict[int, str], block_bytes: int
) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
    rows, told, _ = read(tmp_path, f"{HEADER}\n{body}")
    assert set(rows) == kept and told == aside
    first = min(aside)
    with pytest.raises(DataError, match=rf"f.csv: line {first}: got .*expected .*--on-bad-rows skip"):
        list(csv_rows(tmp_path / "f.csv", BadRows(), Counter()))


def test_rows_that_look_like_others_are_no_damage(tmp_path: Path) -> None:
    """Line breaks in the last or the first column leave a line with all commas, and menus are lists with commas."""
    text = f'{HEADER}\n1,a,"soup, 4, 5, 6\nbread, 1, 2, x",1.5\n2,b,"x\ny",-2\n"3\n",c,d,3\n4,e,f,"4\n"\n'
    rows, aside, _ = read(tmp_path, text)
    assert aside == {} and sorted(rows) == [2, 4, 6, 8]


def test_a_quote_open_for_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_text, "LONGEST_ROW", 1000)
    filler = "x\n" * 600
    for block_bytes in (64, 1 << 20):
        monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
        rows, aside, _ = read(tmp_path, f'{HEADER}\n0,a,"{"y" * 900}\n",0\n1,a,"{filler}",1\n2,a,b,2\n')
        assert set(rows) == {2, 605} and aside[4] == CLOSED and sorted(aside) == list(range(4, 605))


def test_headers(tmp_path: Path) -> None:
    body = "1,a,b,1\n"
    rows, aside, again = read(tmp_path, f"\ufeff\n{HEADER}\r\n{body}\ufeff{HEADER}\n{body}{HEADER}\n{HEADER}\n")
    assert set(rows) == {3, 5} and aside == {} and again == 3
    rows, *_ = read(tmp_path, 'a,"b\nc",,"d""e"\n1,2,3,4\n')
    assert list(rows) == [3]
    for number, table in csv_rows(tmp_path / "f.csv", BadRows(), Counter()):
        assert table.column_names == ["a", "b\nc", "column 3", 'd"e'] and len(number) == 1
    for text, message in (
        (HEADER, "the file has a header and no rows, expected at least one"),
        (f"{HEADER}\n\n", "the file has a header and no rows"),
        ("\n\n", "the file holds blank lines alone"),
        ('id,"name\n1,2\n', "line 1: got the header 'id,\"name', expected all quotes to be closed"),
        ("id;name\n1;2\n", "got the header 'id;name', expected commas between the columns"),
        ("id\tname\n1\t2\n", r"got the header 'id\\tname', expected commas"),
    ):
        with pytest.raises(DataError, match=f"f.csv: {message}"):
            read(tmp_path, text)


field = st.text(alphabet=st.sampled_from('ab1, "\n\u00e9'), max_size=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=st.lists(st.tuples(field, field, field), min_size=1, max_size=12),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
    block_bytes=st.sampled_from([7, 50, 1 << 20]),
)
def test_what_the_csv_module_writes(
    tmp_path_factory: pytest.TempPathFactory, table: list[Row], quoting: int, end: str, block_bytes: int
) -> None:
    """Ids and latitudes around the text make every row a row; none of the text's lines looks like one."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=quoting, lineterminator=end)  # type: ignore[arg-type]
    writer.writerow(["id", "x", "y", "z", "lat", "lon"])
    rows = [(f"i{i}", *texts, "1.5", f"{i}.25") for i, texts in enumerate(table)]
    writer.writerows(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block_bytes)
        got, aside, _ = read(tmp_path_factory.mktemp("csv"), out.getvalue())
    assert aside == {}
    assert list(got.values()) == [tuple(text or None for text in row) for row in rows]


def accounted(text: str, rows: dict[int, Row], aside: dict[int, str], again: int) -> None:
    """Every line after the header is part of one row, set aside, blank, or the header once more."""
    all_lines = text.split("\n")
    of_rows = [n + i for n, row in rows.items() for i in range(1 + sum((v or "").count("\n") for v in row))]
    assert len(of_rows) == len(set(of_rows)) and not set(of_rows) & set(aside)
    left = [n for n, line in enumerate(all_lines, 1) if line and n not in aside and n not in set(of_rows)]
    assert len(left) == 1 + again and {all_lines[n - 1] for n in left} == {HEADER}


@st.composite
def damaged(draw: st.DrawFn, marks: str) -> str:
    """Rows on one line each, with characters put in anywhere behind the header."""
    n = draw(st.integers(1, 10))
    text = "".join(f"i{i},{draw(st.sampled_from(['a', 'b c', chr(233)]))},n {i},{i}.5\n" for i in range(n))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from(list(marks))) + text[at:]
    return f"{HEADER}\n{text}"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=damaged('"'), block_bytes=st.sampled_from([9, 60, 1 << 20]))
def test_stray_quotes_anywhere(tmp_path_factory: pytest.TempPathFactory, text: str, block_bytes: int) -> None:
    assume(text.endswith("\n"))  # behind the last line's end a quote may close one of that line's, which is a row then
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block_bytes)
        rows, aside, again = read(tmp_path_factory.mktemp("csv"), text)
    accounted(text, rows, aside, again)
    assert len(rows) + len(aside) == len(text.strip("\n").split("\n")) - 1  # and no row has taken another's line
    ids = [str(row[0]).replace('"', "") for row in rows.values()]
    assert ids == [line.split(",")[0].replace('"', "") for line in (text.split("\n")[n - 1] for n in rows)]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=damaged('"",\n' + HEADER[0]), block_bytes=st.sampled_from([9, 60, 1 << 20]), again=st.booleans())
def test_any_damage(tmp_path_factory: pytest.TempPathFactory, text: str, block_bytes: int, again: bool) -> None:
    text = f"{text}{HEADER}\n{text}" if again else text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block_bytes)
        accounted(text, *read(tmp_path_factory.mktemp("csv"), text))


def test_blocks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "".join(
        f'{i},"{"x" * (i % 9)}{chr(10) if i % 3 else ","}y","{"" if i % 7 else chr(10)}",{i}\n'
        + ('s,"tray,x,1\n' if i % 11 == 0 else "")
        for i in range(60)
    )
    whole = read(tmp_path, f"{HEADER}\n{body}")
    assert len(whole[0]) == 60 and len(whole[1]) == 6
    for block_bytes in (3, 17, 64, 200):
        monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
        assert read(tmp_path, f"{HEADER}\n{body}") == whole


def test_types(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(f"{HEADER}\n1,2,3,4\n")
    for _, table in csv_rows(tmp_path / "f.csv", BadRows(), Counter()):
        assert table.schema == pa.schema([(name, pa.string()) for name in HEADER.split(",")])
