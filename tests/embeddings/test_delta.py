"""What changed from one export to the next, and the next made of it, to the byte."""

import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from placerank.data.manifest import MANIFEST, read_manifest, whole_folder, write_manifest
from placerank.embeddings import apply_delta, load_table, make_delta
from placerank.embeddings.delta import RESULT
from placerank.embeddings.export import RawIds, export_tables, save_attributes
from placerank.embeddings.quantize import DTYPES

DIM, BLOCK = 8, 16
HOW = [*itertools.product(("parquet", "safetensors", "npy"), DTYPES), ("faiss", "fp32"), ("faiss", "fp16")]
Rows = list[tuple[Any, list[float]]]
"""A table in memory: of each row its id and its vector."""


@pytest.fixture(scope="module", autouse=True)
def no_commit() -> Iterator[None]:
    """Asking git for each manifest would be most of these tests' time."""
    with mock.patch("placerank.data.manifest.source_commit", return_value=None):
        yield


class InMemory:
    """Tables as a source for export."""

    def __init__(self, tables: dict[str, Rows]) -> None:
        self.tables = {name: torch.tensor([vector for _, vector in rows]) for name, rows in tables.items()}

    def shape(self, name: str) -> tuple[int, int]:
        return self.tables[name].shape[0], self.tables[name].shape[1]

    def blocks(self, name: str, block_rows: int) -> Iterator[Tensor]:
        yield from self.tables[name].split(block_rows)


def save(
    out: Path,
    tables: dict[str, Rows],
    format: str = "parquet",
    dtype: str = "fp32",
    block: int = BLOCK,
    dense: str = "dense part",
    catalog: pa.Table | None = None,
) -> Path:
    """An export as the step writes it."""
    with whole_folder(out, overwrite=True) as folder, tempfile.TemporaryDirectory() as scratch:
        (folder / "tables").mkdir()
        ids = {}
        for name, rows in tables.items():
            pq.write_table(pa.table({"value": [id for id, _ in rows]}), f"{scratch}/{name}")
            ids[name] = RawIds.read(Path(scratch, name))
        written = export_tables(InMemory(tables), ids, folder / "tables", format, dtype, block)
        (folder / "scorer.pt2").write_text(dense)
        (folder / "features.json").write_text("{}")
        if catalog is not None:
            save_attributes(catalog, "item_id", folder / "catalog.parquet")
        write_manifest(folder, "export", {}, tables=written)
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def some_rows(count: int, seed: int = 0, text: bool = False) -> Rows:
    """Row 0 is that of unknown ids."""
    vectors = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)).tolist()
    name = (lambda i: f"plåce {i}") if text else (lambda i: i * 7 + 1)
    return [(None if i == 0 else name(i), vector) for i, vector in enumerate(vectors)]


def told(base: Rows, new: Rows) -> tuple[list[int], set[Any]]:
    """The slow reference: numbers of rows that changed or are new, and ids that are gone."""
    changed = [i for i, row in enumerate(new) if i >= len(base) or repr(base[i]) != repr(row)]
    return changed, {id for id, _ in base} - {id for id, _ in new} - {None}


@pytest.mark.parametrize(("format", "dtype"), HOW)
@pytest.mark.parametrize("text", [False, True], ids=["numbers", "text"])
def test_applied_is_the_whole(format: str, dtype: str, text: bool, tmp_path: Path) -> None:
    """Some rows change, some are given to others, some are new; the last block isn't full before, nor after."""
    old, new = some_rows(41, text=text), some_rows(57, text=text)
    for row in (0, 3, 15, 16, 40):
        new[row] = new[row][0], [x + 1 for x in new[row][1]]
    new[7] = ("new place" if text else 5000), new[7][1]
    base = save(tmp_path / "base", {"item": old, "user": old}, format, dtype)
    whole = save(tmp_path / "whole", {"item": new, "user": old}, format, dtype)
    delta = make_delta(base, whole, tmp_path / "delta")
    assert files(apply_delta(base, delta, tmp_path / "out")) == files(whole)
    changed, gone = told(old, new)
    rows = pq.read_table(delta / "tables/item.parquet")
    assert rows["row"].to_pylist() == changed and rows["id"].to_pylist() == [new[i][0] for i in changed]
    assert set(pq.read_table(delta / "gone/item.parquet")["id"].to_pylist()) == gone and len(gone) == 1
    assert files(delta).keys() == {MANIFEST, RESULT, "tables/item.parquet", "gone/item.parquet"}, "nothing of users"
    if dtype == "fp32":
        assert rows["vector"].to_pylist() == [torch.tensor(new[i][1]).tolist() for i in changed]
    assert torch.equal(load_table(tmp_path / "out", "item").vectors(), load_table(whole, "item").vectors())


