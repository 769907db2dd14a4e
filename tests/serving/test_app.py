"""What is answered at each path, and counted."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs placerank[serve]")
pytest.importorskip("prometheus_client", reason="needs placerank[serve]")
from starlette.testclient import TestClient

from placerank.rankers.rank import Ranker
from placerank.serving.app import Service
from placerank.serving.batches import Batches, Full
from placerank.serving.versions import Versions

NOW = 1_714_564_800


@pytest.fixture
def service(exports: SimpleNamespace, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A ``client`` of a service of export a; ``ids`` of some items."""
    versions = Versions(exports.a, None, tmp_path)
    with TestClient(Service(versions, 4, 0).app(), raise_server_exceptions=False) as client:
        yield SimpleNamespace(client=client, versions=versions, ids=versions.current.ranker.item_ids.to_pylist()[1:6])


def counted(client: TestClient, name: str) -> float:
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name)]
    return float(lines[0].split()[-1]) if lines else 0.0


def close(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["item_id"] == other["item_id"] and one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_one_and_many(service: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    client, name = service.client, service.versions.current.name
    good = {"user": 1, "time": NOW, "candidates": service.ids, "k": 2}
    one = client.post("/rank", json=good)
    assert one.status_code == 200 and one.headers["content-type"] == "application/json"
    answer: dict[str, Any] = one.json()
    assert list(answer) == ["version", "item_id", "km", "score", "probability"]
    assert (
        answer["version"] == name and len(answer["item_id"]) == 2 and answer["score"] == sorted(answer["score"])[::-1]
    )
    many = client.post("/rank", json=[good, good | {"candidates": [10**9]}, good | {"kk": 1}, good])
    assert many.status_code == 200 and close(many.json()[0], answer) and close(many.json()[3], answer)
    assert "not in the catalog" in many.json()[1]["error"] and "did you mean 'k'?" in many.json()[2]["error"]
    assert client.post("/rank", json=[]).json() == []
    for body, status, text in (
        ({"user": 1}, 400, "got no time"),
        (good | {"candidates": [10**9]}, 400, "not in the catalog"),
        ("{", 400, "got '{', expected a request"),
        ([good] * 5, 413, "got 5 requests, at most 4 may wait"),
        ({"user": "x" * 9 * 2**20}, 413, "got more than 8 MiB"),
    ):
        refused = client.post("/rank", json=body)
        assert refused.status_code == status and text in refused.json()["error"]
    assert client.post("/rank", content=b"{").status_code == 400
    assert client.get("/rank").status_code == 405 and client.get("/nowhere").status_code == 404
    monkeypatch.setattr(Ranker, "rank", lambda *args, **kwargs: 1 / 0)
    failed = client.post("/rank", json=good)
    assert failed.status_code == 500 and "the ranker failed on this request" in failed.json()["error"]
    monkeypatch.undo()
    assert close(client.post("/rank", json=good).json(), answer)
    assert counted(client, 'placerank_http_requests_total{path="/rank",status="200"}') == 4
    assert counted(client, 'placerank_http_requests_total{path="/rank",status="400"}') == 4
    assert counted(client, 'placerank_http_requests_total{path="/rank",status="500"}') == 1
    assert counted(client, "placerank_rank_seconds_count") == 8, "what came to the ranker's door, refused by it or not"
    assert counted(client, "placerank_batch_requests_count") >= 5
    assert counted(client, "placerank_waiting_requests") == 0


def test_no_room(service: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(self: Batches[Any], requests: Any) -> Any:
        raise Full(7)

    monkeypatch.setattr(Batches, "answers", full)
    answer = service.client.post("/rank", json={"user": 1, "time": NOW, "candidates": service.ids})
    assert answer.status_code == 503 and answer.headers["retry-after"] == "7"
    assert answer.json() == {"error": "too many requests wait; try again in 7 s"}


def test_reload_and_health(exports: SimpleNamespace, service: SimpleNamespace) -> None:
    client, versions = service.client, service.versions
    first = client.get("/health").json()
    assert first["ready"] and first["error"] is None and first["content_hash"].startswith(first["version"])
    assert client.post("/reload").json() == {"reloaded": False, "version": first["version"], "error": None}
    versions.export = exports.b
    again = client.post("/reload").json()
    assert again["reloaded"] and again["version"] != first["version"]
    asked = {"user": 1, "time": NOW, "candidates": service.ids}
    assert (
        client.post("/rank", json=asked).json()["version"]
        == again["version"]
        == client.get("/health").json()["version"]
    )
    versions.export = exports.b / "tables"
    refused = client.post("/reload")
    assert refused.status_code == 409 and "manifest.json not found" in refused.json()["error"]
    health = client.get("/health")
    assert health.status_code == 200 and health.json()["error"] == refused.json()["error"]
    assert counted(client, 'placerank_reloads_total{outcome="serves"}') == 1
    assert counted(client, 'placerank_reloads_total{outcome="refused"}') == 1
    assert f'placerank_export{{version="{again["version"]}"}} 1.0' in client.get("/metrics").text
    assert f'version="{first["version"]}"' not in client.get("/metrics").text


def test_a_new_export_is_seen(exports: SimpleNamespace, tmp_path: Path) -> None:
    versions = Versions(exports.a, None, tmp_path)
    first = versions.current.name
    with TestClient(Service(versions, 4, 0.01).app()) as client:
        versions.export = exports.b
        while client.get("/health").json()["version"] == first:  # or the test's time is over
            pass
