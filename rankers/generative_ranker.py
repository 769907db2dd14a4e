"""A generative ranker with its tables: what ``ranker.py`` is for rankers of candidates.

Shapes: B targets, U distinct items that were visited.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from ..data.batches.batch import SampleBatch
from ..data.batches.catalog import Catalog, in_bags
from ..data.batches.features import USER_TOKEN, Features, Table
from ..data.batches.sequences import SequenceBatch
from ..embeddings.tables import FeatureEmbeddings
from .dense import RankerConfig
from .generative.decoding import Lists
from .generative.index import Index
from .generative.kinds import AnyGenerator, lists_of, make
from .generative.model import PlaceFacts, Questions
from .generative.reach import Allowed
from .generative.tiger import user_tokens


@dataclass
class HostQuestions:
    """What the host finds out of a batch.

    Attributes:
        questions: what is asked.
        users: rows of the pooled tables, int64 [B] by name.
    """

    questions: Questions
    users: dict[str, Tensor]

    def pin_memory(self) -> Self:
        """The same in memory from which a GPU copies by itself."""
        return replace(
            self,
            questions=self.questions.map(Tensor.pin_memory),
            users={n: x.pin_memory() for n, x in self.users.items()},
        )


@dataclass
class GenerativeBatch(Pipelineable):
    """What a generative ranker takes, on its device.

    Attributes:
        items: keys of the EmbeddingCollection, rows of the visited items, [U] a key.
        pooled: keys of the EmbeddingBagCollection, a row of each of B targets' users.
        questions: what is asked.
        requests: which of the B each question is of, int64 [N]; None: theirs, in order. Their number B is the same on
            all ranks, N need not be.
    """

    items: KeyedJaggedTensor
    pooled: KeyedJaggedTensor
    questions: Questions
    requests: Tensor | None = None

    def _map(self, f: Callable[[Any], Any]) -> Self:
        requests = None if self.requests is None else f(self.requests)
        return replace(
            self, items=f(self.items), pooled=f(self.pooled), questions=self.questions.map(f), requests=requests
        )

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        return self._map(lambda x: x.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._map(lambda x: x.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        def record(x: Any) -> Any:
            x.record_stream(stream)
            return x

        self._map(record)


def gather(catalog: Catalog, batch: SequenceBatch | SampleBatch) -> HostQuestions:
    """The host's half of a batch; of samples it is their requests."""
    if isinstance(batch, SampleBatch):
        questions, user = Questions.of_samples(batch), batch.user
    else:
        questions, user = Questions.of(batch), batch.user[batch.stretch]
    return HostQuestions(questions, {t.name: _rows_of(catalog, t, user) for t in catalog.features.pooled})


def _rows_of(catalog: Catalog, table: Table, user: Tensor) -> Tensor:
    """Rows of a pooled table by rows of users [B]."""
    if table.name == USER_TOKEN:
        return user_tokens(user, table.rows - 1)
    return user if table.name == "user" else catalog.of_users(table.name, user)


def expand(catalog: Catalog, host: HostQuestions) -> GenerativeBatch:
    """The device's half: rows of the visited items in each table."""
    q, device = host.questions.map(lambda x: x.to(catalog.device, non_blocking=True)), catalog.device
    found = catalog.rows(q.items)
    columns = [q.items if t.name == "item" else found.rows(t.name) for t in catalog.features.sequence]
    users = [host.users[name].to(device, non_blocking=True) for name in catalog.features.pooled_keys]
    return GenerativeBatch(
        in_bags(catalog.features.item_keys, columns, len(q.seen)),
        KeyedJaggedTensor(
            keys=catalog.features.pooled_keys,
            values=torch.cat(users),
            lengths=torch.ones(len(users) * len(q.seen), dtype=torch.int64, device=device),
            length_per_key=[len(q.seen)] * len(users),
        ),
        q,
    )


class GenerativeRanker(nn.Module):
    """Tables and generator in one module, for DistributedModelParallel; two parts, as a ``Ranker`` has.

    Args:
        features: the description of tables.
        config: the generator.
        facts, index: of all items.
        device: of the tables; "meta" leaves it to the sharder.
    """

    def __init__(
        self,
        features: Features,
        config: RankerConfig,
        facts: PlaceFacts,
        index: Index,
        device: torch.device | str = "meta",
    ) -> None:
        super().__init__()
        self.embeddings = FeatureEmbeddings(features, device)
        self.dense: AnyGenerator = make(
            config.kind, config.generator, facts, index, features.query_dim, features.pooled_dim
        )

    def forward(self, batch: GenerativeBatch) -> Tensor:
        """Log p of the targets, [B]; -inf for those that can't be."""
        log_p: Tensor = self.dense(batch.questions, *self._rows(batch))
        return log_p

    def _rows(self, batch: GenerativeBatch) -> tuple[Tensor, Tensor]:
        """Of the visited items, [U, D], and of the targets' users, [B, P]."""
        rows = self.embeddings(batch)
        users = rows.pooled if batch.requests is None else rows.pooled[batch.requests]
        return torch.cat(rows.items, dim=1) if rows.items else rows.pooled[:0], users

    def _some(self, batch: GenerativeBatch, targets: Tensor | None) -> tuple[Questions, Tensor, Tensor]:
        """What the dense part takes for some targets; rows are looked up whatever they are, by all ranks together."""
        items, users = self._rows(batch)
        if targets is None:
            return batch.questions, items, users
        return batch.questions.some(targets), items, users[targets]

    @torch.no_grad()
    def score(self, batch: GenerativeBatch, targets: Tensor | None = None, allowed: Allowed | None = None) -> Tensor:
        """Exact log p of items, see ``decoding.score``.

        Args:
            batch: what is asked.
            targets: which of its B targets are asked, bool [B]; None: all.
            allowed: items of each of these; None: all, in the order of ``dense.index.items``.
        """
        questions, items, users = self._some(batch, targets)
        if not len(questions.seen):  # the other ranks have some
            return torch.zeros(0) if allowed is not None else torch.zeros(0, len(self.dense.index))
        return self.dense.score(questions, items, users, allowed=allowed)

    @torch.no_grad()
    def lists(
        self,
        batch: GenerativeBatch,
        targets: Tensor | None,
        allowed: Allowed,
        k: int,
        seen: Tensor | None = None,
        new: int = 0,
        beams: int = 0,
    ) -> Lists:
        """Lists, see ``kinds.lists_of``.

        Args:
            batch, targets, allowed: as for ``score``.
            k, seen, new: as for ``decoding.best``.
            beams: see ``kinds.lists_of``.
        """
        return lists_of(self.dense, *self._some(batch, targets), allowed, k, seen, new, beams)

    @torch.no_grad()
    def beam(self, batch: GenerativeBatch, allowed: Allowed, beams: int, k: int) -> Lists:
        """The k best that beams find of what each target is allowed, each asked by itself; see ``Generator.beam``."""
        return self.dense.beam(*self._some(batch, None), allowed=allowed, beams=beams, k=k)
