"""The cluster gate: features and mixture by hand, a gate that rises with activity, gradients scaled by it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from placerank.data.batches.activity import ACTIVITY_DIM, COLD, activity_features
from placerank.embeddings.cluster_gate import ClusterGate

D = 5


def active(*counts: float, days: float = 10.0) -> Tensor:
    return activity_features(torch.tensor(counts), torch.full((len(counts),), days))


def make(seed: int = 0) -> ClusterGate:
    torch.manual_seed(seed)
    return ClusterGate(D)


def test_features_by_hand() -> None:
    got = activity_features(torch.tensor([0, 9, 29, 10**6]), torch.tensor([math.nan, 30.0, math.nan, -1.0]))
    log_count = [0, *(math.log((c + 1) / 3) / math.log(301 / 3) for c in (9, 29)), 1]
    torch.testing.assert_close(got[:, 0], torch.tensor(log_count))
    assert got[:, 1].tolist() == [0, 0.5, 0, 1], "halved every 30 days; unknown or cold: none; a future visit: as now"
    assert got[:, 2:].argmax(1).tolist() == [0, 1, 2, 5] and (got[:, 2:].sum(1) == 1).all()
    assert got.shape == (4, ACTIVITY_DIM) and got.dtype == torch.float32
    assert active().shape == (0, ACTIVITY_DIM)


def test_cold_rows_look_alike() -> None:
    got = activity_features(torch.arange(COLD + 1), torch.tensor([math.nan, 5.0, 400.0, 5.0]))
    assert (got[:COLD] == got[0]).all() and (got[COLD] != got[0]).any()


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(0, 10**7), min_size=2, max_size=20),
    days=st.floats(0, 2000),
    later=st.floats(0.5, 500),
    seed=st.integers(0, 50),
)
def test_the_gate_starts_rising_with_activity(counts: list[int], days: float, later: float, seed: int) -> None:
    gate, counts = make(seed), sorted(counts)
    mixed, g = gate(torch.ones(len(counts), D), torch.zeros(len(counts), D), active(*counts, days=days))
    assert (g.diff(dim=0) >= -1e-6).all() and (g > 0).all() and (g < 1).all()
    torch.testing.assert_close(mixed, g)
    _, g = gate(*torch.zeros(2, 1, D), active(2, days=days))
    torch.testing.assert_close(g, torch.full((1, D), 1 / (1 + math.exp(2))))
    _, full = gate(*torch.zeros(2, 1, D), active(300, days=0))
    torch.testing.assert_close(full, torch.full((1, D), 1 / (1 + math.exp(-2))))
    _, by_day = gate(*torch.zeros(2, 2, D), activity_features(torch.full((2,), 9), torch.tensor([later, later / 2])))
    assert (by_day[1] > by_day[0]).all() or later > 300, "and with recency"
    _, steps = gate(*torch.zeros(2, 5, D), active(2, 3, 10, 100, 300))
    assert (steps.diff(dim=0) > 0).all()


def test_mixture_and_gradients_by_hand() -> None:
    gate, activity = make(), active(0, 9, 300)
    individual, cluster = (torch.randn(3, D, requires_grad=True) for _ in range(2))
    upstream = torch.randn(3, D)
    mixed, g = gate(individual, cluster, activity)
    torch.testing.assert_close(mixed, g * individual + (1 - g) * cluster)
    parameters = list(gate.parameters())
    got = torch.autograd.grad((mixed * upstream).sum(), [individual, cluster, *parameters], retain_graph=True)
    plain = torch.autograd.grad(
        ((g * individual + (1 - g) * cluster) * upstream).sum(), [individual, cluster, *parameters]
    )
    level = math.log(10 / 3) / math.log(301 / 3)
    scale = torch.tensor([0.1, 0.1 + 0.9 * level, 1.0])[:, None]
    torch.testing.assert_close(got[0], plain[0])
    torch.testing.assert_close(got[1], plain[1] * scale)
    for a, b in zip(got[2:], plain[2:], strict=True):
        torch.testing.assert_close(a, b)
    assert all(x.abs().sum() > 0 for x in got), "every parameter learns"


def test_heads_decide_where_the_clusters_row_goes() -> None:
    """Ninety tail samples pull a cluster's row one way, thirty head samples the other."""
    table = torch.nn.Embedding(2, D)
    activity = active(*[0.0] * 90, *[1000.0] * 30, days=0)
    pull = torch.cat([torch.ones(90, D), -torch.ones(30, D)])
    gate = make()
    _, g = gate(torch.zeros(120, D), torch.zeros(120, D), activity)
    mixed, _ = gate(torch.zeros(120, D), table(torch.ones(120, dtype=torch.int64)), activity)
    (mixed * pull / (1 - g.detach())).sum().backward()
    torch.testing.assert_close(table.weight.grad[1], torch.full((D,), 90 * 0.1 - 30))
    assert not table.weight.grad[0].any()


def test_equal_parts_without_the_gate() -> None:
    gate = ClusterGate(D, adaptive=False)
    assert not list(gate.parameters())
    individual, cluster = (torch.randn(4, D, requires_grad=True) for _ in range(2))
    mixed, g = gate(individual, cluster, active(0, 5, 50, 500))
    torch.testing.assert_close(mixed, (individual + cluster) / 2)
    assert (g == 0.5).all()
    mixed.sum().backward()
    assert (individual.grad == 0.5).all() and (cluster.grad == 0.5).all()


@pytest.mark.parametrize("n", [0, 1, 7])
def test_bf16_no_rows_and_export(n: int) -> None:
    gate, activity = make(), active(*range(n))
    rows = torch.randn(2, n, D, dtype=torch.bfloat16, requires_grad=True)
    mixed, _ = gate(*rows, activity)
    assert mixed.dtype == torch.bfloat16 and mixed.shape == (n, D)
    mixed.sum().backward()
    assert rows.grad.isfinite().all()
    if n > 1:
        arguments = (*torch.randn(2, n, D), activity)
        rows_of = {0: torch.export.Dim("n")}
        program = torch.export.export(gate, arguments, dynamic_shapes=(rows_of, rows_of, rows_of))
        longer = (*torch.randn(2, 2 * n, D), active(*range(2 * n)))
        torch.testing.assert_close(program.module()(*longer), gate(*longer))
