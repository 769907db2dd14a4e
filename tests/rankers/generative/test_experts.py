"""The mixture of experts against a loop over rows, and its balance."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from placerank.rankers.generative.experts import Experts
from placerank.rankers.generative.layers import Memory, Transformer


@torch.no_grad()
def slow(layer: Experts, x: Tensor) -> Tensor:
    """A row at a time, as the equation reads."""
    out = []
    for row in x:
        scores = [float((w * row).sum().sigmoid()) for w in layer.router.weight]
        by = sorted(range(len(scores)), key=lambda e: -(scores[e] + float(layer.bias[e])))[: layer.active]
        total = sum(scores[e] for e in by)
        out.append(sum(scores[e] / total * (layer.out[e] @ (layer.hidden[e] @ row).relu()) for e in by))
    return torch.stack(out) if out else torch.zeros_like(x)  # type: ignore[arg-type]


def layer(experts: int = 5, active: int = 2, step: float = 0.001) -> Experts:
    torch.manual_seed(0)
    return Experts(6, 4, experts, active, step=step).eval()


@pytest.mark.parametrize("rows", [0, 1, 17])
@pytest.mark.parametrize("active", [1, 2, 5])
def test_a_loop_over_rows(rows: int, active: int) -> None:
    made = layer(active=active)
    made.bias.copy_(torch.tensor([0.3, -0.2, 0.0, 0.1, -0.4]))
    x = torch.randn(rows, 6)
    torch.testing.assert_close(made(x), slow(made, x))
    torch.testing.assert_close(made(x.view(rows, 1, 6)), made(x)[:, None])


def test_gradients_are_those_of_the_loop() -> None:
    made = layer().double()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: made(x), (x, *made.parameters()))


def test_all_rows_may_go_to_one_expert() -> None:
    made = layer(active=1)
    made.bias[3] = 100.0
    x = torch.randn(9, 6, requires_grad=True)
    found = made(x)
    torch.testing.assert_close(found, (x @ made.hidden[3].T).relu() @ made.out[3].T)  # a gate alone is 1
    found.sum().backward()
    assert made.hidden.grad is not None
    assert (made.hidden.grad[[0, 1, 2, 4]] == 0).all()
    assert x.grad is not None and bool((x.grad != 0).any())


def test_all_experts_together_are_dense_layers() -> None:
    made = layer(active=5)
    x = torch.randn(8, 6)
    scores = made.router(x).sigmoid()
    gates = scores / scores.sum(1, keepdim=True)
    hidden = (x @ made.hidden.flatten(0, 1).T).relu() * gates.repeat_interleave(4, dim=1)
    torch.testing.assert_close(made(x), hidden @ made.out.transpose(0, 1).flatten(1).T)


def test_the_bias_moves_against_the_load_in_training_alone() -> None:
    made = layer(experts=4, active=1, step=0.5)
    with torch.no_grad():
        made.router.weight.zero_()
        made.router.weight[1, 0], made.router.weight[2, 0] = 1.0, -1.0
    x = torch.zeros(4, 6)
    x[:, 0] = torch.tensor([1.0, 1.0, 1.0, -1.0])  # three rows of expert 1, one of expert 2, none of 0 and 3
    made(x)
    assert (made.bias == 0).all()
    made.train()(x)
    assert made.bias.tolist() == [0.5, -0.5, 0.0, 0.5]
    made(x[:0])
    assert made.bias.tolist() == [0.5, -0.5, 0.0, 0.5]


def test_ranks_move_by_the_load_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def add_the_others(load: Tensor) -> None:
        load += torch.tensor([0, 0, 0, 9])

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", add_the_others)
    made = layer(experts=4, active=1, step=0.5).train()
    with torch.no_grad():
        made.router.weight.zero_()
    made.bias[0] = 1.0
    made(torch.randn(3, 6))  # all of expert 0: its share of the 12 of all ranks
    assert made.bias.tolist() == [1.0, 0.5, 0.5, -0.5]
    made(torch.randn(0, 6))  # nothing here, but elsewhere
    assert made.bias.tolist() == [1.5, 1.0, 1.0, -1.0]


def test_a_crowd_is_spread() -> None:
    """Rows that all look alike to the router go to one expert at first, and to all after some batches."""
    made = layer(experts=8, active=2, step=0.01).train()
    x = torch.randn(6) + 0.5 * torch.randn(4000, 6)
    loads = []
    for some in x.split(50):
        loads.append(made.route(some)[0].flatten().bincount(minlength=8))
        made(some)
    first, last = loads[0].float(), torch.stack(loads[-20:]).sum(0).float()
    assert first.max() / first.mean() > 2.5
    assert last.max() / last.mean() < 1.5


def test_a_decoder_of_experts_over_a_tree_is_the_same_over_sequences() -> None:
    torch.manual_seed(0)
    decoder = Transformer(
        columns=6, heads=2, head_columns=3, hidden=8, layers=2, dropout=0.0, causal=True, memory=True,
        feed_forward=lambda: Experts(6, 4, 5, 2),
    ).eval()  # fmt: skip
    assert not hasattr(decoder.blocks[0], "hidden")
    x, memory = torch.randn(2, 3, 6), torch.randn(2, 4, 6)
    state = decoder.start(Memory.of_padded(memory, torch.tensor([4, 4]), x[:, 0]), 6)
    rows = torch.zeros(2, 0, dtype=torch.int64)
    with torch.no_grad():
        want = decoder(x, memory=memory)
        for depth in range(3):
            rows = torch.cat([rows, 2 * depth + torch.arange(2)[:, None]], dim=1)
            got = decoder.step(x[:, depth], rows, [0, 1, 2], state)
            torch.testing.assert_close(got, want[:, depth], atol=1e-5, rtol=1e-5)


def test_more_experts_a_row_than_there_are() -> None:
    with pytest.raises(ValueError, match="got 6, expected 1 to 5, the number of experts"):
        layer(active=6)
