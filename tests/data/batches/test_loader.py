"""The loader against a slow reader of rows; its line, its shares and its position; damaged files."""

import json
import shutil
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_tables import read, requests

from placerank.data.batches.batch import SampleBatch
from placerank.data.batches.epoch import Line, after, cut, share, total
from placerank.data.batches.loader import SampleLoader
from placerank.data.preparation import writer
from placerank.data.preparation.prepare import PrepareConfig, prepare


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 240 training samples in 15 row groups, with empty histories, unknown places and probabilities."""
    raw = tmp_path_factory.mktemp("raw")
    rng = np.random.default_rng(0)
    items, requests = 20, 75
    pq.write_table(
        pa.table(
            {
                "item_id": np.arange(items),
                "name": [f"place {i}" for i in range(items)],
                "category": [["food", "noodles"]] * items,
                "lat": rng.uniform(50, 51, items),
                "lon": rng.uniform(4, 5, items),
            }
        ),
        raw / "items.parquet",
    )
    request = np.repeat(np.arange(requests), 4)
    lat = np.where(rng.random(requests) < 0.3, np.nan, rng.uniform(50, 51, requests))[request]
    known = ~np.isnan(lat)
    pq.write_table(
        pa.table(
            {
                "user_id": rng.integers(0, 6, requests)[request],
                "item_id": rng.integers(0, items, len(request)),
                "timestamp": 1_600_000_000 + 3601 * request,
                "label": (rng.random(len(request)) < 0.3).astype(np.int8),
                "user_lat": pa.array(lat, mask=~known),
                "user_lon": pa.array(lat - 46, mask=~known),
                "request_id": request,
                "probability": rng.random(len(request)).astype(np.float32),
            }
        ),
        raw / "interactions.parquet",
    )
    return prepare(PrepareConfig(input=raw, out=raw.parent / "prepared", history_length=5, row_group_rows=16))


def rows_of(batches: list[SampleBatch], padded: bool = False) -> list[dict[str, Any]]:
    """Batches as rows, a candidate each, in the names of the files; without the repeated ones."""
    out = []
    for b in batches:
        of_requests = []
        for r in range(len(b.time)):
            row = {n: getattr(b, n)[r].item() for n in ("user_index", "time", "lat", "lon")}
            row |= {"request": b.request_id[r].item(), "user_row": b.user[r].item()}
            visits = slice(b.offsets[r], b.offsets[r + 1])
            row |= {"history": b.history[visits].tolist(), "history_hours": b.history_hours[visits].tolist()}
            of_requests.append(row)
        for i in range(len(b) if padded else b.valid):
            row = of_requests[b.request[i]] | {"item_row": b.item[i].item(), "visits": b.visits[i].item()}
            row |= {"label": int(b.label[i]), "probability": 0 if b.probability is None else b.probability[i].item()}
            out.append({n: None if x != x else x for n, x in row.items()})
    return out


def slow(folder: Path, split: str) -> list[dict[str, Any]]:
    return [{n: None if x != x else x for n, x in r.items()} for r in read(folder, split)]


def key(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True)


def load(prepared: Path, split: str = "train", size: int = 7, **options: Any) -> SampleLoader:
    return SampleLoader(prepared, split, size, **options)


# --- what the batches hold --------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("size", [1, 7, 16, 1000])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_unshuffled_equals_the_files(prepared: Path, split: str, size: int, prefetch: int) -> None:
    expected = slow(prepared, split)
    loader = load(prepared, split, size, prefetch=prefetch)
    batches = list(loader)
    assert len(batches) == loader.steps_per_epoch == -(-len(expected) // size)
    assert rows_of(batches) == expected


def test_has_what_is_hard(prepared: Path) -> None:
    rows = slow(prepared, "train")
    assert any(not r["history"] for r in rows) and any(len(r["history"]) == 5 for r in rows)
    assert any(r["lat"] is None for r in rows) and any(r["lat"] for r in rows) and any(r["visits"] for r in rows)
    assert len({pq.ParquetFile(p).num_row_groups for p in (prepared / "train").glob("*")}) and len(rows) > 200


def test_types(prepared: Path) -> None:
    batch = next(iter(load(prepared, size=5)))
    assert len(batch) == batch.valid == 5
    kinds = {n: str(x.dtype).removeprefix("torch.") for n, x in vars(batch).items() if hasattr(x, "dtype")}
    assert (
        batch.utc_offset is None
        and batch.history_size is None
        and batch.own == {}
        and len(kinds) == len(vars(batch)) - 4
    )
    floats = ("lat", "lon", "history_hours", "label", "probability")
    assert kinds == {n: "float32" if n in floats else "int32" if n == "visits" else "int64" for n in kinds}


@pytest.mark.parametrize("size", [1, 3, 7, 16, 1000])
def test_a_batch_has_its_requests_once(prepared: Path, size: int) -> None:
    """Each of its requests has candidates in it, and only the first and the last may have more elsewhere."""
    whole = {r["request"]: len(r["item_row"]) for r in requests(prepared, "train")}
    for batch in load(prepared, size=size, shuffle=True, prefetch=0):
        ids = batch.request_id.tolist()
        assert len({*ids}) == len(ids) == len(batch.offsets) - 1
        counts = batch.request.bincount(minlength=len(ids)).tolist()
        assert (batch.request.diff() >= 0).all() and all(counts)
        assert [whole[i] for i in ids[1:-1]] == counts[1:-1]


def test_lists_of_different_lengths_and_the_old_layout_are_told(prepared: Path, tmp_path: Path) -> None:
    folder = copy(prepared, tmp_path)
    (path,) = (folder / "test").glob("*.parquet")
    table = pq.read_table(path)
    at = table.column_names.index("visits")
    for column, told in [
        (pa.array([[*x, 0] for x in table["visits"].to_pylist()], pa.list_(pa.int32())), "got lists of different len"),
        (pa.array(range(len(table))), "column visits: got int64, expected a list a request: .*prepare the data again"),
    ]:
        pq.write_table(table.set_column(at, "visits", column), path)
        reseal(folder)
        with pytest.raises(ValueError, match=f"part-00000.parquet: .*{told}"):
            list(load(folder, "test"))


def test_no_probability(prepared: Path, tmp_path: Path) -> None:
    folder = copy(prepared, tmp_path)
    for path in (folder / "test").glob("*.parquet"):
        with pq.ParquetFile(path) as file:
            groups = [file.read_row_group(i).drop_columns("probability") for i in range(file.num_row_groups)]
        with pq.ParquetWriter(path, groups[0].schema) as writer:
            for group in groups:
                writer.write_table(group)
    reseal(folder)
    assert next(iter(load(folder, "test"))).probability is None


# --- order and shares -------------------------------------------------------------------------------------------


def test_shuffled_holds_every_row_once(prepared: Path) -> None:
    loader = load(prepared, shuffle=True, seed=3)
    first, second = rows_of(list(loader)), rows_of(list(loader))
    expected = sorted(map(key, slow(prepared, "train")))
    assert sorted(map(key, first)) == sorted(map(key, second)) == expected
    assert list(map(key, first)) != list(map(key, second))
    assert rows_of(list(load(prepared, shuffle=True, seed=3))) == first
    assert rows_of(list(load(prepared, shuffle=True, seed=4))) != first


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_evaluation_leaves_nothing_out(prepared: Path, world_size: int) -> None:
    ranks = [list(load(prepared, "test", rank=r, world_size=world_size)) for r in range(world_size)]
    assert len({tuple(len(b) for b in batches) for batches in ranks}) == 1
    assert [r for batches in ranks for r in rows_of(batches)] == slow(prepared, "test")
    for batches in ranks:
        padded = rows_of(batches, padded=True)
        assert padded[-1] == padded[-2] or len(padded) == len(rows_of(batches))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_training_ranks_step_together(prepared: Path, world_size: int) -> None:
    ranks = [list(load(prepared, shuffle=True, rank=r, world_size=world_size)) for r in range(world_size)]
    sizes = {tuple(len(b) for b in batches) for batches in ranks}
    assert len(sizes) == 1 and all(b.valid == len(b) for batches in ranks for b in batches)
    seen = [key(r) for batches in ranks for r in rows_of(batches)]
    expected = [key(r) for r in slow(prepared, "train")]
    assert len(seen) == sum(map(sum, sizes)) * world_size > len(expected) - world_size
    assert len(set(seen)) == len(seen) and set(seen) <= set(expected)


def test_more_ranks_than_rows(prepared: Path) -> None:
    expected = slow(prepared, "test")
    world_size = len(expected) + 3
    ranks = [list(load(prepared, "test", rank=r, world_size=world_size)) for r in range(world_size)]
    assert [len(b[0]) for b in ranks] == [1] * world_size
    assert [b[0].valid for b in ranks] == [1] * len(expected) + [0] * 3
    assert rows_of(ranks[-1], padded=True) == expected[:1]
    with pytest.raises(ValueError, match=r"the test split has \d+ samples for \d+ ranks.*fewer ranks"):
        load(prepared, "test", shuffle=True, world_size=world_size)


# --- position ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 3])
def test_resume_is_exact(prepared: Path, world_size: int) -> None:
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "shuffle": True, "seed": 1}
        whole, states = load(prepared, **options), []
        rows = []
        for _ in range(2):
            for batch in whole:
                states.append(json.loads(json.dumps(whole.state_dict())))
                rows.append(rows_of([batch]))
        for at in (0, 3, whole.steps_per_epoch - 1, whole.steps_per_epoch):
            again = load(prepared, **options)
            again.load_state_dict(states[at])
            rest = [rows_of([b]) for _ in range(2 - states[at]["epoch"]) for b in again]
            assert rest == rows[at + 1 :]


def test_position_counts_what_was_taken(prepared: Path) -> None:
    loader = load(prepared, size=10, shuffle=True, prefetch=8)
    assert loader.state_dict()["remaining"] == [[0, loader.rows]]
    batches = iter(loader)
    next(batches), next(batches)
    assert loader.state_dict()["remaining"] == [[20, loader.rows]] and len(loader) == loader.steps_per_epoch - 2
    batches.close()  # type: ignore[attr-defined]
    assert len(list(loader)) == loader.steps_per_epoch - 2  # goes on where it stopped
    assert loader.state_dict() == {"epoch": 1, "remaining": [[0, loader.rows]], "rows": loader.rows, "seed": 0}


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_resume_on_other_ranks(prepared: Path, data: st.DataObject) -> None:
    """Over any changes of the number of ranks, an epoch is seen once; at most a few rows at its end are left out."""
    seen: list[str] = []
    state: dict[str, Any] | None = None
    world_size = 1
    for _ in range(4):
        world_size, size = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 30))
        loaders = [
            load(prepared, size=size, rank=r, world_size=world_size, shuffle=True, prefetch=0)
            for r in range(world_size)
        ]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
        if loaders[0].state_dict()["epoch"] > 0:
            break
        steps = data.draw(st.integers(0, len(loaders[0])))
        for loader in loaders:
            for _, batch in zip(range(steps), loader, strict=False):
                seen += map(key, rows_of([batch]))
        states = [loader.state_dict() for loader in loaders]
        assert all(s == states[0] for s in states)
        state = states[0]
        if state["epoch"] > 0:
            break
    else:
        left = load(prepared, size=9, shuffle=True, prefetch=0)
        left.load_state_dict(state or {})
        seen += map(key, rows_of(list(left)))
        world_size = 1
    assert len(set(seen)) == len(seen) and set(seen) <= set(map(key, slow(prepared, "train")))
    assert len(seen) > load(prepared).rows - world_size


def test_position_of_other_data(prepared: Path) -> None:
    state = load(prepared, shuffle=True).state_dict()
    with pytest.raises(ValueError, match="saved with seed=0, this loader has seed=1; resume with the same"):
        load(prepared, shuffle=True, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="saved with rows="):
        load(prepared, "test", shuffle=True).load_state_dict(state)


@given(st.integers(0, 100), st.integers(1, 7), st.integers(0, 40))
def test_after_and_share(rows: int, world_size: int, done: int) -> None:
    parts = [share(rows, r, world_size) for r in range(world_size)]
    assert [i for a, b in parts for i in range(a, b)] == list(range(rows))
    assert max(b - a for a, b in parts) - min(b - a for a, b in parts) <= 1
    left = after([(0, rows)], world_size, done)
    assert [i for a, b in left for i in range(a, b)] == [i for a, b in parts for i in range(a + done, b)]
    assert all(a[1] < b[0] for a, b in pairwise(left))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 4), st.integers(0, 5))
def test_line_is_a_permutation(sizes: list[int], window: int, seed: int) -> None:
    line = Line(sizes, window, seed, epoch=2)
    rows = sum(sizes)
    order = [(b, i) for b, low, high in line.pieces([(0, rows)]) for i in range(low, high)]
    assert len(set(order)) == rows
    cuts = [(0, rows // 3), (rows // 3, rows - rows // 4), (rows - rows // 4, rows)]
    assert [(b, i) for b, low, high in line.pieces(cuts) for i in range(low, high)] == order
    assert total(cut(cuts, 1, rows)) == max(rows - 1, 0)
    for block in range(len(line.blocks)):
        assert sorted(line.order(block, 7).tolist()) == list(range(7))
        assert line.order(block, 7).tolist() == Line(sizes, window, seed, epoch=2).order(block, 7).tolist()


# --- what goes wrong --------------------------------------------------------------------------------------------


def copy(prepared: Path, to: Path) -> Path:
    return Path(shutil.copytree(prepared, to / "prepared"))


def reseal(folder: Path) -> None:
    """Make the manifest agree with the changed files."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        manifest["files"][name]["bytes"] = (folder / name).stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_the_start_reads_no_footer_and_a_rank_those_that_it_needs(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two row groups a file, a rank of four opens its own files alone."""
    monkeypatch.setattr(writer, "_GROUPS_PER_FILE", 2)
    config = json.loads((prepared / "manifest.json").read_text())["config"]
    folder = prepare(
        PrepareConfig(input=Path(config["input"]), out=tmp_path / "new", history_length=5, row_group_rows=16)
    )
    opened: list[str] = []
    parquet_file = pq.ParquetFile

    def watched(path: Path, *args: Any, **kwargs: Any) -> pq.ParquetFile:
        opened.append(Path(path).name)
        return parquet_file(path, *args, **kwargs)

    monkeypatch.setattr(pq, "ParquetFile", watched)
    monkeypatch.setattr(pq, "read_metadata", None)
    of_ranks = [load(folder, rank=rank, world_size=4, prefetch=0) for rank in range(4)]
    files = sorted(path.name for path in (folder / "train").iterdir())
    assert opened == [] and len(files) > 6
    rows = [rows_of(list(loader)) for loader in of_ranks]
    assert [row for part in rows for row in part] == slow(folder, "train")
    opened.clear()
    list(load(folder, rank=1, world_size=4, prefetch=0))
    assert len({*opened}) <= len(files) // 4 + 2


