"""Which texts an encoder can't tell apart: counted right, told as a warning, and not asked of byte-level tokenizers."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import tiny_model

from placerank.tokenization.text import reading
from placerank.tokenization.text.encoders import Encoder, EncoderConfig, load_encoder

WORDS = ["bar", "ramen", "museum", "gym", "shop"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return load_encoder(EncoderConfig(model=str(tiny_model(tmp_path_factory.mktemp("model"), "bert"))))


def measure(encoder: Encoder, texts: list[str]) -> dict[str, Any]:
    def of(rows: NDArray[np.int64]) -> list[str]:
        return [texts[i] for i in rows]

    return reading.read_measures(encoder, of, len(texts))


def test_shares_are_of_different_texts(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_BLOCK", 3)
    texts = ["bar", "bar", "bar", "gym", "sushi", "kebab", "bar sushi", "shop"]  # two words are not in the vocabulary
    found = measure(encoder, texts)
    assert (found["texts"], found["tokens"]) == (6, 5)
    assert found["same_tokens"] == pytest.approx(2 / 6) and found["unknown_tokens"] == pytest.approx(3 / 6)


def test_few_are_said_and_many_are_a_warning(encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    known = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS]
    assert measure(encoder, [*known, "sushi"])["warning"] is None
    assert [record.levelname for record in caplog.records] == ["INFO"] and "0.8% hold tokens" in caplog.text
    warning = measure(encoder, [*known[:50], "sushi", "kebab"])["warning"]
    assert "3.8% of 52 different texts become the same tokens as another one" in warning
    assert "encoder.model intfloat/multilingual-e5-small" in warning and caplog.records[-1].levelname == "WARNING"
    assert measure(encoder, known)["warning"] is None


def test_texts_that_differ_behind_the_limit_are_alike(tmp_path: Path) -> None:
    short = load_encoder(EncoderConfig(model=str(tiny_model(tmp_path, "bert")), max_tokens=4))
    assert measure(short, ["bar gym shop", "bar gym museum", "gym bar"])["same_tokens"] == pytest.approx(2 / 3)


def test_of_many_texts_some_are_looked_at(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_MOST", 40)
    found = measure(encoder, [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS])
    assert (found["texts"], found["tokens"]) == (40, 40)


def test_an_unknown_token_that_is_another_special_one_is_none(encoder: Encoder) -> None:
    """GPT-2's end of text stands for unknown words, which its bytes never have; Qwen puts it behind every text."""
    assert reading._unknown_token(encoder.tokenizer) == 1
    encoder.tokenizer.eos_token = "[UNK]"
    try:
        assert reading._unknown_token(encoder.tokenizer) is None
    finally:
        encoder.tokenizer.eos_token = None


def test_the_default_cannot_read_thai() -> None:
    names = ["พระไขนง", "ครบุรี", "จอมพระ", "ปากเกร็ด", "ท่าใหม่"]
    found = measure(load_encoder(EncoderConfig()), names)
    assert (found["tokens"], found["same_tokens"], found["unknown_tokens"]) == (1, 1, 1)
    assert "it cannot tell such items apart" in found["warning"]
