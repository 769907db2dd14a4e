"""Interest towers: a user's history, seen from the item that is being ranked.

Shapes: B samples, T history entries of all samples together (jagged), D query width, G gap columns, I interest width.
Samples are candidates of R requests, whose histories have V visits in all: T counts a visit for each candidate.
"""

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...data.batches.dense_batch import Context
from ...kernels.jagged import ranges_unchecked, segment_ids_unchecked, shared_rows_unchecked

__all__ = ["TOWERS", "Context", "History", "InterestTower", "Samples", "find_tower", "register_tower", "with_options"]


class History(NamedTuple):
    """Jagged histories.

    Attributes:
        keys: one row a visit, oldest first, [T, D].
        offsets: sample b's visits are rows offsets[b] to offsets[b+1], int64 [B+1]; empty ones are legal.
        gaps: log(1 + hours) since the visit and log(1 + km) from it to the target item, [T, G]. Hours are the same
            for all candidates of a request.
        lengths: int64 [B], on the host, where they are known there: for towers that ask how long a history is.
        starts: where the candidates of a request share keys, the row of each sample's first key, int64 [B]: keys are
            then [V, D], a row a visit of a request, while offsets and gaps are each sample's own, as always. Only
            towers that say ``shares_keys`` are given it.
    """

    keys: Tensor
    offsets: Tensor
    gaps: Tensor
    lengths: Tensor | None = None
    starts: Tensor | None = None

    @staticmethod
    def from_padded(keys: Tensor, mask: Tensor, gaps: Tensor) -> "History":
        """Jagged from padded: keys [B, L, D], mask bool [B, L] (True = a visit, anywhere in a row), gaps [B, L, G]."""
        offsets = torch.zeros(mask.shape[0] + 1, dtype=torch.int64, device=mask.device)
        offsets[1:] = mask.sum(dim=1).cumsum(0)
        return History(keys[mask], offsets, gaps[mask])


class Samples(NamedTuple):
    """What samples are about and what their users visited, as places among U distinct items.

    Attributes:
        target: which of the items, int64 [B].
        visits: which of them each request's history has, oldest first, int64 [V].
        offsets: sample b's history is entries offsets[b] to offsets[b+1] of gaps and context, int64 [B+1].
        gaps: as in ``History``, [T, G].
        context: where the tower uses it.
        lengths: of the histories, int64 [B], on the host, where they are known there.
        starts: of each sample, where its history is among the visits, int64 [B]; None: visits are [T], each sample's
            own, as offsets say.
    """

    target: Tensor
    visits: Tensor
    offsets: Tensor
    gaps: Tensor
    context: Context | None
    lengths: Tensor | None = None
    starts: Tensor | None = None

    def query(self, items: Tensor) -> Tensor:
        """The targets, [B, D], of items [U, D]."""
        return items.index_select(0, self.target)

    def history(self, items: Tensor, shared: bool = False) -> History:
        """Histories whose keys are the visited ones of items [U, D]; ``shared``: those of a request once."""
        visits, starts = self.visits, self.starts
        if starts is not None and not shared:
            visits = visits.index_select(0, shared_rows_unchecked(starts, self.offsets, self.gaps.shape[0]))
            starts = None
        return History(items.index_select(0, visits), self.offsets, self.gaps, self.lengths, starts)

    def latest(self, count: int) -> "Samples":
        """The same samples with the last ``count`` visits (1 or more) of each history."""
        lengths, visits = self.lengths, self.gaps.shape[0]
        if lengths is None:  # an exported program has none
            first = (self.offsets[1:] - count).index_select(0, segment_ids_unchecked(self.offsets, visits))
            rows = (torch.arange(visits, device=self.visits.device) >= first).nonzero().squeeze(1)
        kept = self.offsets.diff().clamp(max=count)
        ends = nn.functional.pad(kept.cumsum(0), (1, 0))
        if lengths is not None:  # the size is known on the host: a GPU need not be waited for
            lengths = lengths.clamp(max=count)
            rows = ranges_unchecked(self.offsets[1:], kept, int(lengths.sum()))
        context = self.context
        if context is not None:
            of_visits = {n: x[rows] for n, x in context._asdict().items() if n.startswith("visit_")}
            context = context._replace(**of_visits)
        starts = None if self.starts is None else self.starts + (self.offsets.diff() - kept)
        own = self.visits if starts is not None else self.visits[rows]
        return Samples(self.target, own, ends, self.gaps[rows], context, lengths, starts)