rows_of = st.lists(
    st.tuples(st.integers(0, 30), st.lists(st.sampled_from([0.0, -0.0, 1.5, -2.25]), min_size=4, max_size=4)),
    min_size=1,
    max_size=31,
    unique_by=lambda row: row[0],
)


@settings(deadline=None, max_examples=40)
@given(rows_of, rows_of, st.sampled_from(HOW), st.integers(1, 9), st.integers(1, 9))
def test_any_two_exports(old: Rows, new: Rows, how: tuple[str, str], block: int, other: int) -> None:
    """Tables that grow, shrink or change throughout; written in blocks of different sizes."""
    with tempfile.TemporaryDirectory() as name:
        at = Path(name)
        base, whole = save(at / "b", {"t": old}, *how, block), save(at / "w", {"t": new}, *how, other)
        delta = make_delta(base, whole, at / "d")
        assert files(apply_delta(base, delta, at / "o")) == files(whole)
        changed, gone = told(old, new)
        got = read_manifest(delta, "delta")["rows"].get("tables/t.parquet", {"changed": 0, "gone": 0})
        assert (got["changed"], got["gone"]) == (len(changed), len(gone))
        if changed:
            assert pq.read_table(delta / "tables/t.parquet")["row"].to_pylist() == changed
        if gone:
            assert set(pq.read_table(delta / "gone/t.parquet")["id"].to_pylist()) == gone


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.sets(st.integers(0, 30)), st.sets(st.integers(1, 30))), max_size=5))
def test_days_of_growth_and_closures(days: list[tuple[int, set[int], set[int]]]) -> None:
    """A chain: each day new rows, rows that were trained, and closed places whose rows others got."""
    with tempfile.TemporaryDirectory() as name:
        at, rows, fresh = Path(name), some_rows(20), itertools.count(1000)
        whole = served = save(at / "0", {"item": rows}, "npy", "fp16", 7)
        for day, (grown, trained, closed) in enumerate(days, start=1):
            rows = [(next(fresh) if i in closed else id, vector) for i, (id, vector) in enumerate(rows)]
            rows = [(id, [x + (i in trained) for x in vector]) for i, (id, vector) in enumerate(rows)]
            rows += [(next(fresh), [float(day)] * DIM) for _ in range(grown)]
            before, whole = whole, save(at / f"{day}", {"item": rows}, "npy", "fp16", 7, dense=f"of day {day}")
            delta = make_delta(before, whole, at / f"delta {day}")
            served = apply_delta(served, delta, at / "served", overwrite=day > 1)
            assert files(served) == files(whole)


CATALOG = pa.schema(
    {
        "item_id": pa.int64(),
        "name": pa.string(),
        "category": pa.list_(pa.string()),
        "lat": pa.float64(),
        "codes": pa.list_(pa.int32(), 2),
        "row": pa.int32(),
        "when": pa.timestamp("ms"),
        "hours": pa.struct({"from": pa.int8(), "to": pa.int8()}),
    }
)


def catalog_rows(rows: int) -> list[dict[str, Any]]:
    return [
        {
            "item_id": i or None,
            "name": f"name {i}" if i % 3 else None,
            "category": None if i % 7 == 0 else ["food", None, f"{i}"][: i % 4],
            "lat": float("nan") if i % 5 == 0 else i / 10,
            "codes": [i, i + 1] if i % 2 else None,
            "row": i,
            "when": i * 1000,
            "hours": {"from": i % 24, "to": None},
        }
        for i in range(rows)
    ]


