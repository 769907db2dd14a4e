"""Trilateral Spatiotemporal Attention Network: where the request is, where the items are, and when.

Qi et al., Trilateral Spatiotemporal Attention Network for User Behavior Modeling in Location-based Search, CIKM 2021
(doi 10.1145/3459637.3482206). Written from its abstract, see TRISAN.
"""

import torch
from torch import Tensor, nn

from ...kernels.jagged import segment_dot_unchecked, segment_ids_unchecked
from .din import DIN
from .spacetime import CellEmbedding, HourEmbedding, nearness
from .tower import Context, History, InterestTower


class Closeness(nn.Module):
    """Geographic closeness of visits to one place a sample, weighted by how the times relate.

    f = (A [log km, known, similarity of cells] + a) * sigmoid(B [hours, hours of the week] + b): being near means more,
    or less, depending on when. Fused without hidden layers, so that the attention's own layers see each part.

    Args:
        sizes: of cells, C.
        times: columns R of the temporal relation.
        width: columns W of the result.
    """

    def __init__(self, sizes: int, times: int, width: int) -> None:
        super().__init__()
        self.of_space = nn.Linear(2 + sizes, width)
        self.of_time = nn.Linear(times, width)

    def forward(self, near: Tensor, similarity: Tensor, times: Tensor) -> Tensor:
        """``nearness`` [T, 2], similarity [T, C] and temporal relation [T, R] to [T, W]."""
        fused: Tensor = self.of_space(torch.cat([near, similarity], dim=1)) * torch.sigmoid(self.of_time(times))
        return fused


class TRISAN(InterestTower):
    """Target attention whose weights also see two closenesses of each visit: to the target item, and to the request.

    For a visit at place v and time s, a target at p and a request from place o at time t:

    - temporal relation r = [log(1 + hours from s to t), e(hour of s) * e(hour of t)], hours of the week;
    - item's closeness = fuse(distance(v, p), similarity(v, p), r), ``Closeness``;
    - request's closeness = fuse(distance(v, o), similarity(v, o), r), weights of its own;
    - similarity is semantic: the product of the embeddings of the cells that hold the places, one number for each size;
    - weight = DIN's activation unit on [q, k, q * k, both closenesses, gaps]; the interest is the weighted sum of keys.

    Of the paper its abstract was at hand: three sides, temporal relatedness fused into both closenesses, closeness by
    distance and by semantic similarity. How they are computed is ours.

    Left out: the place from which each past request was made, which the data do not hold: what stands for it is the
    place that was visited. Geohash strings: cells of ``CellEmbedding`` instead.

    The result does not depend on the order of the visits; an empty history gives zeros.

    Args:
        dim, gaps: see InterestTower; the first column of gaps is log(1 + hours), and they join the unit.
        width: columns of each closeness.
        cell_dim: columns of a cell's embedding.
        cell_sizes_km: edges of the cells.
    """

    uses_context = True

    def __init__(
        self,
        dim: int,
        gaps: int,
        *,
        width: int = 8,
        cell_dim: int = 8,
        cell_sizes_km: tuple[float, ...] = (1.0, 5.0, 25.0),
    ) -> None:
        super().__init__(dim, gaps)
        self.cells = CellEmbedding(cell_dim, cell_sizes_km)
        self.hours = HourEmbedding()
        times = 1 + HourEmbedding.dim
        self.to_item = Closeness(len(cell_sizes_km), times, width)
        self.to_request = Closeness(len(cell_sizes_km), times, width)
        self.attention = DIN(dim, gaps + 2 * width)
        self.output_dim = self.attention.output_dim

    def forward(self, query: Tensor, history: History, context: Context | None = None) -> Tensor:
        """query [B, D], history and its context to interest [B, 2 D]."""
        keys, offsets, gaps = history[:3]
        if context is None:
            raise ValueError("TRISAN got no context; it needs the places and hours of request, target and visits")
        closeness = self.closeness(history, context)
        interest: Tensor = self.attention(query, History(keys, offsets, torch.cat([gaps, closeness.to(gaps.dtype)], 1)))
        return interest

    def closeness(self, history: History, context: Context) -> Tensor:
        """Each visit's closeness to the item, then to the request, [T, 2 W]."""
        segments = segment_ids_unchecked(history.offsets, history.keys.shape[0])
        visited = self.cells(self.cells.cells(context.visit_place))
        hours = self.hours(context.visit_hour) * self.hours(context.hour[segments])
        times = torch.cat([history.gaps[:, :1], hours.to(history.gaps.dtype)], dim=1)
        sides = []
        for fuse, place in ((self.to_item, context.target_place), (self.to_request, context.place)):
            there = self.cells(self.cells.cells(place))
            similarity = [
                segment_dot_unchecked(v, w, history.offsets)
                for v, w in zip(visited.unbind(1), there.unbind(1), strict=True)
            ]
            near = nearness(context.visit_place, place[segments])
            sides.append(fuse(near.to(times.dtype), torch.stack(similarity, dim=1).to(times.dtype), times))
        return torch.cat(sides, dim=1)
