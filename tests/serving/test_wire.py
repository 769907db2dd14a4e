"""Requests of JSON, and many ranked together beside each ranked alone."""

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import placerank
from placerank.rankers.rank import Ranker
from placerank.serving.wire import Answer, Asked, Refused, asked, rank_together, read

NOW = 1_714_564_800
GOOD: dict[str, Any] = {"user": "ann", "place": [52.4, 4.9], "time": NOW}


@pytest.fixture(scope="module")
def ranker(exports: SimpleNamespace) -> Ranker:
    return placerank.load(exports.a)


def alone(ranker: Ranker, request: Asked) -> dict[str, list[Any]]:
    """One request by ``Ranker.rank``; a distance that is not known is null."""
    found = ranker.rank(
        request.user,
        request.place,
        request.time,
        request.history,
        request.candidates,
        request.within_km,
        request.k,
        by=request.by,
        utc_offset=request.utc_offset,
        own=request.own,
    )
    nulled = lambda x: None if isinstance(x, float) and np.isnan(x) else x  # noqa: E731
    return {n: [nulled(x) for x in found[n].to_pylist()] for n in ("item_id", "km", "score", "probability")}


def same(got: Answer, want: dict[str, list[Any]]) -> None:
    assert isinstance(got, dict) and list(got) == list(want)
    assert got["item_id"] == want["item_id"]
    assert got["km"] == want["km"]
    for name in ("score", "probability"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-5)


def some_requests(ranker: Ranker) -> list[Asked]:
    """With and without candidates, places, histories and offsets; of several reaches and lengths."""
    rng = np.random.default_rng(0)
    ids, made = ranker.item_ids.to_pylist(), []
    for i in range(24):
        row = int(rng.integers(1, len(ids)))
        candidates = [ids[r] for r in rng.permutation(np.arange(1, len(ids)))[: i % 8]] if i % 3 else None
        history = [(ids[int(r)], NOW - 60 * int(r)) for r in rng.integers(1, len(ids), rng.integers(0, 9))]
        made.append(
            Asked(
                user=[ranker.user_ids[int(rng.integers(1, len(ranker.user_ids)))].as_py(), None, 10**9][i % 5 % 3],
                place=None
                if candidates is not None and i % 4 == 0
                else (float(ranker.lat[row]), float(ranker.lon[row])),
                time=NOW + i,
                history=history,
                candidates=candidates,
                within_km=float(rng.choice([0.5, 3.0])),
                k=int(rng.choice([1, 3, 50])),
                utc_offset=[None, 60.0][i % 2],
            )
        )
    return made


def test_together_is_as_each_alone(ranker: Ranker) -> None:
    requests = some_requests(ranker)
    answers = rank_together(ranker, requests)
    assert {len(a["item_id"]) for a in answers if isinstance(a, dict)} > {0, 1, 3}, "lists of several lengths"
    for request, answer in zip(requests, answers, strict=True):
        same(answer, alone(ranker, request))


def test_a_bad_request_takes_no_other_with_it(ranker: Ranker) -> None:
    ids = ranker.item_ids.to_pylist()[1:4]
    good = Asked(user=1, place=(52.0, 4.9), time=NOW, candidates=ids)
    bad = {
        "this request: got lat 95": Asked(user=1, place=(95.0, 4.9), time=NOW, candidates=ids),
        "of this request; leave": Asked(user=1, time=NOW, candidates=[*ids, 10**9]),
        "Failed to parse": Asked(user=1, time=NOW, candidates=["no number"]),
        "lose digits": Asked(user=1, time=NOW, candidates=[1.5]),
        "twice": Asked(user=1, time=NOW, candidates=[ids[0], ids[0]]),
        "neither a place nor candidates": Asked(user=1, time=NOW),
        "expected all before the request": Asked(user=1, time=NOW, candidates=ids, history=[(ids[0], NOW)]),
        "has label": Asked(user=1, time=NOW, candidates=ids, by="gmv"),
        "got a column 'weather'": Asked(user=1, time=NOW, candidates=ids, own={"weather": 1}),
        "expected own columns": Asked(user=1, time=NOW, candidates=ids, own={"user_id": 1}),
        "too large": Asked(user=10**30, time=NOW, candidates=ids),
        "surrogates not allowed": Asked(user="\ud800", time=NOW, candidates=ids),
        "expected more than 0 km": Asked(user=1, place=(52.0, 4.9), time=NOW, within_km=0.0),
        "1990 to 2099": Asked(user=1, time=17, candidates=ids),
        "from struct": Asked(user=1, time=NOW, candidates=[{"id": 1}]),
        "from list": Asked(user=1, time=NOW, candidates=ids, history=[([ids[0]], NOW - 9)]),
    }
    requests = [request for one in bad.values() for request in (good, one)]
    answers = rank_together(ranker, requests)
    want = alone(ranker, good)
    for answer in answers[::2]:
        same(answer, want)
    for text, refused in zip(bad, answers[1::2], strict=True):
        assert isinstance(refused, Refused) and not refused.ours, text
        assert text in refused.error and "\n" not in refused.error, refused.error


