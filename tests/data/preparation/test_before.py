"""``prepare --after``: days in turn are as all days at once, and nobody's row moves."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from delivery import delivery, write_delivery
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_tables import ITEMS, START, column, everything, impressions, read, run, visits, write

from placerank.data.arrays import starts_run
from placerank.data.batches.loader import SampleLoader
from placerank.data.batches.sequences import SequenceLoader
from placerank.data.manifest import read_manifest
from placerank.data.preparation import before as module
from placerank.data.preparation.before import Before, kept
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.data.preparation.vocabulary import item_vocabularies, vocabulary
from placerank.data.raw.columns import DataError
from placerank.data.requests import Lists, Sequences

DAY = 20_000
MORE_ITEMS = pa.table(
    {
        "item_id": [f"z{i}" for i in range(3)],  # after all others in the order of ids, as visits of one moment are
        "name": ["new"] * 3,
        "category": pa.array([["bar"], ["food", "noodles"], None], pa.list_(pa.string())),
        "brand": ["a0", None, "b"],
        "price": pa.array([2, 9, None], pa.float32()),
        "lat": [50.0, 50.01, 50.02],
        "lon": [4.0] * 3,
        "city": ["a", "x", None],
    }
)
ALL_ITEMS = pa.concat_tables([ITEMS, MORE_ITEMS])
USERS = {"age": lambda u: ["old", "young", None][int(str(u).strip("u")) % 3]}


def days(source: dict[str, Any], *ends: int) -> list[dict[str, Any]]:
    """The interactions cut at moments."""
    time = source["timestamp"].cast(pa.int64()).to_numpy()
    day = np.searchsorted(ends, time, "right")
    return [{n: pa.array(x).filter(pa.array(day == i)) for n, x in source.items()} for i in range(len(ends) + 1)]


def users_of(source: dict[str, Any]) -> pa.Table:
    ids = sorted(set(pa.array(source["user_id"]).to_pylist()))
    return pa.table({"user_id": ids, "age": [USERS["age"](u) for u in ids]})


def in_turn(tmp: Path, source: dict[str, Any], *ends: int, **options: Any) -> list[Path]:
    """Prepared folders of each day after the one before; new items open on the second."""
    folders: list[Path] = []
    for i, own in enumerate(days(source, *ends)):
        (tmp / f"day{i}").mkdir()
        raw = write(tmp / f"day{i}" / "raw", own, ALL_ITEMS if i else ITEMS, users_of(own))
        folders.append(run(raw, after=folders[-1] if folders else None, **options))
    return folders


def two_sources(kind: str) -> dict[str, Any]:
    """With more users, and visits to new items, from the second day on."""
    source = impressions(900, users=5) if kind == "impressions" else visits(500, users=5)
    late = impressions(300, users=9, seed=1) if kind == "impressions" else visits(300, users=9, seed=1)
    begin = START + (60_000 if kind == "impressions" else 1_440_000)
    late["timestamp"] = pc.add(late["timestamp"], pa.scalar(begin - START, pa.duration("s")))
    if kind == "impressions":
        late["request_id"] = [f"late {r}" for r in late["request_id"]]
    late["item_id"] = [f"z{i[1:]}" if int(i[1:]) < 3 else i for i in late["item_id"]]
    return {n: pa.concat_arrays([pa.array(source[n]), pa.array(late[n])]) for n in source}, begin


def by_id(folder: Path, rows: list[dict[str, Any]]) -> Counter[Any]:
    """Samples in raw ids."""
    items = column(folder, "catalog.parquet", "item_id")
    users = column(folder, "next/users.parquet", "user_id")
    vocabulary_ = column(folder, "users.parquet", "user_id")
    found: Counter[Any] = Counter()
    for r in rows:
        user = users[r["user_index"]]
        assert vocabulary_[r["user_row"]] in (user, None)
        history = zip(r["history_hours"], (items[i] for i in r["history"]), strict=True)
        place = None if np.isnan(r["lat"]) else (r["lat"], r["lon"])
        found[(user, items[r["item_row"]], r["time"], r["label"], r["visits"], place, tuple(history))] += 1
    return found


@pytest.mark.parametrize("kind", ["impressions", "check-ins"])
@pytest.mark.parametrize("recent", [256, 4])
def test_days_in_turn_are_all_days_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, recent: int
) -> None:
    monkeypatch.setattr(module, "RECENT", recent)
    source, begin = two_sources(kind)
    step = 1000 if kind == "impressions" else 7200
    ends = [begin, begin + 30 * step]
    options = {"history_length": 4, "min_user_positives": 3, "reach_km": 5.0}
    folders = in_turn(tmp_path, source, *ends, **options)
    together = run(write(tmp_path / "raw", source, ALL_ITEMS, users_of(source)), **options)
    whole = [r for rows in everything(together).values() for r in rows]
    for i, folder in enumerate(folders):
        own = [r for r in whole if np.searchsorted(ends, r["time"], "right") == i]
        rows = [r for rows in everything(folder).values() for r in rows]
        if kind == "check-ins":  # negatives are drawn anew
            own, rows = ([r for r in some if r["label"]] for some in (own, rows))
        assert by_id(folder, rows) == by_id(together, own)
    for name in ("catalog", "users"):
        tables = [pq.read_table(f / f"{name}.parquet") for f in folders]
        for earlier, later in pairwise(tables):  # nobody's row moves
            key = "item_id" if name == "catalog" else "user_id"
            assert later[key].to_pylist()[: len(earlier)] == earlier[key].to_pylist()
            ids = later[key].to_pylist()
            assert len(set(ids)) == len(ids)
        assert len(tables[-1]) > len(tables[0])
    for name in ("category", "brand", "price", "city", "age"):
        values = [column(f, f"vocab/{name}.parquet", "value") for f in folders]
        assert all(b[: len(a)] == a for a, b in pairwise(values))
    last, ids = folders[-1], column(folders[-1], "catalog.parquet", "item_id")[1:]
    counts = pq.read_table(last / "next" / "items.parquet")
    every = Counter(source["item_id"].to_pylist())
    if kind == "impressions":
        assert dict(zip(ids, counts["impressions"].to_pylist(), strict=True)) == {i: every[i] for i in ids}
    age = column(last, "vocab/age.parquet", "value")
    for user, row in zip(*(column(last, "users.parquet", c) for c in ("user_id", "age_row")), strict=True):
        assert user is None or age[row] == USERS["age"](user)


def test_new_items_come_after_all_others(tmp_path: Path) -> None:
    source, begin = two_sources("check-ins")
    one, two = days(source, begin)
    first = run(write(tmp_path / "one", one, ITEMS))
    (tmp_path / "b").mkdir()
    opened = MORE_ITEMS.set_column(0, "item_id", pa.array(["a2", "a0", "a1"]))
    two["item_id"] = [f"a{i[1:]}" if i[0] == "z" else i for i in two["item_id"].to_pylist()]
    second = run(write(tmp_path / "b" / "raw", two, pa.concat_tables([opened, ITEMS])), after=first)
    then, now = (column(f, "catalog.parquet", "item_id") for f in (first, second))
    assert now == [*then, "a0", "a1", "a2"]
    lat = dict(zip(now, column(second, "catalog.parquet", "lat"), strict=True))
    assert (lat["a2"], lat["a0"], lat["i3"]) == (50.0, 50.01, ITEMS["lat"][3].as_py())


def test_counts_are_of_all_days(tmp_path: Path) -> None:
    source, begin = two_sources("check-ins")
    first, second = in_turn(tmp_path, source, begin, history_length=4)
    catalog = pq.read_table(second / "catalog.parquet").slice(1).to_pylist()
    table = pa.table(source).to_pylist()
    rows = {(r["user_id"], r["item_id"], int(r["timestamp"].timestamp())) for r in table}
    starts = [min(r["time"] for r in read(second, split)) for split in ("train", "valid")]
    manifest = read_manifest(second, "prepared")
    cut = manifest["splits"]["valid"]["time"][0]
    assert starts[0] >= begin and cut == starts[1]
    for row in catalog:
        known = [t for _, i, t in rows if i == row["item_id"] and t < cut]
        assert (row["positives"], row["last_positive"]) == (len(known), max(known, default=0))
    for row in pq.read_table(second / "users.parquet").slice(1).to_pylist():
        known = [t for u, _, t in rows if u == row["user_id"] and t < cut]
        assert (row["positives"], row["last_positive"]) == (len(known), max(known))
    assert manifest["made_from"]["after"] == read_manifest(first, "prepared")["content_hash"]


def test_generative_rankers_see_the_days_before(tmp_path: Path) -> None:
    source, begin = two_sources("check-ins")
    offset = {int(t.timestamp()): 60.0 * (i % 5) for i, t in enumerate(source["timestamp"].to_pylist())}
    source["utc_offset"] = pa.array([offset[int(t.timestamp())] for t in source["timestamp"].to_pylist()], pa.float32())
    first, second = in_turn(tmp_path, source, begin, history_length=4)
    batch = next(iter(SequenceLoader(second, "train", 10_000, history=20, together=1)))
    visits_ = pa.table(source).to_pylist()
    moments = {int(r["timestamp"].timestamp()) for r in visits_}
    assert int(batch.target_time.min()) >= begin
    assert int(batch.time.min()) < begin and {*batch.time.tolist()} <= moments
    assert batch.utc_offset.tolist() == [offset[t] for t in batch.time.tolist()]
    assert batch.target_offset.tolist() == [offset[t] for t in batch.target_time.tolist()]
    assert first.exists()


def test_threads_make_the_same_bytes(tmp_path: Path) -> None:
    source, begin = two_sources("impressions")
    first, second = in_turn(tmp_path, source, begin)
    out = prepare(PrepareConfig(input=second.parent / "raw", after=first, out=tmp_path / "threads"), 2)
    files = [{n: f["sha256"] for n, f in read_manifest(x, "prepared")["files"].items()} for x in (second, out)]
    assert files[0] == files[1]


def test_what_does_not_go_on_is_refused(tmp_path: Path) -> None:
    source, begin = two_sources("impressions")
    one, two = days(source, begin)
    first = run(write(tmp_path / "one", one, ITEMS, users_of(one)))

    def refused(interactions: dict[str, Any], items: pa.Table = ALL_ITEMS, users: pa.Table | None = None) -> str:
        (tmp_path / "again").mkdir(exist_ok=True)
        with pytest.raises((DataError, ValueError)) as error:
            run(write(tmp_path / "again" / "raw", interactions, items, users), after=first)
        (tmp_path / "again" / "raw" / "users.parquet").unlink(missing_ok=True)
        return str(error.value)

    assert "some would count twice" in refused(source)
    numbers = {**two, "user_id": list(range(len(two["user_id"])))}
    assert "user_id is int64" in refused(numbers)
    other = users_of(two).rename_columns(["user_id", "sex"])
    told = refused(two, users=other)
    assert f"--after {first}: [users.age]: there is no such column in users; its own columns are sex" in told
    by_number = ALL_ITEMS.set_column(0, "item_id", pa.array(range(len(ALL_ITEMS))))
    assert "item_id is int64" in refused({**two, "item_id": [0] * len(two["user_id"])}, by_number)
    (tmp_path / "places").mkdir()
    alone = run(write(tmp_path / "places" / "raw", days(visits(), START + 10**9)[0]))
    shifted = impressions()
    shifted["timestamp"] = pc.add(shifted["timestamp"], pa.scalar(10**8, pa.duration("s")))
    shifted["user_id"] = [int(u[1:]) for u in shifted["user_id"]]
    with pytest.raises(DataError, match="has visits alone"):
        run(write(tmp_path / "mixed", shifted), after=alone)
    with pytest.raises(ValueError, match="built-in engine"):
        run(tmp_path / "mixed", after=alone, engine="ray")


@pytest.mark.parametrize("group", [65_536, 20])
def test_a_day_without_some_users_and_items(tmp_path: Path, group: int) -> None:
    """One user, one item listed: everybody else keeps rows and visits for the day after that, be it in row groups of
    which nobody came that day."""
    source, begin = two_sources("check-ins")
    one = days(source, begin)[0]
    hours = pa.array(["24/7", None, "Mo 09:00-17:00", "off", *[None] * 8])
    first = run(write(tmp_path / "one", one, ITEMS.append_column("opening_hours", hours)), row_group_rows=group)
    (tmp_path / "b").mkdir()
    day = begin + 100 * np.arange(20)
    few = {"user_id": [0] * 20, "item_id": ["i2"] * 20, "timestamp": day, "label": [1] * 20}
    now = ITEMS.slice(2, 1).append_column("opening_hours", pa.array(["Su 10:00-12:00"]))
    second = run(write(tmp_path / "b" / "raw", few, now), after=first, row_group_rows=group)
    open_ = dict(zip(*(column(second, "catalog.parquet", n) for n in ("item_id", "opening_hours")), strict=True))
    assert open_["i0"] == [{"open": 0, "close": 10_080}] and open_["i3"] == [] and open_["i1"] is None
    assert open_["i2"] == [{"open": 6 * 1440 + 600, "close": 6 * 1440 + 720}], "as today says"
    for name in ("catalog", "users"):
        key = "item_id" if name == "catalog" else "user_id"
        assert column(second, f"{name}.parquet", key) == column(first, f"{name}.parquet", key)
    for name in ("name", "brand", "lat", "category", "brand_row", "category_row"):
        assert column(second, "catalog.parquet", name)[1:] == column(first, "catalog.parquet", name)[1:]
    (tmp_path / "c").mkdir()
    late = begin + 100_000 + 100 * np.arange(40)
    ids = [i % 5 for i in range(40)]
    more = {"user_id": ids, "item_id": [f"i{i % 12}" for i in range(40)], "timestamp": late, "label": [1] * 40}
    third = run(write(tmp_path / "c" / "raw", more), after=second, row_group_rows=group)
    done = {(u, i): 0 for u in range(5) for i in column(third, "catalog.parquet", "item_id")}
    rows = {(u, i, t) for x in (one, few, more) for u, i, t in zip(*_raw(x), strict=True)}
    users, items = column(third, "next/users.parquet", "user_id"), column(third, "catalog.parquet", "item_id")
    checked = 0
    for split in everything(third).values():
        for r in split:
            user, item = users[r["user_index"]], items[r["item_row"]]
            assert r["visits"] == sum(u == user and i == item and t < r["time"] for u, i, t in rows)
            checked += r["visits"] > 0
    assert checked and done


def test_users_that_get_lost_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of samples would be others' rows of users."""
    source, begin = two_sources("check-ins")
    one, two = days(source, begin)
    first = run(write(tmp_path / "one", one, ITEMS))
    monkeypatch.setattr(Before, "carried", lambda *_: iter(()))
    (tmp_path / "b").mkdir()
    few = {n: x.slice(0, 20) for n, x in two.items()}
    with pytest.raises(ValueError, match=r"don't fit each other: \d users are in the latter alone; prepare that day"):
        run(write(tmp_path / "b" / "raw", few, ALL_ITEMS), after=first)


