"""What is true of a place for a user, as clauses, and one or two of them as a sentence.

A clause is made of what the catalog and the user's visits say and of nothing else. ``checker.py`` reads sentences back
and knows nothing of this file. Names stand between double quotes, so that an "and" in them joins nothing.

    visits      you have been here 3 times | once | you have not been here yet
    taste       you know 4 other places under "Jazz and Blues Venue"
    chain       it belongs to "Starbucks", where you have been 2 times at other addresses | it belongs to "Starbucks"
    distance    it is 0.4 km away | less than 0.1 km; without a place of the request: from your last visit
    category    it is listed under "Jazz and Blues Venue"
    hours       it is open until 22:00
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import pyarrow as pa
import torch

from ...data.arrays import one_array
from ...data.raw.hours import OPENING_HOURS
from ...kernels.haversine import haversine_km

DAY = 24 * 60


class Clause(NamedTuple):
    """A true half-sentence.

    Attributes:
        bucket: what it is alike to: its kind and about how much, for ``lifts``.
        text: in lower case, without an end.
    """

    bucket: str
    text: str

    @property
    def kind(self) -> str:
        return self.bucket.partition(" ")[0]


@dataclass(frozen=True)
class Known:
    """What clauses say of places, by catalog row; row 0 is no place.

    Attributes:
        category: the finest, "" where unknown; brand: "" where there is none.
        lat, lon: degrees, NaN where unknown.
        hours: intervals of minutes of a week, None where unknown.
    """

    category: list[str]
    brand: list[str]
    lat: list[float]
    lon: list[float]
    hours: list[list[tuple[int, int]] | None]

    @classmethod
    def of_catalog(cls, catalog: pa.Table) -> "Known":
        """Of ``catalog.parquet`` [I]."""
        paths = one_array(catalog["category"]).to_pylist()
        hours: list[list[tuple[int, int]] | None] = [None] * len(catalog)
        if OPENING_HOURS in catalog.column_names:
            weeks = catalog[OPENING_HOURS].to_pylist()
            hours = [None if w is None else [(x["open"], x["close"]) for x in w] for w in weeks]
        lat, lon = ([math.nan if x is None else float(x) for x in catalog[c].to_pylist()] for c in ("lat", "lon"))
        return cls(
            category=[quotable(path[-1] or "") if path else "" for path in paths],
            brand=[quotable(b or "") for b in catalog["brand"].cast(pa.string()).to_pylist()],
            lat=lat,
            lon=lon,
            hours=hours,
        )


def quotable(name: str) -> str:
    """A name as it stands between double quotes: one line, none in it."""
    return " ".join(name.replace('"', "'").split())


def km_between(known: Known, row: int, place: tuple[float, float]) -> float:
    """Kilometres from a place in degrees to an item; NaN where its own is unknown."""
    here = (torch.tensor(x, dtype=torch.float64) for x in (*place, known.lat[row], known.lon[row]))
    return float(haversine_km(*here))


def clauses(
    known: Known,
    row: int,
    visited: Sequence[int],
    place: tuple[float, float] | None,
    minute: int | None = None,
) -> list[Clause]:
    """All that is true.

    Args:
        known: places.
        row: which is talked about.
        visited: rows of *all* known visits before the request, oldest first.
        place: of the request in degrees; None: unknown, distances are then from the last visit.
        minute: of the week, local time there; None: unknown, nothing is said of opening hours.
    """
    here = sum(v == row for v in visited)
    found = [Clause(f"visits {_about(here)}", f"you have been here {times(here)}" if here else NOT_YET)]
    if category := known.category[row]:
        others = len({v for v in visited if v != row and known.category[v] == category})
        if others:
            what = "1 other place" if others == 1 else f"{others} other places"
            found.append(Clause(f"taste {_about(others)}", f'you know {what} under "{category}"'))
    if brand := known.brand[row]:
        elsewhere = sum(v != row and known.brand[v] == brand for v in visited)
        text = f'it belongs to "{brand}"'
        text += f", where you have been {times(elsewhere)} at other addresses" if elsewhere else ""
        found.append(Clause(f"chain {_about(elsewhere)}", text))
    start, origin = place, "away"
    if place is None and visited:
        start, origin = (known.lat[visited[-1]], known.lon[visited[-1]]), "from your last visit"
    if start is not None and not math.isnan(km := km_between(known, row, start)):
        far = "less than 0.1 km" if km < 0.1 else f"{km:.1f} km"
        found.append(Clause(f"distance {_how_far(km)}", f"it is {far} {origin}"))
    if category:
        found.append(Clause("category", f'it is listed under "{category}"'))
    if minute is not None and (end := _open_until(known.hours[row], minute)) is not None:
        found.append(Clause("hours", f"it is open until {end // 60:02d}:{end % 60:02d}"))
    return found


NOT_YET = "you have not been here yet"


def times(n: int) -> str:
    """1: "once", 2: "2 times"."""
    return "once" if n == 1 else f"{n} times"


def _about(n: int) -> str:
    for least, name in ((10, "10+"), (5, "5-9"), (3, "3-4")):
        if n >= least:
            return name
    return str(n)


def _how_far(km: float) -> str:
    return next((f"<{most:g}" for most in (0.1, 0.5, 1, 3, 10) if km < most), "10+")


def _open_until(hours: list[tuple[int, int]] | None, minute: int) -> int | None:
    """Minute of the day at which the interval ends that holds the minute of the week; None if closed or unknown."""
    for start, stop in hours or ():
        length = (stop - start - 1) % (7 * DAY) + 1  # a close at or before its open is a week later
        if (minute - start) % (7 * DAY) < length:
            return None if length == 7 * DAY else stop % DAY
    return None


def sentence(parts: Iterable[Clause]) -> str:
    """One or two clauses: "It is 0.4 km away and you have been here once."."""
    text = " and ".join(part.text for part in parts)
    return f"{text[0].upper()}{text[1:]}."


def sentences(true: Sequence[Clause]) -> list[str]:
    """All sentences of one clause, and of two in either order."""
    return [sentence(x) for n in (1, 2) for x in permutations(true, n)]


def lifts(of_visited: Counter[str], of_others: Counter[str], visited: int, others: int) -> dict[str, float]:
    """How much likelier each bucket is of the place that was visited than of others, as a logarithm.

    Args:
        of_visited, of_others: how many places had a clause of the bucket.
        visited, others: how many places there were.
    """
    return {
        bucket: math.log((of_visited[bucket] + 1) / (visited + 2)) - math.log((of_others[bucket] + 1) / (others + 2))
        for bucket in sorted({*of_visited, *of_others})
    }


def reference(true: Sequence[Clause], lift: Mapping[str, float]) -> str:
    """The sentence that the model is taught: the clause of the most lift, then the next if it too has some."""
    ordered = sorted(true, key=lambda clause: -lift.get(clause.bucket, 0.0))
    return sentence(ordered[: 2 if len(ordered) > 1 and lift.get(ordered[1].bucket, 0.0) > 0 else 1])
