"""Parts of a page escape what they are given, and every page has the one style sheet."""

import re
from pathlib import Path

from placerank.reports import page

NASTY = '<i>&"'


def test_text_is_text(tmp_path: Path) -> None:
    cell = page.Cell(text=NASTY, kind="best", tip=NASTY, colour="teal")
    parts = [
        page.table([NASTY], [[NASTY], [cell]]),
        page.legend([(NASTY, "teal", NASTY)]),
        page.lead(NASTY, NASTY),
        page.warning(NASTY),
        page.facts({"a": NASTY, "left out": None}),
        page.folded(NASTY, {"a": NASTY}),
        page.unfolded(NASTY, "", shown=True),
    ]
    sections = ["", *(page.section(NASTY, NASTY, part) for part in parts)]
    page.write_page(tmp_path / "p.html", NASTY, NASTY, [(NASTY, NASTY)], sections)
    made = (tmp_path / "p.html").read_text()
    assert "<i>" not in re.sub(r'<i style="[^"]*">', "", made) and "left out" not in made
    assert made.count("&lt;i&gt;&amp;") == 32 and made.count("<section>") == 7
    assert '<td class="best" title="&lt;i&gt;&amp;&quot;"><span class="dot"' in made


def test_columns_of_text_are_at_the_left() -> None:
    made = page.table(["", "name", "n"], [["a", page.Cell(text="b", kind="best"), "1"]], left=["name"])
    assert '<th class="left">name</th><th>n</th>' in made
    assert '<td>a</td><td class="best left">b</td><td>1</td>' in made


def test_a_page_without_cards_has_no_row_for_them(tmp_path: Path) -> None:
    page.write_page(tmp_path / "p.html", "a", "b", [], [])
    made = (tmp_path / "p.html").read_text()
    assert 'class="cards"' not in made and page.STYLE.read_text() in made
