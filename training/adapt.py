"""The ``adapt`` step: a teacher, then a student that learns from visits and from it; see docs/adapter.md.

The run folder has config.json, and of teacher and student each NAME.jsonl (metrics), NAME.pt (checkpoint) and, when it
is done, NAME.safetensors, of its best validation; at the end advisor/, which ``placerank advise`` answers from. All
that is drawn at a step follows from seed and step, so a run that was ended goes on to the same losses.
"""

import json
import logging
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor

from ..data.manifest import drop_lines_after, read_manifest, whole_file, write_json
from ..data.plain import flat, from_plain, read_json
from ..rankers.adapter.advisor import save_advisor
from ..rankers.adapter.config import LanguageConfig
from ..rankers.adapter.language import make_language
from ..rankers.adapter.losses import sampled_softmax, sentence_rows, to_teacher
from ..rankers.adapter.model import RecAdapter
from ..rankers.adapter.queries import NEXT, line
from ..rankers.adapter.sentences import spelt
from ..rankers.adapter.world import BLOCK, Asking, Lesson, World, by_length
from ..reports.progress import Progress
from .run_files import CONFIG, holds_run
from .run_lock import LOCK, run_lock
from .settings import AdaptConfig

log = logging.getLogger(__name__)

ADVISOR = "advisor"
ROLES = ("teacher", "student")
_OF_LIFTS = 1024  # visits
_VALIDATED = 500  # visits
_LOGGED = 20  # steps between lines


def adapt(config: AdaptConfig) -> Path:
    """Train teacher and student; returns the advisor's folder. One process.

    Raises:
        FileExistsError: the folder has a run in it, and neither ``resume`` nor ``overwrite`` is set.
        FileNotFoundError: no such data or language model.
        ValueError: the data, the settings or the checkpoint don't fit together.
        FloatingPointError: the loss is no longer a number.
    """
    read_manifest(config.data, "prepared")
    with run_lock(config.run):
        _begin(config)
        out = adapted(config, world_of(config.data, config.adapter.history))
    return out


def adapted(config: AdaptConfig, world: World) -> Path:
    """As ``adapt``, in a run folder that is ready, of a world that was made for it: several runs may share one."""
    teacher = trained(config, world, "teacher", None) if config.distillation_weight else None
    student = trained(config, world, "student", teacher)
    out = config.run / ADVISOR
    made_from = {"prepared": read_manifest(config.data, "prepared")["content_hash"]}
    save_advisor(out, student, config.adapter, world.catalog, config, made_from, config.steps)
    return out


def world_of(prepared: Path, history: int) -> World:
    """What both are taught with; what clauses tell is of the data, so it is the same at any seed."""
    world = World(prepared, history)
    world.learn_lifts(world.asking(next(iter(world.loader("train", _OF_LIFTS, 0, shuffle=True)))), 0)
    return world


def _begin(config: AdaptConfig) -> None:
    """Make the run folder ready.

    Raises:
        FileExistsError, ValueError: see ``adapt``.
    """
    held = [path for path in config.run.iterdir() if path.name != LOCK]
    file, now = config.run / CONFIG, replace(config, resume=False, overwrite=False)
    if held and not holds_run(config.run, "student"):
        raise FileExistsError(f"{config.run} holds files that are no run of placerank adapt; choose another --run")
    begun = [path for path in held if path.name != CONFIG]  # the settings alone: it failed before anything was learned
    if begun and not (config.resume or config.overwrite):
        raise FileExistsError(f"{config.run} has a run in it; choose another --run, --resume or --overwrite")
    if config.overwrite:
        for path in held:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if config.resume and begun:
        then = from_plain(AdaptConfig, read_json(file, dict[str, Any], "use --overwrite"), str(file))
        then = replace(then, run=config.run, data=config.data)
        was, wanted = (dict(flat(asdict(settings))) for settings in (then, now))
        if changed := [name for name, value in wanted.items() if was.get(name) != value]:
            raise ValueError(
                f"resume: {changed[0]} is {wanted[changed[0]]}, the run has {was.get(changed[0])}; go on with the "
                f"same settings ({file}), or choose another --run"
            )
    write_json(file, now)


