"""A page of text and pictures in one HTML file that opens without a network."""

import base64
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

MUTED, STRONG, SOFT = "#7b8594", "#0f8f88", "#b9c0ca"  # readable on a light and on a dark ground
GROUND, PALE = "#0e1420", "#dfe5ee"  # of maps, which are dark in both themes
_COMMON: Any = {
    "font.size": 10,
    "text.color": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": MUTED,
    "axes.edgecolor": SOFT,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "placerank",  # the same numbers give the same bytes
}
_DARK: Any = {"text.color": PALE, "axes.titlecolor": PALE, "figure.facecolor": GROUND, "axes.facecolor": GROUND}
_STYLE = """
:root { color-scheme: light dark; --ground: #f5f6f8; --card: #fff; --ink: #1c2430; --muted: #66707f; --line: #d8dce3;
  --strong: #0b7a75; }
@media (prefers-color-scheme: dark) { :root { --ground: #10141b; --card: #181e28; --ink: #e4e8ef; --muted: #98a3b3;
  --line: #323b49; --strong: #35b8ae; } }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 Inter, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 40px 20px 80px; }
h1 { font-size: 30px; margin: 0; } h2 { font-size: 20px; margin: 0 0 4px; }
.muted, .lead { color: var(--muted); margin: 0 0 14px; font-size: 15px; max-width: 90ch; }
section, .card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; }
section { padding: 24px 26px; margin-top: 20px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 24px; }
.card { padding: 14px 16px; } .card b { display: block; font-size: 28px; color: var(--strong); }
.card span { font-size: 13px; color: var(--muted); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 15px; margin-bottom: 12px; }
th { color: var(--muted); font-size: 13px; } td { font-variant-numeric: tabular-nums; }
th, td { padding: 7px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
figure { margin: 0 0 10px; } figure svg, figure img { display: block; height: auto; } figure svg { width: 100%; }
figure.map { background: #0e1420; border-radius: 12px; padding: 10px; }
figure img { width: auto; max-width: 100%; margin: 0 auto; }
pre { overflow-x: auto; background: var(--ground); border-radius: 8px; padding: 14px; font-size: 13px; }
summary { cursor: pointer; color: var(--muted); }
"""


def svg(draw: Callable[[], Figure]) -> str:
    """A figure as SVG text in a <figure>, as wide as the page."""
    text = io.StringIO()
    with rc_context(_COMMON):
        draw().savefig(text, format="svg", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
    found = text.getvalue()
    return f"<figure>{found[found.index('<svg') :]}</figure>"


def png(draw: Callable[[], Figure], text: str, file: Path | None = None, *, dark: bool = True) -> str:
    """A figure with many points as PNG in a <figure>; also written to a file, if one is given."""
    buffer = io.BytesIO()
    style = _COMMON | (_DARK if dark else {})
    with rc_context(style):
        draw().savefig(
            buffer, format="png", dpi=110, bbox_inches="tight", pad_inches=0.15, metadata={"Software": "placerank"}
        )
    if file is not None:
        file.write_bytes(buffer.getvalue())
    data = base64.b64encode(buffer.getvalue()).decode()
    kind = ' class="map"' if dark else ""
    return f'<figure{kind}><img alt="{html.escape(text)}" src="data:image/png;base64,{data}"></figure>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    first = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    rest = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{first}</tr>{rest}</table></div>'


def section(title: str, lead: str, body: str) -> str:
    """A titled box: ``lead`` is text, ``body`` HTML."""
    return f'<section>\n<h2>{html.escape(title)}</h2>\n<p class="lead">{html.escape(lead)}</p>\n{body}\n</section>'


def write_page(
    file: Path, title: str, subtitle: str, cards: Sequence[tuple[str, str]], sections: Sequence[str]
) -> None:
    """Write the page: cards are (number, what it is), sections come from ``section``."""
    boxes = "".join(f'<div class="card"><b>{html.escape(b)}</b><span>{html.escape(s)}</span></div>' for b, s in cards)
    body = "\n".join(sections)
    file.write_text(
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{html.escape(title)}</h1>\n"
        f'<p class="muted">{html.escape(subtitle)}</p>\n<div class="cards">{boxes}</div>\n{body}\n'
        "</main>\n</body>\n</html>\n",
        encoding="utf-8",
    )
