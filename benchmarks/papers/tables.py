"""From cells to tables: means, spreads, and paired differences against the plain cell of the same tower and seed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from ...evaluation.paired import Interval, mean_and_spread, paired_bootstrap, paired_t
from .cells import METRICS, Cell, activity_parts
from .grids import PLAIN

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

Line = dict[str, Any]
_DIGITS = 5
_NONE = Interval(math.nan, math.nan, math.nan)
VALIDATION = "validation split"
HEADLINE = ("auc", "gauc", "ndcg@10")
SHOWN = {  # parts beside the whole test split, by table
    "lgsid": ("first visits", "head items", "tail items"),
    "rest": ("first visits", "head items", "tail items", "items < 3 times", "new users"),
    "akt": (*activity_parts("items"), *activity_parts("users")),
    "mend": ("first visits", "head items", "tail items", "items < 3 times"),
    "beyond": (
        "dense places",
        "sparse places",
        "head items",
        "tail items",
        "items < 3 times",
        "new users",
        "known users",
    ),
    "codes": ("first visits", "head items", "tail items", "items < 3 times"),
    "robust": (),
    "rule": (),
    "users": (*activity_parts("users"), "new users"),
    "users_frequent": (*activity_parts("users"), "new users"),
    "towers": ("first visits", "head items", "tail items", "items < 3 times"),
    "whole": ("first visits", "head items", "tail items", "items < 3 times"),
}


def lines_of(table: str, cells: Sequence[Cell]) -> list[Line]:
    """A line for each dataset, tower, variant, part and metric; of the cells that are done.

    Differences are of the seeds that both the cell and its base (its tower's plain cell, mostly) have.
    """
    results = {(c.place.data.name, c.tower, c.variant.name, c.seed): (c, kept) for c in cells if (kept := c.done())}
    rows = dict.fromkeys((dataset, tower, variant) for dataset, tower, variant, _ in results)
    lines = []
    for dataset, tower, variant in rows:
        mine = {seed: found for (*key, seed), found in results.items() if tuple(key) == (dataset, tower, variant)}
        of = next(iter(mine.values()))[0].variant
        keys = {} if variant == PLAIN else {s: (dataset, tower, of.base, s) for s in mine}
        plain, title = {s: results[key] for s, key in keys.items() if key in results}, of.title
        about = {"table": table, "dataset": dataset, "tower": tower, "variant": variant, "title": title}
        drawn = _bootstrap(mine, plain)
        for part in dict.fromkeys(part for _, kept in mine.values() for part in _parts(kept)):
            for metric in METRICS:
                values, base = (
                    {seed: v for seed, (_, kept) in of.items() if (v := _value(kept, part, metric)) is not None}
                    for of in (mine, plain)
                )
                if values:
                    by_request = drawn if (part, metric) == ("all", "request_auc") else _NONE
                    lines.append({**about, "part": part, "metric": metric, **_compare(values, base, by_request)})
    return lines


def _parts(kept: dict[str, Any]) -> dict[str, Any]:
    """The test split's, and the whole validation split: the time between training and test. With one pass it is only
    looked at, so it is a second test, and one that begins where training ends."""
    last = kept.get("valid", [])[-1:]
    return {**kept["test"], **({VALIDATION: last[0]} if last else {})}


def _value(kept: dict[str, Any], part: str, metric: str) -> float | None:
    value = _parts(kept).get(part, {}).get(metric)
    return None if value is None else float(value)


def _compare(values: dict[int, float], base: dict[int, float], by_request: Interval) -> Line:
    """Mean of a cell by seed, and its difference to the plain one where that has a value too."""
    mean, spread = mean_and_spread(list(values.values()))
    both = [seed for seed in values if seed in base]
    own = paired_t([values[seed] - base[seed] for seed in both]) if both else _NONE
    numbers = {"mean": mean, "spread": spread, "difference": own.mean, "low": own.low, "high": own.high}
    numbers["relative"] = own.mean / float(np.mean([base[seed] for seed in both])) if both else math.nan
    numbers |= {"request_low": by_request.low, "request_high": by_request.high}
    return {"seeds": len(values)} | {name: rounded(value) for name, value in numbers.items()}


def _bootstrap(mine: dict[int, Any], plain: dict[int, Any]) -> Interval:
    """Of the requests' AUC: differences averaged over seeds, requests drawn anew."""
    if not plain:
        return _NONE
    differences = np.mean([mine[seed][0].requests() - plain[seed][0].requests() for seed in plain], axis=0)
    return paired_bootstrap(differences[np.isfinite(differences)])


def rounded(value: float) -> float | str:
    """A number as results have it, nothing for NaN."""
    return "" if math.isnan(value) else round(value, _DIGITS)


def signed(line: Line) -> str:
    """Difference with its interval; a star where that leaves 0 out."""
    if line["difference"] == "":
        return ""
    text = f"{line['difference']:+.4f}"
    if line["low"] == "":
        return text
    star = " *" if line["low"] > 0 or line["high"] < 0 else ""
    return f"{text} [{line['low']:+.4f}, {line['high']:+.4f}]{star}"


def mean_of(line: Line | None) -> str:
    """Mean ± standard deviation."""
    if line is None:
        return ""
    return f"{line['mean']:.4f}" + ("" if line["spread"] == "" else f" ± {line['spread']:.4f}")


def markdown(table: str, lines: list[Line]) -> str:
    """The table a dataset: the whole split, then each part's AUC; * where the interval leaves 0 out."""
    at = {(x["dataset"], x["tower"], x["variant"], x["part"], x["metric"]): x for x in lines}
    rows = list(dict.fromkeys((x["dataset"], x["tower"], x["variant"], x["title"]) for x in lines))
    out = []
    for dataset in dict.fromkeys(row[0] for row in rows):
        here = [row for row in rows if row[0] == dataset]
        head = ["tower", "variant", "seeds"]
        for metric in HEADLINE:
            head += [metric.upper(), "difference"]
        head += ["request AUC: 95 % over requests"]
        out += [f"\n{dataset}\n", row_of(head), row_of(["---"] * len(head))]
        for _, tower, variant, title in here:
            found = {m: at.get((dataset, tower, variant, "all", m)) for m in (*HEADLINE, "request_auc")}
            cells = [tower, title, str((found["auc"] or {}).get("seeds", ""))]
            for metric in HEADLINE:
                line = found[metric]
                cells += [mean_of(line), signed(line) if line else ""]
            request = found["request_auc"]
            told = request is not None and request["request_low"] != ""
            cells.append(f"[{request['request_low']:+.4f}, {request['request_high']:+.4f}]" if told and request else "")
            out.append(row_of(cells))
        parts = [
            p for p in (VALIDATION, *SHOWN[table]) if any(x["dataset"] == dataset and x["part"] == p for x in lines)
        ]
        out += ["", "AUC by part: plain, then differences\n", row_of(["tower", "variant", *parts])]
        out.append(row_of(["---"] * (2 + len(parts))))
        for _, tower, variant, title in here:
            found = {p: at.get((dataset, tower, variant, p, "auc")) for p in parts}
            out.append(row_of([tower, title, *(signed(x) or mean_of(x) if x else "" for x in found.values())]))
    return "\n".join(out)


def row_of(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def draw(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    """AUC's differences with their intervals: a row a dataset, a column a tower, the whole split and its tail."""
    lines = [x for x in lines if x["variant"] != PLAIN and x["metric"] == "auc" and x["difference"] != ""]
    if not lines:
        return path
    datasets, towers = (list(dict.fromkeys(x[key] for x in lines)) for key in ("dataset", "tower"))
    titles = list(dict.fromkeys(x["title"] for x in lines))
    parts = ("all", "tail items", "first visits")
    figure, grid = plt.subplots(
        len(datasets), len(towers), figsize=(2.6 * len(towers) + 1.6, (0.42 * len(titles) + 1.1) * len(datasets) + 0.4),
        squeeze=False, sharey=True, layout="constrained",
    )  # fmt: skip
    for row, dataset in zip(grid, datasets, strict=True):
        for axis, tower in zip(row, towers, strict=True):
            for i, part in enumerate(parts):
                for x in (x for x in lines if (x["dataset"], x["tower"], x["part"]) == (dataset, tower, part)):
                    middle, at = float(x["difference"]), titles.index(x["title"]) + (i - 1) * 0.22
                    axis.plot(middle, at, "o", color=f"C{i}", markersize=4, label=part)
                    if x["low"] != "":
                        axis.plot([float(x["low"]), float(x["high"])], [at, at], color=f"C{i}", linewidth=1.2)
            if not axis.lines and axis is not row[0]:  # the first has the row's names
                axis.set_axis_off()
                continue
            axis.axvline(0, color="0.4", linewidth=0.8)
            axis.grid(True, axis="x", alpha=0.3)
            axis.set_title(f"{tower} · {dataset}", fontsize="small")
            axis.tick_params(axis="x", labelsize="x-small")
            axis.xaxis.set_major_locator(MaxNLocator(4))
        row[0].set_yticks(range(len(titles)), titles, fontsize="small")
        row[0].set_ylim(len(titles) - 0.5, -0.5)
    found = {
        label: handle for axis in grid.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(found.values(), found, loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    figure.suptitle("AUC less that of the plain tower, 95 % over seeds", fontsize="medium")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
