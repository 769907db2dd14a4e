"""Look-ups by raw id, and damage to what they read."""

import itertools
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from placerank.data.manifest import whole_folder, write_manifest
from placerank.embeddings import reader
from placerank.embeddings.export import RawIds, export_tables
from placerank.embeddings.reader import EmbeddingTable, load_table, open_table

ALPHABET = "0123456789abcdefZ-_ éßжд餐館🍜"  # one to four bytes a character


def numbered(ids: Sequence[Any], type: pa.DataType | None = None, oov: bool = True) -> EmbeddingTable:
    """A table in which the vector of row r is r."""
    column = pa.array([*([None] * oov), *ids], type)
    return EmbeddingTable("item", 1, "fp32", column, np.arange(len(column), dtype=np.float32)[:, None])


def texts(count: int, length: int, seed: int = 0) -> list[str]:
    """Different ids of a number of bytes, in no order."""
    rng = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        text = "".join(rng.choice(list(ALPHABET), length)).encode()[:length].decode(errors="ignore")
        found[text + "x" * (length - len(text.encode()))] = None
    return list(found)


def check(table: EmbeddingTable, ids: Sequence[Any], wanted: Sequence[Any]) -> None:
    row = {value: 1 + at for at, value in enumerate(ids)}
    assert table.rows(pa.array(wanted, table.ids.type)).tolist() == [row.get(value, 0) for value in wanted]


@pytest.mark.parametrize("length", [8, 12, 15, 16, 17, 24, 36, 64])
def test_text_ids_of_any_length_in_any_order(length: int) -> None:
    rng, ids, unknown = np.random.default_rng(length), texts(1500, length), texts(50, length, seed=1)
    table = numbered(ids)
    for one in rng.choice(ids, 200):
        assert table.lookup([str(one)]).item() == 1 + ids.index(one)
    for size in (1, 2, 3, 10, 100, 1000, len(ids)):
        check(table, ids, [ids[i] for i in rng.permutation(len(ids))[:size]])
        mixed: list[Any] = [*rng.choice([*ids, *set(unknown).difference(ids)], size), *rng.choice(ids, 5), None]
        check(table, ids, [None if x is None else str(x) for x in rng.permutation(np.array(mixed, object))])


def test_text_ids_of_mixed_lengths_that_begin_alike() -> None:
    ids = [*("a" * n for n in range(70)), *("a" * n + "\0" for n in range(70)), *("a" * n + "é" for n in range(20, 70))]
    table = numbered(ids)
    check(table, ids, ids[::-1])
    check(table, ids, [x + "b" for x in ids])


@settings(deadline=None, max_examples=100)
@given(st.data(), st.sampled_from([pa.string(), pa.large_string(), pa.int64(), pa.int32()]))
def test_any_ids_are_found_as_a_dict_would(data: st.DataObject, type: pa.DataType) -> None:
    width = 31 if type == pa.int32() else 63
    value: Any = st.integers(-(2**width), 2**width - 1) if pa.types.is_integer(type) else st.text(max_size=40)
    ids = data.draw(st.lists(value, unique=True, max_size=30))
    wanted = data.draw(st.lists(st.one_of(st.sampled_from(ids) if ids else value, value, st.none()), max_size=40))
    check(numbered(ids, type), ids, wanted)


def test_integer_ids() -> None:
    rng = np.random.default_rng(0)
    ids = [-1, 0, -(2**63), 2**63 - 1, 2**53, 2**53 + 1, *np.unique(rng.integers(-(2**62), 2**62, 5000)).tolist()]
    table = numbered(ids)
    for size in (1, 10, len(ids)):
        wanted = rng.choice(np.array(ids), size)
        assert [ids[row - 1] for row in table.rows(wanted)] == wanted.tolist()
    assert table.rows([2**53 + 2, None, -2]).tolist() == [0, 0, 0]


def test_more_ids_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_BLOCK", 7)
    ids = texts(100, 20)
    for values in (ids, list(range(-50, 50))):
        check(numbered(values), values, [*values[::-1], values[3]])


def test_ids_that_share_a_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "hash_ids", lambda ids: np.array([len(x) % 3 for x in ids.to_pylist()], np.uint64))
    ids = [f"{i}{'x' * (i % 5)}" for i in range(40)]
    check(numbered(ids), ids, [*ids[::-1], "nowhere", "no", *ids[:4]])


def test_ids_come_in_any_container() -> None:
    ids = texts(30, 25)
    table, want = numbered(ids), [3, 9, 3]
    some = [ids[2], ids[8], ids[2]]
    for asked in (some, tuple(some), np.array(some), np.array(some, object), np.array(some, np.dtypes.StringDType())):
        assert table.rows(asked).tolist() == want
    assert table.rows(np.array(ids)[::-3]).tolist() == list(range(30, 0, -3))
    assert table.rows(pa.chunked_array([some[:1], some[1:]])).tolist() == want
    assert table.rows(pa.array(some).dictionary_encode()).tolist() == want
    assert table.rows(table.ids[3:6]).tolist() == [3, 4, 5]
    assert table.rows([]).shape == table.rows(np.array([])).shape == (0,)
    assert numbered([], pa.string()).rows(["x"]).tolist() == [0]


