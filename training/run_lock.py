"""One training at a time in a run folder: the lock says who holds it.

The file ``.lock`` in the run folder names process, host and time. The system's own lock on it (flock) ends with its
process, however that ends, so on one machine a lock is dead or alive at once. Where that can't be known (the holder
is on another machine, or the file system has no such locks) the holder shows that it lives by touching the file, and
who wants the lock watches it for a while.
"""

import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from ..data.manifest import check_parents

log = logging.getLogger(__name__)

LOCK = ".lock"
TOUCH_SECONDS = 10.0
WATCH_SECONDS = 90.0  # NFS may show what another machine wrote a minute late


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which is made if it isn't there, and then removed again if it stays empty.

    Raises:
        NotADirectoryError: the folder is a file, or lies in one.
        FileExistsError: another process trains into it; says which. The lock of one that died is taken over, and told.
    """
    check_parents(run)
    if run.is_file():
        raise NotADirectoryError(f"{run} is a file, expected a run's folder; choose another path")
    made = not run.exists()
    run.mkdir(parents=True, exist_ok=True)
    path = run / LOCK
    file = _take(path)
    done = threading.Event()
    threading.Thread(target=_keep_touching, args=(path, done), name="run-lock", daemon=True).start()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is let go of: who opened it meanwhile sees that it is gone
        done.set()
        file.close()
        if made:
            with suppress(OSError):  # not empty
                run.rmdir()


def _take(path: Path) -> IO[str]:
    while True:
        file = open(path, "a+")  # noqa: SIM115  (the lock is held as long as it is open)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locks = True
        except BlockingIOError:
            holder = _holder(file)
            file.close()
            raise FileExistsError(_told(path, holder)) from None
        except OSError:
            locks = False
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            break
        file.close()  # whoever had it removed it in between
    holder = _holder(file)
    if holder:
        if not (locks and holder.get("host") == socket.gethostname()) and _is_touched(path, holder):
            file.close()
            raise FileExistsError(f"{_told(path, holder)}; if it is gone for certain, remove {path}")
        log.warning("%s was left locked by %s, which is gone: taken over", path.parent, _who(holder))
    file.seek(0)
    file.truncate()
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    file.write(json.dumps(mine) + "\n")
    file.flush()
    return file


def _holder(file: IO[str]) -> dict[str, Any]:
    """Who wrote the file; empty if nobody yet."""
    file.seek(0)
    text = file.read()
    try:
        holder = json.loads(text)
    except ValueError:
        holder = None
    return holder if isinstance(holder, dict) else {"pid": "unknown"} if text else {}


def _who(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')} (since {holder.get('since')})"


def _told(path: Path, holder: dict[str, Any]) -> str:
    return f"{path.parent} is being trained into by {_who(holder)}; wait for it, end it, or choose another --run"


def _is_touched(path: Path, holder: dict[str, Any]) -> bool:
    """Whether the holder touches the file while we look."""
    log.warning("%s is locked by %s; looking for %.0f s whether it lives", path.parent, _who(holder), WATCH_SECONDS)
    first, end = _touched(path), time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(WATCH_SECONDS / 45)
        if _touched(path) != first:
            return True
    return False


def _touched(path: Path) -> int | None:
    with suppress(FileNotFoundError), open(path) as file:  # opened: NFS then asks the server
        return os.fstat(file.fileno()).st_mtime_ns
    return None


def _keep_touching(path: Path, done: threading.Event) -> None:
    while not done.wait(TOUCH_SECONDS):
        with suppress(OSError):
            os.utime(path)
