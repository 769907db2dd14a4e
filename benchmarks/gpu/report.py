"""What the parts of the check write, line by line, so that a run that is cut off keeps what it had."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..results_file import keep
from .check import RECORDS

if TYPE_CHECKING:  # nor do parts that only start others
    import torch

FIGURES = "gpu.csv"

Cases = Iterator[tuple[str, Callable[[], None]]]
"""Names and what to run, in order of worth. One that fails does not stop the next."""


class Skip(Exception):
    """This can't run here; says why."""


@contextmanager
def needed() -> Iterator[None]:
    """Imports without which a case is skipped."""
    try:
        yield
    except ImportError as error:
        raise Skip(f"{error}") from None


@dataclass
class Report:
    """Where a part writes, and how much time it has.

    Attributes:
        part: its name.
        out: the run's folder.
        dry: without a GPU, at toy sizes: figures are no results, and no target is judged.
        seconds: time that the part has.
    """

    part: str
    out: Path
    dry: bool
    seconds: float
    start: float = field(default_factory=time.monotonic)
    _figures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def device(self) -> "torch.device":
        import torch

        return torch.device("cpu" if self.dry else "cuda")

    def left(self) -> float:
        """Seconds that the part still has."""
        return self.seconds - (time.monotonic() - self.start)

    def record(self, **values: Any) -> None:
        """A line of ``RECORDS``."""
        with open(self.out / RECORDS, "a") as f:
            f.write(json.dumps({"part": self.part, **values}) + "\n")

    def figure(
        self, case: str, metric: str, value: float, unit: str, least: float | None = None, most: float | None = None
    ) -> None:
        """A number that was found, and the target that it has: at least so much, or at most."""
        met = (least is None or value >= least) and (most is None or value <= most)
        target = "" if least is None and most is None else f">= {least:g}" if most is None else f"<= {most:g}"
        line = {"case": case, "metric": metric, "value": float(f"{value:.5g}"), "unit": unit, "target": target}
        verdict = "" if self.dry or not target else "met" if met else "missed"
        self._figures.append({"part": self.part, **line, "verdict": verdict})
        self.record(**line, verdict=verdict)
        print(f"{case}: {metric} {value:.4g} {unit} {target and f'(target {target})'} {verdict}".rstrip(), flush=True)

    def keep_figures(self) -> None:
        """What was found so far, into ``FIGURES`` beside what other parts and devices have there."""
        self.keep(FIGURES, self._figures, ("part", "case", "metric", "device"))

    def keep(self, name: str, lines: list[dict[str, Any]], key: tuple[str, ...]) -> None:
        """Lines into a file of results, here and in the run's folder; of a dry run nowhere."""
        if lines and not self.dry:
            path = keep(name, lines, key, self.device)
            (self.out / name).write_bytes(path.read_bytes())
