"""Runs a step (a function of one config) as a subcommand."""

import os
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from .launch import launch
from .settings import Options, RankOptions, ThreadOptions, parse, to_toml

C = TypeVar("C")


def run_step(name: str, config_type: type[C], step: Callable[[C], object], argv: list[str]) -> int:
    """``placerank NAME``: parse, then run ``step`` in this process. Returns the exit code."""
    settings, options = parse(f"placerank {name}", config_type, Options, argv)
    return _run(name, settings, step, options)


def run_step_on_ranks(name: str, config_type: type[C], step: Callable[[C], object], argv: list[str]) -> int:
    """``placerank NAME``: as ``run_step``; ``--nproc N`` starts torchrun with N ranks of the same command.

    Under torchrun (ours or the user's own, on one machine or many) it runs in this process.

    Raises:
        ValueError: ``--nproc`` under a torchrun that started another number of ranks here.
    """
    settings, options = parse(f"placerank {name}", config_type, RankOptions, argv)
    if options.print_config or options.nproc == 1:
        return _run(name, settings, step, options)
    if "RANK" not in os.environ:
        return launch([name, *argv], options.nproc)
    _check_started(options.nproc)
    return _run(name, settings, step, options)


def run_step_on_threads(name: str, config_type: type[C], step: Callable[[C, int], object], argv: list[str]) -> int:
    """``placerank NAME``: as ``run_step``; the step is told of ``--nproc``, for threads of this process.

    Under a user's own torchrun, on one machine or many, each rank runs it with one thread.

    Raises:
        ValueError: as ``run_step_on_ranks``.
    """
    settings, options = parse(f"placerank {name}", config_type, ThreadOptions, argv)
    threads = options.nproc
    if "RANK" in os.environ and threads > 1 and not options.print_config:
        _check_started(threads)
        threads = 1
    return _run(name, settings, lambda config: step(config, threads), options)


def _check_started(nproc: int) -> None:
    started = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if started != nproc:
        raise ValueError(f"nproc: got {nproc} under a torchrun that started {started} ranks here; leave out --nproc")


def with_first_as(flag: str, argv: list[str]) -> list[str]:
    """A command's arguments, where what comes first may be named without its flag."""
    return [flag, *argv] if argv and not argv[0].startswith("-") else argv


def _run(name: str, settings: C, step: Callable[[C], object], options: Options) -> int:
    if options.print_config:
        print(to_toml(settings), end="")
        return 0
    start = time.perf_counter()
    result = step(settings)
    if os.environ.get("RANK", "0") == "0":
        wrote = f"{result}, " if isinstance(result, os.PathLike) else ""
        print(f"placerank {name}: {wrote}{time.perf_counter() - start:.1f} s", file=sys.stderr)
    return 0
