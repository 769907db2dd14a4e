"""What ``test_readme.py`` runs in a forked process: a command or a program, as in a process of its own."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from placerank.cli.main import main


def placerank(arguments: list[str], folder: Path, environment: Mapping[str, str], printed: Path) -> None:
    """``placerank ARGUMENTS`` in a folder; what it prints is added to ``printed``, its exit code is the process's."""
    _settle(folder, environment, printed)
    sys.argv = ["placerank", *arguments]
    sys.exit(main())


def python(code: str, folder: Path, environment: Mapping[str, str], printed: Path) -> None:
    """``python -c CODE``, in the same way."""
    _settle(folder, environment, printed)
    exec(compile(code, "<README>", "exec"), {"__name__": "__main__"})


def _settle(folder: Path, environment: Mapping[str, str], printed: Path) -> None:
    with open(os.devnull) as nothing, open(printed, "a") as out:
        os.dup2(nothing.fileno(), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.chdir(folder)
    os.environ.update(environment)
    sys.path[:0] = [str(folder / entry) for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    torch.set_num_threads(1)
