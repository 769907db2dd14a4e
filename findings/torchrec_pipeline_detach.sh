#!/usr/bin/env bash
# torchrec 1.8.0 (fbgemm-gpu-cpu 1.8.0, torch 2.13.0, gloo, Python 3.11): a train pipeline that is detached, as before a
# validation, and goes on.
#
# Guess: as the docstring of TrainPipelineSparseDist.detach() says, batches in flight are kept and progress() goes on
# with them: the losses are those of a loop that was never interrupted, on any number of ranks.
# Seen: true on one rank. On two, with a table cut by rows, the first progress() after a detach() raises. attach()
# starts the exchange of the first batch's ids anew, and puts a new context where the exchange in flight was to leave its
# sizes. Where the iterator ends before each detach(), so that nothing is in flight, two ranks do as uninterrupted ones.
#
#   1 rank, detached with batches in flight    as uninterrupted
#   2 ranks, the iterator ends before          as uninterrupted
#   2 ranks, detached with batches in flight   RuntimeError (gloo: in->size == out->size)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install torch==2.13.0 fbgemm-gpu-cpu==1.8.0 numpy==2.4.6 tensordict==0.13.0 \
    torchmetrics==1.0.3 tqdm pyre-extensions iopath pandas psutil
"$work/venv/bin/pip" -q install --no-deps torchrec==1.8.0
cat > "$work/try.py" <<'P'
import logging
import sys
import warnings
from itertools import islice

warnings.filterwarnings("ignore")
import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.train_pipeline.runtime_forwards import PipelinedForward
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

logging.disable(logging.WARNING)
PipelinedForward._use_main_stream_for_dist_init = True  # no streams on the CPU
dist.init_process_group("gloo")
rank = dist.get_rank()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        tables = [EmbeddingConfig(name="t", num_embeddings=100, embedding_dim=4, feature_names=["f"])]
        self.table = EmbeddingCollection(tables=tables, device=torch.device("meta"))
        self.over = nn.Linear(4, 1)

    def forward(self, ids):
        return self.over(self.table(ids)["f"].values()).square().mean()


def batches():
    generator = torch.Generator().manual_seed(rank)
    for _ in range(8):
        lengths = torch.randint(1, 9, (5,), generator=generator)
        values = torch.randint(0, 100, (int(lengths.sum()),), generator=generator)
        yield KeyedJaggedTensor(keys=["f"], values=values, lengths=lengths)


def losses(detach: str) -> list[float]:
    torch.manual_seed(0)
    model = Model()
    apply_optimizer_in_backward(torch.optim.SGD, model.table.parameters(), {"lr": 0.1})
    sharder = EmbeddingCollectionSharder()
    plan = construct_module_sharding_plan(model.table, {"t": row_wise(compute_kernel="fused")}, sharder, device_type="cpu")
    model = DistributedModelParallel(
        model, device=torch.device("cpu"), plan=ShardingPlan({"table": plan}), sharders=[sharder]
    )
    for shard in model.module.table.state_dict()["embeddings.t.weight"].local_shards():
        shard.tensor.copy_(torch.arange(shard.tensor.numel()).view_as(shard.tensor) / 100)
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if n.startswith("over")], lr=0.1)
    found = []

    def forward(ids):
        loss = model(ids)
        found.append(loss.item())
        return loss, loss

    pipeline = TrainPipelineSparseDist(model, optimizer, torch.device("cpu"), custom_model_fwd=forward)
    ids = batches()
    for part in (3, 5):
        some = islice(ids, part) if detach == "drained" else ids
        for _ in range(part):
            pipeline.progress(some)
        if detach != "never":
            pipeline.detach()
    return found


def verdict(detach: str) -> str:
    want = losses("never")
    try:
        return "as uninterrupted" if losses(detach) == want else "other losses"
    except RuntimeError as error:
        assert "in->size == out->size" in str(error), error
        return "RuntimeError"


got = verdict(sys.argv[1])
if rank == 0:
    print(f"{dist.get_world_size()} rank(s), {sys.argv[1]}: {got}", flush=True)
assert got == sys.argv[2], got
P
port=$((29600 + RANDOM % 300))
run() {
    local ranks=$1 pids=()
    port=$((port + 1))
    for ((rank = 0; rank < ranks; rank++)); do
        RANK=$rank WORLD_SIZE=$ranks LOCAL_WORLD_SIZE=$ranks LOCAL_RANK=$rank MASTER_ADDR=127.0.0.1 MASTER_PORT=$port \
            OMP_NUM_THREADS=1 timeout 120 "$work/venv/bin/python" "$work/try.py" "$2" "$3" 2> "$work/err$rank" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || { cat "$work"/err*; exit 1; }; done
}
run 1 "in flight" "as uninterrupted"
run 2 drained "as uninterrupted"
run 2 "in flight" RuntimeError
