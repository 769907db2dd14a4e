"""Every setting of every class of settings: what is of another type is told by name when the settings are made."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import placerank
from placerank.data.plain import fault

WRONG: tuple[Any, ...] = ("3", 3, 2.5, True, None, ["3"], [3], {"a": "3"}, object())
NEEDED = {Path: "x", str: "1", tuple[Path, ...]: ("a", "b")}


def classes() -> Iterator[type]:
    """Of all modules of settings but the command's own."""
    for module in pkgutil.walk_packages(placerank.__path__, "placerank."):
        if module.name.rpartition(".")[2] in ("settings", "config", "preference") and ".cli." not in module.name:
            found = importlib.import_module(module.name)
            for value in vars(found).values():
                if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.name:
                    yield value


CLASSES = list(classes())


@pytest.mark.parametrize("settings", CLASSES, ids=[c.__name__ for c in CLASSES])
def test_a_setting_of_another_type_is_told_by_name(settings: Any) -> None:
    hints = get_type_hints(settings, include_extras=True)
    none = dataclasses.MISSING
    needed = [f for f in dataclasses.fields(settings) if f.default is none and f.default_factory is none]
    good = {f.name: NEEDED[hints[f.name]] for f in needed}
    for f in dataclasses.fields(settings):
        tried = 0
        for value in WRONG:
            if not dataclasses.is_dataclass(hints[f.name]) and fault(value, hints[f.name]) is None:
                continue
            tried += 1
            with pytest.raises(TypeError) as told:
                settings(**good | {f.name: value})
            assert f"{f.name}" in str(told.value) and ": got " in str(told.value), (f.name, value)
            assert "expected " in str(told.value) and "\n" not in str(told.value)
        assert tried >= 5


def test_all_settings_of_the_steps_are_there() -> None:
    names = {c.__name__ for c in CLASSES}
    public = {name for name in placerank.__all__ if name.endswith(("Config", "Options", "Settings"))}
    assert public <= names and len(names) > 40
