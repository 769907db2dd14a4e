"""The step: killed and resumed, on ranks, items added, the files and what is told."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from delivery import write_delivery

from placerank.cli.main import main
from placerank.data.manifest import read_manifest, sha256_file, write_manifest
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.data.raw.own import own_columns
from placerank.data.raw.schema import read_items
from placerank.tokenization import tokenize as tokenize_module
from placerank.tokenization.codes.semantic_ids import SemanticIds, check_trained_with
from placerank.tokenization.codes.tokenizers import HGITOptions, KMeansOptions, TokenizerConfig, load_tokenizer
from placerank.tokenization.judging.tokenize_report import ReportConfig
from placerank.tokenization.text.store import EmbeddingStore, EmbeddingWriter, write_embeddings
from placerank.tokenization.tokenize import TokenizeConfig, codes_of, items_of, tokenize

DIM = 16


def embed(ids: pa.Array, seed: int = 0) -> torch.Tensor:
    """An embedding that follows from the id alone."""
    rows = [torch.randn(DIM, generator=torch.Generator().manual_seed(7919 * seed + int(i))) for i in ids.to_pylist()]
    return torch.stack(rows)


@pytest.fixture(scope="session")
def source(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, pa.Array]:
    """Raw folder of a city, embeddings of the first 250 of its items in another order, and those ids."""
    raw = prepared.parent / "raw"
    ids = read_items(raw)["item_id"].combine_chunks().take(pa.array(np.random.default_rng(0).permutation(300)))
    folder = tmp_path_factory.mktemp("embeddings")
    write_embeddings(folder / "e", ids[:250], embed(ids[:250]))
    return raw, folder / "e", ids


def small(source: tuple[Path, Path, pa.Array], out: Path, **changes: Any) -> TokenizeConfig:
    config = TokenizeConfig(
        data=source[0],
        embeddings=source[1],
        out=out,
        codebook=TokenizerConfig(levels=2, codes=8),
        hgit=HGITOptions(epochs=2, iterations=3, epoch_steps=4, batch_rows=64),
        kmeans=KMeansOptions(iterations=4),
        report=ReportConfig(queries=50, points=100),
        block_rows=64,
    )
    return replace(config, **changes)


def files(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="session")
def made(source: tuple[Path, Path, pa.Array], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenize(small(source, tmp_path_factory.mktemp("made") / "tokens"))


def test_ids_are_those_of_the_tokenizer_and_unique(source: Any, made: Path) -> None:
    ids = SemanticIds.read(made)
    assert ids.ids.equals(source[2][:250]), "in the order of the embeddings"
    tokenizer = load_tokenizer(made / "tokenizer")
    want = tokenizer.encode(embed(ids.ids), items_of(source[0], ids.ids))
    assert np.array_equal(ids.codes, want.numpy())
    whole = np.column_stack([ids.codes, ids.suffixes])
    assert len(np.unique(whole, axis=0)) == 250 > len(np.unique(ids.codes, axis=0))
    assert codes_of(ids, ids.ids[5:7]).tolist() == whole[5:7].tolist()
    with pytest.raises(ValueError, match=r"1 of 1 items have no semantic ID, the first is -1: add them"):
        codes_of(ids, pa.array([-1]))
    assert pq.read_schema(made / "semantic_ids.parquet").names == ["item_id", "codes", "suffix"]


def test_manifest_says_what_it_is_and_was_made_from(made: Path) -> None:
    manifest = read_manifest(made, "tokens", verify=True)
    assert manifest["semantic_ids_hash"] == manifest["lineage"][-1] == SemanticIds.read(made).hash
    assert {k: manifest[k] for k in ("levels", "codes", "items", "tokenizer", "lookup")} == {
        "levels": 2,
        "codes": 8,
        "items": 250,
        "tokenizer": "hgit",
        "lookup": "codes",
    }
    assert set(manifest["made_from"]) == {"embeddings"}
    assert {"tokenizer/codebooks.safetensors", "measures.json", "report.html", "map.png"} <= set(manifest["files"])
    assert not list(made.parent.glob(".*")), "no unfinished work is left"


def test_report_opens_without_a_network_and_holds_every_measure(made: Path) -> None:
    text = (made / "report.html").read_text()
    namespaces = r'https?://(www\.w3\.org|purl\.org|creativecommons\.org|matplotlib\.org)[^"<]*'
    assert not re.search(r"https?://|<script|<link|@import", re.sub(namespaces, "", text))
    assert text.count("<svg") == 2 and text.count("data:image/png;base64,") == 2
    measures = json.loads((made / "measures.json").read_text())
    assert measures["collisions"]["after"]["collision_rate"] == 0 < measures["collisions"]["before"]["collision_rate"]
    assert len(measures["levels"]) == 2 and set(measures["levels"][0]["nmi"]) == {"province", "city", "district"}
    here = measures["embeddings"]["here"]
    assert here["queries"] == 50 and set(here["similarity"]) == {"5", "10", "100"}
    for word in ("explained", "NMI district", "concentration", "P@K", "Map of first tokens"):
        assert word in text


def test_before_and_after_stand_side_by_side(source: Any, tmp_path: Path) -> None:
    write_embeddings(tmp_path / "old", source[2][:250], embed(source[2][:250], seed=1))
    report = ReportConfig(queries=50, points=60, before=tmp_path / "old", picture="tsne")
    out = tokenize(small(source, tmp_path / "t", report=report, tokenizer="res_kmeans"))
    found = json.loads((out / "measures.json").read_text())["embeddings"]
    assert set(found) == {"before", "after"} and "reference_similarity" in found["after"]
    assert "before alignment" in (out / "report.html").read_text()


def test_many_items_are_looked_at_in_blocks_and_parts(
    source: Any, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a hundred million would be: the same IDs; measures of attributes are of evenly spaced items."""
    monkeypatch.setattr("placerank.tokenization.text.item_table.BLOCK_ROWS", 32)
    monkeypatch.setattr("placerank.tokenization.judging.measures.MOST_ITEMS", 100)
    monkeypatch.setattr("placerank.tokenization.codes.semantic_ids._BLOCK", 7)
    out = tokenize(small(source, tmp_path / "t"))
    assert files(out)["semantic_ids.parquet"] == files(made)["semantic_ids.parquet"]
    assert SemanticIds.read(out).hash == SemanticIds.read(made).hash
    some, every = (json.loads((folder / "measures.json").read_text()) for folder in (out, made))
    for name in ("collisions", "reconstruction"):
        assert some[name] == every[name]
    here, there = (found["embeddings"]["here"] for found in (some, every))
    assert here.pop("nmi") == pytest.approx(there.pop("nmi")) and here == there
    for a, b in zip(some["levels"], every["levels"], strict=True):
        assert a["usage"] == b["usage"] and set(a["nmi"]) == set(b["nmi"]) and a["nmi"] != b["nmi"]
    assert (out / "map.png").is_file()


