"""Manifests: what a step wrote, with which config and versions, from what; and whole files and folders or none.

Every file set that placerank writes is a folder with a ``manifest.json``. A folder is written under a
temporary name beside its place and renamed when whole, so a folder that has its name is complete. What a killed process
left under such a name is removed when the next one writes there (see ``leftovers``). Behind a URL nothing is renamed:
there the manifest comes last, and a folder without one is not there (see ``urls``).
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, Literal

from .leftovers import remove_leftovers, unfinished
from .plain import Count, Each, fault, read_json
from .urls import Url, at_work, fingerprints, place, put_folder, sizes, was_begun

MANIFEST = "manifest.json"
_PACKAGES = ("placerank", "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "triton", "numba", "numpy", "pyarrow")


@dataclass(frozen=True)
class Kind:
    """A kind of folder.

    Attributes:
        made_by: the command that makes it.
        fields: what its readers take from the manifest, see ``plain``; besides those of ``_COMMON``.
        format: counts the changes after which an older placerank would misread the folder. A manifest without a
            number is older than the numbers and is read as format 1.
        oldest: the oldest format that can still be read.
        optional: as fields, of those that some folders lack.
    """

    made_by: str
    fields: dict[str, Any]
    format: int = 1
    oldest: int = 1
    optional: dict[str, Any] = field(default_factory=dict)


_FILES = Each({"bytes": Count, "sha256": str})
_COMMON = {"content_hash": str, "made_from": dict[str, str], "config": dict[str, Any], "files": _FILES}
_SPLIT = {
    "rows": Count,
    "positives": Count,
    "mean_history": Annotated[float, 0],
    "row_groups": dict[str, list[Count]],
}
_TABLE = {"rows": Count, "dim": Count, "format": str, "dtype": str, "file": str}
_OWN = {
    "name": str,
    "of": Literal["items", "users", "interactions"],
    "column": str,
    "kind": Literal["category", "buckets", "number", "list"],
    "table": str | None,
    "joins": Literal["target", "history", "user", "request", "candidate"],
    "width": int | None,
}
_OUTCOMES = {
    "labels": list[str],
    "amount": str | None,
    "weight": str | None,
    "train": {
        "positives": dict[str, Count],
        "outside": Each(dict[str, Count]),
        "amount": {"rows": Count, "sum": float},
    },
}
_TOKENS = {"lineage": list[str], "levels": Count, "codes": Count, "lookup": Literal["codes", "prefix_ngrams"]}
_CHANGED = {"rows": Count, "base": Count, "block": Count, "changed": Count, "gone": Count}
KINDS = {
    "raw": Kind("placerank simulate", {}),
    "prepared": Kind(
        "placerank prepare",
        {
            "tables": Each(Count, needs=("item", "user", "category")),
            "splits": Each(_SPLIT),
            "history_length": Count,
            "user_columns": list[str],
            "source": Literal["impressions", "check-ins"],
        },
        format=2,  # 1: a row of the samples was a candidate, with a history of its own
        oldest=2,
        optional={"own": GenericAlias(list, (_OWN,)), "outcomes": _OUTCOMES, "cluster_visits": Count},
    ),
    "align": Kind(
        "placerank align",
        {"encoder": dict[str, Any], "prompts": dict[str, Any], "items": Count},
        optional={"users": {"by": Literal["none", "text", "mean"], "history": Count}},
    ),
    "tokenizer": Kind(
        "placerank tokenize",
        {"tokenizer": str, "options": dict[str, Any], "dim": Count, "encoder": dict[str, Any]},
    ),
    "tokens": Kind("placerank tokenize", {**_TOKENS, "items": Count}),
    "user_tokens": Kind("placerank tokenize", {**_TOKENS, "users": Count}),
    "evaluation": Kind(
        "placerank evaluate",
        {"trained": {"settings": dict[str, Any]}},
        format=2,  # 1: without the slices of rows and the settings of the run
        oldest=2,
    ),
    "comparison": Kind("placerank compare", {}),
    "lists": Kind("placerank generate or predict", {}),
    "advisor": Kind("placerank adapt", {"step": Count}),
    "export": Kind("placerank export", {"tables": Each(_TABLE)}),
    "delta": Kind(
        "placerank export --since",
        {"base": str, "result": str, "pyarrow": str, "rows": Each(_CHANGED)},
    ),
}


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def describe_file(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as manifests list them."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def joint_hash(files: Iterable[tuple[str, str]]) -> str:
    """One hash for files in a certain order, each by its name and its SHA-256."""
    return hashlib.sha256("".join(f"{name}\0{sha256}\n" for name, sha256 in files).encode()).hexdigest()


def verify_files(folder: Path, files: Mapping[str, dict[str, Any]], mend: str = "make the folder again") -> None:
    """That files are as they were written.

    Args:
        folder: where they are.
        files: by name, of the folder's manifest; all of its or some.
        mend: what to do where one is not, for the message.

    Raises:
        ValueError: another hash; names the file.
    """
    for name, want in files.items():
        if sha256_file(folder / name) != want["sha256"]:
            raise ValueError(f"{folder / name}: content differs from what was written (sha256); {mend}")


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide what a run computes."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def source_commit() -> str | None:
    """Commit of the checkout that placerank is imported from, ``+dirty`` appended; None outside of one."""
    here = Path(__file__).resolve().parent
    try:
        run = lambda *args: subprocess.run(  # noqa: E731
            ["git", "-C", str(here), *args], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        return run("rev-parse", "HEAD") + ("+dirty" if run("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def environment() -> dict[str, Any]:
    """Versions, device and commit, as stored with every run. What hasn't imported torch has run on the CPU."""
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "device": torch.cuda.get_device_name() if torch is not None and cuda else f"cpu ({os.cpu_count()} cores)",
        "commit": source_commit(),
    }


