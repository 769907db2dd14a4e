"""The page and its pictures where there is little to show: no places, no categories, one item, odd names."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from placerank.tokenization.codes.tokenizers import KMeansOptions, ResidualKMeans, TokenizerConfig
from placerank.tokenization.judging import token_pictures
from placerank.tokenization.judging.tokenize_report import ReportConfig, measure, write_report


def make(folder: Path, items: pa.Table, codes: int = 4) -> tuple[dict, str]:
    x = torch.randn(len(items), 5, generator=torch.Generator().manual_seed(0))
    tokenizer = ResidualKMeans(TokenizerConfig(levels=2, codes=codes), KMeansOptions(iterations=2)).fit(x)
    found = tokenizer.encode(x).numpy()
    config = ReportConfig(queries=20, points=30)
    measures = measure(config, tokenizer, x, items, found, np.zeros(len(items), np.int64))
    text = write_report(folder, config, measures, x, items, found).read_text()
    return json.loads(json.dumps(measures)), text


def test_items_with_nothing_but_an_id(tmp_path: Path) -> None:
    measures, text = make(tmp_path, pa.table({"item_id": range(40)}))
    assert "Map of first tokens" not in text and "What prefixes hold" not in text
    assert not (tmp_path / "map.png").exists()
    assert measures["levels"][0]["nmi"] == {} and measures["levels"][0]["cohesion"]["primary"] is None
    assert measures["examples"][0]["categories"] == []
    assert "NMI province" in text and "–" in text


def test_one_item(tmp_path: Path) -> None:
    items = pa.table({"item_id": [1], "lat": [1.0], "lon": [2.0], "district": ["d"], "category": [["a"]]})
    measures, _ = make(tmp_path, items, codes=1)
    assert measures["collisions"]["before"]["collision_rate"] == 0
    assert measures["embeddings"]["here"]["similarity"] == {}
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_items_without_coordinates_are_not_drawn(tmp_path: Path) -> None:
    items = pa.table({"item_id": range(40), "lat": [float("nan")] * 40, "lon": [1.0] * 40})
    assert "Map of first tokens" not in make(tmp_path, items)[1]


def test_names_are_text_not_html(tmp_path: Path) -> None:
    items = pa.table({"item_id": range(40), "category": [["<script>alert(1)</script>", "a & b"]] * 40})
    text = make(tmp_path, items)[1]
    assert "<script" not in text and "a &amp; b" in text


def test_neighbouring_tokens_have_colours_that_differ() -> None:
    colours = token_pictures.token_colours(512)
    assert colours.shape == (512, 3) and colours.min() >= 0 and colours.max() <= 1
    assert np.abs(np.diff(colours, axis=0)).max(axis=1).min() > 0.2


def test_two_axes_are_principal_ones_and_have_a_sign() -> None:
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 4, 1, 1, 1, 1])
    at = token_pictures._on_two_axes(x, "pca", 0)
    assert abs(np.corrcoef(at[:, 0], x[:, 0])[0, 1]) > 0.99 and abs(np.corrcoef(at[:, 1], x[:, 1])[0, 1]) > 0.95
    again = token_pictures._on_two_axes(x.flip(0), "pca", 0)
    np.testing.assert_allclose(again[::-1], at, atol=1e-4)


@pytest.mark.parametrize(("field", "value"), [("queries", -1), ("rows", 0), ("points", 0), ("picture", "umap")])
def test_settings_that_make_no_sense_are_told(field: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"report\.{field}(=|: got)"):
        ReportConfig(**{field: value})  # type: ignore[arg-type]