def test_the_order_of_the_data_does_not_matter(source: Any, made: Path, tmp_path: Path) -> None:
    """The embeddings' items and no others, in their order: nothing is looked up then."""
    raw, _, ids = source
    (tmp_path / "raw").mkdir()
    table = read_items(raw)
    at = pa.compute.index_in(ids[:250], value_set=table["item_id"].combine_chunks())
    pq.write_table(table.take(at), tmp_path / "raw/items.parquet")
    out = tokenize(small(source, tmp_path / "t", data=tmp_path / "raw"))
    assert files(out)["semantic_ids.parquet"] == files(made)["semantic_ids.parquet"]


def test_two_runs_are_the_same(source: Any, made: Path, tmp_path: Path) -> None:
    again = tokenize(small(source, tmp_path / "t"))
    differs = {name for name, value in files(made).items() if files(again)[name] != value}
    assert differs <= {"manifest.json", "tokenizer/manifest.json"}, "these hold the time"
    assert SemanticIds.read(again).hash == SemanticIds.read(made).hash


def test_a_prepared_folder_gives_the_same_ids(source: Any, made: Path, prepared: Path, tmp_path: Path) -> None:
    out = tokenize(small(source, tmp_path / "t", data=prepared))
    assert SemanticIds.read(out).hash == SemanticIds.read(made).hash


def run(config: TokenizeConfig) -> None:
    tokenize(config)


