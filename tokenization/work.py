"""A step's folder that can be taken up again: unfinished beside its place, and under its name when it is whole."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..data.leftovers import remove_leftovers
from ..data.manifest import check_replaceable, replace_folder, write_json
from ..data.plain import read_json
from ..data.urls import at_work, check_seen
from .ranks import Ranks

_IDENTITY, _WHOLE = "identity.json", "whole"


def partial_of(out: Path) -> Path:
    """Where an unfinished folder lies, with what identifies it: both go when it is whole."""
    here = at_work(out)
    return here.with_name(f".{here.name}.partial")


@contextmanager
def resumable_folder(
    out: Path, identity: dict[str, Any], *, resume: bool, overwrite: bool, ranks: Ranks
) -> Iterator[Path]:
    """The unfinished folder of ``out``, which takes its name when the block ends without an error.

    On an error, or when the process is killed, it stays as it is; the next start with ``resume`` gets it again. All
    ranks enter and leave together; the first one makes, checks and renames.

    Args:
        identity: JSON-ready, but for paths: what decides the result. An unfinished folder of another is refused.
        resume: go on with an unfinished folder, if there is one.
        overwrite: replace ``out``, and forget an unfinished folder.

    Raises:
        FileExistsError: ``out`` exists, or was begun, and neither flag says what to do; or is none of placerank's.
        ValueError: the unfinished folder was begun with other settings.
    """
    partial = partial_of(out)
    if ranks.is_first:
        _clear(partial.parent, partial)
    ranks.barrier()
    check_replaceable(out, overwrite)
    if partial.exists() and not resume and not overwrite:
        raise FileExistsError(
            f"{out} was begun and has not finished; pass --resume to go on with it, or --overwrite to start anew"
        )
    wanted = json.loads(json.dumps(identity, default=str))
    if partial.exists() and resume and (partial / _IDENTITY).is_file():
        found = read_json(partial / _IDENTITY, dict[str, Any], "pass --overwrite to start anew")
        differs = [f"{name}: {a!r}, now {b!r}" for name, a, b in _differences(found, wanted, "")]
        if differs:
            raise ValueError(
                f"{out} was begun with other settings ({'; '.join(differs)}); set them as they were, or pass "
                "--overwrite to start anew"
            )
    ranks.barrier()  # all have looked
    if ranks.is_first:
        if partial.exists() and not resume:
            shutil.rmtree(partial)
        (partial / _WHOLE).mkdir(parents=True, exist_ok=True)
        write_json(partial / _IDENTITY, identity)
    ranks.barrier()
    ranks.each(lambda: check_seen(partial))
    yield partial / _WHOLE
    ranks.barrier()

    def finish() -> None:
        replace_folder(partial / _WHOLE, out)
        shutil.rmtree(partial, ignore_errors=True)

    ranks.first(finish)


def _clear(parent: Path, partial: Path) -> None:
    """Remove what dead processes left: half-written files, and the rest of a run that was killed when it was whole."""
    remove_leftovers(parent)
    for folder, _, _ in os.walk(partial):
        remove_leftovers(Path(folder))
    if partial.is_dir() and not (partial / _WHOLE).exists():
        shutil.rmtree(partial)


def _differences(a: Any, b: Any, at: str) -> Iterator[tuple[str, Any, Any]]:
    """Where two JSON values differ, with dotted names."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in sorted({*a, *b}):
            yield from _differences(a.get(name), b.get(name), f"{at}.{name}" if at else name)
    elif a != b:
        yield at, a, b
