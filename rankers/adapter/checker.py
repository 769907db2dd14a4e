"""Whether a reason is true: the sentence is read back and each of its clauses is looked up in the tables.

Written apart from ``facts.py``, which makes sentences, and shares no code with it: its own grammar, distances and
counts, from raw ids and the catalog's own columns. What it can't read is not true.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

_NAME = r'"([^"]*)"'
_TIMES = r"(once|\d+ times)"
_CLAUSES = {
    "visits": re.compile(rf"you have been here {_TIMES}"),
    "none": re.compile(r"you have not been here yet"),
    "taste": re.compile(rf"you know (\d+) other places? under {_NAME}"),
    "chain": re.compile(rf"it belongs to {_NAME}(?:, where you have been {_TIMES} at other addresses)?"),
    "distance": re.compile(r"it is (less than 0\.1|\d+\.\d) km (away|from your last visit)"),
    "category": re.compile(rf"it is listed under {_NAME}"),
    "hours": re.compile(r"it is open until (\d\d):(\d\d)"),
}
_SLACK_KM = 0.002  # two formulas in float64 at the edge of a rounding
_WEEK = 7 * 24 * 60

Visits = Sequence[tuple[Any, int]]


class Checker:
    """Reads reasons against a catalog.

    Args:
        items: columns item_id, category (list of text), brand, lat, lon, and opening_hours where known; rows without
            an id are passed over.
    """

    def __init__(self, items: pa.Table) -> None:
        columns = [
            c for c in ("item_id", "category", "brand", "lat", "lon", "opening_hours") if c in items.column_names
        ]
        rows = items.select(columns).to_pylist()
        self.items: dict[Any, dict[str, Any]] = {row["item_id"]: row for row in rows if row["item_id"] is not None}

    def fault(
        self,
        sentence: str,
        item: Any,
        visits: Visits,
        place: tuple[float, float] | None,
        time: int,
        utc_offset: float | None = None,
    ) -> str | None:
        """What is wrong with a sentence about an item; None if all of it is true.

        Args:
            sentence: what was said.
            item: raw id.
            visits: the user's, (raw id, unix seconds), in any order; those at ``time`` or later are not known yet.
            place: of the request in degrees; None: unknown.
            time: of the request, unix seconds.
            utc_offset: minutes east of UTC there and then; None: unknown.

        Raises:
            KeyError: the item is not in the catalog.
        """
        about = self.items[item]
        before = sorted((v for v in visits if v[1] < time), key=lambda v: v[1])
        if not (sentence.endswith(".") and sentence[:1].isupper()):
            return f"not a sentence: {sentence!r}"
        text = sentence[0].lower() + sentence[1:-1]
        read = [found for part in _parts(text) for found in [_clause(part)]]
        if not 1 <= len(read) <= 2:
            return f"{len(read)} clauses, expected one or two: {sentence!r}"
        for kind, groups in read:
            if kind == "unknown":
                return f"can't be read: {groups[0]!r}"
            wrong = getattr(self, f"_{kind}")(about, item, before, place, time, utc_offset, *groups)
            if wrong:
                return str(wrong)
        return None

    def _visits(
        self, about: dict, item: Any, before: Visits, place: Any, time: int, offset: Any, said: str
    ) -> str | None:
        there = sum(v == item for v, _ in before)
        return None if there and there == _number(said) else f"been here {said}: it was {there}"

    def _none(self, about: dict, item: Any, before: Visits, *rest: Any) -> str | None:
        there = sum(v == item for v, _ in before)
        return f"not been here: it was {there}" if there else None

    def _taste(
        self, about: dict, item: Any, before: Visits, place: Any, time: int, offset: Any, n: str, name: str
    ) -> str | None:
        if wrong := self._category(about, item, before, place, time, offset, name):
            return wrong
        known = {v for v, _ in before if v != item and self._last(v) == name}
        return None if len(known) == int(n) > 0 else f"knows {n} others under {name!r}: it was {len(known)}"

    def _chain(
        self, about: dict, item: Any, before: Visits, place: Any, time: int, offset: Any, name: str, said: str | None
    ) -> str | None:
        if not about["brand"] or _plain(about["brand"]) != name:
            return f"belongs to {name!r}: it is {about['brand']!r}"
        others = sum(v != item and _plain(self.items.get(v, {}).get("brand") or "") == name for v, _ in before)
        if said is None:
            return None
        return None if others and others == _number(said) else f"{said} at other addresses: it was {others}"

    def _distance(
        self, about: dict, item: Any, before: Visits, place: Any, time: int, offset: Any, said: str, origin: str
    ) -> str | None:
        if origin == "from your last visit":
            if place is not None or not before:
                return "from your last visit: the request has a place, or there is no visit"
            latest = [v for v, t in before if t == before[-1][1]]
            starts = [(self.items[v]["lat"], self.items[v]["lon"]) for v in latest if v in self.items]
        elif place is None:
            return "away: from where is not known"
        else:
            starts = [place]
        found = [_km(*start, about["lat"], about["lon"]) for start in starts]
        for km in found:
            if said.startswith("less"):
                if km < 0.1 + _SLACK_KM:
                    return None
            elif abs(km - float(said)) <= 0.05 + _SLACK_KM and km > 0.1 - _SLACK_KM:
                return None
        return f"{said} km {origin}: it is {', '.join(f'{km:.3f}' for km in found)}"

    def _category(
        self, about: dict, item: Any, before: Visits, place: Any, time: int, offset: Any, name: str
    ) -> str | None:
        return None if name and self._last(item) == name else f"listed under {name!r}: it is {about['category']}"

    def _last(self, item: Any) -> str:
        """The finest category, "" where there is none."""
        path = self.items.get(item, {}).get("category")
        return _plain(path[-1] or "") if path else ""

    def _hours(
        self, about: dict, item: Any, before: Visits, place: Any, time: int, offset: Any, hour: str, minute: str
    ) -> str | None:
        week = about.get("opening_hours")
        if week is None or offset is None or math.isnan(offset):
            return "open until: its hours or the local time are not known"
        now = (int(time + offset * 60) // 60 + 3 * 1440) % _WEEK  # 1970-01-01 was a Thursday
        for span in week:
            ends = span["close"] if span["close"] > span["open"] else span["close"] + _WEEK
            inside = any(span["open"] <= at < ends for at in (now, now + _WEEK))
            if inside and ends % 1440 == int(hour) * 60 + int(minute):
                return None
        return f"open until {hour}:{minute}: its hours are {week}, the minute of the week is {now}"


def _parts(text: str) -> Iterator[str]:
    """What " and " joins, where it stands outside of quotes."""
    part, quoted = "", False
    for word in re.split(r'( and |")', text):
        if word == '"':
            quoted = not quoted
        if word == " and " and not quoted:
            yield part
            part = ""
        else:
            part += word
    yield part


def _clause(text: str) -> tuple[str, tuple[str, ...]]:
    for kind, pattern in _CLAUSES.items():
        if found := pattern.fullmatch(text):
            return kind, found.groups()
    return "unknown", (text,)


def _number(said: str) -> int:
    return 1 if said == "once" else int(said.split()[0])


def _plain(name: str) -> str:
    return re.sub(r"\s+", " ", name.replace('"', "'")).strip()


def _km(lat: float | None, lon: float | None, to_lat: float | None, to_lon: float | None) -> float:
    """By the spherical law of haversines, in Python's own numbers; NaN where a place is unknown."""
    if lat is None or lon is None or to_lat is None or to_lon is None:
        return math.nan
    a, b = math.radians(lat), math.radians(to_lat)
    half = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * math.sin(math.radians(to_lon - lon) / 2) ** 2
    return 2 * 6371.0088 * math.asin(math.sqrt(min(1.0, half)))