def run_and_die(config: TokenizeConfig, blocks: int) -> None:
    """Tokenize, and be killed when so many blocks have been encoded; -1: in the fit."""
    save, encode = np.save, tokenize_module.Tokenizer.encode_block
    done = 0

    def dying(self: Any, *args: Any) -> Any:
        nonlocal done
        if done == blocks:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        return encode(self, *args)

    tokenize_module.Tokenizer.encode_block = dying  # type: ignore[method-assign]
    assert save is np.save
    if blocks < 0:
        from placerank.tokenization.codes.hgit import HGIT

        HGIT._epoch = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, method-assign]
    tokenize(config)


@pytest.mark.parametrize("blocks", [-1, 0, 2])
def test_killed_and_resumed_is_undisturbed(
    blocks: int, source: Any, made: Path, tmp_path: Path, ranks: Callable[..., list[Any]]
) -> None:
    config = small(source, tmp_path / "t")
    ranks(1, run_and_die, config, blocks, killed=True)
    assert not config.out.exists()
    with pytest.raises(FileExistsError, match=r"t was begun and has not finished; pass --resume"):
        tokenize(config)
    with pytest.raises(ValueError, match=r"t was begun with other settings \(config.codebook.codes: 8, now 9\)"):
        tokenize(replace(config, resume=True, codebook=TokenizerConfig(levels=2, codes=9)))
    partial = tmp_path / ".t.partial"
    assert len(list(partial.rglob("codes-*.npy"))) == max(blocks, 0)
    tokenize(replace(config, resume=True))
    assert files(config.out)["semantic_ids.parquet"] == files(made)["semantic_ids.parquet"]
    assert files(config.out)["tokenizer/codebooks.safetensors"] == files(made)["tokenizer/codebooks.safetensors"]
    assert files(config.out)["report.html"] == files(made)["report.html"]
    assert not partial.exists()


def test_ranks_make_one_folder(source: Any, made: Path, tmp_path: Path, ranks: Callable[..., list[Any]]) -> None:
    config = small(source, tmp_path / "t")
    ranks(2, run, config)
    two, one = SemanticIds.read(config.out), SemanticIds.read(made)
    assert two.ids.equals(one.ids)
    assert (two.codes == one.codes).mean() > 0.95, "sums over ranks round differently"


