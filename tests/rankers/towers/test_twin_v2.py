"""TWIN-V2 beside TWIN: clusters of one visit, and clusters of n against the same visit n times."""

import pytest
import torch
from torch import Tensor

from placerank.rankers.towers.tower import History
from placerank.rankers.towers.twin import TWIN
from placerank.rankers.towers.twin_v2 import TWINV2

D = 8
LENGTHS = [3, 0, 40, 1, 12]


def pair(top_k: int = 100, gaps: int = 3) -> tuple[TWIN, TWINV2]:
    """TWIN, and TWIN-V2 with its weights, none as at the start."""
    torch.manual_seed(0)
    twin, v2 = TWIN(D, 2, top_k=top_k, heads=2), TWINV2(D, gaps, top_k=top_k, heads=2)
    for parameter in (twin.beta, twin.found.gap_embedding.weight):
        torch.nn.init.normal_(parameter)
    v2.load_state_dict(twin.state_dict())
    return twin, v2


def make(sizes: Tensor, lengths: list[int]) -> tuple[Tensor, History, History]:
    """Queries, histories of clusters, and the same with each cluster's place so many times."""
    g = torch.Generator().manual_seed(1)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    keys, gaps = torch.randn(len(sizes), D, generator=g), torch.rand(len(sizes), 2, generator=g) * 12
    of_clusters = History(keys, offsets, torch.cat([gaps, sizes.float().log()[:, None]], dim=1))
    upto = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])[offsets]
    of_visits = History(keys.repeat_interleave(sizes, 0), upto, gaps.repeat_interleave(sizes, 0))
    return torch.randn(len(lengths), D, generator=g), of_clusters, of_visits


@pytest.mark.parametrize("top_k", [4, 100])
def test_clusters_of_one_visit_are_twin(top_k: int) -> None:
    twin, v2 = pair(top_k)
    query, clusters, visits = make(torch.ones(sum(LENGTHS), dtype=torch.int64), LENGTHS)
    torch.testing.assert_close(v2(query, clusters), twin(query, visits), rtol=1e-5, atol=1e-6)
    _, without = pair(top_k, gaps=2)
    assert torch.equal(without(query, visits), twin(query, visits))


def test_a_cluster_of_n_counts_as_its_place_n_times() -> None:
    twin, v2 = pair(top_k=4000)
    sizes = torch.randint(1, 40, (sum(LENGTHS),), generator=torch.Generator().manual_seed(2))
    query, clusters, visits = make(sizes, LENGTHS)
    inputs = [query.requires_grad_(), clusters.keys.requires_grad_()]
    got, want = v2(query, clusters), twin(query, visits._replace(keys=clusters.keys.repeat_interleave(sizes, 0)))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, twin(query, clusters._replace(gaps=clusters.gaps[:, :2])), atol=1e-2)
    fast = torch.autograd.grad(got.square().sum(), [*inputs, *v2.parameters()])
    slow = torch.autograd.grad(want.square().sum(), [*inputs, *twin.parameters()])
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_the_search_weighs_clusters_by_their_number_too() -> None:
    _, v2 = pair(top_k=1)
    sizes = torch.tensor([1, 1, 100_000, 1, 1])
    query, clusters, _ = make(sizes, [5])
    gaps = clusters.gaps.clone()
    gaps[:, :2] = 12
    with torch.no_grad():
        v2.found.gap_embedding.weight.zero_()
    history = clusters._replace(keys=0.1 * clusters.keys, gaps=gaps)
    alpha = history.keys @ v2.queries(query)[0][0].mean(0)
    assert int(v2.search(*v2.queries(query), history)) == int((alpha + sizes.log()).argmax()) == 2
    assert int(alpha.argmax()) != 2


@pytest.mark.parametrize("n", [1, 2, 20, 999, 162_754])
def test_what_is_added_is_the_logarithm(n: int) -> None:
    _, v2 = pair()
    query, clusters, _ = make(torch.tensor([n]), [1])
    one, _, _ = make(torch.tensor([1]), [1])
    assert torch.equal(one, query)
    single = v2(query, clusters._replace(gaps=clusters.gaps * torch.tensor([1, 1, 0])))[:, -2:]
    many = v2(query, clusters)[:, -2:]  # log(1 + n exp(alpha)) of both heads
    torch.testing.assert_close(many.expm1(), n * single.expm1(), rtol=1e-4, atol=1e-4)
