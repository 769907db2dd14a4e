"""Training: one loop for one process and for a thousand."""

import json
import logging
import math
import shutil
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..data.batches.line_loader import read_ahead
from ..data.leftovers import remove_leftovers
from ..data.manifest import drop_lines_after, environment, write_json
from ..data.ranks import Ranks
from ..data.urls import Url, at_work, check_seen, fetched
from ..reports.progress import Progress
from .checkpoint import Checkpointer, checkpoint_path, load, newest_whole, remove_partial
from .identity import Identity
from .inputs import read_inputs
from .model import Trainee, assemble, average_buffers
from .preferences import Preferences
from .rows_by_id import find_moves, load_by_id
from .run_at_url import RunAtUrl
from .run_files import (
    BEST,
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    METRICS,
    empty,
    holds_run,
    read_object,
    trained_on,
    whole_checkpoint,
)
from .run_lock import LOCK, run_lock
from .runtime import Runtime, on_first_rank, runtime
from .settings import TrainConfig
from .steps import pipelined_steps, plain_steps
from .tasks import Task, make_task
from .told import validation_line
from .trackers import Tracking, check_tracker, open_tracker

log = logging.getLogger(__name__)
_SCRATCH = ".validation"
_AHEAD = 2  # batches that the host has ready for the device


def train(config: TrainConfig) -> Path:
    """Train, validate, checkpoint; returns the run folder. Under torchrun, all ranks call it.

    Raises:
        FileExistsError: the run folder has a run in it, and neither resume nor overwrite is set; or a process trains
            into it.
        ValueError: the data, the config or the checkpoint don't fit together; or the tracker's package is missing.
        FloatingPointError: the loss is no longer a number.
    """
    check_tracker(config.track)
    inputs = read_inputs(config.data, config.features, config.ranker)
    features, manifest = inputs.features, inputs.manifest
    there, config = config.run, replace(config, run=at_work(config.run))
    elsewhere = RunAtUrl(there, config.run) if isinstance(there, Url) else None
    with runtime(config.seed) as rt, ExitStack() as stack:
        on_first_rank(lambda: stack.enter_context(run_lock(config.run)))
        if elsewhere is not None:
            on_first_rank(partial(elsewhere.open, config.resume, config.overwrite))
        Ranks.current().each(lambda: check_seen(config.run))
        on_first_rank(lambda: _check_run_folder(config))
        catalog = inputs.catalog(rt.device, cut=config.sharding.catalog == "sharded")
        history = manifest["splits"]["train"]["mean_history"]
        trainee = assemble(
            features,
            config.ranker,
            config.sharding,
            config.optimizer,
            rt,
            config.batch_size,
            history,
            catalog.device_bytes,
            inputs.make_ranker(),
        )
        identity = Identity.of(inputs, config.ranker)
        if config.preference.ranker is None:
            task = make_task(inputs, catalog, trainee.model, rt, config.batch_size, config.seed, config.newcomers)
        else:
            task = Preferences(inputs, catalog, trainee.model, rt, config.preference, config.batch_size, config.seed)
        on_first_rank(lambda: _open_run_folder(config))  # not before: settings that don't fit must not cost a run
        if elsewhere is not None and config.overwrite:
            on_first_rank(elsewhere.clear)
        loop = _Loop(config, rt, task, trainee, identity, elsewhere)
        resumed = config.resume and loop.resume()
        if config.warm_start is not None and not resumed:
            loop.go_on_from(config.warm_start)
        if rt.is_first:  # not before: a config that doesn't fit must not replace the run's own
            write_json(config.run / CONFIG, _with_whole_paths(replace(config, run=there)))
            if damaged := drop_lines_after(config.run / METRICS, loop.step):
                log.warning("%s: %d damaged lines are dropped", config.run / METRICS, damaged)
            write_json(config.run / ENVIRONMENT, {**environment(), "world_size": rt.world_size})
            (config.run / "plan.txt").write_text(str(trainee.plan))
        if elsewhere is not None:
            on_first_rank(elsewhere.put)
        loop.run()
        if elsewhere is not None:
            on_first_rank(elsewhere.close)
    return there


