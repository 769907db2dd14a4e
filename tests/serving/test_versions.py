"""What is served: the export, deltas that lead on from it, and never what is not whole."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from at_urls import put, work_folder

import placerank
from placerank.data.manifest import MANIFEST, content_hash
from placerank.data.urls import place
from placerank.embeddings import make_delta
from placerank.serving.versions import Versions
from placerank.serving.wire import Asked, Refused

NOW = 1_714_564_800


@pytest.fixture(scope="module")
def want(exports: SimpleNamespace) -> dict[str, Any]:
    """Scores of five items by ``placerank.load``, of exports a and b."""
    found = {}
    for name, export in vars(exports).items():
        ranker = placerank.load(export)
        ids = ranker.item_ids.to_pylist()[1:6]
        found[name] = pytest.approx(ranker.rank(1, None, NOW, candidates=ids)["score"].to_pylist(), abs=1e-5)
    assert found["a"] != found["b"].expected
    return found


@pytest.fixture
def made(exports: SimpleNamespace, want: dict[str, Any], tmp_path: Path) -> SimpleNamespace:
    """``served``, a copy of export a; ``deltas`` and ``work``, empty folders; the hashes ``a`` and ``b``; ``want``."""
    served = Path(shutil.copytree(exports.a, tmp_path / "served"))
    for name in ("deltas", "work"):
        (tmp_path / name).mkdir()
    hashes = {name: str(content_hash(path)) for name, path in vars(exports).items()}
    return SimpleNamespace(served=served, deltas=tmp_path / "deltas", work=tmp_path / "work", want=want, **hashes)


def scores(versions: Versions) -> Any:
    ids = versions.current.ranker.item_ids.to_pylist()[1:6]
    ((version, answer),) = versions.rank([Asked(user=1, time=NOW, candidates=ids)])
    assert version is versions.current and not isinstance(answer, Refused)
    return answer["score"]


def put_in_place(export: Path, served: Path) -> None:
    shutil.rmtree(served)
    shutil.copytree(export, served)


def test_a_new_export_takes_the_place_of_the_old(exports: SimpleNamespace, made: SimpleNamespace) -> None:
    versions = Versions(made.served, None, made.work)
    first = versions.current
    assert (first.content, first.name, versions.error) == (made.a, made.a[:12], None)
    assert scores(versions) == made.want["a"]
    assert not versions.renew() and versions.current is first
    put_in_place(exports.b, made.served)
    assert versions.renew() and versions.current.content == made.b and versions.current.since >= first.since
    assert scores(versions) == made.want["b"]
    assert not versions.renew() and list(made.work.iterdir()) == []


def test_deltas_lead_on(exports: SimpleNamespace, made: SimpleNamespace) -> None:
    """There, and back: the last of what lies there; a server that starts anew comes to the same."""
    versions = Versions(made.served, made.deltas, made.work)
    make_delta(exports.a, exports.b, made.deltas / "monday")
    (made.deltas / ".tuesday.partial-1").mkdir()
    (made.deltas / "no delta").mkdir()
    assert versions.renew() and versions.current.content == made.b
    assert scores(versions) == made.want["b"]
    assert [path.name for path in made.work.iterdir()] == [made.b] and not versions.renew()
    make_delta(exports.b, exports.a, made.deltas / "tuesday")  # a way that comes back to where it was ends before that
    assert not versions.renew() and versions.current.content == made.b
    (made.work / "other").mkdir()
    assert Versions(made.served, made.deltas, made.work / "other").current.content == made.b
    shutil.rmtree(made.deltas / "monday")
    assert versions.renew() and versions.current.content == made.a and list(made.work.iterdir()) == []


def of_a_day(delta: Path, day: int, **told: str) -> None:
    """A delta as if it had been made on that day, with other hashes where some are named."""
    file = delta / MANIFEST
    manifest = json.loads(file.read_text()) | told | {"created": f"2099-01-0{day}T00:00:00+00:00"}
    file.write_text(json.dumps(manifest))


def test_a_missing_delta_is_told_once(
    exports: SimpleNamespace, made: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest delta is of a base to which none leads: what can be reached serves, and it is said."""
    make_delta(exports.a, exports.b, made.deltas / "monday")
    of_a_day(made.deltas / "monday", 1)
    shutil.copytree(made.deltas / "monday", made.deltas / "wednesday")
    of_a_day(made.deltas / "wednesday", 3, base="c" * 64, result="d" * 64)
    versions = Versions(made.served, made.deltas, made.work)
    told = versions.error or ""
    assert versions.current.content == made.b
    assert "wednesday is of the base cccccccccccc, to which no delta leads from " + made.b[:12] in told
    assert not versions.renew() and not versions.renew(again=False)
    assert versions.error == told and caplog.text.count("wednesday is of the base") == 1
    shutil.copytree(made.deltas / "monday", made.deltas / "tuesday")
    of_a_day(made.deltas / "tuesday", 2, base=made.b, result="c" * 64)
    with pytest.raises(ValueError):  # the way is whole, this delta on it is none: that is told instead
        versions.renew()
    assert versions.error and "no delta leads" not in versions.error
    shutil.rmtree(made.deltas / "tuesday")
    of_a_day(made.deltas / "monday", 4)
    assert not versions.renew() and versions.error is None, "what is newer is reached, the other is of another past"
    of_a_day(made.deltas / "wednesday", 5)
    served = json.loads((made.served / MANIFEST).read_text()) | {"created": "2099-02-01T00:00:00+00:00"}
    (made.served / MANIFEST).write_text(json.dumps(served))
    assert not versions.renew() and versions.error is None, "an export newer than all deltas"


