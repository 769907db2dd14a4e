"""The ``placerank`` command: picks the subcommand and turns our errors into one line.

A subcommand's module is imported when it is called, and a step's code when its settings are read, so neither help nor
a wrong setting waits for torch.
"""

import difflib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from .. import __version__
from .ending import complain, end, ended_by_signals

COMMANDS = {
    "doctor": "do the installed versions fit together, what can this machine do, how to mend what is wrong",
    "simulate": "make a city of items, users and clicks",
    "prepare": "tables of items and interactions to training samples",
    "align": "item texts to embeddings that know distance",
    "tokenize": "embeddings to semantic IDs",
    "train": "train a ranker; --nproc 2 for two ranks, --resume to go on",
    "adapt": "train a small language model that lists places and says why",
    "evaluate": "metrics, baselines and a report of a trained ranker",
    "compare": "evaluated runs side by side, paired by seed, with intervals",
    "generate": "lists of places for requests, from a generative ranker",
    "export": "embedding tables and the scorer, for serving; --since for what changed",
    "rank": "the best places for one user, from an export",
    "predict": "lists for a file of requests, from an export",
    "advise": "places with reasons, or why a place, from what adapt made",
    "apply": "the whole export, of the one before and what changed",
    "serve": "ranked lists over HTTP, from an export",
    "bench": "bench kernels: time the kernels beside their peers; bench gpu: check all that wants a GPU, in 8 minutes",
}


def usage() -> str:
    """The text of ``placerank --help``."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: placerank COMMAND [options]",
            "",
            "Ranking models for places, on TorchRec sharded tables.",
            "",
            "commands, in the order of the data's way:",
            *(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()),
            "",
            "placerank COMMAND --help lists the options of a command. They come from its defaults, then --config FILE,",
            "then flags; --print-config shows the result. placerank --version prints the version.",
        ]
    )


class _ToStderr(logging.StreamHandler):
    """Writes to what stderr is at the time: a progress bar puts itself in between."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _quieten() -> None:
    """Let our own messages through, the first rank's only, and not what torch and torchrec tell their developers."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or each lost connection comes with a C++ stack
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[_ToStderr()])
    logging.getLogger("placerank").setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the console script exits with what this returns.

    Returns:
        0 when all went well, 1 when the step failed, 2 when the command or its settings were wrong, 130 or 143 when
        Ctrl-C or SIGTERM ended it.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(usage(), file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        print(f"placerank {__version__}")
        return 0
    name, rest = args[0], args[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(COMMANDS)}"
        complain(f"no command {name!r}; {hint}")
        return 2
    _quieten()
    # OpenMP threads that spin while they wait take the core from whoever they wait for: on virtual machines with as
    # many threads as cores a training step took 2.3 s instead of 0.07 s. Read when torch is imported, below.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with ended_by_signals():
        try:
            code: int = importlib.import_module(f".{name}", __package__).main(rest)
            return code
        except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (Exception, KeyboardInterrupt) as error:
            return end(error, "--traceback" in rest)
