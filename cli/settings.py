"""Typed settings from defaults, a file and flags, in that order.

The file's keys are turned into flags and put before the user's own, so that one parser (tyro) checks all values
against the types, and a config's ``__post_init__`` sees only the final ones.
"""

import dataclasses
import difflib
import inspect
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ..data.urls import place

C = TypeVar("C")
O = TypeVar("O", bound="Options")  # noqa: E741


_RULES = ConstructorRegistry()


@_RULES.primitive_rule
def _path(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    """Paths may be URLs, whose slashes ``Path`` would fold."""
    if info.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda args: place(args[0]),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda value: [str(value)],
    )


class SettingsError(ValueError):
    """The flags or the file of a command are wrong; nothing has run yet."""


@dataclass(kw_only=True)
class Options:
    """Options of every command, beside its settings."""

    config: Path | None = None
    """A TOML file (or the config.json of a run) whose keys override the defaults; flags override the file."""
    print_config: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the resolved settings as such a file and exit."""
    traceback: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show where in the code an error came from."""


@dataclass(kw_only=True)
class RankOptions(Options):
    """Options of a command that can run on several ranks."""

    nproc: int = 1
    """Ranks to run on this machine; more than one starts torchrun."""

    def __post_init__(self) -> None:
        if self.nproc < 1:
            raise ValueError(f"nproc: got {self.nproc}, expected at least 1")


@dataclass(kw_only=True)
class ThreadOptions(RankOptions):
    """Options of a command that has threads on a machine, and ranks where a user starts torchrun."""

    nproc: int = 1
    """Cores to use: so many threads of this process share the work."""


def parse(prog: str, config_type: type[C], options_type: type[O], argv: list[str]) -> tuple[C, O]:
    """The settings of a command and its options.

    Unknown flags and values of a wrong type end the process with code 2 and a message, ``--help`` with code 0.

    Raises:
        SettingsError: the config file cannot be read or has an unknown key, or a config's ``__post_init__`` refused.
    """
    both = dataclasses.make_dataclass(
        config_type.__name__,
        [
            ("settings", Annotated[config_type, tyro.conf.arg(name="")]),
            ("options", Annotated[options_type, tyro.conf.arg(name="")]),
        ],
        kw_only=True,
    )
    description = inspect.cleandoc(config_type.__doc__ or "").partition("\n\nAttributes:")[0]
    try:
        path = config_path(argv)
        from_file = file_flags(path, config_type) if path else []
        with _RULES:
            parsed: Any = tyro.cli(both, prog=prog, description=description, args=[*from_file, *argv])
    except (ValueError, OSError) as error:
        raise SettingsError(str(error)) from error
    return parsed.settings, parsed.options


def config_path(argv: list[str]) -> Path | None:
    """What follows ``--config``, before the flags are parsed; None without."""
    for flag, value in zip(argv, [*argv, None][1:], strict=True):
        if flag.startswith("--config="):
            return place(flag.removeprefix("--config="))
        if flag == "--config" and value is not None:
            return place(value)
    return None


def file_flags(path: Path, config_type: type) -> list[str]:
    """The keys of a config file as flags of the command.

    Raises:
        ValueError: not TOML (or JSON, by its name), an unknown key, or a value that its field cannot hold.
    """
    text = path.read_text()
    try:
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: got a {type(content).__name__}, expected names and values")
    return list(_flags(path, content, config_type, ""))


def _flags(path: Path, content: Mapping[str, Any], config_type: type, prefix: str) -> Iterator[str]:
    fields = {field.name: field for field in dataclasses.fields(config_type)}
    hints = get_type_hints(config_type)
    for key, value in content.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {prefix + near[0]!r}?" if near else f"known: {', '.join(fields)}"
            raise ValueError(f"{path}: unknown key {prefix + key!r}; {hint}")
        name = (prefix + key).replace("_", "-")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise ValueError(f"{path}: {prefix + key}: got {value!r}, expected a table of settings")
            yield from _flags(path, value, hints[key], f"{prefix}{key}.")
        elif hints[key] is bool and _has_default(fields[key]):  # a switch: --name or --no-name, without a value
            if not isinstance(value, bool):
                raise ValueError(f"{path}: {prefix + key}: got {value!r}, expected true or false")
            yield f"--{name}" if value else "--" + ".".join([*name.split(".")[:-1], "no-" + name.split(".")[-1]])
        elif isinstance(value, dict):
            yield from [f"--{name}", *(str(part) for pair in value.items() for part in pair)]
        elif isinstance(value, list):
            yield from [f"--{name}", *map(str, value)]
        else:
            yield f"--{name}={value}"


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def to_toml(config: Any) -> str:
    """A config as the TOML file that gives it again; what is None is a comment, for TOML has no null."""
    return "\n".join(_toml_lines(config, "")) + "\n"


def _toml_lines(config: Any, table: str) -> Iterator[str]:
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    nested = {name: value for name, value in values.items() if dataclasses.is_dataclass(value)}
    for name, value in values.items():
        if name not in nested:
            yield f"# {name} is not set" if value is None else f"{name} = {_toml_value(value)}"
    for name, value in nested.items():
        yield from ["", f"[{table}{name}]", *_toml_lines(value, f"{table}{name}.")]


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {_toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML wants this one escaped too
