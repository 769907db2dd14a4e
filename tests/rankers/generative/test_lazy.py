"""OneRec-V2's lazy decoder against loops; node by node it is what whole sequences give."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from placerank.rankers.generative.experts import Experts
from placerank.rankers.generative.layers import Memory
from placerank.rankers.generative.lazy import LazyDecoder

D, HEADS, WIDTH, LAYERS = 8, 2, 3, 3


def make(sets: int, experts: bool = False) -> LazyDecoder:
    torch.manual_seed(sets)
    made = LazyDecoder(
        columns=D, heads=HEADS, head_columns=WIDTH, hidden=12, layers=LAYERS, sets=sets, dropout=0.0,
        feed_forward=(lambda: Experts(D, 6, 4, 2)) if experts else None,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean() + 1e-6).sqrt() * weight


def slow(model: LazyDecoder, x: Tensor, memory: Tensor) -> Tensor:
    """One sequence [S, d] on the rows of its memory [M, d], a row, a head and a key after the other."""
    x, inner = x.clone(), HEADS * WIDTH
    pieces = memory @ model.context.weight.T
    for layer in range(LAYERS):
        block, asking = model.blocks[layer], model.asking[layer]
        number = layer * model.sets // LAYERS
        keys, values = (
            torch.stack([normed(row[i * inner : (i + 1) * inner], model.norms[i].weight) for row in pieces])
            for i in (2 * number, 2 * number + 1)
        )
        for s in range(len(x)):
            query = asking.query.weight @ normed(x[s], asking.norm.weight)
            found = []
            for head in range(HEADS):
                own = slice(head * WIDTH, (head + 1) * WIDTH)
                p = torch.stack([query[own] @ key[own] for key in keys]).softmax(0)
                found.append(sum(p[m] * values[m, own] for m in range(len(values))))
            x[s] = x[s] + asking.out.weight @ torch.cat(found)
        seen = torch.stack([normed(row, block.norm.weight) for row in x])
        q, k, v = (seen @ w.T for w in block.attention.maps.weight.split(inner))
        after = x.clone()
        for s in range(len(x)):
            found = []
            for head in range(HEADS):
                own = slice(head * WIDTH, (head + 1) * WIDTH)
                logits = [q[s, own] @ k[t, own] + model.bias(torch.tensor([s - t]))[head, 0] for t in range(s + 1)]
                p = torch.stack(logits).softmax(0)
                found.append(sum(p[t] * v[t, own] for t in range(s + 1)))
            after[s] = x[s] + block.attention.out.weight @ torch.cat(found)
        for s in range(len(x)):
            y = normed(after[s], block.hidden_norm.weight)
            x[s] = after[s] + (
                block.feed_forward(y[None])[0]
                if block.feed_forward
                else block.out.weight @ (block.hidden.weight @ y).relu()
            )
    return torch.stack([normed(row, model.norm.weight) for row in x])


@torch.no_grad()
@pytest.mark.parametrize("sets", [1, 2, 3])
@pytest.mark.parametrize("experts", [False, True])
def test_sequences_against_loops(sets: int, experts: bool) -> None:
    model = make(sets, experts)
    x, memory = torch.randn(4, 3, D), torch.randn(2, 5, D)
    group, number = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, 1])
    sees = torch.rand(4, 5) < 0.6
    sees[:, 0] = True
    got = model.together(x, memory, group, number, sees)
    for i in range(4):
        torch.testing.assert_close(got[i], slow(model, x[i], memory[group[i]][sees[i]]), atol=1e-5, rtol=1e-4)
    lengths = torch.tensor([5, 2, 1, 4])
    got = model(x, None, memory[group], lengths)
    for i in range(4):
        torch.testing.assert_close(got[i], slow(model, x[i], memory[group[i]][: lengths[i]]), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="memory: got None"):
        model(x)


@torch.no_grad()
@pytest.mark.parametrize("sets", [1, 2])
def test_node_by_node_is_the_whole_sequence(sets: int) -> None:
    """Keys and values are kept: of a tree of two sequences that part after their first row, and of one alone."""
    model = make(sets, experts=True)
    x, memory, lengths = torch.randn(3, 3, D), torch.randn(2, 4, D), torch.tensor([4, 2])
    x[1, 0] = x[0, 0]
    want = model(x, None, memory[[0, 0, 1]], lengths[[0, 0, 1]])
    state = model.start(Memory.of_padded(memory, lengths, x[[0, 2], 0]), 8)
    first = model.step(x[[0, 2], 0], torch.tensor([[0], [1]]), [0, 1, 2], state)
    torch.testing.assert_close(first, want[[0, 2], 0], atol=1e-5, rtol=1e-4)
    second = model.step(x[:, 1], torch.tensor([[0, 2], [0, 3], [1, 4]]), [0, 2, 3], state)
    torch.testing.assert_close(second, want[:, 1], atol=1e-5, rtol=1e-4)
    third = model.step(x[:, 2], torch.tensor([[0, 2, 5], [0, 3, 6], [1, 4, 7]]), [0, 2, 3], state)
    torch.testing.assert_close(third, want[:, 2], atol=1e-5, rtol=1e-4)


def test_layers_share_keys_and_values() -> None:
    for sets, groups in ((1, [[0, 1, 2]]), (2, [[0, 1], [2]]), (3, [[0], [1], [2]])):
        model = make(sets)
        found = model.keys_values(torch.randn(5, D))
        for i, own in enumerate(groups):
            assert all(found[layer][0] is found[own[0]][0] and found[layer][1] is found[own[0]][1] for layer in own)
            assert not i or found[own[0]][0] is not found[0][0]
        assert not any("maps" in name for name, _ in model.asking.named_parameters()), "no maps of keys and values"
        assert len({x.data_ptr() for pair in found for x in pair}) == 2 * sets
    for sets in (0, 4):
        with pytest.raises(ValueError, match=f"sets: got {sets}, expected 1 to 3"):
            make(sets)


def test_nothing_of_the_memory_that_is_not_seen_counts() -> None:
    model = make(2)
    x, memory = torch.randn(1, 3, D), torch.randn(1, 4, D, requires_grad=True)
    sees = torch.tensor([[True, False, True, False]])
    model.together(x, memory, torch.tensor([0]), torch.tensor([0]), sees).square().sum().backward()
    grad = memory.grad
    assert grad is not None and F.normalize(grad, dim=2)[0, [0, 2]].norm(dim=1).min() > 0.9
    assert not grad[0, [1, 3]].any()