def _raw(x: dict[str, Any]) -> tuple[list[Any], list[Any], list[int]]:
    table = pa.table(x)
    return table["user_id"].to_pylist(), table["item_id"].to_pylist(), table["timestamp"].cast(pa.int64()).to_pylist()


def own_days(tmp: Path, **second: Any) -> tuple[Path, Path]:
    """Delivery's raw folders of the first two thirds of the interactions, and of the rest, where tables may differ."""
    rows = delivery()[2]
    cut = 2 * len(rows) // 3
    (tmp / "two").mkdir()
    one = write_delivery(tmp / "one", interactions=rows.slice(0, cut))
    return one, write_delivery(tmp / "two" / "raw", **{"interactions": rows.slice(cut), **second})


def test_own_columns_go_on(tmp_path: Path) -> None:
    items, _, rows = delivery()
    cut = 2 * len(rows) // 3
    device = [d if i % 4 else "a tv" for i, d in enumerate(rows["device"].to_pylist())]
    later = rows.set_column(rows.column_names.index("device"), "device", pa.array(device)).slice(cut)
    later = later.append_column("new", pa.array(range(len(later))))
    opened = pa.table({n: [x if n != "item_id" else "p999"] for n, x in items.slice(0, 1).to_pylist()[0].items()})
    opened = opened.set_column(opened.column_names.index("cuisines"), "cuisines", pa.array([["acme", "thai"]]))
    some = pa.concat_tables([items.slice(3), opened.select(items.column_names).cast(items.schema)])
    one, two = own_days(tmp_path, items=some, interactions=later)
    (two / "users.parquet").unlink()
    first, second = run(one), run(two, after=one.parent / "out")
    then, now = (read_manifest(f, "prepared") for f in (first, second))
    assert now["own"] == then["own"] and now["user_columns"] == then["user_columns"]
    for name in then["tables"]:
        if (first / "vocab" / f"{name}.parquet").exists():
            old, new = (column(f, f"vocab/{name}.parquet", "value") for f in (first, second))
            assert new[: len(old)] == old, name
    assert column(second, "vocab/device.parquet", "value")[-1] == "a tv"
    assert column(second, "vocab/cuisines.parquet", "value")[-1] == "acme"
    a, b = (pq.read_table(f / "catalog.parquet") for f in (first, second))
    own = [n for n in b.column_names if n.split("_")[0] in ("rating", "cuisines", "vip", "opened", "kitchen")]
    assert own and all(b[n].to_pylist()[: len(a)] == a[n].to_pylist() for n in own)  # listed today or not
    assert b["rating_row"][-1] == a["rating_row"][a["item_id"].to_pylist().index("p0")]
    a, b = (pq.read_table(f / "users.parquet") for f in (first, second))
    own = [n for n in b.column_names if n.split("_")[0] in ("plan", "age", "likes")]
    assert own and all(b[n].to_pylist()[: len(a)] == a[n].to_pylist() for n in own)
    words_ = column(second, "vocab/device.parquet", "value")
    found = {words_[r["own.device"]] for split in everything(second).values() for r in split}
    assert found == {"a tv", "ios", "android", "web"}
    left = now["summary"]["unused_columns"]["interactions"]
    assert any(text.startswith("new (no feature in") for text in left)


