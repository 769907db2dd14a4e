"""``import placerank as pr``: its names, for people, editors and type checkers, and what importing them costs."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import placerank as pr

STEPS = ("simulate", "prepare", "align", "tokenize", "train", "adapt", "evaluate", "generate", "export", "apply")


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, placerank; dir(placerank); print([m for m in ('numpy', 'torch', 'pyarrow') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.strip() == "[]"


def test_type_checkers_see_what_python_does() -> None:
    tree = ast.parse(Path(str(pr.__file__)).read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    told = {
        alias.name: f".{node.module}"
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == pr._HOMES
    assert set(pr.__all__) == {"__version__", *told}


def test_every_name_is_there() -> None:
    assert {name for name in pr.__all__ if not hasattr(pr, name)} == set()
    assert set(pr.__all__) <= set(dir(pr))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        pr.trian  # type: ignore[attr-defined]  # noqa: B018


def held(config: type, found: set[type]) -> set[type]:
    """A dataclass of settings and those that it holds."""
    if config not in found:
        found.add(config)
        for hint in get_type_hints(config).values():
            for kind in (hint, *get_args(hint)):
                if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                    held(kind, found)
    return found


@pytest.mark.parametrize("step", STEPS)
def test_all_settings_of_a_step_have_names(step: str) -> None:
    assert callable(getattr(pr, step))
    names: dict[str, Any] = {
        config.__name__: config for config in held(getattr(pr, f"{step.capitalize()}Config"), set())
    }
    assert {name: getattr(pr, name, None) for name in names} == names


def test_documents_name_what_there_is() -> None:
    root = Path(__file__).resolve().parents[2]
    texts = [(root / name).read_text() for name in ("README.md", "docs/python.md", "docs/tour.ipynb", "docs/tune.py")]
    for text in texts:
        named = set(re.findall(r"\bpr\.([A-Za-z_]+)", text))
        assert named and named <= set(pr.__all__)
    held = re.findall(r"^\| `pr\.(\w+)` \| `(\w+)` \| `(\w+)` \|", texts[1], re.MULTILINE)
    assert {step for step, _, _ in held} == set(STEPS)
    for step, config, result in held:
        assert config == f"{step.capitalize()}Config" and get_type_hints(getattr(pr, step), vars(pr))[
            "return"
        ] is getattr(pr, result)
