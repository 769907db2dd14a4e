"""``prepare`` against loops over rows: splits, histories, counts, negatives, vocabularies; and bad input."""

import math
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from raw_tables import (
    ITEMS,
    START,
    column,
    everything,
    impressions,
    read,
    requests,
    run,
    same,
    visits,
    warnings_of,
    write,
)

from placerank.data.manifest import read_manifest
from placerank.data.preparation import prepare as module
from placerank.data.preparation import samples as samples_module
from placerank.data.preparation.vocabulary import category_rows, price_rows, rows_of, vocabulary
from placerank.data.raw.columns import DataError
from placerank.kernels.haversine import haversine_km


def rows_back(folder: Path, interactions: dict[str, Any]) -> list[tuple[str, str, int, int]]:
    """(user, item, time, label) of the source."""
    table = pa.table(interactions)
    time = table["timestamp"].cast(pa.int64()).to_pylist()
    return list(
        zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), time, table["label"].to_pylist(), strict=True)
    )


def check_no_leak(folder: Path, source: list[tuple[Any, str, int, int]], longest: int) -> None:
    """Histories, visits and counts of every sample and catalog row, from the source by loops."""
    items = column(folder, "catalog.parquet", "item_id")
    splits = everything(folder)
    users = sorted({u for u, *_ in source})  # one bucket, so in the order of user_index
    positives: dict[Any, list[tuple[int, str]]] = defaultdict(list)
    for user, item, time, label in source:
        if label:
            positives[user].append((time, item))
    for rows in splits.values():
        for row in rows:
            user, item = users[row["user_index"]], items[row["item_row"]]
            before = sorted(x for x in positives[user] if x[0] < row["time"])
            got = [items[i] for i in row["history"]]
            hours = [(row["time"] - t) / 3600 for t, _ in before[-longest:]]
            assert row["history_hours"] == pytest.approx(hours)
            cut = before[-longest][0] if len(before) > longest else None
            pairs = list(zip([t for t, _ in before[-longest:]], got, strict=True))
            untied = [Counter(x for x in some if x[0] != cut) for some in (pairs, before[-longest:])]
            assert untied[0] == untied[1] and set(pairs) <= set(before)  # which ones at the cut is free
            assert row["visits"] == sum(x == item for _, x in before)
    train_end = min(r["time"] for r in splits["valid"])
    known = [(u, i, t) for u, i, t, label in source if label and t < train_end]
    assert column(folder, "catalog.parquet", "positives") == [sum(i == x for _, i, _ in known) for x in items]
    last = [max((t for _, i, t in known if i == x), default=0) for x in items]
    assert column(folder, "catalog.parquet", "last_positive") == last
    seen = [i for _, i, t, _ in source if t < train_end]
    assert column(folder, "catalog.parquet", "impressions") == [sum(i == x for i in seen) for x in items]
    count = Counter(u for u, *_ in known)
    ids = column(folder, "users.parquet", "user_id")
    assert ids[0] is None and set(ids[1:]) == {u for u, n in count.items() if n >= 2}
    assert column(folder, "users.parquet", "positives")[1:] == [count[u] for u in ids[1:]]
    row_of = {u: i for i, u in enumerate(ids)}
    for rows in splits.values():
        assert all(r["user_row"] == row_of.get(users[r["user_index"]], 0) for r in rows)


# --- impressions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_impressions_against_loops(tmp_path: Path, seed: int) -> None:
    source = impressions(seed=seed)
    folder = run(write(tmp_path / "raw", source), history_length=4)
    rows = rows_back(folder, source)
    check_no_leak(folder, rows, 4)
    splits, items = everything(folder), column(folder, "catalog.parquet", "item_id")
    users = sorted({u for u, *_ in rows})
    got = [(users[r["user_index"]], items[r["item_row"]], r["time"], r["label"]) for s in splits.values() for r in s]
    assert Counter(got) == Counter(rows)  # every row of the source once, nothing else


