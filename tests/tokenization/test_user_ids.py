"""Users' vectors become semantic IDs of their own: of which visits, with which codebooks, and apart from items'."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from placerank.api.results import Tokenized
from placerank.data.manifest import read_manifest
from placerank.tokenization.alignment.users import write_user_vectors
from placerank.tokenization.codes.semantic_ids import SemanticIds
from placerank.tokenization.codes.tokenizers import KMeansOptions, TokenizerConfig, load_tokenizer
from placerank.tokenization.judging.tokenize_report import ReportConfig
from placerank.tokenization.text.store import USER, EmbeddingStore, EmbeddingWriter, write_embeddings
from placerank.tokenization.tokenize import TokenizeConfig, tokenize

PLACES = 3


@pytest.fixture(scope="module")
def vectors(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``items`` and ``users``, made by the mean of the last places."""
    folder = tmp_path_factory.mktemp("vectors")
    ids = pq.read_table(prepared / "catalog.parquet")["item_id"].combine_chunks()[1:]
    x = torch.randn(len(ids), 8, generator=torch.Generator().manual_seed(0))
    items = write_embeddings(folder / "items", ids, x)
    count = write_user_vectors(folder / "users", prepared, items, "mean", PLACES, shard_rows=37)
    assert count == len(EmbeddingStore.open(folder / "users", "user"))
    return folder


def how(prepared: Path, vectors: Path, out: Path, **changes: Any) -> TokenizeConfig:
    few: dict[str, Any] = {"codebook": TokenizerConfig(levels=2, codes=5), "kmeans": KMeansOptions(iterations=3)}
    few |= {"report": ReportConfig(queries=20, points=30), "embeddings": vectors / "users"}
    return TokenizeConfig(data=prepared, out=out, **(few | changes))


@pytest.fixture(scope="module")
def made(prepared: Path, vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenize(how(prepared, vectors, tmp_path_factory.mktemp("made") / "tokens"))


def test_a_user_is_the_mean_of_the_last_distinct_places_of_training(prepared: Path, vectors: Path) -> None:
    users = pq.read_table(prepared / "users.parquet")["user_id"].to_pylist()
    visits: dict[int, list[tuple[int, int]]] = {}
    for request in pq.read_table(prepared / "train").to_pylist():
        for item, label in zip(request["item_row"], request["label"], strict=True):
            if label == 1 and request["user_row"]:
                visits.setdefault(request["user_row"], []).append((request["time"], item - 1))
    x = torch.nn.functional.normalize(EmbeddingStore.open(vectors / "items").tensor())
    store = EmbeddingStore.open(vectors / "users", "user")
    got = dict(zip(store.ids.to_pylist(), store.tensor(), strict=True))
    assert set(got) == {users[row] for row in visits} and list(got) == [u for u in users if u in got]
    for row, of in visits.items():
        last = list(dict.fromkeys(item for _, item in sorted(of, reverse=True)))[:PLACES]
        torch.testing.assert_close(got[users[row]], x[last].mean(0), msg=lambda m, row=row: f"row {row}: {m}")


def test_tokens_of_users_are_theirs_alone(prepared: Path, vectors: Path, made: Path, tmp_path: Path) -> None:
    ids, store = SemanticIds.read(made, "user"), EmbeddingStore.open(vectors / "users", "user")
    manifest = read_manifest(made, "user_tokens", verify=True)
    assert ids.ids.equals(store.ids) and manifest["users"] == len(ids) and manifest["tokenizer"] == "res_kmeans"
    assert manifest["semantic_ids_hash"] == ids.hash and "items" not in manifest
    assert np.array_equal(load_tokenizer(made / "tokenizer").encode(store), ids.codes)
    assert pq.read_schema(made / "semantic_ids.parquet").names[0] == "user_id"
    assert json.loads((made / "measures.json").read_text())["of"] == "users"
    assert "of the users share all codes" in (made / "report.html").read_text()
    assert Tokenized(made).summary["users"] == len(ids) and "users that share all codes" in repr(Tokenized(made))
    with pytest.raises(ValueError, match=r"holds 'user_tokens', expected 'tokens'; check the path"):
        SemanticIds.read(made)
    with pytest.raises(ValueError, match=r"tokenizer=hgit looks at attributes of items, and .* holds vectors of users"):
        tokenize(how(prepared, vectors, tmp_path / "no", tokenizer="hgit"))
    with pytest.raises(ValueError, match=r"users are known by their visits; expected the folder that placerank prep"):
        tokenize(how(prepared.parent / "raw", vectors, tmp_path / "no"))
    items = tokenize(how(prepared, vectors, tmp_path / "items", embeddings=vectors / "items", tokenizer="res_kmeans"))
    with pytest.raises(ValueError, match=r"holds 'tokens', expected 'user_tokens'; check the path"):
        tokenize(TokenizeConfig(data=prepared, embeddings=vectors / "users", out=tmp_path / "no", add=items))


def test_new_users_get_theirs_and_nobody_elses_changes(
    prepared: Path, vectors: Path, made: Path, tmp_path: Path
) -> None:
    store = EmbeddingStore.open(vectors / "users", "user")
    folder = tmp_path / "vectors"
    x, some = store.tensor(), pa.array(np.arange(0, len(store), 2))
    write_some = store.ids.take(some)
    EmbeddingWriter(folder / "users", write_some, store.dim, of=USER, made_from=store.made_from).write(0, x[::2])
    first = tokenize(how(prepared, folder, tmp_path / "first"))
    more = tokenize(TokenizeConfig(data=prepared, embeddings=vectors / "users", out=tmp_path / "more", add=first))
    before, after = SemanticIds.read(first, "user"), SemanticIds.read(more, "user")
    assert after.lineage[:1] == before.lineage and len(after) == len(store)
    assert np.array_equal(after.codes[: len(before)], before.codes)
    new = [i for i in range(len(store)) if i % 2]
    assert np.array_equal(after.codes[len(before) :], load_tokenizer(first / "tokenizer").encode(x[new]))
    other = write_user_vectors(
        tmp_path / "longer", prepared, EmbeddingStore.open(vectors / "items"), "mean", PLACES + 1
    )
    assert other == len(store)
    with pytest.raises(ValueError, match=r"users.history: 3, now 4.*: expected the same"):
        tokenize(TokenizeConfig(data=prepared, embeddings=tmp_path / "longer", out=tmp_path / "no", add=first))
