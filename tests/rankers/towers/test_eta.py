"""ETA's search against the signs themselves; its attention is SIM's."""

import pytest
import torch
from torch import Tensor

from placerank.rankers.towers.eta import ETA
from placerank.rankers.towers.tower import History

D, G, K = 8, 2, 4
LENGTHS = [3, 0, 40, 1, 12]


def make(lengths: list[int], seed: int = 0) -> tuple[Tensor, History]:
    g = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    keys, gaps = torch.randn(sum(lengths), D, generator=g), torch.rand(sum(lengths), G, generator=g) * 12
    return torch.randn(len(lengths), D, generator=g), History(keys, offsets, gaps)


def nearest_by_hand(tower: ETA, query: Tensor, history: History, b: int) -> list[int]:
    """The smallest Hamming distances; of equal ones the most recent."""
    signs = lambda x: [float(x @ direction) >= 0 for direction in tower.directions.t()]  # noqa: E731
    distance = {
        t: sum(x != y for x, y in zip(signs(history.keys[t]), signs(query[b]), strict=True))
        for t in range(int(history.offsets[b]), int(history.offsets[b + 1]))
    }
    return sorted(sorted(distance, key=lambda t: (distance[t], -t))[: tower.top_k])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bits", [4, 64])
def test_eta_is_attention_over_the_nearest_hashes(seed: int, bits: int) -> None:
    torch.manual_seed(seed)
    tower = ETA(D, G, top_k=K, heads=2, bits=bits)
    query, history = make(LENGTHS, seed)
    rows = torch.full((len(LENGTHS), K), -1)
    for b in range(len(LENGTHS)):
        chosen = nearest_by_hand(tower, query, history, b)
        rows[b, : len(chosen)] = torch.tensor(chosen, dtype=torch.int64)
    torch.testing.assert_close(tower(query, history), tower.attention(query, history, rows))


def test_gradients_reach_what_was_found_alone() -> None:
    tower = ETA(D, G, top_k=K)
    query, history = make(LENGTHS)
    history.keys.requires_grad_()
    tower(query, history).square().sum().backward()
    assert history.keys.grad is not None
    for b in range(len(LENGTHS)):
        start, stop = history.offsets[b : b + 2].tolist()
        touched = [t for t in range(start, stop) if history.keys.grad[t].any()]
        assert touched == nearest_by_hand(tower, query, history, b)


def test_directions_are_the_same_everywhere_and_never_trained() -> None:
    torch.manual_seed(1)
    one = ETA(D, G)
    torch.manual_seed(2)
    other = ETA(D, G)
    assert torch.equal(one.directions, other.directions)
    assert "directions" in one.state_dict() and "directions" not in dict(one.named_parameters())


def test_more_bits_find_more_of_the_smallest_angles() -> None:
    query, history = make([2000], seed=1)
    best = set(torch.nn.functional.cosine_similarity(history.keys, query[0]).topk(50).indices.tolist())
    shares = []
    for bits in (8, 64, 512):
        tower = ETA(D, G, top_k=50, bits=bits)
        history.keys.requires_grad_().grad = None
        tower(query, history).square().sum().backward()
        found = history.keys.grad.abs().sum(dim=1).nonzero().flatten().tolist()
        shares.append(len(best & set(found)) / 50)
    assert shares[0] < shares[1] < shares[2] and shares[1] > 0.5
