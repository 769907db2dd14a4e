"""Several objectives on one tower: labels of 0 and 1 and an amount, heads that share what can be shared, and losses.

Shapes: B samples, K objectives, X columns of what the tower and all features give, H columns of a representation.

Each width of ``ranker.mlp`` but the last belongs to what objectives share or mix, the last is each objective's own
layer; a single width is all shared.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.batches.features import Features
from .settings import HEADS, ObjectivesConfig
from .towers.din import Dice

_CERTAIN = -1e-30  # log of the largest probability below 1 whose logit is finite in float32


def hidden(width: int, widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with Dice, [N, width] to [N, widths[-1]]; none where there are no widths."""
    layers: list[nn.Module] = []
    for out in widths:
        layers += [nn.Linear(width, out), Dice(out)]
        width = out
    return nn.Sequential(*layers)


class SharedBottom(nn.Module):
    """f(x) for every objective (Caruana 1997; Ma et al. 2018, section 3.1). Arguments as of all heads:

    Args:
        width: X.
        widths: of the hidden layers.
        objectives: K.
        experts: see ``ObjectivesConfig``; of no meaning here.
    """

    def __init__(self, width: int, widths: Sequence[int], objectives: int, experts: int) -> None:
        super().__init__()
        self.bottom = hidden(width, widths)
        self.objectives = objectives

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, X] to a representation [B, H] for each objective."""
        return [self.bottom(x)] * self.objectives


class MMoE(nn.Module):
    """f_k(x) = sum_i g_k(x)_i f_i(x), g_k(x) = softmax(W_k x): experts f_i of all, a gate of each objective.

    Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts, KDD 2018, section
    4.2. See ``SharedBottom`` for arguments and shapes.
    """

    def __init__(self, width: int, widths: Sequence[int], objectives: int, experts: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(hidden(width, widths) for _ in range(experts))
        self.gates = nn.ModuleList(nn.Linear(width, experts, bias=False) for _ in range(objectives))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = torch.stack([expert(x) for expert in self.experts], dim=1)
        return [_mix(gate(x), found) for gate in self.gates]


class PLE(nn.Module):
    """Progressive layered extraction: each width is a level of experts, some of each objective and some shared.

    g_kj(x) = softmax(W_kj g_k,j-1(x)) S_kj, where the rows of S_kj are objective k's experts of level j on g_k,j-1(x)
    and the shared ones on g_s,j-1(x), and g_k0 = g_s0 = x; the shared g_sj mixes the experts of all, on the last level
    nobody needs it. With one level this is CGC.

    Tang et al., Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for Personalized
    Recommendations, RecSys 2020, sections 4.1 and 4.2. See ``SharedBottom`` for arguments and shapes.
    """

    def __init__(self, width: int, widths: Sequence[int], objectives: int, experts: int) -> None:
        super().__init__()
        self.objectives = objectives
        levels = []
        for level, out in enumerate(widths):
            levels.append(Extraction(width, out, objectives, experts, last=level + 1 == len(widths)))
            width = out
        self.levels = nn.Sequential(*levels)

    def forward(self, x: Tensor) -> list[Tensor]:
        mixed: list[Tensor] = self.levels([x] * (self.objectives + 1))
        return mixed


class Extraction(nn.Module):
    """One level of ``PLE``.

    Args:
        width, out: columns of what it takes and gives.
        objectives: K.
        experts: of each objective, and as many shared ones.
        last: whether nobody needs the shared mixture.
    """

    def __init__(self, width: int, out: int, objectives: int, experts: int, last: bool) -> None:
        super().__init__()
        groups = objectives + 1  # the shared one is the last
        self.experts = nn.ModuleList(Group(width, out, experts) for _ in range(groups))
        seen = [2 * experts] * objectives + ([] if last else [groups * experts])
        self.gates = nn.ModuleList(nn.Linear(width, n, bias=False) for n in seen)

    def forward(self, mixed: list[Tensor]) -> list[Tensor]:
        """[B, width] of each objective and of what they share, to [B, out] of each, and shared unless it's the last."""
        found = [group(g) for group, g in zip(self.experts, mixed, strict=True)]
        seen = [torch.cat([own, found[-1]], dim=1) for own in found[:-1]]
        if len(self.gates) > len(seen):
            seen.append(torch.cat(found, dim=1))
        return [_mix(gate(g), s) for gate, g, s in zip(self.gates, mixed[: len(seen)], seen, strict=True)]


