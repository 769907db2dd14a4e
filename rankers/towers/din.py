"""Deep Interest Network: target attention over the history.

Zhou et al., Deep Interest Network for Click-Through Rate Prediction, KDD 2018 (arXiv 1706.06978).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from ...kernels.target_attention import DiceLinear, target_attention_reference, target_attention_unchecked
from .tower import Context, History, InterestTower, beside_product


class Dice(nn.Module):
    """Data adaptive activation, equation 3: f(s) = p s + (1 - p) alpha s, p = sigmoid((s - E[s]) / sqrt(Var[s] + eps)).

    E and Var are those of the batch while training (each rank its own) and running averages otherwise; alpha is
    learned per column. Rows are samples or jagged history entries: padding never enters the statistics. A batch of
    fewer than two rows uses the running averages and leaves them as they are.

    Args:
        dim: columns.
        eps, momentum: as in BatchNorm1d.
    """

    def __init__(self, dim: int, eps: float = 1e-8, momentum: float = 0.1) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.eps = eps
        self.momentum = momentum

    def forward(self, s: Tensor) -> Tensor:
        """[N, dim] to [N, dim]."""
        batch_statistics = self.training and s.shape[0] > 1
        z = nn.functional.batch_norm(
            s, self.running_mean, self.running_var, training=batch_statistics, momentum=self.momentum, eps=self.eps
        )
        gate = torch.addcmul(self.alpha, torch.sigmoid(z), 1 - self.alpha)  # p + (1 - p) alpha
        return s * gate

    def follow(self, statistics: Tensor, rows: int) -> None:
        """Move the running averages towards mean and (biased) variance of so many rows, [2, dim]."""
        mean, variance = statistics
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((variance * (rows / (rows - 1))).to(self.running_var.dtype), self.momentum)


class DIN(InterestTower):
    """Activation unit on each visit, then the weighted sum i of the keys (figure 2, equation 2): [i, i * q].

    The product is not in the paper; the authors' code gives the ranker one of the target and the keys' sum. On the
    simulated city the AUC without it depended on the seed by 0.01.

    The weights are not normalised (section 4.3). The unit's input is that of the authors' code (github.com/zhougr1993/
    DeepInterestNetwork), [q, k, q - k, q * k]: the paper's figure 2 has the outer product of q and k in place of the
    last two, D^2 numbers a visit. The unit's first layer is linear in q and k, so the difference adds nothing that
    separate maps of q, k and q * k do not have: those are what is learned here, and the map of q is computed once a
    sample instead of once a visit. The gaps (hours and km, log scale) join the unit's input.

    Left out: mini-batch aware regularisation (section 5.1), a decay of the rows that a batch looks up by 1 / n, n being
    how often a row occurs in the training data. fbgemm's optimizers have a decay of all that a batch looks up, and one
    by counters of their own (row-wise Adagrad), neither of them that.

    Args:
        dim, gaps: see InterestTower.
        hidden: widths of the unit's hidden layers.
    """

    shares_keys = True

    def __init__(self, dim: int, gaps: int, hidden: tuple[int, ...] = (32, 16)) -> None:
        super().__init__(dim, gaps)
        self.output_dim = 2 * dim
        self.from_query = nn.Linear(dim, hidden[0])
        self.from_visit = nn.Linear(2 * dim + gaps, hidden[0], bias=False)
        self.first_activation = Dice(hidden[0])
        layers: list[nn.Module] = []
        for a, b in pairwise(hidden):
            layers += [nn.Linear(a, b), Dice(b)]
        self.rest = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))

    def forward(self, query: Tensor, history: History, context: Context | None = None) -> Tensor:
        """query [B, D] and history to interest [B, 2 D]."""
        return beside_product(self.attend(query, history), query)

    def attend(self, query: Tensor, history: History) -> Tensor:
        """query [B, D] and history to the weighted sum of the keys, [B, D]."""
        keys, offsets, gaps = history[:3]
        activations = [self.first_activation, *(m for m in self.rest if isinstance(m, Dice))]
        linears = [m for m in self.rest if isinstance(m, nn.Linear)]
        layers = [
            DiceLinear(dice.alpha, torch.stack([dice.running_mean, dice.running_var]), linear.weight, linear.bias)
            for dice, linear in zip(activations, linears, strict=True)
        ]
        visits = gaps.shape[0]
        batch_statistics = self.training and visits > 1
        # an exported file must load without placerank, so it holds PyTorch's own operations
        arguments = query, self.from_query(query), keys, gaps, offsets, self.from_visit.weight, layers, batch_statistics
        if torch.compiler.is_exporting():
            interest, statistics = target_attention_reference(*arguments)
        else:
            interest, statistics = target_attention_unchecked(*arguments, starts=history.starts)
        if batch_statistics:
            for dice, used in zip(activations, statistics, strict=True):
                dice.follow(used, visits)
        return interest
