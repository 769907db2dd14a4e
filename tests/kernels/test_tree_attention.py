"""Attention over prefix trees: loops from the definition, the reference, the compiled loop."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from placerank.kernels.tree_attention import (
    _padded_memory_attention,
    memory_attention,
    memory_attention_reference,
    tree_attention,
    tree_attention_reference,
)

SHAPES = [(0, 1, 1, 1), (1, 1, 1, 4), (5, 3, 2, 7), (130, 4, 6, 64)]


def make(n: int, P: int, A: int, D: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(n)
    N = 3 * n + 1
    rows = torch.randint(-1, N, (n, P), generator=g)
    rows[::3] = -1
    rows[1::3, -1] = 0
    shapes = ((n, A, D), (N, A, D), (N, A, D))
    queries, keys, values = (torch.randn(shape, generator=g) for shape in shapes)
    return [queries / D**0.5, keys, values, rows, torch.randn(A, P, generator=g)]


def by_hand(queries: Tensor, keys: Tensor, values: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    out = torch.zeros_like(queries)
    for i, row in enumerate(rows.tolist()):
        for a in range(queries.shape[1]):
            there = [(p, r) for p, r in enumerate(row) if r >= 0]
            logits = [queries[i, a] @ keys[r, a] + (0 if bias is None else bias[a, p]) for p, r in there]
            weights = torch.stack(logits).softmax(0) if there else []
            for w, (_, r) in zip(weights, there, strict=True):
                out[i, a] += w * values[r, a]
    return out


@pytest.mark.parametrize("attend", [tree_attention, tree_attention_reference])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_ancestors(attend: Callable[..., Tensor], shape: tuple[int, int, int, int], biased: bool) -> None:
    *inputs, bias = make(*shape)
    torch.testing.assert_close(
        attend(*inputs, bias if biased else None), by_hand(*inputs, bias if biased else None), rtol=1e-5, atol=1e-5
    )


def test_a_tree_is_the_sequences_in_it() -> None:
    """Row by row what causal attention gives at the end of each prefix."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 7, 2, 8, generator=g)  # queries, keys, values of a root, two children and two each of theirs
    paths = [[0, 1, 3], [0, 1, 4], [0, 2, 5], [0, 2, 6]]
    rows = torch.tensor([path for path in paths])
    got = tree_attention(x[0, 3:], x[1], x[2], rows)
    for i, path in enumerate(paths):
        queries, keys, values = (y[path].transpose(0, 1)[None] for y in x)
        want = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=1.0)
        torch.testing.assert_close(got[i], want[0, :, -1])


def test_large_logits_and_gradients() -> None:
    queries, keys, values, rows, bias = make(5, 3, 2, 7)
    big = 1000 * queries  # known to 1e-4, and so are their weights
    torch.testing.assert_close(
        tree_attention(big, keys, values, rows, bias),
        tree_attention_reference(big, keys, values, rows, bias),
        rtol=1e-3,
        atol=1e-3,
    )
    leaves = [x.double().requires_grad_() for x in (queries, keys, values, bias)]
    assert torch.autograd.gradcheck(lambda q, k, v, b: tree_attention(q, k, v, rows, b), leaves)
    single = [x.detach().float().requires_grad_() for x in leaves]
    assert tree_attention(*single[:3], rows, single[3]).requires_grad


@pytest.mark.parametrize(
    ("nodes", "memory"), [([], []), ([0], [3]), ([2], [0]), ([1, 0, 3, 2], [5, 0, 1, 0]), ([50, 7], [1, 90])], ids=str
)
def test_memory(nodes: list[int], memory: list[int]) -> None:
    g = torch.Generator().manual_seed(1)
    offsets, memory_offsets = torch.tensor([0, *nodes]).cumsum(0), torch.tensor([0, *memory]).cumsum(0)
    queries = torch.randn(sum(nodes), 3, 8, generator=g)
    keys, values = torch.randn(2, sum(memory), 3, 8, generator=g)
    want = memory_attention_reference(queries, keys, values, offsets, memory_offsets)
    torch.testing.assert_close(memory_attention(queries, keys, values, offsets, memory_offsets), want)
    if nodes:  # as elsewhere than on a CPU
        got = _padded_memory_attention(queries, keys, values, offsets.tolist(), memory_offsets.tolist())
        torch.testing.assert_close(got, want)


def test_what_does_not_fit_is_told() -> None:
    queries, keys, values, rows, bias = make(5, 3, 2, 7)
    with pytest.raises(IndexError, match="rows: expected rows -1 to 15, got -1 to 16"):
        tree_attention(queries, keys, values, rows.clone().index_fill_(0, torch.tensor([2]), 16))
    with pytest.raises(ValueError, match=r"bias: got \[1, 3\], expected \[A, P\] = \[2, 3\]"):
        tree_attention(queries, keys, values, rows, bias[:1])
    with pytest.raises(ValueError, match=r"rows: got \[5, 3\], expected \[n, P\] = \[5, 2\]"):
        tree_attention(queries, keys, values, rows, bias[:, :2])
    with pytest.raises(ValueError, match="offsets: got 0 first, 4 last"):
        memory_attention(queries, keys, values, torch.tensor([0, 4]), torch.tensor([0, 16]))
    with pytest.raises(ValueError, match=r"memory_offsets: got \[3\], expected \[B\+1\] = \[2\]"):
        memory_attention(queries, keys, values, torch.tensor([0, 5]), torch.tensor([0, 4, 16]))
