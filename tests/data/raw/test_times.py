"""Whole numbers that are no unix seconds are known for what they are."""

from datetime import UTC, datetime

import pytest

from placerank.data.raw.times import iso, looks_like

MOMENTS = [datetime(2022, 4, 21, 10, 30, tzinfo=UTC), datetime(1995, 12, 1, tzinfo=UTC)]


@pytest.mark.parametrize("form", ["%Y%m%d", "%Y%m%d%H", "%Y%m%d%H%M", "%Y%m%d%H%M%S"])
def test_dates_written_as_numbers(form: str) -> None:
    told = looks_like(*(int(m.strftime(form)) for m in MOMENTS))
    assert told is not None and told.startswith(f"dates written as numbers, such as {MOMENTS[0].strftime(form)}:")


@pytest.mark.parametrize(
    ("unit", "of"),
    [
        ("milliseconds", 1e3),
        ("microseconds", 1e6),
        ("nanoseconds", 1e9),
        ("minutes", 1 / 60),
        ("hours", 1 / 3600),
        ("days", 1 / 86_400),
    ],
)
def test_units(unit: str, of: float) -> None:
    told = looks_like(*(int(m.timestamp() * of) for m in MOMENTS))
    assert told is not None and told.startswith(f"{unit} since 1970:")


@pytest.mark.parametrize("numbers", [(0, 100), (-5,), (99_999_999,), (7, 20220421), (10**18 * 9,)])
def test_other_numbers(numbers: tuple[int, ...]) -> None:
    assert looks_like(*numbers) is None


def test_iso() -> None:
    assert iso(1_650_537_000) == "2022-04-21 10:30"
