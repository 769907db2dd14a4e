"""LGSID's table 5: how much of a gain is luck of the seed.

Of each tower the AUC without semantic IDs, and with: mean ± standard deviation over seeds, 95 % interval of the mean
(Student's t), median and interquartile range, and the Wilcoxon signed-rank test of the differences seed by seed. The
test is exact and two-sided: of n seeds that all gain it gives 2 / 2^n, so five can't reach p < 0.05 (0.0625), and six
just do (0.03125), which is the paper's number.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import wilcoxon

from ...evaluation.paired import paired_t
from .cells import Cell
from .grids import PLAIN
from .tables import Line, lines_of, mean_of, rounded, row_of, signed

METRICS = ("auc", "gauc")
ENOUGH = 0.05


def signed_rank(differences: Sequence[float]) -> float:
    """Exact two-sided p of Wilcoxon's signed-rank test, of differences without ties; 1 where none differs from 0."""
    moved = [x for x in differences if x]
    return float(wilcoxon(moved, method="exact").pvalue) if moved else 1.0


def least_p(seeds: int) -> float:
    """The smallest p that so many seeds can give."""
    return min(1.0, 2.0 ** (1 - seeds))


def robust_lines(cells: Sequence[Cell]) -> list[Line]:
    """A line for each dataset, tower, variant and metric of the whole test split, with what the table says of it."""
    values: dict[tuple[str, str, str], dict[int, dict[str, float]]] = {}
    for cell in cells:
        if (kept := cell.done()) is not None:
            of = values.setdefault((cell.place.data.name, cell.tower, cell.variant.name), {})
            of[cell.seed] = kept["test"]["all"]
    found = []
    for line in lines_of("robust", cells):
        if line["part"] != "all" or line["metric"] not in METRICS:
            continue
        at, metric = (line["dataset"], line["tower"]), line["metric"]
        mine, plain = values[*at, line["variant"]], values.get((*at, PLAIN), {})
        numbers = [of[metric] for of in mine.values()]
        low, high = paired_t(numbers).low, paired_t(numbers).high
        quarter, median, three = np.percentile(numbers, (25, 50, 75))
        told = {"mean_low": low, "mean_high": high, "median": float(median), "iqr": float(three - quarter)}
        both = [] if line["variant"] == PLAIN else [seed for seed in mine if seed in plain]
        p = signed_rank([mine[s][metric] - plain[s][metric] for s in both]) if both else np.nan
        found.append({**line, **{k: rounded(v) for k, v in (told | {"p": p}).items()}})
    return found


def robust_markdown(lines: Sequence[Line]) -> str:
    """The table a dataset, as the paper has it; * where p < 0.05, and at differences whose interval leaves 0 out."""
    out = []
    for dataset in dict.fromkeys(x["dataset"] for x in lines):
        for metric in METRICS:
            here = [x for x in lines if (x["dataset"], x["metric"]) == (dataset, metric)]
            plain = {x["tower"]: x for x in here if x["variant"] == PLAIN}
            head = [f"{metric.upper()}, {dataset}", "seeds", "without", "with: mean ± SD", "95 % of the mean"]
            head += ["median (IQR)", "difference", "p"]
            out += ["", row_of(head), row_of(["---"] * len(head))]
            for x in (x for x in here if x["variant"] != PLAIN):
                p, least = x["p"], least_p(x["seeds"])
                interval = "" if x["mean_low"] == "" else f"[{x['mean_low']:.4f}, {x['mean_high']:.4f}]"
                told = "" if p == "" else f"{p:.4f} *" if p < ENOUGH else f"{p:.4f}"
                told += f" (not below {least:.4f})" if told and least >= ENOUGH else ""
                of = [x["tower"], str(x["seeds"]), mean_of(plain.get(x["tower"])), mean_of(x), interval]
                out.append(row_of([*of, f"{x['median']:.4f} ({x['iqr']:.4f})", signed(x), told]))
    return "\n".join(out)