def test_own_columns_that_changed_overnight(tmp_path: Path) -> None:
    rows = delivery()[2]
    one, two = own_days(tmp_path)
    first = run(one)
    cut = rows.slice(2 * len(rows) // 3)
    at = cut.column_names.index("fee")
    for change, told in (
        (cut.drop_columns(["fee"]), r"\[interactions.fee\]: there is no such column"),
        (cut.set_column(at, "fee", pa.array(["free"] * len(cut))), "kind = 'buckets' does not fit its type string"),
    ):
        pq.write_table(change, two / "interactions.parquet")
        with pytest.raises(DataError, match=told):
            run(two, after=first)


words = st.lists(st.text("abc", min_size=1, max_size=2), max_size=8)


@settings(max_examples=400, deadline=None)
@given(st.lists(words, min_size=1, max_size=6))
def test_vocabularies_grow_and_no_value_moves(steps: list[list[str]]) -> None:
    table, seen = None, {}
    for values in steps:
        table = vocabulary(pa.array([*values, None], pa.string()), table)
        rows = table["value"].to_pylist()
        assert rows[0] is None and len(set(rows)) == len(rows) and {*rows[1:]} == {*seen, *values}
        assert all(rows[at] == value for value, at in seen.items())
        seen = {value: at for at, value in enumerate(rows) if at}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 3)), max_size=40), st.integers(1, 6))
