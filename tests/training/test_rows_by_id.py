"""Rows of another run by raw id: at any number of ranks, whatever came, went or changed its place."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_tables import ITEMS, impressions, run, write
from runs import begin, small, together

from placerank.rankers.dense import RankerConfig
from placerank.training.checkpoint import load
from placerank.training.rows_by_id import _fill, _fill_states, _Starts
from placerank.training.run_files import find_checkpoint
from placerank.training.sharding import ShardingConfig
from placerank.training.train import train

MORE = ITEMS.set_column(0, "item_id", pa.array([f"a{i}" for i in range(12)]))


class Stored:
    """A table of a checkpoint, in blocks of two rows."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table

    def blocks(self, name: str, rows: int) -> Any:
        return iter(self.table.split(2))


ids = st.lists(st.integers(1, 30), unique=True, max_size=12)


@settings(max_examples=1000, deadline=None)
@given(ids, ids, st.lists(st.booleans(), min_size=13, max_size=13), st.integers(1, 3))
def test_no_id_gets_anothers_row(then: list[int], now: list[int], trained: list[bool], pieces: int) -> None:
    """Ids that come, go and change places: each keeps its numbers; a new one has the mean of those like it."""
    then, now = [0, *then], [0, *now]
    origin = np.array([then.index(i) if i in then else -1 for i in now])
    table = torch.tensor([[100.0 * i, 100.0 * i + 1] for i in then])
    state = torch.tensor([[i + 0.5 + p for i in then] for p in range(pieces)])
    learned = np.array(trained[: len(then)])
    like = [np.array([i % 3 if i % 3 else -1 for i in now]), np.array([-1] + [0] * (len(now) - 1))]
    weight, target = torch.full((len(now), 2), -1.0), torch.full((pieces * len(now),), -1.0)
    _fill(Stored(table), "item", origin, weight, _Starts.of(origin, learned, like, 2))  # type: ignore[arg-type]
    _fill_states(state.flatten(), origin, target, len(then))
    states = target.view(pieces, len(now))
    known = [i for i in now[1:] if i in then and learned[then.index(i)]]
    for row, i in enumerate(now):
        if i in then:
            assert weight[row].tolist() == [100.0 * i, 100.0 * i + 1]
            assert states[:, row].tolist() == [i + 0.5 + p for p in range(pieces)]
            continue
        near = [k for k in known if i % 3 and k % 3 == i % 3] or known
        assert states[:, row].tolist() == [0.0] * pieces
        if near:
            torch.testing.assert_close(weight[row, 0], torch.tensor(100.0 * np.mean(near), dtype=torch.float32))
        else:
            assert weight[row].tolist() == [-1.0, -1.0]  # as it was


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two days, of which the second has new items and users; the same data in rows of another order; a run of one."""
    tmp = tmp_path_factory.mktemp("days")
    one, two = impressions(3000, users=12), impressions(3000, users=20, seed=1)
    two["timestamp"] = pc.add(two["timestamp"], pa.scalar(10**7, pa.duration("s")))
    two["item_id"] = [i if n % 3 else f"a{i[1:]}" for n, i in enumerate(two["item_id"])]
    first = run(write(tmp / "one", one), out=tmp / "data1")
    raw = write(tmp / "two", two, pa.concat_tables([ITEMS, MORE]))
    train(small(first, tmp / "run", epochs=1, newcomers=0.2))
    return tmp / "run", run(raw, out=tmp / "data2", after=first), run(raw, out=tmp / "data3")


@pytest.mark.parametrize("grown", [True, False])
def test_rows_go_where_their_ids_are_on_one_rank_as_on_two(
    grown: bool, days: tuple[Path, Path, Path], ranks: Any, tmp_path: Path
) -> None:
    before, after, anew = days
    data = after if grown else anew
    config = small(data, tmp_path / "one", warm_start=before)
    one = together(ranks(1, begin, config))
    cut = ShardingConfig(default="row_wise", tables={"category": "table_wise", "brand": "table_wise"})
    two = together(ranks(2, begin, small(data, tmp_path / "two", warm_start=before, sharding=cut)))
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=0, msg=key)
    for name, file, column in (("item", "catalog", "item_id"), ("user", "users", "user_id")):
        then, now = (pq.read_table(f / f"{file}.parquet")[column].to_pylist() for f in (before.parent / "data1", data))
        key = next(k for k in one if k.startswith("model") and f".{name}.weight" in k).split()[1]
        of_state = next(k for k in one if k.startswith(f"state {key} "))
        saved = {"model": {key: torch.empty(len(then), one[f"model {key} "].shape[1])}}
        saved["optimizer"] = {"state": {key: {of_state.split()[2]: torch.empty(len(then))}}}  # type: ignore[dict-item]
        load(find_checkpoint(before, "best"), saved)
        states = next(iter(saved["optimizer"]["state"][key].values()))  # type: ignore[index]
        new = 0
        for row, value in enumerate(now):
            if value in then:
                assert torch.equal(one[f"model {key} "][row], saved["model"][key][then.index(value)])
                assert one[of_state][row] == states[then.index(value)]
            else:
                assert one[of_state][row] == 0
                new += 1
                if name == "item":  # as newcomers, whom the row is of
                    assert torch.equal(one[f"model {key} "][row], saved["model"][key][0])
        assert new > 0 and (name != "item" or states[0] > 0)


def test_what_does_not_fit_is_refused(days: tuple[Path, Path, Path], tmp_path: Path) -> None:
    before, after, _ = days
    with pytest.raises(ValueError, match=r"newcomers=1.0: expected a share in \[0, 1\)"):
        small(after, tmp_path / "a", newcomers=1.0)
    with pytest.raises(ValueError, match=r"newcomers=0.1 is for rankers of candidates; leave it out"):
        small(after, tmp_path / "a", newcomers=0.1, ranker=RankerConfig(kind="generative"))
    with pytest.raises(ValueError, match=r"ranker\.mlp"):
        other = small(after, tmp_path / "a", warm_start=before)
        other.ranker.mlp = [16]
        train(other)
    with pytest.raises(ValueError, match="is the run to go on from"):
        small(after, before, warm_start=before)
    rows = impressions(2000)
    rows["item_id"] = [f"x{i[1:]}" for i in rows["item_id"]]
    foreign = ITEMS.set_column(0, "item_id", pa.array([f"x{i}" for i in range(12)]))
    data = run(write(tmp_path / "raw", rows, foreign))
    with pytest.raises(ValueError, match=r"knows 12 items and .* has 12, and none is the same"):
        train(small(data, tmp_path / "b", warm_start=before))


def test_training_goes_on(days: tuple[Path, Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before, after, _ = days
    with caplog.at_level("INFO"):
        train(small(after, tmp_path / "run", warm_start=before, epochs=1))
    assert (
        "item: 12 new beside 12 known" in caplog.text and "learning rate of the dense part starts again" in caplog.text
    )
    assert find_checkpoint(tmp_path / "run", "best").is_dir()
