"""How a command ends: by a signal, or by an error that a person reads in one line; and how ranks tell their launcher.

A rank that ``launch`` started prints no error of its own: it leaves it in the folder that ``ERRORS`` names, and the
launcher tells the one that came first. An error that a rank has because another one is gone comes after all others.
"""

import ctypes
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from .settings import SettingsError

ERRORS = "PLACERANK_ERRORS"
LAUNCHER = "PLACERANK_LAUNCHER"
"""Environment variable: the process id of the launcher."""
_PR_SET_PDEATHSIG = 1
_NO_MEMORY = re.compile(
    r"(can't|unable to) allocate|out of memory|invalid buffer size|size calculation overflow|multiplication overflow",
    re.IGNORECASE,
)
_PEER_IS_GONE = re.compile(
    r"gloo/transport|connection (was )?(closed|reset|refused)|broken pipe|nccl|recvvalue|timed out", re.IGNORECASE
)


class Terminated(KeyboardInterrupt):
    """SIGTERM: raised where the main thread is, so that what is unfinished is removed, as with Ctrl-C."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within the block SIGTERM and SIGINT raise. A rank takes the first alone: its launcher sends no second in vain."""
    rank = "TORCHELASTIC_RUN_ID" in os.environ
    if rank and sys.platform == "linux":  # a launcher that is killed can't end its ranks
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid()):
            raise SystemExit(1)  # it was killed before we asked to be told, and the others would wait for it

    def end(number: int, frame: FrameType | None) -> None:
        if rank:
            for name in before:
                signal.signal(name, signal.SIG_IGN)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    before = {}
    try:
        for name in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(name) in (signal.SIG_DFL, signal.default_int_handler):
                before[name] = signal.signal(name, end)
    except ValueError:  # not the main thread: signals are somebody else's there
        pass
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def one_line(error: BaseException) -> str | None:
    """What a person reads of an error; None for a bug, which needs its traceback."""
    if isinstance(error, KeyboardInterrupt):
        return "terminated" if isinstance(error, Terminated) else "interrupted"
    if isinstance(error, ImportError):
        # A module of our own that is missing is a bug, not something that the user can install.
        ours = (error.name or "").startswith("placerank")
        return None if ours else f"{error} (placerank doctor tells what is missing)"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "nothing is left"
        return f"not enough memory: {reason}; smaller tables, widths, batches or numbers of rows need less"
    if isinstance(error, OverflowError):
        return f"a number is too large to compute with: {error}; look for it in the settings and in the data"
    if isinstance(error, ValueError | OSError | FloatingPointError | NotImplementedError):
        return str(error)
    return None


def of_another_rank(error: BaseException) -> bool:
    """Whether an error tells only that another rank is gone."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or not isinstance(error, RuntimeError | OSError):
        return False
    return _PEER_IS_GONE.search(str(error)) is not None


def complain(message: object) -> None:
    """One line on stderr, with the rank where there are several."""
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    print(f"placerank: error: {rank}{message}", file=sys.stderr)


def end(error: BaseException, with_traceback: bool) -> int:
    """Tell an error and return the exit code; raises it again where it is a bug, or its traceback is asked for."""
    line, follows = one_line(error), of_another_rank(error)
    if follows:
        line = f"the connection to another rank is lost: {str(error).strip().splitlines()[0]}"
    folder = os.environ.get(ERRORS)
    if folder:
        text = line if line is not None and not with_traceback else "".join(traceback.format_exception(error)).rstrip()
        _leave(Path(folder), text, follows or isinstance(error, KeyboardInterrupt))
    elif line is None or with_traceback:
        raise error
    else:
        complain(line)
    if follows and "TORCHELASTIC_RUN_ID" in os.environ:
        _wait_for_the_end()
    if isinstance(error, KeyboardInterrupt):
        return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
    return 2 if isinstance(error, SettingsError) else 1


def _leave(folder: Path, text: str, follows: bool) -> None:
    """Write this rank's error for the launcher, unless that is gone."""
    file = folder / f"{os.environ.get('RANK', '0')}.json"
    try:
        file.write_text(json.dumps(asdict(RankError(text, time.time(), follows))))
    except OSError:
        complain(text)


def _wait_for_the_end() -> None:
    """Let the rank that caused it end first, so that the launcher sees it first; it ends this one then."""
    with suppress(KeyboardInterrupt):
        time.sleep(10)


@dataclass(frozen=True)
class RankError:
    """What a rank left: its text, when, and whether it only ``follows`` from what another rank did."""

    text: str
    time: float
    follows: bool


def rank_errors(folder: Path) -> dict[int, RankError]:
    """The errors that ranks left, by rank."""
    found = {}
    for file in folder.glob("*.json"):
        with suppress(ValueError):  # killed while it wrote
            found[int(file.stem)] = RankError(**json.loads(file.read_text()))
    return found
