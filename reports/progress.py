"""How far a command is: a bar in a terminal; where there is none, a plain line now and then, so that logs stay short.

Lines are told by logging, at INFO: the command shows them, who imports the package sees none unless asked for.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)
_FIRST, _GROWTH, _SELDOM = 10.0, 1.1, 300.0  # seconds to the first line; each waits a tenth of all so far, within both


def duration(seconds: float) -> str:
    """Seconds for people: "41 s", "3 min 20 s", "2 h 5 min"."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    minutes, s = divmod(s, 60)
    return f"{minutes} min {s} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def in_terminal() -> bool:
    """Whether a person sees stderr as it is written."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class Progress:
    """Work that is counted; use it as a context.

    Args:
        title: what is done.
        total: how much there is; None where nobody knows.
        unit: of what is counted, in the plural.
        done: how much was done before.
        shown: False on all ranks but the first.
    """

    def __init__(
        self, title: str, total: int | None = None, unit: str = "steps", done: int = 0, shown: bool = True
    ) -> None:
        self.title, self.total, self.unit, self.shown = title, total, unit, shown
        self.done = self._before = done
        self._note = ""
        self._start = time.monotonic()
        self._next = self._start + _FIRST
        self._bar: Any = None
        self._lock = threading.Lock()

    def update(self, n: int = 1) -> None:
        """So much more is done; any thread may tell it."""
        with self._lock:
            self._update(n)

    def _update(self, n: int) -> None:
        self.done += n
        if self.shown and self._bar is None and (now := time.monotonic()) >= self._next:
            log.info("%s: %s", self.title, str(self))  # now: a handler may look later
            self._next = now + min(max((now - self._start) * (_GROWTH - 1), _FIRST), _SELDOM)

    def note(self, text: str) -> None:
        """What to show beside the count from now on."""
        self._note = text

    def seconds_left(self) -> float | None:
        """As long as the rest takes at the speed so far; None where nobody knows."""
        did = self.done - self._before
        if self.total is None or not did:
            return None
        return max(self.total - self.done, 0) * (time.monotonic() - self._start) / did

    def __str__(self) -> str:
        parts = [f"{self.done:,} {self.unit}"]
        if self.total:
            parts = [f"{self.done:,} of {self.total:,} {self.unit} ({self.done / self.total:.0%})"]
        parts.append(duration(time.monotonic() - self._start))
        if (left := self.seconds_left()) is not None:
            parts.append(f"{duration(left)} left")
        return ", ".join([*parts, *filter(None, [self._note])])

    def __enter__(self) -> "Progress":
        if self.shown and in_terminal():
            self._bar = _bar(self)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()


def _bar(of: Progress) -> Any:
    """A bar that follows the count by itself, four times a second."""
    from rich.console import Console
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    def row() -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_row(of.title, ProgressBar(of.total, of.done, width=24, pulse=of.total is None), str(of))
        return table

    # what is printed meanwhile goes above the bar, through its console; a pipe's reader must get it all the same
    return Live(
        console=Console(stderr=True),
        get_renderable=row,
        refresh_per_second=4,
        redirect_stdout=sys.stdout.isatty(),
    )


def tracked(
    things: Iterable[T], title: str, total: int | None = None, unit: str = "steps", shown: bool = True
) -> Iterator[T]:
    """The things, with the progress of who takes them.

    Args:
        total: number of things; default: their length, if they have one.
        title, unit, shown: see ``Progress``.
    """
    if total is None and isinstance(things, Sized):
        total = len(things)
    with Progress(title, total, unit, shown=shown) as progress:
        for thing in things:
            yield thing
            progress.update()
