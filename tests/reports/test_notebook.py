"""The box in a notebook's output: whole, its own colours, and no rule for the page around it."""

import re

from matplotlib.figure import Figure

from placerank.reports import notebook, page


def line() -> Figure:
    figure = Figure(figsize=(9, 3))
    figure.subplots().plot([1, 2])
    return figure


def test_rules_name_the_box_alone() -> None:
    style = re.search(r"<style>(.*)</style>", notebook.box("Run", "runs/x", {}), re.DOTALL)
    assert style is not None
    rules = [rule.split("{")[0] for rule in style[1].split("}") if rule.strip()]
    assert len(rules) > 10
    assert [s for rule in rules for s in rule.split(",") if not s.strip().startswith(".placerank")] == []


def test_every_colour_is_told() -> None:
    shown = notebook.box("Run", "runs/x", {}, [notebook.svg(line), page.warning("look")])
    told = set(re.findall(r"--([a-z]+):", shown))
    assert set(re.findall(r"var\(--([a-z]+)\)", shown)) <= told


def test_text_is_escaped_and_what_is_missing_left_out() -> None:
    shown = notebook.box("<i>", "a&b", {"rows": "<3", "nothing": None})
    assert "&lt;i&gt;" in shown and "a&amp;b" in shown and "&lt;3" in shown and "nothing" not in shown


def test_a_chart_is_drawn_for_a_narrow_place() -> None:
    def width(text: str) -> float:
        found = re.search(r'viewBox="0 0 ([\d.]+) ', text)
        assert found is not None
        return float(found[1])

    assert width(notebook.svg(line)) < 6.5 * 72 < width(notebook.figures.svg(line))
