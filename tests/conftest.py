"""Fixtures that tests of several folders share."""

import multiprocessing
import os
import runpy
import signal
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import compiled_once  # noqa: F401
import pytest
import torch

# Without a GPU the Triton kernels are interpreted; read when they are imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# No test asks the hub of models; where there is no network, finding that out takes half a minute.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Ctrl-C is ignored in what a shell starts in the background, tests too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # toy sizes: threads would only wait for each other


LONGEST = (
    "test_steps.py",
    "test_readme.py",
    "test_compile.py",
    "test_exported.py",
    "test_plugins.py",
    "test_generative.py",
    "test_days.py",
    "test_launches.py",
    "test_tokenizers.py",
    "test_train.py",
    "test_gpu_check.py",
    "test_hard_negatives.py",
    "test_sharding.py",
    "test_checkpoint.py",
)
"""Files that take half a minute to two, longest first. Workers take whole files, in this order where xdist is told not
to put those of few tests last (``make test``): what takes long is not to be the last that one of them takes. The first
three, which run side by side, compile different loops; what is compiled, later files find on disk."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; skip what needs a GPU where there is none."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random numbers of a test do not depend on the tests that its worker ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def fabricated(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A made-up evaluation: ``data``, a prepared folder, and ``predictions`` of its test split."""
    from made_up import fabricate

    return fabricate(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URL of a bucket on an S3 server of this machine."""
    pytest.importorskip("localbucket", reason="needs localbucket, an S3 server: make setup installs it")
    from placerank.benchmarks.s3_server import s3_server

    with s3_server() as url:
        yield url


_RUNNER = str(Path(__file__).with_name("rank_main.py"))
_SUPPORT = str(Path(__file__).with_name("support"))


@pytest.fixture
def forks() -> ForkServerContext:
    """Processes forked from a server that has imported all that steps need, so they start in a fraction of a second.

    The server, and so the environment of what it forks, is as old as the first test of its worker that asked for it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchrec", "placerank.training.train", "preloaded"])
    with pytest.MonkeyPatch.context() as patch:  # a server looks for modules on its own path, not on this process's
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (_SUPPORT, os.environ.get("PYTHONPATH")))))
        forkserver.ensure_running()
    return context


@pytest.fixture
def ranks(forks: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Any]]:
    """``ranks(2, function, *args)``: run a module-level function on gloo ranks; what each returned, by rank.

    Their environment is the test's.
    """

    def run(
        world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 120, killed: bool = False
    ) -> list[Any]:
        out = tmp_path_factory.mktemp("ranks")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        job = (function.__code__.co_filename, function.__name__, args)
        processes = [
            forks.Process(
                target=runpy.run_path,
                args=(_RUNNER,),
                kwargs={"init_globals": {"JOB": (*job, rank, world_size, port, str(out), dict(os.environ))}},
            )
            for rank in range(world_size)
        ]
        for p in processes:
            p.start()
        deadline = time.monotonic() + timeout
        for p in processes:
            p.join(max(0.0, deadline - time.monotonic()))
        codes = [p.exitcode for p in processes]
        for p in processes:
            p.kill()
        if killed:
            assert codes == [-signal.SIGKILL] * world_size, f"ranks ended with {codes}, they were to kill themselves"
            return []
        assert codes == [0] * world_size, f"ranks ended with {codes} (None: still running after {timeout} s)"
        return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(world_size)]

    return run


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small simulated city, prepared; do not write into it."""
    # Imported here, so that the kernels' tests run where there is nothing but what kernels need.
    from placerank.data.city.simulate import SimulateConfig, simulate
    from placerank.data.preparation.prepare import PrepareConfig, prepare

    folder = tmp_path_factory.mktemp("city")
    simulate(SimulateConfig(out=folder / "raw", cities=2, items=300, users=200, requests=700, days=30))
    return prepare(PrepareConfig(input=folder / "raw", out=folder / "data", history_length=10))