def _plain(value: Any) -> Any:
    """A dataclass, path or container as JSON-ready values."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file beside ``path``, to be written by the block, that takes its name when the block ends without an error.

    On an error it is removed and ``path`` is as it was. Its name is of this call alone, so several ranks may write
    the same file.
    """
    tmp = unfinished(path, "tmp", uuid.uuid4().hex[:8])
    try:
        yield tmp
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def drop_lines_after(path: Path, step: int) -> int:
    """Drop what a JSON-lines file says of steps after this one, which will be done again, and a half-written line.

    Returns:
        How many other lines were damaged and are dropped too.
    """
    if not path.is_file():
        return 0

    def step_of(line: str) -> float | None:
        try:
            return float(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            return None

    lines = [(line, step_of(line)) for line in path.read_text(errors="replace").splitlines()]
    with whole_file(path) as tmp:
        tmp.write_text("".join(f"{line}\n" for line, at in lines if at is not None and at <= step))
    return sum(at is None for _, at in lines[:-1])


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is either the old one or the whole new one, also when several ranks write it."""
    with whole_file(path) as tmp:
        tmp.write_text(json.dumps(_plain(value), indent=2) + "\n")


def write_manifest(folder: Path, kind: str, config: Any, made_from: dict[str, str] | None = None, **extra: Any) -> None:
    """Describe every file under ``folder`` in its ``manifest.json``.

    Args:
        folder: an existing folder; all its files are hashed.
        kind: what it holds, of ``KINDS``; ``read_manifest`` checks it.
        config: the dataclass that made it.
        made_from: name -> ``content_hash`` of what it was made from.
        extra: further JSON-ready fields, stored as they are.
    """
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    with ThreadPoolExecutor() as threads:
        described = threads.map(describe_file, paths)
        files = {path.relative_to(folder).as_posix(): found for path, found in zip(paths, described, strict=True)}
    write_json(
        folder / MANIFEST,
        {
            "kind": kind,
            "format": KINDS[kind].format,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "content_hash": joint_hash((name, file["sha256"]) for name, file in files.items()),
            "made_from": made_from or {},
            "config": config,
            "environment": environment(),
            **extra,
            "files": files,
        },
    )


def read_manifest(folder: Path, kind: str, verify: bool = False) -> dict[str, Any]:
    """The manifest of a folder; ``verify`` also compares every file's size and hash.

    Raises:
        FileNotFoundError: no manifest: the folder is not one of ours, or the step did not finish.
        ValueError: another kind of folder, one of a newer or a too old placerank, a manifest that is damaged or lacks a
            field, or a file that is missing or differs from what was written.
    """
    path, known = folder / MANIFEST, KINDS[kind]
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} not found: expected a finished {kind!r} folder; run the step that makes it, or check the path"
        )
    again = f"make the folder again with {known.made_by}"
    manifest: dict[str, Any] = read_json(path, dict[str, Any], again)
    if manifest.get("kind") != kind:
        raise ValueError(f"{folder} holds {manifest.get('kind')!r}, expected {kind!r}; check the path")
    written = manifest.setdefault("format", 1)
    if type(written) is int and written > known.format:
        raise ValueError(
            f"{path}: got format {written}, this placerank reads up to {known.format}: a newer one wrote it; read it "
            f"with that one, or {again}"
        )
    if type(written) is int and 0 <= written < known.oldest:
        raise ValueError(
            f"{path}: got format {written} of an older placerank, expected {known.oldest} or more; {again}"
        )
    optional = {name: want for name, want in known.optional.items() if name in manifest}
    if found := fault(manifest, {"format": Count, **_COMMON, **known.fields, **optional}):
        raise ValueError(f"{path}: {found}; it is damaged, or another version of placerank wrote it: {again}")
    there = sizes(folder, manifest["files"])
    for name, want in manifest["files"].items():
        file, size = folder / name, there[name]
        if size != want["bytes"]:
            got = "missing" if size is None else f"{size} bytes"
            raise ValueError(f"{file}: {got}, the manifest says {want['bytes']} bytes; make the folder again")
    if verify:
        verify_files(folder, manifest["files"])
    return manifest


def content_hash(folder: Path) -> str | None:
    """The content hash of a folder of any kind; None where it has no manifest of ours that can be read."""
    try:
        manifest = read_json(folder / MANIFEST, {"kind": str, "content_hash": str}, "")
    except (OSError, ValueError):
        return None
    return str(manifest["content_hash"]) if manifest["kind"] in KINDS else None


def fingerprint(path: Path) -> str:
    """Content hash of raw data: of its manifest, or its files; behind a URL of their sizes and times of change."""
    if known := content_hash(path):
        return known
    if isinstance(path, Url):
        return joint_hash(fingerprints(path))
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return joint_hash((p.name, sha256_file(p)) for p in files)


def check_parents(path: Path) -> None:
    """Raises NotADirectoryError if ``path`` lies in what is a file."""
    for parent in () if isinstance(path, Url) else path.parents:
        if parent.is_file():
            raise NotADirectoryError(f"{path} can't be made: {parent} is a file, not a folder; choose another path")


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Raises FileExistsError if ``path`` exists and ``overwrite`` is False, or is no folder that placerank wrote;
    NotADirectoryError as ``check_parents``."""
    check_parents(path)
    if not path.exists() or was_begun(path, MANIFEST):
        return
    if not overwrite:
        raise FileExistsError(f"{path} exists; choose another folder, or pass --overwrite to replace it")
    if not (path / MANIFEST).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(
            f"{path} was not written by placerank (no {MANIFEST}), so it is not replaced; choose another"
        )


def replace_folder(new: Path, path: Path) -> None:
    """Give ``new`` the name ``path``, or put it there where that is a URL; what had it is removed after, or before."""
    if isinstance(path, Url):
        put_folder(new, path, MANIFEST)
        shutil.rmtree(new, ignore_errors=True)
        return
    old = unfinished(path, "old")
    try:
        if path.exists():
            os.rename(path, old)
        os.rename(new, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def whole_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its name when the block ends without an error.

    On an error it is removed and ``path`` is as it was. What dead processes left beside ``path`` is removed first.
    For a URL the temporary folder is a local one all the same, under ``TMPDIR``.

    Raises:
        FileExistsError: ``path`` exists and ``overwrite`` is False, or is no folder that placerank wrote.
    """
    path = place(path)
    here = at_work(path)
    remove_leftovers(here.parent)
    check_replaceable(path, overwrite)
    here.parent.mkdir(parents=True, exist_ok=True)
    tmp = unfinished(here, "partial")
    shutil.rmtree(tmp, ignore_errors=True)
    try:
        tmp.mkdir()
        yield tmp
        replace_folder(tmp, path)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise
