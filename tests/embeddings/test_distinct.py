"""Groups of equal rows against Python's own dictionaries."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from placerank.embeddings.distinct import distinct, spread_add


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 30),
    most=st.lists(st.sampled_from([1, 3, 2**31 - 1]), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_groups_are_those_of_a_dictionary(rows: int, most: list[int], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    columns = [torch.randint(2, (rows,), generator=g) * (n - 1) for n in most]  # few values, near the largest allowed
    groups = distinct(*columns)
    expected: dict[tuple[int, ...], list[int]] = {}
    for row, key in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        expected.setdefault(key, []).append(row)
    members = [expected[key] for key in sorted(expected)]
    assert groups.first.tolist() == [m[0] for m in members]
    cuts = groups.offsets.tolist()
    assert [groups.order[a:b].tolist() for a, b in pairwise(cuts)] == members
    assert all(groups.group[row] == n for n, m in enumerate(members) for row in m)


def test_sum_and_its_gradients_are_those_of_indexing() -> None:
    groups = distinct(torch.tensor([4, 0, 4, 4, 9]))
    rows, values = (torch.randn(n, 5, dtype=torch.float64, requires_grad=True) for n in (5, 3))
    torch.testing.assert_close(spread_add(rows, values, groups), rows + values[torch.tensor([1, 0, 1, 1, 2])])
    assert torch.autograd.gradcheck(lambda r, v: spread_add(r, v, groups), (rows, values))


def test_no_rows() -> None:
    groups = distinct(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    values = torch.empty(0, 5, requires_grad=True)
    out = spread_add(torch.empty(0, 5), values, groups)
    out.sum().backward()
    assert out.shape == (0, 5) and values.grad is not None and groups.offsets.tolist() == [0]