def test_kept_visits_are_as_good_as_all(rows: list[tuple[int, int, int]], recent: int) -> None:
    """Last visits and counts of each item from what is kept, against all; ties at every edge."""
    rows = sorted(rows, key=lambda r: r[:2])
    user, time, item = (np.array([r[i] for r in rows], np.int64) for i in range(3))
    earlier = [sum(u == a and i == c and t < b for u, t, i in rows) for a, b, c in rows]
    new = np.flatnonzero(starts_run(user)) if len(rows) else np.zeros(0, np.int64)
    flat = {"user_row": user[new].astype(np.int32), "user_index": user[new]}
    columns = {"item_row": item.astype(np.int32) + 1, "time": time, "visits": np.array(earlier, np.int32)}
    users = Sequences(flat, Lists(np.append(new, len(rows)), columns))
    before, module.RECENT = module.RECENT, recent
    try:
        at, folded = kept(users)
    finally:
        module.RECENT = before
    for u in set(user.tolist()):
        mine, all_of = [i for i in at if user[i] == u], [i for i in range(len(rows)) if user[i] == u]
        assert mine[-recent:] == all_of[-recent:]
        for i in set(item.tolist()):
            total = sum(item[j] == i for j in all_of)
            have = sum((item[j] == i) * (1 + f) for j, f in zip(at, folded, strict=True) if user[j] == u)
            assert have == total


