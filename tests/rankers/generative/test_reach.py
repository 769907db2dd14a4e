"""Which items a request may be shown, by hand."""

from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch

from placerank.kernels.haversine import haversine_km
from placerank.rankers.generative.reach import (
    WEEK,
    Allowed,
    Near,
    OpeningHours,
    everything,
    local_seconds,
    minute_of_week,
    open_now,
)

HOURS = pa.list_(pa.struct([("open", pa.int16()), ("close", pa.int16())]))


def as_lists(allowed: Allowed) -> list[list[int]]:
    offsets = allowed.offsets.tolist()
    return [allowed.items[a:b].tolist() for a, b in pairwise(offsets)]


def of_lists(*lists: list[int]) -> Allowed:
    offsets = torch.tensor([0, *map(len, lists)]).cumsum(0)
    return Allowed(offsets, torch.tensor([item for row in lists for item in row], dtype=torch.int64))


@pytest.mark.parametrize("km", [0.5, 3.0, 400.0, 25_000.0])
def test_near_is_what_all_distances_say(km: float) -> None:
    """In a town, at a pole, across the antimeridian; places that are not known are near nothing."""
    rng = np.random.default_rng(int(km))
    lat = np.concatenate([rng.normal(40.7, 0.02, 150), rng.uniform(-90, 90, 50), [89.99, -90, 10, 10, np.nan, 40.7]])
    lon = np.concatenate([rng.normal(-74, 0.02, 150), rng.uniform(-180, 180, 50), [5, 0, 179.99, -179.99, 3, np.nan]])
    items = rng.permutation(1_000)[: len(lat)]
    at_lat = np.array([40.7, 40.71, 89.995, 10, np.nan, -90])
    at_lon = np.array([-74, -73.99, -175, 180, 0, 50])
    got = as_lists(Near(items, lat, lon, km).within(at_lat, at_lon))
    places = torch.from_numpy(lat), torch.from_numpy(lon)
    for b, found in enumerate(got):
        away = haversine_km(torch.tensor(at_lat[b]), torch.tensor(at_lon[b]), *places)
        assert sorted(found) == sorted(items[(away <= km).numpy()])
    assert got[4] == [] and len(got[0]) > 1
    assert as_lists(Near(items, lat, lon, km).within(at_lat[:0], at_lon[:0])) == []
    assert as_lists(Near(items[:0], lat[:0], lon[:0], km).within(at_lat[:1], at_lon[:1])) == [[]]


def test_a_reach_is_a_distance() -> None:
    with pytest.raises(ValueError, match="km: got 0, expected a distance above 0"):
        Near(np.arange(1), np.zeros(1), np.zeros(1), 0)


def test_masks_and_what_was_seen() -> None:
    allowed = of_lists([3, 1, 4], [], [4, 2])
    in_business = torch.tensor([True, True, True, True, False])
    assert as_lists(allowed.among(in_business)) == [[3, 1], [], [2]]
    assert as_lists(allowed.keep(torch.tensor([False, True, False, True, True]))) == [[1], [], [4, 2]]
    assert as_lists(allowed.without(of_lists([1, 1, 9], [7], []))) == [[3, 4], [], [4, 2]]
    assert as_lists(allowed.without(of_lists([], [], []))) == as_lists(allowed)
    assert as_lists(of_lists([], []).without(of_lists([1], []))) == [[], []]
    assert as_lists(everything(np.array([5, 2]), 2)) == [[5, 2], [5, 2]]
    assert as_lists(allowed.some(1, 3)) == [[], [4, 2]]
    with pytest.raises(ValueError, match="other: got 1 requests, expected 3"):
        allowed.without(of_lists([1]))
    for call in (allowed.keep, allowed.among):
        with pytest.raises(ValueError, match=r"mask: got torch\.float32"):
            call(torch.ones(5))


def test_minutes_of_the_week() -> None:
    times = [datetime(2026, 11, 23, 0, 0), datetime(2026, 11, 29, 23, 59), datetime(1969, 12, 31, 23, 58)]
    seconds = [int(t.replace(tzinfo=UTC).timestamp()) for t in times]
    assert minute_of_week(torch.tensor(seconds)).tolist() == [0, WEEK - 1, 2 * 1440 + 1438]


def test_opening_hours_by_hand() -> None:
    rows = [
        [{"open": 600, "close": 700}, {"open": 800, "close": 900}],
        [{"open": WEEK - 60, "close": 120}],  # Sunday night
        [],
        None,
        [{"open": 0, "close": WEEK}],
        [{"open": 300, "close": 300}],  # a whole week from then on
        [{"open": 600, "close": 700}],
    ]
    hours = OpeningHours.of_column(pa.array(rows, HOURS))
    expected = {
        0: [0, 1, 0, 1, 1, 1, 0], 119: [0, 1, 0, 1, 1, 1, 0], 120: [0, 0, 0, 1, 1, 1, 0], 600: [1, 0, 0, 1, 1, 1, 1],
        699: [1, 0, 0, 1, 1, 1, 1], 700: [0, 0, 0, 1, 1, 1, 0], 850: [1, 0, 0, 1, 1, 1, 0],
        WEEK - 60: [0, 1, 0, 1, 1, 1, 0], WEEK - 61: [0, 0, 0, 1, 1, 1, 0],
    }  # fmt: skip
    items = torch.arange(7)
    for minute, want in expected.items():
        assert hours.open_at(items, torch.full((7,), minute)).tolist() == [bool(x) for x in want], minute
    monday_ten = torch.tensor([4 * 86_400 + 600 * 60] * 5)  # 1970-01-05
    assert as_lists(open_now(of_lists([2, 0, 6, 1], [3]), hours, monday_ten)) == [[0, 6], [3]]
    sliced = OpeningHours.of_column(pa.array(rows, HOURS)[5:])
    assert sliced.open_at(torch.tensor([0, 1]), torch.tensor([0, 650])).tolist() == [True, True]
    with pytest.raises(ValueError, match="seconds: got 1, expected 2, one an allowed item"):
        open_now(of_lists([0], [1]), hours, monday_ten[:1])


def test_local_time_is_the_request_s_or_solar() -> None:
    allowed, lon = of_lists([0, 1], [2], [1, 0, 2]), torch.tensor([0.0, 100.0, torch.nan])
    time, offset = torch.tensor([1000, 2000, 3000]), torch.tensor([torch.nan, -210.0, 90.5])
    got = local_seconds(allowed, time, offset, lon)
    assert got.tolist() == [1000, 1000 + 7 * 3600, 2000 - 210 * 60, *[3000 + 5430] * 3]
    assert len(local_seconds(of_lists([], []), time[:2], offset[:2], lon)) == 0


def test_hours_that_cannot_be_are_told() -> None:
    with pytest.raises(ValueError, match="opening hours of row 1: got close 10081, expected minutes since Monday"):
        OpeningHours.of_column(pa.array([None, [{"open": 0, "close": WEEK + 1}]], HOURS))
    with pytest.raises(ValueError, match="opening hours of row 0: got open None"):
        OpeningHours.of_column(pa.array([[{"open": None, "close": 7}]], HOURS))
    with pytest.raises(ValueError, match="got a column of string, expected list"):
        OpeningHours.of_column(pa.array(["9-17"]))