def test_row_groups_of_other_files_are_told(prepared: Path, tmp_path: Path) -> None:
    folder = copy(prepared, tmp_path)
    text = (folder / "manifest.json").read_text()
    for change, told in [
        (lambda groups: groups.insert(0, groups.pop() - 1) or groups.append(1), r"got 16 .* group 0, .* says 15; prep"),
        (
            lambda groups: groups.insert(0, groups.pop(0) - 3) or groups.append(3),
            "got 15 row groups, the manifest tells of more; prepare",
        ),
        (lambda groups: groups.append(-1), r"manifest.json: .*row_groups.part-00000.parquet\[\d+\]: got -1, expected"),
    ]:
        manifest = json.loads(text)
        groups = manifest["splits"]["train"]["row_groups"]["part-00000.parquet"]
        change(groups)
        if -1 not in groups:
            assert sum(groups) == manifest["splits"]["train"]["rows"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
        rows = manifest["splits"]["train"]["rows"]
        last_three = {"rank": rows // 3 - 1, "world_size": rows // 3} if "of more" in told else {}
        with pytest.raises(ValueError, match=told):
            list(load(folder, **last_three))


def test_truncated_shard(prepared: Path, tmp_path: Path) -> None:
    folder = copy(prepared, tmp_path)
    shard = folder / "train" / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"part-00000.parquet: \d+ bytes, the manifest says \d+ bytes; make the folder"
    ):
        load(folder)
    reseal(folder)
    told = r"part-00000.parquet: not a whole Parquet file.*prepare the data again"
    with pytest.raises(ValueError, match=told):
        list(load(folder))


@pytest.mark.parametrize("prefetch", [0, 3])
def test_damaged_inside(prepared: Path, tmp_path: Path, prefetch: int) -> None:
    folder = copy(prepared, tmp_path)
    shard = folder / "train" / "part-00000.parquet"
    whole = bytearray(shard.read_bytes())
    whole[4 : len(whole) // 2] = bytes(len(whole) // 2 - 4)
    shard.write_bytes(whole)
    with pytest.raises(ValueError, match=r"part-00000.parquet: not a whole Parquet file of samples"):
        list(load(folder, prefetch=prefetch))
    assert not [t for t in threading.enumerate() if t.name == "placerank-loader"]


def test_missing_shard_and_wrong_count(prepared: Path, tmp_path: Path) -> None:
    folder = copy(prepared, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["test"]["rows"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"got \d+ samples in 1 files, the manifest says \d+; prepare"):
        load(folder, "test")
    (folder / "test" / "part-00000.parquet").unlink()
    with pytest.raises(ValueError, match=r"part-00000\.parquet: missing"):
        load(folder, "test")


def test_wrong_arguments(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no 'dev' split, it has train, valid, test"):
        load(prepared, "dev")
    with pytest.raises(ValueError, match="batch_size=0: expected at least 1"):
        load(prepared, size=0)
    with pytest.raises(ValueError, match="rank=2, world_size=2"):
        load(prepared, rank=2, world_size=2)
    with pytest.raises(FileNotFoundError, match=r"manifest\.json not found"):
        load(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"kind": "raw", "files": {}}))
    with pytest.raises(ValueError, match="holds 'raw', expected 'prepared'"):
        load(tmp_path)


def test_thread_ends_when_the_reader_stops(prepared: Path) -> None:
    batches = iter(load(prepared, size=1, prefetch=2))
    next(batches)
    assert [t for t in threading.enumerate() if t.name == "placerank-loader"]
    batches.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name == "placerank-loader"]


def test_a_history_longer_than_the_manifest_says_is_told(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "data")
    manifest = tmp_path / "data" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "history_length": 4}))
    with pytest.raises(
        ValueError, match=r"got a history of 5 entries, .* history_length=4; prepare with --history-leng"
    ):
        list(load(tmp_path / "data"))