def test_prices_stay_in_their_buckets() -> None:
    prices = pa.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9], pa.float64())
    names = ("category", "brand", "province", "city", "district")
    text = {n: pa.nulls(9, pa.list_(pa.string()) if n == "category" else pa.string()) for n in names}
    first, rows = item_vocabularies(pa.table({**text, "price": prices}), 3)
    later = pa.array([0.5, 1, 4, 8.9, 9, 1000, None, 3.5, 5], pa.float64())
    then, again = item_vocabularies(pa.table({**text, "price": later}), 8, first)
    assert then["price"].equals(first["price"])
    assert again["price_row"].to_pylist()[:7] == [1, 1, rows["price_row"][3].as_py(), 3, 3, 3, 0]


days_of_ids = st.lists(st.sets(st.integers(1, 30), min_size=1, max_size=8), min_size=1, max_size=4)


@settings(max_examples=1000, deadline=None)
@given(days_of_ids)
def test_places_that_open_and_close_leave_every_row_its_owner(days_: list[set[int]]) -> None:
    """Each day lists some places: new ones get rows after all others, and one that closed keeps its row, and what was
    known of it; when it opens again it is there."""
    empty = pa.table({"item_id": pa.nulls(1, pa.int64()), "name": pa.nulls(1, pa.string())})
    catalog, owner, names = empty, {}, {}
    for day, ids in enumerate(days_):
        today = pa.table({"item_id": sorted(ids), "name": [f"{i} on day {day}" for i in sorted(ids)]})

        class Yesterday(Before):
            kept = catalog

            def _read(self, name: str, columns: list[str] | None = None) -> pa.Table:
                return self.kept

        items = Yesterday(Path("yesterday"), {}).items(today)
        catalog = pa.concat_tables([empty, items.select(["item_id", "name"])])
        now = dict(zip(catalog["item_id"].to_pylist(), range(len(catalog)), strict=True))
        assert len(now) == len(catalog) and owner.items() <= now.items() and {*now} - {None} == {*names, *ids}
        names |= {i: f"{i} on day {day}" for i in ids}
        assert catalog["name"].to_pylist()[1:] == [names[i] for i in catalog["item_id"].to_pylist()[1:]]
        assert [i for i, x in zip(items["item_id"].to_pylist(), items["listed"].to_pylist(), strict=True) if x] == [
            i for i in items["item_id"].to_pylist() if i in ids
        ]
        owner = now


