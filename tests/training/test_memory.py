"""The memory that a container may use, read from control groups made by hand."""

from pathlib import Path

import psutil
import pytest

from placerank.training.memory import memory_limit

HOST = psutil.virtual_memory().total


def limit(tmp_path: Path, mine: str | None, files: dict[str, str]) -> int:
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    if mine is not None:
        (tmp_path / "mine").write_text(mine)
    return memory_limit(tmp_path / "fs", tmp_path / "mine")


@pytest.mark.parametrize(
    ("mine", "files", "want"),
    [
        ("0::/\n", {"memory.max": "2147483648\n"}, 1 << 31),  # a container's own root
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "1048576\n"}, 1 << 20),  # a limit further up
        ("0::/a/b\n", {"a/b/memory.max": "4096\n", "a/memory.max": "8192\n"}, 4096),
        ("0::/host/path\n", {"memory.max": "4096\n"}, 4096),  # the path is the host's, and not there
        ("4:cpu,memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "4096\n"}, 4096),  # version 1
        ("4:cpu:/a\n", {"memory/a/memory.limit_in_bytes": "4096\n"}, HOST),  # of another controller
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, HOST),  # none
        ("0::/\n", {"unified/memory.max": "4096\n"}, 4096),
        ("0::/\n", {"memory.max": "max\n"}, HOST),
        (None, {"memory.max": "4096\n"}, 4096),
        ("0::/\n", {}, HOST),
    ],
)
def test_the_smallest_limit_counts(tmp_path: Path, mine: str | None, files: dict[str, str], want: int) -> None:
    assert limit(tmp_path, mine, files) == want
