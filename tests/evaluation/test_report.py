"""The page holds all it shows, says nothing false about what is missing, and reaches for nothing outside."""

import dataclasses
import html.parser
import json
import math
import re

import numpy as np
import pyarrow as pa
import pytest

from placerank.evaluation import maps
from placerank.evaluation.breakdown import ItemFacts
from placerank.evaluation.evaluate import measure
from placerank.evaluation.report import write_report

LOG = [
    {"step": 10, "epoch": 0, "split": "train", "loss": 0.6, "lr": 1e-3, "samples_per_s": 1e4},
    {"step": 10, "epoch": 0, "split": "valid", "auc": 0.6, "gauc": None, "log_loss": 0.62},
    {"step": 20, "epoch": 1, "split": "train", "loss": 0.5, "lr": 1e-3, "samples_per_s": 1e4},
    {"step": 20, "epoch": 1, "split": "valid", "auc": 0.7, "gauc": 0.6, "log_loss": 0.58},
]


class Page(html.parser.HTMLParser):
    """Whether tags close in order, and every place that the page points at."""

    void = frozenset({"meta", "img", "link", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.titles = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data", "action")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


@pytest.fixture(scope="module")
def items(fabricated):
    return ItemFacts.load(fabricated.data)


def report(folder, predictions, items, run):
    folder.mkdir()
    metrics = {"split": "test", "step": 20} | measure(predictions, items)
    return write_report(folder, metrics=metrics, predictions=predictions, items=items, run=run).read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run <1>"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LOG) + '{"step": 30, "ep')
    (run / "config.json").write_text(json.dumps({"data": "somewhere/<data>", "epochs": 3}))
    (run / "environment.json").write_text(json.dumps({"device": "cpu", "packages": {"torch": "2.13.0"}}))
    (run / "best.json").write_text(json.dumps({"step": 20, "auc": 0.7}))
    return run


@pytest.fixture(scope="module")
def page(fabricated, items, run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports") / "out"
    report(folder, fabricated.predictions, items, run)
    return folder / "report.html"


def test_the_page(page):
    text, folder = page.read_text(), page.parent
    parsed = Page(text)
    assert parsed.open == []
    assert parsed.titles == [
        "Model against scores that need no model",
        "Map of the items",
        "Where it is good, and where not",
        "Items that it is worst at",
        "Requests, from worst to best",
        "Learning curve",
        "Calibration",
        "What was run",
    ]
    assert "placerank · run &lt;1&gt;" in text and "somewhere/&lt;data&gt;" in text and "torch 2.13.0" in text
    assert "best 0.7000" in text  # text in pictures is text
    assert len(text) < 5_000_000
    for name in ("overview.png", "map.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_it_opens_without_a_network(page):
    text = page.read_text()
    assert all(link.startswith(("data:image/", "#")) for link in Page(text).links)
    assert not re.search(r"@import|<script|url\((?!#)", text)


def test_the_same_rows_give_the_same_page(page, fabricated, items, run, tmp_path):
    assert report(tmp_path / "again", fabricated.predictions, items, run) == page.read_text()


def test_every_colour_of_the_pictures_follows_the_theme(page):
    text = page.read_text()
    defined = set(re.findall(r"--(\w+):", text))
    assert set(re.findall(r"var\(--(\w+)\)", text)) <= defined
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert not set(re.findall(r"(?:fill|stroke): (#\w+)", svg)) - {"#ffffff"}


def test_nothing_to_show_is_no_error(fabricated, items, tmp_path):
    """One class, no places, no cities, no training log."""
    p = fabricated.predictions.take(np.arange(50))
    nowhere = np.full_like(p.lat, math.nan)
    p = dataclasses.replace(p, label=np.ones_like(p.label), lat=nowhere, lon=nowhere, probability=None)
    unknown = np.full(len(items), math.nan)
    items = dataclasses.replace(items, lat=unknown, lon=unknown, city=items.city * 0, cities=["unknown"])
    text = report(tmp_path / "out", p, items, tmp_path)
    assert Page(text).open == []
    assert "No item has coordinates" in text and "there is no oracle" in text and 'title="no negatives"' in text
    assert "Learning curve" not in text


def test_a_broken_log_is_told(fabricated, items, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step"\n{"step": 1, "split": "train"}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 is not JSON"):
        report(tmp_path / "out", fabricated.predictions, items, tmp_path)


def test_error_of_an_item_is_in_standard_deviations(fabricated, items):
    p = fabricated.predictions
    error, seen = maps.item_error(p, items)
    row = int(seen.argmax())
    at = p.item_row == row
    predicted = p.predicted()[at]
    want = (predicted.sum() - p.label[at].sum()) / np.sqrt(np.sum(predicted * (1 - predicted)))
    assert error[row] == pytest.approx(want) and math.isnan(error[0])
    assert np.isnan(error[seen < maps.MIN_SEEN]).all()


def test_the_map_keeps_its_shape(items):
    whole, city = maps.frames(items)
    assert whole.holds(items.lat[1:], items.lon[1:]).all()
    inside = city.holds(items.lat, items.lon)
    assert np.mean(items.city[inside] == 1) > 0.9
    wide = city.widened(0.5)
    assert wide.shape == pytest.approx(0.5, rel=1e-3)
    assert wide.west <= city.west and wide.east >= city.east and wide.south <= city.south


def test_maps_of_lists_show_items_places_and_the_request(items):
    """Seven lists, one of a request without a place, one of places without coordinates: that one has no map."""
    known = np.flatnonzero(~np.isnan(items.lat))[:3]
    lists = []
    for request in range(7):
        lat, lon = items.lat[known].copy(), items.lon[known].copy()
        if request == 6:
            lat[:] = lon[:] = np.nan
        here = math.nan if request == 2 else float(items.lat[known[0]])
        columns = {"request": [request] * 3, "lat": [here] * 3, "lon": [float(items.lon[known[0]])] * 3}
        lists.append(pa.table(columns | {"place": [1, 2, 3], "item_lat": lat, "item_lon": lon}))
    axes = maps.lists_map(items, lists).axes
    assert [ax.get_visible() for ax in axes] == [True] * 6 + [False] * 3
    assert [len(ax.collections) for ax in axes[:6]] == [3, 3, 2, 3, 3, 3], "items, the list, and the request"
    assert [t.get_text() for t in axes[0].texts if t.get_text() in "123"] == ["1", "2", "3"]
