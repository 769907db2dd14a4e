"""AKT-Rec's hierarchical views: the interest of a user seen through the id, the cluster and the content of places.

AKT-Rec (arXiv 2605.23310), section 3.2 "hierarchical feature aggregation". The text that this was made from gives no
formulas; these are ours (design, section 7).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.jagged import segment_ids
from .tower import Context, History, InterestTower


class _Fork(torch.autograd.Function):
    """All of ``values`` [T, D], and some rows of its columns from ``first`` on, each row once.

    The backward adds to one copy of the gradient: with slices and gathers, autograd would fill three of [T, D].
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor, first: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows)
        ctx.first = first
        return values.view_as(values), values[:, first:].index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, of_some: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        total = grad.clone(memory_format=torch.contiguous_format)
        total[:, ctx.first :].index_add_(0, rows, of_some)
        return total, None, None


class _Take(torch.autograd.Function):
    """Rows that are taken once each, so that the backward copies and adds nothing."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.total = values.shape[0]
        return values.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return grad.new_zeros(ctx.total, *grad.shape[1:]).index_copy_(0, rows, grad), None


def latest_visits(offsets: Tensor, total: int, recent: int) -> tuple[Tensor, Tensor]:
    """The last ``recent`` rows of each segment.

    Args:
        offsets: int64 [B+1].
        total: rows of all segments together, T.
        recent: positive.

    Returns:
        Row numbers, rising, int64 [R], and the offsets of what is left, int64 [B+1].
    """
    first = (offsets[1:] - recent).index_select(0, segment_ids(offsets, total))
    rows = (torch.arange(total, device=offsets.device) >= first).nonzero().squeeze(1)
    return rows, F.pad(offsets.diff().clamp(max=recent).cumsum(0), (1, 0))


class HierarchicalViews(nn.Module):
    """A tower a view, and a gate on activity that says which view counts how much.

        I = [V w_1 I_1, ..., V w_V I_V],    w = softmax(MLP([activity of user, activity of item]))

    The weighted interests lie side by side, not in a sum: views may differ in width, and the ranker's first layer
    maps each before it adds them, so a sum of projections is what it computes. V w is 1 for every view at the start.
    Each view has a tower of its own, since statistics of keys and widths differ by view; sharing one saves no time.
    Views after the first see the latest ``recent`` visits alone: a coarser view tells fewer visits apart, and three
    towers on whole histories took 2.3 times the time of one on all columns (DIN, 50 visits).

    B samples, T visits, V views of D_v columns.

    Args:
        tower: makes a tower from width and gap columns, as ``find_tower`` gives it.
        dims: D_v, by view that is given.
        gaps: columns of the history's gaps.
        activity: columns of the activity of user and item together.
        recent: visits that views after the first see, at most; 0: all.
        inner: column of the first view from which on it makes one more view, the last, by itself; None: no such view.
        hidden: width of the gate's hidden layer.
    """

    def __init__(
        self,
        tower: Callable[[int, int], InterestTower],
        dims: Sequence[int],
        gaps: int,
        activity: int,
        recent: int = 10,
        inner: int | None = None,
        hidden: int = 16,
    ) -> None:
        super().__init__()
        if not dims:
            raise ValueError("views: got none, expected the width of one or more")
        if recent < 0:
            raise ValueError(f"views: got recent={recent}, expected 0 (all visits) or more")
        self.recent, self.inner = recent, inner
        dims = [*dims] if inner is None else [*dims, dims[0] - inner]
        self.towers = nn.ModuleList(tower(dim, gaps) for dim in dims)
        self.output_dim = sum(t.output_dim for t in self._towers())
        last = nn.Linear(hidden, len(dims))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.gate = nn.Sequential(nn.Linear(activity, hidden), nn.ReLU(), last)

    def forward(
        self,
        queries: Sequence[Tensor],
        keys: Sequence[Tensor],
        offsets: Tensor,
        gaps: Tensor,
        activity: Tensor,
        context: Context | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Interest [B, I], and the views' weights [B, V], which sum to 1.

        Args:
            queries: target, [B, D_v] by view.
            keys: history, [T, D_v] by view.
            offsets: int64 [B+1].
            gaps: [T, G].
            activity: of user and item, [B, A].
            context: where the tower uses it.
        """
        views = self._views(queries, keys, offsets, gaps, context)
        return self._fuse([tower(query, *seen) for tower, query, seen in views], activity)

    def forward_with_loss(
        self,
        queries: Sequence[Tensor],
        keys: Sequence[Tensor],
        offsets: Tensor,
        gaps: Tensor,
        activity: Tensor,
        context: Context | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As ``forward``, and the mean of the towers' own losses where they have one; used in training."""
        interests, losses = [], []
        for tower, query, seen in self._views(queries, keys, offsets, gaps, context):
            interest, loss = tower.forward_with_loss(query, *seen)
            interests.append(interest)
            losses += [] if loss is None else [loss]
        return *self._fuse(interests, activity), torch.stack(losses).mean() if losses else None

    def _towers(self) -> list[InterestTower]:
        return cast(list[InterestTower], list(self.towers))

    def _views(
        self,
        queries: Sequence[Tensor],
        keys: Sequence[Tensor],
        offsets: Tensor,
        gaps: Tensor,
        context: Context | None,
    ) -> Iterator[tuple[InterestTower, Tensor, tuple[History, Context | None]]]:
        """By view: its tower, the query, and what it sees of the history."""
        if self.inner is not None:
            queries = [*queries, queries[0][:, self.inner :]]
        return zip(self._towers(), queries, self._histories(keys, offsets, gaps, context), strict=True)

    def _histories(
        self, keys: Sequence[Tensor], offsets: Tensor, gaps: Tensor, context: Context | None
    ) -> list[tuple[History, Context | None]]:
        """What each view's tower sees."""
        views = len(self.towers)
        if not self.recent or views == 1:
            keys = keys if self.inner is None else [*keys, keys[0][:, self.inner :]]
            return [(History(key, offsets, gaps), context) for key in keys]
        rows, ends = latest_visits(offsets, gaps.shape[0], self.recent)
        first, *others = keys
        others = [_Take.apply(key, rows) for key in others]
        if self.inner is not None:
            first, inner = _Fork.apply(first, rows, self.inner)
            others = [*others, inner]
        whole = History(first, offsets, gaps), context
        if context is not None:
            of_visits = {n: x[rows] for n, x in context._asdict().items() if n.startswith("visit_")}
            context = context._replace(**of_visits)
        gaps = gaps[rows]
        return [whole, *((History(key, ends, gaps), context) for key in others)]

    def _fuse(self, interests: list[Tensor], activity: Tensor) -> tuple[Tensor, Tensor]:
        weights = torch.softmax(self.gate(activity).float(), dim=1)
        scales = (len(interests) * weights).split(1, dim=1)
        scaled = [x * scale.to(x.dtype) for x, scale in zip(interests, scales, strict=True)]
        return torch.cat(scaled, dim=1), weights
