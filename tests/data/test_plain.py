"""Values that are not what they should be are told by name; configs come back from what was written of them."""

import json
import logging
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from placerank.data.plain import Count, Each, check_numbers, fault, from_plain, read_json


@pytest.mark.parametrize(
    ("value", "want", "said"),
    [
        (3, int, None),
        (True, int, "got True, expected a whole number"),
        (3.0, int, "got 3.0, expected a whole number"),
        (3, float, None),
        ("3", float, "got '3', expected a number"),
        (None, str, "got None, expected a text"),
        (None, str | None, None),
        (1, str | None, "got 1, expected a text or null"),
        (-1, Count, "got -1, expected 0 to 2**53"),
        (math.nan, Annotated[float, 0], "got nan, expected 0 to 2**53"),
        ("b", Literal["a", "b"], None),
        ("c", Literal["a", "b"], "got 'c', expected one of a, b"),
        (True, Literal[1], "got True, expected one of 1"),
        ([1, 2], list[int], None),
        ([1, "x"], list[int], "[1]: got 'x', expected a whole number"),
        ("ab", list[str], "got 'ab', expected a list"),
        ([1, 2, 3], tuple[int, int], "got [1, 2, 3], expected 2 values"),
        ({"a": 1}, dict[str, int], None),
        ({"a": "x"}, dict[str, int], "a: got 'x', expected a whole number"),
        ([], {"a": int}, "got [], expected names and values"),
        ({"b": 1}, {"a": int}, "'a' is missing"),
        ({"a": {"b": {}}}, {"a": {"b": {"c": int}}}, "'a.b.c' is missing"),
        ({"a": 1, "more": "is fine"}, {"a": int}, None),
        ({"x": {"n": 1}}, Each({"n": int}), None),
        ({"x": {"n": 1}}, Each({"n": int}, needs=("y",)), "'y' is missing"),
        ({"x": 1, "y": "z"}, Each(int, needs=("x",)), "y: got 'z', expected a whole number"),
        ("x" * 99, int, f"got '{'x' * 56}..., expected a whole number"),
    ],
)
def test_faults(value: Any, want: Any, said: str | None) -> None:
    assert fault(value, want) == said


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text in (b"", b'{"a": 1', b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=r"a\.json is damaged, it is not JSON .*; make it again"):
            read_json(path, Any, "make it again")
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"a\.json: got \[1\], expected names and values; make it again"):
        read_json(path, {"a": int}, "make it again")


@dataclass(kw_only=True)
class Inner:
    rate: float = 0.5

    def __post_init__(self) -> None:
        check_numbers(self, "inner")


@dataclass(kw_only=True)
class Config:
    out: Path
    rows: int = 3
    reach: float = 1.0
    widths: tuple[int, ...] = (4, 2)
    plan: dict[str, float] = field(default_factory=dict)
    add: Path | None = None
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        check_numbers(self, "config", endless=("reach",), widths=100)


def test_a_config_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    config = Config(out=Path("x"), widths=(7,), plan={"a": 1.0}, add=Path("y"), inner=Inner(rate=0.1))
    plain = json.loads(json.dumps(asdict(config), default=str))
    assert from_plain(Config, plain, "here") == config and not caplog.text


def test_what_an_older_version_lacks_takes_its_default_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert from_plain(Config, {"out": "x", "rows": 5, "inner": {}}, "here") == Config(out=Path("x"), rows=5)
    (said,) = caplog.messages
    assert said.startswith("here has no reach, widths, plan, add, inner.rate, as an older placerank wrote it")


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ([], r"here: got \[\], expected names and values"),
        ({}, "here: 'out' is missing, and has no default"),
        ({"out": "x", "depth": 3}, "here: unknown setting 'depth'; expected some of out, rows"),
        ({"out": "x", "inner": {"rat": 3}}, "here: unknown setting 'inner.rat'"),
        ({"out": "x", "rows": "3"}, "here: rows: got '3', expected a whole number"),
        ({"out": "x", "inner": 3}, "here: inner: got 3, expected names and values"),
        ({"out": "x", "inner": {"rate": math.inf}}, "here: inner.rate=inf: expected a finite number"),
        ({"out": "x", "widths": [101]}, "here: config.widths=101: expected at most 100"),
    ],
)
def test_what_is_wrong_in_a_config_is_told(plain: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_plain(Config, plain, "here")


def test_numbers() -> None:
    assert Config(out=Path("x"), reach=math.inf).reach == math.inf
    for wrong in ({"reach": math.nan}, {"rows": 2**31}, {"rows": -(2**31)}, {"plan": {"a": math.inf}}):
        with pytest.raises(ValueError, match=f"config.{next(iter(wrong))}( a)?="):
            Config(out=Path("x"), **wrong)  # type: ignore[arg-type]
