"""One copy of tensors a machine: shared, private where written, gone from disk, and errors reach every rank."""

import os
import resource
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from placerank.data import one_copy as module
from placerank.data.leftovers import remove_leftovers
from placerank.data.one_copy import one_copy
from placerank.training.runtime import runtime

Ranks = Callable[..., list[Any]]
NUMBERS = 4 << 20


def made() -> dict[str, torch.Tensor]:
    return {"numbers": torch.arange(NUMBERS), "none": torch.empty(0, 3), "flags": torch.tensor([True, False])}


def proportional_bytes(tensor: torch.Tensor) -> int:
    """Bytes of memory that a tensor's pages take, each page's shared among the processes that map it."""
    at = tensor.data_ptr() + tensor.nbytes // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and ":" not in line.split()[0]:
            low, high = (int(x, 16) for x in line.split()[0].split("-"))
            inside = low <= at < high
        elif inside and line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no mapping")


def share(folder: str) -> tuple[dict[str, torch.Tensor], int, int, list[str]]:
    tempfile.tempdir = folder
    with runtime(0) as rt:
        calls = []
        found = one_copy(lambda: calls.append(1) or made())  # type: ignore[func-returns-value]
        found["numbers"].sum()
        dist.barrier()
        left = os.listdir(folder)
        size = proportional_bytes(found["numbers"])
        dist.barrier()
        if rt.rank == 1:
            found["numbers"][0] = 7
        dist.barrier()
        return {n: x.clone() for n, x in found.items()}, size, len(calls), left


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_what_one_made(world_size: int, ranks: Ranks, tmp_path: Path) -> None:
    results = ranks(world_size, share, str(tmp_path))
    for rank, (found, size, _, left) in enumerate(results):
        want = made()
        want["numbers"][0] = 7 * (rank == 1)
        assert found.keys() == want.keys() and all(torch.equal(found[n], x) for n, x in want.items())
        assert left == [], "the file has no name any more"
        if world_size > 1:
            assert size < 1.1 * NUMBERS * 8 / world_size + (1 << 20)
    assert [calls for _, _, calls, _ in results] == [1] + [0] * (world_size - 1)


def other_machines(folder: str) -> tuple[int, int]:
    """Ranks 0 and 2 on one machine, 1 on another."""
    tempfile.tempdir = folder
    with runtime(0) as rt:
        module.place = lambda: "here" if rt.rank != 1 else "there"
        found = one_copy(lambda: {"by": torch.tensor([rt.rank])})
        dist.barrier()
        return int(found["by"]), len(os.listdir(folder))


def test_each_machine_makes_its_own(ranks: Ranks, tmp_path: Path) -> None:
    assert ranks(3, other_machines, str(tmp_path)) == [(0, 0), (1, 0), (0, 0)]


def failing(error: type[Exception], folder: str) -> str:
    tempfile.tempdir = folder

    def make() -> dict[str, torch.Tensor]:
        raise error("no such thing")

    with runtime(0):
        try:
            one_copy(make)
        except error as found:
            return str(found)
    return "nothing raised"


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError])
def test_an_error_is_raised_on_every_rank(error: type[Exception], ranks: Ranks, tmp_path: Path) -> None:
    assert ranks(2, failing, error, str(tmp_path)) == ["no such thing"] * 2
    assert ranks(2, failing, OSError, str(tmp_path / "no folder")) == ["no such thing"] * 2


def no_folder(folder: str) -> bool:
    tempfile.tempdir = folder
    with runtime(0):
        try:
            one_copy(made)
        except OSError:
            return True
    return False


def full_disk(folder: str) -> str:
    tempfile.tempdir = folder
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with runtime(0):
        try:
            one_copy(made)
        except OSError as error:
            return str(error)
    return "nothing raised"


def test_a_full_disk_is_told_on_every_rank(ranks: Ranks, tmp_path: Path) -> None:
    for told in ranks(2, full_disk, str(tmp_path)):
        assert "File too large" in told or "set TMPDIR to a larger folder" in told
    assert os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_written_is_told(ranks: Ranks, tmp_path: Path) -> None:
    assert ranks(2, no_folder, str(tmp_path / "none")) == [True, True]


def killed_while_sharing(folder: str) -> None:
    tempfile.tempdir = folder
    with runtime(0) as rt:
        load = torch.load

        def die(*args: Any, **kwargs: Any) -> Any:
            load(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        module.torch.load = die  # type: ignore[attr-defined]
        assert rt.world_size == 2
        one_copy(made)


def test_what_a_killed_one_leaves_is_removed(ranks: Ranks, tmp_path: Path) -> None:
    ranks(2, killed_while_sharing, str(tmp_path), killed=True)
    assert len(os.listdir(tmp_path)) == 1
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []
    ranks(2, killed_while_sharing, str(tmp_path), killed=True)
    ranks(2, share, str(tmp_path))
    assert os.listdir(tmp_path) == [], "the next one does it"
