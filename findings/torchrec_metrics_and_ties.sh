#!/usr/bin/env bash
# torchrec 1.8.0 (fbgemm-gpu-cpu 1.8.0, torch 2.13.0, torchmetrics 1.0.3, Python 3.11): what torchrec.metrics says of a model
# that can't tell some candidates apart: a popularity baseline, tables whose rows are still equal, places of one cluster.
#
# Guess: a tie is worth half a pair, as in scikit-learn and torchmetrics. A model that says the same of everything has 0.5 of
# any AUC, and the order in which rows are given does not matter.
# Seen: AUC and GAUC sort by prediction and count on, without a look at ties: rows that tie count in the order that the sort
# leaves them in. Where clicks are logged first, a constant has AUC 1, and 0 where they are last. GAUC leaves out lists that tie
# throughout, and counts those that tie in part the same way. RAUC, for regression, counts a tie as right: a constant is perfect.
# AUPRC of the same package groups ties as one would think.
#
#   5 candidates, 1 click                             click first   click last   expected
#   AUC, constant predictions                         1.0           0.0          0.5
#   GAUC, the click ties with 3, is above 1           0.25          1.0          0.625
#   RAUC, constant predictions                        1.0           1.0          0.5
#   AUPRC, constant predictions                       0.2           0.2          0.2
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install torch==2.13.0 fbgemm-gpu-cpu==1.8.0 numpy==2.4.6 tensordict==0.15.3 \
    torchmetrics==1.0.3 tqdm pyre-extensions iopath pandas psutil
"$work/venv/bin/pip" -q install --no-deps torchrec==1.8.0
cat > "$work/try.py" <<'P'
import logging
import warnings

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
import torch
from torchmetrics.functional.classification import binary_auroc
from torchrec.metrics.auc import AUCMetric
from torchrec.metrics.auprc import AUPRCMetric
from torchrec.metrics.gauc import GAUCMetric
from torchrec.metrics.metrics_config import DefaultTaskInfo
from torchrec.metrics.rauc import RAUCMetric
from torchrec.metrics.rec_metric import RecComputeMode

TASK = DefaultTaskInfo.name


def value(metric, predictions, labels):
    measure = metric(
        world_size=1,
        my_rank=0,
        batch_size=len(labels),
        tasks=[DefaultTaskInfo],
        compute_mode=RecComputeMode.UNFUSED_TASKS_COMPUTATION,
        window_size=1000,
    )
    given = {
        "predictions": {TASK: torch.tensor(predictions).float()},
        "labels": {TASK: torch.tensor(labels).float()},
        "weights": {TASK: torch.ones(len(labels)).float()},
    }
    if metric is GAUCMetric:
        given["num_candidates"] = torch.tensor([len(labels)])
    measure.update(**given)
    (found,) = (v.item() for name, v in measure.compute().items() if "window" in name and "num_samples" not in name)
    return round(found, 4)


first, last = [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]
constant, one_below = [0.5] * 5, [0.5, 0.5, 0.5, 0.5, 0.1]
seen = {m.__name__: [value(m, constant, first), value(m, constant, last)] for m in (AUCMetric, RAUCMetric, AUPRCMetric)}
seen["GAUCMetric"] = [value(GAUCMetric, one_below, first), value(GAUCMetric, one_below[::-1], last)]
for name, found in seen.items():
    print(f"{name:<11} click first {found[0]}, click last {found[1]}")
torchmetrics = binary_auroc(torch.tensor(constant), torch.tensor(first)).item()
print(f"AUC by torchmetrics {torchmetrics}")
assert torchmetrics == 0.5
assert seen["AUCMetric"] != [0.5, 0.5], "AUC counts ties as half"
assert seen["GAUCMetric"] != [0.625, 0.625], "GAUC counts ties as half"
assert seen["RAUCMetric"] == [1, 1], "a constant is no longer perfect by RAUC"
assert seen["AUPRCMetric"] == [0.2, 0.2]
P
"$work/venv/bin/python" "$work/try.py"