def test_adding_items_changes_nobodys_id(
    source: Any, made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw, _, ids = source
    write_embeddings(tmp_path / "more", ids[200:300], embed(ids[200:300]))
    with caplog.at_level("INFO"):
        out = tokenize(small(source, tmp_path / "t", embeddings=tmp_path / "more", add=made))
    assert "50 of 100 items with an embedding are new to" in caplog.text
    before, after = SemanticIds.read(made), SemanticIds.read(out)
    assert after.ids.equals(ids) and len(after) == 300
    assert np.array_equal(after.codes[:250], before.codes) and np.array_equal(after.suffixes[:250], before.suffixes)
    whole = np.column_stack([after.codes, after.suffixes])
    assert len(np.unique(whole, axis=0)) == 300
    tokenizer = load_tokenizer(made / "tokenizer")
    assert np.array_equal(after.codes[250:], tokenizer.encode(embed(ids[250:300]), items_of(raw, ids[250:300])).numpy())
    assert files(out)["tokenizer/codebooks.safetensors"] == files(made)["tokenizer/codebooks.safetensors"]
    assert after.lineage[:1] == before.lineage and len(after.lineage) == 2
    assert read_manifest(out, "tokens")["added"] == 50

    # A ranker trained before goes on with more items; one trained with the new ones does not go back.
    assert check_trained_with(out, before.hash).hash == after.hash
    with pytest.raises(ValueError, match=r"those that the ranker was trained with: expected the same, or with items"):
        check_trained_with(made, after.hash)

    # Nothing new: the same IDs under the same hash.
    same = tokenize(small(source, tmp_path / "same", add=made))
    assert SemanticIds.read(same).hash == before.hash


def test_adding_in_place(source: Any, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "t")
    write_embeddings(tmp_path / "more", source[2][250:], embed(source[2][250:]))
    tokenize(small(source, tmp_path / "t", embeddings=tmp_path / "more", add=tmp_path / "t", overwrite=True))
    assert SemanticIds.read(tmp_path / "t").ids.equals(source[2])


def test_districts_are_derived_and_kept_for_new_items(source: Any, tmp_path: Path) -> None:
    raw, _, ids = source
    table = read_items(raw).drop_columns(["district", "city", "province"])
    (tmp_path / "raw").mkdir()
    pq.write_table(table, tmp_path / "raw/items.parquet")
    first = tokenize(small(source, tmp_path / "a", data=tmp_path / "raw"))
    assert (first / "districts.parquet").is_file()
    measures = json.loads((first / "measures.json").read_text())
    assert set(measures["levels"][0]["nmi"]) == {"district"}
    write_embeddings(tmp_path / "more", ids[250:], embed(ids[250:]))
    second = tokenize(small(source, tmp_path / "b", data=tmp_path / "raw", embeddings=tmp_path / "more", add=first))
    assert files(second)["districts.parquet"] == files(first)["districts.parquet"]
    assert len(SemanticIds.read(second)) == 300

    # An align run has derived them already: the same ones, not others, whatever the items here.
    align = tmp_path / "align"
    write_embeddings(align / "embeddings", ids[100:], embed(ids[100:]))
    shutil.copy(first / "districts.parquet", align)
    third = tokenize(small(source, tmp_path / "c", data=tmp_path / "raw", embeddings=align))
    assert files(third)["districts.parquet"] == files(first)["districts.parquet"]


def test_what_does_not_fit_is_told(source: Any, made: Path, tmp_path: Path, caplog: Any) -> None:
    _, folder, ids = source
    config = small(source, tmp_path / "t")
    with pytest.raises(FileExistsError, match=r"tokens exists; choose another folder, or pass --overwrite"):
        tokenize(replace(config, out=made))
    with pytest.raises(ValueError, match=r"tokenizer 'vq' does not exist; there are hgit"):
        replace(config, tokenizer="vq")
    with pytest.raises(ValueError, match=r"codebook.codes=512 is more than the 250 items there are"):
        tokenize(replace(config, codebook=TokenizerConfig(codes=512), overwrite=True))
    write_embeddings(tmp_path / "strange", pa.array([-5, -6]), torch.randn(2, DIM))
    with pytest.raises(ValueError, match=r"2 of 2 embeddings are of items that .*raw does not have, the first is -5"):
        tokenize(replace(config, embeddings=tmp_path / "strange", overwrite=True))
    with pytest.raises(FileNotFoundError, match=r"store.json not found"):
        tokenize(replace(config, embeddings=tmp_path, overwrite=True))

    EmbeddingWriter(tmp_path / "users", ids[:250], DIM, of="user").write(0, embed(ids[:250]))
    with pytest.raises(
        ValueError, match=r"users are known by their visits; expected the folder that placerank prepare made"
    ):
        tokenize(replace(config, embeddings=tmp_path / "users", overwrite=True))

    write_embeddings(tmp_path / "wide", ids[250:], torch.randn(50, DIM + 1))
    with pytest.raises(ValueError, match=rf"got {DIM + 1} dimensions, this hgit was fitted on {DIM}"):
        tokenize(replace(config, embeddings=tmp_path / "wide", add=made, overwrite=True))

    for model in ("a", "b"):
        some = ids[:250] if model == "a" else ids[250:]
        encoder = {"encoder": {"model": model, "pooling": "mean"}}
        EmbeddingWriter(tmp_path / model, some, DIM, made_from=encoder).write(0, embed(some))
    first = tokenize(replace(config, embeddings=tmp_path / "a", out=tmp_path / "first"))
    with pytest.raises(ValueError, match=r"\(encoder\.model: 'a', now 'b'\): expected the same; encode the items"):
        tokenize(replace(config, embeddings=tmp_path / "b", add=first, overwrite=True))

    (tmp_path / "damaged").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected a finished 'tokens' folder"):
        tokenize(replace(config, add=tmp_path / "damaged", overwrite=True))
    with caplog.at_level("WARNING"):
        tokenize(replace(config, add=made, tokenizer="rqvae", overwrite=True))
    assert "tokenizer, codebook, hgit, kmeans: no effect, because the codebooks are those of" in caplog.text
    assert "50 of 300 items have no embedding: they get no new semantic ID" in caplog.text
    assert folder.is_dir()


def test_embeddings_with_nan_are_told_by_item(source: Any, tmp_path: Path) -> None:
    """A store refuses NaN when it is written; one that was written by other means does not."""
    ids = source[2][:250]
    write_embeddings(tmp_path / "e", ids, embed(ids))
    path = tmp_path / "e/part-00000.parquet"
    table = pq.read_table(path)
    values = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False).copy()
    values[DIM * 17] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(values), type=table.schema.field("embedding").type)
    pq.write_table(table.set_column(1, table.schema.field("embedding"), column), path)
    with pytest.raises(ValueError, match=rf"row 17 \(item {ids[17].as_py()}\) holds NaN or infinity"):
        tokenize(small(source, tmp_path / "t", embeddings=tmp_path / "e"))


