"""Sequences against loops over the source: whole, nothing of the future, the same at any number of ranks."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from raw_tables import START, column, everything, impressions, run, visits, write

from placerank.data.batches.sequences import ALL, SequenceBatch, SequenceLoader, sessions, sessions_by_request
from placerank.data.manifest import read_manifest
from placerank.data.preparation import prepare as prepare_module
from placerank.data.preparation import samples as samples_module

SPLITS = ("train", "valid", "test")
Visit = tuple[int, str]


def hard_visits() -> dict[str, Any]:
    """Check-ins with users of one visit, one with all visits in one moment, users of the test alone, lonely places."""
    more = visits(rows=240, users=6)
    end = START + 7200 * 220
    extra = [
        ("once", "i1", START + 7200 * 50),
        *[("moment", f"i{i}", START + 7200 * 100) for i in range(5)],
        *[("late", f"i{i % 3}", end + 60 * i) for i in range(6)],
        *[("lonely", item, START + 7200 * t) for t, item in enumerate(["i11", "i2", "i11", "i3", "i11"])],
    ]
    ids = [*map(str, more["user_id"]), *(u for u, *_ in extra)]
    time = [*more["timestamp"].cast(pa.int64()).to_pylist(), *(t for *_, t in extra)]
    return {
        "user_id": ids,
        "item_id": [*more["item_id"], *(i for _, i, _ in extra)],
        "timestamp": pa.array(time, pa.timestamp("s", "UTC")),
        "label": np.ones(len(ids), np.int8),
    }


@pytest.fixture(scope="module", params=["check-ins", "impressions"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A prepared folder of many small row groups and blocks, and its source."""
    source = hard_visits() if request.param == "check-ins" else impressions()
    raw = write(tmp_path_factory.mktemp("made") / "raw", source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples_module, "_CANDIDATES", 90)
        return run(raw, history_length=4, row_group_rows=16, reach_km=4.0), source


def positives(source: dict[str, Any]) -> dict[Any, list[Visit]]:
    """By user, in no order; visits of check-ins once a second."""
    table = pa.table(source)
    time = table["timestamp"].cast(pa.int64()).to_pylist()
    rows = list(zip(*(table[n].to_pylist() for n in ("user_id", "item_id", "label")), time, strict=True))
    rows = rows if "request_id" in source else list(dict.fromkeys(rows))
    found: dict[Any, list[Visit]] = {user: [] for user in sorted({u for u, *_ in rows})}
    for user, item, label, time in rows:
        if label:
            found[user].append((time, item))
    return found


def stored(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((folder / "sequences").glob("*")) for row in pq.read_table(path).to_pylist()]


def test_sequences_are_all_positives_once(made: tuple[Path, dict[str, Any]]) -> None:
    folder, source = made
    items, of_user = column(folder, "catalog.parquet", "item_id"), positives(source)
    names, ids = list(of_user), column(folder, "users.parquet", "user_id")
    rows = stored(folder)
    assert {names[r["user_index"]] for r in rows} == {u for u, some in of_user.items() if some}
    for row in rows:
        user = names[row["user_index"]]
        got = list(zip(row["time"], [items[i] for i in row["item_row"]], strict=True))
        assert sorted(got) == sorted(of_user[user]) and row["time"] == sorted(row["time"])
        assert ids[row["user_row"]] == (user if user in ids else None)
        assert row["visits"] == [sum(t < time and i == item for t, i in got) for time, item in got]
    told = read_manifest(folder, "prepared")["sequences"]
    assert told["users"] == len(rows) and told["visits"] == sum(map(len, of_user.values()))


def test_sequences_and_samples_agree(made: tuple[Path, dict[str, Any]]) -> None:
    """Each positive sample is a visit of the same request, place and split; its history is what comes before it."""
    folder, _ = made
    samples = {
        (r["request"], r["item_row"]): r | {"split": split}
        for split, rows in everything(folder).items()
        for r in rows
        if r["label"]
    }
    met = set()
    for row in stored(folder):
        for i, (request, item) in enumerate(zip(row["request"], row["item_row"], strict=True)):
            seen = sum(t < row["time"][i] for t in row["time"])
            if request < 0:
                continue
            sample = samples[request, item]
            met.add((request, item))
            assert sample["history"] == row["item_row"][max(seen - 4, 0) : seen]
            assert sample["split"] == SPLITS[row["split"][i]]
            for name in ("time", "visits", "lat", "lon"):
                assert sample[name] == row[name][i] or sample[name] != sample[name]
            assert (sample["lat"] == sample["lat"]) == (row["lat"][i] == row["lat"][i])
            assert sample["user_row"] == row["user_row"] and sample["user_index"] == row["user_index"]
    assert met == set(samples)


