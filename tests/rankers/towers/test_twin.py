"""TWIN against its equations, a sample and a visit at a time, and what makes its two stages consistent."""

import pytest
import torch
from torch import Tensor

from placerank.rankers.towers.tower import History
from placerank.rankers.towers.twin import TWIN

D, G, K = 8, 2, 4
LENGTHS = [3, 0, 40, 1, 12]


def make(lengths: list[int], seed: int = 0) -> tuple[Tensor, History]:
    g = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    keys, gaps = torch.randn(sum(lengths), D, generator=g), torch.rand(sum(lengths), G, generator=g) * 12
    return torch.randn(len(lengths), D, generator=g), History(keys, offsets, gaps)


def make_tower(top_k: int, seed: int = 0) -> TWIN:
    torch.manual_seed(seed)
    tower = TWIN(D, G, top_k=top_k, heads=2)
    for parameter in (tower.beta, tower.found.gap_embedding.weight):
        torch.nn.init.normal_(parameter)
    return tower


def gap_vectors(tower: TWIN, gaps: Tensor) -> list[Tensor]:
    """The embedding of each gap: between the two rows of its knots."""
    parts = []
    for gap, table in zip(gaps, tower.found.gap_embedding.weight, strict=True):
        low = min(int(gap), len(table) - 2)
        parts.append(table[low] + (gap - low) * (table[low + 1] - table[low]))
    return parts


def relevance(tower: TWIN, q: Tensor, k: Tensor, gaps: Tensor) -> Tensor:
    """alpha = (k W^h)(q W^q)^T + sum of beta_j (e_j . w_j), [A]."""
    crossed = torch.stack([e @ w for e, w in zip(gap_vectors(tower, gaps), tower.cross, strict=True)])
    inherent = [(h @ k) @ (w @ q) for h, w in zip(tower.inherent, tower.from_query, strict=True)]
    return torch.stack(inherent) + tower.beta @ crossed


def twin_by_hand(tower: TWIN, query: Tensor, history: History) -> Tensor:
    keys, offsets, gaps = history[:3]
    rows = []
    for b in range(query.shape[0]):
        alpha = {t: relevance(tower, query[b], keys[t], gaps[t]) for t in range(int(offsets[b]), int(offsets[b + 1]))}
        chosen = sorted(alpha, key=lambda t: -alpha[t].mean().item())[: tower.top_k]
        if not chosen:
            rows.append(torch.zeros(tower.output_dim))
            continue
        weights = torch.stack([alpha[t] for t in chosen]).exp()
        total = 1 + weights.sum(dim=0)
        z = torch.stack([torch.cat([keys[t], *gap_vectors(tower, gaps[t])]) for t in chosen])
        heads = [weights[:, a] / total[a] @ (z @ v.t()) for a, v in enumerate(tower.found.value)]
        product = query[b] * ((weights / total).mean(dim=1) @ keys[chosen])
        rows.append(torch.cat([*heads, product, total.log()]))
    return torch.stack(rows)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("top_k", [K, 100])
def test_twin_equals_the_paper_by_hand(seed: int, top_k: int) -> None:
    tower = make_tower(top_k, seed)
    query, history = make(LENGTHS, seed)
    inputs = [query.requires_grad_(), history.keys.requires_grad_(), *tower.parameters()]
    got, want = tower(query, history), twin_by_hand(tower, query, history)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    fast, slow = (torch.autograd.grad(out.square().sum(), inputs) for out in (got, want))
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_what_is_found_is_what_the_attention_over_all_would_weight_most() -> None:
    tower = make_tower(K)
    query, history = make([500])
    found = tower.search(*tower.queries(query), history)
    log_weights = torch.stack([relevance(tower, query[0], *x) for x in zip(history.keys, history.gaps, strict=True)])
    log_weights = log_weights.log_softmax(dim=0)
    assert sorted(log_weights.mean(dim=1).topk(K).indices.tolist()) == found[0].tolist()


def test_the_search_follows_the_gaps() -> None:
    tower = make_tower(1)
    query, history = make([50])
    found = int(tower.search(*tower.queries(query), history))
    far = history.gaps.clone()
    far[:] = 12  # where no visit is
    with torch.no_grad():
        tower.found.gap_embedding.weight[:, 11] = 0
        tower.found.gap_embedding.weight[:, 12] = -100 * (tower.cross * tower.beta.mean(0)[:, None]).sign()
    far[7] = 10
    assert int(tower.search(*tower.queries(query), history._replace(gaps=far))) == 7
    assert found != 7


def test_relevance_starts_as_a_similarity() -> None:
    torch.manual_seed(0)
    tower = TWIN(D, G)
    query, _ = make([1] * 50)
    queries, _ = tower.queries(query)
    assert (torch.einsum("bad,bd->ba", queries, query) > 0).all(), "the target itself matches in every head"


def test_none_of_the_visits_takes_the_weight_of_those_that_match_badly() -> None:
    torch.manual_seed(0)
    tower = TWIN(D, G)
    query, history = make([20])
    heads, strength = tower(100 * query, history._replace(keys=-100 * query.expand(20, -1))).split([2 * D, 4], dim=1)
    assert heads.abs().max() < 1e-6 and strength.abs().max() < 1e-6
    _, strength = tower(100 * query, history._replace(keys=100 * query.expand(20, -1))).split([2 * D, 4], dim=1)
    assert (strength > 10).all()


def test_histories_that_fit_are_found_whole_without_a_score() -> None:
    tower, (query, history) = make_tower(top_k=40), make(LENGTHS)
    queries, bias = tower.queries(query)
    found = tower.search(queries, bias, history._replace(keys=torch.full_like(history.keys, torch.nan)))
    assert [row[row >= 0].tolist() for row in found] == [
        list(range(a, b)) for a, b in zip(history.offsets[:-1].tolist(), history.offsets[1:].tolist(), strict=True)
    ]
    scored = make_tower(top_k=39).search(queries, bias, history)
    assert [(row >= 0).sum() for row in scored] == [min(n, 39) for n in LENGTHS]
