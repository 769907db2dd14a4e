"""A dataclass of settings back from JSON, by its types: what is missing, unknown or of another type is told by name."""

import logging
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

log = logging.getLogger(__name__)
C = TypeVar("C")


def from_json(cls: type[C], values: Any, file: Path) -> C:
    """The settings that a run was made with.

    A field that the file lacks (an older version wrote it) gets its default, one that this version does not know is
    left out; both are told.

    Args:
        cls: a dataclass of numbers, strings, paths, lists, dicts and further such dataclasses.
        values: what the file holds.
        file: named in messages.

    Raises:
        ValueError: a value of another type or outside of what its field takes, or none where there is no default.
    """
    missing: list[str] = []
    unknown: list[str] = []
    try:
        made: C = _value(cls, values, "", missing, unknown)
    except ValueError as error:
        raise ValueError(
            f"{file} can't be used: {error}; it is damaged or another version wrote it: mend it or train again"
        ) from None
    if missing:
        _warn_once(f"{file} lacks {', '.join(missing)}, as an older version's would: taken as the defaults of today")
    if unknown:
        _warn_once(f"{file} has settings that this version does not know: {', '.join(unknown)}; they are left out")
    return made


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


def _value(hint: Any, value: Any, name: str, missing: list[str], unknown: list[str]) -> Any:
    def inner(hint: Any, value: Any, name: str) -> Any:
        return _value(hint, value, name, missing, unknown)

    def wrong(expected: str) -> ValueError:
        return ValueError(f"{name or 'the whole'} is {value!r}, expected {expected}")

    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise wrong("names and values")
        hints, made, prefix = get_type_hints(hint), {}, f"{name}." if name else ""
        unknown += [f"{prefix}{key}" for key in value if key not in hints]
        for f in fields(hint):
            if f.name in value:
                made[f.name] = inner(hints[f.name], value[f.name], f"{prefix}{f.name}")
            elif f.default is MISSING and f.default_factory is MISSING:
                raise ValueError(f"{prefix}{f.name} is missing")
            else:
                missing.append(f"{prefix}{f.name}")
        return hint(**made)
    if origin in (Union, UnionType):
        rest = [a for a in args if a is not type(None)]
        return None if value is None and len(rest) < len(args) else inner(rest[0], value, name)
    if origin is Literal:
        if value not in args:
            raise wrong(f"one of {', '.join(map(str, args))}")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise wrong("a list")
        return [inner(args[0], x, f"{name}[{i}]") for i, x in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong("names and values")
        return {key: inner(args[1], x, f"{name}.{key}") for key, x in value.items()}
    kinds = {float: (int, float), Path: (str,)}.get(hint, (hint,))
    if not isinstance(value, kinds) or (isinstance(value, bool) and hint is not bool):
        raise wrong("a path" if hint is Path else hint.__name__)
    return Path(value) if hint is Path else value
