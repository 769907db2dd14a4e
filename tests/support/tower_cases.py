"""Small histories with their context, and towers whose statistics and slopes are not those of the start."""

import torch
from torch import Tensor

from placerank.data.batches.dense_batch import Context
from placerank.kernels.haversine import unit_vectors
from placerank.rankers.towers.din import Dice
from placerank.rankers.towers.tower import History, InterestTower, find_tower

D, G = 8, 2


def make_tower(name: str = "din", seed: int = 0) -> InterestTower:
    torch.manual_seed(seed)
    tower = find_tower(name)(D, G)
    for module in tower.modules():
        if isinstance(module, Dice):
            torch.nn.init.normal_(module.alpha)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return tower


def make_history(lengths: list[int], seed: int = 0) -> tuple[Tensor, History]:
    g = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    total = sum(lengths)
    query = torch.randn(len(lengths), D, generator=g)
    return query, History(torch.randn(total, D, generator=g), offsets, torch.rand(total, G, generator=g))


def make_context(samples: int, visits: int, seed: int = 0) -> Context:
    """Places within some 10 km, every fifth unknown; any hour; few categories, some unknown."""
    g = torch.Generator().manual_seed(seed + 1000)

    def places(n: int) -> Tensor:
        lat, lon = (48 + 0.1 * torch.rand(n, generator=g), 10 + 0.1 * torch.rand(n, generator=g))
        lat[torch.rand(n, generator=g) < 0.2] = torch.nan
        return unit_vectors(lat, lon)

    rows = lambda high, n: torch.randint(0, high, (n,), generator=g)  # noqa: E731
    of_samples = rows(3, samples), rows(168, samples), places(samples), places(samples)
    return Context(*of_samples, rows(3, visits), rows(168, visits), places(visits))


def make_case(lengths: list[int], seed: int = 0) -> tuple[Tensor, History, Context]:
    query, history = make_history(lengths, seed)
    return query, history, make_context(len(lengths), sum(lengths), seed)


def select(
    case: tuple[Tensor, History, Context], visits: Tensor, samples: Tensor, lengths: list[int]
) -> tuple[Tensor, History, Context]:
    """Some samples and visits of a case, by row numbers."""
    query, history, context = case
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    picked = Context(*(x[samples] for x in context[:4]), *(x[visits] for x in context[4:]))
    return query[samples], History(history.keys[visits], offsets, history.gaps[visits]), picked
