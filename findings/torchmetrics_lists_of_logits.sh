#!/usr/bin/env bash
# torchmetrics 1.9.0 (torch 2.13.0, Python 3.11): metrics of ranked lists, of logits and of their sigmoids.
#
# Guess: they depend on the order alone, so logits serve as probabilities do; what is needed otherwise raises, as
# targets that are neither 0 nor 1 do.
# Seen: average precision, precision, recall and reciprocal rank take a score of 0 or less as not listed; hit rate,
# NDCG, R-precision and AUROC don't. A ranker whose logits are all below 0, as where few impressions are clicked, has
# a MAP and an MRR of 0 beside an NDCG of 0.92. Nothing is raised or warned of.
#
#   the order of [relevant, not, relevant, not]   as logits [2, 1, -1, -2]   less 5   their sigmoids
#   average precision                             1.0                        0.0      0.833
#   recall                                        0.5                        0.0      1.0
#   NDCG                                          0.92                       0.92     0.92
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.6
cat > "$work/try.py" <<'P'
import torch
from torchmetrics.functional import retrieval

target = torch.tensor([1, 0, 1, 0])
logits = torch.tensor([2.0, 1.0, -1.0, -2.0])
SEEN = {
    "average_precision": [1.0, 0.0, 0.833],
    "precision": [0.25, 0.0, 0.5],
    "recall": [0.5, 0.0, 1.0],
    "reciprocal_rank": [1.0, 0.0, 1.0],
    "hit_rate": [1.0] * 3,
    "r_precision": [0.5] * 3,
    "normalized_dcg": [0.92] * 3,
    "auroc": [0.75] * 3,
}
for name, seen in SEEN.items():
    metric = getattr(retrieval, f"retrieval_{name}")
    told = [round(float(metric(scores, target)), 3) for scores in (logits, logits - 5, logits.sigmoid())]
    print(name, told)
    assert told == seen, name
P
"$work/venv/bin/python" "$work/try.py"
