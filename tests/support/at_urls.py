"""For tests of what lies behind URLs."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from placerank.data.urls import listed, place, put_files

MARK = ".unfinished"


@contextmanager
def work_folder(folder: Path) -> Iterator[None]:
    """Within the block ``TMPDIR`` is this folder, also for ranks that are started."""
    folder.mkdir(exist_ok=True)
    with mock.patch.dict("os.environ", {"TMPDIR": str(folder)}), mock.patch.object(tempfile, "tempdir", str(folder)):
        yield


def put(folder: Path, url: str) -> Path:
    """Put all files of a local folder, as anybody's tool does."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    put_files(folder, names, place(url))
    return place(url)


def names(url: Path) -> list[str]:
    """All names that lie there, the mark of an unfinished folder too."""
    return [*listed(url), *([MARK] if (url / MARK).is_file() else [])]
