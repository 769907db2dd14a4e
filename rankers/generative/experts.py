"""A sparse mixture of experts in place of a block's two linear layers.

    y = sum over e in T(x) of g_e(x) W2_e relu(W1_e x),   g_e(x) = s_e(x) / sum over T(x) of s(x),   s(x) = sigmoid(R x)

T(x) are the k experts of E with the greatest s_e(x) + b_e: a row pays for k experts, the layer has E of them (Dai et
al., DeepSeekMoE, 2024; OneRec, Deng et al. 2025, has such layers in its decoder, k = 2 of E = 24). The bias b decides
who is asked and nothing else. After each batch of training it rises for experts with less than their share of the rows
and falls for those with more (Wang et al., Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts, 2024,
algorithm 1; OneRec's technical report balances so), so no second loss pulls at the weights.

Shapes: n rows, d columns, E experts of h columns, k of them a row.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


class Experts(nn.Module):
    """See the top of this file.

    Args:
        columns: d.
        hidden: h; k h is what two dense layers of the same work have.
        experts, active: E and k.
        dropout: between an expert's two layers, in training.
        step: what the bias moves by in a batch.

    Raises:
        ValueError: more experts a row than there are.
    """

    def __init__(
        self, columns: int, hidden: int, experts: int, active: int, dropout: float = 0.0, step: float = 0.01
    ) -> None:
        super().__init__()
        if not 1 <= active <= experts:
            raise ValueError(f"active: got {active}, expected 1 to {experts}, the number of experts")
        self.active, self.step = active, step
        self.router = nn.Linear(columns, experts, bias=False)
        self.hidden = nn.Parameter(torch.randn(experts, hidden, columns) * columns**-0.5)
        self.out = nn.Parameter(torch.randn(experts, columns, hidden) * (active / hidden) ** 0.5)  # g is 1 / k
        self.dropout = nn.Dropout(dropout)
        self.bias: Tensor
        self.register_buffer("bias", torch.zeros(experts))
        nn.init.normal_(self.router.weight, std=columns**-0.5)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Who is asked about rows [n, d], int64 [n, k], and what their answers count, [n, k]; a row's sum is 1."""
        scores = self.router(x).sigmoid()
        asked = (scores + self.bias).topk(self.active, dim=1, sorted=False).indices
        gates = scores.gather(1, asked)
        return asked, gates / gates.sum(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] to the same; in training the bias moves, by the rows of all ranks, which run it together."""
        rows = x.reshape(-1, x.shape[-1])
        asked, gates = self.route(rows)
        flat = asked.flatten()
        load = flat.bincount(minlength=len(self.bias))
        order = flat.argsort(stable=True)  # an expert's rows side by side
        of = order // self.active
        parts = [
            F.linear(self.dropout(F.linear(some, hidden).relu_()), out)
            for some, hidden, out in zip(rows[of].split(load.tolist()), self.hidden, self.out, strict=True)
        ]
        answers = torch.cat(parts) * gates.flatten()[order, None]
        if self.training:
            if dist.is_initialized():  # all ranks ask by the same bias
                dist.all_reduce(load)
            self.bias += self.step * (load.sum() / len(load) - load).sign()
        return torch.zeros_like(rows).index_add(0, of, answers).view_as(x)
