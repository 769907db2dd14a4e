"""Semantic IDs as rows of tables: by hand, and what must hold for any codes."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from placerank.data.batches.semantic_features import SemanticFeatures
from placerank.data.manifest import write_manifest
from placerank.tokenization.codes.semantic_ids import SemanticIds

K = 4
CODES = np.array([[0, 1, 3], [0, 1, 2], [3, 3, 3], [3, 0, 0]])


def write_tokens(folder: Path, ids: SemanticIds, **changed: object) -> Path:
    folder.mkdir()
    ids.write(folder / "semantic_ids.parquet")
    fields = {"items": len(ids), "levels": ids.codes.shape[1], "codes": ids.codes_per_level, "lookup": "codes"}
    fields |= {"lineage": list(ids.lineage)} | changed
    write_manifest(folder, "tokens", {}, **fields)
    return folder


def make(codes: np.ndarray, per_level: int = K) -> SemanticFeatures:
    return SemanticFeatures(codes.astype(np.int64), per_level, ("h",), "codes")


def test_rows_by_hand_in_the_catalogs_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = SemanticIds.first(pa.array(["a", "b", "c", "d"]), CODES, K, "t")
    catalog = pa.chunked_array([pa.array([None, "c"]), pa.array(["new", "a", "b"])])
    found = SemanticFeatures.load(write_tokens(tmp_path / "t", ids), catalog)
    assert found.codes.tolist() == [[-1] * 3, [3, 3, 3], [-1] * 3, [0, 1, 3], [0, 1, 2]]
    assert found.hash == ids.hash and found.lineage == ids.lineage and found.levels == 3
    rows, size = found.level_table(2)
    assert rows.tolist() == [0, 4, 0, 2, 2] and size == K + 1
    rows, size = found.prefix_table(1, 4)
    assert rows.tolist() == [0, 4, 0, 1, 1] and size == 5
    rows, size = found.prefix_table(2, 100)  # 16 prefixes: 1 + 4 s1 + s2
    assert rows.tolist() == [0, 16, 0, 2, 2] and size == 17
    rows, size = found.prefix_table(3, 64)
    assert rows.tolist() == [0, 64, 0, 8, 7] and size == 65
    assert found.prefix_table(3, 63)[1] == 64, "63 rows do not hold 64 prefixes: hashed"
    assert "1 of 4 items have no semantic ID" in caplog.text


@settings(deadline=None, max_examples=60)
@given(
    codes=arrays(np.int64, st.tuples(st.integers(0, 30), st.integers(1, 4)), elements=st.integers(-1, K - 1)),
    most=st.integers(1, 300),
    data=st.data(),
)
def test_equal_prefixes_share_a_row(codes: np.ndarray, most: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, codes.shape[1]))
    codes = np.where(np.logical_or.accumulate(codes < 0, axis=1), -1, codes)
    rows, size = make(codes).prefix_table(length, most)
    assert rows.shape == (len(codes),) and size == 1 + min(K**length, most)
    assert ((rows > 0).numpy() == (codes[:, length - 1] >= 0)).all() and (rows < size).all()
    exact = K**length <= most
    for i in range(len(codes)):
        for j in range(i):
            if rows[i] and rows[j]:
                same = (codes[i, :length] == codes[j, :length]).all()
                assert rows[i] == rows[j] if same else not exact or rows[i] != rows[j]


def test_hashed_prefixes_spread_evenly_and_depend_on_every_code() -> None:
    grid = np.stack(np.meshgrid(*[np.arange(32)] * 3, indexing="ij"), -1).reshape(-1, 3)
    rows, size = make(grid, 32).prefix_table(3, 1024)
    counts = np.bincount(rows.numpy(), minlength=size)[1:]
    assert counts.sum() == 32**3 and abs(counts.std() / 32**0.5 - 1) < 0.2, "as if thrown at random: variance 32"
    assert (
        make(grid, 32).prefix_table(3, 10_000)[0] == make(grid[:, ::-1], 32).prefix_table(3, 10_000)[0]
    ).sum() < 1200
    long = np.random.default_rng(0).integers(0, 512, (2000, 9))  # 512^9 prefixes: more than 64 bits
    assert len(make(long, 512).prefix_table(9, 10**9)[0].unique()) == 2000


def test_items_that_are_added_change_nobodys_row(tmp_path: Path) -> None:
    ids = SemanticIds.first(pa.array([7, 8, 9]), CODES[:3], K, "t")
    more = ids.added(pa.array([1, 2]), CODES[2:])
    before = SemanticFeatures.load(write_tokens(tmp_path / "a", ids), pa.array([None, 7, 8, 9]))
    after = SemanticFeatures.load(write_tokens(tmp_path / "b", more), pa.array([None, 7, 8, 9, 1, 2]))
    for most in (3, 1000):
        assert after.prefix_table(2, most)[0][:4].tolist() == before.prefix_table(2, most)[0].tolist()
    assert before.hash in after.lineage and after.hash != before.hash


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    ids = SemanticIds.first(pa.array([1, 2, 3, 4]), CODES, K, "t")
    folder = write_tokens(tmp_path / "t", ids)
    with pytest.raises(ValueError, match=r"items with int64 ids, the data's are string: expected those of the same"):
        SemanticFeatures.load(folder, pa.array([None, "1"]))
    with pytest.raises(ValueError, match=r"4 semantic IDs, the data has 3 items, and they share 1"):
        SemanticFeatures.load(folder, pa.array([None, 1, 12, 13]))
    with pytest.raises(ValueError, match=r"4 semantic IDs, the data has 9 items, and they share 4"):
        SemanticFeatures.load(folder, pa.array([None, *range(1, 10)]))
    for name, changed, told in (
        ("l", {"levels": 2}, "got 4 IDs of 3 levels, the manifest says 4 of 2"),
        ("n", {"items": 5}, "got 4 IDs of 3 levels, the manifest says 5 of 3"),
        ("k", {"codes": 3}, "got code 3, expected codes below 3"),
    ):
        with pytest.raises(ValueError, match=told):
            SemanticFeatures.load(write_tokens(tmp_path / name, ids, **changed), pa.array([None, 1, 2, 3, 4]))
    with pytest.raises(FileNotFoundError, match=r"expected a finished 'tokens' folder"):
        SemanticFeatures.load(tmp_path, pa.array([None, 1]))
    found = make(CODES)
    with pytest.raises(ValueError, match=r"levels 1 to 3, got 4"):
        found.level_table(4)
    with pytest.raises(ValueError, match=r"levels 1 to 3, got 0"):
        found.prefix_table(0, 10)
    with pytest.raises(ValueError, match=r"got at most 0 rows"):
        found.prefix_table(1, 0)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["semantic_ids.parquet"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"content differs from what was written"):
        SemanticFeatures.load(folder, pa.array([None, 1, 2, 3, 4]))


def test_the_suffix_is_one_more_level(tmp_path: Path) -> None:
    """In the order in which items came, whatever the catalog's; those that are added go on after the largest."""
    codes = np.array([[0, 1], [3, 2], [0, 1], [0, 1]])
    ids = SemanticIds.first(pa.array(["a", "b", "c", "d"]), codes, K, "t")
    catalog = pa.chunked_array([pa.array([None, "new", "d", "c", "b", "a"])])
    found = SemanticFeatures.load(write_tokens(tmp_path / "t", ids), catalog, suffix=True)
    want = [[-1] * 3, [-1] * 3, [0, 1, 2], [0, 1, 1], [3, 2, 0], [0, 1, 0]]
    assert found.codes.tolist() == want and found.levels == 3 and found.codes_per_level == K
    more = ids.added(pa.array(["e", "new"]), np.array([[3, 2], [0, 1]]))
    later = SemanticFeatures.load(write_tokens(tmp_path / "more", more), catalog, suffix=True)
    assert later.codes.tolist() == [want[0], [0, 1, 3], *want[2:]] and later.codes_per_level == K
    assert later.lineage[: len(found.lineage)] == found.lineage
    last = more.added(pa.array(["f"]), np.array([[0, 1]]))  # the fifth with these codes, of K = 4
    assert SemanticFeatures.load(write_tokens(tmp_path / "last", last), catalog, suffix=True).codes_per_level == 8
    assert SemanticFeatures.load(tmp_path / "last", catalog).codes_per_level == K
