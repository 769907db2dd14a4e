"""What a person sees when ranks end badly: the cause in one line, whoever else fell over it; and nobody stays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# ``placerank doctor`` is this on every rank.
STUB = """
import os, signal, sys, time, types
def main(argv):
    import torch, torch.distributed as dist
    dist.init_process_group("gloo")
    rank, how = dist.get_rank(), os.environ["HOW"]
    open(os.environ["STARTED"] + f"/{rank}-{os.getpid()}", "w").close()
    try:
        dist.barrier()
        if rank == 1:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "error":
                raise ValueError("features.x=3: expected 4")
            time.sleep(100)
        dist.all_reduce(torch.ones(1))  # waits for rank 1
    finally:
        open(os.environ["STARTED"] + f"/cleaned-{rank}", "w").close()
        dist.destroy_process_group()
stub = types.ModuleType("placerank.cli.doctor")
stub.main = main
sys.modules["placerank.cli.doctor"] = stub
"""
LAUNCH = "import sys; from placerank.cli.launch import launch; sys.exit(launch(['doctor'], 2))"


@pytest.fixture
def start(tmp_path: Path):
    """Start two ranks that end as ``how`` says; the launcher's process."""
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub/sitecustomize.py").write_text(STUB)
    started: list[subprocess.Popen[str]] = []

    def run(how: str) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(tmp_path / "stub"), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "PYTHONPATH": path, "HOW": how, "STARTED": str(tmp_path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-c", LAUNCH]
        started.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("error", "placerank: error: rank 1: features.x=3: expected 4\n"),
        ("kill", "placerank: error: rank 1 was killed by SIGKILL (most often by the system, out of memory)\n"),
    ],
)
def test_the_cause_stands_alone(how: str, said: str, start) -> None:
    process = start(how)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (1, said)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_launcher_ends_the_ranks_and_they_clean_up(number: int, start, tmp_path: Path) -> None:
    process = start("sleep")
    ranks = wait_for(lambda: list(tmp_path.glob("[01]-*")), 2)
    time.sleep(0.5)  # in the barrier, or past it
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert (process.returncode, err) == (143, "placerank: error: terminated\n")
    wait_for(lambda: list(tmp_path.glob("cleaned-*")), 2)
    wait_for(lambda: [p for p in ranks if not alive(int(p.name.partition("-")[2]))], 2)


def wait_for(found, count: int) -> list[Path]:
    end = time.monotonic() + 60
    while len(found()) < count:
        assert time.monotonic() < end, f"{found()} after 60 s"
        time.sleep(0.05)
    return found()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