def test_a_ranker_that_fails_on_one_answers_the_others(ranker: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = Ranker.rank

    def failing(self: Ranker, user: Any, *args: Any, **kwargs: Any) -> pa.Table:
        if 13 in user:
            raise RuntimeError("a bug")
        return rank(self, user, *args, **kwargs)

    monkeypatch.setattr(Ranker, "rank", failing)
    ids = ranker.item_ids.to_pylist()[1:4]
    answers = rank_together(ranker, [Asked(user=user, time=NOW, candidates=ids) for user in (1, 2, 13, 3)])
    assert [isinstance(answer, Refused) for answer in answers] == [False, False, True, False]
    assert answers[2] == Refused("the ranker failed on this request; the server's log has more", ours=True)
    assert rank_together(ranker, []) == []


def test_fields_and_their_defaults() -> None:
    ranked = asked(GOOD | {"time": "2024-05-01T14:00:00+02:00", "history": [["x", "2024-05-01T11:59:59Z"], ["y", 5]]})
    assert ranked.time == NOW == int(datetime(2024, 5, 1, 12, tzinfo=UTC).timestamp())
    assert ranked.history == [("x", NOW - 1), ("y", 5)]
    assert (ranked.k, ranked.within_km, ranked.candidates, ranked.own) == (10, 3.0, None, {})
    assert asked({"user": None, "time": NOW, "history": None, "candidates": None}).history == []


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("[1]", "got [1], expected a request"),
        ('"x"', "got 'x', expected a request"),
        ('{"usr": 1, "time": 5}', "got a field 'usr'; did you mean 'user'?"),
        ('{"user": 1, "time": 5, "qqqq": 5}', "got a field 'qqqq'; a request has user, place, time, history"),
        ('{"user": 1}', "got no time, expected user and time"),
        ('{"time": 5}', "got no user"),
        ('{"user": true, "time": 5}', "user: got True, expected a text or a whole number or null"),
        ('{"user": [1], "time": 5}', "user: got [1]"),
        ('{"user": 1, "time": 5.5}', "time: got 5.5"),
        ('{"user": 1, "time": "noon"}', "time: got 'noon', expected whole seconds since 1970 UTC, or text such as"),
        ('{"user": 1, "time": "2024-05-01T12:00:00"}', "time: got '2024-05-01T12:00:00', expected"),
        ('{"user": 1, "time": 5, "place": [1]}', "place: got [1]"),
        ('{"user": 1, "time": 5, "place": [1, null]}', "place: got [1, None], expected [latitude, longitude] in"),
        ('{"user": 1, "time": 5, "place": [1, "2"]}', "place: got [1, '2']"),
        ('{"user": 1, "time": 5, "place": [1, 1e999]}', "place: got inf"),
        ('{"user": 1, "time": 5, "within_km": 1e999}', "within_km: got inf"),
        ('{"user": 1, "time": 5, "utc_offset": 1e99}', "utc_offset: got 1e+99"),
        ('{"user": 1, "time": 5, "k": 0}', "k: got 0, expected"),
        ('{"user": 1, "time": 5, "k": true}', "k: got True"),
        ('{"user": 1, "time": 5, "candidates": "a"}', "candidates: got 'a', expected a list"),
        ('{"user": 1, "time": 5, "candidates": {"a": 1}}', "candidates: got {'a': 1}"),
        ('{"user": 1, "time": 5, "history": [["a"]]}', "history: got ['a'], expected [item id, time] pairs"),
        ('{"user": 1, "time": 5, "history": ["ab"]}', "history: got 'ab', expected [item id, time] pairs"),
        ('{"user": 1, "time": 5, "history": [["a", null]]}', "history: got None, expected whole seconds"),
        ('{"user": 1, "time": 5, "own": []}', "own: got []"),
    ],
)
def test_what_is_refused(body: str, text: str) -> None:
    with pytest.raises(ValueError) as error:
        asked(read(body.encode()))
    assert text in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("body", [b"", b"{", b'{"user": NaN}', b"\xff", b"[" * 100_000, b'{"a": -Infinity}'])
def test_what_is_no_json(body: bytes) -> None:
    with pytest.raises(ValueError, match="body: expected JSON: "):
        read(body)


def test_answers_are_json(ranker: Ranker) -> None:
    ids = ranker.item_ids.to_pylist()[1:4]
    (answer,) = rank_together(ranker, [Asked(user=None, time=NOW, candidates=ids)])
    assert json.loads(json.dumps(answer, allow_nan=False))["km"] == [None, None, None]
