"""``prepare`` on several ranks: the same bytes as on one; errors and deaths of any of them."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_tables import impressions, parts, run, same, ways, write

from placerank.data import manifest as manifest_module
from placerank.data.manifest import read_manifest
from placerank.data.preparation import buckets, samples, writer
from placerank.data.preparation import prepare as module

SIZES = {"prepare._BUCKET_ROWS": 40, "samples._CANDIDATES": 90, "buckets._WAITING": 50}
FEW_FILES = {"prepare.MOST_FILES": 4, "buckets.MOST_FILES": 4}


def shrink(sizes: dict[str, int]) -> None:
    """Set constants of modules, in this process."""
    for name, size in sizes.items():
        of, _, constant = name.partition(".")
        setattr({"prepare": module, "samples": samples, "buckets": buckets}[of], constant, size)


def on_ranks(sizes: dict[str, int], raw: Path, options: dict[str, Any]) -> list[str] | str:
    """``prepare`` in a rank; what it warned of, or its error."""
    shrink(sizes)
    try:
        folder = run(raw, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return read_manifest(folder, "prepared", verify=True)["summary"]["warnings"]


@pytest.mark.parametrize(
    ("way", "few_files"), [("impressions", True), ("own columns", False), ("visits", False), ("bad rows", False)]
)
def test_the_same_bytes_at_any_number_of_ranks(
    tmp_path: Path, ranks: Callable[..., list[Any]], way: str, few_files: bool
) -> None:
    source, options = ways()[way]
    sizes = SIZES | (FEW_FILES if few_files else {})
    raw = parts(tmp_path / "raw", source, one_file=few_files)
    told = {}
    for world in (1, 2, 3):
        told[world] = ranks(world, on_ranks, sizes, raw, options | {"out": tmp_path / str(world)})
    assert told == {world: [told[1][0]] * world for world in (1, 2, 3)}
    manifests = [read_manifest(tmp_path / str(world), "prepared") for world in (1, 2, 3)]
    for manifest, world in zip(manifests, (1, 2, 3), strict=True):
        assert same(tmp_path / "1", tmp_path / str(world))
        for name in ("created", "config", "environment"):
            del manifest[name]
        assert manifest == manifests[0]
    assert len(list((tmp_path / "1" / "train").iterdir())) > 4, "several buckets"
    assert (tmp_path / "1" / "rejected").exists() == (way == "bad rows")
    if way == "bad rows":
        aside = pq.read_table(tmp_path / "3" / "rejected")
        assert sorted(aside["row"].to_pylist()) == sorted(
            i if i < 90 or few_files else i - 90 for i in range(400) if i % 9 == 0 or i == 1
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2", "3", "raw"]


def test_more_ranks_than_row_groups(tmp_path: Path, ranks: Callable[..., list[Any]]) -> None:
    raw = write(tmp_path / "raw", impressions())
    ranks(3, on_ranks, {}, raw, {"out": tmp_path / "3"})
    assert same(run(raw, out=tmp_path / "1"), tmp_path / "3")


def test_an_error_of_one_rank_is_that_of_all(tmp_path: Path, ranks: Callable[..., list[Any]]) -> None:
    source = impressions()
    source["label"][-1] = 3
    raw = parts(tmp_path / "raw", source, one_file=True)
    told = ranks(2, on_ranks, SIZES, raw, {"out": tmp_path / "out"})
    assert told[0] == told[1] and "interactions.parquet: row 399, column 'label': got 3, expected 0 or 1" in told[0]
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    told = ranks(2, on_ranks, SIZES, raw, {"out": tmp_path / "out"})
    assert told[0] == told[1] and "was not written by placerank" in told[0]


def blocks_read(raw: Path, out: Path) -> int:
    """How many blocks a rank puts into buckets while another one has an error at once."""
    add_block, count = module.Seen.add_block, 0

    def slow(*args: Any) -> None:
        nonlocal count
        count += 1
        time.sleep(0.2)
        add_block(*args)

    module.Seen.add_block = slow  # type: ignore[method-assign]
    told = on_ranks(SIZES, raw, {"out": out})
    assert "got 3, expected 0 or 1" in told
    return count


def test_ranks_stop_when_one_has_an_error(tmp_path: Path, ranks: Callable[..., list[Any]]) -> None:
    source = impressions()
    source["label"][-1] = 3
    table = pa.table(source)
    raw = write(tmp_path / "raw", source)
    (raw / "interactions.parquet").unlink()
    (raw / "interactions").mkdir()
    for i in range(40):  # a block each
        pq.write_table(table.slice(10 * i, 10), raw / "interactions" / f"{i:02d}.parquet")
    pq.write_table(table.slice(390), raw / "interactions" / "00.parquet")
    read = ranks(2, blocks_read, raw, tmp_path / "out")
    assert read[0] == 0 and read[1] < 15  # of 20


def killed(sizes: dict[str, int], raw: Path, options: dict[str, Any], which: int, moment: int) -> None:
    """``prepare`` in which a rank kills itself at some moment; the others end with the error that they get."""
    left = moment

    def at_each_call(of: Any, name: str) -> None:
        call = getattr(of, name)

        def counted(*args: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and int(os.environ["RANK"]) == which:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **more)

        setattr(of, name, counted)

    at_each_call(buckets.BucketWriter, "_flush")
    at_each_call(buckets.Bucket, "save")
    at_each_call(writer.SplitWriter, "write")
    at_each_call(writer.SplitWriter, "close")
    at_each_call(writer.SplitWriter, "take_over")
    at_each_call(module, "write_users")
    at_each_call(module, "write_manifest")
    at_each_call(manifest_module, "replace_folder")
    with suppress(BaseException):
        on_ranks(sizes, raw, options)
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_ranks_leave_nothing_that_is_taken_for_whole(tmp_path: Path, ranks: Callable[..., list[Any]]) -> None:
    raw, calm = parts(tmp_path / "raw", impressions(users=30), one_file=True), tmp_path / "calm"
    ranks(1, on_ranks, SIZES, raw, {"out": calm})
    for moment in (1, 12, 30, 90):
        for which in (0, 1) if moment < 90 else (0,):
            ranks(2, killed, SIZES, raw, {"out": tmp_path / "out"}, which, moment, killed=True)
            if (tmp_path / "out").exists():
                assert moment >= 90 and same(calm, tmp_path / "out")
    ranks(2, on_ranks, SIZES, raw, {"out": tmp_path / "out"})
    assert same(calm, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["calm", "out", "raw"]
