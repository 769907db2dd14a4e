"""DIEN against the paper's equations, written as a loop over samples and visits."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from tower_cases import D, make_history

from placerank.rankers.towers.dien import DIEN, RecurrentUnit
from placerank.rankers.towers.tower import History


def make() -> DIEN:
    torch.manual_seed(0)
    return DIEN(D, 2, auxiliary_weight=1.0)


def step(unit: RecurrentUnit, x: Tensor, h: Tensor, attention: Tensor | float) -> Tensor:
    """Equations 2 to 5, and with an attention 12 and 13."""
    (x_r, x_u, x_n), (h_r, h_u, h_n) = unit.from_input(x).chunk(3), unit.from_state(h).chunk(3)
    u, r = torch.sigmoid(x_u + h_u), torch.sigmoid(x_r + h_r)
    u = attention * u
    return (1 - u) * h + u * torch.tanh(x_n + r * h_n)


def dien_by_hand(tower: DIEN, query: Tensor, history: History) -> tuple[Tensor, list[list[Tensor]]]:
    """Interest [B, 2 D], and the extractor's states by sample and visit."""
    interests, states = [], []
    for b in range(query.shape[0]):
        visits = range(int(history.offsets[b]), int(history.offsets[b + 1]))
        h, extracted, logits = torch.zeros(D), [], []
        for t in visits:
            h = step(tower.extractor, history.keys[t], h, 1.0)
            extracted.append(h)
            logits.append(h @ tower.from_query.weight @ query[b] + tower.from_gaps.weight[0] @ history.gaps[t])
        evolved = torch.zeros(D)
        for i in range(len(visits)):
            evolved = step(tower.evolution, extracted[i], evolved, torch.stack(logits).softmax(dim=0)[i])
        interests.append(torch.cat([evolved, evolved * query[b]]))
        states.append(extracted)
    return torch.stack(interests), states


@pytest.mark.parametrize("lengths", [[3, 1, 4], [0, 2, 0], [0, 0], [17, 0, 5, 1]])
def test_dien_equals_the_paper_by_hand(lengths: list[int]) -> None:
    tower = make()
    query, history = make_history(lengths)
    want, _ = dien_by_hand(tower, query, history)
    torch.testing.assert_close(tower(query, history), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tower._by_steps(query, history), want[:, :D], rtol=1e-4, atol=1e-5)


def test_large_logits_do_not_overflow() -> None:
    tower = make()
    query, history = make_history([9, 3])
    query, history = query * 1e4, history._replace(gaps=history.gaps * 1e3)
    want, _ = dien_by_hand(tower, query, history)
    torch.testing.assert_close(tower(query, history), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tower._by_steps(query, history), want[:, :D], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "least"), [(0.1, 0.3), (1, 0.6)])
def test_the_last_state_starts_near_what_is_like_the_target(size: float, least: float) -> None:
    """Before any training, for targets that are one of six visits; small rows get past the biases, the attention of
    large ones is of the right visit."""
    torch.manual_seed(0)
    samples, visits, dim = 300, 6, 48
    keys = size * (2 * torch.rand(samples, visits, dim) - 1)
    history = History(keys.flatten(0, 1), torch.arange(samples + 1) * visits, torch.zeros(samples * visits, 2))
    visited = keys[:, 2]
    states = DIEN(dim, 2)(visited, history)[:, :dim]
    near, far = (torch.cosine_similarity(states, q).mean().item() for q in (visited, visited.roll(1, 0)))
    assert near > least and abs(far) < 0.05


@pytest.mark.parametrize("lengths", [[3, 0, 1, 4], [0, 3, 0, 1, 4, 0], [0, 0, 1, 3, 4], [3, 1, 4]])
def test_auxiliary_loss_equals_the_loop(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    tower = make()
    query, history = make_history(lengths)
    total = sum(lengths)
    ahead = torch.tensor([3, 1, 7, 2, 5, 4, 6, 1])  # from the next visit to the other one
    monkeypatch.setattr(torch, "randint", lambda low, high, size, device: ahead)
    _, states = dien_by_hand(tower, query, history)
    terms = []
    for b, extracted in enumerate(states):
        for i in range(len(extracted) - 1):
            t = int(history.offsets[b]) + i
            positive, negative = history.keys[t + 1], history.keys[(t + 1 + int(ahead[t])) % total]
            terms.append(-logsigmoid(extracted[i] @ positive) - torch.log(1 - torch.sigmoid(extracted[i] @ negative)))
    interest, loss = tower.forward_with_loss(query, history)
    assert loss is not None and len(terms) == 5
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(interest, tower(query, history))
    half = DIEN(D, 2, auxiliary_weight=0.5)
    half.load_state_dict(tower.state_dict())
    torch.testing.assert_close(half.forward_with_loss(query, history)[1], loss / 2)


def test_the_auxiliary_loss_is_never_the_next_visit_against_itself() -> None:
    """With two visits the other one is always the first, whatever is drawn."""
    tower = make()
    query, history = make_history([2])
    first, second = history.keys
    h = tower.extractor(history.keys, history.offsets, history.offsets.diff())[0]
    want = -logsigmoid(h @ second) - logsigmoid(-(h @ first))
    for _ in range(5):
        torch.testing.assert_close(tower.forward_with_loss(query, history)[1], want)


@pytest.mark.parametrize("lengths", [[], [0, 0], [1], [1, 0, 1, 1]])
def test_no_next_visit_no_auxiliary_loss(lengths: list[int]) -> None:
    _, loss = make().forward_with_loss(*make_history(lengths))
    assert loss is not None and loss.shape == () and float(loss) == 0


def test_the_auxiliary_loss_teaches_the_extractor_what_comes_next() -> None:
    """Histories that go round a circle of places: the next one can be told, and the loss falls far below guessing."""
    torch.manual_seed(0)
    tower, places = make(), torch.randn(5, D)
    starts = torch.arange(20)
    keys = places[((starts[:, None] + torch.arange(8)) % 5).flatten()]
    history = History(keys, torch.arange(21) * 8, torch.zeros(160, 2))
    optimizer = torch.optim.Adam(tower.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        _, loss = tower.forward_with_loss(torch.zeros(20, D), history)
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
