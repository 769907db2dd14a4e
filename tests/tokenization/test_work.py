"""Unfinished folders: kept when a run dies, taken up only by the same run, and whole when they have their name."""

from pathlib import Path

import pytest

from placerank.data.manifest import write_manifest
from placerank.tokenization.ranks import Ranks
from placerank.tokenization.work import partial_of, resumable_folder

ABOUT = {"config": {"a": 1, "b": {"c": [1, 2]}}, "path": Path("x")}


def test_a_dead_run_is_taken_up_and_becomes_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        pytest.raises(KeyboardInterrupt),
        resumable_folder(out, ABOUT, resume=False, overwrite=False, ranks=Ranks()) as folder,
    ):
        (folder / "half").write_text("done")
        raise KeyboardInterrupt
    assert not out.exists() and (partial_of(out) / "whole/half").exists()
    with (
        pytest.raises(FileExistsError, match="was begun and has not finished; pass --resume"),
        resumable_folder(out, ABOUT, resume=False, overwrite=False, ranks=Ranks()),
    ):
        pass
    other = {"config": {"a": 1, "b": {"c": [1]}}, "path": Path("x")}
    with (
        pytest.raises(ValueError, match=r"other settings \(config\.b\.c: \[1, 2\], now \[1\]\)"),
        resumable_folder(out, other, resume=True, overwrite=False, ranks=Ranks()),
    ):
        pass
    with resumable_folder(out, ABOUT, resume=True, overwrite=False, ranks=Ranks()) as folder:
        assert (folder / "half").read_text() == "done"
        write_manifest(folder, "raw", {})
    assert sorted(p.name for p in out.iterdir()) == ["half", "manifest.json"] and not partial_of(out).exists()


def test_overwrite_replaces_what_placerank_wrote_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with resumable_folder(out, ABOUT, resume=False, overwrite=False, ranks=Ranks()) as folder:
        write_manifest(folder, "raw", {})
    with (
        pytest.raises(FileExistsError, match="exists; choose another folder, or pass --overwrite"),
        resumable_folder(out, ABOUT, resume=True, overwrite=False, ranks=Ranks()),
    ):
        pass
    (partial_of(out) / "whole").mkdir(parents=True)
    (partial_of(out) / "whole/old").touch()
    with resumable_folder(out, ABOUT, resume=False, overwrite=True, ranks=Ranks()) as folder:
        assert not (folder / "old").exists()
        (folder / "new").touch()
        write_manifest(folder, "raw", {})
    assert (out / "new").exists() and [p.name for p in tmp_path.iterdir()] == ["out"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    with (
        pytest.raises(FileExistsError, match="was not written by placerank"),
        resumable_folder(mine, ABOUT, resume=False, overwrite=True, ranks=Ranks()),
    ):
        pass
    assert (mine / "thesis.txt").exists()
