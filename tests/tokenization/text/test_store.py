"""The store gives back what was written, whatever the shards, and tells what is missing or damaged."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from placerank.tokenization.text.store import (
    INFO,
    EmbeddingStore,
    EmbeddingWriter,
    embedding_chunks,
    embedding_rows,
    write_embeddings,
)


def make(folder: Path, n: int, dim: int, shard_rows: int) -> torch.Tensor:
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(n))
    writer = EmbeddingWriter(folder, pa.array([f"item {i}" for i in range(n)]), dim, shard_rows)
    for shard in reversed(range(writer.shards)):  # any order
        writer.write(shard, x[writer.rows_of(shard)])
    return x


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 40), dim=st.integers(1, 5), shard_rows=st.integers(1, 17), rows=st.integers(1, 50))
def test_chunks_and_rows_give_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, n: int, dim: int, shard_rows: int, rows: int
) -> None:
    folder = tmp_path_factory.mktemp("store")
    x = make(folder, n, dim, shard_rows)
    store = EmbeddingStore.open(folder)
    assert (len(store), store.dim) == (n, dim)
    assert store.ids.to_pylist() == [f"item {i}" for i in range(n)]
    blocks = list(store.chunks(rows))
    assert [len(b) for b in blocks[:-1]] == [min(rows, n)] * (len(blocks) - 1)
    torch.testing.assert_close(torch.cat(blocks), x, rtol=0, atol=0)
    at = np.random.default_rng(n).integers(0, n, 2 * n)
    torch.testing.assert_close(store.rows(torch.from_numpy(at)), x[at], rtol=0, atol=0)
    assert store.rows(torch.empty(0, dtype=torch.int64)).shape == (0, dim)
    for source in (x, store):
        assert torch.equal(torch.cat(list(embedding_chunks(source, rows))), x)
        assert torch.equal(embedding_rows(source, torch.from_numpy(at)), x[at])


def test_several_row_groups_in_a_shard(tmp_path: Path) -> None:
    x = make(tmp_path, 5000, 2, 4500)
    store = EmbeddingStore.open(tmp_path)
    assert torch.equal(store.tensor(), x)
    at = torch.tensor([4999, 0, 2047, 2048, 4499, 4500, 0])
    assert torch.equal(store.rows(at), x[at])


def test_restarted_writer_adds_only_what_is_missing(tmp_path: Path) -> None:
    ids = pa.array(range(10))
    first = EmbeddingWriter(tmp_path, ids, 3, 4, {"model": "a"})
    first.write(1, torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"2 of 3 shards are missing, the first is part-00000\.parquet.*--resume"):
        EmbeddingStore.open(tmp_path)
    again = EmbeddingWriter(tmp_path, ids, 3, 4, {"model": "a"})
    assert again.missing() == [0, 2]
    for shard in again.missing():
        again.write(shard, torch.zeros(again.rows_of(shard).stop - again.rows_of(shard).start, 3))
    assert EmbeddingStore.open(tmp_path).tensor().sum() == 12
    with pytest.raises(ValueError, match=r"other settings \(made_from: \{'model': 'a'\}, now \{'model': 'b'\}\)"):
        EmbeddingWriter(tmp_path, ids, 3, 4, {"model": "b"})
    with pytest.raises(ValueError, match=r"dim: 3, now 5"):
        EmbeddingWriter(tmp_path, ids, 5, 4, {"model": "a"})


def test_an_align_folder_opens_as_its_store(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "embeddings", pa.chunked_array([[1, 2], [3]]), torch.eye(3, dtype=torch.bfloat16))
    store = EmbeddingStore.open(tmp_path)
    assert store.ids.to_pylist() == [1, 2, 3] and torch.equal(store.tensor(), torch.eye(3))


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got no item ids"):
        EmbeddingWriter(tmp_path / "a", pa.array([], pa.int64()), 3)
    writer = EmbeddingWriter(tmp_path / "b", pa.array([7, 8]), 2)
    with pytest.raises(ValueError, match=r"got embeddings \(2, 3\), expected \(2, 2\)"):
        writer.write(0, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"1 of 2 embeddings hold NaN or infinity, the first is of item 8"):
        writer.write(0, torch.tensor([[0.0, 1], [torch.nan, 0]]))
    with pytest.raises(FileNotFoundError, match=r"store\.json not found"):
        EmbeddingStore.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"got 2 ids and embeddings \(3, 2\)"):
        write_embeddings(tmp_path / "c", pa.array([1, 2]), torch.zeros(3, 2))
    store = write_embeddings(tmp_path / "d", pa.array([1, 2]), torch.zeros(2, 2))
    with pytest.raises(IndexError, match="got rows 0 to 2, expected 0 to 1"):
        store.rows(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="rows=0"):
        next(store.chunks(0))


def test_whose_vectors_they_are(tmp_path: Path) -> None:
    EmbeddingWriter(tmp_path, pa.array([1, 2]), 3, of="user").write(0, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"holds vectors of users, expected those of items; check the path"):
        EmbeddingStore.open(tmp_path)
    assert EmbeddingStore.open(tmp_path, "user").ids.to_pylist() == [1, 2]
    with pytest.raises(ValueError, match=r"started with other settings \(of: 'user', now 'item'\)"):
        EmbeddingWriter(tmp_path, pa.array([1, 2]), 3)


def test_a_store_that_does_not_say_whose_vectors_it_holds_is_refused(tmp_path: Path) -> None:
    write_embeddings(tmp_path, pa.array([1, 2]), torch.eye(2))
    info = json.loads((tmp_path / INFO).read_text())
    (tmp_path / INFO).write_text(json.dumps({k: v for k, v in info.items() if k not in ("of", "ids")}))
    with pytest.raises(ValueError, match=r"store\.json: 'of' is missing; .*make the embeddings again"):
        EmbeddingStore.open(tmp_path)


@pytest.mark.parametrize("ids", [pa.array(range(40)), pa.array([f"item {i}" for i in range(40)], pa.large_string())])
def test_no_flipped_byte_gives_other_numbers(tmp_path: Path, ids: pa.Array) -> None:
    """Anywhere in a shard: the same vectors and ids, or an error that names the file."""
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    write_embeddings(tmp_path, ids, x)
    shard = tmp_path / "part-00000.parquet"
    whole, rng, told = shard.read_bytes(), np.random.default_rng(0), 0
    values = whole.find(x.numpy().tobytes())
    assert values > 0
    places = [values, values + 600, *rng.integers(0, len(whole), 400), *range(len(whole) - 300, len(whole), 3)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        shard.write_bytes(damaged)
        try:
            store = EmbeddingStore.open(tmp_path)
            same = torch.equal(store.tensor(), x) and store.ids.to_pylist() == ids.to_pylist()
            assert same and torch.equal(store.rows(torch.tensor([39, 0])), x[[39, 0]])
        except ValueError as error:
            assert str(shard) in str(error) and "cannot be read whole" in str(error) and "\n" not in str(error)
            told += 1
        assert place not in places[:2] or told  # the vectors' own bytes
    assert told > len(places) / 2


@pytest.mark.parametrize("left", [0, 5, 200, -9])
def test_a_truncated_shard_is_named(tmp_path: Path, left: int) -> None:
    store = write_embeddings(tmp_path, pa.array(range(40)), torch.randn(40, 4))
    shard = tmp_path / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:left])
    for read in (store.tensor, lambda: store.ids, lambda: store.rows(torch.tensor([3]))):
        with pytest.raises(ValueError, match=r"part-00000\.parquet cannot be read whole"):
            read()


def test_a_shard_of_another_store_is_refused(tmp_path: Path) -> None:
    store = write_embeddings(tmp_path / "a", pa.array(range(40)), torch.randn(40, 4))
    for ids, width in ((pa.array(range(39)), 4), (pa.array(range(40)), 5), (pa.array([str(i) for i in range(40)]), 4)):
        other = write_embeddings(tmp_path / f"b{len(ids)}{width}{ids.type}", ids, torch.randn(len(ids), width))
        (store.folder / "part-00000.parquet").write_bytes((other.folder / "part-00000.parquet").read_bytes())
        with pytest.raises(ValueError, match="cannot be read whole"):
            store.tensor()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"rows": 2}', '{"rows": 2, "dim": "4", "shard_rows": 9, "made_from": {}}', "\x80"]
)
def test_a_damaged_description_is_named(tmp_path: Path, text: str) -> None:
    write_embeddings(tmp_path, pa.array([1, 2]), torch.eye(2))
    (tmp_path / INFO).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"store\.json( is damaged|: )"):
        EmbeddingStore.open(tmp_path)
    with pytest.raises(ValueError, match=r"store\.json( is damaged|: )"):
        EmbeddingWriter(tmp_path, pa.array([1, 2]), 2)


def test_more_text_than_an_array_holds_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_embeddings(tmp_path / "e", pa.array(["ab", "cde"]), torch.randn(2, 3))
    monkeypatch.setattr("placerank.tokenization.text.store._MOST_TEXT", 4)
    with pytest.raises(ValueError, match=r"the ids of 2 items are 5 bytes of text, expected at most 4; number them"):
        _ = store.ids
    monkeypatch.setattr("placerank.tokenization.text.store._MOST_TEXT", 5)
    assert store.ids.to_pylist() == ["ab", "cde"]