def test_what_is_no_list_of_ids_is_told() -> None:
    """Rather than other items' vectors: rounded ids, the letters of a text."""
    table = numbered([2**60, 2**60 + 1])
    with pytest.raises(TypeError, match="ids of type int64: got double, in which long ids lose digits; pass them"):
        table.lookup(np.array([2.0**60]))
    with pytest.raises(TypeError, match="table 'item' has ids of type string: got one string 'ab', expected a list"):
        numbered(["a", "b"]).lookup("ab")
    with pytest.raises(TypeError, match="table 'item' has ids of type int64: Python int too large"):
        table.lookup([2**70])
    hours = numbered(texts(5, 20), oov=False)
    with pytest.raises(KeyError, match="table 'item' has no id nowhere, and no row for unknown ids"):
        hours.rows([hours.ids[2].as_py(), "nowhere"])


FORMATS = ["parquet", "safetensors", "npy", "faiss"]


class Random:
    """Two tables of 50 rows and 8 columns, as a source for export."""

    def shape(self, name: str) -> tuple[int, int]:
        return 50, 8

    def blocks(self, name: str, block_rows: int) -> Any:
        yield from torch.rand(50, 8, generator=torch.Generator().manual_seed(len(name))).split(block_rows)


def exported(out: Path, format: str) -> Path:
    ids = [None, *texts(49, 24)]
    pq.write_table(pa.table({"value": ids}), out.with_suffix(".ids"))
    with whole_folder(out) as folder:
        (folder / "tables").mkdir()
        both = dict.fromkeys(("item", "user"), RawIds.read(out.with_suffix(".ids")))
        written = export_tables(Random(), both, folder / "tables", format)
        write_manifest(folder, "export", {}, tables=written)
    return out


@pytest.mark.parametrize("format", FORMATS)
def test_every_damaged_file_of_a_table_is_told(format: str, tmp_path: Path) -> None:
    out = exported(tmp_path / "out", format)
    files = sorted((out / "tables").glob("item.*"))
    assert len(files) == {"parquet": 1, "faiss": 3}.get(format, 2)
    whole = load_table(out, "item").vectors()
    for file in files:
        good = file.read_bytes()
        for at in (0, len(good) // 2, len(good) - 1):
            file.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
            with pytest.raises(ValueError, match=rf"{file.name}: content differs from what was written \(sha256\)"):
                load_table(out, "item")
            assert load_table(out, "user").dim == 8, "another table is not held up"
        file.write_bytes(good[:-1])
        with pytest.raises(ValueError, match=rf"{file.name}: {len(good) - 1} bytes, the manifest says {len(good)} "):
            load_table(out, "item", verify=False)
        file.unlink()
        with pytest.raises(ValueError, match=rf"{file.name}: missing, the manifest says {len(good)} bytes"):
            load_table(out, "item", verify=False)
        file.write_bytes(good)
    assert torch.equal(load_table(out, "item").vectors(), whole)


def test_who_verified_before_need_not_again(tmp_path: Path) -> None:
    out = exported(tmp_path / "out", "npy")
    file = out / "tables" / "item.npy"
    rows = np.load(file, mmap_mode="r+")
    rows[3] = 7
    rows.flush()
    assert load_table(out, "item", verify=False).vectors(torch.tensor([3])).tolist() == [[7.0] * 8]


@pytest.mark.parametrize("format", FORMATS)
def test_files_that_are_not_of_their_format_end_in_one_line(format: str, tmp_path: Path) -> None:
    out = exported(tmp_path / "out", format)
    table = json.loads((out / "manifest.json").read_text())["tables"]["item"]
    for file, cut in itertools.product(sorted((out / "tables").glob("item.*")), (None, 0, 3, 40)):
        folder = tmp_path / "broken"
        shutil.copytree(out / "tables", folder)
        (folder / file.name).unlink()
        if cut is not None:
            shutil.copy(file, folder)
            os.truncate(folder / file.name, cut)
        # FAISS's vector of unknown ids is beside the index; where it is not, rows are one too few
        with pytest.raises(ValueError, match=rf"can't be read as {format} \(.+\); export again|holds .*; export again"):
            open_table(folder, "item", table)
        shutil.rmtree(folder)


def test_another_kind_of_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"manifest\.json not found: expected a finished 'export' folder"):
        load_table(tmp_path, "item")
    write_manifest(tmp_path, "prepared", {})
    with pytest.raises(ValueError, match="holds 'prepared', expected 'export'; check the path"):
        load_table(tmp_path, "item")
