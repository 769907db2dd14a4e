"""A ranker of a few dozen rows and random batches for it, for tests on several ranks."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from placerank.data.batches.batch import RankingBatch
from placerank.data.batches.dense_batch import DenseBatch
from placerank.data.batches.features import Features, Table
from placerank.rankers.dense import RankerConfig
from placerank.rankers.ranker import Ranker
from placerank.training import checkpoint
from placerank.training.model import OptimizerConfig, Trainee

FEATURES = Features(
    sequence=(
        Table("item", 101, 8, ("item",)),
        Table("category", 13, 8, ("item_category",)),
    ),
    pooled=(Table("user", 57, 8, ("user",)), Table("category_path", 13, 8, ("category_path",))),
    dense=("distance",),
)
OPTIMIZER = OptimizerConfig(table_lr=0.1, dense_lr=1e-2)
RANKER = RankerConfig(mlp=[8])
BATCH = 7


def make_batch(seed: int) -> RankingBatch:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 5, (BATCH,), generator=g)
    lengths[0] = lengths[-1] = 0
    total, ones, found = int(lengths.sum()), torch.ones(BATCH, dtype=torch.int64), 9 + seed % 3
    rows = lambda high, n: torch.randint(0, high, (n,), generator=g)  # noqa: E731
    paths = torch.randint(0, 4, (BATCH,), generator=g)
    target, visits = rows(found, BATCH), rows(found, total)
    return RankingBatch(
        items=KeyedJaggedTensor(
            keys=["item", "item_category"],
            values=torch.cat([torch.randperm(101, generator=g)[:found], rows(13, found)]),
            lengths=torch.tensor([found, found]),
        ),
        pooled=KeyedJaggedTensor(
            keys=["user", "category_path"],
            values=torch.cat([rows(57, BATCH), rows(13, int(paths.sum()))]),
            lengths=torch.cat([ones, paths]),
        ),
        dense=DenseBatch(
            target=target,
            visits=visits,
            offsets=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
            lengths=lengths,
            features=torch.rand(BATCH, 2, generator=g),
            history_gaps=torch.rand(total, 2, generator=g),
        ),
        label=rows(2, BATCH).float(),
    )


def initial_ranker() -> Ranker:
    torch.manual_seed(7)
    return Ranker(FEATURES, RANKER, device="cpu")


def fill(model: Any, weights: dict[str, Tensor]) -> None:
    """Copy whole tensors into what this rank has of them."""
    for name, target in model.state_dict().items():
        for at, piece in checkpoint.local_pieces(target):
            piece.copy_(weights[name][tuple(slice(o, o + n) for o, n in zip(at, piece.shape, strict=True))])


def loaded_pieces(folder: Path, trainee: Trainee) -> dict[str, Any]:
    """Fill a trainee from the newest checkpoint; the pieces that this rank then has."""
    found = checkpoint.newest_whole(folder)
    assert found is not None
    state = trainee.state()
    checkpoint.load(found[0], state)
    trainee.load_state(state)
    return local_pieces(trainee.state())


def local_pieces(state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every tensor of a nested state as its size and the pieces (offsets, values) that this rank holds."""
    out: dict[str, Any] = {}
    for key, value in state.items():
        name = prefix + key
        if isinstance(value, dict):
            out |= local_pieces(value, f"{name}.")
        else:
            pieces = [(list(at), piece.clone()) for at, piece in checkpoint.local_pieces(value)]
            out[name] = (value.size(), pieces)
    return out


def put_together(ranks: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Whole tensors from what ``local_pieces`` gave on each rank."""
    out: dict[str, Tensor] = {}
    for pieces in ranks:
        for name, (size, shards) in pieces.items():
            target = out.setdefault(name, torch.full(size, torch.nan))
            for offsets, values in shards:
                target[tuple(slice(o, o + n) for o, n in zip(offsets, values.shape, strict=True))] = values
    return out


def train_steps(trainee: Any, rank: int, first: int, count: int) -> list[Tensor]:
    """Steps on batches that depend on step and rank alone; the logits of each."""
    outputs = []
    for step in range(first, first + count):
        batch = make_batch(100 * step + rank)
        logits = trainee.model(batch).logits
        outputs.append(logits.detach())
        trainee.optimizer.zero_grad()
        binary_cross_entropy_with_logits(logits, batch.label).backward()
        trainee.optimizer.step()
        trainee.scheduler.step()
    return outputs
