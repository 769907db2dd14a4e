"""The command: it serves, is loaded from a process of its own, renews, and ends when all is answered."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

import placerank
from placerank.cli.main import main
from placerank.data.manifest import content_hash, replace_folder

NOW = 1_714_564_800


def post(port: int, path: str, body: Any = None) -> Any:
    url = f"http://127.0.0.1:{port}{path}"
    asked = urllib.request.Request(url, json.dumps(body).encode() if body is not None else b"", method="POST")
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.load(answer)


def test_served_renewed_and_ended(exports: SimpleNamespace, tmp_path: Path) -> None:
    """Under load every answer is right for the version that it names, none is lost, also of those asked at the end."""
    import shutil

    pytest.importorskip("uvicorn", reason="needs placerank[serve]")
    served = Path(shutil.copytree(exports.a, tmp_path / "served"))
    command = [sys.executable, "-m", "placerank.cli", "serve", str(served), "--port", "0", "--watch-s", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    told = next((line for line in process.stderr if " at http://" in line), None)
    assert told is not None, "it ended before it served"
    port = int(told.rsplit(":", 1)[1])

    def asked(ids: list[Any]) -> dict[str, Any]:
        return {"user": 1, "place": [52.4, 4.9], "time": NOW, "candidates": ids, "k": 3}

    want = {}
    for path in (exports.a, exports.b):
        ranker = placerank.load(path)
        ids = ranker.item_ids.to_pylist()[1:101]
        found = ranker.rank(1, (52.4, 4.9), NOW, candidates=ids, k=3)
        want[str(content_hash(path))[:12]] = found["score"].to_pylist()
    answers: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                answers.append(post(port, "/rank", asked(ids)))
            except Exception as error:
                answers.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for path in (exports.b, exports.a, exports.b):
        shutil.copytree(path, tmp_path / "next")
        replace_folder(tmp_path / "next", served)
        told = {"reloaded": True, "version": str(content_hash(path))[:12], "error": None}
        assert post(port, "/reload") == told
    stop.set()
    for thread in threads:
        thread.join()
    late = [threading.Thread(target=lambda: answers.append(post(port, "/rank", [asked(ids)] * 100))) for _ in range(2)]
    for thread in late:
        thread.start()
    time.sleep(0.2)  # they are there, and not all are answered
    process.send_signal(signal.SIGTERM)
    for thread in late:
        thread.join()
    assert process.wait(timeout=60) == 0 and "all that was asked is answered" in process.stderr.read()
    flat = [one for answer in answers for one in (answer if isinstance(answer, list) else [answer])]
    assert len(flat) > 200 and {answer["version"] for answer in flat} == set(want)
    for answer in flat:
        assert answer["score"] == pytest.approx(want[answer["version"]], abs=1e-4)


def test_what_it_can_not_serve(exports: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("uvicorn", reason="needs placerank[serve]")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(exports.a), "--port", str(port)]) == 1
    assert f"can't listen at 127.0.0.1, port {port}: " in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--port", "0"]) == 1
    assert "manifest.json not found" in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--waiting", "0"]) == 2
    assert "waiting=0: expected at least 1" in capsys.readouterr().err


def test_without_the_extra(exports: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.dict(sys.modules, {"uvicorn": None}):
        assert main(["serve", str(exports.a)]) == 1
    assert "serving needs pip install 'placerank[serve]'" in capsys.readouterr().err
    assert os.environ.get("OMP_WAIT_POLICY")
