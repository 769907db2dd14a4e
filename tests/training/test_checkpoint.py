"""Checkpoints: equal at any number of ranks, whole or not at all, damage told."""

import logging
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.remote_device import _remote_device
from toy_ranker import (
    BATCH,
    FEATURES,
    OPTIMIZER,
    RANKER,
    fill,
    initial_ranker,
    loaded_pieces,
    local_pieces,
    put_together,
    train_steps,
)

from placerank.data.manifest import describe_file
from placerank.training.checkpoint import Checkpointer, _share, _Snapshot, load, newest_whole, saved_steps
from placerank.training.identity import check_signature
from placerank.training.model import Trainee, assemble, average_buffers
from placerank.training.runtime import Runtime, runtime
from placerank.training.sharding import ShardingConfig

AnyRanks = Callable[..., list[Any]]


def new_trainee(kind: str, rt: Runtime, column_shards: int = 2) -> Trainee:
    sharding = ShardingConfig(default=kind, column_shards=column_shards)
    return assemble(FEATURES, RANKER, sharding, OPTIMIZER, rt, BATCH, 2.0)


def save_some(folder: Path, kind: str, steps: int) -> dict[str, Any]:
    with runtime(0) as rt:
        trainee = new_trainee(kind, rt)
        fill(trainee.model, initial_ranker().state_dict())
        checkpoints = Checkpointer(folder, keep=2, group=rt.background)
        for step in range(steps):
            train_steps(trainee, rt.rank, step, 1)
            average_buffers(trainee.model)
            checkpoints.save(step + 1, trainee.state(), {"signature": {}})
        before = local_pieces(trainee.state())
        train_steps(trainee, rt.rank, steps, 1)  # while the last one is written: it must not see this step
        checkpoints.wait()
        return before


def load_newest(folder: Path, kind: str, column_shards: int = 2) -> dict[str, Any]:
    with runtime(1) as rt:
        return loaded_pieces(folder, new_trainee(kind, rt, column_shards))


@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "column_wise", "data_parallel"])
def test_saved_at_two_ranks_loads_at_any_number(kind: str, tmp_path: Path, ranks: AnyRanks) -> None:
    saved = put_together(ranks(2, save_some, tmp_path, kind, 3))
    assert saved_steps(tmp_path) == [2, 3], "the newest two are kept"
    momentum = [name for name in saved if name.endswith("momentum1")]
    assert len(momentum) == 4 and all(saved[name].any() for name in momentum)
    assert any(name.endswith("exp_avg_sq") for name in saved)
    for world_size in (1, 2, 4):
        loaded = put_together(ranks(world_size, load_newest, tmp_path, kind))
        assert loaded.keys() == saved.keys()
        for name in saved:
            assert torch.equal(loaded[name], saved[name]), name


def test_loads_under_another_sharding(tmp_path: Path, ranks: AnyRanks) -> None:
    """Tables stay equal; a row's Adagrad state is the mean over its column pieces, or is repeated for each."""
    saved = put_together(ranks(2, save_some, tmp_path, "column_wise", 2))
    for kind, pieces in (("row_wise", 1), ("column_wise", 1), ("table_wise", 1), ("data_parallel", 1)):
        loaded = put_together(ranks(2, load_newest, tmp_path, kind, pieces))
        for name, value in saved.items():
            want = value.view(2, -1).mean(0) if name.endswith("momentum1") else value
            torch.testing.assert_close(loaded[name], want, rtol=0, atol=0, msg=name)


def test_replicated_tables_load_under_another_sharding(tmp_path: Path, ranks: AnyRanks) -> None:
    saved = put_together(ranks(2, save_some, tmp_path, "data_parallel", 2))
    for kind in ("table_wise", "column_wise"):
        loaded = put_together(ranks(2, load_newest, tmp_path, kind))
        for name, value in saved.items():
            want = value.repeat(2) if name.endswith("momentum1") and kind == "column_wise" else value
            torch.testing.assert_close(loaded[name], want, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "manifest"])
