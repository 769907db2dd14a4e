"""Plain values, as JSON and flags have them, checked against what they should be; every error is one line.

What a value should be is written as a type: ``int``, ``float``, ``str``, ``bool``, ``None``, ``Any``, ``Path``,
``Literal[...]``, ``list[X]``, ``tuple[X, ...]``, ``dict[str, X]``, ``X | None``, ``Annotated[int, least]`` (and at most
2**53); or, for an object with fields, as a dict of such by name; or as ``Each``.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .urls import place

log = logging.getLogger(__name__)

C = TypeVar("C")
Count = Annotated[int, 0]
"""A whole number of 0 or more."""
MOST = 2**31 - 1
"""No whole number of any setting is larger."""
_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}


@dataclass(frozen=True)
class Each:
    """An object with any names, among them ``needs``, whose values are all alike."""

    of: Any
    needs: tuple[str, ...] = ()


def read_json(path: Path, want: Any, hint: str) -> Any:
    """The JSON value of a file, which is as ``want`` says.

    Args:
        path: the file.
        want: see above; other fields than the named ones may be there.
        hint: what to do where it is not.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or a field that is missing or of another type; names the file.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, it is not JSON ({error}); {hint}") from None
    if found := fault(value, want):
        raise ValueError(f"{path}: {found}; {hint}")
    return value


def fault(value: Any, want: Any, at: str = "") -> str | None:
    """What is wrong with a plain value, with the dotted name of the field; None where nothing is."""
    if isinstance(want, dict | Each):
        return _fault_of_object(value, want, at)
    origin, args = get_origin(want), get_args(want)
    if origin is Annotated:
        found = fault(value, args[0], at)
        return found or (None if args[1] <= value <= 2**53 else f"{_got(value, at)}, expected {args[1]} to 2**53")
    if origin in (Union, UnionType):
        fits = any(fault(value, arg) is None for arg in args)
        return None if fits else f"{_got(value, at)}, expected {_expected(want)}"
    if origin is dict:
        return fault(value, Each(args[1]), at)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        if origin is tuple and args[-1] is not Ellipsis and len(args) != len(value):
            return f"{_got(value, at)}, expected {len(args)} values"
        return next(filter(None, (fault(x, args[0], f"{at}[{i}]") for i, x in enumerate(value))), None)
    return None if _is(value, want) else f"{_got(value, at)}, expected {_expected(want)}"


def _fault_of_object(value: Any, want: "dict[str, Any] | Each", at: str) -> str | None:
    if not isinstance(value, dict):
        return f"{_got(value, at)}, expected names and values"
    fields = want if isinstance(want, dict) else dict.fromkeys((*want.needs, *value), want.of)
    for name, inner in fields.items():
        where = f"{at}.{name}" if at else name
        found = fault(value[name], inner, where) if name in value else f"{where!r} is missing"
        if found:
            return found
    return None


def _is(value: Any, want: Any) -> bool:
    if want is Any:
        return True
    if get_origin(want) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(want))
    if want is float:
        return type(value) in (int, float)
    if want is Path:
        return isinstance(value, str | Path)
    return type(value) is (NoneType if want is None else want)


def _got(value: Any, at: str) -> str:
    text = repr(value)
    return f"{at + ': ' if at else ''}got {text if len(text) <= 60 else text[:57] + '...'}"


def _expected(want: Any) -> str:
    origin, args = get_origin(want), get_args(want)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (Union, UnionType):
        return " or ".join("null" if arg is NoneType else _expected(arg) for arg in args)
    if origin is Annotated:
        return f"{_NAMES[args[0]]}, {args[1]} or more"
    return (
        "a list" if origin in (list, tuple) else "names and values" if origin is dict else _NAMES.get(want, str(want))
    )


def from_plain(cls: type[C], plain: Any, where: str) -> C:
    """A config from what ``dataclasses.asdict`` and JSON made of one, also of an older version.

    A setting that is missing takes its default, and is told in the log.

    Args:
        cls: a dataclass; its fields may be dataclasses.
        plain: by field name.
        where: begins every message: the file that it comes from.

    Raises:
        ValueError: a field that ``cls`` does not have, one without a default that is missing, or a wrong value.
    """
    lacking: list[str] = []
    made: C = _made(cls, plain, where, "", lacking)
    if lacking:
        log.warning(f"{where} has no {', '.join(lacking)}, as an older placerank wrote it: taken at the default")
    return made


