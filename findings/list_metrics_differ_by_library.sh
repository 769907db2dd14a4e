#!/usr/bin/env bash
# torchmetrics 1.9.0 (torch 2.13.0), ranx 0.3.21, RecTools 0.19.0 (numpy 1.26.4, Python 3.11): one list, one metric's
# name, three libraries.
#
# Guess: average precision at 2 is one number, and the NDCG@10 of a list that can't be better is 1.
# Seen: torchmetrics divides by the relevant items among the two, the others by all there are: 1.0 and 0.25 for one
# list, so a longer cut can lower torchmetrics' figure and never theirs. RecTools divides DCG by that of ten relevant
# items unless told otherwise (divide_by_achievable), so where each user has one, as with the next visit, no list has
# an NDCG@10 above 0.22.
#
#   relevant are the 1st, 3rd, 4th and 5th     average precision at 2: torchmetrics 1.0, ranx 0.25, RecTools 0.25
#   the only relevant item comes first         NDCG@10: torchmetrics 1.0, ranx 1.0, RecTools 0.2201
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install torch==2.13.0 torchmetrics==1.9.0 ranx==0.3.21 rectools==0.19.0 numpy==1.26.4
cat > "$work/try.py" <<'P'
import pandas as pd
import torch
from ranx import Qrels, Run, evaluate
from rectools.metrics import MAP, NDCG
from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_normalized_dcg

SCORES = [0.9, 0.8, 0.7, 0.6, 0.5]


def told(relevant, of_torchmetrics, of_ranx, of_rectools, k):
    target = torch.tensor([int(i in relevant) for i in range(5)])
    run = Run({"user": {str(i): score for i, score in enumerate(SCORES)}})
    qrels = Qrels({"user": {str(i): 1 for i in relevant}})
    reco = pd.DataFrame({"user_id": 1, "item_id": range(5), "rank": range(1, 6)})
    visits = pd.DataFrame({"user_id": 1, "item_id": list(relevant)})
    return [
        round(float(x), 4)
        for x in (
            of_torchmetrics(torch.tensor(SCORES), target, top_k=k),
            evaluate(qrels, run, f"{of_ranx}@{k}"),
            of_rectools(k=k).calc(reco, visits),
        )
    ]


precision = told((0, 2, 3, 4), retrieval_average_precision, "map", MAP, 2)
gain = told((0,), retrieval_normalized_dcg, "ndcg", NDCG, 10)
print(precision, gain)
assert precision == [1.0, 0.25, 0.25] and gain == [1.0, 1.0, 0.2201]
P
"$work/venv/bin/python" -W ignore "$work/try.py"
