"""Every way in which one field of a JSON value can be wrong."""

import copy
import json
from collections.abc import Iterator
from typing import Any

WRONG = (None, -1, 10**30, 0.5, True, "x", [], {}, [3], {"x": 3})


def fields_of(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every field of nested dicts and lists."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in pairs:
        yield (*at, name)
        yield from fields_of(inner, (*at, name))


def without(value: Any, way: tuple[Any, ...]) -> Any:
    """A copy that lacks a field."""
    changed = copy.deepcopy(value)
    holder = changed
    for name in way[:-1]:
        holder = holder[name]
    del holder[way[-1]]
    return changed


def replaced(value: Any, way: tuple[Any, ...], by: Any) -> Any:
    """A copy with another value in a field."""
    changed = copy.deepcopy(value)
    holder = changed
    for name in way[:-1]:
        holder = holder[name]
    holder[way[-1]] = by
    return changed


def spoiled(value: Any) -> Iterator[tuple[str, str]]:
    """What was done, and the text of the file then: each field dropped or of another type, the text cut, or no JSON."""
    for way in fields_of(value):
        name = ".".join(map(str, way))
        yield f"without {name}", json.dumps(without(value, way))
        for wrong in WRONG:
            yield f"{name} = {wrong!r}", json.dumps(replaced(value, way, wrong))
    text = json.dumps(value)
    for end in (0, 1, len(text) // 2, len(text) - 1):
        yield f"cut at {end}", text[:end]
    for other in ("[]", "3", "null", '"x"', "[" * 100_000):
        yield f"{other[:9]} instead", other
