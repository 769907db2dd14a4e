"""A run whose folder is a URL: trained in a local folder, of which what is finished is put there.

There, as here, a checkpoint is whole or it isn't one: its files are put before its manifest, and removed after it.
"""

import json
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ..data.manifest import MANIFEST
from ..data.urls import UrlError, delete_files, get_files, listed, put_files
from .checkpoint import saved_steps
from .run_files import BEST, CHECKPOINTS, CONFIG, empty, holds_run, read_best
from .run_lock import LOCK

log = logging.getLogger(__name__)


class RunAtUrl:
    """Keeps what lies at a URL as a local run folder is. The first rank has one.

    Args:
        url: of the run.
        folder: the local one.
    """

    def __init__(self, url: Path, folder: Path) -> None:
        self.url, self.folder = url, folder
        self._put: dict[str, tuple[int, int]] = {}  # size and time of change of what was put
        self._pool = ThreadPoolExecutor(1, "run-at-url")
        self._going: Future[None] | None = None

    def open(self, resume: bool, overwrite: bool) -> None:
        """Empty the local folder; to resume, bring what lies at the URL: its newest and its best checkpoint alone.

        Raises:
            FileExistsError: another run, or no run, lies there.
        """
        empty(self.folder, LOCK)
        there = listed(self.url)
        if there and not holds_run(self.url, "ranker"):
            raise FileExistsError(
                f"{self.url} holds files that are no run of placerank train; choose another folder for --run"
            )
        if there and not resume and not overwrite:
            raise FileExistsError(f"{self.url} holds a run; pass --resume to go on, or --overwrite to start anew")
        if resume and there:
            steps = saved_steps(self.url / CHECKPOINTS)
            wanted = {*steps[-1:], read_best(self.url)}
            names = [name for name in there if _step(name) is None or _step(name) in wanted]
            get_files(self.url, [name for name in names if _step(name) is None or _step(name) in steps], self.folder)
            self._put = {name: _state(self.folder / name) for name in _finished(self.folder)}

    def clear(self) -> None:
        """Remove the run that lies there: manifests first, the config last, so that it is a run until it is gone."""
        there = listed(self.url)
        manifests = [name for name in there if name.endswith(f"/{MANIFEST}")]
        delete_files(self.url, manifests)
        delete_files(self.url, [name for name in there if name not in manifests and name != CONFIG])

    def start(self) -> None:
        """Put what has changed, in a thread of its own. An error is told, and all is tried again the next time."""
        self.wait()
        self._going = self._pool.submit(self.put)

    def wait(self) -> None:
        """Until what was started has ended: a checkpoint must not be removed while it is put."""
        if self._going is not None:
            try:
                self._going.result()
            except UrlError as error:
                log.warning("%s; it is tried again after the next checkpoint", error)
            self._going = None

    def put(self) -> None:
        """Put what has changed: the config, checkpoints, the rest; then remove checkpoints that are no longer kept."""
        names = _finished(self.folder)
        whole = {_step(name) for name in names} - {None}
        if BEST in names and json.loads((self.folder / BEST).read_text())["step"] not in whole:
            names.remove(BEST)  # its checkpoint is still being written
        changed = {name: _state(self.folder / name) for name in names}
        changed = {name: state for name, state in changed.items() if self._put.get(name) != state}
        for wanted in (
            lambda name: name == CONFIG,  # without it the rest is no run
            lambda name: _step(name) is not None and not name.endswith(MANIFEST),
            lambda name: _step(name) is not None and name.endswith(MANIFEST),
            lambda name: _step(name) is None and name != CONFIG,
        ):
            part = [name for name in changed if wanted(name)]
            put_files(self.folder, part, self.url)
            self._put |= {name: changed[name] for name in part}
        old = [name for name in listed(self.url) if (step := _step(name)) is not None and step not in whole]
        delete_files(self.url, [name for name in old if name.endswith(MANIFEST)])
        delete_files(self.url, [name for name in old if not name.endswith(MANIFEST)])

    def close(self) -> None:
        """Put the rest, and leave nothing of it on this disk. Raises UrlError where that can't be done."""
        self.wait()
        self.put()
        empty(self.folder, LOCK)


def _finished(folder: Path) -> list[str]:
    """Files of a run folder, but for those of unfinished work, whose names begin with a dot; of checkpoints all."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        name.as_posix()
        for name in names
        if not any(part.startswith(".") and part != ".metadata" for part in name.parts)
    )


def _state(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _step(name: str) -> int | None:
    """The step of the checkpoint that a file of a run folder belongs to."""
    parts = name.split("/")
    return int(parts[1].removeprefix("step-")) if parts[0] == CHECKPOINTS and len(parts) > 2 else None
