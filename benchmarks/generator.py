"""The default generative ranker for ``bench_lists.py``: trained on one process, for as many passes as validation gains.

Training takes no part in ``placerank train`` yet, so tables are plain ``nn.Embedding`` here.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from placerank.data.batches.semantic_features import SemanticFeatures
from placerank.data.batches.sequences import SequenceBatch, SequenceLoader
from placerank.data.manifest import whole_file
from placerank.rankers.generative.index import Index
from placerank.rankers.generative.model import Generator, GeneratorConfig, PlaceFacts, Questions

COLUMNS = 16  # of the rows of items and users
BATCH, EPOCHS, PATIENCE, RATE, WARM_UP = 512, 10, 2, 1e-3, 50
TOGETHER = 64  # targets of a user that share a stretch


class Trainee(nn.Module):
    """The model and its tables.

    Args:
        prepared: a prepared folder.
        tokens: semantic IDs of its items.
    """

    def __init__(self, prepared: Path, tokens: Path) -> None:
        super().__init__()
        catalog = pq.read_table(prepared / "catalog.parquet")
        semantic = SemanticFeatures.load(tokens, catalog["item_id"])
        users = pq.read_metadata(prepared / "users.parquet").num_rows
        self.index, self.config = Index.of_tokens(semantic), GeneratorConfig()
        self.model = Generator(self.config, PlaceFacts.of(catalog, semantic), self.index, COLUMNS, COLUMNS)
        self.item, self.user = nn.Embedding(len(catalog), COLUMNS), nn.Embedding(users, COLUMNS)
        for table in (self.item, self.user):
            nn.init.uniform_(table.weight, -0.1, 0.1)

    def inputs(self, batch: SequenceBatch) -> tuple[Questions, Tensor, Tensor]:
        q = Questions.of(batch)
        return q, self.item(q.items), self.user(batch.user[batch.stretch])


def loader(prepared: Path, split: str, config: GeneratorConfig, **more: Any) -> SequenceLoader:
    return SequenceLoader(prepared, split, BATCH, history=max(config.memory, config.copied), **more)


def log_p(trainee: Trainee, prepared: Path, split: str) -> tuple[Tensor, Tensor]:
    """Of all targets of a split that can be, and which of them are first visits."""
    found, first = [], []
    with torch.no_grad():
        for batch in loader(prepared, split, trainee.config, together=TOGETHER):
            own = trainee.model(*trainee.inputs(batch))[: batch.valid]
            can = own.isfinite()
            found.append(own[can])
            first.append((batch.visits[: batch.valid] == 0)[can])
    return torch.cat(found), torch.cat(first)


def train(prepared: Path, tokens: Path, seed: int, file: Path) -> Trainee:
    """Trained, or read from the file where it was kept; with the weights of the best validation."""
    torch.manual_seed(seed)
    trainee = Trainee(prepared, tokens)
    if file.exists():
        trainee.load_state_dict(torch.load(file))
        return trainee.eval()
    samples = loader(prepared, "train", trainee.config, together=TOGETHER, shuffle=True, seed=seed)
    steps = samples.steps_per_epoch * EPOCHS
    optimizer = torch.optim.AdamW(trainee.parameters(), RATE)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / WARM_UP, max(0.02, 1 - s / steps)))
    best, best_at, kept, spent = float("inf"), 0, trainee.state_dict(), 0.0
    for epoch in range(EPOCHS):
        trainee.train()
        start = time.process_time()
        for batch in tqdm(samples, desc=f"{prepared.parent.name}, pass {epoch + 1}", unit="step", disable=None):
            own = trainee.model(*trainee.inputs(batch))
            loss = -own[own.isfinite()].mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
            optimizer.step()
            rate.step()
        spent += time.process_time() - start
        found, first = log_p(trainee.eval(), prepared, "valid")
        now = -float(found.mean())
        done = samples.rows * (epoch + 1) / spent
        print(f"pass {epoch + 1}: {now:.4f} nats a visit, {-float(found[first].mean()):.4f} a first one; "
              f"{done:,.0f} targets a second of processor time")  # fmt: skip
        if now < best:
            best, best_at = now, epoch
            kept = {name: x.clone() for name, x in trainee.state_dict().items()}
        elif epoch - best_at >= PATIENCE:
            break
    trainee.load_state_dict(kept)
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as tmp:
        torch.save(kept, tmp)
    return trainee.eval()


def scores(trainee: Trainee, prepared: Path, wanted: Tensor) -> NDArray[np.float32]:
    """Log p of every catalog row for the wanted test visits, bool [N]: [B, I], -inf for what can't be."""
    parts, items = [], torch.from_numpy(trainee.index.items).long()
    batches = loader(prepared, "test", trainee.config)
    for batch, here in zip(tqdm(batches, desc="lists", disable=None), wanted.split(BATCH), strict=True):
        with torch.no_grad():
            q, rows, users = trainee.inputs(batch)
            here = torch.nn.functional.pad(here, (0, len(batch) - len(here)))
            found = torch.full((int(here.sum()), trainee.item.num_embeddings), -torch.inf)
            found[:, items] = trainee.model.score(q.some(here), rows, users[here], trainee.index)
            parts.append(found.numpy())
    return np.concatenate(parts)