class Group(nn.Module):
    """Experts of one layer on the same columns: [B, width] to [B, experts, out]."""

    def __init__(self, width: int, out: int, experts: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(hidden(width, [out]) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([expert(x) for expert in self.experts], dim=1)


def _mix(gate: Tensor, experts: Tensor) -> Tensor:
    """Logits of a gate [B, N] and experts [B, N, H] to [B, H]."""
    return torch.bmm(gate.softmax(dim=1).unsqueeze(1), experts).squeeze(1)


_HEADS: dict[str, type[SharedBottom] | type[MMoE] | type[PLE]] = dict(
    zip(HEADS, (SharedBottom, MMoE, PLE), strict=True)
)


class Heads(nn.Module):
    """What tower and features give, to a column for each objective, and the losses of these.

    A label's column is the logit of its probability at an impression; the amount's is the logarithm of what is expected
    of it there, so that orders of both are orders of what they stand for, and a sigmoid or an exponential away.

    **ESMM** (Ma et al., Entire Space Multi-Task Model, SIGIR 2018, section 2.2): the labels in their order are a chain,
    p_k = p_k-1 c_k with c_k = sigmoid(z_k), and the loss is on p_k over all impressions, so c_k, the conversion, is
    learned without being shown only those impressions where label k - 1 happened.

    **Amount**: logistic regression weighted by it (Covington et al., Deep Neural Networks for YouTube Recommendations,
    RecSys 2016, section 4.2), with weight 1 on the negative side of every impression: a softplus(-z) + softplus(z) is
    least, in expectation, where exp(z) = E[a | x], and its gradient stays within [-a, 1]. Amounts are in units of their
    mean where there is one, which the checkpoint keeps.

    Args:
        width: X.
        mlp: see the top of the file.
        features: ``objectives`` names the columns, ``amount`` the one that is no label.
        config: which heads.
    """

    def __init__(self, width: int, mlp: Sequence[int], features: Features, config: ObjectivesConfig) -> None:
        super().__init__()
        self.names = features.objectives
        self.is_label = [name != features.amount for name in self.names]
        self.weights = [config.weights.get(name, 1.0) for name in self.names]
        self.chained = config.esmm
        mixed, own = (mlp[:-1], mlp[-1:]) if len(mlp) > 1 else (mlp, [])
        self.shared = _HEADS[config.heads](width, mixed, len(self.names), config.experts)
        self.towers = nn.ModuleList(
            nn.Sequential(*hidden(mixed[-1], own), nn.Linear((own or mixed)[-1], 1)) for _ in self.names
        )
        if features.amount is not None:
            self.register_buffer("unit", torch.ones(()))
        self.unit: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[B, X] to [B, K] float32: logits of labels, the logarithm of the expected amount."""
        found = [tower(f).float() for tower, f in zip(self.towers, self.shared(x), strict=True)]
        if self.chained:
            labels = [z for z, is_label in zip(found, self.is_label, strict=True) if is_label]
            chain = iter(chained(torch.cat(labels, dim=1)).split(1, dim=1))
            found = [next(chain) if is_label else z for z, is_label in zip(found, self.is_label, strict=True)]
        if hasattr(self, "unit"):
            log_unit = self.unit.log()
            found = [z if is_label else z + log_unit for z, is_label in zip(found, self.is_label, strict=True)]
        return torch.cat(found, dim=1)

    def losses(self, outputs: Tensor, targets: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Of each objective, weighted by its weight, the mean over samples: scalars.

        Args:
            outputs: of ``forward``, [B, K].
            targets: labels of 0 and 1, amounts of 0 and more, float32 [B, K].
            weight: of samples, 0 or more, float32 [B]; None: 1 each.
        """
        found = {}
        columns = zip(self.names, self.is_label, self.weights, outputs.unbind(1), targets.unbind(1), strict=True)
        for name, is_label, of_loss, z, y in columns:
            if is_label:
                loss = F.binary_cross_entropy_with_logits(z, y, reduction="none")
            else:
                z = z - self.unit.log()
                loss = y / self.unit * F.softplus(-z) + F.softplus(z)
            found[name] = of_loss * weighted_mean(loss, weight)
        return found


def chained(conversions: Tensor) -> Tensor:
    """Logits of c_k, [B, K], to logits of c_1 ... c_k, [B, K]; float32, finite wherever those are."""
    log_p = F.logsigmoid(conversions).cumsum(dim=1).clamp(max=_CERTAIN)
    return log_p - torch.log(-torch.expm1(log_p))


def weighted_mean(loss: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of [B] by weights of 0 or more, [B]; 0 where all of them are 0."""
    if weight is None:
        return loss.mean()
    return (loss * weight).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
