"""cornac's TIGER on the sequences of a dataset: lists for given visits, or how fast it trains.

    python cornac_tiger.py FOLDER --visits 20 --epochs 10 --seed 0
    python cornac_tiger.py FOLDER --visits 20 --speed 2000

Runs in cornac's environment (``bench_tiger.py`` makes it) and imports no placerank. FOLDER holds

    train.npz   user, item, time of the training visits, by user and time; codes [items, L]: of each item row; sizes:
                d_model, d_ff, num_heads, d_kv, layers, batch_size, learning_rate, weight_decay, as JSON
    test.npz    offsets, item: the visits that each target sees, oldest first

and gets ``cornac-SEED.npy``: ten item rows a target, the best first, int64 [B, 10], -1 where there are fewer, by its
beams of 50. Codes are given, so its tokenizer is left out; the suffix is its own, in the order of item rows. A user's
visits are one session. cornac's batches take session after session, so each is of one or two users; here its samples
are mixed one by one, as ours are, since it learns far less of as many passes otherwise.

With ``--speed`` it trains a pass over users with about so many targets, by its own loop as it is, each time that it
reads a line, and writes targets a second of processor time.
"""

import argparse
import json
import sys
import time
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cornac.data import SequentialDataset
from cornac.models import TIGER
from cornac.models.tiger import recom_tiger

BEAMS, LISTED = 50, 10


class Given(TIGER):  # type: ignore[misc]
    """Of given codes [N, L]."""

    def __init__(self, codes: Any, **settings: Any) -> None:
        super().__init__(**settings)
        self.codes = codes

    def _get_item_features(self) -> Any:
        return np.zeros((len(self.codes), 1), np.float32)

    def _tokenize(self, torch: Any, feats_t: Any) -> Any:
        return self.codes


def mixed(make: Any) -> Any:
    """cornac's iterator of samples with all of a pass in a random order."""

    def batches(train_set: Any, *, rng: Any, batch_size: int, **rest: Any) -> Any:
        parts = [*make(train_set, rng=rng, batch_size=65_536, **rest)]
        users, histories, targets = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = rng.permutation(len(users))
        for low in range(0, len(order), batch_size):
            some = order[low : low + batch_size]
            yield users[some], histories[some], targets[some]

    return batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--visits", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", type=int, metavar="TARGETS")
    args = parser.parse_args()
    torch.set_num_threads(1)

    train = np.load(args.folder / "train.npz")
    codes, sizes = train["codes"][1:], json.loads(str(train["sizes"]))
    rows = OrderedDict((row, row - 1) for row in range(1, len(codes) + 1))  # row r is cornac's item r - 1
    visits = [(u, u, i, t) for u, i, t in zip(*(train[n].tolist() for n in ("user", "item", "time")), strict=True)]
    if args.speed:
        users, counts = np.unique(train["user"], return_counts=True)
        order = np.random.default_rng(0).permutation(len(users))
        some = set(users[order[: np.searchsorted((counts[order] - 1).cumsum(), args.speed) + 1]].tolist())
        visits = [visit for visit in visits if visit[0] in some]
    data = SequentialDataset.build(visits, fmt="USIT", global_iid_map=rows)
    layers = sizes.pop("layers")
    model = Given(
        codes, **sizes, num_enc_layers=layers, num_dec_layers=layers, max_len=args.visits, n_epochs=args.epochs,
        rqvae_num_levels=codes.shape[1], rqvae_codebook_size=int(codes.max()) + 1, n_beams=BEAMS, device="cpu",
        seed=args.seed, verbose=not args.speed,
    )  # fmt: skip
    if args.speed:
        targets = len(visits) - len(some)
        for _ in sys.stdin:
            start = time.process_time()
            model.fit(data)
            print(targets / (time.process_time() - start), flush=True)
        return
    recom_tiger.session_seq_iter = mixed(recom_tiger.session_seq_iter)
    start = time.process_time()
    model.fit(data)
    print(f"trained in {time.process_time() - start:.0f} s of processor time")
    test = np.load(args.folder / "test.npz")
    offsets, item = test["offsets"], test["item"]
    lists = np.full((len(offsets) - 1, LISTED), -1)
    for at, (low, high) in enumerate(pairwise(offsets)):
        if high > low:  # else it has nothing to go by: all items are alike
            scores = model.score(0, item[low:high] - 1)
            lists[at] = (-scores).argsort(kind="stable")[:LISTED] + 1
    beside = args.folder / f".cornac-{args.seed}.npy"
    np.save(beside, lists)
    beside.rename(args.folder / f"cornac-{args.seed}.npy")


if __name__ == "__main__":
    main()
