"""The lock of a run folder: one holder, a dead one is taken over, and who holds it is told."""

import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from placerank.training import run_lock as module
from placerank.training.run_lock import LOCK, run_lock

HOST = socket.gethostname()


def left_by(run: Path, host: str) -> Path:
    run.mkdir()
    (run / LOCK).write_text(json.dumps({"pid": 4321, "host": host, "since": "2026-01-02T03:04:05+00:00"}))
    return run / LOCK


def hold_and_die(run: Path) -> None:
    with run_lock(run):
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_second_is_told_who_holds_it_and_leaves_it_alone(tmp_path: Path) -> None:
    run = tmp_path / "deep/run"
    with run_lock(run):
        told = (
            rf"run is being trained into by process {os.getpid()} on {HOST} \(since 20.*wait for it, end it, or choose"
        )
        with pytest.raises(FileExistsError, match=told), run_lock(run):
            pass
        assert (run / LOCK).is_file()
    assert not run.exists(), "a folder made for the lock alone goes with it"


def test_a_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(NotADirectoryError, match="file is a file,"), run_lock(path):
            pass


def test_a_folder_with_files_stays(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with run_lock(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_that_of_a_killed_process_is_taken_over_and_told(
    tmp_path: Path, ranks: Callable[..., list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    ranks(1, hold_and_die, tmp_path, killed=True)
    pid = json.loads((tmp_path / LOCK).read_text())["pid"]
    with caplog.at_level(logging.WARNING), run_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert f"left locked by process {pid} on {HOST}" in caplog.text and "gone: taken over" in caplog.text


@pytest.mark.parametrize("content", ["", "[1]", '{"pid": 12'])
def test_a_damaged_one_stops_nobody(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LOCK).write_text(content)
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.2)
    with run_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["host"] == HOST


@pytest.mark.parametrize("alive", [True, False])
def test_a_holder_on_another_machine_is_watched(alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = left_by(tmp_path / "run", "elsewhere")
    monkeypatch.setattr(module, "WATCH_SECONDS", 1.0)
    monkeypatch.setattr(module, "TOUCH_SECONDS", 0.1)
    done = threading.Event()
    holder = threading.Thread(target=module._keep_touching, args=(path, done))
    if alive:
        holder.start()
        told = r"process 4321 on elsewhere .*gone for certain, remove .*\.lock$"
        with pytest.raises(FileExistsError, match=told), run_lock(path.parent):
            pass
        done.set()
        holder.join()
        assert json.loads(path.read_text())["host"] == "elsewhere"
    else:
        with run_lock(path.parent):
            assert json.loads(path.read_text())["host"] == HOST


def test_a_file_system_without_locks_is_watched_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(module.fcntl, "flock", flock)
    monkeypatch.setattr(module, "WATCH_SECONDS", 1.0)
    monkeypatch.setattr(module, "TOUCH_SECONDS", 0.1)
    with run_lock(tmp_path), pytest.raises(FileExistsError, match="gone for certain"), run_lock(tmp_path):
        pass
    left_by(tmp_path / "dead", HOST)
    with run_lock(tmp_path / "dead"):
        pass