def test_a_damaged_newest_one_is_told_and_the_one_before_used(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_some(tmp_path, "table_wise", 2)
    newest = tmp_path / "step-00000002"
    file = max(newest.glob("*.distcp"), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[:-100])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    else:
        (newest / "manifest.json").write_text('{"kind": "check')
    with runtime(0), caplog.at_level(logging.WARNING):
        found = newest_whole(tmp_path)
    assert found is not None and found[1]["step"] == 1
    assert "checkpoint of step 2 can't be used" in caplog.text and "trying the one before" in caplog.text
    (tmp_path / "step-00000001" / ".metadata").write_bytes(b"")
    with runtime(0), pytest.raises(ValueError, match=r"no checkpoint in .* can be used: .*train again"):
        newest_whole(tmp_path)


def find_and_count(folder: Path) -> tuple[str, list[str]]:
    """What ``newest_whole`` found or said, and the files that this rank hashed for it."""
    hashed: list[str] = []

    def describe(path: Path) -> dict[str, Any]:
        hashed.append(f"{path.parent.name}/{path.name}")
        return describe_file(path)

    with runtime(0), pytest.MonkeyPatch.context() as patch:
        patch.setattr("placerank.training.checkpoint.describe_file", describe)
        try:
            found = newest_whole(folder)
        except ValueError as error:
            return str(error), hashed
        assert found is not None
        return f"step {found[1]['step']}", hashed


def test_each_rank_hashes_its_share_and_all_learn_of_damage(tmp_path: Path, ranks: AnyRanks) -> None:
    ranks(2, save_some, tmp_path, "row_wise", 2)
    files = {
        n: {p.name for p in (tmp_path / n).iterdir()} - {"manifest.json"} for n in ("step-00000001", "step-00000002")
    }
    assert all(len(names) == 3 for names in files.values())  # one of each rank, and .metadata
    whole = ranks(2, find_and_count, tmp_path)
    assert [said for said, _ in whole] == ["step 2"] * 2
    assert sorted(whole[0][1] + whole[1][1]) == sorted(f"step-00000002/{n}" for n in files["step-00000002"])
    assert whole[0][1] and whole[1][1]
    spoiled = tmp_path / whole[1][1][0]  # the second rank's
    spoiled.write_bytes(spoiled.read_bytes()[:-1] + b"?")
    assert [said for said, _ in ranks(2, find_and_count, tmp_path)] == ["step 1"] * 2
    (tmp_path / "step-00000001" / "manifest.json").unlink()
    (one, _), (other, _) = ranks(2, find_and_count, tmp_path)
    assert (
        one == other and "can be used: " in one and f"{spoiled} differs" in one and "manifest.json can't be read" in one
    )


def test_shares_are_all_files_and_even() -> None:
    sizes = torch.randint(0, 1000, (101,)).tolist()
    files = {f"f{i}": {"bytes": size} for i, size in enumerate(sizes)}
    for ranks in (1, 3, 8, 200):
        shares = [_share(files, rank, ranks) for rank in range(ranks)]
        assert sum(map(len, shares)) == len(files) and set().union(*shares) == set(files)
        bytes_ = [sum(f["bytes"] for f in share.values()) for share in shares]
        assert max(bytes_) - min(bytes_) <= max(sizes)


def save_on_a_full_disk(folder: Path) -> str:
    with runtime(0) as rt:
        trainee = new_trainee("row_wise", rt)
        checkpoints = Checkpointer(folder, keep=2, group=rt.background)
        checkpoints.save(1, trainee.state(), {})
        checkpoints.wait()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, unlimited[1]))  # a disk that takes no more
        checkpoints.save(2, trainee.state(), {})
        with pytest.raises(OSError) as error:
            checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        return str(error.value)


def test_a_full_disk_is_told_and_leaves_no_partial_checkpoint(tmp_path: Path, ranks: AnyRanks) -> None:
    for message in ranks(2, save_on_a_full_disk, tmp_path):
        assert "checkpoint of step 2 could not be written" in message
        assert "File too large" in message
        assert "the newest whole checkpoint is step 1" in message
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    with runtime(0):
        assert newest_whole(tmp_path) is None


def test_a_protected_checkpoint_stays(tmp_path: Path) -> None:
    with runtime(0) as rt:
        checkpoints = Checkpointer(tmp_path, keep=1, group=rt.background)
        checkpoints.protected = {1}
        for step in (1, 2, 3):
            checkpoints.save(step, {"x": torch.zeros(3)}, {})
        checkpoints.wait()
    assert saved_steps(tmp_path) == [1, 3]


def test_another_config_is_told(tmp_path: Path) -> None:
    saved = {"tables": {"item": {"rows": 5, "dim": 16}}, "ranker": {"tower": "din"}}
    wanted = {"tables": {"item": {"rows": 5, "dim": 32}}, "ranker": {"tower": "din"}}
    with pytest.raises(ValueError, match=r"runs/a was made with another config; tables.item.dim: saved 16, now 32"):
        check_signature(saved, wanted, "runs/a")
    with runtime(0) as rt:
        checkpoints = Checkpointer(tmp_path, keep=1, group=rt.background)
        checkpoints.save(1, {"model": {"w": torch.zeros(3)}}, {})
        checkpoints.wait()
        path = tmp_path / "step-00000001"
        with pytest.raises(ValueError, match=r"'model.w' has shape \(3,\), this config makes \(4,\)"):
            load(path, {"model": {"w": torch.zeros(4)}})
        with pytest.raises(ValueError, match=r"has no 'model.v': it was saved with another config"):
            load(path, {"model": {"v": torch.zeros(3)}})


def test_a_copy_of_what_lies_on_a_gpu_lies_on_the_host(tmp_path: Path) -> None:
    """A ShardedTensor says where its shards are, and PyTorch holds it to that."""
    with runtime(0) as rt:
        shard = Shard.from_tensor_and_offsets(torch.arange(6.0).view(3, 2), [0, 0], rt.rank)
        there = ShardedTensor._init_from_local_shards([shard], 3, 2)
        for metadata in (*there.metadata().shards_metadata, there.local_shards()[0].metadata):
            metadata.placement = _remote_device("rank:0/cuda:0")
        copied = _Snapshot().stage({"weight": there})["weight"]
        (own,) = copied.local_shards()
        assert torch.equal(own.tensor, shard.tensor) and own.tensor.data_ptr() != shard.tensor.data_ptr()
        assert [str(m.placement) for m in copied.metadata().shards_metadata] == ["rank:0/cpu"]
        assert str(there.metadata().shards_metadata[0].placement) == "rank:0/cuda:0"
