#!/usr/bin/env bash
# fbgemm-gpu-cpu 1.8.0 (torch 2.13.0, numpy 2.4.6, Python 3.11): two things that data_parallel tables and fp16
# communications of TorchRec rest on.
#
# Guess: DenseTableBatchedEmbeddingBagsCodegen without pooling gives a row an id, on the CPU as on CUDA; and a loss scale of
# QuantizedCommCodec lets gradients through fp16 that are too small for it.
# Seen: on the CPU PoolingMode.NONE is ignored, rows of a bag are added up. The scale is divided out before numbers are
# widened, so what was too small is too small again.
#
#   bags of 3 and 2 ids, PoolingMode.NONE   2 rows, expected 5
#   1e-8 as fp16, scale 1e5                 0.0
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
from fbgemm_gpu.quantize_comm import QuantizedCommCodec
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import DenseTableBatchedEmbeddingBagsCodegen, PoolingMode

tables = DenseTableBatchedEmbeddingBagsCodegen([(10, 4)], pooling_mode=PoolingMode.NONE, use_cpu=True)
rows = tables(torch.arange(5), torch.tensor([0, 3, 5]))
print(f"bags of 3 and 2 ids, PoolingMode.NONE: {len(rows)} rows, expected 5")
assert len(rows) == 2
codec = QuantizedCommCodec(SparseType.FP16, loss_scale=1e5, is_fwd=False)
back = codec.decode(codec.encode(torch.tensor([1e-8]))).item()
print(f"1e-8 as fp16, scale 1e5: {back}")
assert back == 0
P
"$work/venv/bin/python" "$work/try.py"