def test_requests(tmp_path: Path) -> None:
    source = impressions()
    folder = run(write(tmp_path / "raw", source))
    items, users = column(folder, "catalog.parquet", "item_id"), sorted(set(source["user_id"]))
    expected = Counter(
        (request, user, item, label)
        for request, user, item, label in zip(
            *(source[c] for c in ("request_id", "user_id", "item_id", "label")), strict=True
        )
    )
    raw_request: dict[tuple[str, str, int], set[str]] = defaultdict(set)
    for request, user, item, label in expected:
        raw_request[user, item, label].add(request)
    seen: set[int] = set()
    for rows in everything(folder).values():
        groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
        last = None
        for row in rows:
            if row["request"] != last:
                assert row["request"] not in groups  # adjacent
                last = row["request"]
            groups[row["request"]].append(row)
        assert not seen & set(groups)
        seen |= set(groups)
        for group in groups.values():
            assert len({(r["user_index"], r["time"], str(r["lat"]), str(r["lon"])) for r in group}) == 1
            common = set.intersection(
                *(raw_request[users[r["user_index"]], items[r["item_row"]], r["label"]] for r in group)
            )
            assert common
    assert len(seen) == len(set(source["request_id"]))


def test_without_request_ids_a_moment_is_a_request(tmp_path: Path) -> None:
    source = impressions()
    del source["request_id"]
    folder = run(write(tmp_path / "raw", source))
    rows = [r for s in everything(folder).values() for r in s]
    assert len({r["request"] for r in rows}) == len({(r["user_index"], r["time"]) for r in rows})
    assert len({(r["request"], r["user_index"], r["time"]) for r in rows}) == len({r["request"] for r in rows})


def test_place_on_some_rows_is_shared(tmp_path: Path) -> None:
    source = impressions()
    lat = source["user_lat"]
    folder = run(write(tmp_path / "raw", source))
    known = {r for r, x in zip(source["request_id"], lat.to_pylist(), strict=True) if x is not None}
    rows = [r for s in everything(folder).values() for r in s]
    assert len({r["request"] for r in rows if r["lat"] == r["lat"]}) == len(known)
    assert all((r["lat"] == r["lat"]) == (r["lon"] == r["lon"]) for r in rows)


def test_splits(tmp_path: Path) -> None:
    source = impressions(rows=1000, moments=1000)
    folder = run(write(tmp_path / "raw", source), valid_fraction=0.2, test_fraction=0.1)
    splits = everything(folder)
    assert abs(len(splits["valid"]) - 200) < 10 and abs(len(splits["test"]) - 100) < 10
    assert max(r["time"] for r in splits["train"]) < min(r["time"] for r in splits["valid"])
    assert max(r["time"] for r in splits["valid"]) < min(r["time"] for r in splits["test"])
    told = read_manifest(folder, "prepared")["splits"]
    for name, rows in splits.items():
        assert told[name] == {
            "rows": len(rows),
            "requests": len({r["request"] for r in rows}),
            "positives": sum(r["label"] for r in rows),
            "mean_history": pytest.approx(np.mean([len(r["history"]) for r in rows])),
            "time": [min(r["time"] for r in rows), max(r["time"] for r in rows)],
            "row_groups": {"part-00000.parquet": [len(rows)]},
        }


def test_no_split_for_a_share_of_zero(tmp_path: Path) -> None:
    folder = run(write(tmp_path / "raw", impressions()), valid_fraction=0, test_fraction=0)
    assert set(read_manifest(folder, "prepared")["splits"]) == {"train"} and len(read(folder, "train")) == 400
    folder = run(write(tmp_path / "raw", impressions()), valid_fraction=0)
    assert set(read_manifest(folder, "prepared")["splits"]) == {"train", "test"}


def test_requests_share_their_offset(tmp_path: Path) -> None:
    """The first that is known of a request's rows; no column where the source has none."""
    source = impressions()
    request = [sum(map(int, r.split("-")[1:])) for r in source["request_id"]]
    here = np.array([[-240.0, 330.5, 0.0][r % 3] for r in request], np.float32)
    lost = np.random.default_rng(0).random(400) < 0.6
    source["utc_offset"] = pa.array(here, mask=lost)
    known = {r for r, gone in zip(source["request_id"], lost, strict=True) if not gone}
    offsets = {r: float(at) if r in known else None for r, at in zip(source["request_id"], here, strict=True)}
    assert None in offsets.values()
    folder = run(write(tmp_path / "raw", source))
    made = [r["utc_offset"] for name in ("train", "valid", "test") for r in requests(folder, name)]
    got = Counter(None if math.isnan(x) else x for x in made)
    assert got == Counter(offsets.values())
    chosen = Counter(offsets[r] for r, label in zip(source["request_id"], source["label"], strict=True) if label)
    assert sequence_offsets(folder) == chosen
    del source["utc_offset"]
    folder = run(write(tmp_path / "raw", source))
    assert "utc_offset" not in requests(folder, "train")[0]
    assert sequence_offsets(folder) == {None: chosen.total()}


