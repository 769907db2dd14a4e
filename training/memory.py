"""How much memory this process may use: the machine's, or less in a container. Imports no torch."""

from contextlib import suppress
from pathlib import Path

import psutil


def memory_limit(cgroups: Path = Path("/sys/fs/cgroup"), mine: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of memory that the processes of this container may use together; the machine's where nothing limits them.

    The limit is the smallest of this process' control group and all above it, of version 2 (``memory.max``) or 1
    (``memory.limit_in_bytes``). Inside a container the group's path may be the host's, which is not there; the root of
    what is mounted is then the container's own group.

    Args:
        cgroups, mine: where control groups are mounted; the file that names those of this process.
    """
    limits = [int(psutil.virtual_memory().total)]
    try:
        lines = mine.read_text().splitlines()
    except OSError:
        lines = []
    paths = {"/"}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            paths.add(path)
    for root, name in (
        (cgroups, "memory.max"),
        (cgroups / "unified", "memory.max"),
        (cgroups / "memory", "memory.limit_in_bytes"),
    ):
        for path in paths:
            group = root / path.strip("/")
            for folder in (group, *group.parents):
                with suppress(OSError, ValueError):  # not there, or "max"
                    limits.append(int((folder / name).read_text()))
                if folder == root:
                    break
    return min(limits)
