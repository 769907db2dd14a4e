"""Deep Interest Evolution Network: interests drawn out of the history in order, and followed with an eye on the target.

Zhou et al., Deep Interest Evolution Network for Click-Through Rate Prediction, AAAI 2019 (arXiv 1809.03672).
Written from what is generally known of it; its text was not at hand.
"""

import torch
from torch import Tensor, nn
from torch._higher_order_ops import while_loop
from torch.nn import functional as F

from ...kernels.gru import gru_unchecked, host_lengths
from ...kernels.jagged import segment_dot_unchecked, segment_ids_unchecked, segment_softmax_unchecked
from .tower import Context, History, InterestTower, beside_product


class RecurrentUnit(nn.Module):
    """Weights of a gated recurrent unit, for ``kernels.gru``; [r, u, n] side by side.

    The input's map of n starts as the identity and the biases at 0, so states start near running averages of the
    inputs. With PyTorch's initial values rows within 0.1 drown in the biases, and two such units pass little on.

    Args:
        inputs: columns of the inputs.
        states: columns H of the state.
    """

    def __init__(self, inputs: int, states: int) -> None:
        super().__init__()
        self.from_input = nn.Linear(inputs, 3 * states)
        self.from_state = nn.Linear(states, 3 * states)
        with torch.no_grad():
            nn.init.eye_(self.from_input.weight[2 * states :])
            self.from_input.bias.zero_()
            self.from_state.bias.zero_()

    def forward(self, inputs: Tensor, offsets: Tensor, lengths: Tensor, attention: Tensor | None = None) -> Tensor:
        """States [T, H] after each of the inputs [T, I], with ``host_lengths`` [B] and their attention [T]."""
        own = self.from_state
        return gru_unchecked(self.from_input(inputs), own.weight, own.bias, offsets, attention, lengths)

    def step(self, x: Tensor, h: Tensor, attention: Tensor | None = None) -> Tensor:
        """One step of ``kernels.gru``: from_input(inputs) [B, 3 H], state [B, H] and attention [B, 1] to a state."""
        (x_r, x_u, x_n), (h_r, h_u, h_n) = x.chunk(3, dim=1), self.from_state(h).chunk(3, dim=1)
        u = torch.sigmoid(x_u + h_u)
        n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
        return torch.lerp(h, n, u if attention is None else u * attention)


