"""HSTU: self-attention over the history without a softmax, the target last.

Zhai et al., Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative Recommendations,
ICML 2024 (arXiv 2402.17152). Written from what is generally known of its equations; its text was not at hand.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .search import KNOTS
from .tower import Context, History, InterestTower, beside_product


class Layout(NamedTuple):
    """Where the rows of jagged histories and their candidates lie in a block a request.

    R requests, L columns of visits (the last is the latest), C columns of candidates.

    Attributes:
        keys: rows of the keys, int64 [R, L]; one past the last where there is none.
        gaps: rows of the gaps for each candidate, int64 [R, C, L]; one past the last where there is none.
        samples: int64 [R, C]; one past the last where there is none.
        requests, columns: where each sample is among R and C, int64 [B].
        visited: which columns are a visit, bool [R, L].
    """

    keys: Tensor
    gaps: Tensor
    samples: Tensor
    requests: Tensor
    columns: Tensor
    visited: Tensor

    @staticmethod
    def of(history: History, most: int) -> "Layout":
        """The last ``most`` visits; candidates that share keys are one request."""
        offsets, starts = history.offsets, history.starts
        lengths, count = offsets[1:] - offsets[:-1], offsets.shape[0] - 1  # not len(): a program follows its size
        samples = torch.arange(count, device=offsets.device)
        if starts is None:  # a request each
            first, candidates, starts = samples, samples[:, None], offsets[:-1]
            request, column = samples, samples.new_zeros(count)
        else:  # requests without visits look like one, which does no harm: there is nothing that they could share
            other = F.pad((starts.diff() != 0) | (lengths.diff() != 0), (1, 0), value=True)[:count]
            request, of_first = other.cumsum(0) - 1, torch.where(other, samples, 0).cummax(0).values
            column = samples - of_first
            # the only wait for a GPU: how many requests there are, and how many candidates of one
            requests, width = torch.stack([request.max(), column.max()]).add(1).tolist() if count else (0, 0)
            first = samples.new_zeros(requests).scatter(0, request, of_first)
            candidates = samples.new_full((requests, width), count)
            candidates[request, column] = samples
        if torch.compiler.is_exporting():
            columns = most  # a program's shapes don't follow its data
        else:
            known = lengths if history.lengths is None else history.lengths
            columns = min(most, int(known.max())) if count else 0
        back = columns - torch.arange(columns, device=offsets.device)  # 1 is the latest visit
        visited = back <= lengths[first][:, None]
        keys = torch.where(visited, (starts + lengths)[first][:, None] - back, history.keys.shape[0])
        ends = F.pad(offsets[1:], (0, 1))[candidates]
        there = visited[:, None] & (candidates < count)[..., None]
        gaps = torch.where(there, ends[..., None] - back, history.gaps.shape[0])
        return Layout(keys, gaps, candidates, request, column, visited)


class PointwiseLayer(nn.Module):
    """x + f2(Norm(sum_t SiLU(q . k_t + rab_t) v_t / N) * u), with [u, v, q, k] = SiLU(f1(Norm(x))).

    rab is a head's bias: a number by how many places before, one by the hours between, and to the target one by each
    other gap (km), linear between knots. N is ``visits``, the same for every history, so that many visits weigh more
    than few: the paper's reason against a softmax. Norm(x) is the authors' code's, the paper's equation has f1(x); rows
    within 0.1, as tables start, would leave SiLU next to nothing.

    Args:
        dim: columns D of a row.
        gaps: G, hours first.
        heads: A, of D / A columns each, rounded up.
        visits: N, the longest history.
    """

    def __init__(self, dim: int, gaps: int, heads: int, visits: int) -> None:
        super().__init__()
        self.heads, self.width, self.visits = heads, -(-dim // heads), visits
        columns = heads * self.width
        self.norm_in, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(columns)
        self.f1, self.f2 = nn.Linear(dim, 4 * columns, bias=False), nn.Linear(columns, dim)
        self.by_place = nn.Parameter(torch.zeros(heads, visits + 1))
        self.by_gap = nn.Parameter(torch.zeros(gaps, KNOTS, heads))

    def forward(self, x: Tensor, mask: Tensor, hours: Tensor, others: Tensor) -> Tensor:
        """Rows [R, L + C, D], visits then candidates, to new ones.

        Args:
            x: the rows.
            mask: what sees which visit, [R, L + C, L]; a candidate sees itself too.
            hours: log(1 + hours) from a visit to a row, [R, L + C, L].
            others: the other gaps of candidates, [R, C, L, G - 1].
        """
        visits, dtype = mask.shape[2], x.dtype
        parts = F.silu(_mapped(self.f1, self.norm_in(x))).chunk(4, dim=2)
        u = parts[0]
        v, q, k = (part.unflatten(2, (self.heads, self.width)).transpose(1, 2) for part in parts[1:])  # [R, A, S, d]
        bias = _between(hours, self.by_gap[0])
        far = sum(
            (_between(gap, of) for gap, of in zip(others.unbind(3), self.by_gap[1:], strict=True)), bias.new_zeros(1)
        )
        bias = torch.cat([bias[:, :visits], bias[:, visits:] + far], dim=1).movedim(3, 1)
        rows = torch.arange(x.shape[1], device=x.device).clamp(max=visits)  # all candidates stand after the last visit
        before = (rows[:, None] - torch.arange(visits, device=x.device)).clamp(min=0)
        logits = _product(q, k[:, :, :visits].mT) + (bias + self.by_place[:, before]).to(q.dtype)
        pooled = _product(F.silu(logits) * (mask / self.visits)[:, None].to(q.dtype), v[:, :, :visits])
        itself = (q * k).sum(dim=3) + (self.by_place[:, 0] + self.by_gap[0, 0])[:, None].to(q.dtype)
        alone = (F.silu(itself) / self.visits)[..., None] * v
        pooled = torch.cat([pooled[:, :, :visits], (pooled + alone)[:, :, visits:]], dim=2).transpose(1, 2).flatten(2)
        mixed: Tensor = x + _mapped(self.f2, self.norm_out(pooled) * u).to(dtype)
        return mixed


def _mapped(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer on [R, S, D]; in a program by products that also stand for no request, which views don't."""
    if not torch.compiler.is_exporting():
        return layer(x)
    y = torch.bmm(x, layer.weight.t().expand(x.shape[0], -1, -1))
    return y if layer.bias is None else y + layer.bias


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of [R, A, ...]; in a program a head at a time, see ``_mapped``."""
    if not torch.compiler.is_exporting():
        return a @ b
    return torch.stack([torch.bmm(x, y) for x, y in zip(a.unbind(1), b.unbind(1), strict=True)], dim=1)


def _between(gap: Tensor, of_knots: Tensor) -> Tensor:
    """Numbers of A heads at gaps [...], of theirs at the knots [K, A]: [..., A]."""
    at = gap.clamp(0, KNOTS - 1)
    low = at.long().clamp(0, KNOTS - 2)  # NaN becomes any integer
    return torch.lerp(of_knots[low], of_knots[low + 1], (at - low).to(of_knots.dtype)[..., None])


class HSTU(InterestTower):
    """Layers of pointwise attention over the last ``visits`` visits and the target, whose last row h is the interest.

    [h, h * q], see ``beside_product``. Each visit sees those before it and itself; a candidate sees all visits and
    itself, and no other candidate, so a request's visits are encoded once for all of its candidates (the paper's
    M-FALCON). The history is a sequence of places alone, as positives are all that it has: the paper's sequence has an
    action beside each item.

    Order matters. For an empty history the result is the target's own. On a GPU a step with shared keys waits once.

    Args:
        dim, gaps: see InterestTower; the first gap is log(1 + hours), the same for all candidates of a request.
        layers, heads: of the attention.
        visits: the latest of a history that are seen, at most; memory grows with its square.
    """

    shares_keys = True

    def __init__(self, dim: int, gaps: int, layers: int = 2, heads: int = 4, visits: int = 100) -> None:
        super().__init__(dim, gaps)
        self.visits = visits
        self.output_dim = 2 * dim
        self.layers = nn.ModuleList(PointwiseLayer(dim, gaps, heads, visits) for _ in range(layers))

    def forward(self, query: Tensor, history: History, context: Context | None = None) -> Tensor:
        """query [B, D] and history to interest [B, 2 D]."""
        at = Layout.of(history, self.visits)
        visits, candidates = at.keys.shape[1], at.samples.shape[1]
        x = torch.cat([_rows(history.keys, at.keys), _rows(query, at.samples).to(history.keys.dtype)], dim=1)
        gaps = _rows(history.gaps, at.gaps)
        ago = gaps[:, 0, :, 0].float() if candidates else gaps.new_zeros(at.keys.shape)
        since = torch.expm1(ago)
        between = torch.log1p((since[:, None] - since[:, :, None]).clamp(min=0))  # from visit t to visit s, [R, s, t]
        hours = torch.cat([between, ago[:, None].expand(-1, candidates, -1)], dim=1)
        earlier = torch.ones(visits, visits, dtype=torch.bool, device=x.device).tril()
        earlier = F.pad(earlier, (0, 0, 0, candidates), value=True)
        mask = earlier & at.visited[:, None]
        for layer in self.layers:
            x = layer(x, mask, hours, gaps[..., 1:])
        return beside_product(x[at.requests, visits + at.columns], query)


def _rows(table: Tensor, at: Tensor) -> Tensor:
    """Rows of [N, D] at [...], zeros at N."""
    return F.pad(table, (0, 0, 0, 1))[at]
