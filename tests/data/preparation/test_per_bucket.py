"""What becomes of a bucket, against loops; that it depends on nothing else; that it is what ``prepare`` does."""

import math
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_tables import ITEMS, impressions, requests, run, visits, write

from placerank.data.manifest import read_manifest
from placerank.data.preparation import prepare as prepare_module
from placerank.data.preparation import samples as samples_module
from placerank.data.preparation.buckets import bucket_rows, rows_schema
from placerank.data.preparation.per_bucket import (
    Context,
    bucket_counts,
    bucket_samples,
    bucket_sequences,
    counts_schema,
    samples_schema,
    sequences_schema,
    split_starts,
    time_bins,
)
from placerank.data.preparation.prepare import PrepareConfig, context_of
from placerank.data.raw.columns import DataError
from placerank.data.raw.schema import iter_interactions, read_items
from placerank.data.requests import SPLITS
from placerank.kernels.haversine import EARTH_RADIUS_KM

HOUR = 3600
LAT, LON = (ITEMS[name].to_pylist() for name in ("lat", "lon"))
NUMBER = 3


def km(a: tuple[float, float], b: tuple[float, float]) -> float:
    lat, lon, other_lat, other_lon = map(math.radians, (*a, *b))
    h = math.sin((lat - other_lat) / 2) ** 2
    h += math.cos(lat) * math.cos(other_lat) * math.sin((lon - other_lon) / 2) ** 2
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(h))


def context(check_ins: bool = False, probability: bool = False, **settings: Any) -> Context:
    """Two splits at hours 40 and 60; other buckets come before the one that is made here."""
    config = PrepareConfig(
        **{"input": Path("in"), "out": Path("out"), "history_length": 3, "train_negatives": 2, "eval_negatives": 5}
        | settings
    )
    made = context_of(config, ITEMS, (40 * HOUR, 60 * HOUR), check_ins, ("probability",) if probability else ())
    return replace(made, before={NUMBER: (100, 1000, 50)})


def bucket(**columns: Any) -> pa.Table:
    """Rows of one bucket; request and places unknown unless given."""
    n = len(columns["user"])
    nan = np.full(n, np.nan)
    whole = {"bucket": np.full(n, NUMBER), "label": np.ones(n), "request": np.zeros(n, np.int64)}
    whole |= dict.fromkeys(("lat", "lon", "probability", "utc_offset"), nan)
    whole |= dict.fromkeys(("user_row", "folded"), np.zeros(n))
    whole |= columns
    text = n and isinstance(whole["user"][0], str)
    schema = rows_schema(pa.string() if text else pa.int64())
    arrays = {name: x if name == "user" else np.asarray(x) for name, x in whole.items()}
    return pa.table({f.name: pa.array(arrays[f.name]).cast(f.type) for f in schema}, schema=schema)


def shown(rows: int = 300, users: int = 5, seed: int = 0, moments: int = 80) -> pa.Table:
    rng = np.random.default_rng(seed)
    lat = np.where(rng.random(rows) < 0.5, np.nan, rng.uniform(50, 50.1, rows))
    return bucket(
        user=[f"u{i}" for i in rng.integers(0, users, rows)],
        item=rng.integers(0, 12, rows),
        time=HOUR * rng.integers(0, moments, rows),
        label=rng.integers(0, 2, rows),
        lat=lat,
        lon=lat - 46,
        probability=rng.random(rows),
    )


def visited(rows: int = 200, users: int = 5, seed: int = 0, moments: int = 80) -> pa.Table:
    rng = np.random.default_rng(seed)
    lat = np.where(rng.random(rows) < 0.7, np.nan, rng.uniform(50, 50.1, rows))
    return bucket(
        user=rng.integers(0, users, rows),
        item=rng.integers(0, 12, rows),
        time=HOUR * rng.integers(0, moments, rows),
        lat=lat,
        lon=np.where(np.isnan(lat), np.nan, 4.0),
    )


