"""``prepare`` on several threads: the same bytes as on one; errors of any of them, and Ctrl-C."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_tables import impressions, parts, same, ways, write

from placerank.data.manifest import read_manifest
from placerank.data.preparation import buckets, samples, tasks
from placerank.data.preparation import prepare as module
from placerank.data.preparation.prepare import PrepareConfig, prepare


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many buckets of few rows."""
    monkeypatch.setattr(module, "_BUCKET_ROWS", 40)
    monkeypatch.setattr(samples, "_CANDIDATES", 90)
    monkeypatch.setattr(buckets, "_WAITING", 50)


@pytest.mark.parametrize("few_files", [False, True])
@pytest.mark.parametrize("way", ways())
def test_the_same_bytes_on_any_number_of_threads(
    tmp_path: Path, way: str, few_files: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, options = ways()[way]
    if few_files:
        monkeypatch.setattr(module, "MOST_FILES", 4)
        monkeypatch.setattr(buckets, "MOST_FILES", 4)
    raw = parts(tmp_path / "raw", source, one_file=few_files)
    found = []
    for threads in (1, 2, 5):
        out = prepare(PrepareConfig(input=raw, out=tmp_path / str(threads), **options), threads)
        assert same(tmp_path / "1", out)
        found.append(read_manifest(out, "prepared", verify=True))
        for name in ("created", "config", "environment"):
            del found[-1][name]
    assert found[0] == found[1] == found[2]
    assert (tmp_path / "5" / "rejected").exists() == (way == "bad rows")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2", "5", "raw"]


def in_forty_parts(folder: Path) -> Path:
    """A block each; a bad row in the second."""
    source = impressions()
    source["label"][-1] = 3
    table, raw = pa.table(source), write(folder, source)
    (raw / "interactions.parquet").unlink()
    (raw / "interactions").mkdir()
    for i in range(40):
        pq.write_table(table.slice(10 * i, 10), raw / "interactions" / f"{i:02d}.parquet")
    pq.write_table(table.slice(390), raw / "interactions" / "01.parquet")
    return raw


def slowed(of: Any, name: str, then: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads in which a function was called, each call after a while."""
    call, called = getattr(of, name), []

    def slow(*args: Any) -> Any:
        called.append(threading.current_thread().name)
        time.sleep(0.05)
        then()
        return call(*args)

    monkeypatch.setattr(of, name, slow)
    return called


def test_an_error_of_one_thread_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = in_forty_parts(tmp_path / "raw")
    blocks = slowed(module.Seen, "add_block", lambda: None, monkeypatch)
    with pytest.raises(ValueError, match="row 9, column 'label': got 3, expected 0 or 1"):
        prepare(PrepareConfig(input=raw, out=tmp_path / "out"), 2)
    assert 0 < len(blocks) < 15  # of 20
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


def test_ctrl_c_leaves_nothing_and_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write(tmp_path / "raw", impressions(users=30))
    threads = threading.active_count()

    def interrupted(*args: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    written = slowed(tasks, "pieces_of_bucket", lambda: None, monkeypatch)
    monkeypatch.setattr(module.Job, "take_over", interrupted)  # after the pass; and in it, below
    for moment in ("take_over", "wait"):
        with pytest.raises(KeyboardInterrupt):
            prepare(PrepareConfig(input=raw, out=tmp_path / "out"), 2)
        assert [p.name for p in tmp_path.iterdir()] == ["raw"] and threading.active_count() == threads
        if moment == "take_over":
            assert len(written) == 10 and len(set(written)) == 2, "buckets on two threads"
            monkeypatch.setattr(tasks, "wait", interrupted)
