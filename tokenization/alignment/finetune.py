"""The loop that trains an adapter: AdamW, warm-up and decay, checkpoints, any number of ranks.

What a step does follows from the seed and the step's number alone (its batch, its dropout), so a run that was killed
and goes on from its last checkpoint ends with the same weights as one that was not.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...data.manifest import drop_lines_after, whole_file
from ...reports.progress import Progress
from ..ranks import Ranks
from ..text.encoders import Encoder
from .lora import train_adapter_only
from .settings import OptimizerSettings

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"


# Parts of a step's loss on this rank, to be added up, each with what is to be logged of it. The parts of all ranks
# add up to the loss of the whole batch, so the sum of their gradients is its gradient.
Losses = Iterator[tuple[Tensor, dict[str, float]]]


def finetune(
    encoder: Encoder,
    parameters: list[nn.Parameter],
    losses: Callable[[int, Ranks], Losses],
    steps: int,
    settings: OptimizerSettings,
    folder: Path,
    seed: int,
    title: str,
) -> list[dict[str, float]]:
    """Train ``parameters`` (an adapter of ``encoder``) for ``steps`` steps; all ranks call it.

    Args:
        losses: of a step (0 and on) on a rank: parts, whose graphs are freed one after the other.
        folder: of checkpoint.pt and metrics.jsonl; a checkpoint in it is taken up.
        title: what the progress bar says.

    Returns:
        A line a step: step, loss, whatever ``losses`` logs (added up), learning_rate, gradient_norm.

    Raises:
        FloatingPointError: the loss is no longer a number.
    """
    ranks = Ranks.current()
    if ranks.is_first:
        folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay)
    start = _resume(folder / CHECKPOINT, parameters, optimizer)
    ranks.barrier()
    if ranks.is_first:
        drop_lines_after(folder / METRICS, start)
    cuda = [encoder.device] if encoder.device.type == "cuda" else []
    with (
        torch.random.fork_rng(cuda),
        Progress(title, steps, done=start, shown=ranks.is_first) as progress,
    ):
        train_adapter_only(encoder)
        for step in range(start, steps):
            torch.manual_seed((seed * 1_000_003 + step) * 1_009 + ranks.rank)
            rate = settings.learning_rate * schedule(step, steps, settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            logged = _backward(losses(step, ranks), ranks, encoder.device)
            gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
            ranks.sum_(*gradients)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            norm = nn.utils.clip_grad_norm_(parameters, settings.clip)
            if not math.isfinite(logged["loss"]):
                raise FloatingPointError(
                    f"{title}: the loss is {logged['loss']} at step {step}; lower optimizer.learning_rate"
                )
            optimizer.step()
            line = {"step": step + 1, **logged, "learning_rate": rate, "gradient_norm": float(norm)}
            progress.update()
            progress.note(f"loss {logged['loss']:.4f}")
            if ranks.is_first:
                with open(folder / METRICS, "a") as file:
                    file.write(json.dumps(line) + "\n")
                if (step + 1) % settings.checkpoint_every == 0 or step + 1 == steps:
                    _save(folder / CHECKPOINT, step + 1, parameters, optimizer)
    encoder.model.eval()
    ranks.barrier()
    return read_metrics(folder)


def schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the highest learning rate at a step: up in a straight line, then down to zero after the last."""
    rising = round(steps * warmup)
    return (step + 1) / (rising + 1) if step < rising else (steps - step) / (steps - rising)


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines that a run has logged; none before its first step."""
    path = folder / METRICS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _backward(parts: Losses, ranks: Ranks, device: torch.device) -> dict[str, float]:
    """Gradients of the sum of the parts; what was logged, added up over parts and ranks."""
    total: dict[str, float] = {}
    for loss, logged in parts:
        loss.backward()
        for name, value in {"loss": float(loss.detach()), **logged}.items():
            total[name] = total.get(name, 0.0) + value
    values = torch.tensor(list(total.values()), dtype=torch.float64, device=device)
    ranks.sum_(values)
    return dict(zip(total, values.tolist(), strict=True))


def _save(path: Path, step: int, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    weights = [p.detach().cpu() for p in parameters]
    with whole_file(path) as tmp:
        torch.save({"step": step, "weights": weights, "optimizer": optimizer.state_dict()}, tmp)


def _resume(path: Path, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Take up a checkpoint; returns how many steps it has done, 0 without one."""
    if not path.is_file():
        return 0
    saved: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    shapes = [tuple(p.shape) for p in parameters]
    found = [tuple(w.shape) for w in saved["weights"]]
    if shapes != found:
        raise ValueError(f"{path} is of another adapter ({len(found)} weights, here {len(shapes)}); remove its folder")
    with torch.no_grad():
        for parameter, weight in zip(parameters, saved["weights"], strict=True):
            parameter.copy_(weight)
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"])
