"""Starts a command on several ranks of this machine with torchrun."""

import logging
import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from .ending import ERRORS, LAUNCHER, complain, rank_errors

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure


def threads_per_rank(cores: int, nproc: int) -> int:
    """CPU threads for each rank, so that the ranks together use every core once."""
    return max(1, cores // nproc)


def launch(command: list[str], nproc: int) -> int:
    """Run ``placerank COMMAND`` on ``nproc`` ranks; the first one that fails ends all, and its error is printed.

    Args:
        command: name and flags of the subcommand.
        nproc: number of ranks, all on this machine.

    Returns:
        0, or the exit code of the rank that failed first (1 if a signal killed it); 130 or 143 when a signal ended all.
    """
    # One line is told below; torchrun's summary would bury it. Read when it is imported.
    os.environ.setdefault("LOGLEVEL", "CRITICAL")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # torchrun would set one thread for each rank, and say so at length.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_rank(len(os.sched_getaffinity(0)), nproc)))
    args = torchrun.parse_args(["--standalone", f"--nproc-per-node={nproc}", "--module", "placerank.cli"])
    args.training_script_args = command  # not parsed with the rest: it would take our --run for its --run-path
    with TemporaryDirectory(prefix="placerank-") as errors:
        os.environ |= {ERRORS: errors, LAUNCHER: str(os.getpid())}
        try:
            torchrun.run(args)
        except ChildFailedError as error:
            return _tell(error.failures, Path(errors))
        except SignalException as error:
            complain("interrupted" if error.sigval == signal.SIGINT else "terminated")
            return 128 + error.sigval
        finally:
            del os.environ[ERRORS], os.environ[LAUNCHER]
    return 0


def _tell(failures: "dict[int, ProcessFailure]", errors: Path) -> int:
    """Print the error that ended all ranks; returns the exit code of the rank that had it."""
    said = rank_errors(errors)
    causes = {rank: error for rank, error in said.items() if not error.follows}
    first = min(failures.values(), key=lambda f: f.timestamp)
    rank = min(causes, key=lambda r: causes[r].time) if causes else first.local_rank
    if not causes and first.exitcode < 0:
        name = signal.Signals(-first.exitcode).name
        hint = " (most often by the system, out of memory)" if name == "SIGKILL" else ""
        complain(f"rank {rank} was killed by {name}{hint}")
    elif rank in said:  # or it has printed its own, as it does of wrong flags
        complain(f"rank {rank}: {said[rank].text}")
    return max(next((f.exitcode for f in failures.values() if f.local_rank == rank), 1), 1)
