"""Lists from ``placerank.load``: beside brute force over all items, and beside the exported ranker's samples."""

import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import sleep
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

import placerank
from placerank.cli.main import main
from placerank.data.batches.batch import SampleBatch
from placerank.data.batches.features import FeatureConfig
from placerank.data.batches.loader import SampleLoader
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.manifest import read_manifest
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.evaluation.rank import own_of, visits_of
from placerank.kernels.haversine import haversine_km
from placerank.rankers.dense import RankerConfig
from placerank.rankers.exported import ExportedRanker
from placerank.rankers.objectives import ObjectivesConfig
from placerank.rankers.rank_towers import TowerRanker
from placerank.training.export import ExportConfig, export
from placerank.training.train import TrainConfig, train

LABELS = ["label", "order", "gmv"]


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A city with columns of one's own and three objectives: ``raw``, ``data``, ``out`` (the export), ``ranker``."""
    folder = tmp_path_factory.mktemp("city")
    made = SimulateConfig(
        out=folder / "raw", cities=1, items=300, users=120, requests=900, candidates=8, delivery=True, orders=0.3
    )
    raw = simulate(made)
    data = prepare(PrepareConfig(input=raw, out=folder / "data", history_length=6, labels=["order"], amount="gmv"))
    config = RankerConfig(mlp=[16, 8], objectives=ObjectivesConfig(labels=LABELS))
    train(TrainConfig(data=data, run=folder / "run", features=FeatureConfig(embedding_dim=8), ranker=config, epochs=1))
    out = export(ExportConfig(run=folder / "run", out=folder / "export"))
    return SimpleNamespace(raw=raw, data=data, out=out, ranker=placerank.load(out))


def asked_of(city: SimpleNamespace) -> tuple[SampleBatch, pa.Table]:
    """Some test samples as they were prepared, and the same requests by raw ids, from the raw interactions."""
    sample = next(iter(SampleLoader(city.data, "test", 400)))
    raw = pq.read_table(city.raw / "interactions.parquet")
    moment = raw["timestamp"].cast(pa.timestamp("s", "UTC")).cast(pa.int64())
    raw = raw.set_column(raw.column_names.index("timestamp"), "timestamp", moment)
    of_users: dict[Any, list[dict[str, Any]]] = {}
    who = {}  # also users outside the vocabulary, whose raw ids prepared samples don't have
    for line in raw.to_pylist():
        of_users.setdefault(line["user_id"], []).append(line)
        who[line["timestamp"], line["item_id"]] = line["user_id"]
    ranker = city.ranker
    rows = []
    own = [c["name"] for c in ranker.exported.own.values() if c["of"] == "interactions"]
    for r, time in enumerate(sample.time.tolist()):
        mine = sample.request == r
        candidates = ranker.item_ids.take(pa.array(sample.item[mine].numpy())).to_pylist()
        user = who[time, candidates[0]]
        before = [x for x in of_users[user] if x["timestamp"] < time and x["label"] == 1]
        np.random.default_rng(r).shuffle(before)  # type: ignore[arg-type]
        now = {x["item_id"]: x for x in of_users[user] if x["timestamp"] == time}
        row = {
            "user_id": user,
            "time": time,
            "lat": float(sample.lat[r]),
            "lon": float(sample.lon[r]),
            "history": [x["item_id"] for x in before],
            "history_time": [x["timestamp"] for x in before],
            "candidates": candidates,
        }
        for name in own:
            value = [now[x][name] for x in candidates]
            row[name] = value if of(ranker, name) == "candidate" else value[0]
        rows.append(row)
    return sample, pa.Table.from_pylist(rows)


def of(ranker: TowerRanker, name: str) -> str:
    return next(o.of for o in ranker.exported.features.own if o.name == name)


def by_pair(ranker: TowerRanker, found: pa.Table) -> dict[tuple[int, Any], list[float]]:
    columns = [c for c in found.column_names if c.startswith(("score", "probability", "expected"))]
    return {(r["request"], r["item_id"]): [r[c] for c in columns] for r in found.to_pylist()}


