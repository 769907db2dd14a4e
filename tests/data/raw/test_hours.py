"""Opening hours: what text stands for by hand and against a clock, intervals as they are, and what is refused."""

import numpy as np
import pyarrow as pa
import pytest

from placerank.data.raw.hours import HOURS, WEEK, opening_hours

DAY = 1440
DAYS = ("Mo", "Tu", "We", "Th", "Fr", "Sa", "Su")


def read(*text: str | None) -> list[list[tuple[int, int]] | None]:
    values, bad = opening_hours(pa.chunked_array([text], pa.string()))
    assert values.type == HOURS and len(values) == len(text) and not bad.any()
    return [None if x is None else [(i["open"], i["close"]) for i in x] for x in values.to_pylist()]


def test_text_by_hand() -> None:
    got = read(
        "Mo 09:00-17:00",
        "Sa 10:00-02:00",
        "Su 22:00-02:00",  # over the week's end
        "Sa-Mo 0:00-24:00",
        "mo,WE 8:00-12:00, 13:00-18:30",
        "Mo-Su 09:00-17:00; We off; Th 10:00-11:00",  # a later rule takes the place of an earlier one
        "07:00-07:00",
        "24/7",
        "off",
        "  ",
        None,
        "Fr 20:00-24:00;",
    )
    assert got == [
        [(540, 1020)],
        [(5 * DAY + 600, 6 * DAY + 120)],
        [(6 * DAY + 1320, 120)],
        [(0, DAY), (5 * DAY, 6 * DAY), (6 * DAY, WEEK)],
        [(480, 720), (780, 1110), (2 * DAY + 480, 2 * DAY + 720), (2 * DAY + 780, 2 * DAY + 1110)],
        [
            (540, 1020),
            (DAY + 540, DAY + 1020),
            (3 * DAY + 600, 3 * DAY + 660),
            *((d * DAY + 540, d * DAY + 1020) for d in (4, 5, 6)),
        ],
        [(d * DAY + 420, (d + 1) * DAY + 420 if d < 6 else 420) for d in range(7)],
        [(0, WEEK)],
        [],
        None,
        None,
        [(4 * DAY + 1200, 5 * DAY)],
    ]


def test_random_text_against_a_clock() -> None:
    """Each minute of the week, open by a loop over yesterday's and today's times."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        times: list[list[tuple[int, int]]] = [[] for _ in DAYS]
        rules = []
        for _ in range(rng.integers(1, 5)):
            first, last = rng.integers(0, 7, 2)
            said = [tuple(rng.integers(0, 1440, 2).tolist()) for _ in range(rng.integers(0, 3))]
            text = ",".join(f"{a // 60:02}:{a % 60:02}-{b // 60:02}:{b % 60:02}" for a, b in said)
            rules.append(f"{DAYS[first]}-{DAYS[last]} {text or 'off'}")
            for day in range(first, first + (last - first) % 7 + 1):
                times[day % 7] = said
        (got,) = read("; ".join(rules))
        assert got is not None
        for minute in rng.integers(0, WEEK, 200).tolist():
            day, now = divmod(minute, DAY)
            want = any(a <= now < (b if b > a else 10**9) for a, b in times[day])
            want |= any(b <= a and now < b for a, b in times[day - 1])
            assert any((minute - a) % WEEK < ((b - a) % WEEK or WEEK) for a, b in got) == want, (rules, minute)


@pytest.mark.parametrize(
    "text",
    ["9-17", "Mo", "Mo 09:00", "Mo 09:60-10:00", "Mo 24:00-25:00", "Mo 09:00-24:01", "Mon 09:00-10:00", "Mo-We-Fr off",
     "PH off", "sunrise-sunset", "Mo 09:00-10:00,", "Mo 09:00-10:00; ; Tu off", "24/7 off", "Mo 24/7", ";"],
)  # fmt: skip
def test_other_text_is_told(text: str) -> None:
    values, bad = opening_hours(pa.chunked_array([["Mo off", text]], pa.string()))
    assert bad.tolist() == [False, True] and values.to_pylist() == [[], None]


def test_intervals_stay_what_they_are() -> None:
    rows = [[{"close": 700, "open": 600}], None, [], [{"close": 5, "open": WEEK}], [{"close": WEEK + 1, "open": 0}],
            [{"close": None, "open": 0}], [None], [{"close": 1, "open": 0}, {"close": 9, "open": -1}]]  # fmt: skip
    kind = pa.struct([("close", pa.int64()), ("open", pa.int32())])
    for list_ in (pa.list_, pa.large_list):
        column = pa.chunked_array([pa.array(rows, list_(kind))[:3], pa.array(rows, list_(kind))[3:]])
        values, bad = opening_hours(column)
        assert bad.tolist() == [False] * 4 + [True] * 4
        assert values.type == HOURS and values.to_pylist() == [*rows[:4], *[None] * 4]
    for nothing in (pa.nulls(2), pa.array([None, ""]), pa.array([None, None], HOURS), pa.nulls(2).dictionary_encode()):
        values, bad = opening_hours(pa.chunked_array([nothing]))
        assert values.to_pylist() == [None, None] and not bad.any()
    assert len(opening_hours(pa.chunked_array([], pa.string()))[0]) == 0
    assert len(opening_hours(pa.chunked_array([], HOURS))[0]) == 0