# --- a slow reference -------------------------------------------------------------------------------------------


def known(x: float) -> float | None:
    return None if math.isnan(x) else x


class Slow:
    """The samples of a bucket, request by request, and its counts."""

    def __init__(self, table: pa.Table, of: Context) -> None:
        self.of = of
        keys, floats = ("user", "time", "request", "item", "label"), ("lat", "lon", "probability")
        rows = table.to_pylist()
        rows.sort(key=lambda r: [*(r[k] for k in keys), *((math.isnan(r[k]), known(r[k]) or 0) for k in floats)])
        if of.check_ins is not None:  # of repeated visits the first
            rows = [r for i, r in enumerate(rows) if not i or any(r[k] != rows[i - 1][k] for k in keys)]
        self.rows = rows
        self.users = sorted({r["user"] for r in rows})
        self.train = [r for r in rows if r["time"] < of.starts[0]]
        chosen = Counter(r["user"] for r in self.train if r["label"])
        self.known = [u for u in self.users if chosen[u] >= of.min_user_positives]
        self.shown: dict[Any, list[dict[str, Any]]] = {}
        for at, row in enumerate(rows):
            key = at if of.check_ins is not None else (row["user"], row["time"], row["request"])
            self.shown.setdefault(key, []).append(row)

    def before(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """The user's positives strictly before a row, oldest first."""
        return [r for r in self.rows if r["user"] == row["user"] and r["label"] and r["time"] < row["time"]]

    def place(self, rows: list[dict[str, Any]]) -> tuple[float | None, float | None]:
        row = next((r for r in rows if known(r["lat"]) is not None), None)
        at = None if row is None else (row["lat"], row["lon"])
        if self.of.check_ins is None:
            return at or (None, None)
        if at is None and (earlier := self.before(rows[0])):
            last = earlier[-1]
            if rows[0]["time"] - last["time"] <= self.of.check_ins.place_seconds:
                at = LAT[last["item"]], LON[last["item"]]
        item = rows[0]["item"]
        return at if at is not None and km(at, (LAT[item], LON[item])) <= 10 else (None, None)

    def near(self, rows: list[dict[str, Any]]) -> list[int]:
        """Items that may be negatives."""
        item, at = rows[0]["item"], self.place(rows)
        centre = (LAT[item], LON[item]) if at[0] is None else at
        return [i for i in range(len(LAT)) if i != item and km(centre, (LAT[i], LON[i])) <= 10]

    def requests(self) -> list[dict[str, Any]]:
        users, numbers, vocabulary = self.of.before[NUMBER]
        found = []
        for number, rows in enumerate(self.shown.values()):
            first, earlier = rows[0], self.before(rows[0])
            visits = Counter(r["item"] + 1 for r in earlier)
            history = earlier[-self.of.history_length :]
            user = first["user"]
            lat, lon = self.place(rows)
            found.append(
                {
                    "split": sum(first["time"] >= start for start in self.of.starts),
                    "request": numbers + number,
                    "user_row": vocabulary + 1 + self.known.index(user) if user in self.known else 0,
                    "user_index": users + self.users.index(user),
                    "time": first["time"],
                    "lat": lat and float(np.float32(lat)),
                    "lon": lon and float(np.float32(lon)),
                    "history": [r["item"] + 1 for r in history],
                    "history_hours": [(first["time"] - r["time"]) / HOUR for r in history],
                    "visits": visits,
                    "rows": rows,
                }
            )
        return found


def check(table: pa.Table, of: Context) -> None:
    """Samples and counts of a bucket are those of the loops."""
    slow, made = Slow(table, of), bucket_samples(table, of)
    assert made.schema == samples_schema(of.extra)
    got = {row["request"]: row for row in made.to_pylist()}
    assert len(got) == len(made)
    for want in slow.requests():
        visits, rows = want.pop("visits"), want.pop("rows")
        how = of.check_ins
        near = [] if how is None else slow.near(rows)
        if how is not None and not near:
            assert want["request"] not in got
            continue
        row = got.pop(want["request"])
        for name in want:
            x = row[name]
            assert (known(x) if isinstance(x, float) else x) == want[name], name
        items, labels = row["item_row"], row["label"]
        assert row["visits"] == [visits[i] for i in items]
        if how is None:
            names = ["item_row", "label"] + ["probability"] * ("probability" in of.extra)
            candidates = Counter(zip(*(row[n] for n in names), strict=True))
            shown = [(r["item"] + 1, r["label"], r["probability"]) for r in rows]
            assert candidates == Counter(x[: len(names)] for x in shown)
        else:
            assert [i for i, x in zip(items, labels, strict=True) if x] == [rows[0]["item"] + 1]
            negatives = [i - 1 for i, x in zip(items, labels, strict=True) if not x]
            assert len(set(negatives)) == len(negatives) == min(how.negatives[want["split"]], len(near))
            assert set(negatives) <= set(near)
    assert not got
    (counts,) = bucket_counts(table, of).to_pylist()
    assert counts["bucket"] == NUMBER and counts["users"] == len(slow.users)
    assert counts["requests"] == len(slow.shown) and counts["known_users"] == len(slow.known)
    assert counts["user_id"] == slow.known
    chosen = [r for r in slow.train if r["label"]]
    later = [r for r in slow.rows if r["time"] >= of.starts[0]]
    every = {r["item"] for r in slow.rows}
    parts = [("", "item", every, chosen), ("user_", "user", slow.known, chosen)]
    for name, key, wanted, rows in [*parts, ("later_", "item", every, [r for r in later if r["label"]])]:
        ids = counts[key if key == "item" else "user_id"]
        assert sorted(ids) == sorted(wanted)
        assert counts[f"{name}positives"] == [sum(r[key] == i for r in rows) for i in ids]
        last = [max((r["time"] for r in rows if r[key] == i), default=0) for i in ids]
        assert counts[f"{name}last_positive"] == last
    for name, rows in (("shown", slow.train), ("later_shown", later)):
        assert counts[name] == [sum(r["item"] == i for r in rows) for i in counts["item"]]


def ugly() -> dict[str, tuple[pa.Table, bool]]:
    one = {"user": ["u"], "item": [2]}
    return {
        "one row": (bucket(**one, time=[5]), False),
        "one visit": (bucket(**one, time=[50 * HOUR]), True),
        "one visit, nothing near": (bucket(user=["u"], item=[11], time=[5]), True),
        "one moment": (shown(moments=1), False),
        "one moment of visits": (visited(moments=1), True),
        "one user": (shown(users=1), False),
        "one user's visits": (visited(users=1), True),
        "no positives": (bucket(user=[1, 1, 2], item=[0, 1, 2], time=[1, 2, 50 * HOUR], label=[0, 0, 0]), False),
        "all after training": (bucket(user=[1, 1, 2], item=[0, 1, 2], time=np.array([41, 42, 70]) * HOUR), False),
        "repeated visits": (bucket(user=[1] * 4, item=[3] * 4, time=[9] * 4, lat=[np.nan, 50.0, 50.0, 50.1]), True),
    }


@pytest.mark.parametrize("blocks", ["one", "many"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("check_ins", [False, True])
def test_against_loops(check_ins: bool, seed: int, blocks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if blocks == "many":  # users larger than a block, requests larger than a piece
        monkeypatch.setattr(samples_module, "_CANDIDATES", 30)
        monkeypatch.setattr(samples_module, "_PIECE", 4)
    table = visited(seed=seed) if check_ins else shown(seed=seed)
    check(table, context(check_ins, probability=not check_ins))


@pytest.mark.parametrize("case", ugly())
def test_ugly_buckets(case: str) -> None:
    table, check_ins = ugly()[case]
    check(table, context(check_ins))


def test_requests_by_id_share_the_first_known_place() -> None:
    table = bucket(
        user=[1] * 4,
        item=[5, 2, 3, 2],
        time=[7] * 4,
        request=[8, 8, 8, -9],
        lat=[50.5, np.nan, 50.25, np.nan],
        lon=[4.5, np.nan, 4.25, np.nan],
        label=[0, 1, 0, 1],
    )
    check(table, context())
    places = dict(zip(*(bucket_samples(table, context())[c].to_pylist() for c in ("request", "lat")), strict=True))
    assert math.isnan(places[1000]) and places[1001] == 50.25


@pytest.mark.parametrize("check_ins", [False, True])
def test_an_empty_bucket_has_the_same_columns(check_ins: bool) -> None:
    of = context(check_ins, probability=not check_ins)
    empty = shown()[:0]
    assert bucket_samples(empty, of) == samples_schema(of.extra).empty_table()
    assert bucket_sequences(empty, of) == sequences_schema().empty_table()
    assert bucket_counts(empty, of) == counts_schema(pa.string()).empty_table()
    assert bucket_counts(shown(), of).schema == counts_schema(pa.string())
    assert bucket_counts(visited(), of).schema == counts_schema(pa.int64())


# --- pure -------------------------------------------------------------------------------------------------------


def text(table: pa.Table) -> str:
    """All values, of which NaN equals NaN."""
    return str(table.to_pylist())


@pytest.mark.parametrize("check_ins", [False, True])
def test_the_same_arguments_give_the_same_and_stay_as_they_are(check_ins: bool) -> None:
    table, of = (visited() if check_ins else shown()), context(check_ins)
    rows, about = text(table), pickle.dumps(of)
    first, counts = text(bucket_samples(table, of)), bucket_counts(table, of)
    sequences = text(bucket_sequences(table, of))
    np.random.default_rng(0).random()
    assert text(bucket_samples(table, of)) == first and bucket_counts(table, of) == counts
    assert text(table) == rows and pickle.dumps(of) == about
    assert text(bucket_samples(table, pickle.loads(about))) == first
    order = np.random.default_rng(1).permutation(len(table))
    mixed = pa.concat_tables([table.take(pa.array(some)) for some in np.array_split(order, 4)])
    assert text(bucket_samples(mixed, of)) == first and bucket_counts(mixed, of) == counts
    assert text(bucket_sequences(mixed, of)) == text(bucket_sequences(table, of)) == sequences
    assert text(bucket_samples(table, replace(of, seed=1))) != first


def test_what_is_no_bucket_is_told() -> None:
    two = pa.concat_tables([shown(), shown().set_column(0, "bucket", pa.array(np.full(300, 7, np.int32)))])
    for call in (bucket_samples, bucket_sequences, bucket_counts):
        with pytest.raises(ValueError, match="got rows of buckets 3, 7 and so on, expected those of one"):
            call(two, context())
    with pytest.raises(ValueError, match="bucket 3: got a context without its numbers"):
        bucket_samples(shown(), replace(context(), before={}))
    again = bucket(user=[1, 1], item=[1, 2], time=[1, 2], request=[9, 9])
    with pytest.raises(DataError, match="a request_id of user 1 has rows at 1 and at 2"):
        bucket_samples(again, context())
    twice = pa.concat_tables([bucket_counts(shown(), context())] * 2)
    with pytest.raises(ValueError, match="got bucket 3 twice"):
        context().numbered(twice)


def test_numbers_follow_the_buckets() -> None:
    counts = pa.table({"bucket": [4, 0, 2], "users": [5, 1, 2], "requests": [50, 10, 20], "known_users": [3, 0, 2]})
    assert dict(context().numbered(counts).before) == {0: (0, 0, 0), 2: (1, 10, 0), 4: (3, 30, 2)}


def test_splits_start_at_the_first_moment_that_leaves_enough_before_it() -> None:
    assert time_bins(10, 10) == (1, 1)
    assert time_bins(0, 3 * (1 << 22)) == (4, 3 * (1 << 20) + 1)
    bins = np.array([6, 1, 1, 0, 2])  # moments 10 to 14
    assert split_starts(bins, 10, 14, 0.2, 0.2) == (11, 13)
    assert split_starts(bins, 10, 14, 0.0, 0.2) == (13, 13)
    never = np.iinfo(np.int64).max
    assert split_starts(bins, 10, 14, 0.2, 0.0) == (13, never)


# --- as prepare does it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["impressions", "visits"])
def test_all_buckets_make_what_prepare_writes(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three steps by themselves, as an engine would call them: rows, row order and counts of the catalog."""
    monkeypatch.setattr(prepare_module, "_BUCKET_ROWS", 60)
    raw = write(tmp_path / "raw", impressions(users=30) if kind == "impressions" else visits(users=30))
    config = PrepareConfig(input=raw, out=tmp_path / "out", train_negatives=2, history_length=5)
    folder = run(raw, train_negatives=2, history_length=5)
    items = read_items(raw).sort_by("item_id")
    blocks = list(iter_interactions(raw, items["item_id"], block_rows=37))
    rows = pa.concat_tables(bucket_rows(block, -(-sum(map(len, blocks)) // 60)) for block in blocks)
    time = rows["time"].to_numpy()
    first, last = int(time.min()), int(time.max())
    width, size = time_bins(first, last)
    bins = np.bincount((time - first) // width, minlength=size)
    starts = split_starts(bins, first, last, config.valid_fraction, config.test_fraction)
    of = context_of(config, items, starts, kind == "visits", ())
    numbers = sorted(set(rows["bucket"].to_pylist()))
    assert len(numbers) > 3
    tables = [rows.filter(pa.compute.equal(rows["bucket"], n)) for n in numbers]
    counts = pa.concat_tables([bucket_counts(table, of) for table in reversed(tables)])
    of = of.numbered(counts)
    made = pa.concat_tables([bucket_samples(table, of) for table in tables])
    for i, name in enumerate(SPLITS):
        mine = made.filter(pa.compute.equal(made["split"], i)).drop_columns("split").to_pylist()
        assert str(mine) == str(requests(folder, name))
    sequences = pa.concat_tables([bucket_sequences(table, of) for table in tables])
    assert str(sequences.to_pylist()) == str(pq.read_table(folder / "sequences").to_pylist())
    catalog = pq.read_table(folder / "catalog.parquet")
    for column, of_catalog in (("shown", "impressions"), ("positives", "positives")):
        total: Counter[int] = Counter()
        for row in counts.to_pylist():
            total.update(dict(zip(row["item"], row[column], strict=True)))
        assert [total[i] for i in range(len(items))] == catalog[of_catalog].to_pylist()[1:]
    told = read_manifest(folder, "prepared")
    assert told["users"] == sum(counts["users"].to_pylist())
    assert told["tables"]["user"] == sum(counts["known_users"].to_pylist()) + 1


def test_clusters_of_a_bucket() -> None:
    """In the declared columns, for impressions and visits alike; from where nothing makes samples, no rows."""
    for table, alone in ((shown(moments=800), False), (visited(moments=800), True)):
        of = context(alone, cluster_visits=3, history_length=100)
        found = bucket_samples(table, of)
        assert found.schema == samples_schema(of.extra, clusters=True)
        plain = bucket_samples(table, replace(of, clusters=None))
        assert [sum(x) for x in found["history_size"].to_pylist()] == [len(x) for x in plain["history"].to_pylist()]
        assert max(max(x, default=0) for x in found["history_size"].to_pylist()) == 3
        later = replace(of, since=10**6 * HOUR, starts=(10**6 * HOUR, 10**6 * HOUR))
        assert len(bucket_samples(table, later)) == 0