def test_scores_are_those_of_prepared_samples(city: SimpleNamespace) -> None:
    """From raw ids and whole, unsorted histories: users, visits, gaps, own columns and objectives as prepared."""
    ranker, (sample, asked) = city.ranker, asked_of(city)
    assert ranker.dense is not None and sample.visits.max() > 0 and len(asked) > 30
    assert (sample.offsets.diff() == 6).any(), "histories that are cut"
    assert max(map(len, asked["history"].to_pylist())) > 6
    assert [c for c in ranker.exported.own.values() if c["of"] == "interactions"], "own columns of interactions"
    found = pa.concat_tables(ranker.predict(asked, k=50))
    got = by_pair(ranker, found)
    logits, expected = ranker.exported.score(sample), ranker.exported.predict(sample)
    assert found.column_names[4:] == [
        *("score_label", "probability_label", "score_order", "probability_order", "score_gmv", "expected_gmv")
    ]
    ids = ranker.item_ids.take(pa.array(sample.item.numpy())).to_pylist()
    lines = torch.tensor([got.pop(pair) for pair in zip(sample.request.tolist(), ids, strict=True)])
    assert not got and logits.std() > 0.05
    torch.testing.assert_close(lines[:, 0::2], logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lines[:, 1::2], torch.stack([expected[n] for n in LABELS], 1), rtol=1e-4, atol=1e-5)
    ranker.dense, dense = None, ranker.dense
    try:
        program = pa.concat_tables(ranker.predict(asked, k=50))  # as for an export of an older placerank
    finally:
        ranker.dense = dense
    again = by_pair(ranker, program)
    lines = torch.tensor([again[pair] for pair in zip(sample.request.tolist(), ids, strict=True)])
    torch.testing.assert_close(lines[:, 0::2], logits, rtol=1e-4, atol=1e-5)


def test_clusters_of_a_long_history_are_those_of_prepared_samples(tmp_path: Path) -> None:
    """What prepare clustered, and what rank clusters of whole histories in any order, scored by code and by program."""
    made = SimulateConfig(out=tmp_path / "raw", cities=1, items=60, users=8, requests=600, candidates=6)
    raw = simulate(made)
    config = PrepareConfig(input=raw, out=tmp_path / "data", history_length=10, cluster_visits=3, sample_days=30)
    data, ranker = prepare(config), RankerConfig(tower="twin_v2", mlp=[8], tower_options={"top_k": 5})
    train(
        TrainConfig(data=data, run=tmp_path / "run", features=FeatureConfig(embedding_dim=8), ranker=ranker, epochs=1)
    )
    out = export(ExportConfig(run=tmp_path / "run", out=tmp_path / "export"))
    loaded = placerank.load(out)
    assert isinstance(loaded, TowerRanker) and loaded.dense is not None
    sample, asked = asked_of(SimpleNamespace(raw=raw, data=data, ranker=loaded))
    served = loaded.samples(asked)
    assert sample.history_size is not None and served.history_size is not None
    assert sample.history_size.max() == 3 and (sample.offsets.diff() == 10).any(), (
        "clusters, and histories that are cut"
    )
    for name in ("offsets", "history", "history_size", "item", "visits"):
        assert torch.equal(getattr(served, name), getattr(sample, name)), name
    torch.testing.assert_close(served.history_hours, sample.history_hours)
    logits = loaded.exported.score(sample)
    torch.testing.assert_close(loaded._logits(served), logits, rtol=1e-4, atol=1e-5)
    ones = replace(sample, history_size=torch.ones_like(sample.history_size))
    assert not torch.allclose(loaded.exported.score(ones), logits, atol=1e-3), "sizes reach the program"


