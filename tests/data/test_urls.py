"""URLs: paths that are sound, one copy a machine, and folders that are whole or not there, on a server."""

import copy
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from at_urls import names, put, work_folder
from raw_tables import impressions, run, write

from placerank.data import urls
from placerank.data.batches.loader import SampleLoader
from placerank.data.manifest import content_hash, read_manifest, whole_folder, write_manifest
from placerank.data.plain import set_places
from placerank.data.urls import Url, UrlError, at_work, fetched, place


@pytest.fixture(autouse=True)
def work(tmp_path: Path) -> Iterator[Path]:
    with work_folder(tmp_path / "work"):
        yield tmp_path / "work"


@pytest.fixture
def there(s3: str, tmp_path: Path) -> Path:
    """A place of this test's own."""
    return place(f"{s3}/{tmp_path.name}")


# --- paths -----------------------------------------------------------------------------------------------------


def test_a_url_stays_one_whatever_a_path_does() -> None:
    url = place("s3://bucket/a/b")
    for made in (url, Path("s3://bucket/a/b"), place(url), copy.deepcopy(url), pickle.loads(pickle.dumps(url))):
        assert isinstance(place(made), Url) and str(place(made)) == "s3://bucket/a/b"
    assert [str(x) for x in (url / "c", url.parent, url.with_name("d"), url.absolute(), url.resolve())] == [
        "s3://bucket/a/b/c",
        "s3://bucket/a",
        "s3://bucket/a/d",
        "s3://bucket/a/b",
        "s3://bucket/a/b",
    ]
    assert str((url / "c/d").relative_to(url)) == "c/d" and url.name == "b"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("gs://b", "gs://b"),
        ("hdfs://host:8020/a", "hdfs://host:8020/a"),
        ("hdfs:///a", "hdfs://default/a"),
        ("file:///a%20b", "/a b"),
        ("a/b:/c", "a/b:/c"),
        ("x:/y", "x:/y"),
        ("/s3://b", "/s3:/b"),
    ],
)
def test_places(text: str, want: str) -> None:
    assert str(place(text)) == want


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("http://b/c", "got the scheme http, expected s3, gs, hdfs or file"),
        ("s3://", "expected s3://BUCKET/PATH"),
        ("file://host/a", "got a host, expected file:///PATH"),
        (Path("hdfs://host/a"), "a Path loses the slashes of a URL"),
    ],
)
def test_no_places(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place(value)


def test_what_needs_this_disk_is_refused(tmp_path: Path) -> None:
    url = place("s3://bucket/a")
    for call in (url.mkdir, lambda: os.path.join(url, "b"), url.unlink):
        with pytest.raises(UrlError, match="s3://bucket/a is not on this disk"):
            call()


def test_settings_hold_urls() -> None:
    @dataclass
    class Config:
        out: Path
        other: Path | None = None
        name: str = "s3://not/a/path"

    config = Config("s3://b/x", Path("s3://b/y"))  # type: ignore[arg-type]
    set_places(config)
    assert isinstance(config.out, Url) and isinstance(config.other, Url) and config.name == "s3://not/a/path"
    with pytest.raises(ValueError, match=r"out: ftp://b/x: got the scheme ftp"):
        set_places(Config("ftp://b/x"))  # type: ignore[arg-type]


# --- errors ----------------------------------------------------------------------------------------------------


def test_errors_say_what_to_do(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UrlError, match="s3://no-such-bucket/x: it is not there: check the path"):
        place("s3://no-such-bucket/x").read_text()
    url = place("s3://no-such-bucket/x")
    with pytest.raises(UrlError, match="there is no such bucket: check the name"), urls.told(url):
        urls.where(url)[0].open_output_stream("no-such-bucket/x").close()
    with pytest.raises(UrlError, match="it is not there"):
        fetched(place(f"{s3}/nothing"))
    refused = OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body.")
    with pytest.raises(UrlError, match=r"it gives no access: check AWS_ACCESS_KEY_ID") as told, urls.told(url):
        raise refused
    assert len(str(told.value).splitlines()) == 1
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UrlError, match="the server can't be reached: check AWS_ENDPOINT_URL"):
        place(f"{s3}/x").exists()


# --- copies ----------------------------------------------------------------------------------------------------


