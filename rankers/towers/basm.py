"""BASM: a tower whose fields, transformation and bias adapt to the hour and the place of the request.

Du et al., BASM: A Bottom-up Adaptive Spatiotemporal Model for Online Food Ordering Service, ICDE 2023
(arXiv 2211.12033). Written from its abstract and from what is generally known of it: the names and tasks of the three
layers are the paper's, their equations were not checked against its text.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.haversine import unit_vectors_km
from ...kernels.jagged import segment_ids_unchecked, segment_sum_unchecked, weighted_segment_sum_unchecked
from .din import DIN
from .spacetime import CellEmbedding, HourEmbedding, hours_apart
from .tower import Context, History, InterestTower


class FieldWeights(nn.Module):
    """StAEL, the spatiotemporal-aware embedding layer: each field times gamma sigmoid(w_j . [field_j, c]), gamma = 2.

    Args:
        fields: how many.
        dim: columns D of each.
        context: columns C of the spatiotemporal context.
    """

    def __init__(self, fields: int, dim: int, context: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList([nn.Linear(dim + context, 1) for _ in range(fields)])

    def forward(self, fields: list[Tensor], c: Tensor) -> Tensor:
        """Fields [B, D] each and context [B, C] to the weighted fields side by side, [B, fields * D]."""
        return torch.cat(
            [2 * torch.sigmoid(gate(torch.cat([x, c], 1))) * x for gate, x in zip(self.gates, fields, strict=True)], 1
        )


class SemanticTransform(nn.Module):
    """StSTL, the spatiotemporal semantic transformation layer: weights made by the context, a sample its own.

    h = W x + L M(s) R x + b(s), M(s) [R, R] and b(s) linear in s. The rank-R part is the generated weight; with it
    alone all of x would pass through R numbers, so a plain W goes beside it.

    Args:
        inputs, outputs: columns of x and of h.
        context: columns of s.
        rank: R.
    """

    def __init__(self, inputs: int, outputs: int, context: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.plain = nn.Linear(inputs, outputs, bias=False)
        self.right = nn.Linear(inputs, rank, bias=False)
        self.left = nn.Linear(rank, outputs, bias=False)
        self.core = nn.Linear(context, rank * rank)
        self.bias = nn.Linear(context, outputs)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """x [B, inputs] and s [B, context] to [B, outputs]."""
        core = self.core(s).unflatten(1, (self.rank, self.rank))
        generated = (core @ self.right(x).unsqueeze(2)).squeeze(2)
        transformed: Tensor = self.plain(x) + self.left(generated) + self.bias(s)
        return transformed


class BiasLayer(nn.Module):
    """One layer of StABT, the spatiotemporal adaptive bias tower: FusionFC, FusionBN, LeakyReLU.

    FusionFC multiplies a shared weight, entry by entry, with one made by the context, and adds a bias made by it. Here
    the second weight has rank 1, out(c) in(c)^T, so nothing of [outputs, inputs] is made for a sample: the input is
    scaled by in(c) and the output by out(c), both 2 sigmoid(linear). FusionBN normalises over the batch, as Dice does,
    and its scale and shift are shared ones times 2 sigmoid(linear) and plus linear of the context. FusionFC has no
    shared bias: FusionBN would take it away.

    Args:
        inputs, outputs: columns.
        context: columns C.
    """

    def __init__(self, inputs: int, outputs: int, context: int) -> None:
        super().__init__()
        self.shared = nn.Linear(inputs, outputs, bias=False)
        self.scales = nn.Linear(context, inputs + 2 * outputs)  # in(c), out(c), FusionBN's scale
        self.shifts = nn.Linear(context, 2 * outputs, bias=False)  # FusionFC's bias, FusionBN's shift
        self.gamma, self.beta = nn.Parameter(torch.ones(outputs)), nn.Parameter(torch.zeros(outputs))
        self.register_buffer("running_mean", torch.zeros(outputs))
        self.register_buffer("running_var", torch.ones(outputs))
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x [B, inputs] and context [B, C] to [B, outputs]."""
        inputs, outputs = self.shared.in_features, self.shared.out_features
        of_input, of_output, of_gamma = (2 * torch.sigmoid(self.scales(c))).split([inputs, outputs, outputs], dim=1)
        bias, of_beta = self.shifts(c).chunk(2, dim=1)
        y = of_output * self.shared(x * of_input) + bias
        by_batch = self.training and y.shape[0] > 1
        y = F.batch_norm(y, self.running_mean, self.running_var, training=by_batch)
        return F.leaky_relu(self.gamma * of_gamma * y + self.beta + of_beta)


