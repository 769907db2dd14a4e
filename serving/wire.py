"""Requests as JSON has them, and answers as JSON takes them; many ranked together, each with its own end.

The names are those of ``Ranker.rank``. A time is whole seconds since 1970 UTC, or ISO 8601 text with a time zone.
"""

import difflib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Annotated, Any

import numpy as np
import pyarrow as pa

from ..data.plain import fault
from ..rankers.rank import Ranker
from ..rankers.rank_requests import seconds

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One request; see ``Ranker.rank``."""

    user: str | int | None
    place: tuple[float, float] | None = None
    time: int
    history: list[tuple[Any, int]] = field(default_factory=list)
    candidates: list[Any] | None = None
    within_km: float = 3.0
    k: int = 10
    by: str | None = None
    utc_offset: float | None = None
    own: dict[str, Any] = field(default_factory=dict)


_NAMES = tuple(f.name for f in fields(Asked))
_WANT = {
    "user": str | int | None,
    "place": tuple[float, float] | None,
    "time": int | str,
    "within_km": float,
    "k": Annotated[int, 1],
    "by": str | None,
    "utc_offset": float | None,
    "own": dict[str, Any],
}
_LISTS = ("history", "candidates")  # long ones: whoever makes columns of them looks at what they hold


@dataclass(frozen=True, slots=True)
class Refused:
    """What is wrong with a request; ``ours``: nothing is, the ranker failed."""

    error: str
    ours: bool = False


Answer = dict[str, list[Any]] | Refused
"""Columns of a list of places, best first, by their names in what ``Ranker.rank`` returns; or why there is none."""


def read(body: bytes) -> Any:
    """The JSON value of a body.

    Raises:
        ValueError: it is none, or has NaN or Infinity in it.
    """

    def no(name: str) -> Any:
        raise ValueError(f"got {name}, which JSON does not have; null is for what is unknown")

    try:
        return json.loads(body, parse_constant=no)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"body: expected JSON: {error}") from error


def asked(value: Any) -> Asked:
    """One request of a JSON value.

    Raises:
        ValueError: an unknown field, one that is missing, or one of another type.
    """
    if not isinstance(value, dict):
        raise ValueError(f"got {_short(value)}, expected a request: an object with user, time and more")
    for name in value:
        if name not in _NAMES:
            near = difflib.get_close_matches(name, _NAMES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"a request has {', '.join(_NAMES)}"
            raise ValueError(f"got a field {_short(name)}; {hint}")
    for name in ("user", "time"):
        if name not in value:
            raise ValueError(f"got no {name}, expected user and time; null is for an unknown user")
    place = value.get("place")
    if place is not None and fault(place, tuple[float, float]):
        raise ValueError(f"place: got {_short(place)}, expected [latitude, longitude] in degrees, or null")
    if found := fault(value, {name: want for name, want in _WANT.items() if name in value}):
        raise ValueError(found)
    for name in _LISTS:
        if not isinstance(value.get(name), list | None):
            raise ValueError(f"{name}: got {_short(value[name])}, expected a list")
    for name in ("within_km", "utc_offset", "place"):
        given = value.get(name)
        for number in given if isinstance(given, list) else [given]:
            if number is not None and not abs(number) < 1e9:  # 1e999 is infinity to Python's JSON
                raise ValueError(f"{name}: got {_short(number)}, expected a number that can be meant")
    return Asked(**(value | {"time": _moment(value["time"], "time"), "history": _history(value.get("history"))}))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _moment(time: Any, name: str) -> int:
    try:
        return seconds(datetime.fromisoformat(time) if isinstance(time, str) else time)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name}: got {_short(time)}, expected whole seconds since 1970 UTC, or text such as 2026-05-01T12:00:00Z"
        ) from error


def _history(visits: list[Any] | None) -> list[tuple[Any, int]]:
    pairs = visits or []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"history: got {_short(pair)}, expected [item id, time] pairs")
    return [(item, _moment(time, "history")) for item, time in pairs]


def rank_together(ranker: Ranker, requests: Sequence[Asked]) -> list[Answer]:
    """Answers to requests, in their order. One that is bad, or that the ranker fails on, takes no other with it.

    What one call of ``Ranker.rank`` can take is ranked in one.
    """
    alike: dict[Any, list[int]] = {}
    for i, request in enumerate(requests):
        reach = request.within_km if request.candidates is None else None
        alike.setdefault((reach, request.by, tuple(sorted(request.own))), []).append(i)
    answers: list[Answer] = [Refused("")] * len(requests)
    for members in alike.values():
        for i, answer in zip(members, _ranked(ranker, [requests[i] for i in members]), strict=True):
            answers[i] = answer
    return answers


def _ranked(ranker: Ranker, requests: list[Asked]) -> list[Answer]:
    """As ``rank_together``, of requests that one call can take; where that fails, of each half."""
    try:
        return _ranked_at_once(ranker, requests)
    except (ValueError, TypeError, KeyError, OverflowError, NotImplementedError) as error:
        if len(requests) == 1:
            told = error.args[0] if isinstance(error, KeyError) and error.args else error
            text = str(told).strip().splitlines() or [type(error).__name__]
            return [Refused(text[0].replace("request 0", "this request"))]
    except Exception:
        if len(requests) == 1:
            log.exception("the ranker failed on %s", _short(requests[0]))
            return [Refused("the ranker failed on this request; the server's log has more", ours=True)]
    half = len(requests) // 2
    return [*_ranked(ranker, requests[:half]), *_ranked(ranker, requests[half:])]


def _ranked_at_once(ranker: Ranker, requests: list[Asked]) -> list[Answer]:
    first = requests[0]
    offsets = [r.utc_offset for r in requests]
    found = ranker.rank(
        [r.user for r in requests],
        [r.place for r in requests],
        [r.time for r in requests],
        [r.history for r in requests],
        None if first.candidates is None else [r.candidates for r in requests],
        first.within_km,
        max(r.k for r in requests),
        by=first.by,
        utc_offset=None if set(offsets) == {None} else offsets,
        own={name: [r.own[name] for r in requests] for name in first.own},
    )
    bounds = np.searchsorted(found["request"].to_numpy(), np.arange(len(requests) + 1)).tolist()
    columns = {name: _plain(found[name]) for name in found.column_names[2:]}  # without request and user_id
    return [
        {name: values[start : min(start + r.k, stop)] for name, values in columns.items()}
        for r, start, stop in zip(requests, bounds, bounds[1:], strict=False)
    ]


def _plain(column: pa.ChunkedArray) -> list[Any]:
    """Values of a column; null for numbers that JSON does not have, such as an unknown distance."""
    if not pa.types.is_floating(column.type):
        values: list[Any] = column.to_pylist()
        return values
    return [x if math.isfinite(x) else None for x in column.to_numpy().tolist()]
