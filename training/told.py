"""What a person reads of a run while it goes: a line a validation."""

import math
from collections.abc import Mapping
from typing import Any

from ..reports.progress import duration

# Names of a validation's numbers: title and format, in this order; others are shown by their own names behind.
_SHOWN = {
    "reward": "reward {:.4f}",
    "hit@10": "Hit@10 {:.4f}",
    "log_loss": "log-loss {:.4f}",
    "auc": "AUC {:.4f}",
    "gauc": "GAUC {:.4f}",
    "nll": "nats a visit {:.4f}",
    "nll_first_visits": "first visits {:.4f}",
    "nll_repeats": "repeats {:.4f}",
    "impossible": "impossible {:.2%}",
}


def _number(form: str, value: float) -> str:
    return form.format(value) if math.isfinite(value) else f"{form.partition('{')[0]}–"


def _shown(metrics: Mapping[str, float]) -> list[str]:
    """The numbers, those of several labels behind their mean: "AUC 0.7213 (label 0.7801, order 0.6625)"."""
    found = []
    for name, form in _SHOWN.items():
        if name in metrics:
            each = {n.removeprefix(f"{name}/"): x for n, x in metrics.items() if n.startswith(f"{name}/")}
            parts = ", ".join(f"{label} {_number('{:.4f}', x)}" for label, x in each.items())
            found.append(_number(form, metrics[name]) + (f" ({parts})" if parts else ""))
    known = {name for name in metrics if name.partition("/")[0] in _SHOWN}
    return found + [f"{name} {_number('{:.4f}', x)}" for name, x in metrics.items() if name not in known]


def validation_line(
    *,
    step: int,
    steps: int,
    epoch: int,
    epochs: int,
    metrics: Mapping[str, float],
    best: Mapping[str, Any],
    by: str,
    samples_per_s: float,
    seconds_left: float | None,
) -> str:
    """A validation in one line.

    Args:
        step: after which it was, of so many.
        epoch: that the step belongs to, from 1, of so many.
        metrics: what ``Task.validate`` found.
        best: ``step`` and, under the name ``by``, the best value so far.
        samples_per_s: of all ranks, since the validation before, without it.
        seconds_left: to the end of the last epoch; None where nobody knows.
    """
    parts = [f"step {step:>{len(f'{steps:,}')},}", f"epoch {epoch}/{epochs}", *_shown(metrics)]
    parts.append(f"{samples_per_s:,.0f} samples/s")
    if seconds_left is not None:
        parts.append(f"{duration(seconds_left)} left")
    if best["step"] == step:
        parts.append("best so far")
    elif best.get(by) is not None:
        parts.append(f"best {best[by]:.4f} at step {best['step']:,}")
    return "  ".join(parts)