def test_visits_without_samples_are_there(made: tuple[Path, dict[str, Any]]) -> None:
    folder, source = made
    told = read_manifest(folder, "prepared")
    lost = sum(r < 0 for row in stored(folder) for r in row["request"])
    assert lost == told.get("check_ins", {"no_negatives": 0})["no_negatives"]
    assert (lost > 0) == ("request_id" not in source)


def targets_of(batches: Iterator[SequenceBatch] | list[SequenceBatch]) -> list[tuple[Any, ...]]:
    """Each target with all that it sees."""
    out = []
    for b in batches:
        for t in range(b.valid):
            s = int(b.stretch[t])
            low = int(b.offsets[s])
            assert int(b.seen[t]) <= int(b.offsets[s + 1]) - low
            seen = slice(low, low + int(b.seen[t]))
            place = tuple(None if x != x else x for x in (b.lat[t].item(), b.lon[t].item()))
            about = (b.user_index[s].item(), b.target_time[t].item(), b.target[t].item(), b.request[t].item())
            sees = list(zip(b.time[seen].tolist(), b.item[seen].tolist(), strict=True))
            out.append((*about, place, b.visits[t].item(), b.user[s].item(), sees))
    return out


def slow(folder: Path, split: str) -> list[tuple[Any, ...]]:
    """All targets of a split with all visits strictly before, by loops."""
    out = []
    for row in stored(folder):
        for i, which in enumerate(row["split"]):
            if SPLITS[which] == split:
                place = tuple(None if x != x else x for x in (row["lat"][i], row["lon"][i]))
                about = (row["user_index"], row["time"][i], row["item_row"][i], row["request"][i])
                pairs = zip(row["time"], row["item_row"], strict=True)
                sees = [(t, x) for t, x in pairs if t < row["time"][i]]
                out.append((*about, place, row["visits"][i], row["user_row"], sees))
    return out


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("size", "history", "together"), [(1, 3, 1), (7, 3, 4), (16, 1000, 256), (1000, 2, 5)])
def test_targets_against_loops(
    made: tuple[Path, dict[str, Any]], split: str, size: int, history: int, together: int
) -> None:
    folder, _ = made
    expected = slow(folder, split)
    loader = SequenceLoader(folder, split, size, history=history, together=together)
    batches = list(loader)
    assert len(batches) == loader.steps_per_epoch == -(-len(expected) // size)
    got = targets_of(batches)
    assert [x[:-1] for x in got] == [x[:-1] for x in expected]
    for (*_, sees), (*_, before) in zip(got, expected, strict=True):
        assert sees == before[len(before) - len(sees) :]
        assert len(sees) >= min(history, len(before))
        assert len(sees) <= history or together > 1
    for b in batches:
        assert len(b.item) <= history * (len(b.offsets) - 1) + len(b)
        assert (b.stretch.bincount(minlength=len(b.offsets) - 1) >= 1).all()
        assert (b.stretch.bincount() <= together).all()


def test_last_visits_of_each_target(made: tuple[Path, dict[str, Any]]) -> None:
    """What a model of the last 3 visits takes, of one target a stretch and of many, is the same."""
    folder, _ = made
    found = []
    for together in (1, 256):
        lists = []
        for b in SequenceLoader(folder, "train", 50, history=3, together=together, prefetch=0):
            offsets, at = b.last(3)
            lists += [b.item[at[offsets[t] : offsets[t + 1]]].tolist() for t in range(len(b))]
        found.append(lists)
    assert found[0] == found[1] == [[i for _, i in sees][-3:] for *_, sees in slow(folder, "train")]


def test_shuffled_is_the_same_targets(made: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = made
    loader = SequenceLoader(folder, "train", 8, history=1000, together=3, shuffle=True, seed=1)
    first, second = (targets_of(list(loader)) for _ in range(2))
    expected = slow(folder, "train")
    assert sorted(map(repr, first)) == sorted(map(repr, second)) == sorted(map(repr, expected))
    assert first != second and first != expected


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_and_positions(made: tuple[Path, dict[str, Any]], shuffle: bool, world: int) -> None:
    """Two batches on two ranks, saved; the rest on other ranks: together each target once."""
    folder, _ = made
    options: dict[str, Any] = {"history": 1000, "together": 3, "shuffle": shuffle, "seed": 3}
    before: list[tuple[Any, ...]] = []
    states = []
    for rank in range(2):
        loader = SequenceLoader(folder, "train", 9, rank=rank, world_size=2, **options)
        batches = iter(loader)
        before += targets_of([next(batches), next(batches)])
        states.append(json.dumps(loader.state_dict()))
    assert states[0] == states[1]
    after: list[tuple[Any, ...]] = []
    for rank in range(world):
        loader = SequenceLoader(folder, "train", 9, rank=rank, world_size=world, **options)
        loader.load_state_dict(json.loads(states[0]))
        after += targets_of(list(loader))
    expected, got = (Counter(map(repr, some)) for some in (slow(folder, "train"), before + after))
    assert got <= expected and (expected - got).total() < (world if shuffle else 1)


def test_the_future_changes_nothing(tmp_path: Path) -> None:
    """Visits of the test period are other ones: no target of training sees the difference."""
    source = hard_visits()
    one = run(write(tmp_path / "a", source), out=tmp_path / "one")
    start = min(t for row in stored(one) for t, s in zip(row["time"], row["split"], strict=True) if s == 2)
    time = source["timestamp"].cast(pa.int64()).to_numpy()
    other = [f"i{(int(item[1:]) + 1) % 12}" for item in source["item_id"]]
    changed = np.where(time >= start, other, source["item_id"])
    two = run(write(tmp_path / "b", source | {"item_id": changed}), out=tmp_path / "two")
    for split in ("train", "valid"):
        assert slow(one, split) == slow(two, split)
    assert slow(one, "test") != slow(two, "test")


def test_many_buckets_hold_the_same_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write(tmp_path / "raw", hard_visits())
    one = run(raw, out=tmp_path / "one")
    monkeypatch.setattr(prepare_module, "_BUCKET_ROWS", 40)
    many = run(raw, out=tmp_path / "many", row_group_rows=8)
    assert len(list((many / "sequences").glob("*"))) > 2 and len(list((one / "sequences").glob("*"))) == 1

    def all_of(folder: Path) -> list[str]:
        rows = [{n: x for n, x in r.items() if n not in ("user_index", "user_row", "request")} for r in stored(folder)]
        return sorted(map(str, rows))

    assert all_of(one) == all_of(many)
    known = read_manifest(many, "prepared")["sequences"]["row_groups"]
    for path in (many / "sequences").glob("*"):
        with pq.ParquetFile(path) as file:
            for i, told in enumerate(known[path.name]):
                splits = file.read_row_group(i)["split"].to_pylist()
                assert [sum(s == k for row in splits for s in row) for k in range(3)] == told
                assert sum(told) <= 8 or len(splits) == 1


def test_places_that_are_unknown_stay_so(made: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = made
    places = torch.cat([b.lat for b in SequenceLoader(folder, "train", 100)])
    assert places.isnan().any() and not places.isnan().all()


def test_types(made: tuple[Path, dict[str, Any]]) -> None:
    batch = next(iter(SequenceLoader(made[0], "train", 5)))
    kinds = {n: str(x.dtype).removeprefix("torch.") for n, x in vars(batch).items() if n != "valid"}
    real = dict.fromkeys(("lat", "lon", "utc_offset", "target_offset"), "float32")
    assert kinds == {n: {**real, "visits": "int32"}.get(n, "int64") for n in kinds}
    assert len(batch) == batch.valid == 5


# --- errors -----------------------------------------------------------------------------------------------------


def test_what_is_refused(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = made
    for options, told in [
        ({"split": "all"}, "split='all': expected one of train, valid, test"),
        ({"history": 0}, "history=0: expected at least 1"),
        ({"together": 0}, "together=0: expected at least 1"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"rank": 2}, "rank=2, world_size=1: expected"),
    ]:
        with pytest.raises(ValueError, match=told):
            SequenceLoader(**{"folder": folder, "split": "train", "batch_size": 4, **options})
    no_test = run(write(tmp_path / "raw", impressions()), out=tmp_path / "no_test", test_fraction=0)
    with pytest.raises(ValueError, match="the test split has no visits; prepare with a fraction for it"):
        SequenceLoader(no_test, "test", 4)


def resealed(folder: Path, **changed: Any) -> None:
    """Make the manifest agree with the changed files; None takes a field away."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changed
    for name in manifest["files"]:
        manifest["files"][name]["bytes"] = (folder / name).stat().st_size
    manifest = {name: value for name, value in manifest.items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_damaged_and_older_folders(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = shutil.copytree(made[0], tmp_path / "copy")
    for damaged, told in [
        (None, "has no sequences: an older placerank prepared it; prepare the data again"),
        ([], "sequences: got .*the manifest is damaged: prepare the data again"),
        ({"row_groups": {"part-00000.parquet": [[1, 2]]}}, "a number for each of train, valid, test; the manifest is"),
    ]:
        resealed(folder, sequences=damaged)
        with pytest.raises(ValueError, match=told):
            SequenceLoader(folder, "train", 4)
    folder = shutil.copytree(made[0], tmp_path / "before")  # placerank wrote no offsets once
    (path,) = (folder / "sequences").glob("*")
    with pq.ParquetFile(path) as file:
        groups = [file.read_row_group(i).drop_columns("utc_offset") for i in range(file.num_row_groups)]
    with pq.ParquetWriter(path, groups[0].schema) as writer:
        for group in groups:
            writer.write_table(group)
    resealed(folder)
    batches = list(SequenceLoader(folder, "train", 100))
    assert all(b.utc_offset.isnan().all() and b.target_offset.isnan().all() for b in batches)
    assert targets_of(batches) == targets_of(SequenceLoader(made[0], "train", 100))
    folder = shutil.copytree(made[0], tmp_path / "other")
    (path,) = (folder / "sequences").glob("*")
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(table) - 1), path, row_group_size=1)
    resealed(folder)
    with pytest.raises(ValueError, match=r"part-00000\.parquet: .*prepare the data again"):
        list(SequenceLoader(folder, "train", 4))
    path.write_bytes(b"PAR1")
    resealed(folder)
    with pytest.raises(ValueError, match=r"part-00000\.parquet: not a whole Parquet file"):
        list(SequenceLoader(folder, "train", 4))


# --- sessions ---------------------------------------------------------------------------------------------------


def test_sessions_by_gap_and_by_request() -> None:
    stretch = torch.tensor([0, 0, 0, 0, 1, 1])
    time = torch.tensor([0, 3600, 3600 + 7200, 3600 + 7200 + 7201, 20_000, 20_000])
    assert sessions(stretch, time, 2.0).tolist() == [0, 0, 0, 1, 2, 2]
    assert sessions(stretch, time, 0.5).tolist() == [0, 1, 2, 3, 4, 4]
    assert sessions_by_request(stretch, torch.tensor([5, 5, -1, -1, 5, 6])).tolist() == [0, 0, 1, 2, 3, 4]
    for n, expected in [(0, []), (1, [0])]:
        none = torch.zeros(n, dtype=torch.int64)
        assert sessions(none, none, 1.0).tolist() == sessions_by_request(none, none).tolist() == expected
    with pytest.raises(ValueError, match="gap_hours=0: expected more than 0"):
        sessions(stretch, time, 0)
    with pytest.raises(ValueError, match="gap_hours=nan: expected more than 0"):
        sessions(stretch, time, float("nan"))


def test_trimmed_stretches_show_the_same(made: tuple[Path, dict[str, Any]]) -> None:
    """The last three visits of each target are those of the whole; without a window nothing is cut."""
    folder, _ = made
    for together in (1, 4):
        for batch in SequenceLoader(folder, "test", 16, history=ALL, together=together):
            cut = batch.trimmed(3)
            assert (cut.seen <= batch.seen).all()
            assert (cut.seen[batch.seen >= 3] >= 3).all() and torch.equal(batch.trimmed(ALL).item, batch.item)
            lengths = cut.offsets.diff()[cut.stretch]
            assert (cut.seen <= lengths).all() and (cut.seen >= 0).all()
            (offsets, at), (whole, there) = cut.last(3), batch.last(3)
            assert torch.equal(offsets, whole)
            for name in ("item", "time", "utc_offset"):
                torch.testing.assert_close(getattr(cut, name)[at], getattr(batch, name)[there], equal_nan=True)
            first = torch.full_like(cut.offsets[1:], ALL).scatter_reduce(0, cut.stretch, cut.seen, "amin")
            assert (first <= 3).all(), "no more than the first target needs"
