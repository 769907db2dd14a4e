"""Text made numbers and times: what is none is null, and never another moment."""

from datetime import UTC, datetime, timedelta, timezone

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placerank.data.raw.columns import INTERACTIONS, ITEMS
from placerank.data.raw.values import ctimes, numbers, parsed, times

NEW_YEAR = 1577836800  # 2020-01-01 UTC


def seconds(*text: str | None) -> list[int | None]:
    """Read together, and one by one: a column of one form takes another way than a mixed one."""
    together: list[int | None] = times(pa.chunked_array([text], pa.string())).to_pylist()
    assert together == [times(pa.chunked_array([[t]], pa.string()))[0].as_py() for t in text]
    return together


def test_numbers() -> None:
    got = numbers(pa.chunked_array([["1", " -2.5e1 ", ".5", "5.", "1,5", "0x1", "", None, "inf"]])).to_pylist()
    assert got == [1, -25, 0.5, 5, None, None, None, None, float("inf")]
    assert numbers(pa.chunked_array([["1", "+2", "3e2", None], []], pa.string())).to_pylist() == [1, 2, 300, None]
    assert numbers(pa.chunked_array([], pa.string())).to_pylist() == []


def test_forms_of_one_moment() -> None:
    assert seconds(
        "1577836800", "1577836800.0", "1577836800.999", "1.5778368e9", " 1577836800 ", "2020-01-01", "2020-01-01 00:00",
        "2020-01-01 00:00:00", "2020-01-01T00:00:00Z", "2020-01-01t00:00:00.123z", "2020-01-01T00:00:00,5",
        "2020-01-01 00:00:00 UTC", "2020-01-01 02:00:00+02", "2020-01-01 02:00:00+0200", "2020-01-01 02:00:00 +02:00",
        "2019-12-31T19:00:00-0500", "2020-01-01T05:45+05:45", "2019-12-31T24:00:00", "2019-12-31 24:00",
        "2019-12-31T23:59:60Z", "2020-01-01T08:59:60+09:00",
    ) == [NEW_YEAR] * 21  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "1/1/2020", "2023-02-29", "2023-02-29 12:00:00", "2023-04-31T00:00:00Z", "1900-02-29", "2020-13-01",
        "2020-00-01", "2020-01-00", "2020-01-32", "2020-01-01 24:00:01", "2020-01-01 25:00:00", "2020-01-01 12:60:00",
        "2020-01-01T12:00:60Z", "2020-01-01 23:59:61", "2020-01-01T00:00+25:00", "2020-01-01T00:00+02:60", "0x10",
        "2020-01-01Z", "nan", "inf", "1e30", "99999999999999999999", "2020-01-01 00:00:00.Z", "\u0661\u0662",
    ],
)  # fmt: skip
def test_no_moment(text: str) -> None:
    assert seconds(text, "2024-02-29", None) == [None, 1709164800, None]
    assert seconds("2024-02-29 00:00:00", text) == [1709164800, None]
    assert seconds("5", text) == [5, None]


@given(
    moment=st.datetimes(datetime(1900, 1, 1), datetime(2199, 12, 31)).map(lambda t: t.replace(microsecond=0)),
    offset=st.integers(-56, 56),
    form=st.sampled_from(["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d %H:%M:%S.%f%z", "%Y-%m-%d %H:%M%z", "%Y-%m-%dT%H:%M:%SZ"]),
)
def test_as_the_standard_library_reads_it(moment: datetime, offset: int, form: str) -> None:
    zone = timezone(timedelta(minutes=15 * offset)) if "%z" in form else UTC
    text = moment.replace(tzinfo=zone).strftime(form)
    assert seconds(text) == [int(datetime.fromisoformat(text).timestamp())]
    text = moment.replace(tzinfo=zone).strftime("%a %b %d %H:%M:%S %z %Y")
    assert ctimes(pa.chunked_array([[text]])).to_pylist() == [int(moment.replace(tzinfo=zone).timestamp())]


@given(year=st.integers(1, 9999), month=st.integers(0, 13), day=st.integers(0, 32), hour=st.integers(0, 24))
def test_only_days_that_exist(year: int, month: int, day: int, hour: int) -> None:
    text = f"{year:04}-{month:02}-{day:02} {hour:02}:00:00"
    try:
        expected = int((datetime(year, month, day, tzinfo=UTC) + timedelta(hours=hour)).timestamp())
    except ValueError:
        expected = None
    except OverflowError:  # the end of 9999-12-31
        return
    assert seconds(text, text) == [expected] * 2


def test_slices_and_chunks() -> None:
    text = pa.array(["x", "2020-01-01 00:00:00", "2020-01-01T00:00:01", "y"])
    assert times(pa.chunked_array([text[1:3], text[2:3], text[:0]])).to_pylist() == [
        NEW_YEAR,
        NEW_YEAR + 1,
        NEW_YEAR + 1,
    ]


def test_ctimes() -> None:
    got = ctimes(pa.chunked_array([["Wed Jan 1 00:00:00 +0000 2020", "Wed Foo 01 00:00:00 +0000 2020", None, "2020"]]))
    assert got.to_pylist() == [NEW_YEAR, None, None, None]


def test_missing_values_are_null_in_rows_where_they_may_be() -> None:
    raw = pa.table({"item_id": ["NULL", "a"], "brand": ["nan", "NULL"], "lat": ["NA", "1"], "lon": [1.0, 2.0]})
    cleaned, values = parsed(raw, ITEMS)
    assert values.to_pydict() == {"item_id": [None, "a"], "brand": [None, None], "lat": [None, 1], "lon": [1, 2]}
    assert cleaned.to_pydict() == raw.to_pydict() | {"brand": [None, None]}  # the others are told as they are
    same, _ = parsed(pa.table({"user_id": ["a"], "timestamp": ["5"]}), INTERACTIONS)
    assert same.to_pydict() == {"user_id": ["a"], "timestamp": ["5"]}
