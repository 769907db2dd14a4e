#!/usr/bin/env bash
# fbgemm-gpu-cpu 1.8.0 (torch 2.13.0, numpy 2.4.6, Python 3.11): which CPU operators look at the strides of what they get.
#
# Guess: as any PyTorch operator, one takes a strided view for the numbers that it shows, or refuses it.
# Seen: it depends on the operator. The row-wise quantisers and their inverses read memory from the first number on as
# if it lay row after row. A table-batched embedding reads strided ids right where it pools and wrong where it does not
# (PoolingMode.NONE), so adding a pooling mode changes which rows are looked up. Nothing is raised or logged.
# All reads stay inside the storage of the views that are given here.
#
#   8-bit quantiser, columns :32 of 64      error 0.013 contiguous, 5.5 strided
#   4-bit quantiser, columns :32 of 64      error 0.21 contiguous, 5.5 strided
#   inverses, every other packed row        1 of 64 rows right
#   lookup of ids [0, 1, 2, 3] kept in [[0, 9], [1, 9], [2, 9], [3, 9]]
#     SUM   rows [0, 1, 2, 3]
#     NONE  rows [0, 9, 1, 9]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install torch==2.13.0 fbgemm-gpu-cpu==1.8.0 numpy==2.4.6
cat > "$work/try.py" <<'P'
import warnings

warnings.filterwarnings("ignore")
import fbgemm_gpu
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    PoolingMode,
    SplitTableBatchedEmbeddingBagsCodegen,
)

torch.manual_seed(0)
ops = torch.ops.fbgemm
part = torch.randn(64, 64)[:, :32]
pairs = {
    "8-bit": (ops.FloatToFused8BitRowwiseQuantized, ops.Fused8BitRowwiseQuantizedToFloat),
    "4-bit": (
        lambda x: ops.FloatToFusedNBitRowwiseQuantizedSBHalf(x, 4),
        lambda x: ops.FusedNBitRowwiseQuantizedSBHalfToFloat(x, 4),
    ),
}
for name, (quantise, back) in pairs.items():
    plain = (back(quantise(part.contiguous())) - part).abs().max().item()
    strided = (back(quantise(part)) - part).abs().max().item()
    print(f"{name} quantiser, columns :32 of 64: error {plain:.2g} contiguous, {strided:.2g} strided")
    assert plain < 0.3 and strided > 3
    packed = quantise(torch.randn(128, 32))[::2]
    right = (back(packed) == back(packed.contiguous())).all(1).sum().item()
    print(f"{name} inverse, every other packed row: {right} of 64 rows right")
    assert right < 64

ids = torch.tensor([[0, 9], [1, 9], [2, 9], [3, 9]])[:, 0]
for mode, want in ((PoolingMode.SUM, [0, 1, 2, 3]), (PoolingMode.NONE, [0, 9, 1, 9])):
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(10, 4, EmbeddingLocation.HOST, ComputeDevice.CPU)], pooling_mode=mode
    )
    tables.split_embedding_weights()[0].copy_(torch.arange(10.0)[:, None].expand(10, 4))
    rows = tables(ids, torch.arange(5))[:, 0].long().tolist()
    print(f"lookup of {ids.tolist()}, {mode.name}: rows {rows}")
    assert rows == want
P
"$work/venv/bin/python" "$work/try.py"
