"""A box of text, tables and figures in the output of a notebook's cell.

It brings its own colours and its own light ground: pages around it are light or dark whatever the system prefers.
Style rules name the box alone, for a notebook is one page.
"""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

from . import figures, page
from .figures import THEME

_WIDTH = 6.2  # inches of a chart: what is drawn for a page of 9 can't be read in a cell of a phone's width
_STYLE = """
.placerank { background: #ffffff; color: var(--ink); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 18px; margin: 4px 0; max-width: 860px; box-sizing: border-box; font: 14px/1.5 sans-serif; }
.placerank h3, .placerank h4 { color: var(--ink); font-size: 15px; font-weight: 700; margin: 0 0 8px; }
.placerank h3 code { color: var(--muted); background: none; font-size: 13px; font-weight: 400;
  overflow-wrap: anywhere; }
.placerank h4 { margin-top: 14px; font-size: 14px; }
.placerank .lead { color: var(--muted); margin: 0 0 8px; }
.placerank .warning { border-left: 4px solid var(--gold); padding-left: 12px; }
.placerank dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: 0 0 10px; }
.placerank dl dt { color: var(--muted); font-weight: 400; margin: 0; padding: 0; width: auto; float: none; }
.placerank dl dd { margin: 0; padding: 0; width: auto; float: none; overflow-wrap: anywhere; }
.placerank .scroll { overflow-x: auto; }
.placerank table { border-collapse: collapse; border: none; margin: 0 0 10px; width: 100%; font-size: 13px;
  color: var(--ink); table-layout: auto; font-variant-numeric: tabular-nums; }
.placerank table tr { background: none; }
.placerank table th { color: var(--muted); font-weight: 600; }
.placerank table th, .placerank table td { border: none; border-bottom: 1px solid var(--line); padding: 5px 0 5px 14px;
  text-align: right; white-space: nowrap; max-width: none; }
.placerank table th:first-child, .placerank table td:first-child { text-align: left; padding-left: 0; }
.placerank table td.strong { font-weight: 700; }
.placerank table td.muted { color: var(--muted); }
.placerank .dot { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 8px; }
.placerank figure { overflow-x: auto; margin: 0 0 8px; }
.placerank figure svg { display: block; width: 100%; min-width: 300px; max-width: 640px; height: auto; }
.placerank figure svg text { font-family: inherit; }
.placerank .legend { display: flex; flex-wrap: wrap; gap: 2px 18px; color: var(--muted); font-size: 13px; }
.placerank .legend i { font-style: normal; margin-right: 6px; }
"""


def svg(draw: Callable[[], Figure]) -> str:
    """A chart as ``figures.svg`` makes it, drawn for the box."""

    def narrow() -> Figure:
        figure = draw()
        figure.set_size_inches(_WIDTH, figure.get_size_inches()[1])
        return figure

    return figures.svg(narrow)


def box(title: str, where: str, facts: dict[str, Any], parts: Sequence[str] = ()) -> str:
    """HTML of the box.

    Args:
        title: what it is.
        where: the folder, shown beside the title.
        facts: names and values; those without a value are left out.
        parts: HTML, as the functions of ``page`` and ``figures`` make it.
    """
    colours = " ".join(f"--{name}: {colour};" for name, colour in THEME.items())
    return (
        f'<div class="placerank" style="{colours}">\n<style>{_STYLE}</style>\n'
        f"<h3>{escape(title)} <code>{escape(where)}</code></h3>\n{page.facts(facts)}\n" + "\n".join(parts) + "\n</div>"
    )
