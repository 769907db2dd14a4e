"""Pictures of ``results/kernels.csv``: time against size, one picture a kernel, one line a peer."""

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def draw(path: Path) -> list[Path]:
    """Draw what a results file holds, a file a kernel and kind of device, beside it; returns the pictures."""
    with open(path, newline="") as f:
        lines = list(csv.DictReader(f))
    groups: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for line in lines:
        groups[line["kernel"], "cpu" if line["threads"] else "gpu"].append(line)
    return [_draw(path.parent / f"{kernel}_{kind}.png", kernel, group) for (kernel, kind), group in groups.items()]


def _draw(path: Path, kernel: str, lines: list[dict[str, str]]) -> Path:
    """A panel for each case of several sizes, and one for all the others."""
    sizes = {
        case: {float(x["size"]) for x in lines if x["case"] == case} for case in dict.fromkeys(x["case"] for x in lines)
    }
    curves = [case for case, of_case in sizes.items() if len(of_case) > 1]
    points = [case for case, of_case in sizes.items() if len(of_case) == 1]
    panels = [*curves, ""] if points else curves
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(4.6 * columns, 3.4 * rows + 0.6), squeeze=False, layout="constrained"
    )
    axes = dict(zip(panels, grid.flat, strict=False))
    for axis in grid.flat[len(panels) :]:
        axis.axis("off")
    for i, peer in enumerate(dict.fromkeys(line["peer"] for line in lines)):
        style = {"color": f"C{i}", "marker": "o", "markersize": 4, "label": peer, "linewidth": 2.5 if i == 0 else 1.2}
        for line in (x for x in lines if x["peer"] == peer and x["case"] in points):
            p20, p50, p80 = _times(line)
            at = points.index(line["case"])
            axes[""].errorbar(at, p50, [[p50 - p20], [p80 - p50]], **style | {"linestyle": "none"})
        for case in curves:
            found = sorted((float(x["size"]), *_times(x)) for x in lines if (x["peer"], x["case"]) == (peer, case))
            if found:
                size, low, middle, high = zip(*found, strict=True)
                axes[case].plot(size, middle, **style)
                axes[case].fill_between(size, low, high, color=f"C{i}", alpha=0.15)
    for case, axis in axes.items():
        axis.set(yscale="log", title=case)
        axis.grid(True, which="major", alpha=0.3)
        if case:
            axis.set(xscale="log", xlabel=lines[0]["axis"])
        else:
            axis.set_xticks(range(len(points)), points, rotation=20, ha="right", fontsize="small")
            axis.set_xlim(-0.5, len(points) - 0.5)
    for row in grid:
        row[0].set_ylabel("milliseconds (p20, p50, p80)")
    handles = {
        label: handle for axis in axes.values() for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    figure.suptitle(f"{kernel} · {lines[0]['device']}", fontsize="medium")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _times(line: dict[str, str]) -> tuple[float, float, float]:
    return float(line["p20_ms"]), float(line["p50_ms"]), float(line["p80_ms"])
