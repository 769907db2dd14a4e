"""Where a run's numbers are shown beside metrics.jsonl: TensorBoard, MLflow or Weights & Biases, by name.

The packages of the last two are the user's to install; they are configured by their own environment variables
(MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, WANDB_PROJECT, WANDB_MODE, ...). A run that goes on keeps its page there.
"""

import importlib.util
import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

from ..data.plain import flat
from .run_files import read_object
from .settings import Tracker

log = logging.getLogger(__name__)
_MLFLOW_RUN, _WANDB_RUN = "mlflow.json", "wandb.json"
_PROJECT = "placerank"


def check_tracker(name: Tracker) -> None:
    """Raises ValueError where the package is missing: before a run costs time."""
    if name not in get_args(Tracker):
        raise ValueError(f"track={name!r}: expected one of {', '.join(get_args(Tracker))}")
    if importlib.util.find_spec(name) is None:
        raise ValueError(
            f"track={name} needs the package {name}, which is not installed: pip install {name}; or leave out --track"
        )


def open_tracker(name: Tracker, run: Path, config: Mapping[str, Any], step: int) -> "Tracking":
    """The tracker of a run that stands at a step.

    Args:
        run: the run's folder; its name is the run's name there.
        config: JSON-ready settings.
        step: 0, or where the run goes on.

    Raises:
        ValueError: its package is missing.
    """
    check_tracker(name)
    kinds: dict[str, type[Tracking]] = {"tensorboard": _TensorBoard, "mlflow": _MLflow, "wandb": _WandB}
    return kinds[name](run, config, step)


class Tracking(AbstractContextManager["Tracking"]):
    """A run at a tracker; a context that tells it how the run ended."""

    def __init__(self, run: Path, config: Mapping[str, Any], step: int) -> None:
        raise NotImplementedError

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Numbers of a step; called as SPLIT/NAME there."""
        raise NotImplementedError

    def close(self, whole: bool) -> None:
        """The end; ``whole``: without an error."""
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(whole=kind is None)


class _TensorBoard(Tracking):
    def __init__(self, run: Path, config: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.board.add_scalar(f"{split}/{name}", value, step)

    def close(self, whole: bool) -> None:
        self.board.close()


class _MLflow(Tracking):
    """By MLflow's client, so that runs in one process don't meet in its global one."""

    def __init__(self, run: Path, config: Mapping[str, Any], step: int) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        self.metric, self.error, self.client = Metric, MlflowException, MlflowClient()
        known = read_object(run / _MLFLOW_RUN) if step else None
        if known is not None:
            self.id = str(known["run_id"])
            self.client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        number = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
        self.id = self.client.create_run(number, run_name=run.name).info.run_id
        _keep(run / _MLFLOW_RUN, self.id)
        params = [Param(_allowed(key), str(value)[:6000]) for key, value in flat(config)]
        for start in range(0, len(params), 100):  # more are refused
            self.client.log_batch(self.id, params=params[start : start + 100])

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        found = {_allowed(f"{split}/{name}"): x for name, x in values.items() if math.isfinite(x)}
        self._try(
            lambda: self.client.log_batch(self.id, metrics=[self.metric(n, x, now, step) for n, x in found.items()])
        )

    def close(self, whole: bool) -> None:
        self._try(lambda: self.client.set_terminated(self.id, "FINISHED" if whole else "FAILED"))

    def _try(self, call: Callable[[], object]) -> None:
        """A server that is gone must not end a run."""
        try:
            call()
        except self.error as error:
            log.warning("MLflow: %s; metrics.jsonl has all numbers", error)


class _WandB(Tracking):
    def __init__(self, run: Path, config: Mapping[str, Any], step: int) -> None:
        import wandb

        known = read_object(run / _WANDB_RUN) if step else None
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run.name,
            dir=str(run),
            config=dict(config),
            id=None if known is None else str(known["run_id"]),
            resume=None if known is None else "allow",
        )
        _keep(run / _WANDB_RUN, self.run.id)

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self.run.log({f"{split}/{name}": x for name, x in values.items() if math.isfinite(x)}, step=step)

    def close(self, whole: bool) -> None:
        self.run.finish(exit_code=0 if whole else 1)


def _keep(file: Path, run_id: str) -> None:
    from ..data.manifest import write_json

    write_json(file, {"run_id": run_id})


def _allowed(name: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w\-. :/]", "_", name)