def trained(config: AdaptConfig, world: World, name: str, teacher: RecAdapter | None) -> RecAdapter:
    """Teacher or student, with frozen weights; taken up where it was ended."""
    settings: LanguageConfig = getattr(config, name)
    torch.manual_seed(config.seed + ROLES.index(name))
    model = RecAdapter(*_named(name, settings, world), config.adapter, world.places)
    done = config.run / f"{name}.safetensors"
    if done.is_file():
        load_model(model, done)
    else:
        _Course(config, world, name, model, teacher).run()
        with whole_file(done) as file:
            save_model(model, str(file))
        (config.run / f"{name}.pt").unlink(missing_ok=True)
    return model.eval().requires_grad_(False)


def _named(name: str, settings: LanguageConfig, world: World) -> tuple[Any, Any]:
    try:
        return make_language(settings, lambda: world.tokenizer)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{name}: {error}") from error


class _Course:
    """The training of one model.

    Args:
        config, world: of the run.
        name: of ``ROLES``.
        model: with its first weights.
        teacher: who is listened to; None: nobody.
    """

    def __init__(
        self, config: AdaptConfig, world: World, name: str, model: RecAdapter, teacher: RecAdapter | None
    ) -> None:
        self.config, self.world, self.name, self.model, self.teacher = config, world, name, model, teacher
        learned = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=config.learning_rate, weight_decay=0.01)
        self.loader = world.loader("train", config.batch_size * BLOCK, config.seed, shuffle=True)
        self.step, self.within, self.position = 0, 0, self.loader.state_dict()
        self.file, self.lines = config.run / f"{name}.pt", config.run / f"{name}.jsonl"
        self.best: dict[str, float] = {}
        self.weights: dict[str, Tensor] = {}
        self.alike = teacher is not None and teacher.tokenizer.get_vocab() == model.tokenizer.get_vocab()

    def run(self) -> None:
        """All steps that are left; the model is then as it was at its best validation, the start's counts too."""
        self._load()
        drop_lines_after(self.lines, self.step if self.best else -1)
        if not self.best:
            self._validate()
        with Progress(f"adapt, {self.name}", self.config.steps, done=self.step) as progress:
            for asking in self._batches():
                if self.step == self.config.steps:
                    break
                told = self._learn(asking)
                self.step += 1
                self.within += 1
                if self.step % _LOGGED == 0 or self.step == self.config.steps:
                    self._log(split="train", **told)
                    progress.note(f"loss {told['loss']:.3f}")
                if self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps:
                    self._validate()
                progress.update()
        self.model.load_state_dict(self.weights)
        log.info("%s: of validation visits %s", self.name, ", ".join(f"{k} {x:.4g}" for k, x in self.best.items()))

    def _validate(self) -> None:
        """Keeps what is best so far, and a checkpoint."""
        found = validated(self.model.eval(), self.world)
        self._log(split="valid", **found)
        if not self.best or found["ndcg@10"] > self.best["ndcg@10"]:
            self.best = {"step": self.step, **found}
            self.weights = {name: x.clone() for name, x in self.model.state_dict().items()}
        self._save()

    def _batches(self) -> Iterator[Asking]:
        while True:
            blocks = iter(self.loader)
            for block in blocks:
                asking = self.world.asking(block)
                rng = np.random.default_rng([self.config.seed, self.position["epoch"], int(block.target_time[0])])
                batches = by_length(asking.q.seen.sum(1), self.config.batch_size, rng)
                for rows in batches[self.within :]:
                    yield asking.some(rows)
                self.within, self.position = 0, self.loader.state_dict()

    def _learn(self, asking: Asking) -> dict[str, float]:
        """One step; returns what to log."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        rng = np.random.default_rng([self.config.seed, ROLES.index(self.name), self.step])
        lesson = self.world.lesson(asking, self.config.reasons, rng)
        self.model.train()
        losses = self._losses(lesson)
        loss = losses["place"] + self.config.generation_weight * (losses["reason"] + losses["intent"])
        if self.teacher is not None:
            loss = loss + self.config.distillation_weight * losses["kl"]
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"{self.name}: the loss is {loss.item()} at step {self.step}; lower learning_rate")
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * (1 - self.step / self.config.steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return {"loss": loss.item(), **{name: x.item() for name, x in losses.items()}}

    def _losses(self, lesson: Lesson) -> dict[str, Tensor]:
        scores, said, wanted = answers(self.model, lesson)
        routed = self.model.route([self.model.tokens(text) for text in lesson.routed])
        losses = {
            "place": sampled_softmax(scores, lesson.log_q),
            "reason": torch.nn.functional.cross_entropy(said, wanted),
            "intent": torch.nn.functional.cross_entropy(routed, lesson.intents),
        }
        if self.teacher is not None:
            with torch.no_grad():
                by_teacher, by_tokens, _ = answers(self.teacher, lesson, self.alike)
            out = torch.nn.functional.pad(lesson.log_q.isinf(), (1, 0), value=False)
            own, theirs = (x.masked_fill(out, -1e4) for x in (scores, by_teacher))
            losses["kl"] = to_teacher(own, theirs, self.config.temperature)
            if self.alike:
                of_tokens = to_teacher(said, by_tokens, self.config.temperature)
                losses["kl"] = losses["kl"] + self.config.generation_weight * of_tokens
        return losses

    # --- files ------------------------------------------------------------------------------------------------------

    def _log(self, **values: Any) -> None:
        with open(self.lines, "a") as file:
            file.write(json.dumps({"step": self.step, **values}) + "\n")

    def _save(self) -> None:
        state = {"step": self.step, "within": self.within, "position": self.position}
        state |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"best": self.best, "weights": self.weights}
        with whole_file(self.file) as file:
            torch.save(state, file)

    def _load(self) -> None:
        if not self.file.is_file():
            return
        try:
            state = torch.load(self.file, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.loader.load_state_dict(state["position"])
        except (RuntimeError, KeyError, OSError, EOFError) as error:
            raise ValueError(f"{self.file} is damaged ({error}); remove it to begin the {self.name} anew") from error
        self.step, self.within, self.position = state["step"], state["within"], state["position"]
        self.best, self.weights = state["best"], state["weights"]


def answers(model: RecAdapter, lesson: Lesson, say: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """What a model makes of a lesson.

    Returns:
        Scores of the candidates [B, 1 + N], logits of each token of the reasons [S, V], and these tokens [S]; without
        ``say`` nothing is said, S = 0.
    """
    q = lesson.asking.q
    visits = model.visits(q)
    scores = model.score(q, [model.tokens(text) for text in lesson.questions], lesson.candidates, visits)
    if not say:
        return scores, scores.new_zeros(0, 1), torch.zeros(0, dtype=torch.int64)
    some = q.some(lesson.why)
    rows, seen = model.told_of(some, lesson.asking.target[lesson.why], visits[lesson.why])
    asked, told = [model.tokens(t) for t in lesson.whys], [spelt(model, s) for s in lesson.reasons]
    logits = model.write([[*a, *t] for a, t in zip(asked, told, strict=True)], rows, seen)
    return scores, *sentence_rows(logits, [len(a) for a in asked], told)


@torch.no_grad()
def all_scores(model: RecAdapter, asking: Asking) -> Tensor:
    """Of all catalog rows, asked "where to next", float [B, I]; -inf for row 0."""
    every = torch.arange(len(model.places)).expand(len(asking.target), -1)
    ids = [model.tokens(line(NEXT, s)) for s in asking.q.local.tolist()]
    scores = model.score(asking.q, ids, every)
    scores[:, 0] = -torch.inf
    return scores


def validated(model: RecAdapter, world: World) -> dict[str, float]:
    """Recall@10 and NDCG@10 of validation visits, the same few at any seed, among all places; ties count as above."""
    batch = next(iter(world.loader("valid", _VALIDATED, 0, shuffle=True)))
    asking, places = world.asking(batch), []
    for rows in by_length(asking.q.seen.sum(1)[: batch.valid], 64, np.random.default_rng(0)):
        some = asking.some(rows)
        scores = all_scores(model, some)
        places.append((scores >= scores.gather(1, some.target[:, None])).sum(1) - 1)
    place = torch.cat(places).double()
    inside = place < 10
    return {"recall@10": inside.double().mean().item(), "ndcg@10": (inside / (place + 2).log2()).mean().item()}