def sequence_offsets(folder: Path) -> Counter[float | None]:
    """How often sequences have each offset."""
    rows = [r for file in sorted((folder / "sequences").glob("*")) for r in pq.read_table(file).to_pylist()]
    return Counter(None if math.isnan(x) else x for r in rows for x in r["utc_offset"])


def test_visits_have_their_own_offset(tmp_path: Path) -> None:
    source = visits()
    of_user = {u: 60.0 * u for u in range(5)}
    source["utc_offset"] = np.array([of_user[u] for u in source["user_id"]], np.float32)
    folder = run(write(tmp_path / "raw", source), train_negatives=2)
    users = sorted(set(source["user_id"].tolist()))
    made = requests(folder, "train")
    assert made and "probability" not in made[0]
    assert all(r["utc_offset"] == of_user[users[r["user_index"]]] for r in made)
    once = set(zip(*(pa.array(source[n]).to_pylist() for n in ("user_id", "item_id", "timestamp")), strict=True))
    assert sequence_offsets(folder) == Counter(of_user[u] for u, *_ in once)


def test_probability_is_kept(tmp_path: Path) -> None:
    source = impressions()
    source["probability"] = np.linspace(0, 1, 400, dtype=np.float32)
    folder = run(write(tmp_path / "raw", source))
    rows = [r for s in everything(folder).values() for r in s]
    assert sorted(r["probability"] for r in rows) == pytest.approx(np.linspace(0, 1, 400))


