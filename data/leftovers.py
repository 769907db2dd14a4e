"""What a process that was killed leaves beside its output, and how a later one knows that it may remove it.

Whatever is unfinished has a name that says whose it is: ``.NAME.partial-OWNER``, ``.NAME.old-OWNER`` (what is being
replaced) and ``.NAME.tmp-OWNER-N`` (a file). OWNER is the place, the process id and when the process started, so that
neither a process id that is used again nor a process of another machine or container on a shared file system is taken
for a dead one: what is of another place stays.
"""

import hashlib
import os
import re
import shutil
import socket
from functools import cache
from pathlib import Path

_NAME = re.compile(
    r"\.(?P<name>.+)\.(?P<what>partial|old|tmp)-(?P<place>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)(-.+)?"
)


@cache
def place() -> str:
    """Where a process id means one process: this boot of this machine, and this container."""
    parts = [socket.gethostname()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        try:
            parts.append(read())
        except OSError:
            continue
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def _start(pid: int) -> int | None:
    """When a living process started, in clock ticks since boot (0 where there is no /proc); None for a dead one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass
        return 0
    state, *fields = stat.rpartition(b")")[2].split()  # the name before may hold spaces and brackets
    return None if state in (b"Z", b"X") else int(fields[18])


def owner() -> str:
    """What the names of this process' unfinished files and folders end with."""
    return f"{place()}-{os.getpid()}-{_start(os.getpid())}"


def unfinished(path: Path, what: str, number: str = "") -> Path:
    """The name beside ``path`` for what is ``partial``, ``old`` or ``tmp`` of it."""
    return path.with_name(f".{path.name}.{what}-{owner()}{'-' if number else ''}{number}")


def remove_leftovers(folder: Path) -> None:
    """Remove what dead processes left directly in a folder. What one was replacing, and had not, gets its name back."""
    if not folder.is_dir():
        return
    for entry in list(os.scandir(folder)):
        found = _NAME.fullmatch(entry.name) if entry.name.startswith(".") else None
        if not found or found["place"] != place() or _start(int(found["pid"])) == int(found["start"]):
            continue
        path = Path(entry.path)
        try:
            if found["what"] == "old" and not os.path.lexists(path.with_name(found["name"])):
                os.rename(path, path.with_name(found["name"]))
            elif entry.is_dir(follow_symlinks=False):
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError:  # somebody else's, or another process was faster
            continue