class InterestTower(nn.Module, ABC):
    """Turns a target and a history into one interest vector.

    A tower takes any query and any keys of one width, so it works with every embedding in front of it. It must
    give finite values, never NaN, for an empty history, and must not depend on the other samples' histories.

    A sample is a candidate, and a tower sees a history for each: query, offsets, gaps (km are to the candidate) and
    context are of candidates. Keys alone are of requests, and a tower that says ``shares_keys`` is given them once a
    request, with where each candidate finds its own (``History.starts``); others get them repeated.

    Args:
        dim: width D of query and keys.
        gaps: columns G of the history's gaps.
    """

    output_dim: int
    """Width I of what ``forward`` returns; set by the subclass."""
    uses_context: bool = False
    """Whether ``forward`` needs a Context; those that don't are given None, and batches carry none."""
    shares_keys: bool = False
    """Whether ``forward`` takes keys once a request, by ``History.starts``."""

    def __init__(self, dim: int, gaps: int) -> None:
        super().__init__()
        self.dim = dim
        self.gaps = gaps

    @abstractmethod
    def forward(self, query: Tensor, history: History, context: Context | None = None) -> Tensor:
        """query [B, D] and history to interest [B, I]."""

    def forward_with_loss(
        self, query: Tensor, history: History, context: Context | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Interest [B, I], and the tower's own loss (a scalar, already weighted) where it has one; used in training."""
        return self(query, history, context), None


def beside_product(interest: Tensor, query: Tensor) -> Tensor:
    """[i, i * q] of interest and query, [B, D] both: layers that see i and q side by side can't multiply them."""
    return torch.cat([interest, interest * query], dim=1)


TOWERS: dict[str, Callable[[int, int], InterestTower]] = {}


def register_tower(name: str, tower: Callable[[int, int], InterestTower]) -> None:
    """Make a tower known by name; a name can be taken once."""
    if name in TOWERS:
        raise ValueError(f"tower {name!r} is already registered as {TOWERS[name]}; choose another name")
    TOWERS[name] = tower


def find_tower(name: str) -> Callable[[int, int], InterestTower]:
    """A registered tower, or one of yours by ``package.module:Class``.

    Raises:
        ValueError: no such tower, or the module or class can't be found.
    """
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            tower: Callable[[int, int], InterestTower] = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"tower {name!r}: {error}; expected package.module:Class that can be imported") from error
        if not (isinstance(tower, type) and issubclass(tower, InterestTower)) or inspect.isabstract(tower):
            raise ValueError(f"tower {name!r} is {tower!r}; expected a class made from InterestTower, with a forward")
        return tower
    if name not in TOWERS:
        known = ", ".join(sorted(TOWERS))
        raise ValueError(f"tower {name!r} does not exist; there are {known}, or package.module:Class")
    return TOWERS[name]


def with_options(name: str, options: Mapping[str, float]) -> Callable[[int, int], InterestTower]:
    """A tower with some of its constructor's numbers changed.

    Args:
        name: as ``find_tower`` takes it.
        options: numbers by name; those whose default is whole must be whole and at least 1, others 0 or more.

    Raises:
        ValueError: no such tower, it has no such option, or the number is out of range.
    """
    tower = find_tower(name)
    all_defaults = {p.name: p.default for p in inspect.signature(tower).parameters.values()}
    defaults = {n: default for n, default in all_defaults.items() if type(default) in (int, float)}
    numbers: dict[str, float] = {}
    for option, value in options.items():
        if option not in defaults:
            known = ", ".join(f"{n} ({default})" for n, default in defaults.items()) or "none"
            raise ValueError(f"ranker.tower_options: tower {name!r} has no option {option!r}; it has {known}")
        whole = isinstance(defaults[option], int)
        if not value >= whole or (whole and value != int(value)):
            expected = "a whole number, at least 1" if whole else "0 or more"
            raise ValueError(f"ranker.tower_options {option}={value}: tower {name!r} expects {expected}")
        numbers[option] = int(value) if whole else value
    return partial(tower, **numbers)
