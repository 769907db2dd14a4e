"""Encoders of each architecture against a text at a time without padding, and the default one with its weights."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_models import tiny_model

from placerank.tokenization.ranks import joined
from placerank.tokenization.text.encoders import (
    Encoder,
    EncoderConfig,
    encode_to_store,
    length_batches,
    load_encoder,
    pool,
)
from placerank.tokenization.text.store import EmbeddingStore

TEXTS = [
    "ramen bar , ulm",
    "museum",
    "gym north oslo | west west west",
    "?",
    "shop > shop > bar , 1 2 3 | york , north , east , ulm",
]


def one_by_one(encoder: Encoder, texts: list[str], pooling: str) -> torch.Tensor:
    """The slow way: no batches, no padding, no mask."""
    out = []
    for text in texts:
        ids = torch.tensor(encoder.tokenizer(text)["input_ids"])[None]
        with torch.no_grad():
            hidden = encoder.model(ids).last_hidden_state[0]
        x = {"cls": hidden[0], "mean": hidden.mean(0), "last": hidden[-1]}[pooling]
        out.append(x / x.norm() if encoder.normalize else x)
    return torch.stack(out)


@pytest.mark.parametrize("kind, pooling", [("bert", "mean"), ("xlm-roberta", "cls"), ("qwen3", "last")])
@pytest.mark.parametrize("normalize", [True, False])
def test_batches_give_what_single_texts_give(tmp_path: Path, kind: str, pooling: str, normalize: bool) -> None:
    folder = tiny_model(tmp_path, kind)
    encoder = load_encoder(EncoderConfig(model=str(folder), normalize=normalize, batch_tokens=24))
    assert encoder.pooling == pooling
    got = encoder.encode(TEXTS)
    assert got.shape == (5, 32) and got.dtype == torch.float32
    torch.testing.assert_close(got, one_by_one(encoder, TEXTS, pooling), rtol=1e-4, atol=1e-5)
    assert torch.equal(got, encoder.encode(TEXTS))
    for other in ("cls", "mean", "last"):
        chosen = load_encoder(EncoderConfig(model=str(folder), pooling=other, normalize=normalize))  # type: ignore[arg-type]
        torch.testing.assert_close(chosen.encode(TEXTS), one_by_one(chosen, TEXTS, other), rtol=1e-4, atol=1e-5)
    assert encoder.encode([]).shape == (0, 32)
    again = encoder.encode([TEXTS[1], TEXTS[0], TEXTS[1], TEXTS[1]])  # each distinct text is encoded once
    assert torch.equal(again[[0, 0]], again[2:]) and not torch.equal(again[0], again[1])
    torch.testing.assert_close(again[:2], got[[1, 0]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "gpt2", "qwen3"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_a_vector_does_not_depend_on_its_batch(tmp_path: Path, kind: str, side: str, pooling: str) -> None:
    """Absolute positions, too, and tokenizers that are set to pad at the left, as decoders' often are."""
    folder = tiny_model(tmp_path, kind, padding_side=side)
    encoder = load_encoder(EncoderConfig(model=str(folder), pooling=pooling))  # type: ignore[arg-type]
    assert encoder.tokenizer.padding_side == side
    expected = one_by_one(encoder, TEXTS, pooling)
    with torch.no_grad():
        torch.testing.assert_close(encoder(TEXTS), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(encoder(TEXTS[::-1][:3]), expected.flip(0)[:3], rtol=1e-4, atol=1e-5)
    if pooling != "cls" or kind in ("bert", "xlm-roberta"):  # a decoder's first token has not seen the text
        assert torch.pdist(expected).min() > 1e-3


def test_a_tokenizer_without_padding_of_its_own_will_do(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "gpt2")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_input_names": ["input_ids"]}))
    encoder = load_encoder(EncoderConfig(model=str(folder)))
    assert encoder.tokenizer.pad_token_id is None
    torch.testing.assert_close(encoder.encode(TEXTS), one_by_one(encoder, TEXTS, "last"), rtol=1e-4, atol=1e-5)


def test_pool_by_hand() -> None:
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pool(hidden, mask, "cls").tolist() == [[0, 1], [6, 7]]
    assert pool(hidden, mask, "last").tolist() == [[2, 3], [10, 11]]
    assert pool(hidden, mask, "mean").tolist() == [[1, 2], [8, 9]]


def test_a_models_own_pooling_file_decides(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert load_encoder(EncoderConfig(model=str(folder))).pooling == "cls"
    assert load_encoder(EncoderConfig(model=str(folder), pooling="mean")).pooling == "mean"


def test_long_texts_are_cut_at_the_models_limit(tmp_path: Path) -> None:
    encoder = load_encoder(EncoderConfig(model=str(tiny_model(tmp_path / "a", "xlm-roberta"))))
    assert encoder.max_tokens == 65  # 66 positions, of which the padding token's index takes the first
    assert encoder.encode(["bar " * 200]).isfinite().all()
    short = load_encoder(EncoderConfig(model=str(tiny_model(tmp_path / "b", "bert")), max_tokens=4))
    assert short.tokens(["bar gym museum shop"])[0] == short.tokens(["bar gym"])[0]


@pytest.mark.parametrize("tokens", [1, 7, 24, 10_000])
def test_batches_hold_each_row_once(tokens: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 20, 1000)
    batches = length_batches(lengths, tokens)
    assert sorted(np.concatenate(batches)) == list(range(1000))
    assert all(len(b) == 1 or len(b) * lengths[b].max() <= tokens for b in batches)


def test_default_weights_know_what_is_alike() -> None:
    encoder = load_encoder(EncoderConfig())
    assert (encoder.pooling, encoder.dim) == ("mean", 384)
    x = encoder.encode(["Ramen Ichiban, noodle soup", "Udon bar, Japanese noodles", "Pizzeria Napoli", "Tyre repair"])
    cosine = x @ x[0]
    torch.testing.assert_close(x.norm(dim=1), torch.ones(4))
    assert cosine[0] > cosine[1] > cosine[2] > cosine[3]
    bf16 = load_encoder(EncoderConfig(precision="bf16")).encode(["Pizzeria Napoli"])
    assert bf16.dtype == torch.float32 and bf16[0] @ x[2] > 0.99


def texts_of(rows: slice) -> list[str]:
    words = ("bar", "gym", "shop", "ramen", "museum")
    return [" ".join(words[(i * k) % 5] for k in range(1, 2 + i % 7)) for i in range(rows.start, rows.stop)]


def fill(model: str, folder: str, die_after: int = 0) -> int:
    """Encode 50 texts into a store, killed after ``die_after`` shards; how many this rank has encoded."""
    import os

    encoder = load_encoder(EncoderConfig(model=model))
    shards = 0

    def texts(rows: slice) -> list[str]:
        nonlocal shards
        shards += 1
        if die_after and shards > die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return texts_of(rows)

    made_from = {"model": "tiny"}
    with joined():
        encode_to_store(encoder, texts, pa.array(range(50)), Path(folder), made_from=made_from, shard_rows=8)
    return shards


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_killed_resumed_and_on_two_ranks_the_same_bytes(tmp_path: Path, ranks: Callable[..., list[Any]]) -> None:
    model = str(tiny_model(tmp_path / "model", "bert"))
    fill(model, str(tmp_path / "whole"))
    ranks(1, fill, model, str(tmp_path / "killed"), 3, killed=True)
    assert len(contents(tmp_path / "killed")) == 4
    with pytest.raises(ValueError, match="4 of 7 shards are missing"):
        EmbeddingStore.open(tmp_path / "killed")
    assert fill(model, str(tmp_path / "killed")) == 4
    assert ranks(2, fill, model, str(tmp_path / "two")) == [4, 3]
    expected = contents(tmp_path / "whole")
    assert contents(tmp_path / "killed") == expected == contents(tmp_path / "two")
    store = EmbeddingStore.open(tmp_path / "two")
    torch.testing.assert_close(
        store.tensor(), load_encoder(EncoderConfig(model=model)).encode(texts_of(slice(0, 50))), rtol=1e-4, atol=1e-5
    )


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"encoder.model='no/such-model' cannot be loaded(.|\n)*give a folder"):
        load_encoder(EncoderConfig(model="no/such-model"))
    with pytest.raises(ValueError, match=r"encoder.images is set, and .* \(bert\) takes text alone"):
        load_encoder(EncoderConfig(model=str(tiny_model(tmp_path, "bert")), images=True))
    with pytest.raises(TypeError, match=r"encoder.pooling: got 'max', expected one of auto, cls, mean, last"):
        EncoderConfig(pooling="max")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"encoder.precision: got 'fp8'"):
        EncoderConfig(precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"encoder.batch_tokens=0: expected at least 1"):
        EncoderConfig(batch_tokens=0)