# --- what must not matter ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [impressions, visits])
@pytest.mark.parametrize("small", [False, True])
def test_order_of_rows_does_not_matter(tmp_path: Path, make: Any, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks that go back, shuffled files and items, one bucket or many."""
    if small:
        monkeypatch.setattr(module, "_BUCKET_ROWS", 70)
        monkeypatch.setattr(samples_module, "_CANDIDATES", 90)
    source = pa.table(make())
    shuffled = source.take(pa.array(np.random.default_rng(5).permutation(len(source))))
    items = ITEMS.take(pa.array(np.random.default_rng(6).permutation(len(ITEMS))))
    one = run(write(tmp_path / "a", source), out=tmp_path / "one")
    assert same(one, run(write(tmp_path / "b", source.sort_by("timestamp")), out=tmp_path / "two"))
    assert same(one, run(write(tmp_path / "c", shuffled, items), out=tmp_path / "three"))
    assert not same(one, run(tmp_path / "a", out=tmp_path / "four", seed=1))


@pytest.mark.parametrize("make", [impressions, visits])
def test_buckets_hold_the_same_samples(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write(tmp_path / "raw", make())

    def positives(folder: Path) -> Counter[Any]:
        ids = {"item": column(folder, "catalog.parquet", "item_id"), "user": column(folder, "users.parquet", "user_id")}
        return Counter(
            (ids["user"][r["user_row"]], ids["item"][r["item_row"]], r["time"], r["visits"], len(r["history"]), split)
            for split, rows in everything(folder).items()
            for r in rows
            if r["label"]
        )

    one = run(raw, out=tmp_path / "one")
    monkeypatch.setattr(module, "_BUCKET_ROWS", 70)
    monkeypatch.setattr(samples_module, "_CANDIDATES", 90)
    many = run(raw, out=tmp_path / "many", row_group_rows=32)
    assert positives(one) == positives(many)
    for folder in (one, many):
        rows = [r for s in everything(folder).values() for r in s]
        assert len({r["user_index"] for r in rows}) == read_manifest(folder, "prepared")["users"]
        assert len({(r["request"], r["user_index"], r["time"]) for r in rows}) == len({r["request"] for r in rows})
    check_row_groups(many, 32)


def check_row_groups(folder: Path, most: int) -> None:
    """Of whole requests, as the manifest tells, and full but for a file's last; alone where one has more candidates."""
    for split, told in read_manifest(folder, "prepared")["splits"].items():
        for path in sorted((folder / split).glob("*.parquet")):
            with pq.ParquetFile(path) as file:
                groups = [file.read_row_group(i)["label"].to_pylist() for i in range(file.num_row_groups)]
            assert told["row_groups"][path.name] == [sum(map(len, labels)) for labels in groups]
            for i, labels in enumerate(groups):
                sizes = [*map(len, labels)]
                assert sum(sizes) <= most or len(sizes) == 1
                assert i + 1 == len(groups) or sum(sizes) + len(groups[i + 1][0]) > most


@pytest.mark.parametrize("most", [1, 3, 7, 10_000])
def test_row_groups_are_bounded_by_candidates(tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples_module, "_CANDIDATES", 90)
    raw = write(tmp_path / "raw", impressions(moments=10))
    how = {"valid_fraction": 0.3, "test_fraction": 0.3}
    folder = run(raw, row_group_rows=most, **how)
    check_row_groups(folder, most)
    whole = run(raw, out=tmp_path / "whole", **how)
    assert str(everything(folder)) == str(everything(whole)), "only the groups differ"  # NaN is NaN in a text
    sizes = [len(r["label"]) for r in requests(folder, "train")]
    assert len({*sizes}) > 3 and 1 in sizes and max(sizes) > 7


def test_training_requests_are_in_random_order(tmp_path: Path) -> None:
    """Not in that of users and time, as those of validation are."""
    folder = run(write(tmp_path / "raw", impressions()))
    numbers = {split: [r["request"] for r in requests(folder, split)] for split in ("train", "valid", "test")}
    assert all(numbers[n] == sorted(numbers[n]) for n in ("valid", "test"))
    rises = np.diff(numbers["train"]) > 0
    assert len({*numbers["train"]}) == len(numbers["train"]) and 0.35 < rises.mean() < 0.65


# --- check-ins --------------------------------------------------------------------------------------------------


def distance(lat: float, lon: float, item: dict[str, Any]) -> float:
    degrees = (torch.tensor(x, dtype=torch.float64) for x in (lat, lon, item["lat"], item["lon"]))
    return float(haversine_km(*degrees))


@pytest.mark.parametrize("seed", [0, 1])
def test_check_ins_against_loops(tmp_path: Path, seed: int) -> None:
    source = visits(seed=seed)
    reach, hours, counts = 4.0, 24, {"train": 2, "valid": 5, "test": 5}
    folder = run(
        write(tmp_path / "raw", source),
        reach_km=reach,
        place_max_hours=hours,
        train_negatives=2,
        eval_negatives=5,
        history_length=3,
    )
    rows = sorted(set(rows_back(folder, source)))  # visits of the same second count once
    check_no_leak(folder, rows, 3)
    items = pq.read_table(folder / "catalog.parquet").to_pylist()
    by_id = {x["item_id"]: x for x in items}
    users = sorted({u for u, *_ in rows})
    lonely, known, placed = 0, 0, 0
    positives: list[tuple[Any, str, int]] = []
    first_is_positive = []
    for split, samples in everything(folder).items():
        groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in samples:
            groups[row["request"]].append(row)
        for group in groups.values():
            (positive,) = (r for r in group if r["label"])
            own = items[positive["item_row"]]
            user, time = users[positive["user_index"]], positive["time"]
            positives.append((user, own["item_id"], time))
            if split != "train":
                first_is_positive.append(group[0]["label"])
            assert len({(r["user_index"], r["time"], str(r["lat"]), str(r["lon"])) for r in group}) == 1
            before = [(t, i) for u, i, t, _ in rows if u == user and time - hours * 3600 <= t < time]
            latest = {i for t, i in before if t == max(before)[0]}
            lat, lon = group[0]["lat"], group[0]["lon"]
            if lat == lat:
                known += 1
                assert any(abs(by_id[i]["lat"] - lat) < 1e-5 for i in latest) and distance(lat, lon, own) <= reach
            else:
                assert not latest or any(distance(by_id[i]["lat"], 4.0, own) > reach for i in latest)
                placed += bool(latest)
                lat, lon = own["lat"], own["lon"]
            reachable = [x["item_id"] for x in items[1:] if distance(lat, lon, x) <= reach and x is not own]
            drawn = [items[r["item_row"]]["item_id"] for r in group if not r["label"]]
            assert len(set(drawn)) == len(drawn) == min(counts[split], len(reachable)) > 0
            assert set(drawn) <= set(reachable)
    lonely = sum(i == "i11" for _, i, _, _ in rows)  # nothing else is near it
    assert Counter(positives) == Counter((u, i, t) for u, i, t, _ in rows if i != "i11") and lonely
    told = read_manifest(folder, "prepared")
    assert told["check_ins"] == {"requests": len(rows) - lonely, "known_place": known, "no_negatives": lonely}
    assert told["source"] == "check-ins" and known and placed
    assert 0.05 < np.mean(first_is_positive) < 0.4  # where a candidate stands does not tell its label


@pytest.mark.parametrize("small", [False, True])
def test_repeated_visits_count_once(tmp_path: Path, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else the rows say: the same samples as of the visits alone."""
    if small:
        monkeypatch.setattr(module, "_BUCKET_ROWS", 70)
    source = pa.table(visits()).group_by(["user_id", "item_id", "timestamp", "label"]).aggregate([])
    source = source.append_column("request_id", pa.array(np.arange(len(source))))
    twice = pa.concat_tables([source, source]).set_column(4, "request_id", pa.array(np.arange(2 * len(source))))
    once = run(write(tmp_path / "once", source), out=tmp_path / "a", min_user_positives=1)
    again = run(write(tmp_path / "twice", twice), out=tmp_path / "b", min_user_positives=1)
    if not small:  # the same number of buckets
        assert same(once, again)
    told = [read_manifest(folder, "prepared") for folder in (once, again)]
    for split in (s for manifest in told for s in manifest["splits"].values()):
        del split["row_groups"]  # each bucket has its own
    assert told[0]["splits"] == told[1]["splits"] and told[0]["tables"] == told[1]["tables"]
    summary = told[1]["summary"]
    assert summary["left_out"]["visits repeated in the same second (each counts once)"] == len(source)
    assert f"{len(source):,} of {2 * len(source):,} interactions (50 %) are duplicates" in warnings_of(again)


def test_repeated_impressions_are_kept_and_told(tmp_path: Path) -> None:
    source = pa.table(impressions())
    contrary = source.set_column(3, "label", pa.compute.subtract(pa.scalar(1, pa.int8()), source["label"]))
    folder = run(write(tmp_path / "raw", pa.concat_tables([source, source, contrary])))
    assert sum(len(x) for x in everything(folder).values()) == 1200
    keys = ("request_id", "item_id", "label")
    rows = list(zip(*(pa.concat_tables([source, source, contrary])[k].to_pylist() for k in keys), strict=True))
    both = len(set(rows)) - len({r[:2] for r in rows})
    assert f"{1200 - len(set(rows)):,} of 1,200 interactions" in warnings_of(folder)
    assert f"{both:,} of 1,200 interactions" in warnings_of(folder) and both == len({r[:2] for r in rows})


def test_visits_with_nothing_else_in_reach(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", visits())
    with pytest.raises(DataError) as error:
        run(raw, reach_km=0.5)
    assert "the train split is empty: its 2" in str(error.value) and "raise --reach-km, or check lat" in str(
        error.value
    )
    assert "because no other item is within reach_km=0.5 of them" in str(error.value)
    items = ITEMS.set_column(5, "lat", pa.array([50.0, 50.001, *(51.0 + i for i in range(10))]))
    folder = run(write(tmp_path / "raw", visits(rows=600), items), reach_km=2)
    told = read_manifest(folder, "prepared")
    lost = told["check_ins"]["no_negatives"]
    assert lost > 400 and told["summary"]["left_out"]["visits with no other item within 2 km"] == lost
    assert "are left out because no other item is within 2 km: raise --reach-km" in warnings_of(folder)


def test_given_places(tmp_path: Path) -> None:
    source = visits()
    lat = np.array([50.0 + 0.01 * int(i[1:]) for i in source["item_id"]])
    source |= {"user_lat": np.clip(lat + 0.01, 50, 51), "user_lon": np.full(300, 4.0)}
    folder = run(write(tmp_path / "raw", source), reach_km=4.0)
    rows = [r for s in everything(folder).values() for r in s]
    positives = [r for r in rows if r["label"]]
    items = column(folder, "catalog.parquet", "lat")
    assert all(r["lat"] == pytest.approx(items[r["item_row"]] + 0.01) for r in positives)
    source["user_lat"] = lat
    told = warnings_of(run(write(tmp_path / "raw", source), reach_km=4.0))
    assert re.search(r"own place in \d+ of \d+ visits: distance 0 tells the label; drop", told)
    source["user_lat"] = lat + 5  # too far: the place is not used
    folder = run(write(tmp_path / "raw", source), reach_km=4.0)
    assert all(r["lat"] != r["lat"] for s in everything(folder).values() for r in s)


# --- catalog, users, vocabularies -------------------------------------------------------------------------------


def test_catalog(tmp_path: Path) -> None:
    folder = run(write(tmp_path / "raw", impressions()))
    catalog = pq.read_table(folder / "catalog.parquet").to_pylist()
    vocab = {p.stem: column(folder, f"vocab/{p.name}", "value") for p in (folder / "vocab").glob("*")}
    tables = read_manifest(folder, "prepared")["tables"]
    assert tables == {"item": 13, "user": 7, **{n: len(v) for n, v in vocab.items()}}
    assert all(v[0] is None for v in vocab.values())
    assert vocab["category"][1:] == ["food", "food > noodles", "food > noodles > ramen", "shop", "shop > noodles"]
    assert catalog[0]["item_id"] is None and catalog[0]["lat"] != catalog[0]["lat"]
    assert catalog[0]["category_path"] == [] and catalog[0]["popularity_bucket"] == 2
    assert "opening_hours" not in catalog[0], "nobody knows any"
    by_id = {x["item_id"]: x for x in ITEMS.to_pylist()}
    for row in catalog[1:]:
        source = by_id[row["item_id"]]
        assert row["lat"] == source["lat"] and row["name"] == source["name"]
        path = source["category"] or []
        assert [vocab["category"][i] for i in row["category_path"]] == [
            " > ".join(path[: d + 1]) for d in range(len(path))
        ]
        assert row["category_row"] == (row["category_path"][-1] if path else 0)
        for name in ("brand", "city", "province", "district"):
            assert vocab[name][row[f"{name}_row"]] == source.get(name)
        price = vocab["price"][row["price_row"]]
        assert price == (None if source["price"] is None else f"{source['price']:g}-{source['price']:g}")
    counts = sorted((-r["positives"], i, r["popularity_bucket"]) for i, r in enumerate(catalog[1:]))
    assert [b for *_, b in counts] == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]  # ceil of 10 % and 50 % of 12


def test_user_columns(tmp_path: Path) -> None:
    users = pa.table(
        {"user_id": ["u5", "u0", "u1", "u9"], "age": ["old", "young", None, "ancient"], "sex": [1, 0, 1, 0]}
    )
    folder = run(write(tmp_path / "raw", impressions(), users=users))
    assert read_manifest(folder, "prepared")["user_columns"] == ["age", "sex"]
    age = column(folder, "vocab/age.parquet", "value")
    assert age == [None, "ancient", "old", "young"]
    got = dict(zip(column(folder, "users.parquet", "user_id"), column(folder, "users.parquet", "age_row"), strict=True))
    assert got == {None: 0, "u0": 3, "u1": 0, "u2": 0, "u3": 0, "u4": 0, "u5": 2}
    folder = run(write(tmp_path / "raw", impressions(), users=users.rename_columns(["user_id", "city", "a/b.c"])))
    assert read_manifest(folder, "prepared")["user_columns"] == ["users_city", "a%2Fb%2Ec"]
    assert column(folder, "vocab/users_city.parquet", "value") == age
    assert column(folder, "vocab/a%2Fb%2Ec.parquet", "value") == [None, "0", "1"]
    assert column(folder, "vocab/city.parquet", "value") == [None, "x", "y"]


@pytest.mark.parametrize("text_in", ["users", "interactions"])
def test_user_ids_of_another_type(tmp_path: Path, text_in: str) -> None:
    """7 and "7" are the same user; "07" is another."""
    source = visits()
    told = ["a", "b", "c", "d", "e"]
    users = pa.table({"user_id": range(5), "age": told})
    if text_in == "users":
        users = pa.table({"user_id": ["01", "0", "1", "2", "3", "4"], "age": ["f", *told]})
    if text_in == "interactions":
        source["user_id"] = [str(u) for u in source["user_id"]]
    folder = run(write(tmp_path / "raw", source, users=users))
    vocab = column(folder, "vocab/age.parquet", "value")
    got = dict(zip(*(column(folder, "users.parquet", c) for c in ("user_id", "age_row")), strict=True))
    assert {str(u): vocab[row] for u, row in got.items() if u is not None} == dict(zip("01234", told, strict=True))
    assert read_manifest(folder, "prepared")["summary"]["users_known"] == [5, 5]


def test_regions_of_one_name_are_told_apart(tmp_path: Path) -> None:
    regions = {
        "province": ["A", "B", None, "A", *["A"] * 8],
        "city": ["x", "x", "x", None, *["x"] * 8],
        "district": ["d", "d", "d", "d", None, *["e"] * 7],
    }
    items = ITEMS.drop_columns("city")
    for name, values in regions.items():
        items = items.append_column(name, pa.array(values, pa.string()))
    folder = run(write(tmp_path / "raw", impressions(), items))
    vocab = {n: column(folder, f"vocab/{n}.parquet", "value") for n in regions}
    assert vocab["province"] == [None, "A", "B"] and vocab["city"] == [None, "A > x", "B > x", "x"]
    assert vocab["district"] == [None, "A > ? > d", "A > x > d", "A > x > e", "B > x > d", "x > d"]
    catalog = {r["item_id"]: r for r in pq.read_table(folder / "catalog.parquet").to_pylist()}
    assert [vocab["district"][catalog[f"i{i}"]["district_row"]] for i in range(5)] == [
        "A > x > d", "B > x > d", "x > d", "A > ? > d", None
    ]  # fmt: skip
    assert catalog["i0"]["city"] == "x" and catalog["i0"]["district"] == "d"  # as they are shown


def test_new_users_share_row_0(tmp_path: Path) -> None:
    source = impressions()
    source["user_id"] = [
        u if t.as_py().timestamp() < START + 50_000 else "late"
        for u, t in zip(source["user_id"], source["timestamp"], strict=True)
    ]
    folder = run(write(tmp_path / "raw", source))
    late = [r for r in read(folder, "test")]
    assert {r["user_row"] for r in late} == {0} and len({r["user_index"] for r in late}) == 1
    assert late[0]["user_index"] not in {r["user_index"] for r in read(folder, "train")}
    assert "late" not in column(folder, "users.parquet", "user_id")


def test_price_buckets() -> None:
    price = pa.chunked_array([pa.array([None, *np.arange(100)], pa.float32())])
    table, rows = price_rows(price, 4)
    assert table["value"].to_pylist() == [None, "0-24.75", "24.75-49.5", "49.5-74.25", "74.25-99"]
    assert np.bincount(rows).tolist() == [1, 25, 25, 25, 25]
    table, rows = price_rows(pa.chunked_array([pa.nulls(3, pa.float32())]), 4)
    assert len(table) == 1 and rows.tolist() == [0, 0, 0]


def test_empty_vocabularies() -> None:
    table, deepest, paths = category_rows(pa.chunked_array([pa.nulls(2, pa.list_(pa.string()))]))
    assert len(table) == 1 and deepest.tolist() == [0, 0] and paths.to_pylist() == [[], []]
    table = vocabulary(pa.chunked_array([pa.nulls(2, pa.string())]))
    assert rows_of(pa.array(["a", None]), table).tolist() == [0, 0]