def damage(folder: Path, file: str) -> None:
    """Other bytes, as many."""
    path = folder / file
    path.write_bytes(path.read_bytes()[:-1] + b"~")


def test_what_is_not_whole_is_refused_and_the_old_goes_on(
    exports: SimpleNamespace, made: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    versions = Versions(made.served, made.deltas, made.work)
    first = versions.current
    table = next(path for path in sorted((exports.b / "tables").iterdir()) if path.suffix == ".parquet")
    cases: list[tuple[str, Any]] = [
        ("content differs from what was written", lambda: damage(made.served, f"tables/{table.name}")),
        ("missing, the manifest says", lambda: (made.served / "scorer.pt2").unlink()),
        ("is damaged, it is not JSON", lambda: (made.served / MANIFEST).write_text("{")),
        ("manifest.json not found", lambda: (made.served / MANIFEST).unlink()),
    ]
    for text, spoil in cases:
        put_in_place(exports.b, made.served)
        spoil()
        with pytest.raises((ValueError, OSError), match=text):
            versions.renew()
        assert versions.current is first and versions.error is not None and text in versions.error
        assert text in caplog.text and list(made.work.iterdir()) == []
    put_in_place(exports.b, made.served)
    damage(made.served, f"tables/{table.name}")
    with pytest.raises(ValueError, match="content differs"):
        versions.renew(again=False)
    with mock.patch.object(Versions, "_loaded", side_effect=AssertionError("it is known to be damaged")):
        assert not versions.renew(again=False) and versions.error is not None
    damage(made.served, "features.json")
    with pytest.raises(ValueError, match="content differs"):
        versions.renew(again=False)  # other files: somebody may have mended it
    put_in_place(exports.a, made.served)
    assert not versions.renew(again=False) and versions.error is None, "back to what is served"
    make_delta(exports.a, exports.b, made.deltas / "monday")
    told = json.loads((made.deltas / "monday" / MANIFEST).read_text())
    damage(made.deltas / "monday", next(iter(told["rows"])))
    with pytest.raises(ValueError, match="content differs"):
        versions.renew()
    assert versions.current is first
    with pytest.raises(ValueError, match="content differs"):
        Versions(made.served, made.deltas, made.work)
    shutil.rmtree(made.deltas / "monday")
    assert not versions.renew() and versions.error is None
    assert scores(versions) == made.want["a"]


def test_a_ranker_without_finite_scores_is_refused(exports: SimpleNamespace, made: SimpleNamespace) -> None:
    versions = Versions(made.served, None, made.work)
    put_in_place(exports.b, made.served)
    with (
        mock.patch("placerank.serving.versions.rank_together", return_value=[{"item_id": [1], "score": [None]}]),
        pytest.raises(ValueError, match="gives scores that are no finite numbers"),
    ):
        versions.renew()
    assert versions.current.content == made.a and versions.renew() and versions.current.content == made.b


def test_behind_a_url(exports: SimpleNamespace, made: SimpleNamespace, s3: str, tmp_path: Path) -> None:
    with work_folder(tmp_path / "tmp"):
        url, deltas = put(exports.a, f"{s3}/serving/export"), place(f"{s3}/serving/deltas")
        versions = Versions(url, deltas, made.work)
        assert versions.current.content == made.a and not versions.renew()
        put(make_delta(exports.a, exports.b, tmp_path / "delta"), f"{s3}/serving/deltas/monday")
        assert versions.renew() and scores(versions) == made.want["b"]
        assert [path.name for path in made.work.iterdir()] == [made.b], "copies of what is past are gone"
