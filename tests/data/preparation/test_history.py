"""Histories and visit counts against loops."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from placerank.data.preparation.history import earlier_visits, history_ranges

EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8), st.integers(0, 4), st.booleans()), max_size=60)


def columns(events: list[tuple[int, int, int, bool]]) -> tuple[np.ndarray, ...]:
    """user, time, item, positive, sorted by (user, time)."""
    rows = np.array(sorted(events), np.int64).reshape(-1, 4)
    return rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3].astype(bool)


@given(EVENTS, st.integers(1, 5))
def test_history_is_strictly_before(events: list[tuple[int, int, int, bool]], longest: int) -> None:
    user, time, item, positive = columns(events)
    start, end = history_ranges(user, time, positive, longest)
    items, times = item[positive], time[positive]
    for i in range(len(user)):
        before = [
            (t, x)
            for u, t, x, p in zip(user, time, item, positive, strict=True)
            if p and (u, t < time[i]) == (user[i], True)
        ]
        got = list(zip(times[start[i] : end[i]], items[start[i] : end[i]], strict=True))
        assert got == before[-longest:]


@given(EVENTS, st.randoms())
def test_earlier_visits_in_any_order(events: list[tuple[int, int, int, bool]], random: object) -> None:
    random.shuffle(events)  # type: ignore[attr-defined]
    user, time, item, positive = np.array(events, np.int64).reshape(-1, 4).T
    got = earlier_visits(user, item, time, positive.astype(bool))
    expected = [sum(bool(p) and (u, x) == (v, y) and t < s for u, t, x, p in events) for v, s, y, _ in events]
    assert got.tolist() == expected and got.dtype == np.int32
