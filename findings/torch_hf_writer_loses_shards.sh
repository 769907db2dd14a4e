#!/usr/bin/env bash
# torch 2.13.0 (and 2.14.1; safetensors 0.8.0, gloo, Python 3.11): torch.distributed.checkpoint.HuggingFaceStorageWriter with
# save_distributed=True, and a ShardedTensor of which one rank holds two shards (a table that TorchRec cuts by columns on
# fewer ranks than it has pieces, say).
#
# Guess: as with FileSystemWriter, every shard is written, and the reader puts the tensor together; what it can't write it
# refuses.
# Seen: a rank's shards of one tensor have one name in its safetensors file, and the last one is kept. Saving says nothing,
# loading says nothing, and the numbers of the lost shards stay what they were before. A state with a Python number saves
# as well; its file is none that safetensors can read.
#
#   one shard a rank             FileSystemWriter 0 of 48 wrong   HuggingFaceStorageWriter 0 of 48 wrong
#   both shards on rank 0        FileSystemWriter 0 of 48 wrong   HuggingFaceStorageWriter 24 of 48 wrong
#   {"tensor": ..., "step": 3}   FileSystemWriter loads           HuggingFaceStorageWriter saves, and does not load
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
cat > "$work/try.py" <<'P'
import logging
import os
import sys
import warnings

warnings.filterwarnings("ignore")
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata, TensorProperties
from torch.distributed.checkpoint import (
    FileSystemReader,
    FileSystemWriter,
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)

WAYS = {
    "FileSystemWriter": (FileSystemWriter, FileSystemReader),
    "HuggingFaceStorageWriter": (lambda p: HuggingFaceStorageWriter(p, save_distributed=True), HuggingFaceStorageReader),
}
FULL = torch.arange(48.0).reshape(6, 8)


def table(ranks: tuple[int, int], me: int) -> ShardedTensor:
    """Two pieces of four columns, on these ranks."""
    metas = [ShardMetadata([0, 4 * i], [6, 4], f"rank:{rank}/cpu") for i, rank in enumerate(ranks)]
    about = ShardedTensorMetadata(metas, torch.Size([6, 8]), TensorProperties(dtype=torch.float32))
    mine = [Shard(FULL[:, 4 * i : 4 * i + 4].clone(), metas[i]) for i in (0, 1) if ranks[i] == me]
    return ShardedTensor._init_from_local_shards_and_global_metadata(mine, about)


def work(rank: int, folder: str) -> None:
    logging.disable(logging.WARNING)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2], RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo")
    for name, ranks, wrong in (("apart", (0, 1), 0), ("together", (0, 0), 24)):
        for way, (writer, reader) in WAYS.items():
            path = f"{folder}/{name}-{way}"
            dcp.save({"table": table(ranks, rank)}, storage_writer=writer(path))
            got = torch.full((6, 8), -1.0)
            dcp.load({"table": got}, storage_reader=reader(path))
            found = int((got != FULL).sum())
            if rank == 0:
                print(f"{name}, {way}: {found} of 48 wrong", flush=True)
            assert found == (wrong if way.startswith("H") else 0), found
    for way, (writer, reader) in WAYS.items():
        path = f"{folder}/number-{way}"
        dcp.save({"tensor": torch.ones(2), "step": 3}, storage_writer=writer(path))
        state = {"tensor": torch.zeros(2), "step": 0}
        try:
            sys.stderr = open(os.devnull, "w")
            dcp.load(state, storage_reader=reader(path))
            told = "loads"
        except BaseException as error:  # CheckpointException is no Exception
            told = "does not load" if "header too large" in str(error) else str(error)
        finally:
            sys.stderr = sys.__stderr__
        if rank == 0:
            print(f"with a number, {way}: {told}", flush=True)
        assert told == ("does not load" if way.startswith("H") else "loads"), told
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1],), 2)
P
"$work/venv/bin/python" "$work/try.py" "$work" $((29600 + RANDOM % 300))
