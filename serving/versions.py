"""The export that is served, and what comes after it: a new one in its place, or deltas that lead on from it.

What should be served follows from what lies there alone: the export, then every delta whose base is what there is by
then. So a server that starts anew comes to where the others are.
"""

import logging
import math
import shutil
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ..data.manifest import MANIFEST, content_hash, read_manifest
from ..data.urls import Url, fingerprints, get_files, listed
from ..embeddings.delta import apply_delta
from ..rankers.rank import Ranker, load
from .wire import Asked, Refused, rank_together

log = logging.getLogger(__name__)
_RECENT = 8  # requests by which a new ranker is warmed up
_NOW = 1_767_225_600  # the time of a made-up request
_SHORT = 12


@dataclass(frozen=True)
class Version:
    """A ranker that can serve.

    Attributes:
        content: hash of the export's content.
        folder: where it lies on this disk.
        since: when it was loaded.
    """

    ranker: Ranker
    content: str
    folder: Path
    since: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def name(self) -> str:
        """What answers are told by: the first 12 digits of the content's hash."""
        return self.content[:_SHORT]


class Versions:
    """What is served, and how the next comes to be.

    ``rank`` may be called while another thread is in ``renew``: the new version is loaded, verified and warmed up
    beside the old one and then takes its place at once, between two calls of ``rank``.

    Args:
        export: the export folder, or its URL.
        deltas: a folder, or URL, whose subfolders are deltas; None: there are none.
        work: an empty folder for exports that deltas lead to.

    Attributes:
        error: why what lies there is not served, or not all of it; None where it is.

    Raises:
        FileNotFoundError, ValueError: the export, or a delta, is not whole.
    """

    def __init__(self, export: Path, deltas: Path | None, work: Path) -> None:
        self.export, self.deltas, self.work = export, deltas, work
        self.error: str | None = None
        self._recent: deque[Asked] = deque(maxlen=_RECENT)
        self._refused: object = None
        way, gap = self._way()
        self.current = self._loaded(way, None)
        self._tell(gap)

    def rank(self, requests: list[Asked]) -> list[tuple[Version, dict[str, list[object]] | Refused]]:
        """Answers, and who gave them: all of one version."""
        version = self.current
        answers = rank_together(version.ranker, requests)
        self._recent.extend(r for r, answer in zip(requests, answers, strict=True) if not isinstance(answer, Refused))
        return [(version, answer) for answer in answers]

    def renew(self, again: bool = True) -> bool:
        """Serve what lies there now, if it is another export than the current one.

        Args:
            again: try what was refused before, too.

        Returns:
            Whether there is a new version.

        Raises:
            OSError, ValueError: what lies there is not whole, or can't be read; the old one goes on, and ``error``
                says so until something else lies there.
        """
        try:
            way, gap = self._way()
            if way[-1][0] == self.current.content:
                self._tell(gap)
                return False
            files = [_files(path) for _, path in way]
            if not again and files == self._refused:
                return False
            try:
                new = self._loaded(way, self.current)
            except ValueError:  # damaged, and not only out of reach
                self._refused = files
                raise
        except Exception as error:
            self._clear()
            told = f"{type(error).__name__}: {error}" if not isinstance(error, OSError | ValueError) else str(error)
            if told != self.error:
                log.error("%s goes on: %s", self.current.name, told)
            self.error = told
            raise
        log.info("%s serves in place of %s", new.name, self.current.name)
        self.current, self._refused = new, None
        self._tell(gap)
        self._clear()  # what the old ranker has mapped stays until it is gone
        return True

    def _tell(self, gap: str | None) -> None:
        """Once, that what serves is not the newest that lies there."""
        if gap and gap != self.error:
            log.warning("%s", gap)
        self.error = gap

    def _way(self) -> tuple[list[tuple[str, Path]], str | None]:
        """From the export to what should be served: the content hash of each step, and the export or delta to it.

        And why the newest delta is not on that way, where a step to it is missing. An export that is newer than all
        deltas has taken their place.
        """
        export = read_manifest(self.export, "export")
        way = [(str(export["content_hash"]), self.export)]
        deltas = sorted(self._deltas(), key=lambda delta: delta[0])
        ahead = {told["base"]: (told["result"], folder) for _, told, folder in deltas}  # of two from one the later one
        while (step := ahead.get(way[-1][0])) and step[0] not in [content for content, _ in way]:
            way.append(step)
        served = {content for content, _ in way}
        for created, told, folder in deltas[::-1]:
            if created != deltas[-1][0] or created < str(export.get("created")):
                break
            if told["base"] not in served and told["result"] not in served:
                base = told["base"][:_SHORT]
                return way, (
                    f"{folder} is of the base {base}, to which no delta leads from {way[-1][0][:_SHORT]}, which "
                    f"serves: put the one to {base} beside it, or a new export in place of {self.export}"
                )
        return way, None

    def _deltas(self) -> Iterable[tuple[str, dict[str, str], Path]]:
        if self.deltas and not isinstance(self.deltas, Url) and self.deltas.is_file():
            raise NotADirectoryError(f"deltas: {self.deltas} is a file, expected a folder of deltas")
        for folder in self.deltas.iterdir() if self.deltas and self.deltas.exists() else ():
            if not folder.name.startswith(".") and (folder / MANIFEST).is_file():
                told = read_manifest(folder, "delta")
                yield str(told.get("created")), told, folder

    def _loaded(self, way: list[tuple[str, Path]], current: Version | None) -> Version:
        """The version at the end of a way, warmed up; made of the current one, if the way leads past that."""
        done = [content for content, _ in way]
        at = done.index(current.content) if current and current.content in done else 0
        folder = current.folder if current and at else self._here(self.export, done[0])
        for content, delta in way[at + 1 :]:
            folder = apply_delta(folder, self._here(delta, f"{content}-delta"), self.work / content, overwrite=True)
        content = way[-1][0]
        ranker = load(folder, verify=len(way) == 1)  # apply_delta has compared all hashes
        if content_hash(folder) != content:
            raise OSError(f"{folder} changed while it was read; it is read again")
        _warm_up(ranker, list(self._recent))
        return Version(ranker, content, folder)

    def _here(self, path: Path, name: str) -> Path:
        """A copy of a folder behind a URL, that goes when it is done with: a server lives long."""
        if not isinstance(path, Url):
            return path
        shutil.rmtree(self.work / name, ignore_errors=True)
        get_files(path, listed(path), self.work / name)
        return self.work / name

    def _clear(self) -> None:
        for folder in self.work.iterdir():
            if folder != self.current.folder:
                shutil.rmtree(folder, ignore_errors=True)


