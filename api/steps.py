"""The steps of the command as functions of their settings: ``placerank.train(placerank.TrainConfig(...))``.

Each takes the settings that ``placerank COMMAND --help`` lists, typed, and returns what it wrote, see ``results.py``.
They may be called any number of times in a process, in a notebook too. What a step prints on the terminal is in what
it returns, so only training, which takes its time, prints.

``nproc`` above 1 starts ranks on this machine as ``placerank COMMAND --nproc`` does, in processes of their own, which
import what this one can; ``prepare`` has threads of this one instead. Under torchrun leave it out: there each rank
calls the function, as ``placerank`` itself does.
"""

import contextlib
import importlib
import io
import logging
import os
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..data.plain import check_types
from .results import Adapted, Aligned, Evaluated, Exported, Generated, Prepared, Simulated, Tokenized, Trained

if TYPE_CHECKING:
    from ..data.city.settings import SimulateConfig
    from ..data.preparation.settings import PrepareConfig
    from ..embeddings.settings import ApplyConfig
    from ..evaluation.settings import EvaluateConfig, GenerateConfig
    from ..tokenization.settings import AlignConfig, TokenizeConfig
    from ..training.settings import AdaptConfig, ExportConfig, TrainConfig

_ERROR = "placerank: error: "
_KEPT = 20  # lines of ranks that failed without saying why

# As the command does: read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def simulate(config: "SimulateConfig") -> Simulated:
    """Draw a simulated city; see ``SimulateConfig``.

    Raises:
        FileExistsError: the folder exists and ``overwrite`` is not set.
    """
    return Simulated(_run("simulate", "data.city.simulate", config))


def prepare(config: "PrepareConfig", nproc: int = 1) -> Prepared:
    """Tables of items and interactions to training samples; see ``PrepareConfig``.

    Raises:
        FileExistsError: the folder exists and ``overwrite`` is not set.
        ValueError: something is wrong with the data; names file, row and column.
    """
    return Prepared(_run("prepare", "data.preparation.prepare", config, nproc, threads=True))


def align(config: "AlignConfig", nproc: int = 1) -> Aligned:
    """Item texts to embeddings that know distance; see ``AlignConfig``.

    Raises:
        FileExistsError: the folder exists and ``overwrite`` is not set.
        ValueError: the data, the encoder and the settings don't fit together.
    """
    return Aligned(_run("align", "tokenization.align", config, nproc))


def tokenize(config: "TokenizeConfig", nproc: int = 1) -> Tokenized:
    """Embeddings to semantic IDs; see ``TokenizeConfig``.

    Raises:
        FileExistsError: the folder exists and ``overwrite`` is not set.
        ValueError: the embeddings and the settings don't fit together.
    """
    return Tokenized(_run("tokenize", "tokenization.tokenize", config, nproc))


def train(config: "TrainConfig", nproc: int = 1) -> Trained:
    """Train a ranker on prepared data; see ``TrainConfig``.

    Raises:
        FileExistsError: the folder has a run in it, and neither ``resume`` nor ``overwrite`` is set.
        ValueError: the data, the settings or the checkpoint don't fit together.
        FloatingPointError: the loss is no longer a number.
    """
    return Trained(_run("train", "training.train", config, nproc, shown=True))


def adapt(config: "AdaptConfig") -> Adapted:
    """Train RecLLM-Adapter, teacher and student; see ``AdaptConfig``.

    Raises:
        FileExistsError: the folder has a run in it, and neither ``resume`` nor ``overwrite`` is set.
        FileNotFoundError: no such data or language model.
        ValueError: the data, the settings or the checkpoint don't fit together.
        FloatingPointError: the loss is no longer a number.
    """
    return Adapted(_run("adapt", "training.adapt", config, shown=True))


def evaluate(config: "EvaluateConfig", nproc: int = 1) -> Evaluated:
    """Metrics beside baselines, slices and a report of a trained ranker; see ``EvaluateConfig``.

    Raises:
        FileExistsError: the folder exists and ``overwrite`` is not set.
        FileNotFoundError: no such run, checkpoint or data.
        ValueError: the split is empty, or the run is damaged.
    """
    return Evaluated(_run("evaluate", "evaluation.evaluate", config, nproc))


