#!/usr/bin/env bash
# torch 2.13.0, torchrec 1.8.0 (tensordict 0.15.3, fbgemm-gpu-cpu 1.8.0, Python 3.11): a short eager program, such as a command
# that asks a trained ranker for one list.
#
# Guess: PyTorch's compiler (torch._dynamo, and with it torch._inductor's settings, sympy, networkx: 1 to 2 s of a start) is
# imported by who compiles. import torch leaves it out, so an eager program does too.
# Seen: these import it, though nothing is compiled:
#
#   import torchrec                                        asks tensordict for one class, which imports it
#   the first call of an operator made by custom_op         the same operator by define and impl does not
#   torch.optim.AdamW(parameters)                          before its first step
#   torch.nn.Embedding(3, 2, device="meta")                on the CPU it does not
#   DistributedDataParallel(module)                        on gloo, with one rank
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install torch==2.13.0 fbgemm-gpu-cpu==1.8.0 numpy==2.4.6 tensordict==0.15.3 \
    torchmetrics==1.0.3 tqdm pyre-extensions iopath pandas psutil
"$work/venv/bin/pip" -q install --no-deps torchrec==1.8.0
cat > "$work/try.py" <<'P'
import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch import library

warnings.simplefilter("ignore")


def operator_by_custom_op():
    @library.custom_op("try::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    twice(torch.ones(2))


def operator_by_define():
    library.define("try::thrice", "(Tensor x) -> Tensor")
    library.impl("try::thrice", "default", lambda x: 3 * x)
    torch.ops.__getattr__("try").thrice(torch.ones(2))


def adamw():
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])


def embedding_on_cpu():
    torch.nn.Embedding(3, 2)


def embedding_on_meta():
    torch.nn.Embedding(3, 2, device="meta")


def process_group():
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2], RANK="0", WORLD_SIZE="1")
    dist.init_process_group("gloo")


def ddp():
    process_group()
    torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))


def import_torchrec():
    import torchrec


assert "torch._dynamo" not in sys.modules
globals()[sys.argv[1]]()
print(sys.argv[1], "torch._dynamo" in sys.modules)
P
while read -r case expected; do
    got=$("$work/venv/bin/python" "$work/try.py" "$case" $((29600 + RANDOM % 300)) 2> "$work/err" | tail -1) || { cat "$work/err"; exit 1; }
    echo "$got"
    test "$got" = "$case $expected"
done <<'CASES'
import_torchrec True
operator_by_custom_op True
operator_by_define False
adamw True
embedding_on_cpu False
embedding_on_meta True
process_group False
ddp True
CASES