def catalog_of(rows: int | list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(catalog_rows(rows) if isinstance(rows, int) else rows, CATALOG)


def test_attributes_are_told_by_row(tmp_path: Path) -> None:
    old, new, items = catalog_rows(60), catalog_rows(70), some_rows(70)
    old[11]["lat"], new[11]["lat"] = 0.0, -0.0
    changes: list[tuple[int, str, Any]] = [
        (4, "name", None), (3, "name", ""), (9, "category", ["food", None]), (10, "category", ["food", "10"]),
        (15, "lat", 1.5), (16, "lat", float("nan")), (31, "codes", [31, 0]), (33, "codes", None), (44, "when", None),
        (45, "hours", {"from": 21, "to": 1}), (56, "category", []), (57, "category", ["drink"]), (58, "item_id", 99),
    ]  # fmt: skip
    for row, column, value in changes:
        new[row][column] = value
    base = save(tmp_path / "base", {"item": items}, catalog=catalog_of(old))
    whole = save(tmp_path / "whole", {"item": items}, catalog=catalog_of(new), dense="another")
    delta = make_delta(base, whole, tmp_path / "delta")
    assert files(delta).keys() == {MANIFEST, RESULT, "catalog.parquet", "scorer.pt2"}
    got = pq.read_table(delta / "catalog.parquet")
    assert got.schema.names == ["row_", *CATALOG.names]
    assert got["row_"].to_pylist() == sorted([11, *(row for row, _, _ in changes), *range(60, 70)])
    assert files(apply_delta(base, delta, tmp_path / "out")) == files(whole)


@pytest.mark.parametrize("change", ["width", "ids", "column", "table", "no table", "format", "nothing"])
def test_what_can_not_be_compared_is_told_anew(change: str, tmp_path: Path) -> None:
    rows, catalog = some_rows(40), catalog_of(40)
    base = save(tmp_path / "base", {"item": rows, "user": rows}, "npy", catalog=catalog)
    other: Rows = [(id, vector[:4]) for id, vector in rows] if change == "width" else rows
    other = some_rows(40, text=True) if change == "ids" else other
    tables = {"item": other, "user": rows} | ({"city": rows} if change == "table" else {})
    if change == "no table":
        del tables["user"]
    if change == "column":
        catalog = catalog.append_column("fee", pa.array(range(40)))
    whole = save(tmp_path / "whole", tables, "parquet" if change == "format" else "npy", catalog=catalog)
    delta = make_delta(base, whole, tmp_path / "delta")
    assert files(apply_delta(base, delta, tmp_path / "out")) == files(whole)
    got = {name: (x["base"], x["changed"], x["gone"]) for name, x in read_manifest(delta, "delta")["rows"].items()}
    want: dict[str, dict[str, tuple[int, int, int]]] = {
        "width": {"tables/item.parquet": (0, 40, 0)},
        "ids": {"tables/item.parquet": (0, 40, 39)},
        "column": {"catalog.parquet": (0, 40, 0)},
        "table": {"tables/city.parquet": (0, 40, 0)},
        "format": dict.fromkeys(("tables/item.parquet", "tables/user.parquet"), (40, 0, 0)),
    }
    assert got == want.get(change, {})


@pytest.fixture
def chain(tmp_path: Path) -> list[Path]:
    """Exports of four days, and deltas between them (``delta 1`` .. ``delta 3``)."""
    rows = [some_rows(20) + some_rows(40 + 3 * day, seed=day)[20:] for day in range(4)]
    days = [save(tmp_path / f"{day}", {"item": rows[day]}, dense=f"{day}") for day in range(4)]
    for day in (1, 2, 3):
        make_delta(days[day - 1], days[day], tmp_path / f"delta {day}")
    return days


def test_a_chain_has_an_order(chain: list[Path], tmp_path: Path) -> None:
    served = chain[0]
    for day in (1, 2, 3):
        for other in {1, 2, 3} - {day}:
            why = "it was applied already" if other == day - 1 else "apply deltas in their order, each to what the one"
            with pytest.raises(ValueError, match=rf"delta {other} is of the base \w{{12}}, .* is \w{{12}}: {why}"):
                apply_delta(served, tmp_path / f"delta {other}", tmp_path / "out")
        served = apply_delta(served, tmp_path / f"delta {day}", tmp_path / f"served {day}")
        assert files(served) == files(chain[day])
    assert not (tmp_path / "out").exists()


def test_in_place(chain: list[Path], tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="pass --overwrite to replace it"):
        apply_delta(chain[0], tmp_path / "delta 1", chain[0])
    apply_delta(chain[0], tmp_path / "delta 1", chain[0], overwrite=True)
    assert files(chain[0]) == files(chain[1])
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
@pytest.mark.parametrize("which", ["delta", "base"])
def test_a_damaged_file_is_told_and_nothing_written(which: str, how: str, tmp_path: Path) -> None:
    rows, catalog = some_rows(40), catalog_of(40)
    base = save(tmp_path / "base", {"item": rows, "user": rows}, catalog=catalog)
    whole = save(tmp_path / "whole", {"item": some_rows(50, 1), "user": rows}, dense="2", catalog=catalog_of(50))
    delta = make_delta(base, whole, tmp_path / "delta")
    folder = delta if which == "delta" else base
    kept = files(folder)
    for name, content in kept.items():
        if name == MANIFEST or (which == "base" and name == "scorer.pt2"):
            continue  # the base's is not read: the delta has another one
        file = folder / name
        if how == "flipped":
            file.write_bytes(
                content[: len(content) // 2]
                + bytes([content[len(content) // 2] ^ 4])
                + content[len(content) // 2 + 1 :]
            )
        elif how == "cut":
            os.truncate(file, len(content) - 1)
        else:
            file.unlink()
        try:
            apply_delta(base, delta, tmp_path / "out")
        except ValueError as error:
            said = f"{file}.*(content differs|missing, the manifest|bytes, the manifest)"
            assert re.search(said, str(error)) and not (tmp_path / "out").exists()
        else:  # a bit of the base that the delta replaces
            assert (which, how) == ("base", "flipped")
            assert files(tmp_path / "out") == files(whole)
            shutil.rmtree(tmp_path / "out")
        file.write_bytes(content)
    assert files(apply_delta(base, delta, tmp_path / "out")) == files(whole)


def test_a_delta_that_does_not_lead_there_is_refused(chain: list[Path], tmp_path: Path) -> None:
    """Its manifest doesn't fit its files, or what the base says of itself isn't so."""
    delta, out = tmp_path / "delta 1", tmp_path / "out"
    manifest = json.loads((delta / MANIFEST).read_text())
    rows = manifest["rows"]["tables/item.parquet"]
    spoiled = [
        {"rows": {"tables/item.parquet": rows | x}} for x in ({"block": 0}, {"block": 7}, {"rows": 3}, {"base": 0})
    ]
    for wrong in (*spoiled, {"rows": {}}, {"result": "0" * 64}):
        (delta / MANIFEST).write_text(json.dumps(manifest | wrong))
        with pytest.raises(ValueError, match=r"delta 1 does not lead to what it tells \(.*\); take the whole export"):
            apply_delta(chain[0], delta, out)
    (delta / MANIFEST).write_text(json.dumps(manifest | {"pyarrow": "1.2.3"}))
    with pytest.raises(ValueError, match=r"made with pyarrow 1.2.3, and pyarrow .* install pyarrow==1.2.3, or take"):
        apply_delta(chain[0], delta, out)
    with pytest.raises(ValueError, match="holds 'export', expected 'delta'; check the path"):
        apply_delta(chain[0], chain[1], out)
    with pytest.raises(FileNotFoundError, match="expected a finished 'export' folder"):
        make_delta(tmp_path / "nowhere", chain[1], out)
    with open(chain[0] / "tables/item.parquet", "r+b") as f:
        f.write(b"x")
    with pytest.raises(ValueError, match="content differs"):
        make_delta(chain[0], chain[1], out)
    assert not out.exists()


def test_a_full_disk_leaves_nothing(chain: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        apply_delta(chain[0], tmp_path / "delta 1", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_follow_the_rows_that_changed(dtype: str, tmp_path: Path) -> None:
    """At most 1.2 times what the changed rows and their ids take."""
    rng, rows, dim = np.random.default_rng(0), 20_000, 64
    vectors = rng.standard_normal((rows, dim), np.float32)
    old: Rows = [(i * 7, v) for i, v in enumerate(vectors.tolist())]
    changed = rng.choice(rows, 1000, replace=False)
    vectors[changed] += 1
    new: Rows = [(i * 7, v) for i, v in enumerate(vectors.tolist())]
    base, whole = (save(tmp_path / n, {"item": x}, "npy", dtype, 4096) for n, x in (("b", old), ("w", new)))
    delta = make_delta(base, whole, tmp_path / "d")
    width = {"fp32": 4 * dim, "fp16": 2 * dim, "int8": dim + 8, "int4": dim // 2 + 4}[dtype]
    assert (delta / "tables/item.parquet").stat().st_size <= 1.2 * len(changed) * (width + 8)
