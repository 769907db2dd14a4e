"""Charts follow the page's theme; pictures of points are dark in both."""

import re
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from placerank.reports.figures import GROUND, SERIES, THEME, png, save, svg
from placerank.reports.page import STYLE


def lines() -> Figure:
    figure = Figure(figsize=(4, 3))
    ax = figure.subplots()
    for i in range(len(SERIES)):
        ax.plot([0, 1], [i, i + 1], label=f"line {i}")
    ax.legend()
    ax.set_title("title")
    return figure


def test_the_theme_is_the_style_sheets() -> None:
    light, dark = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.DOTALL)
    named = [dict(re.findall(r"--(\w+): (#\w{6});", text)) for text in (light, dark)]
    assert THEME.items() <= named[0].items() and named[0].keys() == named[1].keys()
    assert len(set(THEME.values())) == len(THEME)


def test_a_chart_has_no_colour_of_its_own() -> None:
    chart = svg(lines)
    assert chart.startswith("<figure><svg") and "font-family" not in chart
    assert {f"var(--{name})" for name in SERIES} <= set(re.findall(r"var\(--\w+\)", chart))
    assert not re.findall(r"#[0-9a-f]{6}\b", chart)
    assert "title" in chart and chart == svg(lines)


def test_points_lie_on_a_dark_ground(tmp_path: Path) -> None:
    figure = png(lines, "lines & more", tmp_path / "p.png")
    assert figure.startswith('<figure class="map"><img alt="lines &amp; more" src="data:image/png;base64,')
    save(lines, tmp_path / "white.png")
    for name, ground in (("p.png", GROUND), ("white.png", "#ffffff")):
        corner = np.asarray(Image.open(tmp_path / name).convert("RGB"))[0, 0]
        assert "#" + "".join(f"{c:02x}" for c in corner) == ground
