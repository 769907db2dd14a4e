"""Figures of a page, drawn with matplotlib: charts as SVG that follows the page's theme, pictures of points as PNG.

Charts are drawn in the colours of ``THEME``; ``svg`` replaces each by its CSS variable, so one chart serves light and
dark, and text stays text. Pictures of many points are PNG on a dark ground, like a city at night, in both themes.
"""

import base64
import html
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cycler import cycler
from matplotlib import rc_context
from matplotlib.figure import Figure

# Names of CSS variables and their colours on a light ground, as in style.css. All differ: they are told apart by value.
THEME = {
    "ink": "#1c2430",
    "muted": "#66707f",
    "line": "#d8dce3",
    "teal": "#0b7a75",
    "gold": "#c98a00",
    "violet": "#8b5fbf",
    "blue": "#3f7fd1",
    "red": "#d0605e",
    "green": "#5c9a3c",
    "brown": "#a0665a",
    "slate": "#6b7a8f",
}
SERIES = tuple(list(THEME)[3:])
"""Names of the colours for lines and bars, in the order to take them."""
GROUND, PALE, FAINT = "#0e1420", "#dfe5ee", "#5b6778"  # of pictures of points
_LIGHT: Any = {
    "font.size": 10,
    "text.color": THEME["ink"],
    "axes.labelcolor": THEME["muted"],
    "axes.edgecolor": THEME["line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": THEME["muted"],
    "ytick.color": THEME["muted"],
    "grid.color": THEME["line"],
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=[THEME[name] for name in SERIES]),
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "placerank",  # the same numbers give the same bytes
}
_DARK: Any = {
    "font.size": 10,
    "text.color": PALE,
    "axes.labelcolor": PALE,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "xtick.color": PALE,
    "ytick.color": PALE,
    "legend.frameon": False,
    "figure.facecolor": GROUND,
    "axes.facecolor": GROUND,
}
_PNG: Any = {"format": "png", "bbox_inches": "tight", "metadata": {"Software": "placerank"}}


def svg(draw: Callable[[], Figure]) -> str:
    """A chart as a <figure> of SVG, as wide as the page; its colours are CSS variables."""
    text = io.StringIO()
    with rc_context(_LIGHT):
        draw().savefig(text, format="svg", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
    found = text.getvalue()
    found = found[found.index("<svg") :]
    for name, colour in THEME.items():
        found = found.replace(colour, f"var(--{name})")
    found = re.sub(r" ?font-family: [^;\"]*;?", "", found)  # the page's own
    found = re.sub(r'^<svg([^>]*?) width="[^"]*" height="[^"]*"|^<svg([^>]*?) height="[^"]*"', r"<svg\1\2", found)
    return f"<figure>{found}</figure>"


def png(draw: Callable[[], Figure], text: str, file: Path | None = None) -> str:
    """A picture of points as a <figure> of PNG on a dark ground; also written to a file, if one is given.

    Args:
        text: what the picture shows, for who does not see it.
    """
    buffer = io.BytesIO()
    with rc_context(_DARK):
        draw().savefig(buffer, dpi=110, pad_inches=0.15, **_PNG)
    if file is not None:
        file.write_bytes(buffer.getvalue())
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure class="map"><img alt="{html.escape(text)}" src="data:image/png;base64,{data}"></figure>'


def save(draw: Callable[[], Figure], file: Path) -> None:
    """A figure as PNG on a white ground, for a README."""
    with rc_context(_LIGHT | {"figure.facecolor": "white"}):
        draw().savefig(file, dpi=150, pad_inches=0.25, **_PNG)
