"""Folders are whole or not there; a manifest tells what is missing or changed."""

import json
from pathlib import Path

import pytest

from placerank.data.manifest import (
    drop_lines_after,
    environment,
    read_manifest,
    whole_file,
    whole_folder,
    write_json,
    write_manifest,
)


def make(path: Path, text: str = "abc", overwrite: bool = False) -> None:
    with whole_folder(path, overwrite) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "a.txt").write_text(text)
        write_manifest(folder, "raw", {"seed": 1}, {"source": "123"}, rows=3)


def test_a_manifest_says_what_is_there(tmp_path: Path) -> None:
    make(tmp_path / "a")
    manifest = read_manifest(tmp_path / "a", "raw", verify=True)
    assert manifest["rows"] == 3 and manifest["config"] == {"seed": 1} and manifest["made_from"] == {"source": "123"}
    assert manifest["files"]["part/a.txt"]["bytes"] == 3
    assert manifest["environment"]["packages"]["torch"] == environment()["packages"]["torch"]
    make(tmp_path / "b")
    assert read_manifest(tmp_path / "b", "raw")["content_hash"] == manifest["content_hash"]
    make(tmp_path / "c", "abd")
    assert read_manifest(tmp_path / "c", "raw")["content_hash"] != manifest["content_hash"]


def test_what_is_wrong_with_a_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"manifest.json not found: expected a finished 'raw' folder"):
        read_manifest(tmp_path, "raw")
    make(tmp_path / "a")
    with pytest.raises(ValueError, match="holds 'raw', expected 'prepared'; check the path"):
        read_manifest(tmp_path / "a", "prepared")
    file = tmp_path / "a" / "part" / "a.txt"
    file.write_text("abd")
    with pytest.raises(ValueError, match="content differs from what was written"):
        read_manifest(tmp_path / "a", "raw", verify=True)
    file.write_text("ab")
    with pytest.raises(ValueError, match="2 bytes, the manifest says 3 bytes; make the folder again"):
        read_manifest(tmp_path / "a", "raw")
    file.unlink()
    with pytest.raises(ValueError, match="missing, the manifest says 3 bytes"):
        read_manifest(tmp_path / "a", "raw")


def test_an_error_leaves_everything_as_it_was(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "a", overwrite=True) as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert read_manifest(tmp_path / "a", "raw", verify=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_nothing_of_somebody_else_is_replaced(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(FileExistsError, match="exists; choose another folder, or pass --overwrite"):
        make(tmp_path / "a")
    make(tmp_path / "a", "new", overwrite=True)
    assert (tmp_path / "a" / "part" / "a.txt").read_text() == "new"
    (tmp_path / "mine").mkdir()
    make(tmp_path / "mine", overwrite=True)  # an empty folder is nobody's loss
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").touch()
    with pytest.raises(FileExistsError, match=r"was not written by placerank .* so it is not replaced"):
        make(tmp_path / "thesis", overwrite=True)


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"path": Path("x"), "list": (1, 2)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"path": "x", "list": [1, 2]}
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"bad": {1, 2}})
    assert json.loads((tmp_path / "a.json").read_text())["list"] == [1, 2]


def test_a_file_is_the_old_one_or_the_whole_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), whole_file(path) as tmp:
        tmp.write_text("half")
        assert path.read_text() == "old"
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    with whole_file(path) as tmp:
        tmp.write_text("new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_lines_of_steps_to_be_done_again_are_dropped_and_so_is_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    drop_lines_after(path, 0)
    assert not path.exists()
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 2, "lo')
    drop_lines_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