def _check_run_folder(config: TrainConfig) -> None:
    """Raises FileExistsError where this run may not be put into the folder."""
    run = config.run
    if holds_run(run, "ranker"):
        if not config.resume and not config.overwrite:
            raise FileExistsError(f"{run} holds a run; pass --resume to go on with it, or --overwrite to start anew")
    elif (run / CONFIG).exists() or (not config.resume and any(p.name != LOCK for p in run.iterdir())):
        raise FileExistsError(f"{run} holds files that are no run of placerank train; choose another folder for --run")


def _open_run_folder(config: TrainConfig) -> None:
    """Empty the run folder if ``overwrite`` says so, else remove what a run that was killed left half done."""
    if config.overwrite:
        empty(config.run, LOCK, CONFIG)  # with its config it is a run still, should this be as far as we get
    remove_partial(config.run / CHECKPOINTS)
    shutil.rmtree(config.run / _SCRATCH, ignore_errors=True)
    remove_leftovers(config.run)


def _with_whole_paths(config: TrainConfig) -> TrainConfig:
    """The config as another process finds its folders, wherever it runs."""
    tokens = config.features.semantic_ids, config.features.user_semantic_ids
    features = config.features.moved(*(folder and folder.absolute() for folder in tokens))
    before, reward = (folder and folder.absolute() for folder in (config.warm_start, config.preference.ranker))
    return replace(
        config,
        data=config.data.absolute(),
        run=config.run.absolute(),
        warm_start=before,
        features=features,
        preference=replace(config.preference, ranker=reward),
    )


