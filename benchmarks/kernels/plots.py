"""Pictures of ``results/kernels.csv``: time against size, one picture a kernel, one panel a case, one line a peer."""

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
    cases = list(dict.fromkeys(line["case"] for line in lines))
    peers = list(dict.fromkeys(line["peer"] for line in lines))
    colours = {peer: f"C{i}" for i, peer in enumerate(peers)}
    figure, axes = plt.subplots(1, len(cases), figsize=(4.2 * len(cases), 3.6), squeeze=False, layout="constrained")
    for axis, case in zip(axes[0], cases, strict=True):
        for peer in peers:
            points = sorted(
                (float(line["size"]), *(float(line[f"{p}_ms"]) for p in ("p20", "p50", "p80")))
                for line in lines
                if line["case"] == case and line["peer"] == peer
            )
            if points:
                size, p20, p50, p80 = zip(*points, strict=True)
                width = 2.5 if peer == "placerank" else 1.2
                axis.plot(size, p50, marker="o", markersize=4, label=peer, color=colours[peer], linewidth=width)
                axis.fill_between(size, p20, p80, color=colours[peer], alpha=0.15)
        axis.set(xscale="log", yscale="log", title=case, xlabel="size")
        axis.grid(True, which="major", alpha=0.3)
    axes[0][0].set_ylabel("milliseconds (p20, p50, p80)")
    handles = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    figure.suptitle(f"{kernel} · {lines[0]['device']}", fontsize="medium")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
