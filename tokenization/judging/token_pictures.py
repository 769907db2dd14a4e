"""Pictures of semantic IDs: where tokens lie on the map, how evenly they are used, what categories they hold."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...reports.figures import FAINT, SERIES, THEME
from ..text.store import embedding_rows
from ..text.vectors import Vectors
from .measures import Ints

_SHOWN_REGIONS = 10


def token_colours(count: int) -> NDArray[np.float64]:
    """A colour for each of K tokens, [K, 3]: hues a golden angle apart, so that neighbours in number differ."""
    k = np.arange(count)
    return hsv_to_rgb(np.column_stack([k * 0.61803398875 % 1, 0.5 + 0.4 * (k % 3) / 2, 0.75 + 0.25 * (k % 2)]))


def token_map(lat: NDArray[np.float64], lon: NDArray[np.float64], token: Ints, count: int, city: Ints) -> Figure:
    """Items at their places, coloured by first token: all, and the city with most items by itself."""
    known = np.flatnonzero(np.isfinite(lat) & np.isfinite(lon))
    windows = [known]
    cities, sizes = np.unique(city[known][city[known] >= 0], return_counts=True)
    if len(cities) > 1:
        windows.append(known[city[known] == cities[sizes.argmax()]])
    figure = Figure(figsize=(6.2 * len(windows), 5.8), layout="constrained")
    colours = token_colours(count)
    for ax, rows in zip(np.atleast_1d(figure.subplots(1, len(windows))), windows, strict=True):
        stretch = max(math.cos(math.radians(float(np.median(lat[rows])))), 0.05)
        size = min(max(20_000 / max(len(rows), 1), 0.6), 14)
        ax.scatter(lon[rows], lat[rows], c=colours[token[rows]], s=size, linewidths=0)
        if len(rows) > 50:
            (west, east), (south, north) = (np.percentile(v[rows], [0.5, 99.5]) for v in (lon, lat))
            air = 0.05 * max(north - south, (east - west) * stretch, 1e-3)
            ax.set(xlim=(west - air / stretch, east + air / stretch), ylim=(south - air, north + air))
        ax.set(xticks=[], yticks=[], aspect=1 / stretch)
        ax.spines[:].set_visible(False)
        tokens = len(np.unique(token[rows]))
        title = "all items" if rows is known else "the largest city"
        ax.set_title(f"{title}: {len(rows):,} items, {tokens:,} first tokens")
    return figure


def usage_curves(codes: Ints, count: int) -> Figure:
    """Items a code stands for, from the fullest to the emptiest, level by level; dashed: the even share."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    ax = figure.subplots()
    for level in range(codes.shape[1]):
        counts = np.sort(np.bincount(codes[:, level], minlength=count))[::-1]
        colour = f"C{level % len(SERIES)}"
        dead = int((counts == 0).sum())
        label = f"level {level + 1}" + (f", {dead} without items" if dead else "")
        ax.plot(np.arange(1, count + 1), np.where(counts > 0, counts, np.nan), color=colour, label=label, linewidth=1.6)
    ax.axhline(len(codes) / count, color=THEME["muted"], linewidth=1, linestyle=(0, (4, 3)))
    ax.set(yscale="log", xlabel="codes, the fullest first", ylabel="items", xlim=(0, count + 1))
    ax.legend(loc="upper right")
    ax.grid(axis="y")
    return figure


def category_bars(examples: Sequence[dict[str, Any]]) -> Figure:
    """The categories of a few prefixes, a row of panels a level (LGSID, figure 5)."""
    levels = sorted({len(e["prefix"]) for e in examples})
    wide = max(sum(len(e["prefix"]) == level for e in examples) for level in levels)
    figure = Figure(figsize=(3.6 * wide, 1.9 * len(levels)), layout="constrained")
    grid = figure.subplots(len(levels), wide, squeeze=False)
    for row, level in zip(grid, levels, strict=True):
        mine = [e for e in examples if len(e["prefix"]) == level]
        for i, ax in enumerate(row):
            if i >= len(mine):
                ax.set_visible(False)
                continue
            top = mine[i]["categories"][:5]
            rest = mine[i]["items"] - sum(n for _, n in top)
            bars = [*((name.split(" > ")[-1], n) for name, n in top), *([("others", rest)] if rest else [])]
            share = [n / mine[i]["items"] for _, n in bars]
            colours = [THEME["teal" if name != "others" else "line"] for name, _ in bars]
            ax.barh(range(len(bars)), share, color=colours, height=0.7)
            ax.set_yticks(range(len(bars)), [name[:22] for name, _ in bars], size=8)
            ax.tick_params(axis="x", labelsize=8)
            ax.set(xlim=(0, 1), ylim=(max(len(bars), 5) - 0.5, -0.5))
            whole = ", ".join(map(str, mine[i]["prefix"])) + ", *" * (levels[-1] - level)
            ax.set_title(f"[{whole}] {mine[i]['items']:,} items", size=9)
    return figure


def scatter(
    sources: Sequence[tuple[str, Vectors]],
    label: Ints,
    names: Sequence[str],
    *,
    rows: int,
    of: Ints,
    method: str = "pca",
    seed: int = 0,
) -> Figure:
    """Embeddings on two axes, coloured by region: a panel a source, so that before and after stand side by side.

    Args:
        sources: title and embeddings [N, D] of the same items.
        label: of each item of ``of`` [n], -1 unknown; the largest regions get colours, the others are grey.
        rows: random items that are drawn of those, at most.
        of: rows of the items that may be drawn, [n].
        method: pca, or tsne (some ten seconds for 2,000 items).
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(label))[:rows])
    mine = label[chosen]
    sizes = np.bincount(mine[mine >= 0], minlength=1)
    shown = np.argsort(-sizes, kind="stable")[: min(_SHOWN_REGIONS, int((sizes > 0).sum()))]
    colours = token_colours(max(len(shown), 1))
    figure = Figure(figsize=(5.2 * len(sources), 4.6), layout="constrained")
    for ax, (title, vectors) in zip(np.atleast_1d(figure.subplots(1, len(sources))), sources, strict=True):
        x = torch.nn.functional.normalize(embedding_rows(vectors, torch.from_numpy(of[chosen])), dim=1)
        at = _on_two_axes(x, method, seed)
        ax.scatter(*at[~np.isin(mine, shown)].T, s=5, color=FAINT, alpha=0.7, linewidths=0)
        for k, region in enumerate(shown):
            some = at[mine == region]
            ax.scatter(*some.T, s=7, color=colours[k], linewidths=0, label=names[region] if names else None)
        ax.set(title=title, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    if len(shown) and names:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2.5, fontsize=8)
    return figure


def _on_two_axes(x: torch.Tensor, method: str, seed: int) -> NDArray[np.float64]:
    if len(x) < 3 or x.shape[1] < 2:
        wide = torch.nn.functional.pad(x.double(), (0, max(0, 2 - x.shape[1])))
        return wide[:, :2].numpy()
    if method == "tsne" and len(x) > 10:
        from sklearn.manifold import TSNE

        found: NDArray[np.float64] = TSNE(
            perplexity=min(30, (len(x) - 1) / 3), init="pca", random_state=seed
        ).fit_transform(x.numpy())
        return found
    centred = (x - x.mean(0)).double()
    _, axes = torch.linalg.eigh(centred.T @ centred)
    two = axes[:, -2:].flip(1)
    two = two * two.gather(0, two.abs().argmax(0, keepdim=True)).sign()  # eigenvectors have no sign of their own
    return (centred @ two).numpy()
