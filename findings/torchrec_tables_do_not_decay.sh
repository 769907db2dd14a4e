#!/usr/bin/env bash
# torchrec 1.8.0 (fbgemm-gpu-cpu 1.8.0, torch 2.13.0, gloo, one rank, the CPU, Python 3.11): weight decay of embedding tables.
#
# Guess: apply_optimizer_in_backward(RowWiseAdagrad, parameters, {"lr": ..., "weight_decay": ...}) decays the rows of a batch
# whether the collection is sharded or not (its docstring names an L2 penalty), or sharding refuses it.
# Seen: unsharded tables decay; the same tables, once DistributedModelParallel has them, don't. The setting is passed on as a
# fused parameter, and fbgemm wants weight_decay_mode besides, whose default is to decay nothing. With the mode it is the same
# on the CPU: both modes that fbgemm documents for row-wise Adagrad train as without, and torch's Adagrad, which has no mode
# there, does too. Nothing is raised or logged (what RowWiseAdagrad logs says that rows without a gradient differ).
#
#   a row of ones after 3 steps, lr 0.1       weight_decay 0   0.5      0.5, mode L2   0.5, mode DECOUPLE
#   RowWiseAdagrad, not sharded               0.7716           0.7744
#   RowWiseAdagrad, sharded                   0.7716           0.7716   0.7716         0.7716
#   torch.optim.Adagrad, not sharded          0.7716           0.7744
#   torch.optim.Adagrad, sharded              0.7716           0.7716
#   a row that no batch has                   1.0              unsharded 0.7805, sharded 1.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install torch==2.13.0 fbgemm-gpu-cpu==1.8.0 numpy==2.4.6 tensordict==0.15.3 \
    torchmetrics==1.0.3 tqdm pyre-extensions iopath pandas psutil
"$work/venv/bin/pip" -q install --no-deps torchrec==1.8.0
cat > "$work/try.py" <<'P'
import logging
import os
import sys
import warnings

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
from torchrec.distributed.types import ShardingPlan
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
ids = KeyedJaggedTensor(keys=["f"], values=torch.tensor([1, 2]), lengths=torch.tensor([1, 1]))


class Model(torch.nn.Module):
    def __init__(self, device: str) -> None:
        super().__init__()
        table = EmbeddingBagConfig(name="t", num_embeddings=4, embedding_dim=4, feature_names=["f"])
        self.tables = EmbeddingBagCollection(tables=[table], device=torch.device(device))

    def forward(self, ids):
        return self.tables(ids).values().sum()


def after_three_steps(optimizer, settings, sharded):
    model = Model("meta" if sharded else "cpu")
    apply_optimizer_in_backward(optimizer, model.parameters(), dict(settings))
    if sharded:
        sharder = EmbeddingBagCollectionSharder()
        plan = construct_module_sharding_plan(
            model.tables, {"t": table_wise(0, compute_kernel="fused")}, sharder, local_size=1, world_size=1, device_type="cpu"
        )
        plan = ShardingPlan({"tables": plan})
        model = DistributedModelParallel(model, device=torch.device("cpu"), plan=plan, sharders=[sharder])
    weight = model.state_dict()["tables.embedding_bags.t.weight"]
    weight = weight.local_shards()[0].tensor if sharded else weight
    weight.detach().fill_(1)
    for _ in range(3):
        model(ids).backward()
    return [round(row, 4) for row in weight[:2, 0].tolist()]


for optimizer in (RowWiseAdagrad, torch.optim.Adagrad):
    without, decay = {"lr": 0.1}, {"lr": 0.1, "weight_decay": 0.5}
    plain, sharded = after_three_steps(optimizer, without, False), after_three_steps(optimizer, without, True)
    plain_decay, decayed = after_three_steps(optimizer, decay, False), [after_three_steps(optimizer, decay, True)]
    if optimizer is RowWiseAdagrad:
        for mode in (WeightDecayMode.L2, WeightDecayMode.DECOUPLE):
            decayed.append(after_three_steps(optimizer, decay | {"weight_decay_mode": mode}, True))
    print(f"{optimizer.__name__}: an unused and a used row, not sharded {plain}, with weight decay {plain_decay}")
    print(f"{optimizer.__name__}: sharded {sharded}, with weight decay {decayed}")
    assert plain == sharded and plain_decay != plain, "unsharded tables do not decay"
    assert all(found == sharded for found in decayed), "sharded tables decay now"
dist.destroy_process_group()
P
"$work/venv/bin/python" "$work/try.py" "$work/rendezvous"