def test_labels_amount_and_weight_go_on(tmp_path: Path) -> None:
    """Days in turn as all days at once; a day without one of the columns is refused."""
    source, begin = two_sources("impressions")
    rng = np.random.default_rng(0)
    chosen = source["label"].to_numpy()
    order = (chosen * rng.integers(0, 2, len(chosen))).astype(np.int8)
    named: dict[str, Any] = {"labels": ["order"], "amount": "paid", "weight": "sure"}
    of_rows = {"order": order, "paid": order * rng.uniform(1, 9, len(order)), "sure": rng.uniform(0, 2, len(order))}
    source |= {n: pa.array(x) for n, x in of_rows.items()}
    folders = in_turn(tmp_path, source, begin, **named)
    together = run(write(tmp_path / "raw", source, ALL_ITEMS, users_of(source)), **named)

    def rows(folder: Path) -> Counter[Any]:
        items, found = column(folder, "catalog.parquet", "item_id"), Counter[Any]()
        for split in ("train", "valid", "test"):
            for b in SampleLoader(folder, split, 500):
                values = [b.item, b.time[b.request], b.label, *(b.own[n] for n in of_rows)]
                for item, *more in zip(*(x.tolist() for x in values), strict=True):
                    found[(items[item], *more)] += 1
        return found

    assert rows(folders[0]) + rows(folders[1]) == rows(together)
    outcomes = [read_manifest(f, "prepared")["outcomes"] for f in (*folders, together)]
    assert all(o["labels"] == ["order"] and o["amount"] == "paid" and o["weight"] == "sure" for o in outcomes)
    for folder, o in zip((*folders, together), outcomes, strict=True):
        train = [b.own["order"] for b in SampleLoader(folder, "train", 10_000)]
        assert o["train"]["positives"]["order"] == sum(int(x.sum()) for x in train) > 0
    lacking = {n: x for n, x in days(source, begin)[1].items() if n != "paid"}
    with pytest.raises(DataError, match="no column 'paid', which is named as a label, amount or weight"):
        run(write(tmp_path / "lacking", lacking, ALL_ITEMS), after=folders[0], **named)
    raw = write(tmp_path / "forgot", days(source, begin)[1], ALL_ITEMS)
    for today, told in (
        ({}, "labels order, amount paid, weight sure,"),
        ({**named, "weight": None}, "has weight sure,"),
    ):
        with pytest.raises(ValueError, match=told):
            run(raw, after=folders[0], **today)


