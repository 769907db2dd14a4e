"""Bucket files: every row once, the rows of a user together, few files open at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from placerank.data.arrays import hash_ids
from placerank.data.preparation import buckets as module
from placerank.data.preparation.buckets import BucketWriter, bucket_rows, by_number, part, rows_schema, sharing, times


def blocks(rows: int, size: int, text: bool) -> list[pa.Table]:
    """As the checks of the schema give them."""
    rng = np.random.default_rng(0)
    user = rng.integers(0, 300, rows)
    request = pa.array([f"r{i // 3}" for i in range(rows)], mask=rng.random(rows) < 0.2)
    table = pa.table(
        {
            "user_id": pa.array([f"u{i}" for i in user]) if text else user,
            "timestamp": np.arange(rows),
            "label": rng.integers(0, 2, rows).astype(np.int8),
            "user_lat": pa.array(rng.random(rows), mask=rng.random(rows) < 0.5),
            "user_lon": pa.array(rng.random(rows), mask=rng.random(rows) < 0.5),
            "request_id": request,
            "probability": pa.array(rng.random(rows), pa.float32()),
            "utc_offset": pa.array(rng.integers(-720, 840, rows), pa.float32()),
            "item_index": pa.array(rng.integers(0, 9, rows), pa.int32()),
        }
    )
    return [table.slice(at, size) for at in range(0, rows, size)]


def read(file: Path) -> pa.Table:
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_file(source).read_all()


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(("most", "buckets"), [(256, 1), (256, 7), (4, 4), (4, 5), (4, 16), (6, 31)])
def test_every_row_lies_in_the_bucket_of_its_user(
    tmp_path: Path, text: bool, most: int, buckets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_FILES", most)
    monkeypatch.setattr(module, "_WAITING", 150)
    open_files: list[int] = []
    new_file = pa.ipc.new_file

    def counted(*args: Any, **more: Any) -> pa.ipc.RecordBatchFileWriter:
        writer = new_file(*args, **more)
        found = [fd.resolve() for fd in Path("/proc/self/fd").iterdir()]
        open_files.append(sum(tmp_path in file.parents and file.suffix == ".arrow" for file in found))
        return writer

    monkeypatch.setattr(pa.ipc, "new_file", counted)
    source = blocks(1000, 70, text)
    for writer in range(2):  # as two ranks do
        with BucketWriter(tmp_path / "wide" / str(writer), buckets, sharing(buckets)) as wide:
            for block in source[writer::2]:
                wide.write(block)
    found = by_number(tmp_path.glob("wide/*/*"))
    if sharing(buckets) > 1:
        for files in found.values():
            part(files, tmp_path / "parted" / "0", buckets)
        assert not list(tmp_path.glob("wide/*/*"))
        found = by_number(tmp_path.glob("parted/*/*"))
    assert max(open_files) <= most + 1  # and the one that is read
    assert list(found) == sorted(found)
    tables = {number: pa.concat_tables(read(f) for f in files) for number, files in found.items()}
    for number, table in tables.items():
        user = table["user"].combine_chunks()
        assert {int(h) % buckets for h in hash_ids(user)} == {number}
    got = pa.concat_tables(tables.values()).sort_by("time")
    whole = pa.concat_tables(source)
    assert got["time"].to_pylist() == list(range(1000))
    alike = [(name, name) for name in ("label", "probability", "utc_offset")]
    for mine, theirs in (("user", "user_id"), ("item", "item_index"), *alike):
        assert got[mine].to_pylist() == whole[theirs].to_pylist()
    assert sorted(t for files in found.values() for f in files for some in times(f) for t in some.tolist()) == list(
        range(1000)
    )


@pytest.mark.parametrize("text", [False, True])
def test_rows_have_their_schema(text: bool) -> None:
    block = blocks(40, 40, text)[0]
    rows, schema = bucket_rows(block, 7), rows_schema(pa.string() if text else pa.int64())
    assert rows.schema == schema and bucket_rows(block[:0], 7) == schema.empty_table()
    assert rows["bucket"].to_pylist() == [int(h) % 7 for h in hash_ids(block["user_id"].combine_chunks())]
    known = rows.filter(pa.compute.is_finite(rows["lat"]))["lat"].to_pylist()
    assert known == block["user_lat"].cast(pa.float32()).drop_null().to_pylist() and len(known) < 40
    ids = dict(zip(block["request_id"].to_pylist(), rows["request"].to_pylist(), strict=True))
    assert ids[None] == 0 and len(set(ids.values())) == len(ids)