def _files(folder: Path) -> list[tuple[str, str]]:
    """The files of a folder, and what tells that one is another by now, without reading it."""
    if isinstance(folder, Url):
        return fingerprints(folder)
    files = [(path, path.stat()) for path in sorted(folder.rglob("*"))]
    return [(str(path), f"{about.st_size} {about.st_mtime_ns} {about.st_ino}") for path, about in files]


def _warm_up(ranker: Ranker, recent: list[Asked]) -> None:
    """Rank what was asked lately, or what could be: indexes are made, code is compiled, and scores are looked at.

    Raises:
        ValueError: scores are no numbers.
    """
    ids = ranker.item_ids.slice(1, 8).to_pylist()  # row 0 is no item
    place = (float(ranker.lat[1]), float(ranker.lon[1])) if ids else (0.0, 0.0)
    place = place if math.isfinite(sum(place)) else (0.0, 0.0)
    some = Asked(user=None, place=place, time=_NOW, history=[(i, _NOW - 3_600) for i in ids], candidates=ids)
    for answer in rank_together(ranker, [some]):
        if isinstance(answer, Refused):
            raise ValueError(f"the ranker refuses a request that is well: {answer.error}; export again")
        for name, values in answer.items():
            if name.startswith("score") and None in values:
                raise ValueError(f"the ranker gives {name}s that are no finite numbers; train and export again")
    rank_together(ranker, [*recent, Asked(user=None, place=place, time=_NOW)])
