"""Memory of this process, as Linux tells it."""

from pathlib import Path


def process_memory(field: str) -> int:
    """Bytes of a field of ``/proc/self/status``: ``VmRSS`` in use, ``RssAnon`` of no file, ``VmHWM`` the most that
    was in use.

    Not ``ru_maxrss`` of ``getrusage``: that outlives ``exec``, so a process that was started by one which used more
    tells that one's peak.

    Raises:
        OSError: the system has no such file.
    """
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) << 10 for row in rows if row.startswith(f"{field}:"))


def restart_peak() -> None:
    """From here on ``VmHWM`` is of what comes, beginning with what is in use.

    Raises:
        OSError: the system doesn't allow it.
    """
    Path("/proc/self/clear_refs").write_text("5")