class BASM(InterestTower):
    """Three fields, each layer of which the request's hour and place adapt, bottom-up.

    Context c = [hour of the week, cells of the request's place], embedded; s = [c, v], where v is the mean of the keys
    of the visits that suit the request: made at most ``hours`` from its hour of the day and ``reach_km`` from its
    place (an unknown place suits). Fields: the target's query, DIN's interest, and v.

    Then FieldWeights (StAEL), SemanticTransform (StSTL, from s), and layers of BiasLayer (StABT, from c), whose last
    gives the interest: the ranker's own layers follow, where the paper's tower ends in a logit.

    Left out: the paper's fields of user, combination and query, which don't come to a tower; the user's part of the
    context. What "suits" means, the low ranks, and how each layer computes are ours, see the module's docstring.

    The result does not depend on the order of the visits. For an empty history DIN's interest and v are zeros; the
    result is not, since the query is one of the fields.

    Args:
        dim, gaps: see InterestTower.
        hidden: width of the semantic transformation's output and of all layers of the bias tower but the last.
        layers: of the bias tower.
        rank: of the generated weights.
        hours, reach_km: which visits suit a request.
        cell_dim, cell_sizes_km: see CellEmbedding.
    """

    uses_context = True

    def __init__(
        self,
        dim: int,
        gaps: int,
        *,
        hidden: int = 64,
        layers: int = 2,
        rank: int = 8,
        hours: int = 2,
        reach_km: float = 5.0,
        cell_dim: int = 8,
        cell_sizes_km: tuple[float, ...] = (1.0, 5.0, 25.0),
    ) -> None:
        super().__init__(dim, gaps)
        self.output_dim = dim
        self.within_hours, self.reach_km = hours, reach_km
        self.cells = CellEmbedding(cell_dim, cell_sizes_km)
        self.hours = HourEmbedding()
        self.attention = DIN(dim, gaps)
        width = HourEmbedding.dim + cell_dim * len(cell_sizes_km)
        self.fields = FieldWeights(3, dim, width)
        self.transform = SemanticTransform(3 * dim, hidden, width + dim, rank)
        widths = [hidden] * layers + [dim]
        self.bias_tower = nn.ModuleList([BiasLayer(a, b, width) for a, b in pairwise(widths)])

    def forward(self, query: Tensor, history: History, context: Context | None = None) -> Tensor:
        """query [B, D], history and its context to interest [B, D]."""
        if context is None:
            raise ValueError("BASM got no context; it needs the places and hours of request and visits")
        cells = self.cells(self.cells.cells(context.place)).flatten(1)
        c = torch.cat([self.hours(context.hour), cells], dim=1).to(query.dtype)
        suiting = self.suiting_visits(history, context)
        x = self.fields([query, self.attention.attend(query, history).to(query.dtype), suiting], c)
        x = self.transform(x, torch.cat([c, suiting], dim=1))
        for layer in self.bias_tower:
            x = layer(x, c)
        return x

    def suiting_visits(self, history: History, context: Context) -> Tensor:
        """Mean of the keys of the visits that suit the request's hour and place, zeros where none does; [B, D]."""
        keys, offsets = history[:2]
        segments = segment_ids_unchecked(offsets, keys.shape[0])
        km = unit_vectors_km(context.visit_place.float(), context.place.float()[segments])
        suits = (hours_apart(context.visit_hour, context.hour[segments]) <= self.within_hours) & ~(km > self.reach_km)
        weights = suits.float()
        shares = (weights / segment_sum_unchecked(weights[:, None], offsets).clamp(min=1)[segments, 0]).to(keys.dtype)
        return weighted_segment_sum_unchecked(keys, shares, offsets, segments)
