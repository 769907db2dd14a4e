"""Does the variance of items that ``prepare`` tells say where AKT-Rec and ReST's contrast gain?

Of each dataset that variance, which is known before anything is trained, and what the plug-ins changed. One seed of
each dataset is enough, since it is over datasets that the rule has to hold.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from ...data.preparation.item_variance import PAYS, item_variance
from ...evaluation.paired import paired_t
from .cells import Cell
from .grids import PLAIN
from .tables import Line, lines_of, rounded, row_of, signed

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_PARTS = ("all", "items < 3 times")


def rule_lines(cells: Sequence[Cell]) -> list[Line]:
    """AUC of the whole and of items seen less than three times, each with the variance of its dataset."""
    of = {}
    for name, place in {cell.place.data.name: cell.place for cell in cells}.items():
        if (found := item_variance(place.prepared())) is not None:
            of[name] = {"variance": rounded(found.variance), "error": rounded(found.error)}
    lines = [x for x in lines_of("rule", cells) if x["metric"] == "auc" and x["part"] in _PARTS]
    return [{**x, **of[x["dataset"]]} for x in lines if x["dataset"] in of]


def rule_markdown(lines: Sequence[Line]) -> str:
    """Datasets by their variance, and the mean change on either side of the rule's number, over datasets."""
    whole = sorted((x for x in lines if x["part"] == "all"), key=lambda x: x["variance"])
    cold = {(x["dataset"], x["variant"]): x for x in lines if x["part"] != "all"}
    titles = {x["variant"]: x["title"] for x in whole if x["variant"] != PLAIN}
    at = {(x["dataset"], x["variant"]): x for x in whole}
    head = ["dataset", "variance of items", "seeds", "plain: AUC"]
    head += [f"{title}{of}" for title in titles.values() for of in ("", ", items < 3 times")]
    out = [row_of(head), row_of(["---"] * len(head))]
    for dataset in dict.fromkeys(x["dataset"] for x in whole if x["variant"] == PLAIN):
        plain = at[dataset, PLAIN]
        cells = [
            dataset,
            f"{plain['variance']:.2f} ± {plain['error']:.2f}",
            str(plain["seeds"]),
            f"{plain['mean']:.4f}",
        ]
        for variant in titles:
            cells += [signed(x[dataset, variant]) if (dataset, variant) in x else "" for x in (at, cold)]
        out.append(row_of(cells))
    out += ["", row_of(["over datasets", "number", *titles.values()]), row_of(["---"] * (2 + len(titles)))]
    for told, above in ((f"variance from {PAYS} on", True), (f"below {PAYS}", False)):
        cells, count = [], 0
        for variant in titles:
            found = [x["difference"] for x in whole if x["variant"] == variant and (x["variance"] >= PAYS) == above]
            found = [x for x in found if x != ""]
            count = max(count, len(found))
            over = paired_t(found)
            numbers = {"difference": over.mean, "low": over.low, "high": over.high}
            cells.append(signed({k: rounded(v) for k, v in numbers.items()}) if found else "")
        out.append(row_of([told, str(count), *cells]))
    return "\n".join(out)


def draw_rule(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    """Change of AUC over the variance of items: a point a dataset and plug-in."""
    lines = [x for x in lines if x["part"] == "all" and x["variant"] != PLAIN and x["difference"] != ""]
    figure, axis = plt.subplots(figsize=(7.2, 4), layout="constrained")
    for i, title in enumerate(dict.fromkeys(x["title"] for x in lines)):
        here = [x for x in lines if x["title"] == title]
        x, y = ([float(line[name]) for line in here] for name in ("variance", "difference"))
        axis.plot(x, y, "os"[i % 2], color=f"C{i}", label=title)
    for line in {x["dataset"]: x for x in sorted(lines, key=lambda x: float(x["difference"]))}.values():
        at = float(line["variance"]), float(line["difference"])
        axis.annotate(line["dataset"], at, xytext=(4, 3), textcoords="offset points", fontsize="x-small")
    axis.margins(x=0.12)  # for the names
    axis.axhline(0, color="0.4", linewidth=0.8)
    axis.axvline(PAYS, color="0.4", linewidth=0.8, linestyle="--")
    axis.set_xlabel("variance of items beyond their features (squared log-odds)")
    axis.set_ylabel("AUC less that of the plain tower")
    axis.legend(fontsize="small", frameon=False)
    axis.grid(True, alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
