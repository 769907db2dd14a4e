"""Folders are whole or not there; a manifest tells what is missing or changed."""

import json
from pathlib import Path
from typing import Any

import pytest
from spoiled import WRONG, fields_of, replaced, spoiled, without

from placerank.data.manifest import (
    KINDS,
    MANIFEST,
    content_hash,
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


def test_a_folder_in_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = r"a/b can't be made: .*file is a file, not a folder"
    with pytest.raises(NotADirectoryError, match=told), whole_folder(tmp_path / "file" / "a" / "b"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


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


SPLIT = {"rows": 9, "positives": 3, "mean_history": 1.5, "row_groups": {"part-00000.parquet": [9]}}
FIELDS: dict[str, dict[str, Any]] = {
    "raw": {},
    "prepared": {
        "tables": {"item": 4, "user": 3, "category": 2},
        "splits": {"train": SPLIT},
        "history_length": 50,
        "user_columns": ["age"],
        "source": "check-ins",
    },
    "align": {"encoder": {}, "prompts": {}, "items": 9},
    "tokenizer": {"tokenizer": "hgit", "options": {}, "dim": 8, "encoder": {}},
    "tokens": {"lineage": ["ab"], "items": 9, "levels": 3, "codes": 8, "lookup": "codes"},
    "user_tokens": {"lineage": ["ab"], "users": 9, "levels": 3, "codes": 8, "lookup": "codes"},
    "evaluation": {"trained": {"settings": {}}},
    "comparison": {},
    "lists": {},
    "advisor": {"step": 9},
    "export": {"tables": {"item": {"rows": 9, "dim": 8, "format": "npy", "dtype": "fp32", "file": "item.npy"}}},
    "delta": {
        "base": "ab",
        "result": "cd",
        "pyarrow": "26.0.1",
        "rows": {"catalog.parquet": {"rows": 9, "base": 7, "block": 64, "changed": 3, "gone": 0}},
    },
}


def folder_of(kind: str, folder: Path) -> dict[str, Any]:
    """Make a folder of a kind; returns its manifest."""
    folder.mkdir()
    (folder / "a.txt").write_text("abc")
    write_manifest(folder, kind, {"seed": 1}, {"source": "123"}, **FIELDS[kind])
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return manifest


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_that_readers_take_is_checked(kind: str, tmp_path: Path) -> None:
    manifest = folder_of(kind, tmp_path / "a")
    assert FIELDS[kind].keys() == KINDS[kind].fields.keys() and read_manifest(tmp_path / "a", kind) == manifest

    def refused(changed: Any) -> str:
        (tmp_path / "a" / MANIFEST).write_text(json.dumps(changed))
        with pytest.raises(ValueError) as error:
            read_manifest(tmp_path / "a", kind)
        said = str(error.value)
        assert said.startswith(str(tmp_path / "a")) and "\n" not in said, said
        return said

    for way in fields_of({name: manifest[name] for name in ("content_hash", "made_from", "files", *FIELDS[kind])}):
        name, value = ".".join(map(str, way)), manifest
        for step in way:
            value = value[step]
        if (
            (way[0] in ("made_from", "files") and len(way) == 2)
            or isinstance(way[-1], int)
            or way[-1] in ("train", "part-00000.parquet")
        ):
            continue  # one fewer is another folder's manifest, not a damaged one
        if not (way[0] in ("tables", "rows") and kind in ("export", "delta") and len(way) == 2):
            assert f"'{name}' is missing; it is damaged, or another version of placerank wrote it: make" in refused(
                without(manifest, way)
            )
        for wrong in WRONG:
            if type(wrong) is not type(value) and not (type(value) is float and type(wrong) is int and wrong >= 0):
                refused(replaced(manifest, way, wrong))
    assert "expected 0 to 2**53" in refused(replaced(manifest, ("format",), -1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_spoiled_manifest_is_read_or_told_in_one_line(kind: str, tmp_path: Path) -> None:
    """Some hundred ways each to spoil a file; none ends in another error."""
    manifest, tries = folder_of(kind, tmp_path / "a"), 0
    for done, text in spoiled(manifest):
        (tmp_path / "a" / MANIFEST).write_text(text)
        tries += 1
        try:
            read_manifest(tmp_path / "a", kind, verify=True)
        except (ValueError, OSError) as error:
            assert str(tmp_path / "a") in str(error) and "\n" not in str(error), f"{done}: {error}"
        except Exception as error:
            raise AssertionError(f"{done}: {error!r}") from error
    assert tries > 100


def test_formats(tmp_path: Path) -> None:
    manifest = folder_of("raw", tmp_path / "a")
    assert manifest["format"] == 1
    file = tmp_path / "a" / MANIFEST
    file.write_text(json.dumps(without(manifest, ("format",))))
    assert read_manifest(tmp_path / "a", "raw")["content_hash"], "one from before the numbers"
    file.write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(ValueError, match=r"format 2, this placerank reads up to 1: a newer one wrote it; read it with"):
        read_manifest(tmp_path / "a", "raw")


def test_a_prepared_folder_with_a_row_a_candidate_is_refused(tmp_path: Path) -> None:
    manifest = folder_of("prepared", tmp_path / "a")
    for old in (manifest | {"format": 1}, without(manifest, ("format",))):
        (tmp_path / "a" / MANIFEST).write_text(json.dumps(old))
        with pytest.raises(
            ValueError,
            match=r"got format 1 of an older placerank, expected 2 or more; make the folder again with placerank prep",
        ):
            read_manifest(tmp_path / "a", "prepared")


def test_the_content_hash_of_any_folder_of_ours(tmp_path: Path) -> None:
    manifest = folder_of("tokens", tmp_path / "a")
    assert content_hash(tmp_path / "a") == manifest["content_hash"]
    assert content_hash(tmp_path) is None
    for text in ("{", "[]", '{"name": "a web app"}', '{"kind": "plain", "content_hash": "x"}'):
        (tmp_path / MANIFEST).write_text(text)
        assert content_hash(tmp_path) is None