class _Loop:
    """The training loop and what it must remember over a restart."""

    def __init__(
        self,
        config: TrainConfig,
        rt: Runtime,
        task: Task,
        trainee: Trainee,
        identity: Identity,
        elsewhere: RunAtUrl | None = None,
    ) -> None:
        if config.precision == "bf16" and rt.device.type != "cuda":
            raise ValueError(f"precision=bf16 needs CUDA, this rank runs on {rt.device}; use fp32")
        self.config, self.rt, self.task, self.trainee, self.identity = config, rt, task, trainee, identity
        self.loader = task.loader
        hooks = () if elsewhere is None else (elsewhere.wait, elsewhere.start)
        self.checkpoints = Checkpointer(config.run / CHECKPOINTS, config.keep_checkpoints, rt.background, *hooks)
        self.step = 0
        pays = rt.device.type == "cuda" and rt.world_size > 1  # one rank waits for nobody: plain steps were faster
        self.pipelined = task.once and (pays if config.pipelined is None else config.pipelined)
        self.position = self.loader.state_dict()
        self.positions: deque[dict[str, Any]] = deque()  # of the batches taken whose steps are not done
        self.best: dict[str, Any] = {"step": 0, task.best: None, "without_gain": 0}
        self.sums: dict[str, Tensor] = {}  # of what is logged, since the last line of metrics.jsonl
        self.loss_steps = 0
        self.window_start = time.perf_counter()
        self.trained = (0, 0.0)  # samples and seconds since the last validation
        self.tracking: Tracking | None = None  # open while training, on the first rank

    def run(self) -> None:
        config = self.config
        total = config.epochs * self.loader.steps_per_epoch
        settings = read_object(config.run / CONFIG) or {} if self.rt.is_first else {}
        tracking = open_tracker(config.track, config.run, settings, self.step) if self.rt.is_first else None
        with (
            self.checkpoints,
            Progress("train", total, "steps", done=self.step, shown=self.rt.is_first) as progress,
            tracking or nullcontext() as self.tracking,
        ):
            if self.task.compares and self.step == 0 and self.best[self.task.best] is None:
                self._tell(self._validate(), 0, progress)
            while self._goes_on():
                epoch, batches = self.position["epoch"], self._batches()
                self.trainee.model.train()
                while self._goes_on() and self.position["epoch"] == epoch:
                    self._advance(batches, progress)
            self._save()
        if self._stopped() and self.rt.is_first:
            print(f"stopped: {self.best['without_gain']} validations in a row were not better (patience)", flush=True)

    def _goes_on(self) -> bool:
        return self.position["epoch"] < self.config.epochs and not self._stopped()

    def _advance(self, batches: Iterator[Any], progress: Progress) -> None:
        """Train until the next validation, which it does, or to the end of the epoch that the batches are of."""
        config, epoch = self.config, self.position["epoch"]
        if config.validate_every:
            batches = islice(batches, config.validate_every - self.step % config.validate_every)
        steps = pipelined_steps if self.pipelined else plain_steps
        for logged in steps(self.trainee, self._forward, batches):
            self.position = self.positions.popleft()
            self.step += 1
            self.trainee.scheduler.step()
            for name, value in logged.items():
                self.sums[name] = self.sums.get(name, 0) + value.detach().double()
            self.loss_steps += 1
            progress.update()
            if self.step % config.log_every == 0:
                progress.note(f"loss {self._log_train():.4f}")
            if config.checkpoint_every and self.step % config.checkpoint_every == 0 and not self._validates(epoch):
                self._save()
        if self._validates(epoch):
            self._tell(self._validate(), epoch, progress)

    def _validates(self, epoch: int) -> bool:
        """Whether a validation follows the step that was done, of this epoch."""
        every = self.config.validate_every
        return self.step % every == 0 if every else self.position["epoch"] > epoch

    def _batches(self) -> Iterator[Any]:
        """The rest of this epoch. ``position`` follows the steps done, not the batches read ahead."""
        for position, batch in read_ahead(self._gathered(), _AHEAD):
            self.positions.append(position)
            yield self.task.expand(batch)

    def _gathered(self) -> Iterator[tuple[dict[str, Any], Any]]:
        """What the host makes of batches, and the positions after them; in a thread of its own."""
        pin = self.rt.device.type == "cuda"
        if pin:
            torch.cuda.set_device(self.rt.device)  # a new thread is on the first GPU, where it would open a context
        for sample in self.loader:
            batch = self.task.gather(sample)
            yield self.loader.state_dict(), batch.pin_memory() if pin else batch

    def _forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to descend, and what to log."""
        self.task.before(self.step)
        bf16 = self.config.precision == "bf16"
        with torch.autocast("cuda", dtype=torch.bfloat16) if bf16 else nullcontext():
            return self.task.loss(batch)

    def _log_train(self) -> float:
        """Write the means of all ranks since the last line; returns the cross-entropy."""
        sums = torch.stack(list(self.sums.values()))
        dist.all_reduce(sums)
        means = dict(zip(self.sums, (sums / (self.loss_steps * self.rt.world_size)).tolist(), strict=True))
        loss = means["loss"]
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {self.step}; lower optimizer.dense_lr or optimizer.table_lr, "
                "or look for extreme values in the data"
            )
        seconds = time.perf_counter() - self.window_start
        samples = self.loss_steps * self.config.batch_size * self.rt.world_size
        self.trained = self.trained[0] + samples, self.trained[1] + seconds
        self._write(
            "train", **means, lr=float(self.trainee.scheduler.get_last_lr()[0]), samples_per_s=samples / seconds
        )
        self.sums.clear()
        self.loss_steps = 0
        self.window_start = time.perf_counter()
        return loss

    def _validate(self) -> dict[str, float]:
        if self.loss_steps:
            self._log_train()
        average_buffers(self.trainee.model)
        self.trainee.model.eval()
        metrics = self.task.validate(self.config.run / _SCRATCH)
        self._write("valid", **metrics)
        name, now = self.task.best, metrics[self.task.best]
        best = self.best[name]
        if best is None or (now > best if self.task.higher else now < best):
            self.best = {"step": self.step, name: now if math.isfinite(now) else None, "without_gain": 0}
        else:
            self.best["without_gain"] += 1
        self.checkpoints.protected = {self.best["step"]}
        self._save()
        if self.rt.is_first:
            write_json(self.config.run / BEST, self.best)
        self.trainee.model.train()
        self.window_start = time.perf_counter()
        return metrics

    def _tell(self, metrics: dict[str, float], epoch: int, progress: Progress) -> None:
        """Print the validation that was done."""
        (samples, seconds), self.trained = self.trained, (0, 0.0)
        if not self.rt.is_first:
            return
        line = validation_line(
            step=self.step,
            steps=self.config.epochs * self.loader.steps_per_epoch,
            epoch=epoch + 1,
            epochs=self.config.epochs,
            metrics=metrics,
            best=self.best,
            by=self.task.best,
            samples_per_s=samples / max(seconds, 1e-9),
            seconds_left=progress.seconds_left(),
        )
        print(line, flush=True)

    def _stopped(self) -> bool:
        return 0 < self.config.patience <= self.best["without_gain"]

    def _save(self) -> None:
        if self.loss_steps:
            self._log_train()
        average_buffers(self.trainee.model)
        trainer = {
            **self.identity.to_save(),
            "epoch": self.position["epoch"],
            "loader": self.position,
            "scheduler": self.trainee.scheduler_state(),
            "best": self.best,
            "world_size": self.rt.world_size,
        }
        self.checkpoints.save(self.step, {**self.trainee.state(), "rng": self._rng()}, trainer)

    def _rng(self) -> dict[str, Tensor]:
        states = {f"cpu-{self.rt.rank:05d}": torch.get_rng_state()}
        if self.rt.device.type == "cuda":
            states[f"cuda-{self.rt.rank:05d}"] = torch.cuda.get_rng_state()
        return states

    def go_on_from(self, run: Path) -> None:
        """Begin with what another run ends with, best checkpoint, at whatever number of ranks it was trained."""
        path, saved = on_first_rank(lambda: whole_checkpoint(run, "best"))
        where = f"checkpoint {path}"
        moves = on_first_rank(lambda: find_moves(self.identity, saved, where, lambda: trained_on(run)))
        if isinstance(run, Url):  # on this machine, too
            path = fetched(checkpoint_path(run / CHECKPOINTS, saved["step"]))
        state = self.trainee.state()
        load_by_id(path, self.identity.inputs, moves, state, self.config.new_rows)
        self.trainee.model.load_state_dict(state["model"])
        if self.rt.is_first:
            log.info("going on from step %d of %s: %s", saved["step"], run, "; ".join(moves.lines()) or "the same ids")
            then, now = saved["scheduler"]["_last_lr"][0], self.trainee.scheduler.get_last_lr()[0]
            log.info("the learning rate of the dense part starts again, at %g; it was %g there", now, then)

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint, at whatever number of ranks it was saved; False: there is none."""
        found = newest_whole(self.checkpoints.folder)
        if found is None:
            log.info("%s has no checkpoint yet: starting at step 0", self.config.run)
            return False
        path, saved = found
        self.identity.check(saved, f"checkpoint {path}")
        data = self.identity.inputs.manifest["content_hash"]
        if saved["data"] != data:  # the ids are the same, but where it stood in the samples means nothing in others
            raise ValueError(
                f"checkpoint {path} was trained on other data (content {saved['data'][:12]}, {self.config.data} has "
                f"{data[:12]}); prepare the same data again, or train in another run folder"
            )
        state = self.trainee.state()
        same_ranks = saved["world_size"] == self.rt.world_size
        rng = self._rng() if same_ranks else {}
        load(path, {**state, "rng": rng} if rng else state)
        self.trainee.load_state(state)
        self.trainee.load_scheduler(saved["scheduler"])
        self.loader.load_state_dict(saved["loader"])
        self.position = self.loader.state_dict()
        self.step, self.best = saved["step"], saved["best"]
        self.checkpoints.protected = {self.best["step"]}
        for name, value in rng.items():
            torch.set_rng_state(value) if name.startswith("cpu") else torch.cuda.set_rng_state(value)
        log.info("going on from step %d of %s", self.step, path)
        return True

    def _write(self, split: str, **values: float) -> None:
        """One line of metrics.jsonl, and the same to the tracker."""
        if self.tracking is None:
            return
        with open(self.config.run / METRICS, "a") as f:
            line = {k: v if math.isfinite(v) else None for k, v in values.items()}
            f.write(json.dumps({"step": self.step, "epoch": self.position["epoch"], "split": split, **line}) + "\n")
        self.tracking.log(self.step, split, values)