def test_embeddings_are_known_by_their_content(tmp_path: Path) -> None:
    """A manifest beside them counts if it lists them; a damaged one is told."""
    ids = pa.array(range(5))
    lists_them, other = tmp_path / "align", tmp_path / "other"
    for folder in (lists_them, other):
        folder.mkdir()
        if folder == other:
            write_manifest(folder, "raw", {})
        stores = [write_embeddings(folder / name, ids, embed(ids, seed)) for name, seed in (("a", 0), ("b", 1))]
        if folder == lists_them:
            write_manifest(folder, "align", {})
        same = len({tokenize_module._identity(store) for store in stores}) == 1
        assert same == (folder == lists_them)  # one content hash for all of an align run
    for text in ("{", "[]", '{"files": {"a/store.json": {}}}'):
        (lists_them / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"align/manifest\.json.*make the folder again"):
            tokenize_module._identity(EmbeddingStore.open(lists_them / "a"))


def test_the_command(source: Any, tmp_path: Path, capsys: Any) -> None:
    flags = ["--data", str(source[0]), "--embeddings", str(source[1]), "--out", str(tmp_path / "t")]
    flags += ["--tokenizer", "res_kmeans", "--codebook.codes", "8", "--codebook.levels", "2", "--report.queries", "0"]
    assert main(["tokenize", *flags]) == 0
    assert "res_kmeans" in (tmp_path / "t/report.html").read_text()
    assert main(["tokenize", *flags]) == 1
    assert "exists; choose another folder" in capsys.readouterr().err


def test_own_columns_of_raw_and_of_prepared_items(tmp_path: Path) -> None:
    """HGIT takes them where a weight asks, by name; from either folder the codes are the same, and they count."""
    raw = write_delivery(tmp_path / "raw")
    data = prepare(PrepareConfig(input=raw, out=tmp_path / "data"))
    ids = read_items(raw)["item_id"].combine_chunks()
    vectors = torch.randn(len(ids), DIM, generator=torch.Generator().manual_seed(0))
    write_embeddings(tmp_path / "e", ids, vectors)
    options = HGITOptions(
        epochs=1, iterations=2, epoch_steps=2, batch_rows=64, w_own={"cuisines": 50.0, "kitchen": 10.0}
    )
    config = TokenizeConfig(
        data=raw,
        embeddings=tmp_path / "e",
        out=tmp_path / "a",
        codebook=TokenizerConfig(levels=2, codes=6),
        hgit=options,
        report=ReportConfig(queries=20, points=50),
    )
    one = SemanticIds.read(tokenize(config))
    two = SemanticIds.read(tokenize(replace(config, data=data, out=tmp_path / "b")))
    assert np.array_equal(one.codes, two.codes)
    plain = SemanticIds.read(tokenize(replace(config, hgit=replace(options, w_own={}), out=tmp_path / "c")))
    first = [one.codes[:, 0], plain.codes[:, 0]]
    kitchen = read_items(raw, own=[c for c in own_columns(raw, {})[0] if c.of == "items"])["own.kitchen"].to_pylist()
    alike = [np.mean([kitchen[i] == kitchen[j] for i in range(100) for j in range(i) if x[i] == x[j]]) for x in first]
    assert alike[0] > alike[1] + 0.1
    embedded = load_tokenizer(tmp_path / "a" / "tokenizer").encode(
        vectors, items_of(data, ids, ["cuisines", "kitchen"])
    )
    assert np.array_equal(embedded.numpy(), one.codes)
    with pytest.raises(ValueError, match=r"got no items' own column 'rating' of texts, expected some of"):
        tokenize(replace(config, data=data, hgit=replace(options, w_own={"rating": 1.0}), out=tmp_path / "d"))