def _made(cls: Any, plain: Any, where: str, at: str, lacking: list[str]) -> Any:
    if not isinstance(plain, dict):
        raise ValueError(f"{where}: {_got(plain, at.rstrip('.'))}, expected names and values")
    hints, known = get_type_hints(cls, include_extras=True), {f.name: f for f in dataclasses.fields(cls)}
    if unknown := sorted(set(plain) - set(known)):
        raise ValueError(
            f"{where}: unknown setting {at + unknown[0]!r}; expected some of {', '.join(known)}: another version of "
            "placerank wrote it, use that one"
        )
    values = {}
    for name, f in known.items():
        if name not in plain:
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise ValueError(f"{where}: {at + name!r} is missing, and has no default")
            lacking.append(at + name)
            continue
        value, hint = plain[name], hints[name]
        if dataclasses.is_dataclass(hint):
            value = _made(hint, value, where, f"{at}{name}.", lacking)
        elif found := fault(value, hint, at + name):
            raise ValueError(f"{where}: {found}")
        elif value is not None and Path in (hint, *get_args(hint)):
            value = place(value)
        elif isinstance(value, list) and get_origin(hint) is tuple:
            value = tuple(value)
        values[name] = value
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings within settings by dotted names, in their order: ("ranker.tower", "din")."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def set_places(config: Any) -> None:
    """Let every path of a config be a local one or a ``Url``, also where it was given as text or as a ``Path``.

    For ``__post_init__``.

    Raises:
        ValueError: a URL that placerank can't read; names the setting.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if value is not None and Path in (hint, *get_args(hint)):
            try:
                setattr(config, name, place(value))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None


def check_types(config: Any, at: str) -> None:
    """That the fields of a config, and of those that it holds, are of their types: Python itself looks at none.

    Args:
        config: a dataclass.
        at: begins the settings' names; "": nothing does.

    Raises:
        TypeError: names the setting, what was got and what was expected.
    """
    _check_held(config, at)
    hints = get_type_hints(type(config), include_extras=True)
    for f in dataclasses.fields(config):
        value, hint, where = getattr(config, f.name), hints[f.name], f"{at}.{f.name}" if at else f.name
        if dataclasses.is_dataclass(value):
            check_types(value, where)
            continue
        number = value.item() if isinstance(value, Real) and hasattr(value, "item") else value  # NumPy's
        if found := fault(number, hint, where):
            raise TypeError(found)


def _check_held(config: Any, at: str) -> None:
    """Raises TypeError where something else stands in place of the settings that a config holds."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type) and not isinstance(value, f.type):
            where = f"{at}.{f.name}" if at else f.name
            raise TypeError(f"{_got(value, where)}, expected settings, a {f.type.__name__}(...)")


def check_numbers(
    config: Any, prefix: str, endless: tuple[str, ...] = (), least: dict[str, int] | None = None, **most: int
) -> None:
    """That a config's values are of their types, and that every number in it can be computed with: finite, and whole
    ones at most ``MOST`` or as told here.

    For ``__post_init__``; looks into lists and dicts, not into the configs that a config holds.

    Args:
        config: a dataclass.
        prefix: of the settings' names.
        endless: fields for which infinity means that there is no limit.
        least: the smallest number of a field.
        most: the largest whole number of a field.

    Raises:
        ValueError: names the setting.
        TypeError: as ``check_types``.
    """
    check_types(config, prefix)
    for f in dataclasses.fields(config):
        limit = most.get(f.name, MOST)
        for key, value in _numbers(getattr(config, f.name)):
            where = f"{prefix}.{f.name}" if prefix else f.name
            where += f" {key}" if key else ""
            if math.isnan(value) or (math.isinf(value) and f.name not in endless):
                raise ValueError(f"{where}={value}: expected a finite number")
            whole = isinstance(value, Integral)
            if whole and abs(value) > limit:
                raise ValueError(f"{where}={value}: expected at most {limit:,}")
            if least and value < least.get(f.name, -math.inf):
                raise ValueError(f"{where}={value}: expected at least {least[f.name]}")


def _numbers(value: Any) -> Iterator[tuple[str, Any]]:
    """Every number of a value, with its key in a dict."""
    if not isinstance(value, dict | list | tuple):
        value = [value]
    for key, x in value.items() if isinstance(value, dict) else (("", x) for x in value):
        if not isinstance(x, bool) and isinstance(x, Real):
            yield str(key), x
