"""Charts of an evaluation: the ladder of scorers, learning curves, slices, calibration; see ``reports/figures.py``."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..reports.figures import THEME

COLOURS = {"model": "teal", "oracle": "gold", "popularity": "violet", "visits": "blue", "nearest": "red"}
"""Names of the theme's colours, by scorer."""
_MODEL = THEME["teal"]
_MARKERS = {"popularity": "^", "visits": "s", "nearest": "v", "oracle": "D"}


def _figure(width: float, height: float, columns: int = 1, **grid: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, columns, **grid)).flat)


def ladder(scorers: dict[str, dict[str, Any]]) -> Figure:
    """AUC of all scorers on one line from chance to the best."""
    figure, (ax,) = _figure(9, 0.42 * len(scorers) + 0.9)
    draw_ladder(ax, scorers)
    return figure


def draw_ladder(ax: Axes, scorers: dict[str, dict[str, Any]]) -> None:
    """The ladder into given axes."""
    known = {name: s for name, s in scorers.items() if s["auc"] is not None}
    names = sorted(known, key=lambda name: known[name]["auc"])
    for y, name in enumerate(names):
        value = known[name]["auc"]
        strong = name in ("model", "oracle")
        ax.barh(y, value - 0.5, left=0.5, height=0.62, color=THEME[COLOURS[name]], alpha=1.0 if strong else 0.55)
        ax.annotate(
            f"{value:.3f}",
            (max(value, 0.5), y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            weight="bold" if strong else "normal",
        )
    ax.set_yticks(range(len(names)), [known[name]["title"] for name in names])
    ax.tick_params(axis="y", length=0, labelcolor=THEME["ink"])
    values = [s["auc"] for s in known.values()]
    ax.set_xlim(min([0.5, *values]) - 0.004, max([0.6, *values]) * 1.06 - 0.02)
    ax.axvline(0.5, color=THEME["muted"], linewidth=1)
    ax.set_xlabel("AUC (0.5 = chance)")
    ax.spines["left"].set_visible(False)


def learning_curve(lines: Sequence[dict[str, Any]], best_step: int | None) -> Figure:
    """Loss (train and validation) and validation AUC over the steps."""
    figure, axes = _figure(9, 3.2, 2)
    draw_loss(axes[0], lines, best_step)
    draw_valid_auc(axes[1], lines, best_step)
    return figure


def _series(lines: Sequence[dict[str, Any]], split: str, *names: str) -> tuple[list[float], list[float]]:
    points = [
        (line["step"], line[name])
        for line in lines
        for name in names
        if line.get("split") == split and line.get(name) is not None
    ]
    return [p[0] for p in points], [p[1] for p in points]


def draw_loss(ax: Axes, lines: Sequence[dict[str, Any]], best_step: int | None) -> None:
    """Loss of the training steps and of the validations."""
    ax.plot(*_series(lines, "train", "loss"), color=THEME["muted"], linewidth=1.2, label="training")
    ax.plot(*_series(lines, "valid", "loss", "log_loss"), color=_MODEL, marker="o", markersize=4, label="validation")
    ax.set(title="Loss (nats)", xlabel="step")
    ax.legend(loc="upper right")
    _mark_step(ax, best_step)


def draw_valid_auc(ax: Axes, lines: Sequence[dict[str, Any]], best_step: int | None) -> None:
    """AUC of the validations; the value at ``best_step`` is in the title."""
    steps, values = _series(lines, "valid", "auc")
    ax.plot(steps, values, color=_MODEL, marker="o", markersize=4)
    title = "Validation AUC"
    _mark_step(ax, best_step)
    if best_step in steps:
        at = values[steps.index(best_step)]
        ax.plot(best_step, at, color=_MODEL, marker="o", markersize=8)
        title += f", best {at:.4f}"  # beside the point it would lie on the curve, or on the axis
    ax.set(title=title, xlabel="step")
    ax.margins(y=0.2)


def _mark_step(ax: Axes, step: int | None) -> None:
    ax.grid(axis="y")
    if step:
        ax.axvline(step, color=THEME["line"], linewidth=1.5, zorder=0)


def slices(parts: Sequence[dict[str, Any]], names: Sequence[str]) -> Figure:
    """AUC of every slice: a bar for the model, marks for the others, one block for each slicing.

    Args:
        parts: values of ``metrics["slices"]``.
        names: scorers to show, "model" among them.
    """
    rows = [(part, i) for part in parts for i in range(len(part["scorers"]["model"]))]
    figure, (ax,) = _figure(9, 0.29 * len(rows) + 0.42 * len(parts) + 0.8)
    lowest, highest, y = 0.5, 0.6, 0.0
    transform = ax.get_yaxis_transform()
    for part in parts:
        ax.annotate(
            part["title"], (0.5, y), xytext=(4, 0), textcoords="offset points", weight="bold", va="center", zorder=5
        )
        y += 1.0
        for i, bar in enumerate(part["scorers"]["model"]):
            ax.text(-0.012, y, bar["label"], transform=transform, ha="right", va="center")
            ax.text(
                1.01, y, f"{bar['rows']:,}", transform=transform, ha="left", va="center", color=THEME["muted"], size=9
            )
            if bar["auc"] is None:
                ax.text(
                    0.505, y, bar.get("note", "undefined"), va="center", color=THEME["muted"], style="italic", size=9
                )
            else:
                ax.barh(y, bar["auc"] - 0.5, left=0.5, height=0.62, color=_MODEL, alpha=0.28, linewidth=0)
                ax.plot([bar["auc"]] * 2, [y - 0.31, y + 0.31], color=_MODEL, linewidth=2.5)
                error = 1.96 * bar["auc_standard_error"]
                ax.plot([bar["auc"] - error, bar["auc"] + error], [y, y], color=_MODEL, linewidth=1.2)
            for name in names:
                value = part["scorers"][name][i]["auc"]
                if value is None:
                    continue
                lowest, highest = min(lowest, value), max(highest, value)
                if name != "model":
                    ax.plot(
                        value,
                        y,
                        _MARKERS[name],
                        color=THEME[COLOURS[name]],
                        markersize=5.5,
                        markeredgecolor=THEME[COLOURS[name]],
                        markeredgewidth=0,
                    )
            y += 1.0
        y += 0.45
    ax.set_ylim(y - 0.6, -0.8)
    ax.set_xlim(0.5 if lowest == 0.5 else max(lowest - 0.02, 0), min(highest + 0.03, 1.005))
    ax.axvline(0.5, color=THEME["muted"], linewidth=1)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    ax.set_xlabel("AUC within the slice")
    ax.text(1.01, -0.8, "rows", transform=transform, color=THEME["muted"], size=9, va="center")
    return figure


def calibration(curve: dict[str, Sequence[float]], predicted: np.ndarray, label: np.ndarray) -> Figure:
    """Reliability curve, and how the predictions of positives and of negatives are spread."""
    figure, axes = _figure(9, 3.6, 2)
    ax = axes[0]
    top = max(*curve["predicted"], *curve["observed"], 0.05) * 1.06
    ax.plot([0, top], [0, top], color=THEME["muted"], linewidth=1, linestyle=(0, (4, 3)))
    p, n = np.array(curve["observed"]), np.array(curve["rows"])
    ax.errorbar(
        curve["predicted"],
        p,
        yerr=1.96 * np.sqrt(np.maximum(p * (1 - p), 0) / n),
        color=_MODEL,
        marker="o",
        markersize=4,
        linewidth=1.4,
        elinewidth=1,
    )
    ax.set(
        title="Reliability", xlabel="predicted probability", ylabel="share of positives", xlim=(0, top), ylim=(0, top)
    )
    ax.set_aspect("equal", adjustable="box")
    ax = axes[1]
    bins = np.linspace(0, max(math.ceil(predicted.max() * 20) / 20, 0.05), 41)
    for kind, colour, name in ((label == 0, "muted", "negatives"), (label == 1, "teal", "positives")):
        if kind.any():
            weights = np.full(int(kind.sum()), 1 / kind.sum())
            ax.hist(predicted[kind], bins=list(bins), weights=weights, color=THEME[colour], alpha=0.55, label=name)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set(title="Spread of the predictions", xlabel="predicted probability", ylabel="share of the class")
    ax.legend(loc="upper right")
    for ax in axes:
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.grid(axis="y")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure
