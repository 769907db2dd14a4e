"""A page of text, tables and figures in one HTML file that opens without a network.

Parts return HTML; what they take is text and is escaped, but for ``body``, which is HTML that other parts made.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_name("style.css")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table that is more than its text.

    Attributes:
        kind: class names of the style sheet: best, strong, muted.
        tip: shown where the pointer rests.
        colour: name of a colour of the theme, for a dot before the text.
    """

    text: str
    kind: str = ""
    tip: str = ""
    colour: str = ""


def _cell(cell: str | Cell, left: bool = False) -> str:
    cell = Cell(text=cell) if isinstance(cell, str) else cell
    kinds = " ".join(filter(None, [cell.kind, "left" if left else ""]))
    kind = f' class="{kinds}"' if kinds else ""
    tip = f' title="{escape(cell.tip)}"' if cell.tip else ""
    dot = f'<span class="dot" style="background:var(--{cell.colour})"></span>' if cell.colour else ""
    return f"<td{kind}{tip}>{dot}{escape(cell.text)}</td>"


def table(head: Sequence[str], rows: Sequence[Sequence[str | Cell]], left: Sequence[str] = ()) -> str:
    """A table; the first column and those called ``left`` are at the left, all others at the right."""
    first = "".join(f'<th class="left">{escape(t)}</th>' if t in left else f"<th>{escape(t)}</th>" for t in head)
    at_left = [text in left for text in head]
    rest = "".join(f"<tr>{''.join(map(_cell, row, at_left))}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{first}</tr>{rest}</table></div>'


def legend(marks: Sequence[tuple[str, str, str]]) -> str:
    """What marks of a figure mean: (sign, name of its colour, meaning)."""
    shown = (f'<span><i style="color:var(--{c})">{escape(m)}</i>{escape(text)}</span>' for m, c, text in marks)
    return f'<div class="legend">{"".join(shown)}</div>'


def lead(text: str, title: str = "") -> str:
    """A paragraph in the voice of a section's first; with a title, the start of a part within a section."""
    return (f"<h3>{escape(title)}</h3>" if title else "") + f'<p class="lead">{escape(text)}</p>'


def warning(text: str) -> str:
    """A paragraph that is not to be passed over."""
    return f'<p class="warning">{escape(text)}</p>'


def facts(named: dict[str, Any]) -> str:
    """Names and values; those without a value are left out."""
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in named.items() if v)
    return f"<dl>{listed}</dl>"


def folded(title: str, value: Any) -> str:
    """A JSON-ready value, shown when its title is clicked."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(json.dumps(value, indent=2))}</pre></details>"


def unfolded(title: str, body: str, shown: bool = False) -> str:
    """HTML that is shown when its title is clicked; from the start if it is ``shown``."""
    return f"<details{' open' if shown else ''}><summary>{escape(title)}</summary>{body}</details>"


def section(title: str, text: str, body: str) -> str:
    """A titled box."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{lead(text)}\n{body}\n</section>"


def write_page(
    file: Path, title: str, subtitle: str, cards: Sequence[tuple[str, str]], sections: Sequence[str]
) -> None:
    """Write the page: cards are (number, what it is), the first one is the main one; empty sections are left out."""
    boxes = "".join(f'<div class="card"><b>{escape(b)}</b><span>{escape(s)}</span></div>' for b, s in cards)
    shown = f'<div class="cards">{boxes}</div>\n' if cards else ""
    body = "\n".join(filter(None, sections))
    file.write_text(
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>\n{STYLE.read_text()}</style>\n</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n"
        f'<p class="muted">{escape(subtitle)}</p>\n{shown}{body}\n</main>\n</body>\n</html>\n',
        encoding="utf-8",
    )
