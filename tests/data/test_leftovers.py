"""What a dead process left goes, and what a living one, another machine's or a user's stays."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from placerank.data import leftovers
from placerank.data.leftovers import remove_leftovers, unfinished
from placerank.data.manifest import read_manifest, whole_file, whole_folder, write_manifest

DIES = """
import os, signal, sys
from pathlib import Path
from placerank.data import manifest
from placerank.data.manifest import whole_file, whole_folder, write_manifest
out, where = Path(sys.argv[1]), sys.argv[2]
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
with whole_folder(out, overwrite=True) as folder:
    with whole_file(folder / "a.txt") as tmp:
        tmp.write_text("half")
        if where == "file":
            die()
    write_manifest(folder, "raw", {})
    if where == "folder":
        die()
    rename = os.rename
    if where == "between":
        manifest.os.rename = lambda a, b: die() if b == out else rename(a, b)
    manifest.shutil.rmtree = die
"""


def make(out: Path, text: str) -> None:
    with whole_folder(out, overwrite=True) as folder:
        (folder / "a.txt").write_text(text)
        write_manifest(folder, "raw", {})


def kill(out: Path, where: str) -> None:
    run = subprocess.run([sys.executable, "-P", "-c", DIES, str(out), where], timeout=120)
    assert run.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("where", "left"), [("file", "old"), ("between", "old"), ("after", "half")])
def test_the_next_run_finds_the_old_or_the_new_and_nothing_else(where: str, left: str, tmp_path: Path) -> None:
    """Killed in a file, between the two renames, and after them."""
    out = tmp_path / "out"
    make(out, "old")
    kill(out, where)
    assert len(list(tmp_path.iterdir())) == 2, "something is left behind"
    with pytest.raises(FileExistsError), whole_folder(out):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and read_manifest(out, "raw", verify=True)
    assert (out / "a.txt").read_text() == left
    make(out, "new")
    assert (out / "a.txt").read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_only_what_is_certainly_dead_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setattr(leftovers, "place", lambda: "0123abcd")
    start, gone = leftovers._start(os.getpid()), f"0123abcd-{ended.pid}-5"
    assert start is not None and leftovers._start(ended.pid) is None
    mine = unfinished(tmp_path / "x", "partial").name
    assert mine == f".x.partial-0123abcd-{os.getpid()}-{start}"
    keep = [mine, f".x.partial-ffffffff-{ended.pid}-5", ".x.partial", ".x.partial-1", "x.partial-0123abcd-1-1"]
    reused = f".x.partial-0123abcd-{os.getpid()}-{start - 1}"  # the id of a process that is no longer
    for name in (*keep, reused, f".x.partial-{gone}", f".y.old-{gone}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").touch()
    (tmp_path / f".z.txt.tmp-{gone}-0a1b2c3d").touch()
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*keep, "y"]), "y was being replaced, and is back"
    remove_leftovers(tmp_path / "nowhere")


def test_an_unfinished_file_is_named_after_its_owner(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a.txt") as first, whole_file(tmp_path / "a.txt") as second:
        assert first != second and {first.name[:11], second.name[:11]} == {".a.txt.tmp-"}
        first.touch()
        second.touch()
        remove_leftovers(tmp_path)
        assert first.exists() and second.exists()