def test_a_copy_is_fetched_once(there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new/d").mkdir(parents=True)
    (tmp_path / "new/a").write_text("a")
    (tmp_path / "new/d/b").write_text("b")
    put(tmp_path / "new", str(there))
    first = fetched(there)
    assert first.name == there.name and sorted(p.name for p in first.rglob("*")) == ["a", "b", "d"]
    assert fetched(there / "d/b").read_text() == "b" and fetched(tmp_path) == tmp_path
    monkeypatch.setattr(urls, "get_files", None)
    assert fetched(there) == first


def test_another_content_is_another_copy(there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/a").write_text("a")
    put(tmp_path / "new", str(there))
    first = fetched(there)
    (tmp_path / "new/a").write_text("other")
    put(tmp_path / "new", str(there))
    assert (fetched(there) / "a").read_text() == "other" and first.exists(), "this process may read it still"
    for lock in urls._held.values():
        lock.close()
    monkeypatch.setattr(urls, "_held", {})
    (tmp_path / "new/a").write_text("the third")
    put(tmp_path / "new", str(there))
    last = fetched(there)
    assert not first.exists() and [p for p in last.parent.parent.iterdir() if p.is_dir()] == [last.parent]


def test_a_copy_is_whole_or_not_there(there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / "new").mkdir(exist_ok=True)
        (tmp_path / "new" / name).write_text(name)
    put(tmp_path / "new", str(there))
    real = urls.get_files

    def torn(folder: Path, names: list[str], into: Path) -> None:
        real(folder, names[:1], into)
        raise OSError("cut")

    monkeypatch.setattr(urls, "get_files", torn)
    with pytest.raises(OSError, match="cut"):
        fetched(there)
    monkeypatch.setattr(urls, "get_files", real)
    assert sorted(p.name for p in fetched(there).iterdir()) == ["a", "b"]


def test_what_changes_while_it_is_fetched_is_told(there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").mkdir()
    for name in ("a", "b"):
        (tmp_path / "new" / name).write_text(name)
    put(tmp_path / "new", str(there))
    real = urls.get_files

    def late(folder: Path, names: list[str], into: Path) -> None:
        real(folder, names, into)
        urls.delete_files(there, ["b"])

    monkeypatch.setattr(urls, "get_files", late)
    with pytest.raises(UrlError, match="changed while it was read; run again when nobody writes there"):
        fetched(there)


# --- folders ---------------------------------------------------------------------------------------------------


def make(out: Path, files: dict[str, str], overwrite: bool = False) -> None:
    with whole_folder(out, overwrite) as folder:
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        write_manifest(folder, "raw", {})


OLD, NEW = {"a": "old", "d/gone": "old"}, {"a": "newer", "b": "new", "e/c": "new"}


def test_a_folder_is_put_whole_and_replaced(there: Path, work: Path) -> None:
    make(there, OLD)
    assert names(there) == ["a", "d/gone", "manifest.json"]
    with pytest.raises(FileExistsError, match=r"exists; choose another folder, or pass --overwrite"):
        make(there, NEW)
    make(there, NEW, overwrite=True)
    assert names(there) == ["a", "b", "e/c", "manifest.json"] and (there / "a").read_text() == "newer"
    read_manifest(fetched(there), "raw", verify=True)
    assert not list(at_work(there).parent.iterdir())


def test_what_placerank_did_not_write_stays(there: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/thesis.txt").write_text("years")
    put(tmp_path / "own", str(there))
    for overwrite in (False, True):
        with pytest.raises(FileExistsError):
            make(there, NEW, overwrite=overwrite)
    assert names(there) == ["thesis.txt"] and (there / "thesis.txt").read_text() == "years"


class Cut(BaseException):
    pass


@pytest.mark.parametrize("before", [None, OLD])
def test_ended_at_any_request_nothing_partial_is_whole(
    there: Path, monkeypatch: pytest.MonkeyPatch, before: dict[str, str] | None
) -> None:
    """The server gets so many changes and no more, as when the process is killed there."""
    make(there, NEW, overwrite=True)
    wanted, seen, at = content_hash(there), set(), 0
    monkeypatch.setattr(urls, "_AT_ONCE", 1)
    put_one, delete_one = urls.put_files, urls.delete_files
    while True:
        if before is None:
            delete_one(there, names(there))
        else:
            make(there, before, overwrite=True)
        left = [at]

        def counted(call: Callable[..., None], left: list[int] = left) -> Callable[..., None]:
            def one(folder: Path, some: Any, *to: Path) -> None:
                for name in some:
                    if left[0] == 0:
                        raise Cut
                    left[0] -= 1
                    call(folder, [name], *to)

            return one

        monkeypatch.setattr(urls, "put_files", counted(put_one))
        monkeypatch.setattr(urls, "delete_files", counted(delete_one))
        try:
            make(there, NEW, overwrite=before is not None)
            ended = False
        except Cut:
            ended = True
        monkeypatch.setattr(urls, "put_files", put_one)
        monkeypatch.setattr(urls, "delete_files", delete_one)
        if not ended:
            break
        try:
            read_manifest(fetched(there), "raw", verify=True)
            seen.add("old" if content_hash(there) != wanted else "new")
        except FileNotFoundError:
            seen.add("none")
        make(there, NEW, overwrite="new" in seen or "old" in seen)
        assert content_hash(there) == wanted and names(there) == ["a", "b", "e/c", "manifest.json"]
        at += 1
    assert at >= 4 and seen == ({"none", "new"} if before is None else {"old", "none", "new"})


def test_two_that_put_at_once_are_told(there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/manifest.json").write_text("{}")
    real, inside = urls.put_files, []

    def put_files(folder: Path, some: Any, url: Path) -> None:
        some = list(some)
        if not inside:
            inside.append(True)
            urls.put_folder(tmp_path / "other", there, "manifest.json")
        real(folder, some, url)

    monkeypatch.setattr(urls, "put_files", put_files)
    with pytest.raises(UrlError, match="another process writes there too"):
        make(there, NEW)


def test_a_shorter_file_is_noticed(there: Path) -> None:
    make(there, NEW)
    system, name = urls.where(there / "b")
    with system.open_output_stream(name) as stream:
        stream.write(b"n")
    with pytest.raises(ValueError, match=r"/b: 1 bytes, the manifest says 3 bytes"):
        read_manifest(there, "raw")


def test_a_folder_that_another_machine_does_not_see_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"is not on this machine.*set TMPDIR to a folder on a disk that all share"):
        urls.check_seen(tmp_path / "theirs")
    urls.check_seen(tmp_path)


# --- samples ---------------------------------------------------------------------------------------------------


def on_ranks(raw: str, out: str, rows: int) -> str:
    from placerank.data.preparation import prepare as module

    module._BUCKET_ROWS = rows  # so that each rank has some
    return str(run(place(raw), out=place(out)))


def test_prepare_and_load_from_there(
    there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: Callable[..., list[Any]]
) -> None:
    source = impressions(users=30)
    raw = write(tmp_path / "raw", source)
    table = pq.read_table(raw / "interactions.parquet")
    (raw / "interactions.parquet").unlink()
    for day, rows in enumerate((slice(0, 150), slice(150, 400))):  # in partition folders
        (raw / f"interactions/day={day}").mkdir(parents=True)
        part = table.slice(rows.start, rows.stop - rows.start)
        pq.write_table(part, raw / f"interactions/day={day}/part.parquet", row_group_size=40)
    here = run(raw, out=tmp_path / "here")
    url = put(raw, f"{there}/raw")
    monkeypatch.setattr(urls, "fetched", None)  # nothing of raw tables is fetched
    one = run(url, out=there / "one")
    two = place(ranks(2, on_ranks, str(url), str(there / "two"), 40)[0])
    assert content_hash(here) == content_hash(one) and read_manifest(one, "prepared")
    assert content_hash(two) == content_hash(on_one_bucketed(raw, tmp_path, monkeypatch))
    for shuffle, split in ((True, "train"), (False, "test")):
        batches = [list(SampleLoader(x, split, 16, shuffle=shuffle, prefetch=0)) for x in (here, one)]
        assert len(batches[0]) == len(batches[1]) > 1
        for a, b in zip(*batches, strict=True):
            for name, value in vars(a).items():
                np.testing.assert_array_equal(np.asarray(value), np.asarray(getattr(b, name)))


def on_one_bucketed(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from placerank.data.preparation import prepare as module

    monkeypatch.setattr(module, "_BUCKET_ROWS", 40)
    return run(raw, out=tmp_path / "bucketed")


def test_a_file_that_goes_while_it_is_read(there: Path, tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", impressions(users=30))
    data = run(raw, out=there / "data", row_group_rows=20)
    loader = SampleLoader(data, "train", 8, prefetch=0)
    batches = iter(loader)
    next(batches)
    urls.delete_files(data, [f"train/{p.name}" for p in (data / "train").iterdir()])
    with pytest.raises(UrlError, match=r"s3://.*/train/part-00000.parquet: it is not there"):
        list(batches)
