"""cornac's SASRec on the sequences of a dataset: scores of all items for given visits.

    python cornac_sasrec.py FOLDER --epochs 10 --seed 0

Runs in cornac's environment (``bench_lists.py`` makes it) and imports no placerank. FOLDER holds

    train.npz   user, item, time of the training visits, by user and time; items: how many item rows there are
    test.npz    offsets, item: the visits that each target sees, oldest first

and gets ``sasrec-SEED.npy``: scores, float32 [B, items] by item row; row 0, which is no item, has -inf. A user's visits
are one session of cornac's. Sizes, loss and rates are cornac's defaults.
"""

import argparse
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from cornac.data import SequentialDataset
from cornac.models import SASRec

LAST = 50
BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)

    train = np.load(args.folder / "train.npz")
    items = int(train["items"])
    rows = OrderedDict((row, row - 1) for row in range(1, items))  # row r is cornac's item r - 1, visited or not
    visits = [(u, u, i, t) for u, i, t in zip(*(train[n].tolist() for n in ("user", "item", "time")), strict=True)]
    data = SequentialDataset.build(visits, fmt="USIT", global_iid_map=rows)
    model = SASRec(max_len=LAST, n_epochs=args.epochs, seed=args.seed)
    model.fit(data)

    test = np.load(args.folder / "test.npz")
    offsets, item = test["offsets"], test["item"]
    history = np.full((len(offsets) - 1, LAST), model.pad_idx)
    for row, (low, high) in enumerate(pairwise(offsets)):
        seen = item[max(low, high - LAST) : high] - 1
        history[row, LAST - len(seen) :] = seen
    scores = np.full((len(history), items), -np.inf, np.float32)
    model.model.eval()
    for low in range(0, len(history), BATCH):
        part = model.model.predict(None, torch.from_numpy(history[low : low + BATCH]))
        scores[low : low + BATCH, 1:] = part.reshape(-1, items - 1)
    scores[(history == model.pad_idx).all(1), 1:] = 0  # as cornac scores who has no past
    beside = args.folder / f".sasrec-{args.seed}.npy"
    np.save(beside, scores)
    beside.rename(args.folder / f"sasrec-{args.seed}.npy")


if __name__ == "__main__":
    main()