def test_after_in_text(tmp_path: Path) -> None:
    """CSV lists today's new items alone, visits go to all; and its columns are what they were, whatever today holds."""

    def day(name: str, items: list[str], rows: list[str]) -> Path:
        raw = tmp_path / name / "raw"
        raw.mkdir(parents=True)
        (raw / "items.csv").write_text("\n".join(["item_id,name,category,lat,lon,stars,tags", *items]))
        (raw / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp,label,fee,order", *rows]))
        return raw

    def rows(items: int, start: int, fee: str) -> list[str]:
        return [f"u{i % 7},i{i % items},{start + 60 * i},{i % 2},{fee.format(i % 5)},{i % 2}" for i in range(200)]

    old = [f"i{i},n,food,50.0,{4 + i / 100},{i}.5,a{i % 2}|b" for i in range(8)]
    first = run(day("a", old, rows(8, 1_600_000_000, "{}.25")), format="csv", labels=["order"])
    new = ["i8,n,food,50.0,4.2,,a1"]  # no stars, one tag
    second = run(day("b", new, rows(9, 1_700_000_000, "")), format="csv", after=first, labels=["order"])
    manifest = read_manifest(second, "prepared")
    assert manifest["summary"]["kept"]["interactions"] == 200
    assert "interactions.order: label, 80 of 160 training rows" in manifest["summary"]["own_columns"]
    assert [(f["column"], f["kind"]) for f in manifest["own"]] == [
        ("stars", "buckets"), ("tags", "list"), ("fee", "buckets"),
    ]  # fmt: skip
    catalog = pq.read_table(second / "catalog.parquet")
    assert catalog["item_id"].to_pylist()[1:] == [f"i{i}" for i in range(9)]
    assert catalog.slice(0, 9)["tags_rows"].equals(pq.read_table(first / "catalog.parquet")["tags_rows"])
