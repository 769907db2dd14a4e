"""Folders whose manifest or description was spoiled: each reader of them says so in one line, or reads on."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from spoiled import spoiled

from placerank.data.batches.features import FeatureConfig
from placerank.data.batches.loader import SampleLoader
from placerank.data.batches.semantic_features import SemanticFeatures
from placerank.data.manifest import MANIFEST, write_manifest
from placerank.rankers.dense import RankerConfig
from placerank.tokenization.align import _parts_of
from placerank.tokenization.codes.semantic_ids import FILE, SemanticIds
from placerank.tokenization.codes.tokenizers import KMeansOptions, TokenizerConfig, load_tokenizer, tokenizer_type
from placerank.tokenization.ranks import Ranks
from placerank.tokenization.text.encoders import EncoderConfig
from placerank.tokenization.text.prompts import PromptConfig
from placerank.tokenization.text.store import INFO, EmbeddingStore, EmbeddingWriter, write_embeddings
from placerank.tokenization.work import partial_of, resumable_folder
from placerank.training.inputs import read_inputs

IDS = pa.array([f"p{i}" for i in range(40)])
VECTORS = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))


def each_is_read_or_told(file: Path, read: Callable[[], Any]) -> None:
    """Spoil a file in every way; ``read`` may raise ValueError or OSError alone, in one line that names the folder."""
    text = file.read_text()
    read()
    tried = refused = 0
    for done, wrong in spoiled(json.loads(text)):
        file.write_text(wrong)
        tried += 1
        try:
            read()
        except (ValueError, OSError) as error:
            refused += 1
            said = str(error)
            assert str(file.parent.parent) in said and "\n" not in said, f"{done}: {said}"
        except Exception as error:
            raise AssertionError(f"{done}: {error!r}") from error
    file.write_text(text)
    assert refused > tried / 3


def test_prepared(prepared: Path, tmp_path: Path) -> None:
    for path in prepared.iterdir():
        (tmp_path / path.name).symlink_to(path)
    text = (tmp_path / MANIFEST).read_text()
    (tmp_path / MANIFEST).unlink()
    # fewer files and no environment, which nobody reads: each costs a try
    manifest = json.loads(text) | {"environment": {}}
    manifest["files"] = dict(list(manifest["files"].items())[:2])
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))

    def read() -> None:
        read_inputs(tmp_path, FeatureConfig(), RankerConfig())
        SampleLoader(tmp_path, "train", 64)

    each_is_read_or_told(tmp_path / MANIFEST, read)


def test_tokens(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 4, (40, 3))
    ids = SemanticIds.first(IDS, codes, 4, "tokenizer")
    ids.write(tmp_path / FILE)
    fields = {"items": 40, "levels": 3, "codes": 4, "lookup": "codes", "lineage": list(ids.lineage)}
    write_manifest(tmp_path, "tokens", {}, **fields)

    def read() -> None:
        SemanticIds.read(tmp_path)
        SemanticFeatures.load(tmp_path, pa.chunked_array([pa.concat_arrays([pa.nulls(1, IDS.type), IDS])]))

    each_is_read_or_told(tmp_path / MANIFEST, read)


def test_tokenizer(tmp_path: Path) -> None:
    tokenizer = tokenizer_type("res_kmeans")(TokenizerConfig(levels=2, codes=4), KMeansOptions(iterations=2))
    tokenizer.fit(VECTORS)
    tokenizer.save(tmp_path, {"embeddings": "abc"})
    each_is_read_or_told(tmp_path / MANIFEST, lambda: load_tokenizer(tmp_path))


def test_align(tmp_path: Path) -> None:
    parts = {"encoder": asdict(EncoderConfig()), "prompts": asdict(PromptConfig())}
    write_manifest(tmp_path, "align", {}, **parts, items=40)
    each_is_read_or_told(tmp_path / MANIFEST, lambda: _parts_of(tmp_path))


def test_embeddings(tmp_path: Path) -> None:
    write_embeddings(tmp_path, IDS, VECTORS)
    each_is_read_or_told(tmp_path / INFO, lambda: EmbeddingStore.open(tmp_path).tensor())
    each_is_read_or_told(tmp_path / INFO, lambda: EmbeddingWriter(tmp_path, IDS, 8))


def test_unfinished_work(tmp_path: Path) -> None:
    out, about = tmp_path / "out", {"config": {"a": 1, "b": [1, 2]}, "data": "x"}

    def read() -> None:
        with pytest.raises(InterruptedError), resumable_folder(out, about, resume=True, overwrite=False, ranks=Ranks()):
            raise InterruptedError

    read()
    file = partial_of(out) / "identity.json"
    each_is_read_or_told(file, read)
