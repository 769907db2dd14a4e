"""Starts a command on several ranks of this machine with torchrun."""

import logging
import os
import signal
import sys


def threads_per_rank(cores: int, nproc: int) -> int:
    """CPU threads for each rank, so that the ranks together use every core once."""
    return max(1, cores // nproc)


def launch(command: list[str], nproc: int) -> int:
    """Run ``placerank COMMAND`` on ``nproc`` ranks; the first one that fails ends all.

    Args:
        command: name and flags of the subcommand.
        nproc: number of ranks, all on this machine.

    Returns:
        0, or the exit code of the rank that failed first (1 if a signal killed it).
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # torchrun would set one thread for each rank, and say so at length.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_rank(len(os.sched_getaffinity(0)), nproc)))
    # A rank that fails has printed its own error; torchrun's summary of it would bury that.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    args = torchrun.parse_args(["--standalone", f"--nproc-per-node={nproc}", "--module", "placerank.cli"])
    args.training_script_args = command  # not parsed with the rest: it would take our --run for its --run-path
    try:
        torchrun.run(args)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            hint = " (most often by the system, out of memory)" if name == "SIGKILL" else ""
            print(f"placerank: error: rank {rank} was killed by {name}{hint}", file=sys.stderr)
        return max(failure.exitcode, 1)
    except SignalException as error:
        return 128 + error.sigval
    return 0
