"""What all workers share: the case, the arrays, and the loop that answers the driver.

A worker is a process in its own environment. It reads one command a line from stdin and answers one line of JSON:

    warm N      N training steps, untimed
    step S      training steps for at least S seconds, batches already in memory -> samples_per_s, loss
    predict N   scores of the first batch, N times -> seconds of each
    fit         one epoch of the side's own loop with its own loader -> samples_per_s (null where it has none here)
    quit

Nothing here imports placerank or a peer: NumPy and torch only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

MLP = (128, 64)
ATTENTION = (32, 16)
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Case:
    """One setting of the comparison. `lengths` is "skewed" or "full"."""

    batch: int
    dim: int
    lengths: str
    rows: int
    users: int
    items: int
    categories: int
    history: int


class Arrays:
    """The dataset as NumPy arrays, histories cut (and filled with 0 on the right) by the case's lengths."""

    def __init__(self, folder: Path, case: Case) -> None:
        self.user, self.item, self.label = (np.load(folder / f"{name}.npy") for name in ("user", "item", "label"))
        self.category = np.load(folder / "category.npy")
        self.history = np.load(folder / "history.npy")
        self.length = np.load(folder / "length.npy")
        if case.lengths == "full":
            self.length = np.full_like(self.length, case.history)
        self.history[np.arange(case.history)[None, :] >= self.length[:, None]] = 0

    def slices(self, batch: int) -> list[slice]:
        """Whole batches only."""
        return [slice(start, start + batch) for start in range(0, len(self.user) - batch + 1, batch)]


@dataclass
class Side:
    """What a worker script hands over.

    Attributes:
        version: version of the package.
        settings: one line of what was chosen for this side, for the reader.
        batches: batches in memory, in the side's own form.
        step: one training step on one of them; returns the loss (read once a repeat only).
        fit: one epoch with the side's own loader, or None.
        parameters: number of trainable values.
        predict: the side's own way from one of the batches to scores, or None.
    """

    version: str
    settings: str
    batches: list[Any]
    step: Callable[[Any], torch.Tensor | float]
    fit: Callable[[], None] | None
    parameters: int
    predict: Callable[[Any], object] | None = None


def serve(make: Callable[[Case, Arrays, Path], Side]) -> None:
    """Build the side and answer commands until `quit` or the end of stdin."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--case", type=json.loads, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    del sys.argv[1:]  # RecBole reads them too
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is not an answer
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    np.random.seed(0)
    case = Case(**arguments.case)
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    side = make(case, Arrays(arguments.data, case), arguments.scratch)
    hello = {
        "version": side.version,
        "settings": side.settings,
        "parameters": side.parameters,
        "torch": torch.__version__,
    }
    print(json.dumps(hello), file=answers)
    position = 0
    for line in sys.stdin:
        command, *values = line.split()
        if command == "quit":
            return
        if command == "predict":
            assert side.predict is not None
            seconds = []
            for _ in range(int(values[0])):
                start = time.perf_counter()
                side.predict(side.batches[0])
                seconds.append(time.perf_counter() - start)
            print(json.dumps({"seconds": seconds}), file=answers)
            continue
        if command == "fit":
            if side.fit is None:
                print(json.dumps({"samples_per_s": None}), file=answers)
                continue
            start = time.perf_counter()
            side.fit()
            print(json.dumps({"samples_per_s": case.rows / (time.perf_counter() - start)}), file=answers)
            continue
        steps, at_least = (int(values[0]), 0.0) if command == "warm" else (4, float(values[0]))
        done, losses, start = 0, [], time.perf_counter()
        while done < steps or time.perf_counter() - start < at_least:
            loss = side.step(side.batches[position % len(side.batches)])
            losses.append(loss.detach() if isinstance(loss, torch.Tensor) else loss)
            position += 1
            done += 1
        elapsed = time.perf_counter() - start
        rate, last = done * case.batch / elapsed, float(np.mean([float(value) for value in losses[-8:]]))
        print(json.dumps({"samples_per_s": rate, "loss": last, "steps": done}), file=answers)