class DIEN(InterestTower):
    """GRU over the visits (interest extractor), then AUGRU over its states (interest evolution): [h', h' * e_a].

    h' is AUGRU's last state, e_a the target. The paper gives the ranker h' alone; the authors' code adds the sum of the
    keys and its product with e_a, where here the product is of h'.

    The extractor sees the keys alone, so its states do not depend on the target. The attention is
    the softmax over a sample's visits of h_t W e_a, to which a linear map of the gaps (hours and km, log
    scale) is added: the paper has no gaps. W starts as the identity. AUGRU multiplies its update gate with the
    attention; the authors' code multiplies 1 - u with 1 - a instead, a plain GRU where there is no attention.

    The auxiliary loss is the mean over all visits that have a next one of -log sigmoid(h_t . k_(t+1))
    - log(1 - sigmoid(h_t . k')), k' another visit of the batch, drawn uniformly: popular places are drawn more often,
    and with several candidates of one request in a batch, now and then the next visit's own copy. The states have D
    columns, as the inner product needs; the authors' code has an MLP in its place.

    The result depends on the order of the visits, oldest first. An empty history gives zeros.

    Left out: the paper's weaker variants AIGRU and AGRU.

    Args:
        dim, gaps: see InterestTower.
        auxiliary_weight: factor of the auxiliary loss, the paper's alpha. It is 1 in the authors' code, which ranked
            worse here: docs/decisions.md.
    """

    def __init__(self, dim: int, gaps: int, *, auxiliary_weight: float = 0.01) -> None:
        super().__init__(dim, gaps)
        self.output_dim = 2 * dim
        self.auxiliary_weight = auxiliary_weight
        self.extractor = RecurrentUnit(dim, dim)
        self.from_query = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.from_query.weight)
        self.from_gaps = nn.Linear(gaps, 1, bias=False)
        self.evolution = RecurrentUnit(dim, dim)

    def forward(self, query: Tensor, history: History, context: Context | None = None) -> Tensor:
        """query [B, D] and history to interest [B, 2 D]."""
        if torch.compiler.is_exporting():
            return beside_product(self._by_steps(query, history), query)
        states, lengths = self._extract(history)
        return self._evolve(query, history, states, lengths)

    def forward_with_loss(
        self, query: Tensor, history: History, context: Context | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Interest [B, 2 D] and the weighted auxiliary loss, zero where no visit has a next one."""
        states, lengths = self._extract(history)
        return self._evolve(query, history, states, lengths), self.auxiliary_weight * self._auxiliary(states, history)

    def _extract(self, history: History) -> tuple[Tensor, Tensor]:
        """The extractor's states [T, D], and how long histories are, [B], on the host; both units have to know."""
        lengths = host_lengths(history.offsets) if history.lengths is None else history.lengths
        return self.extractor(history.keys, history.offsets, lengths), lengths

    def _evolve(self, query: Tensor, history: History, states: Tensor, lengths: Tensor) -> Tensor:
        keys, offsets, gaps = history[:3]
        segments = segment_ids_unchecked(offsets, keys.shape[0])
        similar = segment_dot_unchecked(states, self.from_query(query).to(states.dtype), offsets)
        logits = similar[:, None] + self.from_gaps(gaps)
        attention = segment_softmax_unchecked(logits, offsets, segments).squeeze(1)
        evolved = self.evolution(states, offsets, lengths, attention)
        last = torch.where(offsets.diff() > 0, offsets[1:] - 1, keys.shape[0])
        return beside_product(F.pad(evolved, (0, 0, 0, 1))[last], query)

    def _auxiliary(self, states: Tensor, history: History) -> Tensor:
        keys, offsets = history[:2]
        visits = keys.shape[0]
        if visits < 2:
            return states.sum() * 0
        has_next = torch.ones(visits + 1, device=keys.device).index_fill_(0, offsets, 0)[1:]  # 0 before each start
        rows = torch.arange(visits, device=keys.device)
        following = (rows + 1) % visits
        other = (following + torch.randint(1, visits, (visits,), device=keys.device)) % visits  # any but the next
        states, keys = states.float(), keys.float()
        near = torch.linalg.vecdot(states, keys[following])
        far = torch.linalg.vecdot(states, keys[other])
        loss = F.softplus(-near) + F.softplus(far)
        return (loss * has_next).sum() / has_next.sum().clamp(min=1)

    def _by_steps(self, query: Tensor, history: History) -> Tensor:
        """AUGRU's last states as a loop over time that torch.export takes, for an exported program.

        A step handles all samples at once and keeps B rows. The softmax over visits wants its total before AUGRU
        starts, so the loop goes over the visits twice: first for the running maximum and sum of the logits, then with
        the extractor again from its start.
        """
        keys, offsets, gaps = history[:3]
        starts, lengths = offsets[:-1], offsets.diff()
        longest = F.pad(lengths, (0, 1)).amax()
        inputs, of_gaps = (F.pad(x, (0, 0, 0, 1)) for x in (self.extractor.from_input(keys), self.from_gaps(gaps)))
        target = self.from_query(query)

        def goes_on(step: Tensor, *_: Tensor) -> Tensor:
            return step < 2 * longest

        def visit(step: Tensor, h: Tensor, top: Tensor, total: Tensor, evolved: Tensor) -> tuple[Tensor, ...]:
            second = step >= longest
            t = step - torch.where(second, longest, 0)
            active = (t < lengths)[:, None]
            rows = torch.where(active[:, 0], starts + t, keys.shape[0])
            h = torch.where(active, self.extractor.step(inputs[rows], torch.where(t > 0, h, 0)), h)
            logits = torch.linalg.vecdot(h, target)[:, None] + of_gaps[rows]
            higher = torch.maximum(top, logits)
            more = total * torch.exp(top - higher) + torch.exp(logits - higher)
            attention = torch.exp(logits - top) / total
            next_evolved = self.evolution.step(self.evolution.from_input(h), evolved, attention)
            first = active & ~second
            return (
                step + 1,
                h,
                torch.where(first, higher, top),
                torch.where(first, more, total),
                torch.where(active & second, next_evolved, evolved),
            )

        zeros = torch.zeros_like(query)
        lowest = torch.full_like(query[:, :1], torch.finfo(query.dtype).min)
        begin = (torch.zeros_like(longest), zeros, lowest, torch.zeros_like(lowest), zeros.clone())
        evolved: Tensor = while_loop(goes_on, visit, begin)[4]
        return evolved