def generate(config: "GenerateConfig") -> Generated:
    """Lists of places for requests, from a generative ranker; see ``GenerateConfig``.

    Raises:
        FileExistsError: the folder exists and ``overwrite`` is not set.
        FileNotFoundError: no such run, checkpoint, data or requests.
        ValueError: the run is of another kind of ranker; requests or places are not as expected.
    """
    return Generated(_run("generate", "evaluation.generate", config))


def export(config: "ExportConfig") -> Exported:
    """Embedding tables and the scorer, for serving; see ``ExportConfig``.

    Raises:
        FileExistsError: the folder exists and ``overwrite`` is not set.
        FileNotFoundError: no such run, checkpoint or data.
        ValueError: an unknown table, or what is read doesn't fit together.
    """
    return Exported(_run("export", "training.export", config))


def apply(config: "ApplyConfig") -> Exported:
    """The whole export, of the one before and what ``export`` with ``since`` said has changed; see ``ApplyConfig``.

    Raises:
        FileExistsError: the folder exists and ``overwrite`` is not set.
        ValueError: the delta is of another export, or damaged.
    """
    return Exported(_run("apply", "embeddings.delta", config))


def _run(name: str, module: str, config: Any, nproc: int = 1, shown: bool = False, threads: bool = False) -> Path:
    """What the step of that name in the module returns, run here, on ``threads`` of its own, or on ranks."""
    wanted = f"{name.capitalize()}Config"
    if type(config).__name__ != wanted:
        raise TypeError(f"{name}: got {config!r}, expected settings, as in placerank.{name}(placerank.{wanted}(...))")
    check_types(config, name)
    if not isinstance(nproc, int) or nproc < 1:
        raise ValueError(f"nproc: got {nproc!r}, expected at least 1")
    if nproc > 1 and "RANK" in os.environ:
        raise ValueError(f"nproc: got {nproc} under torchrun, which has started the ranks; leave it out")
    if nproc > 1 and not threads:
        _on_ranks(name, config, nproc, shown)
        folder: Path = config.run if name == "train" else config.out or config.run / "evaluation"
        return folder
    with _calm(shown):
        step = getattr(importlib.import_module(f"..{module}", __package__), name)
        wrote: Path = step(config, nproc) if threads else step(config)
    return wrote


@contextlib.contextmanager
def _calm(shown: bool) -> Iterator[None]:
    """What libraries tell their developers is not shown; nor what a step prints, unless ``shown``."""
    tracing = logging.getLogger("torch.fx._symbolic_trace")
    level = tracing.level
    tracing.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.nullcontext() if shown else _unprinted():
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        tracing.setLevel(level)


def _unprinted() -> contextlib.AbstractContextManager[Any]:
    if "IPython" in sys.modules:  # rich shows tables there, beside stdout
        from IPython.utils.capture import capture_output

        captured: contextlib.AbstractContextManager[Any] = capture_output(stderr=False)
        return captured
    return contextlib.redirect_stdout(io.StringIO())


def _on_ranks(name: str, config: Any, nproc: int, shown: bool) -> None:
    """Run a step on ``nproc`` ranks, in processes of their own; its lines are printed where this process prints.

    Raises:
        RuntimeError: it failed; with the error of the rank that failed first.
    """
    from ..data.manifest import write_json

    with TemporaryDirectory(prefix="placerank-") as folder:
        file = Path(folder) / "settings.json"
        write_json(file, config)
        command = [sys.executable, "-m", "placerank.cli", name, "--config", str(file), "--nproc", str(nproc)]
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # a tower of one's own is found there, too
        env = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        last: deque[str] = deque(maxlen=_KEPT)
        with subprocess.Popen(command, text=True, env=env, errors="replace", **pipes) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    last.append(line)
                    if shown:
                        print(line, end="", flush=True)
            except BaseException:
                process.terminate()  # it ends its ranks
                raise
    if process.returncode:
        told = [line.removeprefix(_ERROR).strip() for line in last if line.startswith(_ERROR)]
        what = told[-1] if told else f"exit code {process.returncode}\n{''.join(last)}"
        raise RuntimeError(f"placerank {name} on {nproc} ranks: {what}")