def test_lists_are_those_of_brute_force(city: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """All items scored by the program, one request each; scores are rounded, so that many are tied."""
    ranker = city.ranker
    (_, asked), scored = asked_of(city), ranker._logits

    def rounded(x: SampleBatch) -> Tensor:
        return (scored(x) * 20).round() / 20

    monkeypatch.setattr(ranker, "_logits", rounded)
    some = asked.slice(0, 12).drop_columns(["candidates", *(n for n in asked.column_names if n in ranker.exported.own)])
    km, k = 2.5, 7
    everything = some.append_column("candidates", pa.array([ranker.item_ids[1:].to_pylist()] * 12))
    whole = pa.concat_tables(ranker.predict(everything, k=10**6))
    ties, lengths = 0, set()
    found = pa.concat_tables(ranker.predict(some, within_km=km, k=k))
    row_of = {item: row for row, item in enumerate(ranker.item_ids.to_pylist())}
    for request, about in enumerate(some.to_pylist()):
        lines = [x for x in whole.to_pylist() if x["request"] == request]
        here = torch.tensor([about["lat"], about["lon"]], dtype=torch.float64)
        for x in lines:
            row = row_of[x["item_id"]]
            there = torch.tensor([ranker.lat[row], ranker.lon[row]])
            x["km"] = float(haversine_km(*here, *there))
        near = sorted((x for x in lines if x["km"] <= km), key=lambda x: (-x["score_label"], row_of[x["item_id"]]))
        want = [x["item_id"] for x in near[:k]]
        got = [x for x in found.to_pylist() if x["request"] == request]
        assert [x["item_id"] for x in got] == want
        assert [x["km"] for x in got] == pytest.approx([x["km"] for x in near[:k]], abs=1e-4)
        ties += len(want) - len({x["score_label"] for x in near[:k]})
        lengths.add(len(near))
    assert ties > 5 and len(lengths) > 3 and max(lengths) > k


def test_batches_change_nothing(city: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut within requests, and by pieces of a Parquet file."""
    _, asked = asked_of(city)
    want = pa.concat_tables(city.ranker.predict(asked, k=3))
    monkeypatch.setattr("placerank.rankers.rank_towers._TOGETHER", 5)
    monkeypatch.setattr("placerank.rankers.rank_requests.REQUESTS", 7)
    pq.write_table(asked, file := city.out.parent / "asked.parquet")
    for source in (asked, file):
        pieces = list(city.ranker.predict(source, k=3))
        assert len(pieces) >= len(asked) // 7 and max(map(len, pieces)) <= 21
        got = pa.concat_tables(pieces)
        assert got.drop_columns(["score_label"]).column_names == want.drop_columns(["score_label"]).column_names
        for name in ("request", "item_id"):
            assert got[name].to_pylist() == want[name].to_pylist()
        np.testing.assert_allclose(got["score_label"].to_numpy(), want["score_label"].to_numpy(), atol=1e-5)


def test_one_user_many_users_and_strangers(city: SimpleNamespace) -> None:
    ranker, when = city.ranker, datetime(2024, 6, 1, 12, tzinfo=UTC)
    ids, here = ranker.item_ids.to_pylist(), (float(ranker.lat[9]), float(ranker.lon[9]))
    history = [(ids[4], int(when.timestamp()) - 60), (ids[7], datetime(2024, 5, 1, tzinfo=UTC))]
    known, stranger = ranker.user_ids[1].as_py(), 10**9
    one = ranker.rank(known, here, when, history, k=4)
    assert len(one) == 4 and set(one["user_id"].to_pylist()) == {known}
    assert (np.diff(one["score_label"].to_numpy()) <= 0).all() and (one["km"].to_numpy() <= 3).all()
    many = ranker.rank([known, stranger], [here, here], [when, when], [history, []], k=4)
    assert many.slice(0, 4).drop_columns("user_id").equals(one.drop_columns("user_id")) and len(many) == 8
    given = ranker.rank(stranger, None, when, [(10**12, when - timedelta(days=9))], ids[1:4], k=9)
    assert set(given["item_id"].to_pylist()) == set(ids[1:4]) and np.isnan(given["km"].to_numpy()).all()
    assert len(ranker.rank(known, (-60.0, 10.0), when)) == 0, "nothing is there"
    assert len(ranker.rank([], [], [])) == 0
    by = ranker.rank(known, here, when, history, by="gmv", k=100)
    assert (np.diff(by["score_gmv"].to_numpy()) <= 0).all() and not (np.diff(by["score_label"].to_numpy()) <= 0).all()
    column = next(o.name for o in ranker.exported.features.own if o.of == "request" and o.form == "row")
    some = ranker.exported.tables[column].ids[1].as_py()
    told = ranker.rank(known, here, when, history, own={column: some}, k=100)
    assert not np.allclose(sorted(told["score_label"].to_numpy()), sorted(by["score_label"].to_numpy()))


def test_what_is_wrong_is_told(city: SimpleNamespace) -> None:
    ranker, now = city.ranker, 1717243200
    user, item = ranker.user_ids[1].as_py(), ranker.item_ids[1].as_py()
    unknown = "never" if isinstance(item, str) else 10**12
    good: dict[str, Any] = {"user": user, "place": (float(ranker.lat[1]), float(ranker.lon[1])), "time": now}
    for change, error, text in (
        ({"place": (91, 0)}, ValueError, "got lat 91, expected degrees from -90 to 90"),
        ({"place": (0, float("inf"))}, ValueError, "got lon inf"),
        ({"place": (float("nan"), 0)}, ValueError, "expected degrees; None where it is unknown"),
        ({"place": 40.7}, ValueError, r"place: got 40.7, expected \(latitude, longitude\)"),
        ({"place": None}, ValueError, "request 0 has neither a place nor candidates"),
        ({"time": datetime(2024, 6, 1)}, ValueError, "without a time zone"),
        ({"time": now * 1000}, ValueError, "milliseconds since 1970: divide them by 1,000"),
        ({"time": now + 0.5}, TypeError, "expected a datetime with a time zone, or whole seconds"),
        ({"time": "2024-06-01"}, TypeError, "got '2024-06-01'"),
        ({"k": 0}, ValueError, "k=0: expected a whole number of places, at least 1"),
        ({"k": 2.0}, ValueError, "k=2.0"),
        ({"within_km": 0}, ValueError, "within_km=0: expected more than 0 km"),
        ({"within_km": float("nan")}, ValueError, "within_km=nan"),
        ({"by": "taste"}, ValueError, "by='taste': this ranker has label, order, gmv"),
        (
            {"candidates": [item, unknown]},
            ValueError,
            f"1 of 2 are not in the catalog, such as {unknown!r} of request 0",
        ),
        ({"candidates": [item, None]}, ValueError, "1 of 2 are not in the catalog, such as None"),
        ({"candidates": [item, item]}, ValueError, f"request 0 has {item!r} twice"),
        ({"candidates": "cafe"}, TypeError, "got 'cafe', expected a list"),
        ({"history": [(item, now)]}, ValueError, "expected all before the request"),
        ({"history": [item]}, ValueError, r"expected \(item id, time\) pairs"),
        ({"history": [(item, datetime(2024, 5, 1))]}, ValueError, "without a time zone"),
        ({"user": [user, user]}, (TypeError, ValueError), ""),
        ({"user": 1.5}, TypeError, "floating|double"),
        ({"own": {"shoes": 3}}, ValueError, "got a column 'shoes', expected some of user_id, time"),
        ({"own": {"lat": 3.0}}, ValueError, "own: got 'lat', expected own columns of interactions"),
        ({"own": "ios"}, TypeError, "own: got 'ios', expected own columns of interactions by name"),
        ({"user": {user}}, TypeError, "user: got set, expected a raw id, or a list of them"),
        ({"user": 1 << 70}, TypeError, "user: expected ids, got others"),
        ({"within_km": "3"}, ValueError, "within_km='3': expected more than 0 km"),
        ({"within_km": None}, ValueError, "within_km=None"),
        ({"time": 10**30}, ValueError, "time: got 10{30}, expected whole seconds since 1970 UTC, of the years"),
        ({"history": 5}, ValueError, r"history: got 5, expected \(item id, time\) pairs"),
        ({"history": ["ab"]}, ValueError, r"history: got \['ab'\], expected \(item id, time\) pairs"),
        ({"history": [(item, now - 0.5)]}, TypeError, "history: got .*, expected a datetime"),
        ({"history": [(1, now - 5), ("x", now - 6)]}, TypeError, "history: expected ids of one type"),
        ({"candidates": 5}, TypeError, "candidates: got 5, expected a list"),
        ({"candidates": ["x", 5]}, TypeError, "candidates: expected ids of one type"),
        ({"utc_offset": "60"}, TypeError, "utc_offset: expected minutes east of UTC"),
        (
            {"utc_offset": 1081},
            ValueError,
            "request 0: got utc_offset 1081, expected minutes east of UTC, at most 1080",
        ),
    ):
        with pytest.raises(error, match=text):
            ranker.rank(**{**good, **change})
    some = ranker.item_ids[1:4].to_pylist()
    for candidates in (iter(some), np.array(some), set(some)):
        assert len(ranker.rank(user, None, now, np.zeros((0, 2)), candidates)) == 3
    with pytest.raises(TypeError, match="place: got 3, expected a list, one a request"):
        ranker.rank([user, user], 3, [now, now])
    with pytest.raises(ValueError, match="time: got 1, expected 2, one a request"):
        ranker.rank([user, user], [None, None], [now])
    asked = pa.table({"user_id": [user], "time": [now], "lat": [0.0]})
    for table, text in (
        (asked, "got one of lat and lon alone"),
        (asked.drop_columns("time"), "no column time"),
        (pa.table({"user_id": [user], "time": pa.array([None], pa.int64())}), "with 1 nulls"),
        (pa.table({"user_id": [user], "time": [datetime(2024, 6, 1)]}), "without a time zone"),
        (pa.table({"user_id": [user], "time": [now], "candidates": [item]}), "expected a list a request"),
        (pa.table({"user_id": [user] * 2, "time": [now] * 2, "candidates": [[item], None]}), "request 1 has null"),
        (asked.append_column("lon", pa.array(["x"])), "lon: got a column of string, expected numbers"),
    ):
        with pytest.raises(ValueError, match=text):
            list(ranker.predict(table))


def test_own_values_of_a_request(city: SimpleNamespace) -> None:
    """Dates are the hours to them, as prepared; infinite numbers are unknown, as there; what is neither is told."""
    ranker, hour = city.ranker, 3600
    fee = next(n for n, c in ranker.exported.own.items() if c["of"] == "interactions" and c["kind"] == "buckets")
    assert of(ranker, fee) == "candidate"
    times, offsets = np.array([1717243200, 1717250400]), np.array([0, 2, 3])
    dates = [
        [datetime.fromtimestamp(t + h * hour, UTC) for h in hs] for t, hs in zip(times, [[1, 9], [0]], strict=True)
    ]
    asked = pa.table({"time": times, fee: dates, "candidates": [["a", "b"], ["c"]]})
    want = ranker.exported.own_values(fee, pa.array([1.0, 9.0, 0.0]))
    assert len(want.unique()) > 1 and torch.equal(ranker._own(asked, fee, "candidate", offsets, 3), want)
    odd = ranker.exported.own_values(fee, pa.array([np.inf, -np.inf, np.nan, None], from_pandas=False))
    assert odd.tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match=f"{fee}: got values of type string, expected numbers"):
        ranker.exported.own_values(fee, pa.array(["a"]))


def test_code_that_is_not_the_programs_is_not_used(city: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    ranker = placerank.load(city.out)
    settings = {"tower": "din", "objectives": {"labels": LABELS}, "mlp": [16, 8]}
    assert ranker._as_code(settings, "here") is None and "here: its program is used, which is slower" in caplog.text
    assert ranker._as_code({"tower": "nowhere:Tower"}, "here") is None
    assert ranker._as_code(None, "here") is None


def test_programs_are_read_by_one_thread_at_a_time(city: SimpleNamespace) -> None:
    """``torch.export.load`` keeps what it reads in a variable that all threads share."""
    reading = threading.Lock()

    def read(file: Path) -> SimpleNamespace:
        assert reading.acquire(blocking=False), "another thread reads"
        sleep(0.05)
        reading.release()
        return SimpleNamespace(module=torch.nn.Identity)

    with mock.patch("torch.export.load", read), ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda _: ExportedRanker.load(city.out, verify=False), range(4)))) == 4


def test_importing_placerank_is_cheap() -> None:
    code = "import sys, placerank; assert not {'torch', 'pyarrow', 'numpy'} & set(sys.modules); placerank.load"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        placerank.nothing  # noqa: B018


def test_command_rank(city: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table and the page say what ``rank`` does, with the visits that a raw table has before the moment."""
    ranker, raw = city.ranker, pq.read_table(city.raw / "interactions.parquet")
    clicks = [x for x in raw.to_pylist() if x["label"] == 1]
    last = max(clicks, key=lambda x: x["timestamp"])
    user, now = last["user_id"], int(last["timestamp"].timestamp())
    mine = [(x["item_id"], int(x["timestamp"].timestamp())) for x in clicks if x["user_id"] == user]
    earlier = [(item, time) for item, time in mine if time < now]
    assert 0 < len(earlier) < len(mine)
    assert visits_of(city.raw / "interactions.parquet", user, now) == earlier
    pa_csv.write_csv(raw.select(["user_id", "item_id", "timestamp", "label"]), tmp_path / "visits.csv")
    assert visits_of(tmp_path / "visits.csv", user, now) == [(str(item), time) for item, time in earlier]
    here = (float(ranker.lat[9]), float(ranker.lon[9]))
    page = tmp_path / "page.html"
    flags = ["--export", str(city.out), "--user", str(user), "--place", *map(str, here), "--time", str(now)]
    flags += ["--visits", str(city.raw / "interactions.parquet"), "--by", "order", "--k", "4"]
    assert main(["rank", *flags, "--out", str(page)]) == 0
    want = ranker.rank(user, here, now, earlier, k=4, by="order").to_pylist()
    told, written = capsys.readouterr().out, page.read_text()
    assert f"{len(earlier)} earlier visits" in told and page.as_uri() in told and "data:image/png" in written
    table = [line.split() for line in told.splitlines() if line.strip()[:1].isdigit()]
    assert [line[0] for line in table] == ["1", "2", "3", "4"]
    for row, line in zip(want, table, strict=True):
        assert line[-1] == f"{row['km']:.2f}" and f"{row['probability_order']:.2%}" in line
        assert str(row["item_id"]) in line and f"<td>{row['item_id']}</td>" in written
    ids = [str(x) for x in ranker.item_ids[1:4].to_pylist()]
    assert main(["rank", "--export", str(city.out), "--user", str(10**9), "--candidates", *ids]) == 0
    told = capsys.readouterr().out
    assert "not known to the ranker" in told and all(item in told for item in ids)
    assert main(["rank", *flags[:4], "--place", "-60", "10"]) == 0
    assert "nothing is there" in capsys.readouterr().out
    for wrong, text in (
        ([*flags, "--out", str(page)], "page.html exists"),
        ([*flags, "--out", str(tmp_path / "no" / "page.html")], "lies in no folder that is there, expected a file"),
        ([*flags, "--out", str(tmp_path), "--overwrite"], "is a folder, expected a file to write"),
        (flags[:4], "place: got none"),
        ([*flags, "--time", "noon"], "expected unix seconds, or a time with its zone"),
        ([*flags, "--time", "2024-06-01T12:00:00"], "expected unix seconds, or a time with its zone"),
        ([*flags, "--within-km", "0"], "within_km=0.0: expected more than 0 km"),
        ([*flags, "--by", "taste"], "by='taste'"),
        ([*flags, "--out", "s3://bucket/page.html"], "expected a file on this machine"),
        ([*flags, "--visits", str(city.raw / "items.parquet")], "no column user_id; expected user_id, item_id"),
        ([*flags, "--user", "x y"], "user: got 'x y', expected a whole number"),
        ([*flags, "--visits", str(page)], "page.html: not a whole Parquet file"),
        ([*flags, "--visits", str(tmp_path)], "is a folder, expected a Parquet file"),
    ):
        assert main(["rank", *wrong]) != 0
        assert text in capsys.readouterr().err.replace("\n", " ")


def test_own_columns_on_the_command_line(city: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    """As ``Ranker.rank`` takes them, from text; of candidates one for each."""
    _, asked = asked_of(city)
    ranker, row = city.ranker, next(r for r in asked.to_pylist() if len(r["candidates"]) > 2)
    columns = {n: c for n, c in ranker.own.items() if c["of"] == "interactions"}
    by_joins = {joins: [n for n in columns if columns[n]["joins"] == joins] for joins in ("request", "candidate")}
    assert all(by_joins.values()), "of requests and of candidates"
    own = {n: row[n] for n in columns}
    texts = {n: ",".join(map(str, v)) if isinstance(v, list) else str(v) for n, v in own.items()}
    assert own_of(texts, ranker.own) == own
    flags = ["--export", str(city.out), "--user", str(row["user_id"]), "--time", str(row["time"]), "--k", "3"]
    flags += ["--candidates", *map(str, row["candidates"])]
    given = [x for pair in texts.items() for x in pair]
    assert main(["rank", *flags, "--utc-offset", "120", "--own", *given]) == 0
    want = ranker.rank(row["user_id"], None, row["time"], None, row["candidates"], k=3, utc_offset=120, own=own)
    told = capsys.readouterr().out
    plain = ranker.rank(row["user_id"], None, row["time"], None, row["candidates"], k=3)
    assert want["score_label"].to_pylist() != plain["score_label"].to_pylist(), "they matter"
    for item in want.to_pylist():
        assert str(item["item_id"]) in told and f"{item['probability_label']:.2%}" in told
    kinds = {"seen": {"kind": "buckets", "joins": "request"}, "fees": {"kind": "number", "joins": "candidate"}}
    got = own_of({"seen": "2024-05-01", "fees": "1.5,,2e3", "other": "a,b"}, kinds)
    assert got == {"seen": datetime(2024, 5, 1, tzinfo=UTC), "fees": [1.5, None, 2000.0], "other": "a,b"}
    of_candidates = by_joins["candidate"][0]
    for wrong, text in (
        (["--own", "taste", "salty"], "got a column 'taste', expected some of"),
        (["--own", of_candidates, "1"], f"{of_candidates}: is of candidates; expected a list a request"),
        (["--own", "lat", "1"], "own: got 'lat', expected own columns"),
        (["--utc-offset", "1e6"], "expected minutes east of UTC, at most"),
    ):
        assert main(["rank", *flags, *wrong]) == 1
        assert text in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(ValueError, match=r"own fees: got 'x', expected a number, or a date"):
        own_of({"fees": "1,x"}, kinds)


def test_command_predict(city: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, asked = asked_of(city)
    pq.write_table(asked, file := tmp_path / "asked.parquet", row_group_size=11)
    flags = ["--export", str(city.out), "--requests", str(file), "--k", "3", "--by", "gmv"]
    assert main(["predict", *flags, "--out", str(tmp_path / "lists")]) == 0
    want = pa.concat_tables(city.ranker.predict(asked, k=3, by="gmv"))
    assert pq.read_table(tmp_path / "lists" / "lists.parquet").equals(want)
    told = read_manifest(tmp_path / "lists", "lists", verify=True)
    assert (told["requests"], told["places"]) == (len(asked), len(want))
    nobody = asked.slice(0, 0)
    pq.write_table(nobody, file)
    assert main(["predict", *flags, "--out", str(tmp_path / "none")]) == 0
    none = pq.read_table(tmp_path / "none" / "lists.parquet")
    assert len(none) == 0 and none.schema.equals(want.schema)
    late = asked.slice(0, 40).to_pylist()
    late[33]["lat"] = 91.0
    pq.write_table(pa.Table.from_pylist(late, asked.schema), file)
    before = pq.read_table(tmp_path / "lists" / "lists.parquet")
    capsys.readouterr()
    assert main(["predict", *flags, "--out", str(tmp_path / "lists"), "--overwrite"]) == 1
    assert "counted from request 16: request 17: got lat 91, expected degrees" in capsys.readouterr().err
    assert pq.read_table(tmp_path / "lists" / "lists.parquet").equals(before), "the lists that there were"
    assert sorted(x.name for x in tmp_path.iterdir()) == ["asked.parquet", "lists", "none"]
    assert main(["predict", *flags, "--out", str(tmp_path / "lists")]) == 1
    assert "lists exists" in capsys.readouterr().err


def test_pieces_follow_the_number_of_candidates(city: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many requests together as have a number of candidates, whatever the reach; the lists stay."""
    _, asked = asked_of(city)
    some = asked.select(["user_id", "time", "lat", "lon"])
    want = pa.concat_tables(city.ranker.predict(some, within_km=math.inf, k=2))
    monkeypatch.setattr("placerank.rankers.rank_base._CANDIDATES", 900)
    monkeypatch.setattr("placerank.rankers.rank_base._FIRST", 2)
    counts: list[int] = []
    found = pa.concat_tables(city.ranker.predict(some, within_km=math.inf, k=2, asked=counts.append))
    most = 900 // (len(city.ranker.item_ids) - 1)
    assert max(counts) == most > 2 and sum(counts) == len(asked)
    assert found.drop_columns([c for c in found.column_names if "_" in c and c[:4] != "item"]).equals(
        want.drop_columns([c for c in want.column_names if "_" in c and c[:4] != "item"])
    )
