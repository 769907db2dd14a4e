"""A comparison as tables in the terminal, as a page, and as one picture."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ..reports import figures, page
from ..reports.figures import THEME

_WORDS = {1: "better", -1: "worse", 0: "not known"}
_KINDS = {1: "best", -1: "bad", 0: "muted"}


def verdict(of: dict[str, Any]) -> int:
    """1 better, -1 worse, 0 not known."""
    sign: int = of["sign"] * of.get("better", 1)
    return sign


def _value(x: float | None) -> str:
    return "–" if x is None else f"{x:.4f}"


def _change(x: float | None) -> str:
    return "–" if x is None else f"{x:+.4f}"


def _range(x: list[float] | None) -> str:
    return "–" if x is None else f"{x[0]:+.4f} to {x[1]:+.4f}"


def _lead(found: dict[str, Any]) -> str:
    return (
        f"{found['split']} split: {found['rows']:,} candidates of {found['requests']:,} requests, "
        f"{found['positives']:,} positives"
    )


def _pairs(difference: dict[str, Any]) -> str:
    seeds = difference["seeds"]
    if not seeds:
        return "no seed in common, so the difference is of means"
    return f"paired by seed {', '.join(map(str, seeds))}"


def _mean_and_spread(of: dict[str, Any] | None) -> str:
    if of is None or of["mean"] is None:
        return "–"
    return f"{of['mean']:.4f}" + ("" if of["spread"] is None else f" ± {of['spread']:.4f}")


_HEAD = ("", "difference", "95 % over requests", "95 % over seeds", "")


def _rows(difference: dict[str, Any]) -> list[tuple[list[str], int]]:
    """Cells of each metric, and what is to be said of it."""
    return [
        ([m["title"], _change(m["mean"]), _range(m["requests"]), _range(m["seeds"]), _WORDS[verdict(m)]], verdict(m))
        for m in difference["metrics"].values()
    ]


def clear_slices(difference: dict[str, Any], most: int = 10) -> list[tuple[str, dict[str, Any]]]:
    """Slicing and slice where the sign of the difference is known, the largest differences first."""
    found = [(name, s) for name, part in difference["slices"].items() for s in part["slices"] if s["sign"]]
    return sorted(found, key=lambda pair: -abs(pair[1]["mean"]))[:most]


def _table(title: str, head: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for i, text in enumerate(head):
        table.add_column(text, justify="left" if i == 0 else "right")
    return table


def print_comparison(found: dict[str, Any]) -> None:
    """Tables on the terminal: groups, differences, and slices where they are clear."""
    console = Console()
    console.print(_lead(found))
    for group in found["groups"]:
        runs = f"{len(group['runs'])} run{'s' * (len(group['runs']) > 1)}"
        console.print(f"{group['name']}: {group['title']} ({runs})", highlight=False)
    table = _table("", ("", *(group["name"] for group in found["groups"])))
    for name, metric in found["groups"][0]["metrics"].items():
        table.add_row(metric["title"], *(_mean_and_spread(group["metrics"].get(name)) for group in found["groups"]))
    console.print(table)
    for difference in found["differences"]:
        table = _table(f"\n{difference['group']} - {difference['against']}, {_pairs(difference)}", _HEAD)
        for cells, sign in _rows(difference):
            table.add_row(*cells, style={1: "bold", -1: "bold", 0: ""}[sign])
        console.print(table)
        slices = clear_slices(difference)
        if slices:
            table = _table("\nslices that differ clearly, AUC", ("", "rows", *_HEAD[1:4]))
            for name, s in slices:
                cells = [f"{name}: {s['label']}", f"{s['rows']:,}", _change(s["mean"])]
                table.add_row(*cells, _range(s["requests"]), _range(s["seeds"]))
            console.print(table)
        counted = sum(len(part["slices"]) for part in difference["slices"].values())
        if counted:
            console.print(
                f"{counted} slices were looked at; where none differs, about {counted / 20:.0f} would seem to."
            )


def write_comparison(folder: Path, found: dict[str, Any]) -> Path:
    """Write ``comparison.html`` and its picture ``comparison.png``; returns the page."""
    groups = found["groups"]
    lead = (
        "Runs of a group have the same settings but for the seed; the settings named here are those in which groups "
        "differ. Means over runs, ± the standard deviation between them."
    )
    body = page.facts({g["name"]: f"{g['title']} ({len(g['runs'])} run{'s' * (len(g['runs']) > 1)})" for g in groups})
    rows = [
        [metric["title"], *(_mean_and_spread(g["metrics"].get(name)) for g in groups)]
        for name, metric in groups[0]["metrics"].items()
    ]
    body += page.table(["", *(g["name"] for g in groups)], rows)
    body += page.folded("runs", {g["name"]: g["runs"] for g in groups})
    sections = [page.section("Groups", lead, body)]
    told = (
        "Lines: 95 % over requests; boxes: 95 % over seeds, where there are several. Grey: not known to differ from 0."
    )
    sections.append(page.section("Differences", told, figures.svg(lambda: picture(found))))
    sections += [_section(d) for d in found["differences"]]
    cards = [
        (
            _change(d["metrics"]["auc"]["mean"]),
            f"AUC of {d['group']} over {d['against']}: {_WORDS[verdict(d['metrics']['auc'])]}",
        )
        for d in found["differences"][:6]
    ]
    file = folder / "comparison.html"
    title = "placerank · comparison of " + " and ".join(g["name"] for g in groups)
    page.write_page(file, title, _lead(found), cards, sections)
    figures.save(lambda: picture(found), folder / "comparison.png")
    return file


def _section(difference: dict[str, Any]) -> str:
    lead = (
        f"Differences are those of {difference['group']} to {difference['against']}, {_pairs(difference)}. Over "
        "requests: what the mean difference of these runs may be on other requests (drawn anew with replacement, the "
        "same for both). Over seeds: what it may be of other seeds, on these requests. Better or worse: every interval "
        "that there is lies on one side of 0."
    )
    rows: list[list[str | page.Cell]] = [
        [cells[0], *cells[1:4], page.Cell(text=cells[4], kind=_KINDS[sign])] for cells, sign in _rows(difference)
    ]
    body = page.table(_HEAD, rows)
    if difference["slices"]:
        told = (
            "Difference of AUC within each slice with its interval over requests (line) and over seeds (box, where "
            "there are several). Coloured where every interval lies on one side of 0: of so many slices, some do by "
            "chance."
        )
        body += page.lead(told, "Slices") + figures.svg(lambda: _slices_figure(difference))
    return page.section(f"{difference['group']} against {difference['against']}", lead, body)


def _draw(ax: Axes, y: float, of: dict[str, Any]) -> None:
    colour = THEME[{1: "teal", -1: "red", 0: "muted"}[verdict(of)]]
    if of["seeds"] is not None:
        low, high = of["seeds"]
        ax.barh(y, high - low, left=low, height=0.5, color=colour, alpha=0.22, linewidth=0)
    if of["requests"] is not None:
        ax.plot(of["requests"], [y, y], color=colour, linewidth=2)
    if of["mean"] is None:  # undefined, as an AUC is where there are only negatives
        ax.text(0, y, " undefined", va="center", color=colour)
        return
    ax.plot(of["mean"], y, "o", color=colour, markersize=5)


def _span(shown: list[dict[str, Any]]) -> tuple[float, float]:
    """Both ends of an axis of differences; intervals over seeds may go beyond it: of two seeds they are endless."""
    ends = [0.0, *(x for s in shown for x in s["requests"] or ())]
    ends += [x for s in shown for x in (s["mean"], *s["by_seed"]) if x is not None]
    room = 0.08 * (max(ends) - min(ends)) or 0.001
    return min(ends) - room, max(ends) + room


def _finish(ax: Axes, shown: list[dict[str, Any]], bottom: float, label: str) -> None:
    ax.axvline(0, color=THEME["muted"], linewidth=1)
    ax.set_ylim(bottom, -0.8)
    ax.set_xlim(*_span(shown))
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    ax.set_xlabel(label)


def _slices_figure(difference: dict[str, Any]) -> Figure:
    parts = list(difference["slices"].values())
    count = sum(len(part["slices"]) for part in parts)
    figure = Figure(figsize=(9, 0.27 * count + 0.4 * len(parts) + 0.8), layout="constrained")
    ax = figure.subplots()
    _draw_slices(ax, parts)
    return figure


def _draw_slices(ax: Axes, parts: list[dict[str, Any]]) -> None:
    """One row a slice, in blocks with a title each."""
    transform, y = ax.get_yaxis_transform(), 0.0
    for part in parts:
        ax.text(-0.012, y, part["title"], transform=transform, ha="right", va="center", weight="bold")
        y += 1.0
        for s in part["slices"]:
            ax.text(-0.012, y, s["label"], transform=transform, ha="right", va="center")
            ax.text(
                1.01, y, f"{s['rows']:,}", transform=transform, ha="left", va="center", color=THEME["muted"], size=9
            )
            _draw(ax, y, s)
            y += 1.0
        y += 0.4
    _finish(ax, [s for part in parts for s in part["slices"]], y - 0.6, "difference of AUC")


def picture(found: dict[str, Any]) -> Figure:
    """The metrics of every difference, one panel each."""
    differences = found["differences"]
    longest = max(len(d["metrics"]) for d in differences)
    figure = Figure(figsize=(9, (0.34 * longest + 1.1) * len(differences) + 0.3), layout="constrained")
    titles = {g["name"]: g["title"] for g in found["groups"]}
    for ax, difference in zip(figure.subplots(len(differences), 1, squeeze=False).flat, differences, strict=True):
        transform = ax.get_yaxis_transform()
        for y, of in enumerate(difference["metrics"].values()):
            better = "" if of["better"] == 1 else " (less is better)"
            ax.text(-0.012, y, of["title"] + better, transform=transform, ha="right", va="center")
            _draw(ax, y, of)
        _finish(ax, list(difference["metrics"].values()), len(difference["metrics"]) - 0.4, "")
        ax.set_title(f"{titles[difference['group']]}  minus  {titles[difference['against']]}")
    figure.supxlabel(f"difference; line: 95 % over {found['requests']:,} requests, box: over seeds", size=10)
    return figure
